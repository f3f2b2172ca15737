"""What others pickled with ``torch.save``, read without running anything that the file asks for.

A pickle is a program that names functions to call. Python's machine for it is not used: the few instructions that
torch's files need are followed here. Only names on a short list mean anything, and they mean descriptions of tensors
over the file's own bytes, and inert stand-ins that keep a network's tables and can do nothing. Every other name ends
the reading. No class of torch, torchvision or the file's author is imported or called.

A pickle also claims sizes. No instruction here takes more time or memory than it has bytes, and no tensor is made that
is larger than the block it lies over. Both of torch's layouts are read: the zip of today, and that of torch before 1.6,
in which torchvision's older weights and ArcFace's are published. Snapshots of GANs come as plain pickles, too, with a
file of the older layout for each block inside; NVIDIA's also carry the source text of their networks' classes, which is
passed over like any other text.
"""

from __future__ import annotations

import io
import math
import pickletools  # nosec B403 # it names instructions and follows none
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import EditingError
from ..file_names import shown_name
from .kinds import KINDS, MIB, check_size

MAX_PICKLE_BYTES = 16 * MIB  # the part without the weights
MAX_OPCODES = 200_000  # ResNet50 as a whole network has 28,000
MAX_DIRECTORY = 4 * MIB  # a zip's table of contents
MAX_DEPTH = 64  # of networks inside networks
MAX_NAME = 300  # characters of a layer's or tensor's name
MAX_SIDES = 16  # dimensions of a tensor
MAX_BITS = 128  # of a number
MAX_EMPTY = 2**16  # side of a tensor without elements
MAX_LINE = 2**16  # bytes of an instruction that ends with its line
HEAD = 1024  # bytes of a block inside a plain pickle that are looked at for what the block is; torch needs about 300
#: What tensors may unfold to, beyond twice the file: tied weights lie over one block.
SLACK = MIB
#: Numbers at the start of a file in the layout before 1.6.
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
#: Classes whose instances may stand in a network, by module.
PARTS = {
    "torch.nn.modules.container": ("Sequential", "ModuleList", "ModuleDict", "ParameterDict"),
    "torch.nn.modules.conv": ("Conv2d",),
    "torch.nn.modules.linear": ("Linear", "Identity"),
    "torch.nn.modules.batchnorm": ("BatchNorm2d",),
    "torch.nn.modules.activation": ("ReLU", "Sigmoid", "Softmax"),
    "torch.nn.modules.pooling": ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"),
    "torch.nn.modules.dropout": ("Dropout",),
    "torch.nn.modules.flatten": ("Flatten",),
    "torchvision.models.vgg": ("VGG",),
    "torchvision.models.resnet": ("ResNet", "Bottleneck", "BasicBlock"),
    "argparse": ("Namespace",),  # a training's settings, kept beside its weights
}
#: Under this key the original textual-inversion program and AUTOMATIC1111's keep their vectors, beside facts that
#: nothing needs.
TERMS = "string_to_param"
#: Under these keys trainings keep their network's table of tensors, beside facts that nothing needs.
WRAPPED = ("state_dict", "model", "model_ema")
#: What a list of tables of tensors is called; a tensor's name there begins with the number of its table.
LISTED = "list"
#: The class of CASO's published classifiers; its module depends on the script that saved it.
PUBLISHED = "BinaryClassifier"


@dataclass(frozen=True, eq=False)
class PickledNetwork:
    """The content of a file.

    Attributes:
        kind: name of the outermost class, e.g. "BinaryClassifier", "state_dict" for a plain table of tensors, "list"
            for several of them, or "textual_inversion" for a table of the tensors under :data:`TERMS`.
        tensors: parameters and buffers by their dotted names, as ``state_dict()`` would give them.
        facts: of a snapshot, the plain attributes of networks and tables (numbers, texts, true and false) by their
            dotted names.
    """

    kind: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


def read_network_pickle(path: str | Path, kind: str = "classifier") -> PickledNetwork:
    """Read a network, or a table of tensors, from a file that ``torch.save`` wrote.

    Args:
        kind: of file, a key of :data:`~.kinds.KINDS`.

    Raises:
        EditingError: missing, too large, damaged, or asking for anything but tensors and the layers of :data:`PARTS`.
    """
    source, what, named = Path(path), KINDS[kind].title, shown_name(Path(path).name)

    def take(value: Any) -> tuple[str, dict[str, _View]]:
        made = value.kind if isinstance(value, _Inert) else "state_dict"
        if isinstance(value, dict) and TERMS in value:
            made, value = "textual_inversion", value[TERMS]
        inside = [value[key] for key in WRAPPED if isinstance(value, dict) and isinstance(value.get(key), dict)]
        if inside and not any(isinstance(part, _View) for part in value.values()):
            value = inside[0]
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            if sum(map(len, value)) > KINDS[kind].tensors:  # one table again and again costs the file nothing
                raise EditingError(f"{named} holds more tensors than any {what} has; choose another file.")
            made, value = LISTED, {f"{at}.{_name(key)}": part[key] for at, part in enumerate(value) for key in part}
        views = _views(value.tables if isinstance(value, _Inert) else {"_parameters": value}, named, what)
        if not views:
            raise EditingError(f"{named} holds no weights; choose another file.")
        return made, views

    return PickledNetwork(*_read(source, kind, take))


def read_table_pickle(path: str | Path, kind: str) -> dict[str, Tensor]:
    """Read a table of tensors by name and nothing else, see :func:`read_network_pickle`.

    Raises:
        EditingError: see there, or anything else is in the file.
    """
    name = shown_name(Path(path).name)

    def take(value: Any) -> tuple[str, dict[str, _View]]:
        if not isinstance(value, dict) or not all(
            isinstance(key, str) and isinstance(view, _View) for key, view in value.items()
        ):
            raise EditingError(f"{name} holds no table of weights by name; use a file saved as a state_dict.")
        return "state_dict", dict(value)

    return _read(Path(path), kind, take)[1]


def read_tensor_pickle(path: str | Path, kind: str) -> Tensor:
    """Read one tensor, see :func:`read_network_pickle`.

    Raises:
        EditingError: see there, or anything else is in the file.
    """
    name = shown_name(Path(path).name)

    def take(value: Any) -> tuple[str, dict[str, _View]]:
        if not isinstance(value, _View):
            held = "network" if isinstance(value, _Inert) else type(value).__name__
            raise EditingError(
                f"{name} holds a {held} instead of one tensor; use a file saved with torch.save(tensor)."
            )
        return "tensor", {"": value}

    return _read(Path(path), kind, take)[1][""]


def read_snapshot_pickle(
    path: str | Path, kind: str, parts: Sequence[str], wanted: Callable[[str], bool] = bool
) -> PickledNetwork:
    """Read what a training left: a network or a table of tensors, alone or in a table with others and its settings.

    Besides files of ``torch.save`` plain pickles are read whose networks bring their own classes, as those of
    NVIDIA's ``torch_utils.persistence``: of such a class only the name is taken.

    Args:
        parts: names of what is wanted in the table, e.g. "g_ema"; tensors and facts then begin with them. Of a file
            without any of them everything is taken.
        wanted: whether the tensor of a dotted name is needed, e.g. "state_dict.encoder.styles.0.linear.weight"; others
            take no memory.

    Raises:
        EditingError: see :func:`read_network_pickle`, or no tensor is wanted.
    """
    source, what, facts, named = Path(path), KINDS[kind].title, {}, shown_name(Path(path).name)

    def take(value: Any) -> tuple[str, dict[str, _View]]:
        table = value if isinstance(value, dict) else {}
        chosen = {part: table[part] for part in parts if part in table} or {"": value}
        made, views = "", {}
        for part, held in chosen.items():
            if isinstance(held, _View):
                views[part] = held
                continue
            prefix = f"{part}." if part else ""
            tables = held.tables if isinstance(held, _Inert) else {"_parameters": held}
            made = made or (held.kind if isinstance(held, _Inert) else "state_dict")
            networks = list(_networks(tables, named, what, prefix))
            views |= _views_of(networks)
            facts.update(_facts_of([*networks, (prefix, held)] if isinstance(held, dict) else networks))
        views = {name: view for name, view in views.items() if wanted(name)}
        if not views:
            raise EditingError(f"{named} holds no weights of a {what}; choose another file.")
        return made, views

    return PickledNetwork(*_read(source, kind, take, MEANINGS | SNAPSHOT), facts)


def is_zip(path: Path) -> bool:
    """Whether a file begins as ``torch.save`` has begun one since 1.6; no safetensors file of bearable size does."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _read(
    source: Path,
    kind: str,
    take: Callable[[Any], tuple[str, dict[str, _View]]],
    meanings: Mapping[tuple[str, str], Any] | None = None,
) -> tuple[str, dict[str, Tensor]]:
    """What ``take`` chose of the value in a file, made into tensors.

    Args:
        meanings: of the names that the file may hold, by default :data:`MEANINGS`; plain pickles are read where these
            say what a block inside one is.
    """
    size, meanings, named = check_size(source, kind), meanings or MEANINGS, shown_name(source.name)
    try:
        with source.open("rb") as stream:
            head = stream.read(64)
            plain = INNER in meanings and OLD_MAGIC.to_bytes(10, "little") not in head
            layout = _Zip if head[:2] == b"PK" else _Plain if plain else _Old
            stored = layout(stream, named, KINDS[kind].title, meanings, size)
            chosen, views = take(stored.value)
            if len(views) > KINDS[kind].tensors:
                raise EditingError(f"{named} holds {len(views)} tensors, more than a {KINDS[kind].title} has.")
            _check_views(views, stored.lengths(), size, named)
            return chosen, _tensors(views, stored.block)
    except (EditingError, MemoryError):
        raise
    except Exception as error:  # a pickle can provoke any exception; nothing of it may pass as success
        raise EditingError(f"{named} is damaged or was not saved by torch.save; download it again.") from error


class _Zip:
    """torch's layout since 1.6: a zip without compression, one entry for the pickle and one for each block."""

    def __init__(self, stream: BinaryIO, name: str, what: str, meanings: Mapping[tuple[str, str], Any], size: int):
        if _directory_bytes(stream, size) > MAX_DIRECTORY:
            raise EditingError(f"{name} has too many parts for a {what}; choose another file.")
        self.archive = zipfile.ZipFile(stream)
        entries = self.archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise EditingError(f"{name} is compressed, which torch.save never does; use the original file.")
        self.entries = {entry.filename: entry for entry in entries}
        if sum(entry.file_size for entry in entries) > size or len(self.entries) != len(entries):
            raise ValueError("parts that overlap")
        pickles = [key for key in self.entries if key.endswith("/data.pkl")]
        if len(pickles) != 1 or self.entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise EditingError(f"{name} is not a network saved by torch.save; choose another file.")
        self.folder = pickles[0].removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        if order in self.entries and (
            self.entries[order].file_size > 16 or self.archive.read(order).strip() != b"little"
        ):
            raise EditingError(
                f"{name} was saved on a big-endian machine and cannot be read here; save it as safetensors."
            )
        self.value = _Reader(name, what, meanings).load(io.BytesIO(self.archive.read(pickles[0])))

    def lengths(self) -> dict[str, int]:
        """Bytes of each block."""
        start = f"{self.folder}data/"
        return {
            key.removeprefix(start): entry.file_size for key, entry in self.entries.items() if key.startswith(start)
        }

    def block(self, key: str) -> bytearray:
        """The bytes of a block."""
        return bytearray(self.archive.read(f"{self.folder}data/{key}"))


class _Old:
    """torch's layout before 1.6: five pickles (mark, version, machine, value, names of the blocks), then for each block
    its length in numbers and its bytes."""

    def __init__(self, stream: BinaryIO, name: str, what: str, meanings: Mapping[tuple[str, str], Any], size: int):
        stream.seek(0)
        data = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
        values = []
        for _ in range(5):
            reader = _Reader(name, what, meanings)
            values.append(reader.load(data))
            if values[0] != OLD_MAGIC:
                break
            if len(values) == 4:
                widths = reader.widths
        if values[0] != OLD_MAGIC:  # a plain pickle; what it names has been looked at by now
            raise ValueError("no file of torch.save")
        if values[1] != OLD_VERSION or not isinstance(values[4], list):
            raise ValueError("an unknown version of the layout")
        self.value, self.stream, position = values[3], stream, data.tell()
        self.places: dict[str, tuple[int, int]] = {}
        for key in values[4]:
            stream.seek(position)
            length = int.from_bytes(stream.read(8), "little") * widths[key]
            position += 8
            if position + length > size or key in self.places:
                raise ValueError("a block that the file does not hold")
            self.places[key] = (position, length)
            position += length

    def lengths(self) -> dict[str, int]:
        """Bytes of each block."""
        return {key: length for key, (_, length) in self.places.items()}

    def block(self, key: str) -> bytearray:
        """The bytes of a block."""
        position, length = self.places[key]
        self.stream.seek(position)
        return bytearray(self.stream.read(length))


class _Plain(_Old):
    """A plain pickle, not of ``torch.save``: each block is a text of bytes in it, a whole file of the older layout."""

    def __init__(self, stream: BinaryIO, name: str, what: str, meanings: Mapping[tuple[str, str], Any], size: int):
        stream.seek(0)
        reader = _Reader(name, what, meanings)
        self.value = reader.load(_Bounded(stream, size))
        self.stream, self.places = stream, reader.inner


class _Bounded:
    """A file of which no more is asked than it has; a claimed length would be allocated."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.size, self.tell = stream, size, stream.tell

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes."""
        return self.stream.read(max(0, min(count, self.size - self.tell())))

    def readline(self) -> bytes:
        """A line, of which more than :data:`MAX_LINE` bytes are left."""
        return self.stream.readline(MAX_LINE)


def _directory_bytes(stream: BinaryIO, size: int) -> int:
    """Size of a zip's table of contents as its end says, for :mod:`zipfile` reads it whole."""
    stream.seek(max(0, size - 66_000))
    tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        raise zipfile.BadZipFile("no end")
    declared = int.from_bytes(tail[end + 12 : end + 16], "little")
    large = tail.rfind(b"PK\x06\x06", 0, end)
    return max(
        declared if declared != 0xFFFFFFFF else 0,
        int.from_bytes(tail[large + 40 : large + 48], "little") if large >= 0 else 0,
    )


class _Storage(NamedTuple):
    """Says how the bytes of a stored block are to be read."""

    dtype: torch.dtype


class _Block(NamedTuple):
    """A stored block, not read yet."""

    storage: _Storage
    key: str


class _View(NamedTuple):
    """A tensor over a block, not made yet: while the pickle is read there is nothing that could be acted upon."""

    block: _Block
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Part(NamedTuple):
    """The name of a layer's class."""

    kind: str


@dataclass(eq=False)
class _Inert:
    """Stands in for a layer: keeps the tables it is given and does nothing with them."""

    kind: str
    tables: dict[str, Any]


class _Function(NamedTuple):
    """The name of a function that torch's files call."""

    name: str


class _Bytes(NamedTuple):
    """A text of bytes in the file: where it is, and how it begins."""

    start: int
    length: int
    head: bytes


#: What a name in a file means.
MEANINGS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function("dict"),
    ("builtins", "set"): _Function("set"),
    ("__builtin__", "set"): _Function("set"),
    ("torch._utils", "_rebuild_tensor_v2"): _Function("tensor"),
    ("torch._utils", "_rebuild_parameter"): _Function("parameter"),
    **{("torch", storage): _Storage(dtype) for storage, dtype in STORAGES.items()},
    **{(module, part): _Part(part) for module, parts in PARTS.items() for part in parts},
}
#: Bytes inside a plain pickle that are a file of torch's older layout, and what it gives.
INNER = ("torch.storage", "_load_from_bytes")
#: What the name of something means in a snapshot of a GAN besides.
SNAPSHOT: dict[tuple[str, str], Any] = {
    INNER: _Function("inner"),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function("persistent"),
    ("dnnlib.util", "EasyDict"): _Part("EasyDict"),
    ("argparse", "Namespace"): _Part("Namespace"),
    # Scalars of numpy, which nothing needs
    ("numpy", "dtype"): _Function("nothing"),
    ("numpy.core.multiarray", "scalar"): _Function("nothing"),
    ("numpy._core.multiarray", "scalar"): _Function("nothing"),
}
#: Names that tell what a file is and what to do with it.
FOREIGN = {
    ("dnnlib.tflib.network", "Network"): "was saved by the TensorFlow version of StyleGAN; convert it with legacy.py "
    "of stylegan2-ada-pytorch and choose the file that it writes.",
}
MARK = object()
#: Instructions that hold bytes, and in how many bytes they say how many.
BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8}
#: Instructions that put a number, a text or nothing on the stack.
PLAIN = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Reader:
    """Follows a pickle's instructions, those that torch's files have."""

    def __init__(self, name: str, what: str, meanings: Mapping[tuple[str, str], Any]):
        self.name, self.what, self.meanings = name, what, meanings
        #: Block -> bytes of one of its numbers.
        self.widths: dict[str, int] = {}
        #: Block inside a plain pickle -> where its bytes are, and how many.
        self.inner: dict[str, tuple[int, int]] = {}
        self.blocks: dict[int, _Block] = {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.work = 0

    def load(self, stream: IO[bytes] | _Bounded) -> Any:
        """The value of the pickle at which ``stream`` stands; it is left behind it.

        Raises:
            EditingError: the file asks for something that it does not need.
            Exception: of any type, it is damaged.
        """
        for opcode, argument, position in pickletools.genops(stream):  # type: ignore[arg-type]
            self._count(1)
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in PLAIN:
                if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                    raise ValueError("a number without measure")
                self.stack.append(CONSTANTS.get(opcode.name, argument))
            elif opcode.name in BYTES:
                data, start = _as(argument, bytes), _as(position, int) + 1 + BYTES[opcode.name]
                self.stack.append(_Bytes(start, len(data), data[:HEAD]))
            elif opcode.name not in ("PROTO", "FRAME"):
                getattr(self, f"_{opcode.name.lower()}")(argument)
        raise ValueError("no end")

    def _count(self, steps: int) -> None:
        self.work += steps
        if self.work > MAX_OPCODES:
            raise ValueError("longer than any network's pickle")

    def _to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                taken = self.stack[index + 1 :]
                del self.stack[index:]
                return taken
        raise ValueError("no mark")

    def _mark(self, _: Any) -> None:
        self.stack.append(MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _list(self, _: Any) -> None:
        self.stack.append(self._to_mark())

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        _as(self.stack[-1], list).append(value)

    def _appends(self, _: Any) -> None:
        values = self._to_mark()
        _as(self.stack[-1], list).extend(values)

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _dict(self, _: Any) -> None:
        values = self._to_mark()
        self.stack.append(_table(zip(values[::2], values[1::2], strict=True)))

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _as(self.stack[-1], dict).update(_table([(key, value)]))

    def _setitems(self, _: Any) -> None:
        values = self._to_mark()
        _as(self.stack[-1], dict).update(_table(zip(values[::2], values[1::2], strict=True)))

    def _empty_set(self, _: Any) -> None:
        self.stack.append(set())

    def _additems(self, _: Any) -> None:
        values = self._to_mark()
        _as(self.stack[-1], set).update(_as(value, str) for value in values)

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    _binget = _long_binget = _get

    def _global(self, argument: str) -> None:
        self.stack.append(self._meaning(*argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._meaning(_as(module, str), _as(name, str)))

    def _inst(self, argument: str) -> None:
        self._to_mark()
        self.stack.append(self._called(self._meaning(*argument.split(" ", 1)), ()))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._called(function, _as(arguments, tuple)))

    def _newobj(self, _: Any) -> None:
        _as(self.stack.pop(), tuple)
        kind = _as(self.stack.pop(), _Part).kind
        self.stack.append({} if kind == "EasyDict" else _Inert(kind, {}))

    def _build(self, _: Any) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _Inert):
            value.tables = state if isinstance(state, dict) else {}
        elif not isinstance(value, dict):  # a state dict's own attributes are its format's version, needed by nobody
            raise ValueError("a state of something that has none")

    def _binpersid(self, _: Any) -> None:
        """A stored block: ``("storage", type, key, device, length)``, in old files a sixth. Those also keep the source
        of a layer's class, ``("module", class, file, source)``, of which only the class is taken."""
        pid = _as(self.stack.pop(), tuple)
        if pid[0] == "module":
            self.stack.append(_as(pid[1], _Part))
            return
        _, storage, key, _, _ = pid[:5]
        if not (isinstance(storage, _Storage) and isinstance(key, str) and len(key) < 40 and key.isdecimal()):
            raise EditingError(f"{self.name} holds weights of an unknown kind; save it as safetensors.")
        if len(pid) > 5 and pid[5] is not None:
            raise EditingError(f"{self.name} keeps its weights in the way of torch 0.2; save it as safetensors.")
        self.widths[key] = storage.dtype.itemsize
        self.stack.append(_Block(storage, key))

    def _meaning(self, module: str, name: str) -> Any:
        if (module, name) in self.meanings:
            return self.meanings[module, name]
        if name == PUBLISHED:
            return _Part(name)
        if (module, name) in FOREIGN:
            raise EditingError(f"{self.name} {FOREIGN[module, name]}")
        wanted = f"{module}.{name}"[:80]
        raise EditingError(
            f"{self.name} was refused: it asks for {wanted!r}, which no {self.what} needs and which could run code."
        )

    def _called(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        name = _as(function, _Function).name
        if name == "tensor":
            block, offset, size, stride = arguments[:4]
            return _View(_as(block, _Block), offset, _as(size, tuple), _as(stride, tuple))
        if name == "parameter":
            return _as(arguments[0], _View)
        if name == "inner":
            return self._inner(_as(arguments[0], _Bytes))
        if name == "persistent":
            meta = _as(arguments[0], dict)
            return _Inert(_name(meta["class_name"]), _as(meta["state"], dict))
        if name == "nothing":
            return _Inert(name, {})
        items = _as(arguments[0], list) if arguments else []
        self._count(len(items))
        return _table(items) if name == "dict" else {_as(item, str) for item in items}

    def _inner(self, data: _Bytes) -> _Block:
        """The block in a file of torch's older layout that lies inside this one."""
        if data.start not in self.blocks:  # once, however often the file asks
            held = _Old(io.BytesIO(data.head), self.name, self.what, MEANINGS, data.length)
            storage, key = _as(held.value, _Block)
            position, length = held.places[key]
            self.blocks[data.start] = _Block(storage, str(data.start))
            self.inner[str(data.start)] = (data.start + position, length)
        return self.blocks[data.start]


def _as(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _table(pairs: Iterable[Any]) -> dict[Any, Any]:
    """A table by texts and numbers; other keys could take any time to compare."""
    made = {}
    for key, value in pairs:
        made[key if isinstance(key, int) else _as(key, str)] = value
    return made


def _check_views(views: dict[str, _View], lengths: dict[str, int], size: int, name: str) -> None:
    """Raise unless every tensor lies inside its block and none is larger than that, nor all together than the file.

    Raises:
        EditingError: they unfold.
        ValueError: one reaches out of its block.
    """
    total = 0
    for view in views.values():
        (storage, key), numbers = view.block, (view.offset, *view.size, *view.stride)
        if not len(view.size) == len(view.stride) <= MAX_SIDES or any(
            type(part) is not int or part < 0 for part in numbers
        ):
            raise ValueError("no extent")
        width = storage.dtype.itemsize
        held, count = lengths[key] // width, math.prod(view.size)
        last = view.offset + sum((side - 1) * step for side, step in zip(view.size, view.stride, strict=True))
        total += count * width
        if total > 2 * size + SLACK:
            raise EditingError(f"{name} unfolds to more than it holds; use the original file.")
        if count > held or (count and last >= held) or max(view.size, default=0) > max(held, MAX_EMPTY):
            raise ValueError("a tensor that reaches past its block")


def _tensors(views: dict[str, _View], block: Callable[[str], bytearray]) -> dict[str, Tensor]:
    """The tensors that ``views`` describe; each block is read once."""
    found: dict[str, Tensor] = {}
    for key, names in _by_block(views):
        data = block(key)
        for name in names:
            view = views[name]
            dtype = view.block.storage.dtype
            count = len(data) // dtype.itemsize
            numbers = torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            found[name] = numbers.as_strided(tuple(view.size), tuple(view.stride), view.offset).clone()
    return {name: found[name] for name in views}


def _by_block(views: dict[str, _View]) -> Iterator[tuple[str, list[str]]]:
    blocks: dict[str, list[str]] = {}
    for name, view in views.items():
        blocks.setdefault(view.block.key, []).append(name)
    yield from blocks.items()


def _views(tables: dict[str, Any], name: str, what: str) -> dict[str, _View]:
    """Parameters and kept buffers of a stand-in's tables and of the stand-ins inside."""
    return _views_of(_networks(tables, name, what))


def _views_of(networks: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, _View]:
    found: dict[str, _View] = {}
    for prefix, tables in networks:
        fleeting = tables.get("_non_persistent_buffers_set")
        fleeting = fleeting if isinstance(fleeting, set) else set()
        for table in ("_parameters", "_buffers"):
            found |= {
                f"{prefix}{_name(key)}": value
                for key, value in (tables.get(table) or {}).items()
                if isinstance(value, _View) and key not in fleeting
            }
    return found


def _facts_of(networks: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Plain attributes of the same."""
    return {
        f"{prefix}{_name(key)}": value
        for prefix, tables in networks
        for key, value in tables.items()
        if isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= MAX_NAME)
    }


def _networks(
    tables: dict[str, Any], name: str, what: str, prefix: str = "", depth: int = 0, seen: list[int] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A stand-in's tables and those of the stand-ins inside, by dotted prefix; ``seen`` counts what they hold."""
    seen = seen if seen is not None else [0]
    seen[0] += 1
    if seen[0] > MAX_OPCODES:  # the same network inside itself again and again
        raise EditingError(f"{name} repeats its networks without end, which no {what} does; choose another file.")
    if len(prefix) > MAX_NAME:
        raise ValueError("a name without measure")
    if depth > MAX_DEPTH:
        raise EditingError(
            f"{name} nests networks more than {MAX_DEPTH} deep, which no {what} does; choose another file."
        )
    for table in ("_parameters", "_buffers"):
        entries = tables.get(table) or {}
        if not isinstance(entries, dict):
            raise EditingError(f"{name} does not hold a network or a table of tensors; choose another file.")
        seen[0] += len(entries)
    yield prefix, tables
    for key, part in (tables.get("_modules") or {}).items():
        if isinstance(part, _Inert):
            yield from _networks(part.tables, name, what, f"{prefix}{_name(key)}.", depth + 1, seen)


def _name(key: Any) -> str:
    if not isinstance(key, (str, int)) or len(str(key)) > MAX_NAME:
        raise ValueError("a name without measure")
    return str(key)

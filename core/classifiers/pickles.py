"""Whole networks that others pickled with ``torch.save(model)``, read without running anything that the file asks for.

A pickle names functions to call. Here only names on a short list mean anything, and they mean objects made for this one
reading: descriptions of tensors over the file's own bytes, and inert stand-ins that keep a network's tables and can do
nothing. Every other name ends the reading. No class of torch, torchvision or the file's author is imported or called.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import EditingError

MAX_BYTES = 4 << 30
MAX_PICKLE_BYTES = 64 << 20  # the part without the weights
MAX_DEPTH = 64  # of networks inside networks

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
}
#: Under this key the original textual-inversion program and AUTOMATIC1111's keep their vectors, beside facts that
#: nothing needs.
TERMS = "string_to_param"
#: The class of CASO's published classifiers; its module depends on the script that saved it.
PUBLISHED = "BinaryClassifier"


@dataclass(frozen=True, eq=False)
class PickledNetwork:
    """The content of a file.

    Attributes:
        kind: name of the outermost class, e.g. "BinaryClassifier", "state_dict" for a plain table of tensors, or
            "textual_inversion" for a table of the tensors under :data:`TERMS`.
        tensors: parameters and buffers by their dotted names, as ``state_dict()`` would give them.
    """

    kind: str
    tensors: dict[str, Tensor]


def read_network_pickle(path: str | Path, what: str = "classifier") -> PickledNetwork:
    """Read a network, or a table of tensors, from a file that ``torch.save`` wrote.

    Args:
        what: the kind of thing that is being loaded, for messages.

    Raises:
        EditingError: missing, larger than 4 GiB, not torch's zip format, damaged, or asking for anything but tensors
            and the layers of :data:`PARTS`.
    """
    source = Path(path)
    if not source.is_file():
        raise EditingError(f"{source.name} was not found; check the file name and folder.")
    if source.stat().st_size > MAX_BYTES:
        raise EditingError(f"{source.name} is larger than 4 GiB, which no {what} is; choose another file.")
    try:
        with zipfile.ZipFile(source) as archive:
            return _read(archive, source.name, what)
    except EditingError:
        raise
    except Exception as error:  # a pickle can provoke any exception; nothing of it may pass as success
        raise EditingError(f"{source.name} is damaged or was not saved by torch.save; download it again.") from error


def _read(archive: zipfile.ZipFile, name: str, what: str) -> PickledNetwork:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise EditingError(f"{name} is compressed, which torch.save never does; use the original file.")
    pickles = [key for key in entries if key.endswith("/data.pkl")]
    if len(pickles) != 1 or entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise EditingError(f"{name} is not a network saved by torch.save; choose another file.")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
        raise EditingError(f"{name} was saved on a big-endian machine and cannot be read here; save it as safetensors.")
    value = _Reader(archive.read(pickles[0]), name, what).load()
    kind = value.kind if isinstance(value, _Inert) else "state_dict"
    if isinstance(value, dict) and TERMS in value:
        kind, value = "textual_inversion", value[TERMS]
    views = _views(value.tables if isinstance(value, _Inert) else {"_parameters": value}, name, what)
    if not views:
        raise EditingError(f"{name} holds no weights; choose another file.")
    if sum(math.prod(view.size) * view.block.storage.dtype.itemsize for view in views.values()) > MAX_BYTES:
        raise EditingError(f"{name} unfolds to more than 4 GiB, which no {what} does; choose another file.")
    return PickledNetwork(kind, {key: _tensor(archive, folder, view) for key, view in views.items()})


class _Inert:
    """Stands in for a layer: keeps the tables it is given and does nothing with them."""

    kind = ""
    tables: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.tables = state if isinstance(state, dict) else {}


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


class _Reader(pickle.Unpickler):
    """An unpickler in which only the names of this module mean anything; all it hands out is made anew for one file."""

    def __init__(self, data: bytes, name: str, what: str):
        super().__init__(io.BytesIO(data))
        self.name, self.what = name, what
        self.known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _View(*arguments[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
        }
        self.known |= {("torch", storage): _Storage(dtype) for storage, dtype in STORAGES.items()}
        self.known |= {(module, part): _stand_in(part) for module, parts in PARTS.items() for part in parts}

    def find_class(self, module: str, name: str) -> Any:
        """What a name means; nothing is imported."""
        if (module, name) in self.known:
            return self.known[module, name]
        if name == PUBLISHED:
            return self.known.setdefault((module, name), _stand_in(name))
        wanted = f"{module}.{name}"[:80]
        raise EditingError(
            f"{self.name} was refused: it asks for {wanted!r}, which no {self.what} needs and which could run code."
        )

    def persistent_load(self, pid: Any) -> _Block:
        """A stored block; ``pid = ("storage", type, key, device, length)``."""
        _, storage, key, _, _ = pid
        if not (isinstance(storage, _Storage) and isinstance(key, str) and key.isdigit()):
            raise EditingError(f"{self.name} holds weights of an unknown kind; save it as safetensors.")
        return _Block(storage, key)


def _stand_in(name: str) -> type[_Inert]:
    return type(name, (_Inert,), {"kind": name})


def _tensor(archive: zipfile.ZipFile, folder: str, view: _View) -> Tensor:
    """The tensor that ``view`` describes; torch refuses one that would reach past the end of its block."""
    (dtype,), key = view.block
    data = bytearray(archive.read(f"{folder}data/{key}"))
    block = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    if any(number < 0 for number in (view.offset, *view.size, *view.stride)):
        raise ValueError("negative extent")
    return block.as_strided(tuple(view.size), tuple(view.stride), view.offset).clone()


def _views(tables: dict[str, Any], name: str, what: str, prefix: str = "", depth: int = 0) -> dict[str, _View]:
    """Parameters and kept buffers of a stand-in's tables and of the stand-ins inside."""
    if depth > MAX_DEPTH:
        raise EditingError(
            f"{name} nests networks more than {MAX_DEPTH} deep, which no {what} does; choose another file."
        )
    found: dict[str, _View] = {}
    fleeting = tables.get("_non_persistent_buffers_set") or ()
    for table in ("_parameters", "_buffers"):
        entries = tables.get(table) or {}
        if not isinstance(entries, dict):
            raise EditingError(f"{name} does not hold a network or a table of tensors; choose another file.")
        found |= {
            f"{prefix}{key}": value
            for key, value in entries.items()
            if isinstance(value, _View) and key not in fleeting
        }
    for key, part in (tables.get("_modules") or {}).items():
        if isinstance(part, _Inert) and hasattr(part, "tables"):
            found |= _views(part.tables, name, what, f"{prefix}{key}.", depth + 1)
    return found

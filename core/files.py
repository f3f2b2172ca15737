"""Reading and writing tensors safely: safetensors with metadata, restricted loading of old formats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import EditingError
from .file_names import shown_name
from .reading.forms import Unfit, parse_json
from .reading.kinds import KINDS, LARGEST_HEADER, check_size
from .reading.libraries import is_out_of_memory
from .reading.pickles import read_table_pickle, read_tensor_pickle
from .writing import write_whole

FORMAT_KEY = "format"
#: Numbers that torch computes with everywhere.
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
LONGEST_NAME = 300  # characters
#: Those that :func:`save_tensor_parts` writes, by safetensors' names.
WRITTEN = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}
#: What the sides of a tensor without elements may multiply to, those of length 0 left out.
MOST_OF_NOTHING = 2**16


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> Path:
    """Write a safetensors file whole or not at all, see :func:`~.writing.write_whole`.

    Args:
        tensors: name -> tensor; moved to the CPU and made contiguous.
        metadata: strings only; ``format`` names the kind of file.

    Raises:
        EditingError: the file exists and ``overwrite`` is False, or the folder cannot be written.
    """
    from safetensors.torch import save

    target = Path(path)
    named = shown_name(target.name)
    for key, value in metadata.items():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise EditingError(
                f"{named} could not be written, because the text of {key} holds half of a surrogate pair; type "
                "it again."
            ) from error

    def fill(stream: BinaryIO) -> None:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        stream.write(save(plain, metadata=dict(metadata)))

    return write_whole(target, fill, overwrite=overwrite)


def save_tensor_parts(
    path: str | Path, tensors: Mapping[str, Sequence[Tensor]], metadata: Mapping[str, str], *, overwrite: bool = False
) -> Path:
    """:func:`save_tensors` for tensors that lie in parts, without putting them together in memory.

    Args:
        tensors: name -> parts that follow each other along the first dimension, floating point on the CPU.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ordered = sorted(tensors.items(), key=lambda entry: -entry[1][0].element_size())  # so that each lies aligned
    end = 0
    for name, parts in ordered:
        start, shape = end, [sum(len(part) for part in parts), *parts[0].shape[1:]]
        end += math.prod(shape) * parts[0].element_size()
        header[name] = {"dtype": WRITTEN[parts[0].dtype], "shape": shape, "data_offsets": [start, end]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)  # the format wants the numbers aligned

    def fill(stream: BinaryIO) -> None:
        stream.write(len(described).to_bytes(8, "little") + described)
        for _, parts in ordered:
            for part in parts:
                stream.write(part.detach().contiguous().numpy().data)

    return write_whole(Path(path), fill, overwrite=overwrite)


def load_tensors(
    path: str | Path, expected_format: str | None = None, *older_names: str, kind: str = "network"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: ``(tensors, metadata)``.

    The tensors are maps of the file: a number is read from the disk when it is used.

    Args:
        older_names: of the same format; files that bear one are read too.
        kind: of file, a key of :data:`~.reading.kinds.KINDS`; it says how large the file may be.

    Raises:
        EditingError: missing, too large, damaged, or of another format than ``expected_format``.
    """
    source = Path(path)
    named = shown_name(source.name)
    with _opened(source, kind) as (stream, _, metadata):
        if expected_format is not None and metadata.get(FORMAT_KEY) not in (expected_format, *older_names):
            found = metadata.get(FORMAT_KEY, "another program's file")[:80]
            found = found if found.isprintable() else "nothing readable"
            raise EditingError(
                f"{named} is not a {expected_format} file (it says: {found}); choose a file saved by the matching node."
            )
        for key, form in KINDS[kind].texts.items():
            try:
                form(metadata.get(key, ""), f".{key}") if key in metadata else None
            except Unfit as error:
                raise EditingError(f"{named} is damaged: {error}; save it again.") from error
        return {key: stream.get_tensor(key) for key in stream.keys()}, metadata  # noqa: SIM118 (a handle, not a dict)


def tensor_shapes(path: str | Path, kind: str = "network") -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shapes of a safetensors file's tensors, and its metadata, without reading the tensors.

    Raises:
        EditingError: missing, too large or damaged.
    """
    with _opened(Path(path), kind) as (_, shapes, metadata):
        return shapes, metadata


@contextmanager
def _opened(source: Path, kind: str) -> Iterator[tuple[Any, dict[str, list[int]], dict[str, str]]]:
    """``(handle, shapes, metadata)`` of a safetensors file that has been looked at.

    The library compares every shape with the bytes that the file holds. What it lets through: a header of any length,
    and tensors without elements that claim sides of any length.
    """
    from safetensors import SafetensorError, safe_open

    size, known, named = check_size(source, kind), KINDS[kind], shown_name(source.name)
    try:
        with source.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > size:
            raise ValueError("a header longer than the file")
        if header > LARGEST_HEADER:
            raise EditingError(f"{named} describes itself at a length that no {known.title} has; choose another.")
        with safe_open(source, framework="pt", device="cpu") as stream:
            names = list(stream.keys())
            if len(names) > known.tensors:
                raise EditingError(
                    f"{named} holds {len(names)} tensors, and a {known.title} at most {known.tensors}; choose "
                    "another file."
                )
            slices = {name: stream.get_slice(name) for name in names}
            shapes = {name: list(part.get_shape()) for name, part in slices.items()}
            for name, part in slices.items():
                empty = 0 in shapes[name] and math.prod(max(side, 1) for side in shapes[name]) > MOST_OF_NOTHING
                if empty or part.get_dtype() not in DTYPES or len(name) > LONGEST_NAME:
                    raise EditingError(
                        f"{named} holds a tensor of an unknown kind ({name[:40]}); use a file with numbers of 16 "
                        "or 32 bits."
                    )
            yield stream, shapes, dict(stream.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, EditingError) or is_out_of_memory(error):
            raise
        raise EditingError(f"{named} is damaged or not a safetensors file; save or download it again.") from error


def load_legacy_tensor(path: str | Path, kind: str = "edit direction") -> Tensor:
    """Read one tensor from a published ``.pt`` file (no code can run).

    Raises:
        EditingError: missing, too large, damaged, hostile, or anything else than a single tensor.
    """
    return read_tensor_pickle(path, kind)


def load_weights(path: str | Path, kind: str = "network") -> dict[str, Tensor]:
    """A network's weights by name: a safetensors file, or a published ``.pt`` or ``.pth`` state dict (no code can run).

    Raises:
        EditingError: missing, too large, damaged, hostile, or anything else than a table of tensors.
    """
    source = Path(path)
    if source.suffix == ".safetensors":
        return load_tensors(source, kind=kind)[0]
    return read_table_pickle(source, kind)


def load_json(path: str | Path, kind: str, what: str = "", remedy: str = "save or download it again") -> Any:
    """The value in a JSON file, of the form that :data:`~.reading.kinds.KINDS` declares for its kind.

    Args:
        what: what the file belongs to, for messages; its own name by default.

    Raises:
        EditingError: missing, too large, damaged, or of another form.
    """
    source = Path(path)
    what = f"{what}'s {shown_name(source.name)}" if what else shown_name(source.name)
    if not source.is_file():
        raise EditingError(f"{what} was not found; {remedy}.")
    check_size(source, kind)
    try:
        content = source.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EditingError(f"{what} cannot be read; {remedy}.") from error
    return parse_json(content, KINDS[kind].json[""], what, remedy)


def load_text(path: str | Path, kind: str) -> str:
    """The text in a file, in UTF-8 with or without its mark.

    Raises:
        EditingError: missing, too large for its kind, or no text.
    """
    source = Path(path)
    check_size(source, kind)
    try:
        return source.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EditingError(f"{shown_name(source.name)} is no text in UTF-8; save it again as one.") from error


def metadata_json(metadata: Mapping[str, str], key: str, file_name: str, kind: str = "network") -> Any:
    """The value of the JSON text under ``key``, of the form that :data:`~.reading.kinds.KINDS` declares for it.

    Raises:
        EditingError: absent, damaged or of another form; it names ``file_name``.
    """
    if key not in metadata:
        raise EditingError(f"{file_name} lacks readable {key} metadata; save it again with this pack.")
    form = KINDS[kind].json.get(key, lambda value, where: None)
    return parse_json(metadata[key], form, f"{file_name} ({key})", "save it again")

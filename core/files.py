"""Reading and writing tensors safely: safetensors with metadata, restricted loading of old formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import EditingError
from .writing import write_whole

FORMAT_KEY = "format"
MAX_LEGACY_BYTES = 2 << 30


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
    for key, value in metadata.items():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise EditingError(
                f"{target.name} could not be written, because the text of {key} holds half of a surrogate pair; type "
                "it again."
            ) from error

    def fill(stream: BinaryIO) -> None:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        stream.write(save(plain, metadata=dict(metadata)))

    return write_whole(target, fill, overwrite=overwrite)


def load_tensors(
    path: str | Path, expected_format: str | None = None, *older_names: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: ``(tensors, metadata)``.

    Args:
        older_names: of the same format; files that bear one are read too.

    Raises:
        EditingError: missing, damaged, or of another format than ``expected_format``.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise EditingError(f"{source.name} was not found; check the file name and folder.")
    try:
        with safe_open(source, framework="pt", device="cpu") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (a handle, not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise EditingError(f"{source.name} is damaged or not a safetensors file; save or download it again.") from error
    if expected_format is not None and metadata.get(FORMAT_KEY) not in (expected_format, *older_names):
        found = metadata.get(FORMAT_KEY, "another program's file")
        raise EditingError(
            f"{source.name} is not a {expected_format} file (it says: {found}); choose a file saved by the matching "
            "node."
        )
    return tensors, metadata


def load_legacy_tensor(path: str | Path) -> Tensor:
    """Read one tensor from a published ``.pt`` file with torch's restricted unpickler (no code can run).

    Raises:
        EditingError: missing, too large, damaged, hostile, or anything else than a single tensor.
    """
    source = Path(path)
    value = _restricted(source, "edit direction")
    if not isinstance(value, Tensor):
        raise EditingError(
            f"{source.name} holds a {type(value).__name__} instead of one tensor; use a file saved with "
            "torch.save(tensor)."
        )
    return value


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A network's weights by name: a safetensors file, or a published ``.pt`` or ``.pth`` state dict read with torch's
    restricted unpickler (no code can run).

    Raises:
        EditingError: missing, too large, damaged, hostile, or anything else than a table of tensors.
    """
    source = Path(path)
    if source.suffix == ".safetensors":
        return load_tensors(source)[0]
    value = _restricted(source, "network of this kind")
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    ):
        raise EditingError(f"{source.name} holds no table of weights by name; use a file saved as a state_dict.")
    return dict(value)


def _restricted(source: Path, what: str) -> object:
    """What torch's restricted unpickler makes of a file."""
    if not source.is_file():
        raise EditingError(f"{source.name} was not found; check the file name and folder.")
    if source.stat().st_size > MAX_LEGACY_BYTES:
        raise EditingError(f"{source.name} is larger than 2 GiB, which no {what} is; choose another file.")
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes provoke; nothing of it may pass as success
        raise EditingError(
            f"{source.name} is damaged or holds more than plain tensors and was refused; use a safetensors file."
        ) from error


def metadata_json(metadata: Mapping[str, str], key: str, file_name: str) -> object:
    """Parse the JSON text under ``key``; a damaged one is an :class:`EditingError` naming ``file_name``."""
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError) as error:
        raise EditingError(f"{file_name} lacks readable {key} metadata; save it again with this pack.") from error

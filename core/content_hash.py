"""Hashes of tensors, texts and settings: equal content, equal hash."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def content_hash(*parts: Tensor | str) -> str:
    """SHA-256 of texts and of tensors' shapes, types and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data, kind = part.encode(), "text"
        else:
            plain = part.detach().cpu().contiguous()
            data, kind = plain.reshape(-1).view(torch.uint8).numpy().tobytes(), f"{tuple(plain.shape)} {plain.dtype}"
        digest.update(f"{kind} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """Hexadecimal hash of numbers, strings, tensors, and mappings, sequences and dataclasses of them.

    Equal content gives an equal hash, whatever the device. An object of any other kind (a host's ControlNet in a
    conditioning) cannot be read: the hash is then a new one every time, so that nothing is used again wrongly.
    """
    return content_hash(*_pieces(parts))


def _pieces(part: Any) -> Iterator[str | Tensor]:
    if part is None or isinstance(part, (bool, int, float, str)):
        yield f"{type(part).__name__} {part!r}"
    elif isinstance(part, Tensor):
        yield f"tensor {list(part.shape)}"
        yield part.reshape(-1)
    elif isinstance(part, Mapping):
        yield f"mapping of {len(part)}"
        for key in sorted(part, key=str):
            yield from _pieces(key)
            yield from _pieces(part[key])
    elif isinstance(part, (list, tuple)):
        yield f"sequence of {len(part)}"
        for item in part:
            yield from _pieces(item)
    elif is_dataclass(part) and not isinstance(part, type):
        yield type(part).__name__
        for field in fields(part):
            yield from _pieces(getattr(part, field.name))
    else:
        yield str(uuid.uuid4())

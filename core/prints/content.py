"""Prints of what a host hangs on a model or a prompt: patches, options, conditionings of any kind, by content.

Functions are known by their names, code and what they hold (closures, defaults, bound objects), tensors by slices,
networks by their :mod:`.weights`. What cannot be read counts as itself: equal while it is the same object, never
to another.
"""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..content_hash import content_hash
from .weights import sliced, weight_print

MOST_PARTS = 50_000  # looked at in one print; a LoRA of a large model has a few thousand
DEEPEST = 30

_numbers = itertools.count()
_known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def content_print(*parts: Any) -> str:
    """Hexadecimal hash of any objects; equal content gives an equal hash, in another process too where it is
    readable.
    """
    return content_hash(*_Walk().pieces(parts, 0))


@dataclass
class _Walk:
    """One print being taken: the objects above the present one, and how many parts were read."""

    above: set[int] = field(default_factory=set)
    parts: int = 0

    def pieces(self, part: Any, depth: int) -> Iterator[str]:
        self.parts += 1
        if isinstance(part, (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device)):
            yield f"{type(part).__name__} {part!r}"
        elif isinstance(part, Tensor):
            yield f"tensor {tuple(part.shape)} {sliced(part).tolist()}"
        elif id(part) in self.above:
            yield "itself"
        elif depth > DEEPEST or self.parts > MOST_PARTS:
            yield _token(part)
        else:
            self.above.add(id(part))
            yield from self._inside(part, depth + 1)
            self.above.discard(id(part))

    def _inside(self, part: Any, depth: int) -> Iterator[str]:
        name = f"{type(part).__module__}.{type(part).__qualname__}"
        if isinstance(part, nn.Module):
            yield f"{name} {weight_print(part.parameters()).hash}"
            yield from self.pieces(
                [(key, value) for key, value in part.named_buffers()] + _plain_fields(vars(part)), depth
            )
        elif isinstance(part, Mapping):
            yield f"mapping of {len(part)}"
            for key in sorted(part, key=str):
                yield from self.pieces(key if isinstance(key, (str, int, tuple)) else str(type(key)), depth)
                yield from self.pieces(part[key], depth)
        elif isinstance(part, (list, tuple)):
            yield f"sequence of {len(part)}"
            for item in part:
                yield from self.pieces(item, depth)
        elif isinstance(part, (set, frozenset)):
            yield f"set of {len(part)}"
            yield from sorted("\n".join(self.pieces(item, depth)) for item in part)
        elif isinstance(part, types.MethodType):
            yield f"method {part.__func__.__module__}.{part.__func__.__qualname__}"
            yield from self.pieces(part.__self__, depth)
        elif isinstance(part, functools.partial):
            yield "partial"
            yield from self.pieces((part.func, part.args, part.keywords), depth)
        elif isinstance(part, types.FunctionType):
            yield f"function {part.__module__}.{part.__qualname__} {_code(part.__code__)}"
            yield from self.pieces((_cells(part), part.__defaults__, part.__kwdefaults__), depth)
        elif isinstance(part, (type, types.BuiltinFunctionType, types.ModuleType)):
            yield f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', getattr(part, '__name__', ''))}"
        elif type(part).__module__ == "uuid":
            yield "uuid"  # names objects of one process, says nothing of content
        elif hasattr(part, "__dict__") or hasattr(part, "__slots__"):
            yield name
            held = dict(getattr(part, "__dict__", {}))
            slots = getattr(type(part), "__slots__", ())
            held |= {key: getattr(part, key, None) for key in ([slots] if isinstance(slots, str) else slots)}
            yield from self.pieces({key: value for key, value in held.items() if key != "__weakref__"}, depth)
        else:
            yield _token(part)


def _plain_fields(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Settings of a module that are no modules, parameters or hooks."""
    return sorted(
        (key, value)
        for key, value in fields.items()
        if not key.startswith("_") and isinstance(value, (bool, int, float, str)) and key != "training"
    )


def _code(code: types.CodeType) -> str:
    """What a function does; functions without a name of their own share names."""
    held = []
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            held.append(_code(value))
        else:  # a set's own order is another one in every process
            held.append(repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value))
    return content_hash(code.co_code.hex(), *code.co_names, *held)


def _cells(function: types.FunctionType) -> list[Any]:
    """What a closure holds; a cell that is empty yet counts as nothing."""
    held = []
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:
            held.append(None)
    return held


def _token(part: Any) -> str:
    """A name that stays with one object as long as it lives."""
    try:
        number = _known.setdefault(part, next(_numbers))
    except TypeError:  # cannot be watched: a new name every time, so that nothing is taken for the same wrongly
        number = next(_numbers)
    return f"unread {type(part).__qualname__} {number} {id(_known)}"

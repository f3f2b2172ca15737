"""The V3 node API of the host behind one compatibility shim.

Hosts from 0.3.64 to today accept different sets of keyword arguments (``search_aliases`` of a schema, ``advanced`` of a
widget). :func:`schema` and :func:`widget` pass on what the running host knows and drop the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import ComfyExtension, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

__all__ = ["ComfyExtension", "blocked", "io", "schema", "ui", "widget"]


def _known(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    accepted = inspect.signature(function).parameters
    return {key: value for key, value in arguments.items() if key in accepted}


def schema(**fields: Any) -> Any:
    """``io.Schema(**fields)`` without the fields this host does not know yet."""
    return io.Schema(**_known(io.Schema, fields))


def widget(kind: Any, name: str, *, advanced: bool = False, **options: Any) -> Any:
    """``kind.Input(name, **options)``; ``advanced`` folds the widget away on every host that can.

    Args:
        kind: ``io.Int``, ``io.Float``, ``io.Combo``, ``io.Image``, ... or a custom socket type.
        name: the input's id, permanent because saved workflows refer to it.
    """
    made = kind.Input(name, **_known(kind.Input, options))
    if advanced:
        if hasattr(made, "advanced"):
            made.advanced = True
        else:  # 0.3.64 has no such argument, but its frontend reads the key
            made.extra_dict["advanced"] = True
    return made


def blocked(reason: str) -> Any:
    """What an output carries that was not made: a node wired to it does not run, and the person reads ``reason``."""
    return ExecutionBlocker(reason)

"""What ships with the pack for the loaders of other techniques: the demo room enters it here, the loaders list it.

So no technique knows the demo world; where the demo room does not load, the loaders offer only the person's own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import EditingError

_ENTRIES: dict[str, dict[str, Any]] = {}


def bundle(kind: str, entries: Mapping[str, Any]) -> None:
    """Enter what a loader of ``kind`` (the name of its model folder) shall offer before the person's own files.

    Args:
        entries: name in the list -> a file, or a function that makes the model.
    """
    _ENTRIES.setdefault(kind, {}).update(entries)


def bundled_names(kind: str) -> list[str]:
    """The names entered for ``kind``, in order."""
    return list(_ENTRIES.get(kind, {}))


def bundled(kind: str, name: str) -> Any:
    """The entry, or None where ``name`` is not a bundled one."""
    return _ENTRIES.get(kind, {}).get(name)


def bundled_file(kind: str, name: str) -> Path | None:
    """:func:`bundled`, for kinds whose entries are files.

    Raises:
        EditingError: the file is not there.
    """
    path: Path | None = bundled(kind, name)
    if path is not None and not path.is_file():
        raise EditingError(f"The demo's {path.name} is missing; install the pack again with its assets folder.")
    return path

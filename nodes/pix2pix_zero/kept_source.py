"""The source of the inversion that was edited last, kept while the host keeps that INVERSION."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from ...core.inversion import Inversion
from ...core.pix2pix_zero.guided_edit import CrossAttentionSettings
from ...core.pix2pix_zero.kept_source import KeptSource
from ..host.memory import free_main_memory

#: A 50-step edit of one picture by SD 1.5 takes 1.1 GiB, and at preset fast 220 MiB.
MOST_BYTES = 2 << 30
#: Of the main memory that is free.
MOST_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class _Known:
    """What a kept source belongs to, as the host's own objects: equal content is not looked for, so that nothing that
    was changed a little is taken for the same.
    """

    model: weakref.ref[Any]
    patches: Any
    source: Any
    resolution: str
    kept: KeptSource


_known: weakref.WeakKeyDictionary[Inversion, _Known] = weakref.WeakKeyDictionary()


def kept_source(inversion: Inversion, model: Any, source: Any, settings: CrossAttentionSettings) -> KeptSource | None:
    """What earlier edits of ``inversion`` saw, or an empty one, in place of that of any other inversion.

    Args:
        source: the wired CONDITIONING or None.

    Returns:
        None where nothing can be used again: no guidance, or a reference of its own for each edit.
    """
    if settings.guidance == 0 or settings.reconstructs:
        return None
    patches = getattr(model, "patches_uuid", None)
    known = _known.get(inversion)
    if (
        known is None
        or known.model() is not model
        or known.patches != patches
        or known.source is not source
        or known.resolution != settings.resolution
    ):
        forget()  # before room is measured for the new one
        room = min(MOST_BYTES, round(MOST_SHARE * free_main_memory()))
        known = _Known(weakref.ref(model), patches, source, settings.resolution, KeptSource(room))
        _known[inversion] = known
    known.kept.used = 0
    return known.kept


def forget() -> None:
    """Let go of what is kept."""
    _known.clear()


def spared(kept: KeptSource | None) -> list[str]:
    """What an edit did not have to evaluate again, in a line; none for a first edit."""
    if kept is None or not kept.used:
        return []
    return [f"the source is known from an edit before: {kept.used} evaluations per image spared"]

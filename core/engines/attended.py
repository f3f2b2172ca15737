"""Where words are looked at: cross-attention maps of chosen tokens, gathered over layers and steps into a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.site import Site
from ..attention.store import PartKey
from ..errors import EditingError


def require_one_text(key: PartKey) -> None:
    """Raise :class:`EditingError` for a part of a conditioning beyond its first: its words are not known."""
    if key[3] > 0:
        raise EditingError(
            "A conditioning has several parts (combinations, areas) and words are those of one text; wire "
            "conditionings of one part, or use an engine without words."
        )


class AttendedPlaces:
    """Where the source's and the target's words are, as a mask over the latent.

    Of all layers outside the middle those at the coarsest resolution count (16 of 64 latent pixels in SD1, as in
    Prompt-to-Prompt's published code); maps are summed over layers and steps.

    Args:
        tokens: positions of the words in the source and in the target.
        threshold: share of a picture's highest value from which a place counts.
    """

    def __init__(self, tokens: tuple[tuple[int, ...], tuple[int, ...]], threshold: float = 0.3):
        self.tokens, self.threshold = tokens, threshold
        self._sums: dict[tuple[int, int], list[Tensor | None]] = {}

    def add(self, maps: Tensor, site: Site, target: bool) -> None:
        """Add the maps ``[B, heads, N, M]`` of one layer, of the source or of the target."""
        tokens = self.tokens[target]
        if site.block == "mid" or not tokens or maps.shape[-2] != site.resolution[0] * site.resolution[1]:
            return
        seen = maps[..., list(tokens)].sum(-1).mean(1).view(len(maps), 1, *site.resolution)
        sums = self._sums.setdefault(site.resolution, [None, None])
        before = sums[target]
        sums[target] = seen if before is None else before + seen

    def mask(self, size: tuple[int, int], target: bool | None = None) -> Tensor | None:
        """``[B, 1, h, w]`` of 0 and 1 at ``size``: places of the source's or the target's words, or of either (None);
        None before any map was added."""
        if not self._sums:
            return None
        sums = self._sums[min(self._sums)]
        wanted = [part for side, part in enumerate(sums) if part is not None and target in (None, bool(side))]
        if not wanted:
            return None
        masks = []
        for places in wanted:
            wide = _widened(places, size)
            masks.append(wide > self.threshold * wide.amax((2, 3), keepdim=True))
        return torch.stack(masks).any(0).float()

    def places(self, size: tuple[int, int]) -> Tensor | None:
        """How much the source's words are looked at, ``[B, 1, h, w]`` at ``size``; None before any map was added."""
        sums = self._sums[min(self._sums)][False] if self._sums else None
        return None if sums is None else _widened(sums, size)


def _widened(places: Tensor, size: tuple[int, int]) -> Tensor:
    """``places`` with what touches them, at another size."""
    wide = functional.max_pool2d(places.float(), 3, 1, 1)
    return functional.interpolate(wide, size, mode="bilinear", align_corners=False)

"""Renders kept by content, so that a second search with a larger budget only adds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class _Kept:
    """A render: the part inside the box where everything else is the source image, else the whole."""

    pixels: Tensor
    inside_only: bool


class RenderCache:
    """Rendered edits, latents and maps by key, the longest unused dropped first.

    Args:
        max_bytes: of pixels held.
    """

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str, source: Tensor, box: tuple[int, int, int, int]) -> Tensor | None:
        """The render ``[1, 3, H, W]`` under ``key``, or None; ``source [1, 3, H, W]`` and ``box`` as for
        :meth:`put`."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        if not kept.inside_only:
            return kept.pixels.clone()
        image = source.detach().cpu().clone()
        _inside(image, box).copy_(kept.pixels)
        return image

    def put(self, key: str, render: Tensor, source: Tensor, box: tuple[int, int, int, int]) -> None:
        """Keep ``render [1, 3, H, W]``, an edit of ``source`` inside ``box`` (x, y, width, height)."""
        plain, original = render.detach().cpu(), source.detach().cpu()
        inside_only = original.dtype == plain.dtype and original.shape == plain.shape
        if inside_only:
            x, y, width, height = box
            rows = (..., slice(y, y + height), slice(None))
            strips = [(..., slice(0, y), slice(None)), (..., slice(y + height, None), slice(None))]
            sides = [(..., slice(0, x)), (..., slice(x + width, None))]
            inside_only = all(torch.equal(original[strip], plain[strip]) for strip in strips) and all(
                torch.equal(original[rows][side], plain[rows][side]) for side in sides
            )
        pixels = (_inside(plain, box) if inside_only else plain).clone()
        self._hold(key, _Kept(pixels, inside_only))

    def tensor(self, key: str) -> Tensor | None:
        """The tensor that :meth:`keep` put under ``key``, or None."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept.pixels.clone()

    def keep(self, key: str, tensor: Tensor) -> None:
        """Keep ``tensor`` of any shape."""
        self._hold(key, _Kept(tensor.detach().cpu().clone(), False))

    def map(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor under ``key``, made by ``make`` where it is not kept yet."""
        kept = self._kept.get(key)
        if kept is None:
            kept = _Kept(make().detach().cpu().clone(), False)
            self._hold(key, kept)
        self._kept.move_to_end(key)
        return kept.pixels.clone()

    def _hold(self, key: str, kept: _Kept) -> None:
        self._forget(key)
        self._kept[key] = kept
        self._bytes += kept.pixels.numel() * kept.pixels.element_size()
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: str) -> None:
        old = self._kept.pop(key, None)
        if old is not None:
            self._bytes -= old.pixels.numel() * old.pixels.element_size()


def _inside(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    x, y, width, height = box
    return image[..., y : y + height, x : x + width]

"""Boxes of ``region_words.py``: true regions of pairs, random boxes, and how well two boxes agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from semantic_editing.core.demo.data import DemoPair
from semantic_editing.core.regions.proposals import Anchor, Box, Proposals

FAINT = 8 / 255  # differences of a pair's pictures below this are not its edit


def true_region(pair: DemoPair) -> Box:
    """The tight box of the pixels in which source and target differ."""
    changed = (pair.source - pair.target).abs().amax(0) >= FAINT
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    x, y = int(columns[0]), int(rows[0])
    return Box(x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    common = max(width, 0) * max(height, 0)
    return common / (one.width * one.height + other.width * other.height - common)


def around(x: float, y: float, width: int, height: int, size: tuple[int, int]) -> Box:
    """A box centred on a point, clipped to an image of ``size`` (height, width), at least a pixel."""
    left, top = max(0, round(x - width / 2)), max(0, round(y - height / 2))
    right, bottom = min(size[1], round(x + width / 2)), min(size[0], round(y + height / 2))
    return Box(min(left, size[1] - 1), min(top, size[0] - 1), max(1, right - left), max(1, bottom - top))


def random_boxes(
    centres: Sequence[tuple[float, float]] | int, size: tuple[int, int], generator: torch.Generator
) -> Proposals:
    """One box a centre with sides uniform in [0, W] and [0, H] (section 4.4 of the paper); a number draws the centres
    uniformly too."""
    height, width = size
    if isinstance(centres, int):
        drawn = torch.rand(centres, 2, generator=generator)
        centres = [(float(x) * width, float(y) * height) for x, y in drawn]
    sides = torch.rand(len(centres), 2, generator=generator)
    boxes = [
        around(x, y, round(float(w) * width), round(float(h) * height), size)
        for (x, y), (w, h) in zip(centres, sides, strict=True)
    ]
    return only(boxes, size)


def only(boxes: Iterable[Box], size: tuple[int, int]) -> Proposals:
    """Given boxes as proposals, an anchor each."""
    kept = tuple(boxes)
    anchors = tuple(Anchor(0, 0, box.x + box.width / 2, box.y + box.height / 2, 0.0) for box in kept)
    return Proposals(size, anchors, tuple((box,) for box in kept), torch.ones(size, dtype=torch.bool))

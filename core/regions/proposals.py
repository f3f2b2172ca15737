"""Where an edit could go: anchors on what the vision model looks at, boxes of several sizes around each (3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError

#: Side of the square boxes as a fraction of the image's shorter side; the paper's M = 7.
DEFAULT_SIZES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
DEFAULT_ANCHORS = 9
MOST_PROPOSALS = 64  # a box of each would be rendered for every anchor

MaskUse = Literal["restrict", "exclude"]
FoundBy = Literal["attention", "change", "given"]


class Box(NamedTuple):
    """A rectangle in image pixels: ``x`` to the right and ``y`` down to its top left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Anchor:
    """A patch that attention chose (the paper's C_i): its grid cell, its centre in image pixels, its attention.

    ``found_by`` "change": a cell of the map of what an edit changed, see :func:`~.changes.with_changes`, and the change
    there. "given": the cell of the middle of a box that was given, and the attention there.
    """

    row: int
    column: int
    x: float
    y: float
    attention: float
    found_by: FoundBy = "attention"


@dataclass(frozen=True, eq=False)
class Proposals:
    """K anchors with M slots each, one for every size and aspect ratio.

    Attributes:
        image_size: ``(H, W)`` in pixels.
        anchors: K, the most attended first.
        boxes: ``[K][M]``; None where an earlier slot of the same anchor has the same box (clipped by the image's edge).
        allowed: ``[H, W]`` bool: pixels that an edit may change.
        change: ``[H, W]``, 0 or more: how much the edit acts on each of them where it acts strongly, if that is known.
    """

    image_size: tuple[int, int]
    anchors: tuple[Anchor, ...]
    boxes: tuple[tuple[Box | None, ...], ...]
    allowed: Tensor
    change: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """``[K, M]`` bool: the slots that hold a box."""
        return torch.tensor([[box is not None for box in row] for row in self.boxes])

    def box(self, anchor: int, slot: int) -> Box:
        """The box of one slot.

        Raises:
            EditingError: the slot is empty.
        """
        box = self.boxes[anchor][slot]
        if box is None:
            raise EditingError(f"Anchor {anchor} has no box in slot {slot}; use the slots that Proposals.valid names.")
        return box

    def tightness(self, box: Box) -> float:
        """How well a box frames where the edit acts: its share of the change minus its share of the image. Larger is
        better.

        Of two boxes the one that takes in more change than area is tighter. Where the change is not known, the smaller
        one is.
        """
        area = box.width * box.height / (self.image_size[0] * self.image_size[1])
        if self.change is None:
            return -area
        inside = self.change[box.y : box.y + box.height, box.x : box.x + box.width].sum() / self.change.sum()
        return float(inside) - area

    def mask(self, box: Box) -> Tensor:
        """``[1, H, W]`` float: 1 on the allowed pixels of ``box``."""
        mask = torch.zeros(1, *self.image_size)
        rows, columns = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
        mask[0, rows, columns] = self.allowed[rows, columns].float()
        return mask


def propose(
    attention: Tensor,
    image_size: tuple[int, int],
    anchors: int = DEFAULT_ANCHORS,
    sizes: Sequence[float] = DEFAULT_SIZES,
    aspects: Sequence[float] = (1.0,),
    *,
    spread: int = 0,
    mask: Tensor | None = None,
    mask_use: MaskUse = "restrict",
    given: Sequence[Box] = (),
) -> Proposals:
    """Anchors at the most attended patches, and boxes centred on each; or the boxes that are given.

    Args:
        attention: ``[heads, gh, gw]``, attention of the class token; its mean over the heads ranks the patches.
        image_size: ``(H, W)`` in pixels of the image that the grid covers.
        anchors: how many (the paper's K); fewer come back where ``spread`` or the mask leaves fewer.
        sizes: sides of the squares: up to 1 a fraction of the shorter side, above 1 pixels.
        aspects: width over height; each makes a box of the square's area for every size.
        spread: non-maximum suppression: two anchors are more than this many patches apart in a row or a column; 0 is
            off.
        mask: ``[H, W]`` of any size, stretched to the image's; at least half of its highest value means inside. Anchors
            stand on patches of which at least half is allowed, on those with any allowed pixel where there are none; a
            box is the tight frame of its allowed pixels, and nothing else is changed.
        mask_use: "restrict" edits to the mask, or "exclude" it.
        given: boxes to try in place of those around attended patches, one place each, cut to what is allowed.

    Raises:
        EditingError: no sizes, one below 1 pixel, more anchors than patches, attention that is flat or not a number, or
            nothing left by the mask or of the given boxes.
    """
    height, width = image_size
    sides = box_sides(sizes, aspects, image_size)
    if attention.ndim != 3:
        raise EditingError(
            f"The attention has shape {list(attention.shape)}; give one image's, [heads, rows, columns]."
        )
    saliency = attention.detach().float().cpu().mean(0)
    if not torch.isfinite(saliency).all():
        raise EditingError("The attention is not a number; check the image and the vision model's weights.")
    allowed = allowed_pixels(mask, mask_use, image_size)
    if given:
        return _of_given(given, saliency, allowed, len(sides))
    if saliency.max() == saliency.min():
        raise EditingError(
            "The vision model finds no object (its attention is the same everywhere); draw a mask and use it instead."
        )
    covered = functional.adaptive_avg_pool2d(allowed.float()[None], (saliency.shape[0], saliency.shape[1]))[0]
    open_patches = covered >= 0.5
    if not open_patches.any():
        open_patches = covered > 0
    left = int(open_patches.sum())
    if not left:
        raise EditingError(
            "The mask leaves no patch for an anchor; enlarge it, or switch between restrict and exclude."
        )
    if not 1 <= anchors <= saliency.numel():
        raise EditingError(
            f"anchors is {anchors}; use 1 to {saliency.numel()}, as many as there are patches to choose from."
        )
    chosen = [
        Anchor(row, column, (column + 0.5) * width / saliency.shape[1], (row + 0.5) * height / saliency.shape[0], value)
        for row, column, value in _peaks(saliency, open_patches, anchors, spread)
    ]
    kept: list[tuple[Anchor, tuple[Box | None, ...]]] = []
    for anchor in chosen:
        boxes = unique([tight(_around(anchor, side, image_size), allowed) for side in sides])
        if any(box is not None for box in boxes):
            kept.append((anchor, boxes))
    if not kept:
        raise EditingError("No box is left after the mask; use larger sizes or enlarge the mask.")
    return Proposals(image_size, tuple(anchor for anchor, _ in kept), tuple(boxes for _, boxes in kept), allowed)


def box_sides(sizes: Sequence[float], aspects: Sequence[float], image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """``(width, height)`` in pixels for every size and aspect ratio, sizes first (see :func:`propose`), before
    clipping.

    Raises:
        EditingError: none, too many, or one that is no positive number or below one pixel.
    """
    if not sizes or not aspects:
        raise EditingError(
            "There are no box sizes; give at least one size and one aspect ratio, for example 0.3, 0.5, 0.8 and 1."
        )
    if len(sizes) * len(aspects) > MOST_PROPOSALS:
        raise EditingError(
            f"{len(sizes)} sizes and {len(aspects)} aspect ratios are too many; use at most {MOST_PROPOSALS} together."
        )
    if any(not (math.isfinite(value) and value > 0) for value in (*sizes, *aspects)):
        raise EditingError(
            "A box size or aspect ratio is not a positive number; write sizes such as 0.3, 0.5 (fractions) or 96 "
            "(pixels)."
        )
    made = []
    for size in sizes:
        side = size * min(image_size) if size <= 1 else size
        for aspect in aspects:
            pair = round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect))
            if min(pair) < 1:
                raise EditingError(f"The box size {size:g} is below one pixel of this image; use a larger one.")
            made.append(pair)
    return made


def _of_given(given: Sequence[Box], saliency: Tensor, allowed: Tensor, slots: int) -> Proposals:
    """The boxes that were given, a place each; a box twice and what lies outside of the image or the mask is left out.

    Raises:
        EditingError: nothing is left.
    """
    height, width = allowed.shape
    rows, columns = saliency.shape
    anchors: list[Anchor] = []
    boxes: list[tuple[Box | None, ...]] = []
    inside = [clipped(box, (height, width)) for box in given]
    for box in unique([None if box is None else tight(box, allowed) for box in inside]):
        if box is None:
            continue
        x, y = box.x + box.width / 2, box.y + box.height / 2
        row, column = int(y * rows / height), int(x * columns / width)
        anchors.append(Anchor(row, column, x, y, float(saliency[row, column]), "given"))
        boxes.append((box, *[None] * (slots - 1)))
    if not anchors:
        raise EditingError(
            f"None of the {len(given)} boxes lies in the image ({width} x {height} pixels) and in the mask; wire boxes "
            "of this image, or none."
        )
    return Proposals((height, width), tuple(anchors), tuple(boxes), allowed)


def clipped(box: Box, image_size: tuple[int, int]) -> Box | None:
    """``box`` cut to an image of ``(H, W)`` pixels, None where nothing is left."""
    left, top = max(box.x, 0), max(box.y, 0)
    right, bottom = min(box.x + box.width, image_size[1]), min(box.y + box.height, image_size[0])
    return Box(left, top, right - left, bottom - top) if right > left and bottom > top else None


def allowed_pixels(mask: Tensor | None, use: MaskUse, image_size: tuple[int, int]) -> Tensor:
    """``[H, W]`` bool: where an edit may be, by a mask ``[h, w]`` of any size, see :func:`propose`."""
    if mask is None:
        return torch.ones(image_size, dtype=torch.bool)
    mask = mask.detach().float().cpu()
    if tuple(mask.shape) != tuple(image_size):
        # By the highest value of a cell where it shrinks, so that a small place is not lost.
        larger = mask.shape[0] >= image_size[0] and mask.shape[1] >= image_size[1]
        mask = (
            functional.adaptive_max_pool2d(mask[None], image_size)[0]
            if larger
            else functional.interpolate(mask[None, None], image_size, mode="nearest-exact")[0, 0]
        )
    # A soft mask may have no 1 anywhere.
    inside = mask >= mask.max() / 2 if mask.max() > 0 else torch.zeros(image_size, dtype=torch.bool)
    return inside if use == "restrict" else ~inside


def _peaks(saliency: Tensor, open_patches: Tensor, count: int, spread: int) -> list[tuple[int, int, float]]:
    """The ``count`` highest open patches, ties in reading order, none within ``spread`` of a better one (if above
    0)."""
    columns = saliency.shape[1]
    found: list[tuple[int, int, float]] = []
    for index in saliency.flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(index, columns)
        near = spread > 0 and any(max(abs(row - other[0]), abs(column - other[1])) <= spread for other in found)
        if open_patches[row, column] and not near:
            found.append((row, column, float(saliency[row, column])))
        if len(found) == count:
            break
    return found


def _around(anchor: Anchor, side: tuple[int, int], image_size: tuple[int, int]) -> Box | None:
    """The box of ``side`` (width, height) centred on the anchor to half a pixel, clipped to the image."""
    left, top = math.floor(anchor.x - side[0] / 2 + 0.5), math.floor(anchor.y - side[1] / 2 + 0.5)
    right, bottom = min(left + side[0], image_size[1]), min(top + side[1], image_size[0])
    left, top = max(left, 0), max(top, 0)
    return Box(left, top, right - left, bottom - top) if right > left and bottom > top else None


def tight(box: Box | None, allowed: Tensor) -> Box | None:
    """The frame of the allowed pixels in ``box``, None where there are none."""
    if box is None:
        return None
    inside = allowed[box.y : box.y + box.height, box.x : box.x + box.width]
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    if not len(rows):
        return None
    x, y = box.x + int(columns[0]), box.y + int(rows[0])
    return Box(x, y, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)


def unique(boxes: list[Box | None]) -> tuple[Box | None, ...]:
    """``boxes`` with None in place of every one that came before."""
    return tuple(box if box not in boxes[:index] else None for index, box in enumerate(boxes))

"""Crop and stitch: what every box editor shares. A box is cut out with context, edited at the model's size and pasted
back.

Pixels outside the box keep their bits: the feather lies inside the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..denoiser import check_finite
from ..errors import EditingError
from .proposals import Box


@dataclass(frozen=True)
class Crop:
    """Which part of an image is cut out for a box.

    Attributes:
        window: that part in pixels of the image; it holds the box.
        size: height and width in pixels to which the part is resized to be worked on.
    """

    window: Box
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Cut:
    """What :meth:`Framing.cut` cuts out of an image ``[1, 3, H, W]``, and what :func:`paste` needs to put it back.

    Attributes:
        pixels: the part to edit, ``[1, 3, h, w]`` in 0..1.
        mask: where to edit it, ``[1, h, w]`` of zeros and ones.
        window: where it came from, in pixels of the image.
        box: the box, in pixels of the image; it lies in the window.
        opacity: how much of the edit shows at each pixel of the box, ``[1, height, width]`` in 0..1; none shows
            outside.
    """

    pixels: Tensor
    mask: Tensor
    window: Box
    box: Box
    opacity: Tensor


@dataclass(frozen=True)
class Framing:
    """How a box is cut out of an image and pasted back.

    Attributes:
        context: margin around the box on every side as a share of its longer side; infinity takes the whole image.
        multiple: both sides of the crop are multiples of it (pixels per latent pixel, times what the network halves).
        working_size: the crop is resized to about this side squared, the model's training size; None keeps the image's
            pixels.
        feather: pixels over which the paste fades in, inward from the edge of the box, but at most an eighth of its
            shorter side, so that a small box still shows its edit; none at the image's own border.

    Raises:
        EditingError: values out of range.
    """

    context: float = 0.5
    multiple: int = 8
    working_size: int | None = None
    feather: int = 4

    def __post_init__(self) -> None:
        if not self.context >= 0:
            raise EditingError(
                f"context is {self.context:g}; use 0 (the box alone) or a positive share of its longer side."
            )
        if self.multiple < 1 or self.feather < 0:
            raise EditingError(
                f"multiple is {self.multiple} and feather {self.feather}; use 1 or more and 0 or more pixels."
            )
        if self.working_size is not None and self.working_size < self.multiple:
            raise EditingError(
                f"working_size is {self.working_size}; this model needs at least {self.multiple} pixels."
            )

    def crop(self, height: int, width: int, box: Box) -> Crop:
        """The crop for ``box`` in an image of ``height`` and ``width`` pixels: square where the image is large
        enough."""
        x, y, box_width, box_height = box
        side = max(box_width, box_height) * (1 + 2 * self.context)
        left, window_width = self._span(x, box_width, side, width)
        top, window_height = self._span(y, box_height, side, height)
        if self.working_size is None:
            size = (self._up(window_height), self._up(window_width))
        else:
            scale = self.working_size / math.sqrt(window_height * window_width)
            size = (self._nearest(window_height * scale), self._nearest(window_width * scale))
        return Crop(Box(left, top, window_width, window_height), size)

    def cut(self, image: Tensor, mask: Tensor, box: Sequence[int]) -> Cut:
        """Cut the surroundings of a box out of an image, to be edited and given to :func:`paste`.

        Args:
            image: ``[1, 3, H, W]`` in 0..1.
            mask: ``[1, H, W]`` in 0..1, 1 where to edit; what lies outside the box does not count.
            box: x, y, width, height in pixels, inside the image.

        Raises:
            EditingError: see :func:`check_request`.
        """
        area = check_request(image, mask, box)
        height, width = image.shape[-2:]
        crop = self.crop(height, width, area)
        window = crop.window
        # All that follows looks at the window alone, and the feather at the box and a pixel around it, which is where
        # it meets what is not masked: an image may be a hundred times as large.
        inside = box_mask(_slice(mask, window), _within(area, window))
        left, top = max(area.x - 1, 0), max(area.y - 1, 0)
        right, bottom = min(area.x + area.width + 1, width), min(area.y + area.height + 1, height)
        around = Box(left, top, right - left, bottom - top)
        feather = min(self.feather, min(area.width, area.height) // 8)
        faded = feathered(box_mask(_slice(mask, around), _within(area, around)), feather)
        return Cut(
            pixels=resized(_slice(image, window), crop.size),
            mask=repainted_cells(inside, crop.size)[0],
            window=window,
            box=area,
            opacity=_slice(faded, _within(area, around)),
        )

    def _span(self, start: int, length: int, side: float, limit: int) -> tuple[int, int]:
        span = limit if math.isinf(side) else min(limit, self._up(max(side, length)))
        first = start - (span - length) // 2
        return min(max(first, 0), limit - span), span

    def _up(self, side: float) -> int:
        return math.ceil(side / self.multiple) * self.multiple

    def _nearest(self, side: float) -> int:
        return max(1, round(side / self.multiple)) * self.multiple


def check_request(image: Tensor, mask: Tensor, box: Sequence[int]) -> Box:
    """The box of a render request as four integers.

    Raises:
        EditingError: an image other than ``[1, 3, H, W]``, a mask of another size or empty within the box, a box that
            is empty or not within the image, values that are not numbers.
    """
    if image.ndim != 4 or image.shape[0] != 1 or image.shape[1] != 3:
        raise EditingError(f"The image has shape {list(image.shape)}; edit one image of shape [1, 3, height, width].")
    height, width = image.shape[-2:]
    if mask.shape != (1, height, width):
        raise EditingError(
            f"The mask has shape {list(mask.shape)} and the image is {width} x {height} pixels; use a mask [1, "
            f"{height}, {width}]."
        )
    check_finite(image, "The image")
    check_finite(mask, "The mask")
    if len(box) != 4 or any(int(side) != side for side in box):
        raise EditingError(f"The box is {tuple(box)}; use whole pixels: x, y, width and height.")
    x, y, box_width, box_height = (int(side) for side in box)
    if box_width < 1 or box_height < 1:
        raise EditingError(f"The box is empty ({box_width} x {box_height} pixels); use one of at least one pixel.")
    if x < 0 or y < 0 or x + box_width > width or y + box_height > height:
        raise EditingError(
            f"The box reaches from ({x}, {y}) to ({x + box_width}, {y + box_height}), outside the image of {width} x "
            f"{height} pixels; "
            "clip it to the image."
        )
    if not (mask[:, y : y + box_height, x : x + box_width] > 0).any():
        raise EditingError(
            "The mask is empty within the box, so there is nothing to edit; use a box over the masked part."
        )
    return Box(x, y, box_width, box_height)


def box_mask(mask: Tensor, box: Box) -> Tensor:
    """``mask [1, H, W]`` clamped to 0..1, and 0 outside the box."""
    x, y, width, height = box
    inside = torch.zeros_like(mask, dtype=torch.float32)
    area = (slice(None), slice(y, y + height), slice(x, x + width))
    inside[area] = mask[area].float().clamp(0, 1)
    return inside


def feathered(mask: Tensor, feather: int) -> Tensor:
    """Opacity of the paste, ``[1, H, W]``: it rises inward over ``feather`` pixels and reaches the mask's own value.

    A pixel d pixels (in the larger of both directions) from the nearest unmasked one weighs ``min(d, feather + 1) /
    (feather + 1)``; the border of the image does not count as unmasked. A mask thinner than the feather is scaled up to
    full opacity.
    """
    shrunk, total = mask, mask.clone()
    for _ in range(feather):
        shrunk = _least_of_three(_least_of_three(shrunk, 1), 2)
        total += shrunk
    return total * (mask.max() / total.max())


def _least_of_three(field: Tensor, axis: int) -> Tensor:
    """Of every value and its two neighbours; by shifts, in a third of a pooling's time."""
    least, count = field.clone(), field.shape[axis] - 1
    for here, beside in ((1, 0), (0, 1)):
        part = least.narrow(axis, here, count)
        torch.minimum(part, field.narrow(axis, beside, count), out=part)
    return least


def paste(image: Tensor, edited: Tensor, cut: Cut) -> Tensor:
    """The image ``[1, 3, H, W]`` with a cut put back after editing.

    Where the opacity is 0 (everywhere outside the box) the image keeps its bits, where it is 1 it has those of the
    edit.

    Args:
        edited: the cut's pixels after editing, ``[1, 3, h, w]`` in 0..1.

    Raises:
        EditingError: an edit of another shape than the cut, or that is not a number.
    """
    if edited.shape != cut.pixels.shape:
        raise EditingError(
            f"The edited crop has shape {list(edited.shape)}, not {list(cut.pixels.shape)}; use the model's own VAE."
        )
    check_finite(edited, "The edited picture")
    above = resized(edited.to(image), (cut.window.height, cut.window.width))
    above = _slice(above, _within(cut.box, cut.window)).clamp(0, 1)
    weight, below = cut.opacity.to(image), _slice(image, cut.box)
    mixed = torch.where(weight >= 1, above, below + weight * (above - below))
    result = image.clone()
    _slice(result, cut.box).copy_(torch.where(weight > 0, mixed, below))
    return result


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``image [1, C, H, W]`` in 0..1 at ``size`` (height, width), bicubic with antialiasing; as it is when that is its
    size."""
    if image.shape[-2:] == size:
        return image
    return functional.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def repainted_cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The cells of a grid of ``size`` (height, width) that ``mask [1, H, W]`` touches, zeros and ones ``[1, 1, h, w]``.

    However small a masked area is, it touches one: an average or a nearest neighbour would lose it.
    """
    return functional.adaptive_max_pool2d((mask > 0).float()[:, None], size)


def _within(box: Box, window: Box) -> Box:
    """``box`` in the pixels of a ``window`` that holds it."""
    return Box(box.x - window.x, box.y - window.y, box.width, box.height)


def _slice(tensor: Tensor, window: Box) -> Tensor:
    x, y, width, height = window
    return tensor[..., y : y + height, x : x + width]

"""What every measure asks of its pictures and masks, and the weighted mean over a mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError
from ..reading.libraries import library


def check_pair(images: Tensor, reference: Tensor) -> None:
    """Raise :class:`EditingError` unless both are equal ``[B, C, H, W]`` of finite floating point numbers."""
    if images.ndim != 4 or images.shape != reference.shape:
        raise EditingError(
            f"The images have shapes {list(images.shape)} and {list(reference.shape)}; compare equal [batch, channels, "
            "height, width]."
        )
    for pictures in (images, reference):
        if not pictures.is_floating_point():
            raise EditingError(
                f"The images are whole numbers ({pictures.dtype}); give them as floating point in 0..1, bytes divided "
                "by 255."
            )
        check_finite(pictures, "The image")


def check_mask(images: Tensor, mask: Tensor) -> Tensor:
    """``mask [B or 1, 1, H, W]`` for every one of ``images [B, C, H, W]``: ``[B, 1, H, W]`` in 0..1, where they are.

    Raises:
        EditingError: another shape, not a number, values outside 0..1, or nothing counts in one of the images.
    """
    size, fits = list(images.shape[-2:]), mask.ndim == 4 and mask.shape[0] in (1, len(images)) and mask.shape[1] == 1
    if not fits or list(mask.shape[-2:]) != size:
        raise EditingError(
            f"The mask has shape {list(mask.shape)} and the images {list(images.shape)}; give a mask of the images' "
            "size, [1 or batch, 1, height, width]."
        )
    check_finite(mask, "The mask")
    weights = mask.to(images.device).double()
    if float(weights.min()) < 0 or float(weights.max()) > 1:
        raise EditingError("The mask has values outside 0..1; use 1 where a pixel counts and 0 where it does not.")
    if float(weights.sum((1, 2, 3)).min()) <= 0:
        raise EditingError("The mask is empty, so no pixel counts; paint the part that is to be measured.")
    return weights.expand(len(images), -1, -1, -1)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values [B, C, H, W]`` over channels and positions, each position as much as ``mask`` says, ``[B]``.

    Raises:
        EditingError: a mask that :func:`check_mask` refuses.
    """
    if mask is None:
        return values.mean((1, 2, 3))
    weights = check_mask(values, mask)
    return (weights * values.mean(1, keepdim=True)).sum((1, 2, 3)) / weights.sum((1, 2, 3))


def torchmetrics_part(name: str, what: str) -> Any:
    """A module of the torchmetrics package, imported when it is needed.

    Args:
        name: below ``torchmetrics``, e.g. "image.fid".
        what: the measure that needs it, for the message.

    Raises:
        EditingError: the package is not installed or broken.
    """
    return library(f"torchmetrics.{name}", what)

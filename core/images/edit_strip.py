"""The strip of an edit: before, after, the true edit where it is known, and where they differ, with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .contact_sheet import contact_sheet
from .difference import difference_picture, full_heat

SMALLEST, LARGEST = 256, 512  # pixels of a picture's shorter side: enlarged by a whole number, or shrunk
LONGEST = 2048  # pixels of the longer side that no enlargement exceeds
LETTERS = 16  # a letter's height is the shorter side over this, to be readable when the host shows the strip small
MOST_ROWS = 8  # pictures of a batch that are drawn


def edit_strip(
    before: Tensor,
    after: Tensor,
    difference: Tensor,
    titles: Sequence[str],
    truth: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """A row for each picture of the batch, the first :data:`MOST_ROWS` of them.

    Args:
        before, after, truth: ``[B, 3, H, W]`` in 0..1.
        difference: their map ``[B, H, W]``, see :func:`~.difference.difference_map`. All rows share one scale of heat.
        titles: one for each row; may be empty.
        mask: ``[B, 1, H, W]``, outlined in the heat map.

    Returns:
        ``[1, H', W', 3]`` fp32 in 0..1.
    """
    full = full_heat(difference)
    legend = f"Difference (full red: {100 * full:.0f} % or more" + (", mask outlined)" if mask is not None else ")")
    rows = []
    for number in range(min(len(before), MOST_ROWS)):
        outlined = None if mask is None else mask[number, 0]
        heat = difference_picture(before[number, None], difference[number], full, outlined)[0]
        cells = [(before[number], "Before"), (after[number], "After")]
        if truth is not None:
            cells.append((truth[number], "True edit"))
        rows.append((titles[number], [(_sized(image), caption) for image, caption in (*cells, (heat, legend))]))
    if len(before) > MOST_ROWS:
        rows[-1] = (f"{rows[-1][0]} ({len(before) - MOST_ROWS} more pictures are not drawn)".strip(), rows[-1][1])
    side = max(SMALLEST, min(rows[0][1][0][0].shape[-2:]))
    sheet = contact_sheet(rows, width_of_text=SMALLEST, text_size=side // LETTERS)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def _sized(image: Tensor) -> Tensor:
    """``image [3, H, W]`` with a shorter side between :data:`SMALLEST` and about :data:`LARGEST`."""
    image, shorter = image.detach().float().cpu(), min(image.shape[-2:])
    scale = min(-(-SMALLEST // shorter), LONGEST // max(image.shape[-2:]))
    if scale > 1:
        return functional.interpolate(image[None], scale_factor=scale, mode="nearest")[0]
    if shorter > LARGEST:
        size = [round(side * LARGEST / shorter) for side in image.shape[-2:]]
        return functional.interpolate(image[None], size=size, mode="area")[0]
    return image

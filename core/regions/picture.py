"""The search as a picture: what the vision model looks at, the anchors, all boxes faintly and the best with their ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image, ImageDraw
from torch import Tensor

from ..sheet import to_picture
from .proposals import Box, FoundBy, Proposals
from .ranking import Candidate

SMALLEST = 512  # pixels of the shorter side; smaller images are enlarged by a whole number
HEAT = (255, 60, 0)
FAINT, LABEL = (255, 255, 255), (0, 0, 0)
PLACES: dict[FoundBy, tuple[int, int, int]] = {"attention": (255, 230, 0), "change": (0, 230, 255)}
RANKS = ((60, 220, 90), (70, 170, 255), (230, 120, 255))  # the best, the second, all others that are drawn strongly
STRENGTH = 0.6  # opacity of the heat where attention is highest
FAINTNESS = 0.35  # opacity of the boxes that are not among the best


def region_picture(image: Tensor, attention: Tensor, proposals: Proposals, candidates: Sequence[Candidate], best: int = 3) -> Tensor:
    """Draw a search over its image.

    Args:
        image: ``[1, 3, H, W]`` in 0..1.
        attention: ``[heads, gh, gw]``, see :func:`~.proposals.propose`; its mean over the heads is the heat, from its lowest value
            (nothing) to its highest.
        candidates: the best first.
        best: how many of them are drawn strongly, with their ranks.

    Returns:
        ``[H', W', 3]`` in 0..1: the image's size times the least whole number that makes the shorter side 512 or more.
    """
    scale = -(-SMALLEST // min(image.shape[-2:]))
    canvas = to_picture(heated(image, attention)[0], scale)
    drawn = canvas.copy()
    draw = ImageDraw.Draw(drawn)
    for box in dict.fromkeys(box for row in proposals.boxes for box in row if box is not None):
        draw.rectangle(_frame(box, scale), outline=FAINT)
    canvas = Image.blend(canvas, drawn, FAINTNESS)
    draw = ImageDraw.Draw(canvas)
    for anchor in proposals.anchors:
        x, y = anchor.x * scale, anchor.y * scale
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=PLACES[anchor.found_by], outline=LABEL)
    strong = list(enumerate(candidates[:best], start=1))
    for rank, candidate in reversed(strong):  # the best on top
        draw.rectangle(_frame(candidate.box, scale), outline=colour_of(rank), width=3)
    for rank, candidate in reversed(strong):
        left, top, *_ = _frame(candidate.box, scale)
        text = str(rank)
        draw.rectangle((left, top, left + draw.textlength(text) + 8, top + 16), fill=colour_of(rank))
        draw.text((left + 4, top + 3), text, fill=LABEL)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


def colour_of(rank: int) -> tuple[int, int, int]:
    """Colour of the box of a rank from 1, as red, green and blue in 0..255."""
    return RANKS[min(rank, len(RANKS)) - 1]


def heated(image: Tensor, attention: Tensor) -> Tensor:
    """``image [1, 3, H, W]`` in 0..1, redder where the mean of ``attention [heads, gh, gw]`` is higher."""
    weight = attention.detach().float().cpu().mean(0)
    weight = (weight - weight.min()) / (weight.max() - weight.min()).clamp_min(1e-12) * STRENGTH
    size = (image.shape[-2], image.shape[-1])
    weight = functional.interpolate(weight[None, None], size=size, mode="bilinear", align_corners=False)
    colour = torch.tensor(HEAT).reshape(1, 3, 1, 1) / 255
    return image.detach().float().cpu() * (1 - weight) + colour * weight


def _frame(box: Box, scale: int) -> tuple[int, int, int, int]:
    """First and last pixels of the enlarged box: left, top, right, bottom."""
    return box.x * scale, box.y * scale, (box.x + box.width) * scale - 1, (box.y + box.height) * scale - 1

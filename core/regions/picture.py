"""What a search found, for people and programs: a picture, a table of scores, JSON, and a few lines of report."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..images.contact_sheet import to_picture
from ..images.heat import under_heat
from .proposals import Box
from .words import WordsEdit

SMALLEST = 512  # pixels of the shorter side; smaller images are enlarged by a whole number
FAINT, LABEL = (255, 255, 255), (0, 0, 0)  # red, green and blue in 0..255, like all colours here
RANKS = ((60, 220, 90), (70, 170, 255), (230, 120, 255))  # the best, the second, all others that are drawn strongly
STRENGTH = 0.6  # opacity of the heat where attention is highest
FAINTNESS = 0.35  # opacity of the boxes that are not among the best


def region_picture(image: Tensor, looked_at: Tensor | None, boxes: Sequence[Box], best: int = 3) -> Tensor:
    """Draw the boxes of a search over its image.

    Args:
        image: ``[1, 3, H, W]`` in 0..1.
        looked_at: ``[maps, gh, gw]``, attention or the pull of the text; its mean is the heat, from its lowest value
            (nothing) to its highest. None: no heat.
        boxes: the best first.
        best: how many of them are drawn strongly, with their ranks.

    Returns:
        ``[H', W', 3]`` in 0..1: the image's size times the least whole number that makes the shorter side 512 or more.
    """
    scale = -(-SMALLEST // min(image.shape[-2:]))
    canvas = to_picture((image if looked_at is None else heated(image, looked_at))[0], scale)
    drawn = canvas.copy()
    draw = ImageDraw.Draw(drawn)
    for box in boxes:
        draw.rectangle(_frame(box, scale), outline=FAINT)
    canvas = Image.blend(canvas, drawn, FAINTNESS)
    draw = ImageDraw.Draw(canvas)
    strong = list(enumerate(boxes[:best], start=1))
    for rank, box in reversed(strong):  # the best on top
        draw.rectangle(_frame(box, scale), outline=colour_of(rank), width=3)
    for rank, box in reversed(strong):
        left, top, *_ = _frame(box, scale)
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
    return under_heat(image, weight)


def _frame(box: Box, scale: int) -> tuple[int, int, int, int]:
    """First and last pixels of the enlarged box: left, top, right, bottom."""
    return box.x * scale, box.y * scale, (box.x + box.width) * scale - 1, (box.y + box.height) * scale - 1


def score_table(edit: WordsEdit) -> str:
    """A line for each box, the best first: its score S (Eq. 7) and that of a crop around it, both beside the unedited
    picture's."""
    if not edit.judged:
        return "not judged: wire a clip scorer to compare boxes and to be told when none helps"
    lines = ["rank | box (x, y, width, height) | S of the image, unedited | S of a crop around the box, unedited"]
    lines += [
        f"{rank} | {list(one.box)} | {one.whole:.3f}, {one.whole_before:.3f} | {one.crop:.3f}, {one.crop_before:.3f}"
        for rank, one in enumerate(edit.painted, start=1)
    ]
    return "\n".join(lines)


def words_report(edit: WordsEdit) -> str:
    """What was found: a sentence, which says plainly when nothing helped, and then figures."""
    if not edit.painted:
        return "Nothing was edited: the two texts mean the same to the model here, so the image is as it came."
    x, y, width, height = edit.painted[0].box
    if edit.helped:
        first = f"Edited {width} x {height} pixels at ({x}, {y})."
    else:
        first = "Nothing helped: no box scores above the unedited image, so that is given back."
    return f"{first}\n{len(edit.painted)} boxes painted; {edit.units:g} u\n{score_table(edit)}"


def boxes_json(edit: WordsEdit) -> str:
    """The boxes as JSON: ``{"image": {"width", "height"}, "helped", "boxes": [{"rank", "x", "y", "width", "height",
    "score", "unedited_score", "crop_score", "unedited_crop_score"}]}``; scores are null without a judge."""
    boxes = [
        {
            "rank": rank,
            **one.box._asdict(),
            "score": one.whole,
            "unedited_score": one.whole_before,
            "crop_score": one.crop,
            "unedited_crop_score": one.crop_before,
        }
        for rank, one in enumerate(edit.painted, start=1)
    ]
    size = {"width": edit.image.shape[-1], "height": edit.image.shape[-2]}
    return json.dumps({"image": size, "helped": edit.helped, "boxes": boxes}, indent=1)

"""A small picture of points: sets of points in one or several square panels side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .plots import BARS, CURVE, FAINT, INK, WORST

SIDE = 400  # of a panel, in pixels
MARGIN = 26
DOT = 2
COLOURS = (WORST, CURVE, BARS)
#: Up to so many points rows of the first two sets are joined by a line.
JOINED = 60


def scatter_plot(panels: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Draw points; returns an image ``[H, W, 3]`` fp32 in 0..1.

    Args:
        panels: title -> name of a set -> its points ``[N, 2]``, x to the right and y upwards. The sets of a panel share
            one scale, the same for x and y; the first to the third are red, blue and green. Where two sets have few
            points, those of equal row are joined.
    """
    canvas = Image.new("RGB", (len(panels) * (SIDE + MARGIN) + MARGIN, SIDE + 2 * MARGIN + 4), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (title, sets) in enumerate(panels.items()):
        _panel(draw, title, sets, MARGIN + number * (SIDE + MARGIN), MARGIN)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


def _panel(draw: ImageDraw.ImageDraw, title: str, sets: Mapping[str, Tensor], left: int, top: int) -> None:
    points = [one.double().cpu() for one in sets.values()]
    together = torch.cat(points)
    centre = (together.amax(0) + together.amin(0)) / 2
    reach = float((together - centre).abs().max()) or 1.0
    scale = (SIDE / 2 - 3 * DOT) / reach

    def placed(one: Tensor) -> list[tuple[float, float]]:
        x, y = ((one - centre) * scale).T
        return list(zip((left + SIDE / 2 + x).tolist(), (top + SIDE / 2 - y).tolist(), strict=True))

    drawn = [placed(one) for one in points]
    if len(drawn) == 2 and len(drawn[0]) == len(drawn[1]) <= JOINED:
        for start, end in zip(*drawn, strict=True):
            draw.line((*start, *end), fill=FAINT)
    for dots, colour in zip(drawn, COLOURS, strict=False):
        for x, y in dots:
            draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)
    draw.rectangle((left, top, left + SIDE, top + SIDE), outline=INK)
    draw.text((left, top - 15), title, fill=INK)
    x = float(left)
    for name, colour in zip(sets, COLOURS, strict=False):
        draw.ellipse((x, top + SIDE + 10, x + 2 * DOT + 2, top + SIDE + 12 + 2 * DOT), fill=colour)
        draw.text((x + 12, top + SIDE + 7), name, fill=INK)
        x += 30 + draw.textlength(name)

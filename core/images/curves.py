"""A small picture of a training: curves over its course in one or several panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .plots import BOTTOM, FAINT, GAP, HEIGHT, INK, LEFT, RIGHT, TOP, WIDTH

COLOURS = {"blue": (30, 100, 200), "red": (200, 70, 40), "green": (60, 140, 90), "violet": (130, 80, 170)}
LINES = 4  # horizontal lines in a panel


def curves_plot(
    panels: Mapping[str, Mapping[str, Sequence[float]]], *, mark: int | None = None, axis: str = "epoch"
) -> Tensor:
    """Draw curves against their index; returns an image ``[H, W, 3]`` fp32 in 0..1.

    Args:
        panels: title -> name of a curve -> its values. The curves of a panel share one scale, and the first to the last
            of them are blue, red, green and violet. Values that are not finite are left out.
        mark: index at which a vertical line is drawn, e.g. the best epoch.
        axis: what the index counts, from 1.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    height = (HEIGHT - TOP - BOTTOM - GAP * (len(panels) - 1)) // max(len(panels), 1)
    longest = max((len(values) for curves in panels.values() for values in curves.values()), default=0)
    for number, (title, curves) in enumerate(panels.items()):
        top = TOP + number * (height + GAP)
        _panel(draw, title, curves, longest, mark, (top, top + height))
    draw.text((LEFT, HEIGHT - BOTTOM + 6), f"{axis} 1", fill=INK)
    end = f"{axis} {longest}"
    draw.text((WIDTH - RIGHT - draw.textlength(end), HEIGHT - BOTTOM + 6), end, fill=INK)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


def _panel(
    draw: ImageDraw.ImageDraw,
    title: str,
    curves: Mapping[str, Sequence[float]],
    longest: int,
    mark: int | None,
    rows: tuple[int, int],
) -> None:
    values = [value for curve in curves.values() for value in curve if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5

    def point(index: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (index / max(longest - 1, 1))
        return x, rows[1] - (rows[1] - rows[0]) * (value - low) / (high - low)

    for line in range(LINES + 1):
        level = low + (high - low) * line / LINES
        y = point(0, level)[1]
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=FAINT)
        draw.text((8, y - 6), f"{level:.3g}", fill=INK)
    if mark is not None:
        draw.line((point(mark, 0)[0], rows[0], point(mark, 0)[0], rows[1]), fill=INK)
    for curve, colour in zip(curves.values(), COLOURS.values(), strict=False):
        points = [point(index, value) for index, value in enumerate(curve) if math.isfinite(value)]
        for start, end in pairwise(points):
            draw.line((*start, *end), fill=colour, width=2)
        if len(points) == 1:
            (x, y) = points[0]
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    draw.rectangle((LEFT, rows[0], WIDTH - RIGHT, rows[1]), outline=INK)
    legend = ", ".join(f"{name} {colour}" for name, colour in zip(curves, COLOURS, strict=False))
    draw.text((LEFT, rows[0] - 15), f"{title}: {legend}" if legend else title, fill=INK)

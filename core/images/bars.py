"""A small picture of figures: one panel each, a bar for every method with the interval of its mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .plots import CURVE, FAINT, INK, RIGHT, WIDTH

ROW, HEAD, GAP = 18, 22, 14  # heights in pixels
NAMES = 220  # pixels that the names have
NUMBER = 60  # pixels that a figure beside its bar has


def bars_plot(panels: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Tensor:
    """Draw bars from 0; returns an image ``[H, W, 3]`` fp32 in 0..1.

    Args:
        panels: title -> name of a row -> ``(mean, low, high)``. The rows of a panel share one scale. A mean that is not
            finite is written but not drawn.
    """
    height = sum(HEAD + ROW * len(rows) + GAP for rows in panels.values()) or HEAD
    canvas = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for title, rows in panels.items():
        draw.text((NAMES, top + 6), title, fill=INK)
        top += HEAD
        ends = [abs(value) for row in rows.values() for value in row if math.isfinite(value)]
        scale = (WIDTH - RIGHT - NUMBER - NAMES) / (max(ends, default=0.0) or 1.0)
        for name, (mean, low, high) in rows.items():
            middle = top + ROW // 2
            draw.text((6, middle - 6), name[:36], fill=INK)
            end = float(NAMES)
            if math.isfinite(mean):
                draw.rectangle((NAMES, top + 3, NAMES + abs(mean) * scale, top + ROW - 3), fill=CURVE)
                end = NAMES + abs(mean) * scale
            if math.isfinite(low) and math.isfinite(high):
                left, right = (NAMES + abs(value) * scale for value in (low, high))
                draw.line((left, middle, right, middle), fill=INK)
                end = max(end, right)
            draw.text((end + 6, middle - 6), f"{mean:.2f}", fill=INK)
            top += ROW
        draw.line((NAMES, top - ROW * len(rows), NAMES, top), fill=FAINT)
        top += GAP
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)

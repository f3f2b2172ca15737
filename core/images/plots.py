"""A small picture of an inversion: residual of every step on a log scale, network evaluations below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..inversion import Inversion

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, GAP, BOTTOM = 56, 12, 24, 40, 26
INK, FAINT, CURVE, WORST, BARS = (40, 40, 40), (225, 225, 225), (30, 100, 200), (200, 70, 40), (90, 160, 110)


def inversion_plot(inversion: Inversion, tolerance: float | None = None) -> Tensor:
    """Plot mean (blue) and worst (red) residual and u of every step; returns an image ``[H, W, 3]`` fp32 in 0..1.

    Args:
        tolerance: drawn as a line across the residuals when given.

    Steps whose residual was not measured (NaN) are left out; an exact step (residual 0) sits on the lower edge. Of a
    noise-regularised inversion, variance and correlation of the predicted noise are drawn instead.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    split = TOP + (HEIGHT - TOP - GAP - BOTTOM) * 3 // 5
    if "correlation_before" in inversion.info and not inversion.residuals.isfinite().any():
        _whiteness(draw, inversion.info, (TOP, split))
    else:
        _residuals(draw, inversion.residuals.double(), tolerance, (TOP, split))
    _costs(draw, inversion, (split + GAP, HEIGHT - BOTTOM))
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


def _column(step: float, steps: int) -> float:
    """Horizontal centre of a step."""
    return LEFT + (WIDTH - LEFT - RIGHT) * (step + 0.5) / steps


def _frame(draw: ImageDraw.ImageDraw, title: str, rows: tuple[int, int]) -> None:
    draw.rectangle((LEFT, rows[0], WIDTH - RIGHT, rows[1]), outline=INK)
    draw.text((LEFT, rows[0] - 15), title, fill=INK)


def _residuals(draw: ImageDraw.ImageDraw, residuals: Tensor, tolerance: float | None, rows: tuple[int, int]) -> None:
    curves = [(residuals.mean(1).tolist(), CURVE), (residuals.amax(1).tolist(), WORST)]
    levels = [value for values, _ in curves for value in values if value > 0 and math.isfinite(value)]
    if not levels:
        known = bool(residuals.isfinite().any())
        _frame(draw, "residual (mean square): " + ("0 at every step" if known else "not measured"), rows)
        return
    levels += [tolerance] if tolerance else []
    low, high = math.floor(math.log10(min(levels))), math.ceil(math.log10(max(levels)))
    high = max(high, low + 1)

    def height(value: float) -> float:
        exponent = max(math.log10(value), low) if value > 0 else low
        return rows[1] - (rows[1] - rows[0]) * (exponent - low) / (high - low)

    stride = max(1, math.ceil((high - low) / 6))
    for exponent in range(low, high + 1, stride):
        draw.line((LEFT, height(10.0**exponent), WIDTH - RIGHT, height(10.0**exponent)), fill=FAINT)
        draw.text((8, height(10.0**exponent) - 6), f"1e{exponent}", fill=INK)
    if tolerance:
        draw.line((LEFT, height(tolerance), WIDTH - RIGHT, height(tolerance)), fill=INK)
    for values, colour in reversed(curves):
        points = [(_column(i, len(values)), height(v)) for i, v in enumerate(values) if math.isfinite(v)]
        for start, end in pairwise(points):
            draw.line((*start, *end), fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    _frame(draw, "residual (mean square) of each step: mean blue, worst red", rows)


def _whiteness(draw: ImageDraw.ImageDraw, info: Mapping[str, Any], rows: tuple[int, int]) -> None:
    """Variance and neighbour correlation of each step's predicted noise, before and after regularisation."""
    curves = [
        (info[f"{figure}_{when}"], c)
        for when, c in (("before", WORST), ("after", CURVE))
        for figure in ("variance", "correlation")
    ]
    values = [0.0, 1.0, *(value for curve, _ in curves for value in curve)]
    low, high = min(values) - 0.1, max(values) + 0.1

    def height(value: float) -> float:
        return rows[1] - (rows[1] - rows[0]) * (value - low) / (high - low)

    for level in (0, 1):
        draw.line((LEFT, height(level), WIDTH - RIGHT, height(level)), fill=FAINT)
        draw.text((8, height(level) - 6), str(level), fill=INK)
    for curve, colour in curves:
        points = [(_column(step, len(curve)), height(value)) for step, value in enumerate(curve)]
        draw.line(points, fill=colour, width=2)
    _frame(draw, "variance (white: 1) and correlation (white: 0) of the noise: before red, after blue", rows)


def _costs(draw: ImageDraw.ImageDraw, inversion: Inversion, rows: tuple[int, int]) -> None:
    costs = inversion.forward_evaluations.double().mean(1)
    steps = inversion.steps
    top = max(1.0, float(costs.max()))
    half = (WIDTH - LEFT - RIGHT) / steps * 0.4
    for step, cost in enumerate(costs.tolist()):
        x = _column(step, steps)
        draw.rectangle((x - half, rows[1] - (rows[1] - rows[0]) * cost / top, x + half, rows[1]), fill=BARS)
    draw.text((8, rows[0] - 6), f"{top:.3g}", fill=INK)
    draw.text((8, rows[1] - 12), "0", fill=INK)
    sigmas = inversion.sigmas
    draw.text((LEFT, rows[1] + 6), f"sigma {float(sigmas[0]):.3g}", fill=INK)
    end = f"sigma {float(sigmas[-1]):.3g}"
    draw.text((WIDTH - RIGHT - draw.textlength(end), rows[1] + 6), end, fill=INK)
    title = f"u (network evaluations) of each step: {inversion.evaluations:.1f} per image"
    if inversion.backward_passes:
        title += f", and {inversion.backward_passes:.1f} backward"
    _frame(draw, title, rows)

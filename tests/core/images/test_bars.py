"""Bars: lengths as the figures, intervals where they are, nothing drawn that is not a number."""

import math

import pytest
import torch

from semantic_editing.core.images.bars import HEAD, ROW, bars_plot
from semantic_editing.core.images.plots import CURVE, INK

NAN = float("nan")


def lengths(image, colour, top):
    """Pixels of a colour in each of two rows of a panel, at the height of a bar's upper third."""
    wanted = torch.tensor(colour) / 255
    return [int((image[top + HEAD + ROW * row + 4] == wanted).all(-1).sum()) for row in range(2)]


def test_bars_are_as_long_as_the_figures_and_each_panel_has_its_own_scale():
    image = bars_plot({
        "PSNR": {"a": (20.0, NAN, NAN), "b": (5.0, NAN, NAN)},
        "MSE": {"a": (0.01, NAN, NAN), "b": (0.02, NAN, NAN)},
    })  # fmt: skip
    first, second = lengths(image, CURVE, 0)
    assert first - 1 == pytest.approx(4 * (second - 1), abs=4)
    half, whole = lengths(image, CURVE, image.shape[0] // 2)
    assert whole - 1 == pytest.approx(2 * (half - 1), abs=2) and whole == pytest.approx(first, abs=1)


def test_an_interval_lies_from_low_to_high_and_an_infinite_mean_has_no_bar():
    image = bars_plot({"PSNR": {"a": (10.0, 5.0, 20.0), "b": (math.inf, NAN, NAN)}})
    assert lengths(image, CURVE, 0)[1] == 0
    line = (image[HEAD + ROW // 2] == torch.tensor(INK) / 255).all(-1).nonzero().flatten()
    bar = (image[HEAD + 4] == torch.tensor(CURVE) / 255).all(-1).nonzero().flatten()
    start, reach = int(bar[0]), int(bar[-1] - bar[0])
    drawn = set(line.tolist())
    assert start + reach // 2 + 2 in drawn and start + 2 * reach - 2 in drawn  # 5 and 20 at the scale of 10
    assert start + reach // 2 - 4 not in drawn


def test_no_figures_are_an_empty_picture():
    assert bars_plot({}).min() == 1

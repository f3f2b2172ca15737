"""The plot shows what the figures say: colours at the right places, nothing where nothing was measured."""

import pytest
import torch

from semantic_editing.core.denoiser import ModelIdentity
from semantic_editing.core.images.plots import BARS, CURVE, inversion_plot
from semantic_editing.core.inversion import Inversion


def inversion(residuals, forward):
    residuals, forward = torch.tensor(residuals), torch.tensor(forward)
    steps, batch = residuals.shape
    return Inversion(
        torch.zeros(steps + 1, batch, 4, 8, 8),
        torch.arange(1, steps + 2) / 10,
        residuals,
        forward,
        torch.zeros_like(forward),
        ModelIdentity("toy", 4, "eps"),
        "test",
    )


def pixels(image, colour):
    return ((image * 255).round().int() == torch.tensor(colour)).all(-1)


def test_is_an_image():
    image = inversion_plot(inversion([[1e-6, 1e-5]] * 5, [[1, 2]] * 5))
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1


def test_smaller_residual_is_drawn_lower_and_more_evaluations_higher():
    image = inversion_plot(inversion([[1e-3], [1e-3], [1e-7], [1e-7]], [[1], [1], [4], [4]]))
    left, right = image[:, : image.shape[1] // 2], image[:, image.shape[1] // 2 :]

    def mean_row(part):  # the mean curve hides under the worst curve for one image, so look at both colours
        return pixels(part, CURVE).nonzero()[:, 0].float().mean()

    assert mean_row(left) < mean_row(right)
    assert pixels(left, BARS).sum() * 3 < pixels(right, BARS).sum()


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_unmeasured_or_exact_residuals_draw_no_curve(value):
    image = inversion_plot(inversion([[value]] * 3, [[1]] * 3))
    assert not pixels(image, CURVE).any() and pixels(image, BARS).any()


def test_single_step_and_tolerance_line():
    plain = inversion_plot(inversion([[1e-6]], [[2]]))
    lined = inversion_plot(inversion([[1e-6]], [[2]]), tolerance=5e-6)
    assert not torch.equal(plain, lined)

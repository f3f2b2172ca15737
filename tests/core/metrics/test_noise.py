"""Noise measures against values worked out by hand."""

import pytest
import torch

from semantic_editing.core.denoiser import ModelIdentity
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.noise import noise_gap, noise_statistics

EPS, FLOW = ModelIdentity("toy", 4, "eps"), ModelIdentity("toy", 4, "flow")


def test_gap_is_the_mean_square_in_unit_variance_units():
    generated = torch.zeros(2, 3, 4, 2, 2)
    inverted = generated + torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
    sigmas = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(noise_gap(inverted, generated, sigmas, EPS), torch.tensor([1 / 1.25, 9 / 5]).double())
    torch.testing.assert_close(noise_gap(inverted, generated, sigmas, FLOW), torch.tensor([1.0, 9.0]).double())


def test_gap_refuses_other_grids():
    with pytest.raises(EditingError, match="same grid"):
        noise_gap(torch.zeros(3, 1, 4, 2, 2), torch.zeros(2, 1, 4, 2, 2), torch.ones(3), EPS)


def test_statistics_of_white_noise_and_of_what_is_not():
    white = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    figures = noise_statistics(white)
    assert abs(figures["std"] - 1) < 0.02 and abs(figures["kurtosis"] - 3) < 0.1
    assert max(abs(figures[key]) for key in ("mean", "correlation", "channel_correlation")) < 0.03
    rows = white[..., :1].expand_as(white)  # equal along a row: fully correlated across, white down
    assert noise_statistics(rows)["correlation"] == pytest.approx(0.5, abs=0.05)
    assert noise_statistics(white[:, :1].expand_as(white))["channel_correlation"] == pytest.approx(1.0, abs=1e-6)
    assert noise_statistics(white.sign())["kurtosis"] == pytest.approx(1.0, abs=0.01)

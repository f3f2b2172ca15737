"""Autocorrelation losses against loops and finite differences; the regularised inversion against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.noise import neighbour_correlation
from semantic_editing.core.pix2pix_zero import autocorrelation as ac
from semantic_editing.core.pix2pix_zero.autocorr_inversion import (
    AutocorrSettings,
    autocorr_invert,
    regularise,
    regularise_as_released,
)
from semantic_editing.core.sampling import reconstruct
from semantic_editing.tests.core.oracles import ClosedFormDenoiser, GaussianDenoiser, sd_sigmas


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blurred(*shape, seed=0):
    noise = randn(*shape, seed=seed)
    noise = noise + 0.5 * (noise.roll(1, -1) + noise.roll(1, -2)) + 0.25 * noise.roll((1, 1), (-2, -1))
    return noise / noise.std() * math.sqrt(0.9)


def average(level, gain):
    """2x2 averages by indexing."""
    return (level[..., ::2, ::2] + level[..., 1::2, ::2] + level[..., ::2, 1::2] + level[..., 1::2, 1::2]) / 4 * gain


def brute_pair(noise, draw=None, gain=2.0):
    """Pair loss by explicit rolls; ``draw(c, h, w)`` gives shifts for rows and columns, None averages over all."""
    levels = [noise]
    while (
        min(levels[-1].shape[-2:]) % 2 == 0
        and min(levels[-1].shape[-2:]) // 2 >= 8
        and max(levels[-1].shape[-2:]) % 2 == 0
    ):
        levels.append(average(levels[-1], gain))
    total = 0
    for level in reversed(levels):
        channels, height, width = level.shape[1:]
        drawn = draw(channels, height, width) if draw else None
        for axis, size in ((2, height), (3, width)):
            for channel in range(channels):
                shifts = [int(drawn[axis - 2][channel])] if drawn else range(1, size)
                one = level[:, channel : channel + 1]
                total = total + sum((one * one.roll(s, axis)).mean((1, 2, 3)) ** 2 for s in shifts) / len(shifts)
    return total


@pytest.mark.parametrize(
    ("height", "width", "levels"),
    [(64, 64, 4), (16, 16, 2), (8, 8, 1), (16, 8, 1), (96, 72, 4), (90, 64, 2), (4, 4, 1)],
)
def test_pyramid_stops_at_eight_or_at_an_odd_side(height, width, levels):
    assert ac.pyramid_levels(height, width) == levels


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 16), (9, 8)])
def test_all_shifts_by_fft_equal_the_loop(height, width):
    noise = randn(2, 2, height, width).requires_grad_()
    reference = brute_pair(noise)
    (expected,) = torch.autograd.grad(reference.sum(), noise)
    loss, gradient = ac.pair_loss(noise.detach())
    torch.testing.assert_close(loss, reference.detach())
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("shifts", [ac.random_shifts, ac.released_shifts])
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_drawn_shifts_equal_the_loop(shifts, gain):
    noise = randn(2, 3, 16, 32).requires_grad_()
    reference = brute_pair(noise, shifts(torch.Generator().manual_seed(5)), gain)
    (expected,) = torch.autograd.grad(reference.sum(), noise)
    loss, gradient = ac.pair_loss(noise.detach(), shifts(torch.Generator().manual_seed(5)), gain)
    torch.testing.assert_close(loss, reference.detach())
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("loss_of", [ac.pair_loss, ac.kl_loss])
def test_gradients_are_finite_differences(loss_of):
    noise = 0.7 * randn(1, 2, 16, 16) + 0.1
    gradient = loss_of(noise)[1]
    for index in [(0, 0, 0, 0), (0, 1, 7, 3), (0, 0, 15, 8)]:
        nudge = torch.zeros_like(noise)
        nudge[index] = 1e-5
        slope = (loss_of(noise + nudge)[0] - loss_of(noise - nudge)[0]) / 2e-5
        assert float(slope) == pytest.approx(float(gradient[index]), rel=1e-5)


def test_random_shifts_stay_in_range_and_released_ones_share_an_axis():
    down, across = ac.random_shifts(torch.Generator().manual_seed(0))(2000, 16, 8)
    assert set(down.tolist()) == set(range(1, 16)) and set(across.tolist()) == set(range(1, 8))
    down, across = ac.released_shifts(torch.Generator().manual_seed(0))(2000, 16, 16)
    assert torch.equal(down, across) and set(down.tolist()) == set(range(1, 8))


def test_every_level_of_white_noise_has_variance_one():
    level = randn(4, 4, 128, 128)
    for _ in range(3):
        level = ac.coarser(level)
        assert float(level.var()) == pytest.approx(1, abs=0.1)


def test_constant_map_is_penalised_far_above_white_noise():
    white = randn(1, 4, 32, 32)
    assert ac.pair_loss(torch.ones_like(white))[0] > 100 * ac.pair_loss(white)[0]


def test_kl_of_known_moments():
    noise = randn(1, 4, 16, 16)
    noise = (noise - noise.mean()) / noise.var(unbiased=False).sqrt()
    assert float(ac.kl_loss(noise)[0]) == pytest.approx(0, abs=1e-12)
    assert float(ac.kl_loss(noise * 2 + 3)[0]) == pytest.approx(4 + 9 - 1 - math.log(4))


def test_neighbour_correlation_of_a_moving_average():
    white = randn(8, 4, 64, 64)
    smooth = white + white.roll(1, -1)  # correlation 1/2 across, 0 down
    assert float(neighbour_correlation(white).mean()) == pytest.approx(0, abs=0.02)
    assert float(neighbour_correlation(smooth).mean()) == pytest.approx(0.25, abs=0.02)


def test_kl_pulls_the_variance_to_one():
    noise = randn(1, 4, 16, 16)
    noise = noise / noise.var().sqrt() * math.sqrt(0.8) + 0.1
    pulled = regularise(noise, weight_pair=0)
    assert float(pulled.var()) == pytest.approx(1, abs=2e-3) and abs(float(pulled.mean())) < 0.01


@pytest.mark.parametrize("size", [16, 64])
def test_variance_survives_the_pair_loss(size):
    """With the pyramid's factor 2 the pair loss alone lowers the variance; the KL weight 20 gives it back."""
    noise = blurred(2, 4, size, size)
    alone, both = regularise(noise, weight_kl=0), regularise(noise)
    before = noise.flatten(1).var(1)
    assert (alone.flatten(1).var(1) < before).all()
    assert (both.flatten(1).var(1) - 1).abs().max() < 0.01
    for result in (alone, both):
        assert (ac.pair_loss(result)[0] < 0.5 * ac.pair_loss(noise)[0]).all()
        assert (neighbour_correlation(result) < neighbour_correlation(noise)).all()


def test_white_noise_is_nearly_a_fixed_point():
    white, correlated = randn(2, 4, 64, 64), blurred(2, 4, 64, 64)
    moved = [(regularise(x, weight_kl=0) - x).norm() / x.norm() for x in (white, correlated)]
    assert moved[0] < 0.03 and moved[0] < moved[1]


def test_strongly_correlated_maps_do_not_overshoot():
    flat = 0.5 + 0.01 * randn(1, 4, 64, 64)
    result = regularise(flat)
    assert float(result.var()) == pytest.approx(1, abs=0.05)
    assert ac.pair_loss(result)[0] < 0.01 * ac.pair_loss(flat)[0]


def test_released_regularisation_hardly_changes_the_noise():
    """No factor 2 and a KL of order 1/elements: on 64x64 latents the released code moves correlated noise by about a
    percent.
    """
    noise = blurred(1, 4, 64, 64)
    shifts = ac.released_shifts(torch.Generator().manual_seed(0))
    result = regularise_as_released(noise, shifts, weight_pair=20, weight_kl=20, iterations=5)
    assert 0 < float((result - noise).norm() / noise.norm()) < 0.02
    assert float(result.var()) == pytest.approx(float(noise.var()), abs=0.01)


def gaussian_amplitude(std, steps, legacy):
    """Round-trip amplitude by scalar recursion in unit-variance (VP) latents, from the papers' own update formula."""
    sigmas = sd_sigmas()
    alphas = 1 / (1 + sigmas**2)
    stride = 1000 // steps
    times = [1 + stride * k for k in range(steps)]

    def eps(z, a):
        return (1 - a).sqrt() * z / (a * std**2 + 1 - a)

    def move(z, e, a, b):
        return b.sqrt() * (z - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e

    z = torch.tensor(1.0, dtype=torch.float64)
    if legacy:  # pix2pix-zero: first and last timestep dropped, each update one stride above the latent's level
        for t in times[1:-1]:
            z = move(z, eps(z, alphas[t]), alphas[t - 1], alphas[t - 1 + stride])
    else:
        levels = [0, *times]
        for low, high in pairwise(levels):
            z = move(z, eps(z, alphas[high]), alphas[low], alphas[high])
    levels = [0, *times][::-1]
    for high, low in pairwise(levels):
        z = move(z, eps(z, alphas[high]), alphas[high], alphas[low])
    return float(z)


TABLE = {"consistent": {1: 0.9992, 0.3: 0.9103, 0.1: 0.6363}, "released": {1: 0.9547, 0.3: 0.8213, 0.1: 0.4933}}


@pytest.mark.parametrize("preset", TABLE)
@pytest.mark.parametrize("std", [1, 0.3, 0.1])
def test_grid_of_each_preset_has_its_closed_form_round_trip(preset, std):
    denoiser = GaussianDenoiser(std)
    latent = std * randn(2, 4, 16, 16)
    inversion = autocorr_invert(denoiser, latent, None, settings=AutocorrSettings(0, 0, preset=preset))
    back = reconstruct(denoiser, inversion, None)
    amplitude = float((back * latent).sum() / latent.square().sum())
    assert amplitude == pytest.approx(gaussian_amplitude(std, 50, preset == "released"), abs=2e-6)
    assert amplitude == pytest.approx(TABLE[preset][std], abs=1e-4)
    assert inversion.evaluations == (48 if preset == "released" else 50)
    assert torch.equal(inversion.latents[0], latent) and torch.equal(inversion.sigmas, denoiser.sigma_grid(50))


@pytest.mark.parametrize("shifts", ["random", "all"])
def test_info_reports_what_the_regularisation_did(shifts):
    denoiser, latent = GaussianDenoiser(1.0), blurred(2, 4, 16, 16)
    inversion = autocorr_invert(denoiser, latent, None, 6, AutocorrSettings(shifts=shifts))
    info = inversion.info
    assert info["pyramid_levels"] == 2
    assert all(len(info[f"{f}_{w}"]) == 6 for f in ("correlation", "variance") for w in ("before", "after"))
    assert all(
        after < before for before, after in zip(info["correlation_before"], info["correlation_after"], strict=True)
    )
    # At low sigma the oracle predicts noise of variance near 0; there growth is limited, later the variance is 1.
    assert all(abs(v - 1) < 0.02 for v in info["variance_after"][2:])
    assert inversion.evaluations == 6 and torch.isnan(inversion.residuals).all()
    low, high = inversion.sigmas[:2].double().tolist()
    seen = latent * math.sqrt((1 + high**2) / (1 + low**2))
    first = (seen - denoiser.x0(seen, torch.tensor(high).double(), None)) / high
    assert info["variance_before"][0] == pytest.approx(float(first.flatten(1).var(1).mean()), rel=1e-4)


def test_same_seed_same_noise_and_batch_equals_singles():
    latent = blurred(3, 4, 16, 16).float()
    run = [
        autocorr_invert(GaussianDenoiser(1.0), latent, None, 4, AutocorrSettings(seed=seed)).noise for seed in (1, 1, 2)
    ]
    assert torch.equal(run[0], run[1]) and not torch.equal(run[0], run[2])
    single = autocorr_invert(GaussianDenoiser(1.0), latent[1:2], None, 4, AutocorrSettings(seed=1)).noise
    torch.testing.assert_close(run[0][1:2], single)


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    autocorr_invert(GaussianDenoiser(1.0), torch.zeros(1, 4, 8, 8), None, steps=3)
    assert torch.equal(before, torch.get_rng_state())


class FlowGaussian(ClosedFormDenoiser):
    """Exact denoiser of N(0, 1) data under ``x = (1 - sigma) x0 + sigma noise``."""

    def __init__(self):
        super().__init__("flow")

    def x0(self, x, sigma, cond):
        return x * (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)

    def sigma_grid(self, steps):
        return torch.linspace(0, 1, steps + 1)


def test_flow_models_regularise_their_noise():
    latent = blurred(1, 4, 16, 16)
    plain = autocorr_invert(FlowGaussian(), latent, None, 10, AutocorrSettings(0, 0))
    white = autocorr_invert(FlowGaussian(), latent, None, steps=10)
    assert neighbour_correlation(white.noise) < neighbour_correlation(plain.noise)
    x, levels = latent, torch.linspace(0, 1, 11).tolist()  # plain explicit inversion by hand
    for low, high in pairwise(levels):
        x = x + (high - low) * (x - FlowGaussian().x0(x, high, None)) / high
    torch.testing.assert_close(plain.noise, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "other"}, "preset"),
        ({"shifts": "some"}, "shifts"),
        ({"weight_pair": -1}, "negative"),
        ({"preset": "released", "shifts": "all"}, "released preset"),
        ({"preset": "released", "steps": 2}, "3 to 500"),
        ({"steps": 0}, "steps is 0"),
        ({"sigmas": torch.tensor([0.1, 0.1])}, "repeat"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, words):
    run = {"steps": 4} | {name: value for name, value in options.items() if name in ("steps", "sigmas")}
    with pytest.raises(EditingError, match=words):
        settings = AutocorrSettings(**{name: value for name, value in options.items() if name not in run})
        autocorr_invert(GaussianDenoiser(1.0), torch.zeros(1, 4, 8, 8), None, settings=settings, **run)


def test_released_preset_refuses_flow_models():
    with pytest.raises(EditingError, match="flow model"):
        autocorr_invert(FlowGaussian(), torch.zeros(1, 4, 8, 8), None, settings=AutocorrSettings(preset="released"))


def test_nan_names_the_step():
    class Broken(GaussianDenoiser):
        def x0(self, x, sigma, cond):
            return super().x0(x, sigma, cond) * (float("nan") if len(self.calls) == 3 else 1)

    with pytest.raises(EditingError, match="step 3"):
        autocorr_invert(Broken(1.0), torch.zeros(1, 4, 8, 8), None, steps=4)


def test_callback_sees_every_evaluation_and_can_cancel():
    seen = []
    autocorr_invert(GaussianDenoiser(1.0), torch.zeros(1, 4, 8, 8), None, steps=4, callback=seen.append)
    assert [p.step for p in seen] == [0, 1, 2, 3] and all(p.steps == 4 for p in seen)

    def cancel(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        autocorr_invert(GaussianDenoiser(1.0), torch.zeros(1, 4, 8, 8), None, steps=4, callback=cancel)

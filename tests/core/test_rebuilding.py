"""How exact an inversion is said to be: decibels from known errors, sentences, the check, and the source's own path."""

import math

import pytest
import torch

from semantic_editing.core.denoiser import euler_step
from semantic_editing.core.rebuilding import (
    SourcePath,
    check_rebuild,
    estimated_decibels,
    latent_decibels,
    plain_sentence,
    short_of_noise,
)
from semantic_editing.core.spdinv.invert import invert, spdinv
from semantic_editing.core.spdinv.solvers import SPDInvSettings
from semantic_editing.tests.core.oracles import GaussianDenoiser


def latent(batch=2):
    return 0.3 * torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_decibels_are_those_of_a_picture_of_that_range():
    clean = torch.zeros(1, 1, 2, 2)
    clean[..., 0] = 2.0
    assert float(latent_decibels(torch.tensor([0.04]), clean)) == pytest.approx(10 * math.log10(4 / 0.04))


@pytest.mark.parametrize(
    ("decibels", "words"),
    [
        (61.0, "will not see"),
        (45.0, "will not see"),
        (44.0, "hard to see"),
        (30.0, "side by side"),
        (12.0, "different"),
    ],
)
def test_sentences_change_where_they_should(decibels, words):
    sentence = plain_sentence(torch.tensor([decibels]), about=False)
    assert sentence.startswith(f"Rebuilds at {decibels:.0f} dB: ") and words in sentence
    several = plain_sentence(torch.tensor([70.0, decibels, 80.0]), about=True)
    assert f"about {decibels:.0f} dB (lowest of 3 images, number 2): " in several and words in several


@pytest.mark.parametrize("solver", ["auto", "one_evaluation", "fixed_point"])
def test_estimate_and_check_agree(solver):
    """On Gaussian data no error grows, and the steps' estimated misses are at worst a little small."""
    denoiser = GaussianDenoiser(0.3)
    inversion = invert(denoiser, latent(), None, 20, solver)
    before = denoiser.evaluations.forward
    check = check_rebuild(denoiser, inversion, None)
    assert check.evaluations == 20 and denoiser.evaluations.forward == before + 40
    error = (check.rebuilt - latent()).square().mean((1, 2, 3))
    torch.testing.assert_close(check.latent_decibels, latent_decibels(error, latent()))
    estimate = estimated_decibels(inversion)
    assert (estimate > 20).all() and (estimate - check.latent_decibels < 10).all()


def test_what_was_not_measured_is_not_estimated():
    assert estimated_decibels(invert(GaussianDenoiser(0.3), latent(), None, 5, "ddim")) is None
    measured = spdinv(GaussianDenoiser(0.3), latent(), None, 5, SPDInvSettings("ddim", check_residual=True))
    assert estimated_decibels(measured).shape == (2,)


def test_few_steps_that_end_before_noise_are_named():
    denoiser = GaussianDenoiser(0.3)
    for steps, short in ((3, True), (10, True), (20, False), (50, False)):
        inversion = invert(denoiser, latent(1), None, steps, "ddim")
        sentence = short_of_noise(inversion, 14.6)
        assert bool(sentence) is short
        assert not short or f"sigma {float(inversion.sigmas[-1]):.3g}" in sentence


def test_the_source_path_lands_on_the_image_whatever_the_solver():
    denoiser = GaussianDenoiser(0.3)
    inversion = invert(denoiser, latent(), None, 6, "ddim")
    path, x = SourcePath(denoiser, inversion), inversion.latents[-1]
    before = denoiser.evaluations.forward
    for level in range(inversion.steps, 0, -1):
        sigma, sigma_next = float(inversion.sigmas[level]), float(inversion.sigmas[level - 1])
        x = euler_step(x, path.denoised(x, level), sigma, sigma_next)
    torch.testing.assert_close(x, latent(), rtol=0, atol=1e-12)
    assert denoiser.evaluations.forward == before
    plain = check_rebuild(denoiser, inversion, None).rebuilt
    assert float((plain - latent()).square().mean()) > 1e-6

"""DPM-Solver++(2M): the sampler against its published form, and an inversion that it undoes."""

import math
from itertools import pairwise

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.sampling import reconstruct, sample_dpmpp_2m
from semantic_editing.core.spdinv.multistep import invert_dpmpp_2m
from semantic_editing.core.spdinv.solvers import SPDInvSettings
from semantic_editing.tests.core.oracles import GaussianDenoiser


def latent(batch=2):
    return 0.3 * torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def published(predict, x, sigmas):
    """The paper's Algorithm 2 in k-diffusion's words: time is minus log sigma."""
    old, last = None, None
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = predict(x, sigma, step)
        if sigma_next == 0:
            x = denoised
            continue
        h = math.log(sigma) - math.log(sigma_next)
        if old is None:
            x = sigma_next / sigma * x - math.expm1(-h) * denoised
        else:
            r = last / h
            x = sigma_next / sigma * x - math.expm1(-h) * ((1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old)
        old, last = denoised, h
    return x


@pytest.mark.parametrize("sigmas", [[9.0, 4.0, 1.5, 0.4, 0.03], [9.0, 2.0, 0.5, 0.0], [3.0, 1.0]])
def test_sampler_is_the_published_one(sigmas):
    denoiser = GaussianDenoiser(0.3)
    start = latent() * 9
    torch.testing.assert_close(
        sample_dpmpp_2m(lambda x, sigma, _: denoiser(x, sigma, None), start, sigmas),
        published(lambda x, sigma, _: denoiser(x, sigma, None), start, sigmas),
    )


@pytest.mark.parametrize("steps", [5, 12])
def test_the_sampler_comes_back_to_the_image(steps):
    denoiser, x = GaussianDenoiser(0.3), latent()
    inversion = invert_dpmpp_2m(denoiser, x, None, steps, SPDInvSettings())
    assert int(inversion.forward_evaluations.sum()) == denoiser.evaluations.forward
    back = sample_dpmpp_2m(
        lambda y, sigma, _: denoiser(y, sigma, None), inversion.latents[-1], inversion.sigmas.flip(0).tolist()
    )
    assert torch.equal(back, reconstruct(denoiser, inversion, None))
    missed = (back - x).square().mean((1, 2, 3))
    assert (missed < 3e-5).all() and (missed < 10 * torch.tensor(inversion.info["rebuild_error"])).all()
    assert inversion.info["sampler"] == "dpmpp_2m"
    assert torch.equal(inversion.latents[0], x) and inversion.latents.shape == (steps + 1, 2, 4, 8, 8)


def test_only_auto_solves_it():
    with pytest.raises(EditingError, match="auto alone"):
        invert_dpmpp_2m(GaussianDenoiser(0.3), latent(), None, 5, SPDInvSettings("ddim"))

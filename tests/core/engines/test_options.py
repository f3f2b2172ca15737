"""Proximal guidance, background keep and the preset of SPDInv's released code."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from semantic_editing.core.denoiser import euler_step
from semantic_editing.core.engines.engine import thresholded
from semantic_editing.core.engines.plug_and_play import PlugAndPlay, PlugAndPlaySettings
from semantic_editing.core.engines.prompt_to_prompt import PromptToPrompt, WordMap, released_spdinv, released_words
from semantic_editing.core.engines.words import Alignment
from semantic_editing.core.errors import EditingError
from semantic_editing.core.sampling import edited_places
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.tests.core.tiny_models import TOKENS, tiny_conds, tiny_denoiser, tiny_latent

STEPS, CFG = 3, 4.0


@pytest.fixture(scope="module")
def given():
    denoiser, conds = tiny_denoiser(), tiny_conds()
    return denoiser, invert(denoiser, tiny_latent(2), conds[0], steps=STEPS, solver="ddim"), conds


def shrunk(difference, share):
    """Soft thresholding of each image, value by value."""
    made, thresholds = np.zeros_like(difference), []
    for number, image in enumerate(difference):
        sizes = np.sort(np.abs(image).ravel())
        place = share * (len(sizes) - 1)
        low = int(place)
        above = sizes[min(low + 1, len(sizes) - 1)]
        threshold = sizes[low] + (place - low) * (above - sizes[low])
        thresholds.append(threshold)
        for index, value in np.ndenumerate(image):
            made[number][index] = max(abs(value) - threshold, 0) * np.sign(value)
    return made, np.array(thresholds)


def plain(given, settings, **more):
    """An engine that takes nothing from the source's network."""
    denoiser, inversion, conds = given
    settings = PlugAndPlaySettings(CFG, False, 0.0, 0.0, **settings)
    return PlugAndPlay(denoiser, inversion, *conds, settings=settings, **more)


def by_hand(given, proximal=0.0, kept_steps=0, by_guidance=False):
    denoiser, inversion, (_, target, negative) = given
    x, levels = inversion.latents[-1], inversion.sigmas.flip(0).tolist()
    for step, (sigma, lower) in enumerate(pairwise(levels)):
        with torch.no_grad():
            toward, away = denoiser(x, sigma, target), denoiser(x, sigma, negative)
        difference, threshold = shrunk((toward - away).numpy().astype(np.float64), proximal)
        difference = torch.tensor(difference).float() if proximal else toward - away
        denoised = away + CFG * difference
        x = euler_step(x, denoised, sigma, lower)
        level = STEPS - step
        if level > kept_steps:
            continue
        here, below = inversion.latents[level], inversion.latents[level - 1]
        if by_guidance:
            over = difference.abs() > torch.tensor(threshold).float().view(-1, 1, 1, 1)
            mask = torch.zeros_like(x)
            for b, c, i, j in over.nonzero().tolist():
                mask[b, c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = 1
        else:
            mask = edited_places(denoised, here - sigma * (below - here) / (lower - sigma))
        x = mask * x + (1 - mask) * below
    return x


def test_thresholding_is_that_of_each_image_value_by_value():
    values = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5, 0.1]).view(
        -1, 1, 1, 1
    )
    for share in (0.0, 0.4, 0.7, 1.0):
        made, thresholds = thresholded(values, share)
        expected, by_value = shrunk(values.numpy().astype(np.float64), share)
        torch.testing.assert_close(made, torch.tensor(expected).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(thresholds.flatten(), torch.tensor(by_value).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"proximal": 0.6}, {"proximal": 0.6}),
        ({"background_keep": 0.67}, {"kept_steps": 2}),
        ({"proximal": 0.4, "background_keep": 0.67, "by_guidance": True}, {"proximal": 0.4, "kept_steps": 2}),
    ],
)
def test_options_equal_sampling_written_out(given, settings, hand):
    expected = by_hand(given, **hand, by_guidance=settings.get("by_guidance", False))
    torch.testing.assert_close(plain(given, settings).run(STEPS), expected, rtol=1e-3, atol=1e-3)
    assert float((plain(given, {}).run(STEPS) - expected).abs().max()) > 0.02
    # A host's sampler asks step by step.
    step, x = plain(given, settings), given[1].latents[-1]
    for level in range(STEPS, 0, -1):
        sigma, lower = float(given[1].sigmas[level]), float(given[1].sigmas[level - 1])
        x = euler_step(x, step.denoised(x, level), sigma, lower)
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_a_mask_narrows_what_is_left(given):
    inversion = given[1]
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    made = plain(given, {"background_keep": 1.0}, mask=mask).run(STEPS)
    torch.testing.assert_close(made[..., 4:], inversion.latents[0][..., 4:])
    assert float((made[..., :4] - inversion.latents[0][..., :4]).abs().max()) > 0.02


def test_proximal_has_no_use_at_cfg_1(given):
    denoiser, inversion, conds = given
    on, off = (PlugAndPlaySettings(1.0, True, 0.5, 0.5, proximal=share) for share in (0.7, 0.0))
    made = [PlugAndPlay(denoiser, inversion, *conds, settings=each).run(STEPS) for each in (on, off)]
    assert torch.equal(*made)


def test_the_released_preset_keeps_the_picture_where_nothing_is_asked(given):
    """Negative-prompt inversion: target = source leaves no difference, and all goes back to the source."""
    denoiser, inversion, (source, target, _) = given
    words = WordMap(Alignment(torch.arange(TOKENS)))
    same = PromptToPrompt(denoiser, inversion, source, source, settings=released_spdinv(), words=words).run(STEPS)
    torch.testing.assert_close(same, inversion.latents[0], rtol=1e-5, atol=1e-5)
    other = PromptToPrompt(denoiser, inversion, source, target, settings=released_spdinv(), words=words).run(STEPS)
    assert float((other - inversion.latents[0]).abs().max()) > 0.02


def test_the_released_preset_doubles_the_words_of_local_blend():
    alignment = Alignment(torch.arange(TOKENS))
    assert released_words(WordMap(alignment, blend=((1,), (2, 3)))).factors.tolist() == [1, 1, 2, 2, 1, 1, 1]
    assert released_words(WordMap(alignment)).factors is None
    own = torch.full((TOKENS,), 0.5)
    assert released_words(WordMap(alignment, own, ((), (2,)))).factors is own


@pytest.mark.parametrize("name", ["proximal", "background_keep"])
def test_shares_are_checked(name):
    with pytest.raises(EditingError, match=name):
        PlugAndPlaySettings(**{name: 1.5})

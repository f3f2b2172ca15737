"""Null-text inversion: negatives under which guided sampling comes back to the image."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from semantic_editing.core.denoiser import PerLevel
from semantic_editing.core.engines.plug_and_play import PlugAndPlay, PlugAndPlaySettings
from semantic_editing.core.errors import EditingError
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.rebuilding import check_rebuild, estimated_decibels
from semantic_editing.core.sampling import plain_negative, reconstruct
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.core.spdinv.null_text import NullTextSettings, null_text
from semantic_editing.tests.core.tiny_models import tiny_conds, tiny_denoiser, tiny_latent

STEPS, CFG = 3, 7.5
SETTINGS = NullTextSettings(CFG, 15, 0.2, 0.0)


@pytest.fixture(scope="module")
def made():
    """Denoiser, source conditioning, starting negative, DDIM inversion of two latents, and the same with negatives."""
    denoiser = tiny_denoiser("sd1")
    source, _, negative = tiny_conds("sd1")
    ddim = invert(denoiser, tiny_latent(2), source, steps=STEPS, solver="ddim")
    return denoiser, source, negative, ddim, null_text(denoiser, ddim, source, {"embeds": negative}, SETTINGS)


def by_hand(denoiser, inversion, source, negatives):
    """Guided DDIM sampling with the negative of each step, written out."""
    x = inversion.latents[-1]
    with torch.no_grad():
        for step, (sigma, lower) in enumerate(pairwise(inversion.sigmas.flip(0).tolist())):
            away, toward = denoiser(x, sigma, negatives[-1 - step]), denoiser(x, sigma, source)
            slope = (x - away - CFG * (toward - away)) / sigma
            x = x + slope * (lower - sigma)
    return x


def error(x, inversion):
    return (x - inversion.latents[0]).square().flatten(1).mean(1)


def test_guided_sampling_with_the_negatives_comes_back_to_the_image(made):
    denoiser, source, negative, ddim, optimised = made
    rebuilt = by_hand(denoiser, optimised, source, optimised.null_text)
    plain = error(by_hand(denoiser, ddim, source, [negative] * STEPS), ddim)
    assert (error(rebuilt, ddim) < 0.2 * plain).all()
    torch.testing.assert_close(torch.tensor(optimised.info["rebuild_error"]), error(rebuilt, ddim), rtol=1e-3, atol=0)
    assert torch.equal(optimised.latents, ddim.latents) and optimised.null_text.shape[:2] == (STEPS, 2)
    assert optimised.cfg == CFG and "null-text" in optimised.method
    # What samples along an inversion takes each negative at its level, whichever function it is.
    own = plain_negative(optimised, source)
    torch.testing.assert_close(reconstruct(denoiser, optimised, source, CFG, own), rebuilt, rtol=1e-4, atol=1e-4)
    checked = check_rebuild(denoiser, optimised, source, CFG, own).latent_decibels
    torch.testing.assert_close(checked.float(), estimated_decibels(optimised).float(), rtol=1e-2, atol=0.1)


def test_an_engine_uses_the_negative_of_each_step(made):
    """Target = source with nothing taken: the guided way back itself; a negative of one's own replaces all."""
    denoiser, source, negative, _, optimised = made
    settings = PlugAndPlaySettings(CFG, True, 0.0, 0.0)
    same = PlugAndPlay(denoiser, optimised, source, source, settings=settings).run(STEPS)
    expected = by_hand(denoiser, optimised, source, optimised.null_text)
    torch.testing.assert_close(same, expected, rtol=1e-4, atol=1e-4)
    other = PlugAndPlay(denoiser, optimised, source, source, negative, settings=settings).run(STEPS)
    torch.testing.assert_close(other, by_hand(denoiser, optimised, source, [negative] * STEPS), rtol=1e-4, atol=1e-4)


def test_first_move_is_down_the_gradient_and_cost_is_counted(made):
    """Adam's first move is the learning rate against the sign of the gradient, here taken by finite differences."""
    _, _, negative, _, _ = made
    denoiser = tiny_denoiser("sd1", dtype=torch.float64)
    source = tiny_conds("sd1")[0]
    ddim = invert(denoiser, tiny_latent(1).double(), source.double(), steps=2, solver="ddim")
    rate = 1e-3
    settings = NullTextSettings(CFG, 2, rate, 0.0)
    optimised = null_text(denoiser, ddim, source, {"embeds": negative}, settings)
    x, (lower, sigma) = ddim.latents[-1].float(), ddim.sigmas[-2:].tolist()

    def loss(embeds):
        with torch.no_grad():
            away, toward = denoiser(x, sigma, embeds), denoiser(x, sigma, source)
            landed = x + (x - away - CFG * (toward - away)) / sigma * (lower - sigma)
        return float(((landed - ddim.latents[-2].float()) ** 2).double().mean() / (1 + lower**2))

    moved = optimised.null_text[-1] - negative
    places = [(0, 0), (3, 5), (6, 11)]
    for token, channel in places:
        nudge = torch.zeros_like(negative)
        nudge[0, token, channel] = 0.05
        slope = loss(negative + nudge) - loss(negative - nudge)
        assert float(moved[0, token, channel]) == pytest.approx(-rate * (1 if slope > 0 else -1), rel=1e-2)
    assert (optimised.forward_evaluations - ddim.forward_evaluations).tolist() == [[3], [3]]  # source, twice negative
    assert optimised.backward_evaluations.tolist() == [[1], [1]]


def test_it_stops_at_the_tolerance(made):
    denoiser, source, negative, ddim, _ = made
    easy = null_text(denoiser, ddim, source, {"embeds": negative}, replace(SETTINGS, tolerance=1e3))
    assert int(easy.backward_evaluations.sum()) == 0 and torch.equal(easy.null_text[0, :1], negative)


def test_a_file_keeps_them_and_a_damaged_one_is_refused(made, tmp_path):
    *_, optimised = made
    read = Inversion.load(optimised.save(tmp_path / "a.safetensors"))
    assert torch.equal(read.null_text, optimised.null_text) and read.cfg == CFG
    short = replace(optimised, null_text=optimised.null_text[1:]).save(tmp_path / "b.safetensors")
    with pytest.raises(EditingError, match="negatives of its steps"):
        Inversion.load(short)
    broken = replace(optimised, null_text=optimised.null_text * float("nan")).save(tmp_path / "c.safetensors")
    with pytest.raises(EditingError, match="not a number"):
        Inversion.load(broken)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"cfg": 1.0}, "cfg is 1"), ({"max_iterations": 0}, "max_iterations"), ({"learning_rate": 0.0}, "learning_rate")],
)
def test_bad_settings(options, sentence):
    with pytest.raises(EditingError, match=sentence):
        NullTextSettings(**options)


def test_an_inversion_under_guidance_is_refused(made):
    denoiser, source, negative, _, optimised = made
    with pytest.raises(EditingError, match="made at cfg 1"):
        null_text(denoiser, optimised, source, {"embeds": negative}, SETTINGS)


def test_a_level_is_found_by_its_logarithm():
    text = PerLevel(torch.tensor([0.1, 1.0, 10.0]), ["low", "middle", "high"])
    found = [text.at(sigma) for sigma in (0.05, 0.3, 0.4, torch.tensor([3.0, 3.0]), 3.3)]
    assert found == ["low", "low", "middle", "middle", "high"]

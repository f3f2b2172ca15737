"""What bounds a guided edit: its mask, Cancel, what it refuses; and the reference made from noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semantic_editing.core.denoiser import euler_step
from semantic_editing.core.diffusers.denoiser import TextCond
from semantic_editing.core.errors import EditingError
from semantic_editing.core.pix2pix_zero.guided_edit import CrossAttentionGuidance, cross_attention_guided_edit
from semantic_editing.core.sampling import latent_mask, reconstruct, reference_from_noise
from semantic_editing.tests.core.tiny_models import (
    FAMILIES,
    tiny_cond,
    tiny_conds,
    tiny_denoiser,
    tiny_latent,
    tiny_source,
)

STEPS = 3


class TestMask:
    def setup_method(self):
        self.denoiser, (self.source, self.target, self.uncond) = tiny_denoiser(), tiny_conds()
        self.inversion = tiny_source(self.denoiser)

    def edit(self, mask, **options):
        return cross_attention_guided_edit(
            self.denoiser, self.inversion, self.source, self.target, self.uncond, mask=mask, **options
        )

    def test_everywhere_is_no_mask_and_nowhere_is_the_source(self):
        assert torch.equal(self.edit(torch.ones(1, 64, 64)), self.edit(None))
        assert torch.equal(self.edit(torch.zeros(2, 8, 8)), self.inversion.latents[0])

    @pytest.mark.parametrize("preset", ["lockstep", "carried", "released"])
    def test_outside_a_half_the_source_is_exact_and_inside_it_is_edited(self, preset):
        mask = torch.zeros(1, 64, 64)
        mask[:, :, :24] = 1
        edited = self.edit(mask, preset=preset)
        assert torch.equal(edited[..., 3:], self.inversion.latents[0][..., 3:])
        assert float((edited - self.inversion.latents[0])[..., :3].abs().mean()) > 0.01

    def test_soft_values_blend_after_every_step_and_a_host_loop_does_the_same(self):
        mask = torch.linspace(0, 1, 8).expand(1, 8, 8)
        step = CrossAttentionGuidance(self.denoiser, self.inversion, self.source, self.target, self.uncond, mask=mask)
        plain = CrossAttentionGuidance(self.denoiser, self.inversion, self.source, self.target, self.uncond)
        x = host = self.inversion.latents[-1]
        for level in range(STEPS, 0, -1):
            sigmas = [float(self.inversion.sigmas[i]) for i in (level, level - 1)]
            x = mask * euler_step(x, plain.denoised(x, level), *sigmas) + (1 - mask) * self.inversion.latents[level - 1]
            host = euler_step(host, step.denoised(host, level), *sigmas)
        torch.testing.assert_close(self.edit(mask), x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(host, x, atol=1e-3, rtol=1e-4)

    def test_pixels_become_latent_pixels_by_area(self):
        mask = torch.zeros(1, 16, 32)
        mask[0, :3, 4] = 1  # 3 of the 4 * 8 pixels of one latent pixel of a 4 x 4 latent
        on_latent = latent_mask(mask, torch.zeros(2, 4, 4, 4))
        assert on_latent.shape == (1, 1, 4, 4)
        expected = torch.zeros(4, 4)
        expected[0, 0] = 3 / 32
        torch.testing.assert_close(on_latent[0, 0], expected)


class Cancelled(Exception):
    pass


def test_a_cancelled_edit_leaves_the_network_as_it_was():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion, reports = tiny_source(denoiser), []
    processors = dict(denoiser.unet.attn_processors)
    with torch.no_grad():
        before = denoiser(inversion.latents[1], 0.5, target)

    def callback(progress):
        reports.append((progress.step, progress.steps, tuple(progress.denoised.shape)))
        if len(reports) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        cross_attention_guided_edit(denoiser, inversion, source, target, uncond, callback=callback)
    assert reports == [(0, STEPS, (2, 4, 8, 8)), (1, STEPS, (2, 4, 8, 8))]
    assert all(processors[name] is now for name, now in denoiser.unet.attn_processors.items())
    with torch.no_grad():
        assert torch.equal(denoiser(inversion.latents[1], 0.5, target), before)
    assert all(p.grad is None and p.requires_grad for p in denoiser.unet.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_from_noise_is_an_exact_inversion_of_what_it_sampled(family):
    denoiser, (source, _, uncond) = tiny_denoiser(family), tiny_conds(family)
    noise, reports = tiny_latent(3, 6, 10), []
    made = reference_from_noise(denoiser, noise, source, 3.0, uncond, STEPS, callback=reports.append)
    torch.testing.assert_close(made.noise, noise)
    torch.testing.assert_close(made.sigmas, denoiser.sigma_grid(STEPS))
    assert torch.equal(reconstruct(denoiser, made, source, 3.0, uncond), made.latents[0])
    assert made.method == "generated"
    assert made.forward_evaluations.tolist() == [[2] * 3] * STEPS
    assert made.backward_evaluations.sum() == made.residuals.sum() == 0
    assert [progress.step for progress in reports] == list(range(STEPS))
    cheap = reference_from_noise(denoiser, noise, source, 1.0, None, sigmas=torch.tensor([0.1, 1.0, 8.0]))
    assert cheap.forward_evaluations.tolist() == [[1] * 3] * 2
    with pytest.raises(EditingError, match="no negative conditioning"):
        reference_from_noise(denoiser, noise, source)


REFUSALS = {
    "guidance": ({"guidance": -0.1}, "guidance is -0.1"),
    "guidance nan": ({"guidance": float("nan")}, "guidance is nan"),
    "fraction": ({"guided_fraction": 1.5}, "guided_fraction is 1.5"),
    "cfg fraction": ({"cfg_fraction": float("nan")}, "cfg_fraction is nan"),
    "local": ({"local_fraction": -0.5}, "local_fraction is -0.5"),
    "resolution": ({"resolution": "<=16"}, "all, half, quarter"),
    "reference": ({"reference": "replay"}, "inversion, reconstruction"),
    "preset": ({"preset": "published"}, "lockstep, carried, released"),
    "mask rank": ({"mask": torch.ones(8, 8)}, r"mask has shape \[8, 8\]"),
    "mask batch": ({"mask": torch.ones(3, 8, 8)}, "3 masks for 2 images"),
    "mask nan": ({"mask": torch.full((1, 8, 8), float("nan"))}, "mask is not a number"),
    "target batch": ({"target_cond": tiny_cond(batch=3)}, "3 rows and the latent 2"),
    "target length": ({"target_cond": tiny_cond(tokens=14)}, "7 tokens long and the target text 14"),
    "target width": ({"target_cond": torch.zeros(1, 7, 5)}, "own text encoder"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_unusable_settings_are_refused_in_a_sentence(name):
    change, sentence = REFUSALS[name]
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    arguments = {"source_cond": source, "target_cond": target, "uncond": uncond} | change
    with pytest.raises(EditingError, match=sentence):
        cross_attention_guided_edit(denoiser, tiny_source(denoiser), **arguments)


def test_an_inversion_of_another_model_is_refused():
    inversion, (source, target, _) = tiny_source(tiny_denoiser()), tiny_conds()
    with pytest.raises(EditingError, match="another model"):
        cross_attention_guided_edit(tiny_denoiser(seed=1), inversion, source, target)


def test_a_network_without_cross_attention_says_so_and_still_samples_unguided():
    denoiser, (source, target, uncond) = tiny_denoiser("plain"), tiny_conds()
    inversion = tiny_source(denoiser)
    with pytest.raises(EditingError, match="no cross-attention layers"):
        cross_attention_guided_edit(denoiser, inversion, source, target, uncond)
    cross_attention_guided_edit(denoiser, inversion, source, target, uncond, guidance=0.0)


def test_a_prediction_that_is_not_a_number_names_its_step():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion = tiny_source(denoiser)
    broken = target.embeds if isinstance(target, TextCond) else target.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(EditingError, match="step 1 is not a number"):
        cross_attention_guided_edit(denoiser, inversion, source, broken, uncond)
    latents = inversion.latents.clone()
    latents[1] = float("inf")
    with pytest.raises(EditingError, match="step 3 is not a number"):
        cross_attention_guided_edit(
            denoiser, replace(inversion, latents=latents), source, target, uncond, local_fraction=0.0
        )

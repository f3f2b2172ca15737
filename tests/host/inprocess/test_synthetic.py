"""A picture that the model makes up: edited from its own trajectory, and the very same where nothing is edited."""

import pytest
import torch
from conftest import comfy_model, conditioning, diffusers_unet

WIDGETS = {"guidance": 0.15, "guided_fraction": 1.0, "resolution": "all"}


@pytest.fixture
def scene(pack):
    """A tame small model, its prompt, its empty prompt and a picture of cfg 3."""
    with torch.inference_mode():
        unet = diffusers_unet("sd1")
        unet.conv_out.weight.mul_(0.05)
        model, positive, negative = comfy_model(pack, "sd1", unet), conditioning("sd1"), conditioning("sd1", 9)
        empty = {"samples": torch.zeros(2, 4, 8, 8)}
        node = pack("nodes.inversion.reference").GenerateReference
        made = node.execute(model, positive, negative, empty, seed=2, steps=6, cfg=3.0).args
    return model, positive, made[0], made[-1]["samples"]


def decibels(one, other):
    span = float(other.max() - other.min())
    return 10 * float(torch.log10(span**2 / (one - other).square().mean().clamp_min(1e-20)))


@torch.inference_mode()
@pytest.mark.parametrize("preset", ["carried", "lockstep"])
def test_without_an_edit_it_is_the_picture_itself(pack, scene, preset):
    """The guided sampler finds prompt and negative in the inversion; nothing but the target is wired."""
    model, positive, inversion, picture = scene
    sampler = pack("nodes.pix2pix_zero.guided_edit").CrossAttnGuidedSampler
    same, report = sampler.execute(model, inversion, positive, cfg=3.0, preset=preset, **WIDGETS).args[:2]
    assert decibels(same["samples"], picture) > 120 and "not rebuilt" not in report
    edited = sampler.execute(model, inversion, conditioning("sd1", 5), cfg=3.0, preset=preset, **WIDGETS).args[0]
    assert decibels(edited["samples"], picture) < 60


@torch.inference_mode()
def test_at_another_cfg_it_is_the_picture_too_and_where_not_that_is_said(pack, scene):
    model, positive, inversion, picture = scene
    sampler = pack("nodes.pix2pix_zero.guided_edit").CrossAttnGuidedSampler
    same, report = sampler.execute(model, inversion, positive, cfg=2.0, preset="carried", **WIDGETS).args
    assert decibels(same["samples"], picture) > 120 and "not rebuilt" not in report
    plain, report = sampler.execute(
        model, inversion, positive, cfg=2.0, preset="carried", local_fraction=0.0, **(WIDGETS | {"guidance": 0.0})
    ).args
    assert "made at cfg 3: at cfg 2 its image is not rebuilt" in report
    assert decibels(plain["samples"], picture) < decibels(same["samples"], picture) - 20


@torch.inference_mode()
@pytest.mark.parametrize("cfg", [3.0, 2.0, 1.0])
def test_a_real_picture_inverted_under_guidance_is_itself_without_an_edit(pack, scene, cfg):
    model, positive, _, picture = scene
    inverter = pack("nodes.inversion.spdinv").SPDInvInversion
    given = {slot.id: slot.default for slot in inverter.define_schema().inputs if hasattr(slot, "default")}
    given |= {"model": model, "positive": positive, "latent": {"samples": picture}, "steps": 6}
    given |= {"cfg": 3.0, "negative": conditioning("sd1", 9)}
    inversion = inverter.execute(**given).args[0]
    sampler = pack("nodes.pix2pix_zero.guided_edit").CrossAttnGuidedSampler
    same, report = sampler.execute(
        model, inversion, positive, cfg=cfg, preset="carried", local_fraction=0.0, **WIDGETS
    ).args
    assert decibels(same["samples"], picture) > 120 and "not rebuilt" not in report

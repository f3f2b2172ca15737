"""SPDInv Inversion's check and cfg, and Rebuild Guider, wired as a person would in SamplerCustomAdvanced."""

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from conftest import comfy_model, conditioning, diffusers_unet, noise

WIDGETS = {"steps": 5, "solver": "auto", "tolerance": 5e-6, "max_iterations": 25}


@pytest.fixture
def scene(pack, tmp_path, monkeypatch):
    """A tame small model, a latent, a prompt and a negative."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    with torch.inference_mode():
        unet = diffusers_unet("sd1")
        unet.conv_out.weight.mul_(0.05)
        model = comfy_model(pack, "sd1", unet)
    return model, {"samples": noise(2, 4, 8, 8, seed=2)}, conditioning("sd1"), conditioning("sd1", 9)


class Decoder:
    """Stands in for a VAE: three of the latent's channels, eight times as large."""

    def decode(self, samples):
        return (samples[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3) / 8 + 0.5).clamp(0, 1).movedim(1, -1)


def invert(pack, scene, **widgets):
    model, latent, positive, _ = scene
    node = pack("nodes.inversion.spdinv").SPDInvInversion
    return node.execute(model, positive, latent, **{**WIDGETS, "learning_rate": 1e-3, **widgets}).args


@torch.inference_mode()
def test_a_check_is_told_in_the_latent_and_in_pixels_and_drawn(pack, scene):
    plain, checked, decoded = (
        invert(pack, scene, **more) for more in ({}, {"check": True}, {"check": True, "vae": Decoder()})
    )
    assert torch.equal(plain[0].latents, checked[0].latents)
    assert plain[-1].startswith("Rebuilds at about ") and "checked" not in plain[-1]
    assert checked[-1].startswith("Rebuilds at ") and "checked for 5 more evaluations per image" in checked[-1]
    assert "decoded" not in checked[-1] and "decoded, " in decoded[-1]
    assert plain[-2].shape[1] < checked[-2].shape[1] and plain[-2].shape[2] == checked[-2].shape[2]
    assert "euler" in plain[-1] and "this model's noise begins at" in plain[-1]


@torch.inference_mode()
def test_a_poor_rebuild_is_warned_of(pack, scene):
    report = invert(pack, scene, solver="ddim", steps=2, check=True)[-1]
    assert "Below 45 dB (latent)" in report and "Rebuild Guider" in report


@torch.inference_mode()
def test_inversion_under_guidance_needs_its_negative_and_says_its_cfg(pack, scene):
    with pytest.raises(Exception, match="negative conditioning"):
        invert(pack, scene, cfg=2.0)
    inversion, *_, report = invert(pack, scene, cfg=2.0, negative=scene[3], check=True)
    assert inversion.info["cfg"] == 2.0 and "at cfg 2;" in report and "checked for 10 more" in report
    assert not report.startswith("Rebuilds at about")


@pytest.mark.parametrize("solver", ["auto", "ddim"])
@torch.inference_mode()
def test_rebuild_guider_lands_on_the_image_with_the_stock_sampler(pack, scene, solver):
    model, latent = scene[:2]
    inversion, start, sigmas, still, *_ = invert(pack, scene, solver=solver)
    guider = pack("nodes.inversion.rebuild").RebuildGuider.execute(model, inversion).args[0]
    node = SamplerCustomAdvanced()
    run = getattr(node, "sample", None) or node.execute
    for _ in range(2):
        rebuilt = run(still, guider, comfy.samplers.sampler_object("euler"), sigmas, start)[0]["samples"]
        torch.testing.assert_close(rebuilt, latent["samples"], rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="euler"):
        run(still, guider, comfy.samplers.sampler_object("heun"), sigmas, start)

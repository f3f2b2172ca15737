"""Null-Text Inversion in the host: its negatives in stock samplers and in the pack's own, SD1 and SDXL."""

import pytest
import torch
from conftest import comfy_model, conditioning, diffusers_unet, noise
from test_recording import guided, invert, node, stock

CFG, STEPS = 4.0, 3


@pytest.fixture(autouse=True)
def as_in_a_prompt():
    with torch.inference_mode():
        yield


def left(made, latent):
    """Mean square of each image."""
    return (made - latent).square().flatten(1).mean(1)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_guided_samplers_come_back_to_the_image(pack, family):
    model = comfy_model(pack, family, diffusers_unet(family))
    positive, negative = conditioning(family, 1), conditioning(family, 2)
    latent = {"samples": noise(2, 4, 8, 8) / model.model.latent_format.scale_factor}
    ddim, start, sigmas, *_ = invert(pack, model, latent, positive, steps=STEPS, solver="ddim")
    settings = {"cfg": CFG, "max_iterations": 15, "learning_rate": 0.2, "tolerance": 0.0}
    inversion, negatives, report = node(
        pack, "inversion.null_text", "NullTextInversion", model=model, inversion=ddim, negative=negative, **settings
    )
    assert len(negatives) == STEPS and f"way back: sampler euler on these sigmas at cfg {CFG:g}" in report
    assert inversion.null_text.shape[:2] == (STEPS, 2)
    expected = torch.tensor(inversion.info["rebuild_error"])

    def away(made):
        return left(made * model.model.latent_format.scale_factor, ddim.latents[0])

    rebuilt = stock(model, CFG, start, sigmas, positive, negatives)
    torch.testing.assert_close(away(rebuilt), expected, rtol=1e-2, atol=1e-5)
    assert (expected < 0.2 * away(stock(model, CFG, start, sigmas, positive, negative))).all()
    own = guided(pack, model, inversion, positive, cfg=CFG)[0]["samples"]
    torch.testing.assert_close(own, rebuilt, rtol=1e-3, atol=1e-3)
    with torch.inference_mode(False):
        assert not any(p.grad is not None for p in model.model.diffusion_model.parameters())


def test_each_negative_holds_for_its_own_level(pack):
    """The host's own ranges: at each level exactly one of the negatives is read."""
    model = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([0.03, 0.2, 1.1, 7.0, 14.6])
    made = pack("nodes.host.conditioning").per_level_conditioning(model, torch.randn(5, 1, 7, 12), sigmas)
    ranges = [[float(sampling.percent_to_sigma(o[f"{end}_percent"])) for end in ("start", "end")] for _, o in made]
    for number, sigma in enumerate(sigmas.flip(0).tolist()):
        assert [low <= sigma <= high for high, low in ranges] == [place == number for place in range(5)]
    assert ranges[0][0] > 1e6 and ranges[-1][1] == 0.0

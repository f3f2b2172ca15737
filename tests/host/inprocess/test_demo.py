"""The demo model's MODEL, CLIP and VAE under stock nodes, against diffusers and transformers on the same files."""

from itertools import pairwise

import comfy.samplers
import numpy as np
import pytest
import torch
from conftest import PACK, noise
from latent_preview import Latent2RGBPreviewer

import nodes

CAPTIONS = ["a portrait of a person with glasses", "a face, smiling, with short black hair", ""]

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")


@pytest.fixture(scope="module")
def ours(pack):
    with torch.inference_mode():
        return pack("nodes.demo.comfy_model").load_demo_model()


@pytest.fixture(scope="module")
def theirs(pack):
    return pack("core.demo.model").load_demo_model()


def close(a, b, tolerance=1e-4):
    return float((a - b).norm() / b.norm()) < tolerance


@torch.inference_mode()
def test_text_encodes_alike(ours, theirs):
    for caption in CAPTIONS:
        ((embeds, _),) = nodes.CLIPTextEncode().encode(ours[1], caption)[0]
        assert embeds.shape == (1, 77, theirs.unet.config.cross_attention_dim)
        assert close(embeds, theirs.encode_text([caption]))


@pytest.mark.parametrize(("height", "width", "batch"), [(128, 128, 1), (64, 96, 3)])
@torch.inference_mode()
def test_vae_agrees_both_ways(ours, theirs, height, width, batch):
    images = noise(batch, 3, height, width).sigmoid()
    latent = nodes.VAEEncode().encode(ours[2], images.movedim(1, -1))[0]["samples"]
    scale = ours[0].model.latent_format.scale_factor
    assert latent.shape == (batch, 4, height // 8, width // 8)
    assert close(latent * scale, theirs.encode_image(images))
    decoded = nodes.VAEDecode().decode(ours[2], {"samples": latent})[0]
    assert decoded.shape == (batch, height, width, 3)
    assert close(decoded.movedim(-1, 1), theirs.decode(latent * scale))


@pytest.mark.parametrize(("height", "width", "batch"), [(16, 16, 1), (8, 12, 3)])
@torch.inference_mode()
def test_denoised_and_identity_agree(pack, ours, theirs, height, width, batch):
    denoiser = theirs.denoiser()
    cond = nodes.CLIPTextEncode().encode(ours[1], CAPTIONS[0])[0]
    x = noise(batch, 4, height, width) * 3

    def work(session):
        grid = session.denoiser.sigma_grid(20)
        torch.testing.assert_close(
            grid, denoiser.sigma_grid(20), rtol=1e-3, atol=0
        )  # fp32 against fp64 in 1 - alpha near 1
        return [(float(s), session.denoiser(x, float(s), session.conds["positive"])) for s in grid[1::5]]

    for sigma, denoised in pack("nodes.host.sampling").run(ours[0], {"samples": x}, {"positive": cond}, work):
        assert close(denoised, denoiser(x, sigma, theirs.encode_text([CAPTIONS[0]])))
    assert pack("nodes.host.identity").identity(ours[0]).mismatch(denoiser.identity) is None


@torch.inference_mode()
def test_stock_ksampler_paints_what_diffusers_paints(ours, theirs):
    """Text to image at cfg 3 by the stock KSampler against a DDIM loop written out with diffusers' network."""
    model, clip, _ = ours
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (CAPTIONS[0], ""))
    start = {"samples": torch.zeros(1, 4, 16, 16)}
    result = nodes.common_ksampler(model, 7, 6, 3.0, "euler", "ddim_uniform", positive, negative, start)[0]["samples"]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 6).tolist()
    x = (
        torch.randn(1, 4, 16, 16, generator=torch.manual_seed(7)) * sigmas[0]
    )  # sigmas[0] is below sigma_max: no extra scaling
    denoiser = theirs.denoiser()
    cond, uncond = theirs.encode_text([CAPTIONS[0]]), theirs.encode_text([""])
    for sigma, following in pairwise(sigmas):
        guided, plain = denoiser(x, sigma, cond), denoiser(x, sigma, uncond)
        x = x + (x - (plain + 3.0 * (guided - plain))) / sigma * (following - sigma)
    assert close(result * model.model.latent_format.scale_factor, x, 1e-3)


@torch.inference_mode()
def test_preview_shows_the_picture(ours, theirs):
    """The quick latent-to-RGB preview of a demo picture against the picture itself, averaged to the latent's size."""
    pictures = theirs.images[:8].float()
    latent = theirs.encode_image(pictures)
    latent_format = ours[0].model.latent_format
    previewer = Latent2RGBPreviewer(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    shown = torch.stack(
        [torch.from_numpy(np.array(previewer.decode_latent_to_preview(one[None]))).float() / 255 for one in latent]
    )
    expected = torch.nn.functional.avg_pool2d(pictures, 8).movedim(1, -1)
    assert shown.shape == expected.shape
    assert (shown - expected).square().mean() < 0.3 * expected.var()


def test_missing_assets_are_said_in_a_sentence(pack, tmp_path):
    demo = pack("nodes.demo.comfy_model")
    with pytest.raises(ValueError, match="install the pack again"):
        demo.load_demo_model(tmp_path / "absent")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"vae/config\.json cannot be read"):
        demo.load_demo_model(tmp_path)


@pytest.mark.parametrize("height,width,said", [(96, 96, "768 x 768"), (24, 24, "192 x 192"), (8, 34, "272 x 64")])
def test_a_picture_too_large_for_the_demo_model_is_refused_at_once(pack, ours, height, width, said):
    """By every node of the pack: it would take minutes and no edit would come out. Its clones know it, too."""
    fitted = pack("nodes.host.latents").fitted_latent
    model = ours[0].clone()
    for sides in ((16, 16), (20, 20), (11, 23)):  # the last: a crop of 1 to 2 of the model's area
        assert fitted(model, {"samples": torch.zeros(1, 4, *sides)})["samples"].shape == (1, 4, *sides)
    with pytest.raises(pack("core.errors").EditingError) as caught:
        fitted(model, {"samples": torch.zeros(1, 4, height, width)})
    first, _, rest = str(caught.value).partition("; ")
    assert first == f"The demo model draws 128 x 128 pixels and this picture has {said}"
    assert rest.startswith("scale it to 128 x 128 (Upscale Image, or working_size where a node has it)")

"""The same weights in ComfyUI and in diffusers: denoised output, attention sites, identity, CFG arithmetic."""

import comfy.samplers
import pytest
import torch
from conftest import comfy_model, conditioning, diffusers_unet, noise

SIZES = [(8, 8, 1), (8, 12, 3)]


def reference(family, unet, x, sigma, cond):
    """The denoised latent by the formulas of the papers (DDPM eps, Salimans & Ho v) on diffusers' network."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    table = ((1 - alphas) / alphas).sqrt()
    t = (table.log() - torch.tensor(sigma).double().log()).abs().argmin()
    extra = {}
    embeds, options = cond[0]
    if family == "sdxl":
        height, width = x.shape[2] * 8, x.shape[3] * 8
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(len(x), -1)
        extra = {"added_cond_kwargs": {"text_embeds": options["pooled_output"].expand(len(x), -1), "time_ids": ids}}
    scale = (1 + sigma**2) ** -0.5
    out = unet(x * scale, t, encoder_hidden_states=embeds.expand(len(x), -1, -1), **extra).sample
    return x - sigma * out if family != "sd2" else x * scale**2 - out * sigma * scale


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(("height", "width", "batch"), SIZES)
def test_denoised_equals_diffusers(pack, models, family, height, width, batch):
    pair = models(family)
    cond = conditioning(family)
    latent = {"samples": noise(batch, 4, height, width)}
    x = noise(batch, 4, height, width, seed=3) * 2

    def work(session):
        grid = session.denoiser.sigma_grid(10)
        return [
            (float(s), session.denoiser(x, float(s), session.conds["positive"])) for s in (grid[1], grid[5], grid[-1])
        ]

    with torch.inference_mode():
        results = pack("nodes.host.sampling").run(pair.model, latent, {"positive": cond}, work)
        for sigma, denoised in results:
            expected = reference(family, pair.unet, x, sigma, cond)
            assert (denoised - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(("height", "width", "batch"), SIZES)
def test_bf16_agrees_with_fp32(pack, models, family, height, width, batch):
    """bf16 storage with fp32 latents: 8 bits of mantissa through about 30 layers."""
    pair = models(family)
    half = comfy_model(pack, family, pair.unet, torch.bfloat16)
    cond, x = conditioning(family), noise(batch, 4, height, width, seed=4)
    out = [
        pack("nodes.host.sampling").run(
            m, {"samples": x}, {"positive": cond}, lambda s: s.denoiser(x, 2.0, s.conds["positive"])
        )
        for m in (pair.model, half)
    ]
    assert out[1].dtype == torch.float32
    error = (out[0] - out[1]).norm() / out[0].norm()
    assert 0 < error < 3e-2


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_identity_equals_diffusers(pack, models, family):
    """The value that lets an INVERSION travel between the CLI and ComfyUI."""
    from diffusers import DDIMScheduler

    backend = pack("core.diffusers.denoiser")
    pair = models(family)
    kind = "v_prediction" if family == "sd2" else "epsilon"
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    theirs = backend.DiffusersDenoiser(pair.unet, scheduler).identity
    assert pack("nodes.host.identity").identity(pair.model).mismatch(theirs) is None
    assert pack("nodes.host.identity").identity(pair.model).signature == theirs.signature


def test_identity_ignores_lora_and_tells_other_weights(pack, models):
    pair = models("sd1")
    lora = pair.model.clone()
    key = "diffusion_model.input_blocks.0.0.weight"
    lora.add_patches({key: ("diff", (torch.ones(32, 4, 3, 3),))})
    before = pack("nodes.host.identity").identity(pair.model)
    during = pack("nodes.host.sampling").run(
        lora,
        {"samples": noise(1, 4, 8, 8)},
        {"positive": conditioning("sd1")},
        lambda s: (s.denoiser.identity, pack("nodes.host.identity").identity(lora)),
    )
    assert [before.mismatch(i) for i in during] == [None, None]
    other = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    with torch.no_grad():
        other.model.diffusion_model.input_blocks[0][0].weight.mul_(1.5)
    assert before.mismatch(pack("nodes.host.identity").identity(other)).startswith("other weights: ")


@pytest.mark.parametrize("tokens", [(7, 7), (7, 14)])
def test_cfg_is_bit_equal_to_stock(pack, models, tokens):
    """[cond, uncond] in one call, as CFGGuider does it, also when the prompts have different lengths."""
    model = models("sd1").model
    conds = {
        name: conditioning("sd1", seed, n)
        for seed, (name, n) in enumerate(zip(("positive", "negative"), tokens, strict=True))
    }
    x = noise(3, 4, 8, 12) * 3
    latent = torch.zeros_like(x)

    def work(session):
        guided = pack("core.sampling").guided
        return guided(session.denoiser, x, 3.0, session.conds["positive"], session.conds["negative"], 5.0)

    ours = pack("nodes.host.sampling").run(model, {"samples": latent}, conds, work)
    seen = []

    class Probe(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, *rest, **named):
            seen.append(model_wrap(x, torch.full((3,), 3.0), **extra_args))
            return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds["positive"], conds["negative"])
    guider.set_cfg(5.0)
    guider.sample(latent, latent, Probe(), torch.tensor([3.0, 0.0]), seed=0)
    assert torch.equal(ours, seen[0])


def test_u_is_counted_by_rows(pack, models):
    model = models("sd1").model
    conds = {"positive": conditioning("sd1"), "negative": conditioning("sd1", 9)}
    x = noise(3, 4, 8, 8)

    def work(session):
        session.denoiser.batch(x, 1.0, [session.conds["positive"], session.conds["negative"]])
        session.denoiser(x[:1], 1.0, session.denoiser.select(session.conds["positive"], torch.tensor([2])))
        return session.denoiser.evaluations

    counted = pack("nodes.host.sampling").run(model, {"samples": x}, conds, work)
    assert (counted.forward, counted.backward) == (7, 0)


def test_select_is_a_row_of_the_batch(pack, models):
    """A conditioning of its own for every image: rows 2 and 0 alone equal rows 2 and 0 of the whole, each at its own
    sigma.
    """
    model = models("sdxl").model
    conds = {"positive": conditioning("sdxl", batch=3)}
    x, rows, sigma = noise(3, 4, 8, 8), torch.tensor([2, 0]), torch.tensor([1.0, 2.0, 5.0])

    def work(session):
        cond = session.conds["positive"]
        return session.denoiser(x, sigma, cond), session.denoiser(
            x[rows], sigma[rows], session.denoiser.select(cond, rows)
        )

    whole, part = pack("nodes.host.sampling").run(model, {"samples": x}, conds, work)
    torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(part[0], whole[0], atol=1e-2)


def test_select_refuses_a_controlnet_with_one_hint_per_image(pack):
    """Its hints stay in the ControlNet, in the order of the whole batch; rows of it would get another image's hint."""
    from types import SimpleNamespace

    denoiser = pack("nodes.host.denoiser")
    inner = SimpleNamespace(cond_hint_original=torch.zeros(2, 3, 8, 8), previous_controlnet=None)
    outer = SimpleNamespace(cond_hint_original=torch.zeros(1, 3, 8, 8), previous_controlnet=inner)
    cond = [{"model_conds": {}, "control": outer}]
    with pytest.raises(ValueError, match="one at a time"):
        denoiser.ComfyDenoiser.select(None, cond, torch.tensor([1]))
    inner.cond_hint_original = inner.cond_hint_original[:1]
    assert denoiser.ComfyDenoiser.select(None, cond, torch.tensor([1]))[0]["control"] is outer

"""The pack's algorithms on every family of ComfyUI models, under inference mode, against the stock sampler."""

import comfy.samplers
import pytest
import torch
from conftest import comfy_model, conditioning, diffusers_unet, flow_model, noise

SHAPES = {"sd1": (1, 4, 8, 8), "sd2": (3, 4, 8, 12), "sdxl": (1, 4, 12, 8), "flow": (3, 16, 8, 12)}
FAMILIES = ("sd1", "sd2", "sdxl")
LATENTS = [(1, 4, 8, 8), (3, 4, 4, 6)]


def build(pack, family, dtype=torch.float32):
    """A model as tame as a trained one: the fixed point of a step exists and iterations reach it."""
    if family == "flow":
        return flow_model()
    unet = diffusers_unet(family)
    unet.conv_out.weight.mul_(0.05)
    return comfy_model(pack, family, unet, dtype)


def stock_euler(model, cond, noise_latent, latent, sigmas, cfg=1.0, negative=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond, negative or cond)
    guider.set_cfg(cfg)
    return guider.sample(noise_latent, latent, comfy.samplers.sampler_object("euler"), sigmas, seed=0)


@pytest.mark.parametrize(("family", "solver"), [*((family, "auto") for family in SHAPES), ("sd1", "gradient")])
@torch.inference_mode()
def test_inversion_is_undone_by_the_stock_sampler(pack, family, solver):
    """Within the tolerance (auto), SamplerCustomAdvanced's way of sampling comes back to the latent."""
    model, cond = build(pack, family), conditioning(family)
    latent = {"samples": noise(*SHAPES[family], seed=2)}

    def work(session):
        options = {"steps": 6, "solver": solver, "tolerance": 1e-7, "max_iterations": 25 if solver == "auto" else 2}
        inversion = pack("core.spdinv.invert").invert(
            session.denoiser, session.latent, session.conds["positive"], callback=session.callback(), **options
        )
        return (
            inversion,
            pack("core.sampling").reconstruct(session.denoiser, inversion, session.conds["positive"]),
            session.latent.clone(),
        )

    inversion, rebuilt, clean = pack("nodes.host.sampling").run(model, latent, {"positive": cond}, work, gradients=True)
    assert not inversion.latents.requires_grad and not inversion.latents.is_inference()
    start, sigmas = inversion.latents[-1], pack("nodes.host.latents").sigmas_out(inversion.sigmas)
    if family == "flow":
        generated = (
            pack("nodes.host.latents").noise_object(start, float(inversion.sigmas[-1]), model).generate_noise(latent)
        )
        stock = stock_euler(model, cond, generated, latent["samples"], sigmas)
    else:
        stock = stock_euler(
            model,
            cond,
            torch.zeros_like(start),
            pack("nodes.host.latents").latent_from_model(model, start)["samples"],
            sigmas,
        )
    torch.testing.assert_close(
        pack("nodes.host.latents").latent_to_model(model, {"samples": stock}), rebuilt, rtol=1e-3, atol=1e-3
    )
    if solver == "auto":
        # A residual of r (mean square, unit-variance units) misses the level before by sqrt(r) * sqrt(1 + sigma^2) rms;
        # they add up.
        levels = inversion.sigmas[:-1]
        reach = (1e-7 * (torch.ones_like(levels) if family == "flow" else 1 + levels**2)).sqrt().sum()
        assert float((rebuilt - clean).square().mean().sqrt()) < 2 * float(reach)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", LATENTS)
@torch.inference_mode()
def test_guided_edit_in_one_node_and_as_guider(pack, family, shape):
    """guidance 0 is the stock euler at that cfg; with guidance the GUIDER under the stock euler makes the node's
    latent, and bf16 weights make nearly the same one."""
    guidance = pack("core.pix2pix_zero.guided_edit")
    model = build(pack, family)
    conds = {"positive": conditioning(family, 4), "source": conditioning(family), "negative": conditioning(family, 9)}
    latent = {"samples": noise(*shape, seed=2)}
    inversion = pack("nodes.host.sampling").run(
        model,
        latent,
        conds,
        lambda s: pack("core.spdinv.invert").invert(
            s.denoiser, s.latent, s.conds["source"], steps=2, solver="fixed_point"
        ),
        gradients=True,
    )

    def edit(strength, model=model):
        def work(session):
            c = session.conds
            return guidance.cross_attention_guided_edit(
                session.denoiser,
                inversion,
                c["source"],
                c["positive"],
                c["negative"],
                cfg=3.0,
                guidance=strength,
                local_fraction=0.0,
            )

        return pack("nodes.host.latents").latent_from_model(
            model, pack("nodes.host.sampling").run(model, latent, conds, work, gradients=True)
        )["samples"]

    def prepare(session):
        c = session.conds
        step = guidance.CrossAttentionGuidance(
            session.denoiser,
            inversion,
            c["source"],
            c["positive"],
            c["negative"],
            guidance.CrossAttentionSettings(3.0, 5.0, local_fraction=0.0),
        )
        return lambda x, sigma: step.denoised(x, inversion.level_of(sigma))

    start = pack("nodes.host.latents").latent_from_model(model, inversion.latents[-1])["samples"]
    sigmas = pack("nodes.host.latents").sigmas_out(inversion.sigmas)
    stock = stock_euler(model, conds["positive"], torch.zeros_like(start), start, sigmas, 3.0, conds["negative"])
    plain, guided = edit(0.0), edit(5.0)
    torch.testing.assert_close(plain, stock, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guided, plain, atol=1e-2)
    guider = pack("nodes.host.sampling").DenoiserGuider(model, conds, prepare, gradients=True)
    by_guider = guider.sample(torch.zeros_like(start), start, comfy.samplers.sampler_object("euler"), sigmas, seed=0)
    torch.testing.assert_close(by_guider, guided, rtol=1e-3, atol=1e-3)
    half = edit(5.0, build(pack, family, torch.bfloat16))
    assert half.dtype == torch.float32
    assert 0 < (half - guided).norm() < 0.2 * (plain - guided).norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", LATENTS)
@torch.inference_mode()
def test_bf16_model_inverts(pack, family, shape):
    """bf16 weights: the trajectory stays fp32 and near that of fp32 weights, and reconstruction is as good as 8 bits of
    mantissa allow."""

    def work(session):
        inversion = pack("core.spdinv.invert").invert(
            session.denoiser, session.latent, session.conds["positive"], steps=2
        )
        return (
            inversion,
            pack("core.sampling").reconstruct(session.denoiser, inversion, session.conds["positive"]),
            session.latent.clone(),
        )

    latent, conds = {"samples": noise(*shape, seed=2)}, {"positive": conditioning(family)}
    half, exact = (
        pack("nodes.host.sampling").run(build(pack, family, t), latent, conds, work, gradients=True)
        for t in (torch.bfloat16, torch.float32)
    )
    inversion, rebuilt, clean = half
    assert inversion.latents.dtype == torch.float32
    assert (rebuilt - clean).norm() < 0.1 * clean.norm()
    assert 0 < (inversion.noise - exact[0].noise).norm() < 0.03 * exact[0].noise.norm()

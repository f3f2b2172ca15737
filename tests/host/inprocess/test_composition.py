"""LoRA, ControlNet, regional prompts, other packs' model functions: through the seam they act exactly as in the stock
sampler, and gradients pass through them, though all of it was made and loaded under inference mode."""

from itertools import pairwise

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_model_advanced import RescaleCFG
from conftest import CPU, comfy_model, conditioning, diffusers_unet, noise

X = noise(2, 4, 16, 16) * 3
SIGMA = 3.0


def with_lora(model, conds):
    patched = model.clone()
    network = model.model.diffusion_model
    keys = ["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "middle_block.0.in_layers.2.weight"]
    for key in keys:
        weight = dict(network.named_parameters())[key]
        patched.add_patches({f"diffusion_model.{key}": ("diff", (0.3 * noise(*weight.shape, seed=5),))}, 0.7)
    return patched, conds


def with_controlnet(model, conds):
    shape = {
        k: v
        for k, v in model.model.model_config.unet_config.items()
        if k not in ("out_channels", "dtype", "num_classes")
    }
    network = comfy.cldm.cldm.ControlNet(
        **shape, hint_channels=3, dtype=torch.float32, device=CPU, operations=comfy.ops.manual_cast
    )
    generator = torch.Generator().manual_seed(6)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    control = comfy.controlnet.ControlNet(network, load_device=CPU, manual_cast_dtype=torch.float32)
    hinted = control.copy().set_cond_hint(noise(1, 3, 128, 128).sigmoid(), 0.8, (0.0, 1.0))
    return model, {
        name: [[embeds, {**options, "control": hinted, "control_apply_to_uncond": False}]]
        for name, ((embeds, options),) in conds.items()
    }


def with_regions(model, conds):
    ((embeds, options),) = conditioning("sd1", 4)
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    regions = [
        [embeds, {**options, "area": (8, 16, 4, 0), "strength": 0.7}],
        [embeds + 1, {**options, "mask": mask, "mask_strength": 1.0}],
    ]
    return model, conds | {"positive": conds["positive"] + regions}


def with_model_function(model, conds):
    patched = model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"]) * 1.1
    )
    return patched, conds


def with_rescaled_cfg(model, conds):
    return RescaleCFG().patch(model, 0.7)[0], conds


def with_cfg_patches(model, conds):
    """Patches before and after the combination that read all they are given, one evaluating the model again (as PAG
    does).
    """

    def before(given):
        positive, negative = given["conds_out"]
        return [positive, negative * 0.9 + given["input"] / (1 + given["sigma"].view(-1, 1, 1, 1))]

    def after(given):
        (again,) = comfy.samplers.calc_cond_batch(
            given["model"], [given["cond"]], given["input"] * 1.1, given["sigma"], given["model_options"]
        )
        return (
            given["denoised"]
            + 0.1 * given["cond_scale"] * (given["cond_denoised"] - again)
            + 0.01 * given["uncond_denoised"]
        )

    patched = model.clone()
    patched.set_model_sampler_pre_cfg_function(before)
    patched.set_model_sampler_post_cfg_function(after)
    return patched, conds


@pytest.mark.parametrize(
    "feature", [with_lora, with_controlnet, with_regions, with_model_function, with_rescaled_cfg, with_cfg_patches]
)
@torch.inference_mode()
def test_composes_like_the_stock_sampler_and_differentiates(pack, feature):
    guided = pack("core.sampling").guided
    base = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    plain_conds = {"positive": conditioning("sd1"), "negative": conditioning("sd1", 9)}
    seen = []

    class Probe(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, *rest, **named):
            seen.append(model_wrap(X, torch.full((2,), SIGMA), **extra_args))
            return X

    def stock(model, conds):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conds["positive"], conds["negative"])
        guider.set_cfg(4.0)
        guider.sample(torch.zeros_like(X), torch.zeros_like(X), Probe(), torch.tensor([SIGMA, 0.0]), seed=0)
        return seen[-1]

    def evaluate(session, x):
        return guided(session.denoiser, x, SIGMA, session.conds["positive"], session.conds["negative"], 4.0)

    def differentiate(session):
        direction = noise(*X.shape, seed=8)
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(evaluate(session, x).double().square().sum(), [x])
        with torch.no_grad():
            above, below = (evaluate(session, X + step * direction).double().square().sum() for step in (1e-2, -1e-2))
        return float((gradient * direction).sum()), float(above - below) / 2e-2

    without = stock(base, plain_conds)
    model, conds = feature(base, plain_conds)
    expected = stock(model, conds)  # also loads LoRA and ControlNet under inference mode
    assert not torch.allclose(expected, without, atol=1e-3), "the feature does nothing here"
    assert torch.equal(
        pack("nodes.host.sampling").run(model, {"samples": torch.zeros_like(X)}, conds, lambda s: evaluate(s, X)),
        expected,
    )
    analytic, numeric = pack("nodes.host.sampling").run(
        model, {"samples": torch.zeros_like(X)}, conds, differentiate, gradients=True
    )
    assert abs(analytic - numeric) < 1e-2 * abs(numeric)
    assert torch.equal(stock(model, conds), expected)
    assert torch.equal(stock(base, plain_conds), without)


@torch.inference_mode()
def test_guidance_patches_reach_sampling_back_and_the_edit(pack):
    """With RescaleCFG the rebuilt and the edited latent are those of its formula, written out here."""
    guidance_of = pack("core.pix2pix_zero.guided_edit")
    plain = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    model = RescaleCFG().patch(plain, 0.7)[0]
    conds = {"positive": conditioning("sd1"), "negative": conditioning("sd1", 9)}
    x = noise(1, 4, 8, 8, seed=3)

    def results(session):
        positive, negative = session.conds["positive"], session.conds["negative"]
        inversion = pack("core.spdinv.invert").invert(session.denoiser, x, positive, steps=3, solver="ddim")
        again = pack("core.sampling").reconstruct(session.denoiser, inversion, positive, 4.0, negative)
        edited = guidance_of.cross_attention_guided_edit(
            session.denoiser, inversion, positive, positive, negative, cfg=4.0, guidance=0.0, local_fraction=0.0
        )
        return inversion, again, edited

    def by_hand(session, inversion):
        state, levels = inversion.latents[-1], inversion.sigmas.flip(0).tolist()
        for sigma, lower in pairwise(levels):
            scaled = (1 + sigma**2) ** 0.5
            outputs = session.denoiser.batch(state, sigma, [session.conds["positive"], session.conds["negative"]])
            positive, negative = (
                (state / scaled**2 - denoised) * scaled / sigma for denoised in outputs
            )  # v-prediction
            guided = negative + 4.0 * (positive - negative)
            guided = 0.7 * guided * positive.std() / guided.std() + 0.3 * guided
            state = state + (state - (state / scaled**2 - guided * sigma / scaled)) / sigma * (lower - sigma)
        return state

    latent = {"samples": x}
    inversion, again, edited = pack("nodes.host.sampling").run(model, latent, conds, results)
    expected = pack("nodes.host.sampling").run(plain, latent, conds, lambda session: by_hand(session, inversion))
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(pack("nodes.host.sampling").run(plain, latent, conds, results)[1], again, atol=1e-2), (
        "the patch does nothing here"
    )


def test_dynamic_vram_models_are_replaced_by_their_static_copy(pack):
    """Where weights stream through a shared buffer, gradients run on the host's non-dynamic delegate and nothing else
    does.
    """
    import comfy.model_patcher

    asked = []

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

        def get_non_dynamic_delegate(self):
            asked.append(self)
            return static

    static = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    model = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    model.__class__ = Dynamic
    x = noise(1, 4, 8, 8)
    patchers = [
        pack("nodes.host.sampling").run(
            model,
            {"samples": x},
            {"positive": conditioning("sd1")},
            lambda s: s.denoiser.base.current_patcher,
            gradients=g,
        )
        for g in (False, True)
    ]
    assert patchers[0] is model and patchers[1] is static and asked == [model]

    def refuse(self):
        raise RuntimeError("Cannot create non-dynamic delegate: cached_patcher_init is not initialized.")

    Dynamic.get_non_dynamic_delegate = refuse
    with pytest.raises(ValueError, match="--disable-dynamic-vram"):
        pack("nodes.host.sampling").run(
            model, {"samples": x}, {"positive": conditioning("sd1")}, lambda s: None, gradients=True
        )

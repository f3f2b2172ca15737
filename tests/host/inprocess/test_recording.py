"""What an INVERSION depends on, in the host: other weights, LoRAs, negatives, masks, rows of a batch, guidance patches,
step caches, latents of other shapes. Each is used as the stock nodes use it, refused in a sentence, or in the report.
"""

import importlib
from dataclasses import replace

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models_base
import pytest
import torch
from conftest import CPU, comfy_model, conditioning, diffusers_unet, node, noise

import nodes

POSITIVE, NEGATIVE, OTHER = (conditioning("sd1", seed) for seed in (1, 2, 3))
SCALE = 0.18215


@pytest.fixture
def model(pack):
    with torch.inference_mode():
        return comfy_model(pack, "sd1", diffusers_unet("sd1"))


@pytest.fixture(autouse=True)
def as_in_a_prompt():
    with torch.inference_mode():
        yield


def stock_node(module, name, *given):
    cls = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    made = cls.execute(*given) if hasattr(cls, "define_schema") else getattr(cls(), cls.FUNCTION)(*given)
    return (made if isinstance(made, tuple) else made.args)[0]


def invert(pack, model, latent=None, positive=POSITIVE, **given):
    latent = {"samples": noise(1, 4, 8, 8) / SCALE} if latent is None else latent
    settings = {"steps": 4, "solver": "anderson", "tolerance": 1e-10, "max_iterations": 60} | given
    return node(pack, "inversion.spdinv", "SPDInvInversion", model=model, positive=positive, latent=latent, **settings)


def guided(pack, model, inversion, target=POSITIVE, **given):
    settings = {"cfg": 1.0, "guidance": 0.0, "local_fraction": 0.0} | given
    return node(
        pack, "pix2pix_zero.guided_edit", "CrossAttnGuidedSampler", model=model, inversion=inversion, target=target,
        **settings,
    )  # fmt: skip


def stock(model, cfg, latent, sigmas, positive=POSITIVE, negative=NEGATIVE):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    start = latent["samples"]
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(torch.zeros_like(start), start, euler, sigmas, disable_pbar=True, seed=0)


def merged(model_of, key="transformer_blocks"):
    """The same checkpoint with a low-rank matrix added to its attention weights, first and last layer as they were."""
    made = model_of()
    for name, weight in made.model.diffusion_model.named_parameters():
        if key in name and weight.ndim == 2:
            low = noise(weight.shape[0], 1, seed=4) @ noise(1, weight.shape[1], seed=5)
            weight.data = weight.data + 0.3 * weight.std() * low
    return made


def lora(model, strength=0.5):
    patched = model.clone()
    name, weight = next(
        (name, weight)
        for name, weight in model.model.diffusion_model.named_parameters()
        if name.endswith("attn2.to_k.weight")
    )
    patched.add_patches({f"diffusion_model.{name}": ("diff", (0.3 * noise(*weight.shape, seed=5),))}, strength)
    return patched


def test_a_merged_lora_is_another_model_and_an_applied_one_is_a_remark(pack, model):
    inversion = invert(pack, model)[0]
    other = merged(lambda: comfy_model(pack, "sd1", diffusers_unet("sd1")))
    with pytest.raises(ValueError, match="another model") as refused:
        guided(pack, other, inversion)
    own = pack("nodes.host.identity").identity
    assert own(model).weights.code in str(refused.value) and own(other).weights.code in str(refused.value)
    with_lora = lora(model)
    report = guided(pack, with_lora, inversion)[1]
    assert "LoRA or the like on 1 weights" in report and "no LoRA or patch" in report
    assert "LoRA" not in guided(pack, model, inversion)[1]
    again = invert(pack, with_lora)[0]
    assert "rebuilt less" not in guided(pack, lora(model), again)[1]  # equal patches, made anew
    assert "rebuilt less" in guided(pack, lora(model, 0.6), again)[1]


def test_fp8_weights_are_inverted_and_edited_and_are_a_model_of_their_own(pack, model):
    """Stored in 8 bits and computed in fp32, as the host loads such files."""
    small = comfy_model(pack, "sd1", diffusers_unet("sd1"), torch.float8_e4m3fn, torch.float32)
    assert {w.dtype for w in small.model.diffusion_model.parameters()} == {torch.float8_e4m3fn}
    apart = {}
    for solver in ("ddim", "anderson"):
        inversion, start, sigmas, *_ = invert(pack, small, solver=solver)
        rebuilt = stock(small, 1.0, start, sigmas)
        apart[solver] = float((rebuilt * SCALE - inversion.latents[0]).norm())
    assert apart["anderson"] < 0.25 * apart["ddim"]
    edited, _ = guided(pack, small, inversion, target=OTHER, cfg=2.0, guidance=0.1)
    assert torch.isfinite(edited["samples"]).all() and not torch.allclose(edited["samples"], rebuilt, atol=1e-2)
    with pytest.raises(ValueError, match="another model"):
        guided(pack, model, inversion)


def test_the_print_is_of_the_checkpoint_while_a_lora_is_applied(pack, model):
    own = pack("nodes.host.identity").identity
    before, patched = own(model), lora(model)
    inside = pack("nodes.host.sampling").run(
        patched, {"samples": noise(1, 4, 8, 8)}, {"positive": POSITIVE}, lambda session: own(patched)
    )
    assert inside.weights.hash == before.weights.hash and inside.patches != before.patches == ""


def test_a_print_is_never_stale(pack, model):
    own = pack("nodes.host.identity").identity
    before = own(model)
    with torch.no_grad():
        model.model.diffusion_model.middle_block[0].in_layers[2].weight.mul_(1.5)
    assert before.mismatch(own(model)).startswith("other weights")


@pytest.mark.parametrize("guidance", [0.0, 0.1])
def test_a_made_up_picture_is_its_own_edit(pack, model, guidance):
    """Made at cfg 5 under a negative prompt; nothing is wired but its own prompt."""
    made = node(
        pack, "inversion.reference", "GenerateReference", model=model, positive=POSITIVE, negative=NEGATIVE,
        empty_latent={"samples": torch.zeros(1, 4, 8, 8)}, seed=5, steps=4, cfg=5.0,
    )  # fmt: skip
    edited, report = guided(pack, model, made[0], cfg=5.0, guidance=guidance)
    picture = made[4]["samples"]
    assert (edited["samples"] - picture).abs().max() < 1e-4 * picture.abs().max()
    assert len(report.splitlines()) == 3
    assert "at cfg 3 its image is not rebuilt" in guided(pack, model, made[0], cfg=3.0)[1]
    assert "negative prompt is not the one" in guided(pack, model, made[0], cfg=5.0, negative=OTHER)[1]


def test_a_negative_that_is_more_than_text_must_be_wired(pack, model):
    masked = [[NEGATIVE[0][0], {"mask": torch.ones(1, 64, 64), "set_area_to_bounds": False}]]
    made = node(
        pack, "inversion.reference", "GenerateReference", model=model, positive=POSITIVE, negative=masked,
        empty_latent={"samples": torch.zeros(1, 4, 8, 8)}, seed=5, steps=2, cfg=5.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="wire the negative it was made with"):
        guided(pack, model, made[0], cfg=5.0)
    edited, report = guided(pack, model, made[0], cfg=5.0, negative=masked)
    torch.testing.assert_close(edited["samples"], made[4]["samples"], atol=1e-3, rtol=1e-4)
    assert "negative" not in report


@pytest.fixture
def inpainting(pack):
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = {**diffusers_unet("sd1").config, "in_channels": 9}
        unet = UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    model = comfy_model(pack, "sd1", unet)
    model.model.set_inpaint()
    return model


def test_an_inpainting_model_gets_its_mask_again(pack, inpainting, tmp_path):
    """The noise mask of the LATENT is in the INVERSION, through a file too, and the edit rebuilds with it alone."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :24] = 1
    latent = {"samples": noise(1, 4, 8, 8) / SCALE, "noise_mask": mask}
    inversion = invert(pack, inpainting, latent)[0]
    assert inversion.noise_mask.shape == (1, 8, 8)
    read = type(inversion).load(inversion.save(tmp_path / "a.safetensors"))
    own = latent["samples"]
    off = [
        float((guided(pack, inpainting, each)[0]["samples"] - own).abs().max())
        for each in (inversion, read, replace(inversion, noise_mask=None))
    ]
    assert off[0] == off[1] < 0.01 * off[2]
    with pytest.raises(ValueError, match="Cross-Attn Guided Sampler instead"):
        node(
            pack, "pix2pix_zero.guided_edit", "CrossAttnGuider", model=inpainting, inversion=inversion, target=POSITIVE
        )


def test_a_noise_mask_that_nobody_reads_is_in_the_report(pack, model):
    latent = {"samples": noise(1, 4, 8, 8) / SCALE, "noise_mask": torch.ones(1, 64, 64)}
    assert "noise mask is not used" in invert(pack, model, latent)[-1]
    assert "noise mask" not in invert(pack, model)[-1]


def test_rows_of_a_batch_get_the_noise_they_had_in_it(pack, model):
    batch = {"samples": torch.zeros(3, 4, 8, 8)}
    alone = nodes.LatentFromBatch().frombatch(batch, 1, 2)[0]
    assert alone["batch_index"] == [1, 2]
    drawn = pack("nodes.host.latents").seeded_noise(alone, (2, 4, 8, 8), 7)
    assert torch.equal(drawn, comfy.sample.prepare_noise(alone["samples"], 7, alone["batch_index"]))
    assert torch.equal(drawn, pack("nodes.host.latents").seeded_noise(batch, (3, 4, 8, 8), 7)[1:])

    def reference(latent):
        return node(
            pack, "inversion.reference", "GenerateReference", model=model, positive=POSITIVE, negative=NEGATIVE,
            empty_latent=latent, seed=5, steps=2, cfg=1.0,
        )[0]  # fmt: skip

    one = reference(alone)
    torch.testing.assert_close(one.latents, reference(batch).latents[:, 1:], atol=1e-4, rtol=1e-4)
    assert one.made_from.batch_index == (1, 2)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["PAG", "RescaleCFG"])
def test_guidance_patches_act_at_every_cfg_as_in_the_host(pack, model, cfg, kind):
    make = {
        "PAG": ("nodes_pag", "PerturbedAttentionGuidance", 3.0),
        "RescaleCFG": ("nodes_model_advanced", "RescaleCFG", 0.7),
    }
    module, name, value = make[kind]
    patched = stock_node(module, name, model, value)
    inversion, start, sigmas, *_ = invert(pack, patched)
    edited = guided(pack, patched, inversion, OTHER, cfg=cfg, negative=NEGATIVE)[0]["samples"]
    expected = stock(patched, cfg, start, sigmas, OTHER, NEGATIVE)
    # PAG at 3 over cfg 4 enlarges the rounding of single precision; another processor's is seen in the fourth decimal.
    torch.testing.assert_close(edited, expected, atol=3e-4, rtol=1e-4)
    if kind == "PAG" and cfg == 1.0:  # the inversion is one of what the patched model samples
        plain = stock(model, cfg, start, sigmas, OTHER, NEGATIVE)
        assert (edited - plain).abs().max() > 0.01
        own, last = inversion.latents[0] / SCALE, {"samples": inversion.latents[1] / SCALE}
        off = [float((stock(each, 1.0, last, sigmas[-2:]) - own).abs().max()) for each in (patched, model)]
        assert off[0] < 0.05 * off[1]


@pytest.mark.parametrize("focus", [1.0, 0.5])
def test_a_caso_term_is_guided_by_the_patched_model(pack, model, focus):
    """One term is classifier-free guidance: with the patch it is the host's sampling function, bit for bit."""
    patched = stock_node("nodes_pag", "PerturbedAttentionGuidance", model, 3.0)
    caso = pack("core.caso.editing")
    x = noise(1, 4, 8, 8) * 3

    def work(session):
        term = pack("core.caso.embedding").GuidanceTerm(session.conds["term"], 4.0, focus=focus)
        ours = caso.steered(session.denoiser, x, 3.0, session.conds["positive"], [term])
        denoiser = session.denoiser
        base = denoiser.batch(x, 3.0, [session.conds["positive"]])[0]
        theirs = comfy.samplers.sampling_function(
            denoiser.base, x, torch.full((1,), 3.0), session.conds["positive"], session.conds["term"], 4.0,
            denoiser.model_options,
        )  # fmt: skip
        return ours, base, theirs

    conds = {"positive": NEGATIVE, "term": POSITIVE}
    ours, base, theirs = pack("nodes.host.sampling").run(patched, {"samples": torch.zeros(1, 4, 8, 8)}, conds, work)
    if focus == 1.0:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    else:
        moved = ((ours - base).abs() > 1e-4).float().mean()
        assert 0.4 < moved < 0.6


@pytest.mark.parametrize("name", ["FreeU", "FreeU_V2"])
def test_patches_that_write_in_place_differentiate(pack, model, name):
    """The gradient under the patch is that of finite differences, and the value is the host's own."""
    patched = stock_node("nodes_freelunch", name, model, 1.3, 1.4, 0.9, 0.2)
    x, way = noise(1, 4, 8, 8) * 3, noise(1, 4, 8, 8, seed=8)

    def loss(gradients):
        def work(session):
            leaf = x.clone().requires_grad_(gradients)
            value = lambda at: (session.denoiser(at, 3.0, session.conds["positive"]) * noise(1, 4, 8, 8, seed=9)).sum()  # noqa: E731
            if not gradients:
                step = 1e-2
                return (value(leaf + step * way) - value(leaf - step * way)) / (2 * step)
            return (torch.autograd.grad(value(leaf), leaf)[0] * way).sum()

        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        return float(
            pack("nodes.host.sampling").run(patched, latent, {"positive": POSITIVE}, work, gradients=gradients)
        )

    assert loss(True) == pytest.approx(loss(False), rel=2e-2)
    inversion = invert(pack, model)[0]
    assert "FreeU" in guided(pack, patched, inversion, OTHER, cfg=3.0, guidance=0.1, negative=NEGATIVE)[1]


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
def test_step_caches_are_named(pack, model, name):
    cached = stock_node("nodes_easycache", name, model, 0.2, 0.15, 0.95, False)
    inversion = invert(pack, model)[0]
    for use in (lambda: invert(pack, cached), lambda: guided(pack, cached, inversion)):
        with pytest.raises(ValueError, match="step cache"):
            use()


def test_caches_of_other_packs_are_named_by_what_they_call_themselves(pack, model):
    def teacache_forward(apply, given):
        return apply(given["input"], given["timestep"], **given["c"])

    cached = model.clone()
    cached.set_model_unet_function_wrapper(teacache_forward)
    with pytest.raises(ValueError, match="step cache"):
        invert(pack, cached)


def test_a_network_that_shows_nothing_blames_no_widget(pack, model):
    """Something answers in the network's place: the sentence names that, not the resolution."""
    inversion, silent = invert(pack, model)[0], model.clone()
    silent.set_model_unet_function_wrapper(lambda apply, given: given["input"] * 0.1)
    with pytest.raises(ValueError, match="showed no attention") as error:
        guided(pack, silent, inversion, cfg=3.0, guidance=0.1)
    assert "larger" not in str(error.value)


def test_an_empty_mask_is_refused(pack, model):
    inversion = invert(pack, model)[0]
    with pytest.raises(ValueError, match="mask is empty"):
        guided(pack, model, inversion, OTHER, mask=torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="mask is empty"):
        pack("nodes.regions.search_inputs").wanted_mask(torch.zeros(1, 64, 64), "restrict")
    assert pack("nodes.regions.search_inputs").wanted_mask(torch.zeros(1, 64, 64), "exclude") is None


def test_an_empty_latent_of_four_channels_is_repaired(pack, flow):
    seen = pack("nodes.host.sampling").run(
        flow, {"samples": torch.zeros(2, 4, 8, 8)}, {"positive": conditioning("flow")}, lambda session: session.latent
    )
    assert seen.shape == comfy.sample.fix_empty_latent_channels(flow, torch.zeros(2, 4, 8, 8)).shape == (2, 16, 8, 8)


def test_a_time_axis_of_one_is_left_out(pack, model):
    image = noise(2, 4, 8, 8) / SCALE
    flat, long = (invert(pack, model, {"samples": samples})[0] for samples in (image, image.unsqueeze(2)))
    assert torch.equal(flat.latents, long.latents)


@pytest.fixture(scope="module")
def qwen():
    """A tiny random Qwen-Image: an image model whose latents have a time axis."""
    config_class = type(
        "Config",
        (comfy.supported_models_base.BASE,),
        {
            "unet_extra_config": {},
            "latent_format": comfy.latent_formats.Wan21,
            "sampling_settings": {"multiplier": 1.0, "shift": 1.15},
        },
    )
    config = config_class(
        {
            "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 1, "attention_head_dim": 32,
            "num_attention_heads": 2, "joint_attention_dim": 48, "pooled_projection_dim": 8,
            "axes_dims_rope": (8, 12, 12),
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        base = comfy.model_base.QwenImage(config)
        for parameter in base.diffusion_model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU)


def test_an_image_model_with_a_time_axis_is_inverted(pack, qwen):
    """Qwen-Image through the nodes: from its own LATENT, and back to it through stock euler."""
    positive = [[noise(1, 7, 48, seed=1), {}]]
    samples = noise(1, 16, 1, 8, 8)
    inversion, empty, sigmas, start, *_ = invert(pack, qwen, {"samples": samples}, positive)
    assert inversion.latents.shape == (5, 1, 16, 8, 8) and empty["samples"].shape == (1, 16, 1, 8, 8)
    guider = comfy.samplers.CFGGuider(qwen)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    euler = comfy.samplers.sampler_object("euler")
    back = guider.sample(start.generate_noise(empty), empty["samples"], euler, sigmas, disable_pbar=True, seed=0)
    assert back.shape == samples.shape
    assert (back - samples).square().mean() < 1e-3 * samples.var()


def test_the_report_tells_what_was_taken_off_of_an_inexact_inversion(pack, model):
    """Plain DDIM: the decibels are those at which the source's own steps, one by one, would have missed the picture."""
    inversion = invert(pack, model, solver="ddim")[0]
    report = guided(pack, model, inversion, guidance=0.1)[1]
    scale = 1 + inversion.sigmas[1:].double() ** 2
    missed = (inversion.residuals[:, 0].double() * scale).sum()  # a step's residual, in sigma space
    span = inversion.latents[0].max() - inversion.latents[0].min()
    expected = 10 * (span**2 / missed).log10()
    assert f"in place of at about {float(expected):.0f} dB" in report
    assert "in place of at" not in guided(pack, model, inversion)[1]  # nothing was evaluated on the source's path

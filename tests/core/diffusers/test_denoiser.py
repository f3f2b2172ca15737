"""The diffusers U-Net as a denoiser: parameterisations, counters, batching, gradients, refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from semantic_editing.core.denoiser import euler_step
from semantic_editing.core.diffusers.denoiser import DiffusersDenoiser, TextCond
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.tiny_models import (
    FAMILIES,
    TEXT_WIDTH,
    tiny_cond,
    tiny_denoiser,
    tiny_latent,
    tiny_scheduler,
    tiny_unet,
)
from semantic_editing.tests.pairs import pairs

SHAPES = [(1, 8, 8), (3, 6, 10)]


def raw_output(denoiser, x_vp, timestep, cond, time_ids=None):
    """The network called the way diffusers' own pipelines call it."""
    added = None
    if isinstance(cond, TextCond):
        added = {"text_embeds": cond.pooled, "time_ids": time_ids.expand(len(x_vp), -1)}
        cond = cond.embeds
    with torch.no_grad():
        return denoiser.unet(x_vp, timestep, encoder_hidden_states=cond, added_cond_kwargs=added).sample


@pytest.mark.parametrize(("family", "shape", "timestep"), pairs(list(FAMILIES), SHAPES, [1, 500, 999]))
def test_euler_step_is_a_ddim_step_of_diffusers(family, shape, timestep):
    """Oracle: diffusers' DDIMScheduler.step on the raw network output, from ``timestep`` to the level 1 below."""
    denoiser, batch = tiny_denoiser(family), shape[0]
    cond, x_vp = tiny_cond(family, batch), tiny_latent(*shape)
    scheduler = DDIMScheduler.from_config(tiny_scheduler(family).config)
    scheduler.num_inference_steps = 1000  # step() goes back by 1000 // num_inference_steps
    time_ids = torch.tensor([[shape[1] * 8.0, shape[2] * 8.0, 0, 0, shape[1] * 8.0, shape[2] * 8.0]])
    expected = scheduler.step(raw_output(denoiser, x_vp, timestep, cond, time_ids), timestep, x_vp).prev_sample
    sigma, sigma_next = float(denoiser.sigmas[timestep]), float(denoiser.sigmas[timestep - 1])
    x = x_vp * (1 + sigma**2) ** 0.5
    with torch.no_grad():
        got = euler_step(x, denoiser(x, sigma, cond), sigma, sigma_next) * (1 + sigma_next**2) ** -0.5
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


def test_timestep_is_the_nearest_table_entry_in_log_sigma():
    denoiser = tiny_denoiser()
    table = torch.arange(1000)
    assert torch.equal(denoiser.timestep(denoiser.sigmas), table)
    low, high = float(denoiser.sigmas[300]), float(denoiser.sigmas[301])
    middle = (low * high) ** 0.5
    assert denoiser.timestep(torch.tensor([0.0, middle * 0.9999, middle * 1.0001, 1e9])).tolist() == [0, 300, 301, 999]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_equals_single_calls_and_u_is_exact(family, shape):
    denoiser, batch = tiny_denoiser(family), shape[0]
    x, sigma = tiny_latent(*shape) * 4, torch.linspace(0.5, 8, shape[0])
    conds = [tiny_cond(family, batch), tiny_cond(family, 1, seed=1)]
    with torch.no_grad():
        together = denoiser.batch(x, sigma, conds)
        assert (denoiser.evaluations.forward, denoiser.evaluations.backward) == (2 * batch, 0)
        for got, cond in zip(together, conds, strict=True):
            torch.testing.assert_close(got, denoiser(x, sigma, cond), atol=1e-4, rtol=1e-4)
        row = torch.tensor([batch - 1])
        alone = denoiser(x[row], sigma[row], denoiser.select(conds[0], row))
        torch.testing.assert_close(together[0][row], alone, atol=1e-4, rtol=1e-4)
        assert denoiser.evaluations.forward == 4 * batch + 1
    shared = denoiser.select(conds[1], row)
    shared_embeds = shared.embeds if isinstance(shared, TextCond) else shared
    assert shared_embeds.shape[0] == 1


def test_texts_of_different_length_are_not_padded():
    denoiser, x = tiny_denoiser(), tiny_latent(2) * 3
    conds = [tiny_cond(tokens=7), tiny_cond(tokens=14)]
    with torch.no_grad():
        for got, cond in zip(denoiser.batch(x, 3.0, conds), conds, strict=True):
            assert torch.equal(got, denoiser(x, 3.0, cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_in_x_and_cond_equals_finite_differences(family):
    denoiser = tiny_denoiser(family, dtype=torch.float64)
    x, direction = tiny_latent().double() * 3, tiny_latent(seed=1).double()
    cond = tiny_cond(family)
    embeds = (cond.embeds if isinstance(cond, TextCond) else cond).double()
    cond_direction = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def value(x, embeds):
        cond_now = TextCond(embeds, cond.pooled) if isinstance(cond, TextCond) else embeds
        return denoiser(x, 3.0, cond_now).square().sum()

    leaf, leaf_embeds = x.clone().requires_grad_(), embeds.clone().requires_grad_()
    gradient, cond_gradient = torch.autograd.grad(value(leaf, leaf_embeds), [leaf, leaf_embeds])
    with torch.no_grad():
        h = 1e-5
        by_x = (value(x + h * direction, embeds) - value(x - h * direction, embeds)) / (2 * h)
        by_cond = (value(x, embeds + h * cond_direction) - value(x, embeds - h * cond_direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), by_x, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close((cond_gradient * cond_direction).sum(), by_cond, rtol=1e-5, atol=1e-7)
    assert denoiser.evaluations.backward == 1


def test_backward_counts_rows_once_a_pass_and_leaves_weights_alone():
    denoiser, x = tiny_denoiser(), (tiny_latent(3) * 2).requires_grad_()
    embeds = tiny_cond().requires_grad_()
    denoised, _ = denoiser.batch(x, 2.0, [embeds, tiny_cond(seed=1)])
    denoiser(x, 2.0, embeds)  # an evaluation the gradient does not come from
    denoised.sum().backward(retain_graph=True)
    assert denoiser.evaluations.backward == 6
    torch.autograd.grad(denoised.sum(), embeds)
    assert (denoiser.evaluations.forward, denoiser.evaluations.backward) == (9, 12)
    assert x.grad is not None
    assert all(p.grad is None and p.requires_grad for p in denoiser.unet.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast_and_bf16_weights_keep_an_fp32_state(family):
    denoiser, cond, x = tiny_denoiser(family), tiny_cond(family, 3), tiny_latent(3, 6, 10) * 3
    with torch.no_grad():
        exact = denoiser(x, 3.0, cond)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = denoiser(x, 3.0, cond)
        low = tiny_denoiser(family, dtype=torch.bfloat16)(x, 3.0, cond)
    for got in (mixed, low):
        assert got.dtype == torch.float32
        assert 1e-5 < float((got - exact).norm() / exact.norm()) < 0.05


def test_identity_tells_models_apart_but_not_precisions():
    first = tiny_denoiser().identity
    assert first.mismatch(tiny_denoiser(dtype=torch.bfloat16).identity) is None
    assert first.mismatch(tiny_denoiser(seed=1).identity).startswith("other weights: ")
    assert "prediction" in first.mismatch(tiny_denoiser("sd2").identity)
    assert tiny_denoiser("sdxl").identity.family == "sdxl"


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (TEXT_WIDTH, f"sd{TEXT_WIDTH}")])
def test_family_follows_the_width_of_the_text(width, family):
    unet = tiny_unet()
    unet.register_to_config(cross_attention_dim=width)
    assert DiffusersDenoiser(unet, tiny_scheduler()).identity.family == family


def test_grid_is_the_consistent_ddim_grid():
    grid = tiny_denoiser().sigma_grid(50)
    alphas = tiny_scheduler().alphas_cumprod[torch.tensor([0, *range(1, 1000, 20)])]
    torch.testing.assert_close(grid, ((1 - alphas) / alphas).sqrt(), rtol=1e-4, atol=0)


REFUSALS = {
    "channels": (
        lambda d: d(torch.zeros(1, 9, 8, 8), 1.0, tiny_cond()),
        r"\[1, 9, 8, 8\]; this model needs \[batch, 4",
    ),
    "width": (lambda d: d(tiny_latent(), 1.0, torch.zeros(1, 7, 5)), "own text encoder"),
    "rows": (lambda d: d(tiny_latent(3), 1.0, tiny_cond(batch=2)), "2 rows and the latent 3"),
    "sigma": (lambda d: d(tiny_latent(), float("nan"), tiny_cond()), "noise level"),
    "steps": (lambda d: d.sigma_grid(0), "steps is 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_unusable_input_is_refused_in_a_sentence(name):
    call, sentence = REFUSALS[name]
    with pytest.raises(EditingError, match=sentence):
        call(tiny_denoiser())


def test_sdxl_needs_its_pooled_text():
    with pytest.raises(EditingError, match="pooled"):
        tiny_denoiser("sdxl")(tiny_latent(), 1.0, tiny_cond("sd1"))


def test_unusable_models_are_refused_by_name():
    sample = DDIMScheduler(prediction_type="sample")
    with pytest.raises(EditingError, match="prediction_type sample"):
        DiffusersDenoiser(tiny_unet(), sample)
    with pytest.raises(EditingError, match="FlowMatchEulerDiscreteScheduler"):
        DiffusersDenoiser(tiny_unet(), FlowMatchEulerDiscreteScheduler())
    inpainting = SimpleNamespace(config=SimpleNamespace(in_channels=9, out_channels=4))
    with pytest.raises(EditingError, match="takes 9 channels"):
        DiffusersDenoiser(inpainting, tiny_scheduler())

"""Gradients where the host forbids them: weights and inputs made under inference mode, as in a prompt."""

import comfy.model_management as mm
import comfy.sample
import pytest
import torch
from conftest import comfy_model, conditioning, diffusers_unet, noise


class AttentionLoss:
    """Sums the squares of all cross-attention maps, in the graph."""

    def __init__(self):
        self.loss = 0

    def wants(self, site):
        return site.kind == "cross"

    def __call__(self, q, k, v, site):
        maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        self.loss = self.loss + maps.double().square().sum()
        return maps @ v


def attention_gradient(session, x):
    x = x.clone().requires_grad_()
    control = AttentionLoss()
    denoised = session.denoiser(x, 2.0, session.conds["positive"], control=control)
    loss = control.loss + denoised.double().square().sum()
    (gradient,) = torch.autograd.grad(loss, [x])
    return float(loss.detach()), gradient


@pytest.mark.parametrize(
    ("family", "height", "width", "batch"), [("sd1", 8, 8, 1), ("sd2", 8, 12, 1), ("sdxl", 8, 12, 3)]
)
def test_gradient_of_inference_weights_equals_diffusers(pack, family, height, width, batch):
    """Model and conditioning made inside inference mode (the stock loader's trap); gradient against diffusers'
    autograd.
    """
    from diffusers import DDIMScheduler

    backend = pack("core.diffusers.denoiser")
    unet = diffusers_unet(family)
    kind = "v_prediction" if family == "sd2" else "epsilon"
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    with torch.inference_mode():
        model = comfy_model(pack, family, unet)
        cond, x = conditioning(family), noise(batch, 4, height, width)
        assert next(model.model.diffusion_model.parameters()).is_inference() and cond[0][0].is_inference()
        loss, gradient = pack("nodes.host.sampling").run(
            model, {"samples": x}, {"positive": cond}, lambda s: attention_gradient(s, s.latent), gradients=True
        )
        scale = model.model.latent_format.scale_factor

    class Reference:
        denoiser = backend.DiffusersDenoiser(unet, scheduler)
        conds = {  # noqa: RUF012
            "positive": backend.TextCond(
                *(t if t is None else t.clone() for t in (cond[0][0], cond[0][1].get("pooled_output")))
            )
        }

    expected_loss, expected = attention_gradient(Reference, x.clone() * scale)
    assert abs(loss - expected_loss) < 1e-4 * abs(expected_loss)
    assert (gradient - expected).norm() < 1e-3 * expected.norm()
    assert not gradient.is_inference()
    assert all(p.grad is None and not p.requires_grad for p in model.model.diffusion_model.parameters())


def tiny_residual_gradient(session, x):
    """Gradient of a residual of 1e-3 rms, as near the end of an inversion step; and of a map loss, for the latent and
    the text.
    """
    (entry,) = session.conds["positive"]
    text = entry["model_conds"]["c_crossattn"].cond.requires_grad_()
    x = x.clone().requires_grad_()
    control = AttentionLoss()
    denoised = session.denoiser(x, 2.0, session.conds["positive"], control=control)
    residual = (denoised - denoised.detach() - 1e-3).square().mean() / 16
    return [*torch.autograd.grad(residual, [x], retain_graph=True), *torch.autograd.grad(control.loss, [x, text])]


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.98), (torch.float16, 0.99)])
def test_gradient_in_half_precision(pack, dtype, cosine):
    """Weights in bf16 or fp16 and inputs in fp32 give the fp32 gradient, small ones too, which plain fp16 loses to
    underflow.
    """
    unet = diffusers_unet("sd1")
    found = []
    for kind in (torch.float32, dtype):
        with torch.inference_mode():
            model = comfy_model(pack, "sd1", unet, kind)
            x, cond = noise(1, 4, 16, 16), conditioning("sd1")
            found.append(
                pack("nodes.host.sampling").run(
                    model,
                    {"samples": x},
                    {"positive": cond},
                    lambda s: tiny_residual_gradient(s, s.latent),
                    gradients=True,
                )
            )
    for reference, gradient in zip(*found, strict=True):
        assert torch.cosine_similarity(reference.flatten().float(), gradient.flatten().float(), dim=0) > cosine
        assert 0.9 < gradient.float().norm() / reference.float().norm() < 1.1


def test_flow_model_gradient_matches_finite_differences(pack, flow):
    with torch.inference_mode():
        x, cond, direction = noise(1, 16, 8, 8), conditioning("flow"), noise(1, 16, 8, 8, seed=8)

        def work(session):
            def value(at):
                return session.denoiser(at, 0.7, session.conds["positive"]).double().square().sum()

            start, along = session.latent.clone().requires_grad_(), direction.clone()
            (gradient,) = torch.autograd.grad(value(start), [start])
            with torch.no_grad():
                slope = (value(start + 1e-2 * along) - value(start - 1e-2 * along)) / 2e-2
            return float((gradient * along).sum()), float(slope), session.denoiser.evaluations

        analytic, numeric, counted = pack("nodes.host.sampling").run(
            flow, {"samples": x}, {"positive": cond}, work, gradients=True
        )
    assert abs(analytic - numeric) < 1e-2 * abs(numeric)
    assert (counted.forward, counted.backward) == (3, 1)


def test_a_gradient_run_leaves_the_stock_sampler_bit_identical(pack):
    """The same KSampler before and after, on a model with thawed parameters; those come back thawed."""
    with torch.inference_mode():
        model = comfy_model(pack, "sd1", diffusers_unet("sd1"))
        latent, start = torch.zeros(1, 4, 8, 8), noise(1, 4, 8, 8)
        positive, negative = conditioning("sd1"), conditioning("sd1", 9)

        def stock():
            return comfy.sample.sample(model, start, 3, 5.0, "euler", "normal", positive, negative, latent, seed=1)

        before, options = stock(), repr(model.model_options)
        pack("nodes.host.sampling").run(
            model, {"samples": start}, {"positive": positive}, lambda s: attention_gradient(s, s.latent), gradients=True
        )
        assert torch.equal(before, stock())
        assert repr(model.model_options) == options


def test_thawed_parameters_come_back_thawed(pack):
    model = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    network = model.model.diffusion_model.requires_grad_(True)
    x = noise(1, 4, 8, 8)
    during = pack("nodes.host.sampling").run(
        model,
        {"samples": x},
        {"positive": conditioning("sd1")},
        lambda s: (attention_gradient(s, s.latent), any(p.requires_grad for p in network.parameters()))[1],
        gradients=True,
    )
    assert during is False
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_attention_kernels_without_a_backward_are_replaced(pack):
    """Sage and flash attention have no derivative; PyTorch's takes their place while autograd records, and only
    then.
    """
    override = pack("nodes.host.gradients").differentiable_attention()

    def attention_sage(*arguments, **options):
        return "sage"

    q, k, v = (noise(1, 6, 8, seed=s) for s in range(3))
    with torch.no_grad():
        assert override(attention_sage, q, k, v, 2) == "sage"
    heads = [t.view(1, 6, 2, 4).transpose(1, 2) for t in (q.requires_grad_(), k, v)]
    expected = ((heads[0] @ heads[1].transpose(-1, -2) / 2).softmax(-1) @ heads[2]).transpose(1, 2).reshape(1, 6, 8)
    out = override(attention_sage, q, k, v, 2, _inside_attn_wrapper=True)
    torch.testing.assert_close(out, expected)
    assert out.requires_grad


def test_room_is_asked_for_before_loading(pack, monkeypatch):
    """The host estimates memory for inference; a gradient run asks for several times as much, so that it makes room
    first.
    """
    model = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    asked = []
    load = mm.load_models_gpu
    monkeypatch.setattr(mm, "load_models_gpu", lambda *a, **k: (asked.append(k["memory_required"]), load(*a, **k))[1])
    for gradients in (False, True):
        pack("nodes.host.sampling").run(
            model,
            {"samples": noise(1, 4, 8, 8)},
            {"positive": conditioning("sd1")},
            lambda s: None,
            gradients=gradients,
        )
    assert asked[1] == pytest.approx(10 * asked[0])

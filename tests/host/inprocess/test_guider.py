"""DenoiserGuider in SamplerCustomAdvanced, as the stock node runs it."""

import comfy.model_management as mm
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
from conftest import comfy_model, conditioning, diffusers_unet, noise


class Noise:
    seed = 0

    def generate_noise(self, latent):
        return noise(*latent["samples"].shape, seed=7)


@pytest.fixture
def model(pack):
    with torch.inference_mode():
        return comfy_model(pack, "sd1", diffusers_unet("sd1"))


def conds():
    return {"positive": conditioning("sd1"), "negative": conditioning("sd1", 9)}


def sample(guider, samples, steps=4):
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    node = SamplerCustomAdvanced()
    run = getattr(node, "sample", None) or node.execute
    return run(Noise(), guider, comfy.samplers.sampler_object("euler"), sigmas, {"samples": samples})[0]["samples"]


def stock(model, cfg):
    node = CFGGuider()
    make = getattr(node, "get_guider", None) or node.execute
    return make(model, *conds().values(), cfg)[0]


def plain(pack, cfg=5.0):
    """A step that does classifier-free guidance and nothing else, counting the runs it was prepared for."""
    guided = pack("core.sampling").guided
    runs = []

    def prepare(session):
        runs.append(session.latent.clone())
        return lambda x, sigma: guided(
            session.denoiser, x, sigma, session.conds["positive"], session.conds["negative"], cfg
        )

    return prepare, runs


@pytest.mark.parametrize("gradients", [False, True])
@torch.inference_mode()
def test_plain_guidance_is_bit_equal_to_the_stock_guider(pack, model, gradients):
    samples = noise(2, 4, 8, 12, seed=2)
    prepare, runs = plain(pack)
    guider = pack("nodes.host.sampling").DenoiserGuider(model, conds(), prepare, gradients=gradients)
    ours = [sample(guider, samples), sample(guider, samples)]
    assert torch.equal(ours[0], sample(stock(model, 5.0), samples))
    assert torch.equal(*ours) and len(runs) == 2  # a cached GUIDER: prepared anew for every run
    torch.testing.assert_close(runs[0], samples * 0.18215)


@torch.inference_mode()
def test_a_step_can_take_gradients_under_the_stock_sampler(pack, model):
    """Each step moves x down the gradient of |denoised|^2; the outcome has a smaller norm than without, and no
    graph.
    """
    samples, moves = torch.zeros(1, 4, 8, 8), []

    def prepare(session):
        def step(x, sigma):
            leaf = x.clone().requires_grad_()
            denoised = session.denoiser(leaf, sigma, session.conds["positive"])
            (gradient,) = torch.autograd.grad(denoised.square().sum(), [leaf])
            moves.append(float(gradient.norm()))
            return denoised - 0.1 * gradient

        return step

    guided = sample(pack("nodes.host.sampling").DenoiserGuider(model, conds(), prepare, gradients=True), samples)
    unguided = sample(stock(model, 1.0), samples)
    assert len(moves) == 4 and min(moves) > 0
    assert guided.norm() < unguided.norm()
    assert not guided.requires_grad
    assert torch.equal(unguided, sample(stock(model, 1.0), samples))


@torch.inference_mode()
def test_a_failed_run_can_be_repeated(pack, model):
    prepare, runs = plain(pack)
    broken = [True]

    def breaking(session):
        step = prepare(session)

        def once(x, sigma):
            if broken and sigma < 5:
                broken.clear()
                mm.interrupt_current_processing(True)
            return step(x, sigma)

        return once

    guider = pack("nodes.host.sampling").DenoiserGuider(model, conds(), breaking, gradients=True)
    samples = torch.zeros(1, 4, 8, 8)
    with pytest.raises(mm.InterruptProcessingException):
        sample(guider, samples)
    assert not {"inner_model", "loaded_models", "conds", "_clean"} & set(vars(guider))
    assert torch.equal(sample(guider, samples), sample(stock(model, 5.0), samples)) and len(runs) == 2


def test_a_latent_of_another_model_is_refused(pack, model):
    prepare, _ = plain(pack)
    with pytest.raises(ValueError, match="16 channels"):
        pack("nodes.host.sampling").DenoiserGuider(model, conds(), prepare).sample(
            torch.zeros(1, 16, 8, 8),
            torch.zeros(1, 16, 8, 8),
            comfy.samplers.sampler_object("euler"),
            torch.tensor([1.0, 0.0]),
        )

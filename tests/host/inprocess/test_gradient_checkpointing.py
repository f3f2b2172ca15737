"""Gradient checkpointing on the host's networks: the same gradients and the same u, less kept, nothing left on the
model.
"""

import pytest
import torch
from conftest import PACK, conditioning, noise


def vector_gradient(pack, model, family, gradient_checkpointing):
    """Gradient of a loss on the prediction with respect to the conditioning, as CASO takes it, and what it cost."""
    kept = {}

    def pack_tensor(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    def work(session):
        entry = dict(session.conds["positive"][0])
        value = entry["model_conds"]["c_crossattn"]
        leaf = value.cond.detach().clone().requires_grad_()
        cond = [{**entry, "model_conds": {**entry["model_conds"], "c_crossattn": value._copy_with(leaf)}}]
        x = noise(2, 4, 8, 8, seed=2) * 3
        with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
            prediction = session.denoiser(x, 2.0, cond)
        (gradient,) = torch.autograd.grad(prediction.square().mean(), leaf)
        return gradient, session.denoiser.evaluations

    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    gradient, cost = pack("nodes.host.sampling").run(
        model,
        latent,
        {"positive": conditioning(family)},
        work,
        gradients=True,
        gradient_checkpointing=gradient_checkpointing,
    )
    return gradient, (cost.forward, cost.backward), sum(store.nbytes() for store in kept.values())


def by_block(n, context, value, extra_options):
    """A patch that does something else in every block: a block that runs again must still know which one it is."""
    kind, number = extra_options["block"]
    factor = 1 + 0.1 * number + 0.5 * (kind == "output")
    return n, context * factor, value * factor


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.inference_mode()
def test_gradient_and_evaluations_of_the_unet_are_the_same(pack, models, family):
    model = models(family).model.clone()
    model.set_model_attn2_patch(by_block)
    (plain, cost, kept), (again, recost, rekept) = (
        vector_gradient(pack, model, family, gradient_checkpointing) for gradient_checkpointing in (False, True)
    )
    assert float(plain.abs().max()) > 0
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))
    assert cost == recost == (2, 2)
    assert rekept < kept / 3
    assert not any("forward" in part.__dict__ for part in model.model.diffusion_model.modules())


@pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")
@torch.inference_mode()
def test_gradient_of_the_decoder_is_the_same(pack):
    model, clip, vae = pack("nodes.demo.comfy_model").load_demo_model()
    found, kept = [], []
    for gradient_checkpointing in (False, True):
        decoder, stores = pack("nodes.host.vae").SessionDecoder(vae, gradient_checkpointing), {}

        def pack_tensor(tensor, stores=stores):
            stores[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        def work(session, decoder=decoder, pack_tensor=pack_tensor):
            leaf = noise(1, 4, 8, 8, seed=4).requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
                images = decoder.bind(session)(leaf)
            return torch.autograd.grad(images.square().mean(), leaf)[0]

        conds = {"positive": clip.encode_from_tokens_scheduled(clip.tokenize(""))}
        found.append(
            pack("nodes.host.sampling").run(
                model,
                {"samples": torch.zeros(1, 4, 8, 8)},
                conds,
                work,
                gradients=True,
                additional_models=[decoder.patcher],
            )
        )
        kept.append(sum(store.nbytes() for store in stores.values()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5 * float(found[0].abs().max()))
    assert float(found[0].abs().max()) > 0 and kept[1] < kept[0] / 2
    assert not any("forward" in part.__dict__ for part in vae.first_stage_model.modules())

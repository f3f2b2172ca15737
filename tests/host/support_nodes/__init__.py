"""Nodes for the live tests only: a small checkpoint for the stock loader, conditionings of any width, and probes of the
seam."""

import importlib
import json
import os
import sys
import time

import comfy.model_management
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

CHECKPOINT = "tiny_sd1.safetensors"
#: The least that the host's detection takes for SD 1.x: its width and text width, but one transformer block a side.
SHAPE = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "adm_in_channels": None,
}


def seam(module):
    """``nodes.host.<module>`` of the pack, wherever the host imported it from."""
    (name,) = [name for name in sys.modules if name.endswith("semantic-editing.nodes.host")]
    return importlib.import_module(f"{name}.{module}")


class Node:
    CATEGORY = "tests"
    FUNCTION = "execute"
    OUTPUT_NODE = True
    RETURN_TYPES = ()


class MakeCheckpoint(Node):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def execute(self):
        network = UNetModel(**SHAPE, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
        generator = torch.Generator().manual_seed(0)
        weights = {}
        for key, value in network.state_dict().items():
            scale = 0.5 / value[0].numel() ** 0.5 if value.ndim > 1 else 0.05
            weights[f"model.diffusion_model.{key}"] = torch.randn(value.shape, generator=generator) * scale
        comfy.utils.save_torch_file(weights, os.path.join(folder_paths.get_folder_paths("checkpoints")[0], CHECKPOINT))
        return {"ui": {"text": [CHECKPOINT]}}


class MakeConditioning(Node):
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_NODE = False

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {}), "width": ("INT", {"default": 768})}}

    def execute(self, seed, width):
        return ([[torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed)), {}]],)


class Probe(Node):
    """Runs the seam with gradients in one of several manners; hands the MODEL on, so that a stock sampler can come
    after."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "latent": ("LATENT",),
                "manner": ("STRING", {"default": "gradient"}),
                "nonce": ("INT", {"default": 0}),
            }
        }

    def execute(self, model, positive, latent, manner, nonce):
        loaded_as_inference = next(model.model.diffusion_model.parameters()).is_inference()
        report = {"inference_mode": torch.is_inference_mode_enabled(), "inference_weights": loaded_as_inference}

        def loss_of(session, x):
            return session.denoiser(x, 3.0, session.conds["positive"]).square().mean()

        def work(session):
            x = session.latent.clone().requires_grad_()
            loss = loss_of(session, x)
            (gradient,) = torch.autograd.grad(loss, [x])
            with torch.no_grad():
                after = loss_of(session, x - 1e-2 * gradient / gradient.square().mean().sqrt())
            report.update(before=float(loss.detach()), after=float(after), gradient=float(gradient.norm()))
            if manner == "error":
                raise RuntimeError("broken on purpose")
            if manner == "memory":
                raise comfy.model_management.OOM_EXCEPTION("Tried to allocate 3 GiB")
            while manner == "endless":
                loss_of(session, x).backward(inputs=[x])
                time.sleep(0.01)

        seam("sampling").run(model, latent, {"positive": positive}, work, gradients=True, advice="lower the batch size")
        network = model.model.diffusion_model
        report["grads"] = sum(p.grad is not None for p in network.parameters())
        report["options"] = sorted(model.model_options["transformer_options"])
        return {"ui": {"text": [json.dumps(report)]}, "result": (model,)}


NODE_CLASS_MAPPINGS = {f"SemEditTest_{node.__name__}": node for node in (MakeCheckpoint, MakeConditioning, Probe)}

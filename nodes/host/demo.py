"""The bundled demo model as stock MODEL, CLIP and VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_management as model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import folder_paths
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...core.errors import EditingError
from ...core.files import load_tensors
from .weights import convert_unet, convert_vae, unet_config, vae_config

#: Least-squares map from the demo VAE's scaled latent to RGB in -1..1 (R^2 0.90 on 120 validation pictures), for previews.
PREVIEW_FACTORS = [[-0.5833, 0.0142, 0.0596], [0.0892, 0.5340, -0.2819], [0.2441, 0.0587, 0.2430], [0.1202, -0.2188, -0.3105]]
PREVIEW_BIAS = [0.1891, 0.0654, 0.2498]
ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"


def load_demo_model(folder: Path = ASSETS) -> tuple[Any, Any, Any]:
    """``(MODEL, CLIP, VAE)`` from ``assets/demo``; every stock node works on them.

    Everything computes in fp32: the networks are small, and their results then agree with diffusers to 1e-4.

    Args:
        folder: holds ``unet/``, ``clip/`` and ``vae/`` in diffusers' and transformers' layout, and ``vocab.json``.

    Raises:
        EditingError: the demo assets are missing or damaged.
    """
    if not folder.is_dir():
        raise EditingError(f"The demo model is missing ({folder.name} is not in the pack's assets); install the pack again.")
    scale = float(_config(folder / "vae")["scaling_factor"])
    return _model(folder / "unet", scale), _clip(folder), _vae(folder / "vae")


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise EditingError(f"The demo model's {folder.name}/config.json cannot be read; install the pack again.") from error


def _weights(folder: Path) -> dict[str, Tensor]:
    (file,) = sorted(folder.glob("*.safetensors"))[:1] or [folder / "model.safetensors"]
    tensors, _ = load_tensors(file)
    return {key: value.float() for key, value in tensors.items()}


def _model(folder: Path, scale: float) -> Any:
    class Latent(comfy.latent_formats.LatentFormat):
        scale_factor = scale
        latent_rgb_factors = PREVIEW_FACTORS
        latent_rgb_factors_bias = PREVIEW_BIAS

    class Config(comfy.supported_models_base.BASE):
        unet_extra_config: ClassVar[dict[str, Any]] = {}
        latent_format = Latent
        memory_usage_factor = 1.0

    arguments = unet_config(_config(folder))
    config = Config(arguments)
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "")
    base.load_model_weights(convert_unet(_weights(folder), arguments), "")
    return comfy.model_patcher.ModelPatcher(
        base, load_device=model_management.get_torch_device(), offload_device=model_management.unet_offload_device()
    )


def _clip(folder: Path) -> Any:
    from ...core.demo import expand_token_table  # on first use: it brings diffusers along

    text = _config(folder / "clip")["text_config"]
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options = {"dtype": torch.float32, "clip_l_model_config": {key: text[key] for key in sizes}}
    folders = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(target, embedding_directory=folders, model_options=options)
    weights = {key: value for key, value in _weights(folder / "clip").items() if key.startswith("text_")}
    table = "text_model.embeddings.token_embedding.weight"
    weights[table] = expand_token_table(weights[table], json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    clip.load_sd(weights)
    return clip


def _vae(folder: Path) -> Any:
    config = _config(folder)
    vae = comfy.sd.VAE(sd=convert_vae(_weights(folder), config), config={"params": vae_config(config)}, dtype=torch.float32)
    vae.first_stage_model = PixelShuffled(vae.first_stage_model)
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, vae.patcher.load_device, vae.patcher.offload_device)
    return vae


class PixelShuffled(nn.Module):
    """The demo's autoencoder seen as an ordinary VAE of images at eight times the latent's size.

    Its encoder sees half the resolution with 2x2 pixels folded into channels: ``[B, 3, 8h, 8w]`` is averaged to ``4h``,
    unshuffled to ``[B, 12, 2h, 2w]`` and encoded to ``[B, 4, h, w]``. A decoder of 12 channels goes the same way back and
    ends with a bicubic doubling; one of 48 channels paints all pixels.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner: Any = inner

    def encode(self, pixels: Tensor) -> Tensor:
        """``pixels [B, 3, 8h, 8w]`` in -1..1 -> latent mean ``[B, 4, h, w]``."""
        latent: Tensor = self.inner.encode(functional.pixel_unshuffle(functional.avg_pool2d(pixels, 2), 2))
        return latent

    def decode(self, latent: Tensor, **options: Any) -> Tensor:
        """``latent [B, 4, h, w]`` -> pixels ``[B, 3, 8h, 8w]``."""
        folded = self.inner.decode(latent, **options)
        pixels = functional.pixel_shuffle(folded, round((folded.shape[1] // 3) ** 0.5))
        if pixels.shape[-1] == 8 * latent.shape[-1]:
            return pixels
        return functional.interpolate(pixels, scale_factor=2, mode="bicubic")

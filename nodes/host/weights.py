"""Models in diffusers' layout as the host's MODEL, CLIP and VAE; sizes are read from their configurations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_management as model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's ``UNetModel`` arguments for a diffusers ``UNet2DConditionModel`` config of the Stable Diffusion kind.

    In that class ``attention_head_dim`` is, by a historical mistake, the *number* of heads (one, or one a level).
    """
    channels = config["block_out_channels"]
    levels = len(channels)
    layers = config["layers_per_block"]
    residuals = [layers] * levels if isinstance(layers, int) else list(layers)
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * levels if isinstance(depths, int) else list(depths)
    depth_down = [d if "CrossAttn" in kind else 0 for d, kind in zip(depths, config["down_block_types"], strict=True)]
    depth_up = [
        d if "CrossAttn" in kind else 0 for d, kind in zip(depths, reversed(config["up_block_types"]), strict=True)
    ]
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    if isinstance(heads, int):
        head_sizes = {"num_heads": heads, "num_head_channels": -1}
    else:
        head_sizes = {"num_heads": -1, "num_head_channels": channels[0] // heads[0]}
    pooled = config.get("projection_class_embeddings_input_dim") if config.get("addition_embed_type") else None
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        "channel_mult": [c // channels[0] for c in channels],
        "num_res_blocks": residuals,
        "transformer_depth": [depth_down[level] for level in range(levels) for _ in range(residuals[level])],
        "transformer_depth_output": [depth_up[level] for level in range(levels) for _ in range(residuals[level] + 1)],
        "transformer_depth_middle": depths[-1],
        "context_dim": config["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": bool(config.get("use_linear_projection")),
        "adm_in_channels": pooled,
        "num_classes": "sequential" if pooled else None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_checkpoint": False,
        "legacy": False,
        **head_sizes,
    }


def convert_unet(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Diffusers U-Net ``weights`` under the names of ComfyUI's ``UNetModel`` made from ``config``
    (:func:`unet_config`).
    """
    names = comfy.utils.unet_to_diffusers(config)
    return {names[key]: value for key, value in weights.items()}


#: (diffusers, ComfyUI) for a VAE's names; the level numbers of the decoder run the other way.
VAE_NAMES = (
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.block.\3"),
    (r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0", r"\1.\2.\3sample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def vae_config(config: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's ``AutoencoderKL`` arguments for a diffusers ``AutoencoderKL`` config."""
    channels = config["block_out_channels"]
    encoder = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"ddconfig": encoder, "embed_dim": config["latent_channels"]}


def convert_vae(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Diffusers VAE ``weights`` under ComfyUI's names; the linear layers of its attention become 1x1 convolutions."""
    last = len(config["block_out_channels"]) - 1
    converted = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in VAE_NAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"\bup\.(\d+)\.", lambda match: f"up.{last - int(match[1])}.", name)
        if "attn_1" in name and value.ndim == 2:
            value = value[:, :, None, None]
        converted[name] = value
    return converted


def unet_patcher(
    config: dict[str, Any],
    weights: dict[str, Tensor],
    scale: float,
    rgb_factors: list[list[float]],
    rgb_bias: list[float],
) -> Any:
    """A U-Net that predicts noise on Stable Diffusion's schedule, as MODEL in fp32.

    Args:
        config, weights: of diffusers' ``UNet2DConditionModel``.
        scale: latent scaling factor of its VAE.
        rgb_factors, rgb_bias: ``[channels][3]`` and ``[3]``, from the scaled latent to RGB in -1..1, for previews.
    """

    class Latent(comfy.latent_formats.LatentFormat):
        scale_factor = scale
        latent_rgb_factors = rgb_factors
        latent_rgb_factors_bias = rgb_bias

    class Config(comfy.supported_models_base.BASE):
        unet_extra_config: ClassVar[dict[str, Any]] = {}
        latent_format = Latent
        memory_usage_factor = 1.0

    arguments = unet_config(config)
    host_config = Config(arguments)
    host_config.set_inference_dtype(torch.float32, None)
    base = host_config.get_model({}, "")
    base.load_model_weights(convert_unet(weights, arguments), "")
    return comfy.model_patcher.ModelPatcher(
        base, load_device=model_management.get_torch_device(), offload_device=model_management.unet_offload_device()
    )


def sd1_text_encoder(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """A CLIP text encoder of Stable Diffusion 1's kind, of any size, as CLIP in fp32.

    Args:
        config, weights: of transformers' ``CLIPTextModel``, with CLIP's whole vocabulary.
    """
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options = {"dtype": torch.float32, "clip_l_model_config": {key: config[key] for key in sizes}}
    folders = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(target, embedding_directory=folders, model_options=options)
    clip.load_sd(weights)
    return clip


def autoencoder(config: dict[str, Any], weights: dict[str, Tensor], wrap: Callable[[nn.Module], nn.Module]) -> Any:
    """A diffusers ``AutoencoderKL`` as VAE in fp32, its network seen through ``wrap``."""
    vae = comfy.sd.VAE(sd=convert_vae(weights, config), config={"params": vae_config(config)}, dtype=torch.float32)
    vae.first_stage_model = wrap(vae.first_stage_model)
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, vae.patcher.load_device, vae.patcher.offload_device
    )
    return vae

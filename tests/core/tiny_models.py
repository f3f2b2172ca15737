"""Tiny seeded random diffusers models, one of each family, small enough for finite differences."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from semantic_editing.core.diffusers.denoiser import DiffusersDenoiser, TextCond
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.sampling import reference_from_noise

FAMILIES = ("sd1", "sd2", "sdxl")
TEXT_WIDTH = 12
POOLED_WIDTH = 6
TOKENS = 7


def tiny_unet(family: str = "sd1", seed: int = 0) -> UNet2DConditionModel:
    """About 0.1 M weights: cross-attention at full, half and (mid block) half resolution; "plain" has none."""
    options: dict = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    if family == "sd2":
        options |= {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    if family == "sdxl":
        options |= {
            "use_linear_projection": True,
            "attention_head_dim": (2, 4),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + POOLED_WIDTH,
        }
    if family == "plain":
        options |= {
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "mid_block_type": "UNetMidBlock2D",
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**options)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        # Sharper text attention than fresh weights give: maps near 1/tokens everywhere would hide mistakes.
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return unet.eval()


def tiny_scheduler(family: str = "sd1") -> DDIMScheduler:
    """Stable Diffusion's table; v-prediction for "sd2"."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if family == "sd2" else "epsilon",
    )


def tiny_denoiser(family: str = "sd1", seed: int = 0, dtype: torch.dtype = torch.float32) -> DiffusersDenoiser:
    """A denoiser over :func:`tiny_unet`."""
    unet = tiny_unet(family, seed)
    return DiffusersDenoiser(unet if dtype == torch.float32 else unet.to(dtype), tiny_scheduler(family))


def tiny_cond(family: str = "sd1", batch: int = 1, seed: int = 0, tokens: int = TOKENS) -> Tensor | TextCond:
    """Random text conditioning; pooled too for "sdxl"."""
    generator = torch.Generator().manual_seed(seed + 1000)
    embeds = torch.randn(batch, tokens, TEXT_WIDTH, generator=generator)
    return TextCond(embeds, torch.randn(batch, POOLED_WIDTH, generator=generator)) if family == "sdxl" else embeds


def tiny_latent(batch: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    """Unit-variance latent ``[B, 4, H, W]``."""
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed + 2000))


def tiny_conds(family: str = "sd1") -> tuple[Tensor | TextCond, ...]:
    """Source, target and negative conditioning, all different."""
    return tiny_cond(family), tiny_cond(family, seed=3), tiny_cond(family, seed=4)


def tiny_source(
    denoiser: DiffusersDenoiser, family: str = "sd1", shape: tuple = (2, 8, 8), cfg: float = 2.0, steps: int = 3
) -> Inversion:
    """A generated image's trajectory, to be edited."""
    source, _, uncond = tiny_conds(family)
    return reference_from_noise(denoiser, tiny_latent(*shape), source, cfg, uncond, steps)

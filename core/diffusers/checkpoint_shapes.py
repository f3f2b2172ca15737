"""The configurations of a Stable Diffusion checkpoint's parts, read off its tensors' names and shapes.

What shapes cannot say (heads, scaling factor, training size) is fixed within a family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import EditingError

Family = Literal["sd1", "sd2", "sdxl"]
Prediction = Literal["epsilon", "v_prediction"]
#: Name of a tensor -> its shape.
Shapes = Mapping[str, Sequence[int]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT_L = "cond_stage_model.transformer.text_model."
TEXT_H = "cond_stage_model.model."
TEXT_XL = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
#: Where each family keeps its text towers.
TOWERS: dict[Family, tuple[str, ...]] = {"sd1": (TEXT_L,), "sd2": (TEXT_H,), "sdxl": TEXT_XL}
HEAD_SIZE = 64  # of every CLIP tower, and of the U-Nets from SD 2 on
SD1_HEADS = 8
MOST_MODULES = 100  # of one kind in a row


def family_of(shapes: Shapes, name: str = "the file") -> Family:
    """Family of a checkpoint by the names of its tensors.

    Raises:
        EditingError: another kind of model, or a part of one.
    """

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    if not has(UNET):
        raise EditingError(
            f"{name} holds no Stable Diffusion U-Net; use a whole checkpoint, no LoRA, VAE or diffusers part."
        )
    if not has(f"{UNET}input_blocks.0.0."):
        raise EditingError(f"{name} is another kind of diffusion model; use an SD 1.x, SD 2.x or SDXL checkpoint.")
    if not has(VAE):
        raise EditingError(f"{name} holds no VAE; use the whole checkpoint, not the U-Net alone.")
    if all(has(prefix) for prefix in TEXT_XL):
        return "sdxl"
    if has("conditioner.embedders.0.model."):
        raise EditingError(f"{name} is SDXL's refiner; use the base model.")
    if has(TEXT_H):
        return "sd2"
    if has(TEXT_L):
        return "sd1"
    raise EditingError(
        f"{name} holds no text encoder of SD 1.x, SD 2.x or SDXL; use the whole checkpoint, not the U-Net alone."
    )


def configurations(shapes: Shapes, family: Family, prediction: Prediction) -> dict[str, dict[str, Any]]:
    """Configurations of the parts by folder name.

    Raises:
        KeyError, ValueError, IndexError: a tensor that such a model has is missing.
    """
    texts = [_text_config(shapes, prefix, drop_last=family == "sd2") for prefix in TOWERS[family]]
    side = 128 if family == "sdxl" else 96 if (family, prediction) == ("sd2", "v_prediction") else 64
    return {
        "unet": _unet_config(shapes, family, side, pooled=texts[-1]["projection_dim"]),
        "vae": _vae_config(shapes, scaling_factor=0.13025 if family == "sdxl" else 0.18215),
        **dict(zip(("text_encoder", "text_encoder_2"), texts, strict=False)),
    }


def _unet_config(shapes: Shapes, family: Family, side: int, pooled: int) -> dict[str, Any]:
    channels, layers, depths = [int(shapes[f"{UNET}input_blocks.0.0.weight"][0])], [0], [0]
    for block in range(1, count_modules(shapes, f"{UNET}input_blocks.")):
        if f"{UNET}input_blocks.{block}.0.op.weight" in shapes:
            channels, layers, depths = [*channels, 0], [*layers, 0], [*depths, 0]
            continue
        channels[-1] = int(shapes[f"{UNET}input_blocks.{block}.0.out_layers.3.weight"][0])
        layers[-1] += 1
        depths[-1] = count_modules(shapes, f"{UNET}input_blocks.{block}.1.transformer_blocks.")
    middle = f"{UNET}middle_block.1."
    # Layers are counted on the way down. The attention of a level has one depth; the middle has that of the last level.
    depths_anywhere = [depth or 1 for depth in depths]
    depths_anywhere[-1] = count_modules(shapes, f"{middle}transformer_blocks.")
    if len(set(layers)) > 1 or 0 in channels:
        raise ValueError("levels of different depth")
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "in_channels": int(shapes[f"{UNET}input_blocks.0.0.weight"][1]),
        "out_channels": int(shapes[f"{UNET}out.2.weight"][0]),
        "block_out_channels": channels,
        "layers_per_block": layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": depths_anywhere,
        "cross_attention_dim": int(shapes[f"{middle}transformer_blocks.0.attn2.to_k.weight"][1]),
        "use_linear_projection": len(shapes[f"{middle}proj_in.weight"]) == 2,
        "attention_head_dim": SD1_HEADS if family == "sd1" else [max(1, width // HEAD_SIZE) for width in channels],
    }
    if family != "sdxl":
        return config
    added = int(shapes[f"{UNET}label_emb.0.0.weight"][1])
    return config | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (added - pooled) // 6,  # six sizes, each embedded
        "projection_class_embeddings_input_dim": added,
    }


def _vae_config(shapes: Shapes, scaling_factor: float) -> dict[str, Any]:
    levels = count_modules(shapes, f"{VAE}encoder.down.")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            int(shapes[f"{VAE}encoder.down.{level}.block.0.conv2.weight"][0]) for level in range(levels)
        ],
        "layers_per_block": count_modules(shapes, f"{VAE}encoder.down.0.block."),
        "latent_channels": int(shapes[f"{VAE}decoder.conv_in.weight"][1]),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": scaling_factor,
    }


def _text_config(shapes: Shapes, prefix: str, drop_last: bool) -> dict[str, Any]:
    """A CLIP text tower; SD 2 reads the last but one layer's states, so its last layer is left out."""
    is_open = prefix in (TEXT_H, TEXT_XL[1])
    layer = "transformer.resblocks" if is_open else "encoder.layers"
    vocabulary, width = shapes[prefix + ("token_embedding.weight" if is_open else "embeddings.token_embedding.weight")]
    hidden = shapes[f"{prefix}{layer}.0.mlp.{'c_fc' if is_open else 'fc1'}.weight"][0]
    projection = shapes.get(f"{prefix}text_projection", (width, width))[1]
    return {
        "architectures": ["CLIPTextModelWithProjection" if prefix == TEXT_XL[1] else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": int(vocabulary),
        "hidden_size": int(width),
        "intermediate_size": int(hidden),
        "projection_dim": int(projection),
        "num_hidden_layers": count_modules(shapes, f"{prefix}{layer}.") - drop_last,
        "num_attention_heads": max(1, int(width) // HEAD_SIZE),
        "max_position_embeddings": 77,
        "hidden_act": "gelu" if is_open else "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 0 if is_open else 49407,
    }


def count_modules(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules there are: one more than the largest number that follows ``prefix``.

    Raises:
        ValueError: no number, or one that no model reaches.
    """
    numbers = [int(key.removeprefix(prefix).split(".")[0]) for key in shapes if key.startswith(prefix)]
    if max(numbers, default=0) >= MOST_MODULES:
        raise ValueError("more modules than any model has")
    return max(numbers, default=-1) + 1

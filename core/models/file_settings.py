"""The configuration of a transformers vision network or CLIP in one file, worked out from its tensors' shapes.

A file ``model.safetensors`` by itself, as the host's own dialog for missing models downloads it, does not say how it is
to be read. Widths, layers, patches and positions are in the shapes; heads and activations are those of the published
networks: heads 64 wide, but in LAION's larger CLIPs; OpenAI's quick GELU in CLIP B and L, GELU in LAION's larger ones.
A CLIP B or L of LAION has the same shapes as OpenAI's and another activation: it needs its folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import EditingError
from .model_settings import transformers_settings
from .vit import HEAD_WIDTH

Shapes = Mapping[str, Sequence[int]]
#: Widths of vision networks whose heads are not 64 wide (ViT-H, g and bigG) -> heads. The CLIPs among them are LAION's.
LARGE_HEADS = {1280: 16, 1408: 16, 1664: 16}
CLASS_TOKENS = {"embeddings.cls_token": "vit", "embeddings.class_embedding": "clip"}
#: Parts of a layer by family; a network with others is not one of them.
LAYER_PARTS = {
    "vit": {"attention", "intermediate", "output", "layernorm_before", "layernorm_after"},
    "dinov2": {"attention", "mlp", "norm1", "norm2", "layer_scale1", "layer_scale2"},
    "clip": {"self_attn", "mlp", "layer_norm1", "layer_norm2"},
}
EMBEDDINGS = {
    "cls_token", "mask_token", "position_embeddings", "patch_embeddings", "register_tokens", "class_embedding",
    "patch_embedding", "position_embedding", "position_ids", "token_embedding",
}  # fmt: skip
PARTS_OF_WHOLE = ("text_model.", "vision_model.", "text_projection.weight", "visual_projection.weight", "logit_scale")
TOKENS = 49408  # words of CLIP's tokenizer
VISION_WANTED = "use a DINO, DINOv2 or CLIP vision transformer"
CLIP_WANTED = "use a whole CLIP, for example openai/clip-vit-base-patch32"


class Settings(NamedTuple):
    """``class_name`` of transformers, and what its configuration is made of."""

    class_name: str
    config: dict[str, Any]


def is_transformers_file(shapes: Shapes) -> bool:
    """Whether a file's tensors bear the names of transformers' vision networks or of a side of its CLIP."""
    return any(name.endswith((*CLASS_TOKENS, "embeddings.token_embedding.weight")) for name in shapes)


def vision_settings(shapes: Shapes, name: str, heads: int | None = None) -> Settings:
    """Of a ViT (DINO's too), a DINOv2 or the image side of a CLIP, by itself or in a larger network.

    Args:
        shapes: of the file's tensors.
        name: of the file.
        heads: attention heads; None takes those of the published networks.

    Raises:
        EditingError: another network, or one whose configuration cannot be told.
    """
    found = [(key, token) for key in shapes for token in CLASS_TOKENS if key.endswith(token)]
    if len(found) != 1:
        raise EditingError(f"{name} holds no vision network with a class token; {VISION_WANTED}.")
    key, token = found[0]
    tower = _below(shapes, key.removesuffix(token))
    with _told(name, VISION_WANTED):
        if CLASS_TOKENS[token] == "clip":
            return Settings("CLIPVisionModel", _checked(_clip_side(tower, name, heads, VISION_WANTED), name))
        return _vit(tower, name, heads)


def clip_settings(shapes: Shapes, name: str) -> Settings:
    """Of a whole CLIP, both sides with their projections.

    Raises:
        EditingError: one side only, another network, another vocabulary, or a configuration that cannot be told.
    """
    lacking = [part for part in PARTS_OF_WHOLE if not any(key.startswith(part) for key in shapes)]
    if lacking:
        side = "no text side" if lacking[0] == "text_model." else f"no {lacking[0].rstrip('.')}"
        raise EditingError(f"{name} is no whole CLIP ({side}); {CLIP_WANTED}.")
    with _told(name, CLIP_WANTED):
        vision = _clip_side(_below(shapes, "vision_model."), name, None, CLIP_WANTED)
        text = _below(shapes, "text_model.")
        (words, width), (length, _) = (text[f"embeddings.{part}_embedding.weight"] for part in ("token", "position"))
        if words != TOKENS:
            raise EditingError(
                f"{name} knows {words} words, and CLIP's tokenizer has {TOKENS}; use that model as a whole folder with "
                "its own tokenizer."
            )
        layers = _layers(text, "encoder.layers.", LAYER_PARTS["clip"], name, CLIP_WANTED)
        config = {
            "vision_config": vision,
            "text_config": {
                "vocab_size": words,
                "max_position_embeddings": length,
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": _heads(width, None, name),
                "intermediate_size": text["encoder.layers.0.mlp.fc1.weight"][0],
                "hidden_act": vision["hidden_act"],
                "bos_token_id": TOKENS - 2,
                "eos_token_id": TOKENS - 1,
            },
            "projection_dim": shapes["visual_projection.weight"][0],
        }
    return Settings("CLIPModel", _checked(config, name))


class _told:
    """A tensor that is not there, or of another rank, inside: the configuration cannot be told."""

    def __init__(self, name: str, remedy: str):
        self.sentence = f"{name} does not show by its tensors how it is built; {remedy}."

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (KeyError, IndexError, ValueError, ZeroDivisionError)) and not isinstance(
            error, EditingError
        ):
            raise EditingError(self.sentence) from error


def _vit(tower: Shapes, name: str, heads: int | None) -> Settings:
    width, _, patch, across = tower["embeddings.patch_embeddings.projection.weight"]
    dinov2 = "encoder.layer.0.norm1.weight" in tower
    layers = _layers(tower, "encoder.layer.", LAYER_PARTS["dinov2" if dinov2 else "vit"], name, VISION_WANTED)
    config: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(width, heads, name),
        "patch_size": patch,
        "image_size": _side(tower["embeddings.position_embeddings"][1], patch, across, name),
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in tower,
    }
    if not dinov2:
        config["intermediate_size"] = tower["encoder.layer.0.intermediate.dense.weight"][0]
        return Settings("ViTModel", _checked(config, name))
    if "encoder.layer.0.mlp.weights_in.weight" in tower:
        config |= {"use_swiglu_ffn": True, "mlp_ratio": 4}  # of DINOv2 g: it cannot be told from a rounded width
    else:
        config["mlp_ratio"], rest = divmod(tower["encoder.layer.0.mlp.fc1.weight"][0], width)
        if rest:
            raise ValueError("no whole ratio")
    registers = tower.get("embeddings.register_tokens")
    if registers is None:
        return Settings("Dinov2Model", _checked(config, name))
    return Settings("Dinov2WithRegistersModel", _checked(config | {"num_register_tokens": registers[1]}, name))


def _clip_side(tower: Shapes, name: str, heads: int | None, remedy: str) -> dict[str, Any]:
    width, _, patch, across = tower["embeddings.patch_embedding.weight"]
    return {
        "hidden_size": width,
        "num_hidden_layers": _layers(tower, "encoder.layers.", LAYER_PARTS["clip"], name, remedy),
        "num_attention_heads": _heads(width, heads, name),
        "intermediate_size": tower["encoder.layers.0.mlp.fc1.weight"][0],
        "patch_size": patch,
        "image_size": _side(tower["embeddings.position_embedding.weight"][0], patch, across, name),
        "hidden_act": "gelu" if width in LARGE_HEADS else "quick_gelu",
    }


def _layers(tower: Shapes, prefix: str, parts: set[str], name: str, remedy: str) -> int:
    """How many layers; all must be there, of ``parts`` alone."""
    inside = [key.removeprefix(prefix).split(".") for key in tower if key.startswith(prefix)]
    embeddings = {key.split(".")[1] for key in tower if key.startswith("embeddings.")}
    if not {part[1] for part in inside} <= parts or not embeddings <= EMBEDDINGS:
        raise EditingError(f"{name} holds a network of another kind; {remedy}.")
    numbers = {int(part[0]) for part in inside}
    if not numbers or numbers != set(range(len(numbers))):
        raise EditingError(f"{name} lacks some of its layers; download the file again.")
    return len(numbers)


def _heads(width: int, heads: int | None, name: str) -> int:
    made = heads or LARGE_HEADS.get(width, width // HEAD_WIDTH)
    if made < 1 or width % made or (heads is None and width not in LARGE_HEADS and width % HEAD_WIDTH):
        told = f"into {heads} heads" if heads else f"into heads of {HEAD_WIDTH}"
        raise EditingError(f"{name}'s {width} channels do not divide {told}; use that model as a whole folder.")
    return made


def _side(positions: int, patch: int, across: int, name: str) -> int:
    """Pixels of the pictures it was trained on: a square of patches beside the class token."""
    grid = math.isqrt(max(positions - 1, 0))
    if grid < 1 or grid**2 + 1 != positions or patch != across:
        raise EditingError(f"{name} sees pictures or patches that are not square; {VISION_WANTED}.")
    return grid * patch


def _checked(config: dict[str, Any], name: str) -> dict[str, Any]:
    """No number larger than that of any network."""
    try:
        return transformers_settings(config, name)
    except EditingError as error:
        raise EditingError(f"{name} is larger than any vision network; {VISION_WANTED}.") from error


def _below(shapes: Shapes, prefix: str) -> dict[str, Sequence[int]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}

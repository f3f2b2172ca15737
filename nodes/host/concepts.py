"""A picture's layers in the host's image tower, a vector as a word, and other projections in cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import comfy.lora
from torch import Tensor

from ...core.errors import EditingError
from .conditioning import BLOCK_ENCODERS, PREFIX

MARK = "*"


def layer_tokens(clip_vision: Any, image: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """What ``layers`` of a CLIP_VISION (from 1; -1 is the last) put out for an IMAGE: ``[B, N, D]`` each, on the CPU.

    Raises:
        EditingError: an image tower of another kind, or one with fewer layers.
    """
    network = getattr(getattr(clip_vision, "model", None), "vision_model", None)
    blocks = getattr(getattr(network, "encoder", None), "layers", None)
    if blocks is None or max(layers) > len(blocks):
        raise EditingError("This image tower has other layers than CLIP ViT-L/14; load that with Load CLIP Vision.")
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            kept[layer] = (output[0] if isinstance(output, tuple) else output).detach().float().cpu()

        return hook

    with ExitStack() as stack:
        for layer in layers:
            block = blocks[layer - 1 if layer > 0 else layer]
            stack.callback(block.register_forward_hook(keep(layer)).remove)
        clip_vision.encode_image(image[..., :3])
    return [kept[layer] for layer in layers]


def encoded_with_word(clip: Any, text: str, vector: Tensor) -> Any:
    """CONDITIONING of ``text`` in which ``vector [D]`` stands wherever the text has :data:`MARK`.

    Raises:
        EditingError: no such place, a text encoder of another kind or width.
    """
    tokens = clip.tokenize(text)
    if set(tokens) not in BLOCK_ENCODERS or len(tokens) != 1:
        raise EditingError("The word is one of Stable Diffusion 1's text encoder; use the CLIP of an SD 1.x model.")
    ((name, blocks),) = tokens.items()
    width = getattr(clip.cond_stage_model, PREFIX + name).transformer.get_input_embeddings().weight.shape[1]
    if width != len(vector):
        raise EditingError(
            f"The word is {len(vector)} wide and this text encoder's {width}; use the CLIP of an SD 1.x model."
        )
    pieces = getattr(clip.tokenizer, PREFIX + name).inv_vocab
    places = 0
    changed = []
    for block in blocks:
        row = []
        for token, *rest in block:
            here = isinstance(token, int) and str(pieces.get(token, "")).removesuffix("</w>") == MARK
            places += here
            row.append((vector if here else token, *rest))
        changed.append(row)
    if not places:
        raise EditingError(f"The text has no {MARK} as a word of its own; write it where the concept stands.")
    return clip.encode_from_tokens_scheduled({name: changed})


def with_projections(model: Any, projections: Mapping[str, Tensor]) -> Any:
    """A MODEL whose cross-attention has other weights, ``projections`` by the names of diffusers with underscores.

    Raises:
        EditingError: a layer that the model does not have, or one of another size.
    """
    keys, weights = comfy.lora.model_lora_keys_unet(model.model, {}), model.model.state_dict()
    patches = {}
    for name, weight in projections.items():
        key = keys.get(f"lora_unet_{name}")
        if not isinstance(key, str) or weights[key].shape != weight.shape:
            raise EditingError(
                "This mapper's projections are those of another kind of model; use an SD 1.x checkpoint, which ELITE "
                "was trained on."
            )
        patches[key] = ("set", (weight,))
    changed = model.clone()
    changed.add_patches(patches)
    return changed

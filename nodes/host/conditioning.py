"""CONDITIONING as plain tensors, and text encoding in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_base
import comfy.model_management as model_management
import comfy.utils
import torch
from torch import Tensor

from ...core.content_hash import content_hash
from ...core.errors import EditingError
from ...core.prints.content import content_print

POOLED = "pooled_output"
#: The host's names of the encoders (SD1, SD2, SDXL) whose blocks all have 77 tokens, and the one whose pooled vector a
#: model reads.
BLOCK_ENCODERS = ({"l"}, {"h"}, {"l", "g"})
POOLED_ENCODER = "g"
#: In embedding files and in the host's module tree an encoder's name is this and the tokenizer's name, e.g. "clip_l".
PREFIX = "clip_"
LAST_LAYER = -1
END_OF_TEXT = 49407  # of CLIP's byte pairs, which all of :data:`BLOCK_ENCODERS` read


def require_conditioning(model: Any, conds: dict[str, list[Any]]) -> None:
    """Raise :class:`EditingError` for CONDITIONING of another text encoder than ``model``'s (U-Nets only).

    Args:
        conds: CONDITIONING by name; the name tells the person which input is meant.
    """
    if not hasattr(model.model.diffusion_model, "input_blocks"):
        return
    width = model.model.model_config.unet_config.get("context_dim")
    for name, conditioning in conds.items():
        for embeds, options in conditioning:
            if width and isinstance(embeds, Tensor) and embeds.shape[-1] != width:
                raise EditingError(
                    f"The conditioning {name!r} is {embeds.shape[-1]} wide and this model reads {width}; "
                    "encode the prompt with the model's own CLIP."
                )
            if isinstance(model.model, comfy.model_base.SDXL) and not {POOLED, "unclip_conditioning"} & set(options):
                raise EditingError(
                    f"The conditioning {name!r} lacks the pooled text that SDXL reads; encode the prompt with the "
                    "model's own CLIP."
                )


def conditioning_tensors(conditioning: list[Any]) -> dict[str, Tensor] | None:
    """``{"embeds": [B, L, D], "pooled"?: [B, P]}`` of a single plain CONDITIONING entry, else None.

    None means: several entries, or parts that are not text (ControlNet, areas, masks, hooks, reference latents).
    """
    if len(conditioning) != 1:
        return None
    embeds, options = conditioning[0]
    extra = {key for key, value in options.items() if value is not None}
    if not isinstance(embeds, Tensor) or extra - {POOLED}:
        return None
    tensors = {"embeds": embeds.detach().float().cpu()}
    if POOLED in extra:
        tensors["pooled"] = options[POOLED].detach().float().cpu()
    return tensors


def conditioning_print(conditioning: list[Any]) -> str:
    """Content print of CONDITIONING of any kind: texts, areas, masks, ControlNets, pictures."""
    return content_print([(embeds, options) for embeds, options in conditioning])


def conditioning_from_tensors(tensors: dict[str, Tensor]) -> list[Any]:
    """The CONDITIONING that :func:`conditioning_tensors` took apart."""
    options = {POOLED: tensors["pooled"]} if "pooled" in tensors else {}
    return [[tensors["embeds"], options]]


def per_level_conditioning(model: Any, texts: Tensor, sigmas: Tensor, pooled: Tensor | None = None) -> list[Any]:
    """CONDITIONING that says another text at each noise level: ``texts [T, B, L, D]`` at ``sigmas [T]``, ascending.

    Each is limited to its range of the schedule, halfway (in log sigma) to its neighbours; together they cover it.
    """
    sampling = model.get_model_object("model_sampling")
    between = (sigmas[1:] * sigmas[:-1]).sqrt().tolist()
    ends = [1.0, *(_percent_of(sampling, sigma) for sigma in between), 0.0]
    options = {} if pooled is None else {POOLED: pooled}
    return [
        [text, {**options, "start_percent": ends[number + 1], "end_percent": ends[number]}]
        for number, text in reversed(list(enumerate(texts)))
    ]


def _percent_of(sampling: Any, sigma: float) -> float:
    """The share of a schedule after which its level is ``sigma``, by bisection; the host only has the other way."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if float(sampling.percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def with_embeds(cond: list[dict[str, Any]], embeds: Tensor) -> list[dict[str, Any]]:
    """A processed conditioning of one text that says ``embeds [B, L, D]`` instead.

    Raises:
        EditingError: the model reads no text by cross-attention.
    """
    if any("c_crossattn" not in entry["model_conds"] for entry in cond):
        raise EditingError("This model does not read its text by cross-attention; use an SD 1.x, SD 2.x or SDXL model.")
    return [
        {
            **entry,
            "model_conds": {
                **entry["model_conds"],
                "c_crossattn": entry["model_conds"]["c_crossattn"]._copy_with(embeds),
            },
        }
        for entry in cond
    ]


def apply_to_conditioning(
    conditioning: list[Any], change: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
) -> list[Any]:
    """A copy of ``conditioning`` with ``change(embeds [B, L, D], pooled [B, P] | None)`` applied to every entry;
    areas, masks, ControlNet and all other parts are kept."""
    changed = []
    for embeds, options in conditioning:
        new_embeds, pooled = change(embeds, options.get(POOLED))
        new_options = dict(options)
        if pooled is not None:
            new_options[POOLED] = pooled
        changed.append([new_embeds, new_options])
    return changed


def encode_sentences(clip: Any, sentences: Sequence[str], batch_size: int = 16) -> tuple[Tensor, Tensor | None]:
    """Encode N sentences with the host's CLIP:
    ``(embeds [N, L, D], pooled [N, P] or None where the model has no use for it)``.

    The encoders of SD1, SD2 and SDXL take ``batch_size`` sentences in one pass: the host runs the 77-token blocks of a
    long prompt as rows of a batch, and one sentence is one block. It returns the pooled vector of the first block only;
    those of all are caught on their way. Other encoders go one by one.

    Raises:
        EditingError: no sentence, one longer than a single block of tokens, or an encoder without a fixed length.
    """
    if not sentences:
        raise EditingError("The sentence list is empty; write at least one sentence.")
    tokens = [clip.tokenize(sentence) for sentence in sentences]
    for sentence, blocks in zip(sentences, tokens, strict=True):
        if any(len(rows) != 1 for rows in blocks.values()):
            raise EditingError(f"The sentence {sentence[:40]!r}... is longer than 75 tokens; shorten it.")
    if set(tokens[0]) in BLOCK_ENCODERS:
        return _encode_blocks(clip, tokens, batch_size)
    encoded = []
    for blocks in tokens:
        model_management.throw_exception_if_processing_interrupted()
        encoded.append(clip.encode_from_tokens(blocks, return_pooled=True))
    embeds, pooled = zip(*encoded, strict=True)
    if len({states.shape[1:] for states in embeds}) > 1:
        raise EditingError(
            "This text encoder makes sentences of different lengths; use the encoder of an SD 1.x, SD 2.x or SDXL "
            "model."
        )
    return torch.cat(embeds), None if pooled[0] is None else torch.cat(pooled)


def token_number(token: int | Tensor) -> int:
    """A token's id; a vector of ``embedding:name`` has none and gets a negative number by its content."""
    return token if isinstance(token, int) else -1 - int(content_hash(token.float())[:12], 16)


def sentence_tokenizer(clip: Any) -> Callable[[Sequence[str]], list[list[int]]] | None:
    """What gives the token ids of sentences from the start to the end token; None for encoders without fixed blocks.

    The vectors of ``embedding:name`` have no id: equal ones get one negative number. Emphasis says nothing here.
    """
    if set(clip.tokenize("")) not in BLOCK_ENCODERS:
        return None

    def ids(sentence: str) -> list[int]:
        named = [token_number(token) for token, *_ in next(iter(clip.tokenize(sentence).values()))[0]]
        return named[: named.index(END_OF_TEXT) + 1] if END_OF_TEXT in named else named

    return lambda sentences: [ids(sentence) for sentence in sentences]


def _encode_blocks(clip: Any, tokens: list[dict[str, list[Any]]], batch_size: int) -> tuple[Tensor, Tensor | None]:
    embeds, pooled = [], []
    for start in range(0, len(tokens), batch_size):
        model_management.throw_exception_if_processing_interrupted()
        batch = tokens[start : start + batch_size]
        with caught_pooled(clip.cond_stage_model) as caught:
            joined = clip.encode_from_tokens({name: [blocks[name][0] for blocks in batch] for name in batch[0]})
        embeds.append(joined.reshape(len(batch), -1, joined.shape[-1]))
        pooled += [rows[: len(batch)].to(joined.device) for rows in caught]  # a row for weighting may follow
    return torch.cat(embeds), torch.cat(pooled) if pooled else None


@contextmanager
def caught_pooled(network: Any) -> Iterator[list[Tensor]]:
    """A list that gets the pooled vectors ``[N, P]`` of what SDXL's second encoder in ``network`` encodes in the
    ``with`` block.
    """
    caught: list[Tensor] = []
    encoder = getattr(network, PREFIX + POOLED_ENCODER, None)
    if encoder is None:
        yield caught
        return
    hook = encoder.register_forward_hook(lambda module, inputs, outputs: caught.append(outputs[1]))
    try:
        yield caught
    finally:
        hook.remove()


def text_encoder_name(clip: Any) -> str:
    """A stable name of the text encoder, its parts and widths: "clip_l 768", "clip_l 768 + clip_g 1280"."""
    parts = []
    for name, module in clip.cond_stage_model.named_children():
        table = module.transformer.get_input_embeddings() if hasattr(module, "transformer") else None
        if table is not None:
            parts.append(f"{name} {table.weight.shape[1]}")
    return " + ".join(parts) or type(clip.cond_stage_model).__name__


def text_encoding_name(clip: Any) -> str:
    """:func:`text_encoder_name` with the layer whose states are read, where it is not the model's own (clip skip):
    "clip_l 768, layer -2".
    """
    layer = clip.layer_idx
    own = {
        module.options_default[1] or LAST_LAYER
        for module in clip.cond_stage_model.children()
        if hasattr(module, "options_default")
    }
    name = text_encoder_name(clip)
    return name if layer is None or own <= {layer} else f"{name}, layer {layer}"

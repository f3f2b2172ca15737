"""The layouts in which programs keep textual inversions, as token vectors by text encoder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import EditingError
from ..file_names import shown_name
from ..reading.pickles import LISTED, read_network_pickle
from ..token_vectors import ENCODER_OF_WIDTH

SINGLE_KEY = "emb_params"  # of safetensors files with one text encoder; ComfyUI also accepts the encoder's name
ENCODERS = ("clip_l", "clip_g", "clip_h")  # keys of files with several, in the order of a model's encoders
#: What trainers of SDXL embeddings call its encoders, by number.
NUMBERED = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
#: Embeddings inside a LoRA file: ``bundle_emb.<name>.string_to_param.*`` or ``bundle_emb.<name>.clip_l``.
BUNDLED, BUNDLED_TERM = "bundle_emb.", ".string_to_param.*"
RELEASED_WEIGHT, RELEASED_BIAS = "0.weight", "0.bias"
#: Last parts of the names of what is no token: weights of a network or a LoRA.
NO_TOKENS = ("weight", "bias", "alpha", "diff")


def named_vectors(tensors: Mapping[str, Tensor], base_model: str, file_name: str) -> tuple[dict[str, Tensor], str]:
    """``(token vectors [n, D] fp32 by encoder, a note)`` from the tensors of a textual-inversion file.

    n may differ between encoders. Read are, in the order in which ComfyUI looks for them: vectors by the name of their
    encoder (``clip_l``, ``text_encoders_0``), those bundled with a LoRA, ``emb_params``, and vectors under the tokens
    that they stand for, where a vector's width tells the encoder and several tokens stand one after another.

    Args:
        base_model: name of the text encoder if the file has it, e.g. "clip_l 768"; "" lets the width tell.
        file_name: for messages.

    Returns:
        The note says what a person should know of a file that holds more than one thing, "" of any other.

    Raises:
        EditingError: nothing of the kind.
    """
    by_encoder = {NUMBERED.get(key, key): tensors[key] for key in (*ENCODERS, *NUMBERED) if key in tensors}
    if by_encoder:
        return {name: _rows([by_encoder[name]], file_name) for name in ENCODERS if name in by_encoder}, ""
    bundled = {key: tensor for key, tensor in tensors.items() if key.startswith(BUNDLED)}
    if bundled:
        return _bundled(bundled, file_name)
    if SINGLE_KEY in tensors:
        return _alone(tensors[SINGLE_KEY], base_model, file_name), ""
    if not _are_tokens(tensors):
        keys = ", ".join(shown_name(key) for key in list(tensors)[:3])[:90]
        raise EditingError(
            f"{shown_name(file_name)} is no textual-inversion file (it holds: {keys}); choose one with emb_params or "
            "clip_l."
        )
    if len(tensors) == 1:
        return _alone(next(iter(tensors.values())), base_model, file_name), ""
    return _by_width(
        tensors, file_name
    ), f"{len(tensors)} tokens, one after another: {_listed(sorted(tensors, key=_naturally))}"


def pickled_vectors(path: str | Path) -> tuple[dict[str, Tensor], bool, str]:
    """``(token vectors by encoder, whether they are a layer of the released CASO code, a note)`` of a .pt or .bin file;
    no code in it runs.

    Read are AUTOMATIC1111's layout (the tensors under ``string_to_param``), diffusers' (token -> tensor), lists of
    these, the names of safetensors files, and the released ``Linear(1, D)`` on a constant 1, whose vector is W[:, 0] +
    b (section 3.2 of its trainer).

    Raises:
        EditingError: missing, damaged, hostile, or nothing of the kind.
    """
    source = Path(path)
    read = read_network_pickle(source, "embedding")
    tensors = read.tensors
    weight, bias = tensors.get(RELEASED_WEIGHT), tensors.get(RELEASED_BIAS)
    if (
        weight is not None
        and bias is not None
        and weight.ndim == 2
        and weight.shape[1] == 1
        and bias.shape == weight.shape[:1]
    ):
        return _alone(weight[:, 0].float() + bias.float(), "", source.name), True, ""
    if read.kind == LISTED and _are_tokens(tensors):  # ComfyUI puts the vectors of a list together by width
        return _by_width(tensors, source.name), False, ""
    known = (SINGLE_KEY, *ENCODERS, *NUMBERED)
    if not _are_tokens(tensors) and not any(name in known or name.startswith(BUNDLED) for name in tensors):
        keys = ", ".join(shown_name(key) for key in list(tensors)[:3])[:90]
        raise EditingError(
            f"{shown_name(source.name)} is neither a textual inversion nor a CASO linear layer ({RELEASED_WEIGHT} "
            f"[width, 1] and {RELEASED_BIAS} [width]) but holds {keys}; choose one of these."
        )
    vectors, note = named_vectors(tensors, "", source.name)
    return vectors, False, note


def _bundled(tensors: Mapping[str, Tensor], file_name: str) -> tuple[dict[str, Tensor], str]:
    """The embeddings of a LoRA file, one after another."""
    terms = {
        key.removeprefix(BUNDLED).removesuffix(BUNDLED_TERM): tensor
        for key, tensor in tensors.items()
        if key.endswith(BUNDLED_TERM)
    }
    if terms:
        return _by_width(terms, file_name), _bundle_note(terms)
    found: dict[str, list[Tensor]] = {}
    names: dict[str, None] = {}
    for key, tensor in tensors.items():
        name, _, encoder = key.removeprefix(BUNDLED).rpartition(".")
        if encoder in ENCODERS:
            found.setdefault(encoder, []).append(tensor)
            names[name] = None
    if not found:
        raise EditingError(
            f"{shown_name(file_name)} bundles embeddings of a text encoder that is not known ("
            f"{shown_name(next(iter(tensors)))}); choose one for SD 1.x, SD 2.x or SDXL."
        )
    return {name: _rows(found[name], file_name) for name in ENCODERS if name in found}, _bundle_note(names)


def _bundle_note(names: Iterable[str]) -> str:
    return f"bundled with a LoRA, which this node does not apply: {_listed(names)}"


def _listed(names: Iterable[str], most: int = 10) -> str:
    chosen = [shown_name(name) for name in names]
    return ", ".join(chosen[:most]) + (f" ... ({len(chosen)})" if len(chosen) > most else "")


def _alone(tensor: Tensor, base_model: str, file_name: str) -> dict[str, Tensor]:
    """Vectors whose encoder the file does not say in their name."""
    rows = _rows([tensor], file_name)
    named = base_model.split(" ")[0]
    return {named if named in ENCODERS else _encoder_of(rows): rows}


def _by_width(tensors: Mapping[str, Tensor], file_name: str) -> dict[str, Tensor]:
    """Vectors of several tokens, one after another, by the encoder that has their width."""
    found: dict[str, list[Tensor]] = {}
    for key in sorted(tensors, key=_naturally):
        found.setdefault(_encoder_of(tensors[key]), []).append(tensors[key])
    return {name: _rows(found[name], file_name) for name in ENCODERS if name in found}


def _naturally(key: str) -> list[str]:
    """To sort by, so that <s10> follows <s9>."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d{1,9})", key)]


def _encoder_of(tensor: Tensor) -> str:
    return ENCODER_OF_WIDTH.get(tensor.shape[-1], "clip_l").split(" ")[0]


def _are_tokens(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a table holds nothing but vectors under the tokens that they stand for: one, or several of known
    widths."""
    plain = all(
        tensor.ndim in (1, 2) and key not in ENCODERS and key.split(".")[-1] not in NO_TOKENS
        for key, tensor in tensors.items()
    )
    return plain and (len(tensors) == 1 or all(tensor.shape[-1] in ENCODER_OF_WIDTH for tensor in tensors.values()))


def _rows(tensors: list[Tensor], file_name: str) -> Tensor:
    """``[n, D]`` in fp32 of vectors ``[D]`` or ``[m, D]`` of one encoder, one after another."""
    rows = [tensor.float()[None] if tensor.ndim == 1 else tensor.float() for tensor in tensors]
    if any(part.ndim != 2 or part.shape[1] != rows[0].shape[-1] for part in rows):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors[:3])[:80]
        raise EditingError(
            f"{shown_name(file_name)} holds no token vectors but tensors of shape {shapes}; choose a textual-inversion "
            "file."
        )
    return torch.cat(rows)

"""The layouts in which programs keep textual inversions, as token vectors by text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import EditingError
from ..reading.pickles import read_network_pickle
from ..token_vectors import ENCODER_OF_WIDTH

SINGLE_KEY = "emb_params"  # of safetensors files with one text encoder; ComfyUI also accepts the encoder's name
ENCODERS = ("clip_l", "clip_g", "clip_h")  # keys of files with several, in the order of a model's encoders
RELEASED_WEIGHT, RELEASED_BIAS = "0.weight", "0.bias"


def named_vectors(tensors: Mapping[str, Tensor], base_model: str, file_name: str) -> dict[str, Tensor]:
    """Token vectors ``[n, D]`` fp32 by encoder from the tensors of a textual-inversion file.

    Args:
        base_model: name of the text encoder if the file has it, e.g. "clip_l 768"; "" lets the width tell.
        file_name: for messages.

    Raises:
        EditingError: nothing of the kind.
    """
    alone = SINGLE_KEY if SINGLE_KEY in tensors else _token(tensors)
    if alone is not None:
        vectors = _rows(tensors[alone])
        return {(base_model or ENCODER_OF_WIDTH.get(vectors.shape[-1], "clip_l")).split(" ")[0]: vectors}
    found = {name: _rows(tensors[name]) for name in ENCODERS if name in tensors}
    if not found:
        keys = ", ".join(list(tensors)[:3])
        raise EditingError(
            f"{file_name} is no textual-inversion file (it holds: {keys}); choose one with emb_params or clip_l."
        )
    return found


def pickled_vectors(path: str | Path) -> tuple[dict[str, Tensor], bool]:
    """``(token vectors by encoder, whether they are a layer of the released CASO code)`` of a .pt or .bin file; no code
    in it runs.

    Read are AUTOMATIC1111's layout (the tensor under ``string_to_param``), diffusers' (token -> tensor), the names of
    safetensors files, and the released ``Linear(1, D)`` on a constant 1, whose vector is W[:, 0] + b (section 3.2 of
    its trainer).

    Raises:
        EditingError: missing, damaged, hostile, or nothing of the kind.
    """
    source = Path(path)
    tensors = read_network_pickle(source, "embedding").tensors
    weight, bias = tensors.get(RELEASED_WEIGHT), tensors.get(RELEASED_BIAS)
    if (
        weight is not None
        and bias is not None
        and weight.ndim == 2
        and weight.shape[1] == 1
        and bias.shape == weight.shape[:1]
    ):
        return named_vectors({SINGLE_KEY: weight[:, 0].float() + bias.float()}, "", source.name), True
    if _token(tensors) is None and not any(name in tensors for name in (SINGLE_KEY, *ENCODERS)):
        raise EditingError(
            f"{source.name} is neither a textual inversion nor a CASO linear layer ({RELEASED_WEIGHT} [width, 1] and "
            f"{RELEASED_BIAS} [width]) but holds {', '.join(list(tensors)[:3])}; choose one of these."
        )
    return named_vectors(tensors, "", source.name), False


def _token(tensors: Mapping[str, Tensor]) -> str | None:
    """The key of files that hold nothing but vectors under the token that they stand for; None of other files."""
    key = next(iter(tensors), "")
    other = key in ENCODERS or key.split(".")[-1] in ("weight", "bias")
    return key if len(tensors) == 1 and not other and tensors[key].ndim in (1, 2) else None


def _rows(tensor: Tensor) -> Tensor:
    return tensor.float()[None] if tensor.ndim == 1 else tensor.float()

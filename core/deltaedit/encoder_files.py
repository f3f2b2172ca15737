"""Files of style encoders: this pack's safetensors, and e4e's and pSp's published checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..files import load_tensors, metadata_json, save_tensors
from ..models.arcface import STAGES
from ..reading.pickles import read_snapshot_pickle
from .encoder import CompactEncoder, E4eEncoder

FORMAT = "style encoder"
#: Where the published checkpoints keep what the encoder needs; the rest is a generator.
PARTS = ("state_dict", "latent_avg", "opts")
WEIGHTS, MEAN, KIND = "state_dict.encoder.", "latent_avg", "opts.encoder_type"
#: What they call their encoders, and whether its blocks after the first give differences from the first's code.
PUBLISHED = {"Encoder4Editing": True, "GradualStyleEncoder": False}
#: Faults that a sentence names.
NAMED = 3
#: Of a trunk; the published ones have 24.
MOST_UNITS = 200

Encoder = CompactEncoder | E4eEncoder


def load_encoder(
    path: str | Path, rows: int, style_dim: int, *, stages: Sequence[tuple[int, int]] = STAGES, side: int = 256
) -> Encoder:
    """The encoder in a file, for a generator whose W+ has ``rows`` rows of ``style_dim`` numbers.

    Args:
        path: safetensors as :func:`save_encoder` writes them, or a checkpoint of e4e or pSp (``e4e_ffhq_encode.pt``),
            of which the encoder alone is read; no code in it runs.
        stages, side: of a checkpoint's trunk and pictures, which it does not say.

    Raises:
        EditingError: missing, too large, damaged, hostile, not of an encoder, with layers missing or of other shapes,
            or made for another generator.
    """
    source = Path(path)
    if source.suffix == ".safetensors":
        tensors, metadata = load_tensors(source, FORMAT, kind="style encoder")
        shape = metadata_json(metadata, "shape", source.name, "style encoder")
    else:
        tensors, shape = _published(source, stages, side)
    _check_partner(source.name, shape["rows"], shape["style_dim"], rows, style_dim)
    with torch.device("meta"):  # the weights are given; making and throwing away 260 million takes seconds
        encoder = _built(source.name, shape)
    _fill(encoder, tensors, source.name)
    return encoder.eval().requires_grad_(False)


def save_encoder(path: str | Path, encoder: Encoder, *, half: bool = False, overwrite: bool = False) -> Path:
    """Write an encoder as safetensors.

    Args:
        half: in 16 bits, which are read as 32.

    Raises:
        EditingError: the file exists and ``overwrite`` is False, or it cannot be written.
    """
    tensors = {name: tensor for name, tensor in encoder.state_dict().items() if not _is_counter(name)}
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    return save_tensors(path, tensors, {"format": FORMAT, "shape": json.dumps(encoder.shape())}, overwrite=overwrite)


def _published(source: Path, stages: Sequence[tuple[int, int]], side: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``(weights, shape)`` of a checkpoint of e4e or pSp."""
    read = read_snapshot_pickle(source, "style encoder", PARTS, lambda name: name == MEAN or name.startswith(WEIGHTS))
    found, kind = read.tensors, str(read.facts.get(KIND, "Encoder4Editing"))
    tensors = {name.removeprefix(WEIGHTS): tensor for name, tensor in found.items() if name != MEAN}
    if not tensors or kind not in PUBLISHED:
        held = f"a {kind[:40]}" if tensors and kind.isprintable() else "no weights under encoder"
        raise EditingError(
            f"{source.name} holds {held}; use a checkpoint of e4e or pSp, such as e4e_ffhq_encode.pt, or an encoder "
            "saved by this pack."
        )
    if MEAN not in found:
        raise EditingError(
            f"{source.name} lacks {MEAN}, the mean code to which the encoder's results are added; use the original "
            "file."
        )
    mean = found[MEAN].float()
    blocks = {name.split(".")[1] for name in tensors if name.startswith("styles.") and name.count(".") >= 2}
    rows, width = len(blocks), mean.shape[-1] if mean.ndim else 0
    if mean.ndim not in (1, 2) or rows < 1 or (mean.ndim == 2 and len(mean) not in (1, rows)):
        raise EditingError(
            f"{source.name} has {rows} blocks of styles and a {MEAN} of shape {list(mean.shape)}, which do not belong "
            "together; download it again."
        )
    tensors[MEAN] = mean.expand(rows, width).clone()
    shape = {"kind": "e4e" if PUBLISHED[kind] else "psp", "rows": rows, "style_dim": width, "side": side}
    return tensors, shape | {"stages": [list(stage) for stage in stages]}


def _check_partner(name: str, rows: int, width: int, wanted_rows: int, wanted_width: int) -> None:
    if (rows, width) != (wanted_rows, wanted_width):
        sides = f"{_side_of(rows)} pixels" if rows % 2 == 0 and 4 <= rows <= 24 else "no generator"
        raise EditingError(
            f"{name} makes codes of {rows} rows of {width} numbers, for {sides}, and the generator wants {wanted_rows} "
            f"rows of {wanted_width}, for {_side_of(wanted_rows)} pixels; use an encoder trained for this generator."
        )


def _side_of(rows: int) -> int:
    """Pixels of the generator whose W+ has so many rows: 2 log2(pixels) - 2."""
    return int(2 ** ((rows + 2) // 2))


def _built(name: str, shape: Mapping[str, Any]) -> Encoder:
    rows, width, side = shape["rows"], shape["style_dim"], shape["side"]
    try:
        if shape["kind"] == "compact":
            return CompactEncoder(
                rows, width, side, tuple(shape["widths"]), shape["hidden"], shape.get("differing", True)
            )
        stages = [(channels, units) for channels, units in shape["stages"]]
        if sum(units for _, units in stages) > MOST_UNITS or side & (side - 1) or any(c % 16 for c, _ in stages):
            raise ValueError("no trunk of this kind")
        return E4eEncoder(rows, width, side, stages, shape["kind"] == "e4e")
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise EditingError(f"{name} describes an encoder that cannot be built; save it again.") from error


def _fill(encoder: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Give the layers their weights; :class:`EditingError` names what is missing, left over or of another shape."""
    wanted = encoder.state_dict()
    # Counters of batches, which older files lack and which nothing here reads.
    given = {key: tensor.float() for key, tensor in tensors.items() if not _is_counter(key)}
    counters = {key: torch.zeros((), dtype=torch.long) for key in wanted if _is_counter(key)}
    faults = [f"lacks {key}" for key in wanted if key not in given and key not in counters]
    faults += [f"has {key[:80]} too much" for key in given if key not in wanted]
    faults += [
        f"has {key} of shape {list(tensor.shape)} instead of {list(wanted[key].shape)}"
        for key, tensor in given.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise EditingError(
            f"{name} does not fit its encoder: it {', '.join(faults[:NAMED])}{more}; use the original file."
        )
    encoder.load_state_dict(given | counters, assign=True)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")

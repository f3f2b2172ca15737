"""Files of Delta Mappers and relevance matrices: the pack's own, and those that DeltaEdit's authors and users have.

A mapper of the authors (``net_face.pth``) is a table of weights and nothing else. Which generator it is for follows
from its shapes; how pictures are made ready for CLIP, and its pixel norm over layers, from their program.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import EditingError
from ..file_names import shown_name
from ..files import FORMAT_KEY, load_tensors, load_weights, metadata_json, save_tensors
from ..models.clip import DELTAEDIT, OWN
from ..reading.arrays import read_array
from .mapper import RELEASED, DeltaMapper
from .relevance import COVARIANCE, Relevance
from .relevance import RELEASED as RELEASED_MATRIX
from .style_code import LEVELS, StyleLayout
from .stylegan2 import channels_of

MAPPER_FORMAT, RELEVANCE_FORMAT = "semantic_editing.delta_mapper", "semantic_editing.relevance"
#: Under this name both kinds of file keep a relevance matrix.
RELEVANCE = "relevance"
#: StyleGAN2's configurations: pixels of a side, and channel multiplier.
CONFIGURATIONS = [(size, multiplier) for multiplier in (2, 1) for size in (1024, 512, 256, 128, 64)]
#: Weights that are missing and named in a sentence.
NAMED = 3


def save_mapper(
    path: str | Path,
    mapper: DeltaMapper,
    relevance: Relevance | None = None,
    overwrite: bool = False,
    half: bool = False,
) -> Path:
    """Write a mapper as one safetensors file.

    Args:
        relevance: goes along, so that one file disentangles; None: the mapper's own, where it has one.
        half: weights and relevance in fp16, half the size; the standardisation stays fp32.

    Raises:
        EditingError: see :func:`~..files.save_tensors`.
    """
    relevance = relevance or mapper.relevance
    tensors = {name: tensor.half() if half else tensor for name, tensor in mapper.state_dict().items()}
    tensors |= {"mean": mapper.mean, "deviation": mapper.deviation}
    shape = {
        "levels": mapper.levels,
        "clip_width": mapper.clip_width,
        "architecture": mapper.architecture,
        "hidden": mapper.hidden,
        "across_channels": mapper.across_channels,
        "preprocessing": mapper.preprocessing,
    }
    metadata = {
        FORMAT_KEY: MAPPER_FORMAT,
        "shape": json.dumps(shape),
        "facts": json.dumps(mapper.facts),
        "generator": mapper.generator,
        "clip": mapper.clip,
    }
    if mapper.layout is not None:
        metadata["layout"] = json.dumps({"convs": mapper.layout.convs, "rgbs": mapper.layout.rgbs})
    if relevance is not None:
        tensors[RELEVANCE] = relevance.matrix.half() if half else relevance.matrix
        metadata["relevance_kind"] = relevance.kind
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def load_mapper(path: str | Path) -> DeltaMapper:
    """A mapper of :func:`save_mapper`, or the authors' ``.pth``; frozen, fp32, with its relevance where it has one.

    Raises:
        EditingError: missing, damaged, hostile or foreign.
    """
    source = Path(path)
    if source.suffix == ".npy":
        raise EditingError(
            f"{shown_name(source.name)} is an array and no mapper; a relevance matrix goes into relevance_file of "
            "DeltaEdit Settings."
        )
    mapper = _own(source) if source.suffix == ".safetensors" else _published(source)
    return mapper.eval().requires_grad_(False)


def _own(source: Path) -> DeltaMapper:
    tensors, metadata = load_tensors(source, MAPPER_FORMAT, kind="delta mapper")
    name = shown_name(source.name)
    shape = metadata_json(metadata, "shape", name, "delta mapper")
    with torch.device("meta"):  # of whatever size the description claims, until it is compared
        mapper = DeltaMapper(
            shape["levels"],
            shape["clip_width"],
            shape["architecture"],
            shape["hidden"],
            across_channels=shape["across_channels"],
        )
    matrix = tensors.pop(RELEVANCE, None)
    _fill(mapper, tensors, name)
    if not (mapper.deviation > 0).all():
        raise EditingError(f"{name} is damaged: a channel's deviation is not above 0; train and save it again.")
    mapper.preprocessing = shape.get("preprocessing", OWN)
    mapper.generator, mapper.clip = metadata.get("generator", ""), metadata.get("clip", "")
    mapper.facts = metadata_json(metadata, "facts", name, "delta mapper") if "facts" in metadata else {}
    if "layout" in metadata:
        mapper.layout = _layout(metadata_json(metadata, "layout", name, "delta mapper"))
        if mapper.layout.levels != mapper.levels:
            raise EditingError(f"{name} is damaged: its generator has other channels than it; train and save it again.")
    if matrix is not None:
        kind = metadata.get("relevance_kind", COVARIANCE)
        mapper.relevance = Relevance(_matrix(matrix, name), kind, mapper.generator, mapper.clip)
        if mapper.relevance.matrix.shape != (sum(mapper.widths), mapper.clip_width):
            raise EditingError(f"{name} is damaged: its relevance matrix is another mapper's; train and save it again.")
    return mapper


def _published(source: Path) -> DeltaMapper:
    """The authors' table: ``{sm,cm,fm}_{coarse,medium,fine}.mapping.{i}.{weight,bias}``."""
    weights = load_weights(source, "delta mapper")
    name = shown_name(source.name)
    styles = [weights.get(f"sm_{level}.mapping.1.weight") for level in LEVELS]
    condition = weights.get("cm_coarse.mapping.1.weight")
    known = [tensor for tensor in (*styles, condition) if tensor is not None and tensor.ndim == 2]
    if not known:
        raise EditingError(f"{name} holds no Delta Mapper (no sm_coarse.mapping.1.weight); choose another file.")
    # Where one of the four is missing the others stand in, so that all that is missing is named at once.
    fine = styles[2].shape[1] if styles[2] is not None and styles[2].ndim == 2 else None
    width = condition.shape[1] // 2 if condition is not None and condition.ndim == 2 else 512
    layout = published_layout(fine, name)
    with torch.device("meta"):
        mapper = DeltaMapper(layout.levels, max(width, 1), RELEASED, across_channels=False)
    standard = {"mean": torch.zeros(layout.width), "deviation": torch.ones(layout.width)}
    _fill(mapper, weights | standard, name)
    mapper.layout, mapper.preprocessing = layout, DELTAEDIT
    mapper.facts = {"weights": f"DeltaEdit's authors', for a StyleGAN2 of {layout.convs[-1][0]} pixels"}
    return mapper


def published_layout(fine: int | None, name: str) -> StyleLayout:
    """Layout of the published StyleGAN2 whose layers above 32 pixels have ``fine`` channels; None: FFHQ's, 1024 pixels.

    Raises:
        EditingError: there is none.
    """
    for size, multiplier in CONFIGURATIONS:
        sides = [2**power for power in range(2, size.bit_length())]
        channels = {side: channels_of(side, multiplier) for side in sides}
        convs = [(4, channels[4])]
        for side in sides[1:]:
            convs += [(side, channels[side // 2]), (side, channels[side])]
        layout = StyleLayout(tuple(convs), tuple(channels.items()))
        if fine is None or layout.level_widths[2] == fine:
            return layout
    raise EditingError(
        f"{name} is for a generator with {fine} fine channels, which no published StyleGAN2 has; convert it with its "
        "generator's layout."
    )


def _fill(mapper: DeltaMapper, tensors: Mapping[str, Tensor], name: str) -> None:
    """Give a mapper on the meta device its weights, in fp32.

    Raises:
        EditingError: weights are missing, of another shape, or not numbers; they are named.
    """
    wanted = mapper.state_dict()
    missing = [key for key in wanted if key not in tensors]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise EditingError(
            f"{name} lacks {', '.join(missing[:NAMED])}{more} of a Delta Mapper; download or save it again."
        )
    other = [key for key in wanted if tensors[key].shape != wanted[key].shape]
    if other:
        found, right = (list(table[other[0]].shape) for table in (tensors, wanted))
        raise EditingError(
            f"{name} does not fit together: its {other[0]} has shape {found} instead of {right}; download or save it "
            "again."
        )
    chosen = {key: tensors[key].to(torch.float32, copy=True) for key in wanted}
    broken = [key for key in wanted if not tensors[key].is_floating_point() or not chosen[key].isfinite().all()]
    if broken:
        raise EditingError(f"{name} holds values that are not numbers ({broken[0]}); download or train it again.")
    mapper.load_state_dict(chosen, assign=True)


def save_relevance(path: str | Path, relevance: Relevance, overwrite: bool = False) -> Path:
    """Write a relevance matrix.

    Raises:
        EditingError: see :func:`~..files.save_tensors`.
    """
    metadata = {
        FORMAT_KEY: RELEVANCE_FORMAT,
        "kind": relevance.kind,
        "generator": relevance.generator,
        "clip": relevance.clip,
    }
    return save_tensors(path, {RELEVANCE: relevance.matrix}, metadata, overwrite=overwrite)


def load_relevance(path: str | Path) -> Relevance:
    """What :func:`save_relevance` wrote, the matrix inside a mapper's file, or an array ``[S, P]`` such as ``fs3.npy``.

    Raises:
        EditingError: missing, damaged, hostile or foreign.
    """
    source = Path(path)
    name = shown_name(source.name)
    if source.suffix == ".npy":
        return Relevance(_matrix(read_array(source, "relevance matrix"), name), RELEASED_MATRIX)
    if source.suffix != ".safetensors":
        raise EditingError(f"{name} is no relevance matrix; choose a .safetensors or .npy file.")
    tensors, metadata = load_tensors(source, RELEVANCE_FORMAT, MAPPER_FORMAT, kind="relevance matrix")
    if RELEVANCE not in tensors:
        raise EditingError(f"{name} holds no relevance matrix; make one with Relevance Matrix.")
    kind = metadata.get("kind" if metadata[FORMAT_KEY] == RELEVANCE_FORMAT else "relevance_kind", COVARIANCE)
    matrix = _matrix(tensors[RELEVANCE], name)
    return Relevance(matrix, kind, metadata.get("generator", ""), metadata.get("clip", ""))


def _matrix(tensor: Tensor, name: str) -> Tensor:
    """A relevance matrix from a file, fp32."""
    if tensor.ndim != 2 or 0 in tensor.shape or not tensor.is_floating_point():
        raise EditingError(
            f"{name} holds no relevance matrix: its array has shape {list(tensor.shape)} and should have [style "
            "channels, CLIP features]; choose another file."
        )
    matrix = tensor.to(torch.float32, copy=True)
    if not matrix.isfinite().all():
        raise EditingError(f"The relevance matrix in {name} holds values that are not numbers; make it again.")
    return matrix


def _layout(value: Mapping[str, list[list[int]]]) -> StyleLayout:
    convs, rgbs = (tuple((side, channels) for side, channels in value[key]) for key in ("convs", "rgbs"))
    return StyleLayout(convs, rgbs)

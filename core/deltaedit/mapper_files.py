"""Files of Delta Mappers and relevance matrices."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from .mapper import DeltaMapper
from .relevance import Relevance

MAPPER_FORMAT, RELEVANCE_FORMAT = "semantic_editing.delta_mapper", "semantic_editing.relevance"


def save_mapper(
    path: str | Path, mapper: DeltaMapper, relevance: Relevance | None = None, overwrite: bool = False
) -> Path:
    """Write a mapper, with its relevance matrix where it has one."""
    relevance = relevance or getattr(mapper, "relevance", None)
    shape = [mapper.levels, mapper.clip_width, mapper.architecture, mapper.hidden]
    metadata = {FORMAT_KEY: MAPPER_FORMAT, "shape": json.dumps(shape), "facts": json.dumps(mapper.facts)}
    tensors = dict(mapper.state_dict())
    if relevance is not None:
        tensors["relevance"] = relevance.matrix
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def load_mapper(path: str | Path) -> DeltaMapper:
    """What :func:`save_mapper` wrote."""
    tensors, metadata = load_tensors(path, MAPPER_FORMAT)
    mapper = DeltaMapper(*metadata_json(metadata, "shape", Path(path).name))
    mapper.facts = metadata_json(metadata, "facts", Path(path).name)
    matrix = tensors.pop("relevance", None)
    mapper.load_state_dict(tensors)
    mapper.relevance = None if matrix is None else Relevance(matrix, "covariance")  # type: ignore[assignment]
    return mapper.eval()


def save_relevance(path: str | Path, relevance: Relevance, overwrite: bool = False) -> Path:
    """Write a relevance matrix."""
    metadata = {FORMAT_KEY: RELEVANCE_FORMAT, "kind": relevance.kind}
    return save_tensors(path, {"relevance": relevance.matrix}, metadata, overwrite=overwrite)


def load_relevance(path: str | Path) -> Relevance:
    """What :func:`save_relevance` wrote."""
    tensors, metadata = load_tensors(path, RELEVANCE_FORMAT)
    if "relevance" not in tensors:
        raise EditingError(f"{Path(path).name} holds no relevance matrix; make one with Relevance Matrix.")
    return Relevance(tensors["relevance"], metadata.get("kind", ""))

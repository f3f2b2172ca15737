"""Files of Delta Mappers and relevance matrices."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import FORMAT_KEY, save_tensors
from .mapper import DeltaMapper
from .relevance import Relevance


def save_mapper(
    path: str | Path, mapper: DeltaMapper, relevance: Relevance | None = None, overwrite: bool = False
) -> Path:
    """Write a mapper, with its relevance matrix where it has one."""
    tensors = dict(mapper.state_dict())
    metadata = {FORMAT_KEY: "semantic_editing.delta_mapper", "facts": json.dumps(mapper.facts)}
    if relevance is not None:
        tensors["relevance"] = relevance.matrix
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def save_relevance(path: str | Path, relevance: Relevance, overwrite: bool = False) -> Path:
    """Write a relevance matrix."""
    metadata = {FORMAT_KEY: "semantic_editing.relevance", "kind": relevance.kind}
    return save_tensors(path, {"relevance": relevance.matrix}, metadata, overwrite=overwrite)

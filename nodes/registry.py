"""The list of the pack's nodes. Every technique is imported by itself, so that a broken one never takes the others down."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any

from .host import ComfyExtension, register_folders

#: Modules of this package that define ``NODES``, in menu order.
TECHNIQUES = (
    "demo",
    "spdinv",
    "autocorr",
    "reference",
    "inversion_files",
    "directions",
    "direction_files",
    "guidance",
    "classifiers",
    "classifier_trainer",
    "caso_trainer",
    "caso_embeddings",
    "caso_edit",
    "caso_generate",
    "region_models",
    "region_editors",
    "region_generator",
    "region_trainer",
)


def load_nodes(techniques: Sequence[str] = TECHNIQUES) -> list[type[Any]]:
    """Node classes of every technique that imports; one log line names each that does not, and why."""
    nodes: list[type[Any]] = []
    for technique in techniques:
        try:
            module = importlib.import_module(f".{technique}", __package__)
            for node in module.NODES:
                node.define_schema()  # the host would give up on the whole pack over one bad schema
            nodes.extend(module.NODES)
        except Exception as error:
            logging.getLogger(__name__).error(
                "Semantic Editing: the %s nodes are unavailable (%s: %s).", technique, type(error).__name__, error
            )
    return nodes


class SemanticEditing(ComfyExtension):
    """The extension ComfyUI asks for its nodes."""

    async def get_node_list(self) -> list[type[Any]]:
        """Node classes, in menu order."""
        register_folders()
        return load_nodes()

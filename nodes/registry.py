"""The list of the pack's nodes. Each module is imported by itself: a broken one never takes the others down."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any

from .host.folders import register_folders
from .host.schema import ComfyExtension

#: Modules of this package that define ``NODES``, in menu order.
TECHNIQUES = (
    "demo.load",  # first: it enters what the loaders of others offer
    "inversion.spdinv",
    "pix2pix_zero.autocorr",
    "inversion.reference",
    "inversion.null_text",
    "inversion.files",
    "inversion.rebuild",
    "pix2pix_zero.caption",
    "pix2pix_zero.written",
    "pix2pix_zero.directions",
    "pix2pix_zero.direction_files",
    "pix2pix_zero.guided_edit",
    "distillation.trainer_settings",
    "distillation.trainer",
    "distillation.edit",
    "engines.settings",
    "engines.prompt_to_prompt",
    "engines.masactrl",
    "engines.plug_and_play",
    "engines.semantic_guidance",
    "elite.concept",
    "caso.classifier_loader",
    "caso.classifier_settings",
    "caso.classifier_trainer",
    "caso.classifier_texts",
    "caso.trainer_settings",
    "caso.trainer",
    "caso.embeddings",
    "caso.edit",
    "caso.generate",
    "regions.models",
    "regions.stock_scorer",
    "regions.editors",
    "regions.generator",
    "regions.words",
    "regions.trainer",
    "deltaedit.generator",
    "deltaedit.inversion",
    "deltaedit.diffusion",
    "deltaedit.training_settings",
    "deltaedit.diffusion_trainer",
    "deltaedit.latents",
    "deltaedit.mapper_trainer",
    "deltaedit.relevance",
    "deltaedit.mapper_settings",
    "deltaedit.mapper",
    "deltaedit.analysis",
    "metrics.edit_report",
    "metrics.photo_size",
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

"""Semantic Editing: real-image editing by meaning for ComfyUI. The door ComfyUI knocks on; it only registers the
nodes."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """ComfyUI's V3 entry point: returns the extension that lists the nodes."""
    from .nodes.registry import SemanticEditing

    return SemanticEditing()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

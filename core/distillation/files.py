"""Files of distilled edits: the network with the words of its edit, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..errors import EditingError
from ..file_names import shown_name
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from .network import DistilledEditor, EditorShape

FILE_FORMAT, FILE_VERSION = "semantic_editing.distilled_edit", "1"


def save_editor(path: str | Path, editor: DistilledEditor, *, overwrite: bool = False, half: bool = False) -> Path:
    """Write a distilled edit.

    Args:
        half: in fp16, half the size.

    Raises:
        EditingError: see :func:`~..files.save_tensors`.
    """
    tensors = {name: value.half() if half else value for name, value in editor.state_dict().items()}
    shape = {"fold": editor.shape.fold, "widths": list(editor.shape.widths), "blocks": editor.shape.blocks}
    metadata = {
        FORMAT_KEY: FILE_FORMAT,
        "version": FILE_VERSION,
        "shape": json.dumps(shape),
        "side": str(editor.side),
        "source": editor.source,
        "target": editor.target,
        "facts": json.dumps(editor.facts),
    }
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def load_editor(path: str | Path) -> DistilledEditor:
    """What :func:`save_editor` wrote; frozen, in fp32.

    Raises:
        EditingError: missing, damaged, hostile, foreign, or of a newer version.
    """
    source = Path(path)
    tensors, metadata = load_tensors(source, FILE_FORMAT, kind="distilled edit")
    name = shown_name(source.name)
    if metadata.get("version") != FILE_VERSION:
        raise EditingError(f"{name} was saved by another version of this pack; update the pack, or train it again.")
    shape = metadata_json(metadata, "shape", name, "distilled edit")
    with torch.device("meta"):  # of whatever size the description claims, until it is compared
        editor = DistilledEditor(EditorShape(shape["fold"], tuple(shape["widths"]), shape["blocks"]))
    wanted = editor.state_dict()
    other = [key for key in wanted if key not in tensors or tensors[key].shape != wanted[key].shape]
    if other or len(tensors) != len(wanted):
        raise EditingError(f"{name} does not hold the weights that it describes; save or train it again.")
    chosen = {key: tensors[key].to(torch.float32, copy=True) for key in wanted}
    if not all(tensors[key].is_floating_point() and value.isfinite().all() for key, value in chosen.items()):
        raise EditingError(f"{name} holds values that are not numbers; train it again.")
    editor.load_state_dict(chosen, assign=True)
    editor.side = int(metadata.get("side", "0"))
    editor.source, editor.target = metadata.get("source", ""), metadata.get("target", "")
    editor.facts = metadata_json(metadata, "facts", name, "distilled edit") if "facts" in metadata else {}
    return editor.eval().requires_grad_(False)

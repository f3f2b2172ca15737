"""What Image Caption and Sentences from a Text Model share: a transformers folder of one's own, listed and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ...core.errors import EditingError
from ..host.folders import list_models, resolve_model
from ..host.managed_models import managed_patcher
from ..host.schema import io, widget

CATEGORY = "semantic editing/direction"
Network = TypeVar("Network", bound=nn.Module)


def model_folder_input(name: str, kind: str, tooltip: str) -> Any:
    """A model of the host's folder ``kind``, the first one unless another is chosen."""
    models = list_models(kind)
    return widget(io.Combo, name, options=models, default=models[0] if models else None, tooltip=tooltip)


def network_of_folder(kind: str, name: str, load: Callable[[Path], Network]) -> tuple[Network, Any]:
    """A model folder's network, as ``load`` makes it, and the host's handle of it.

    Raises:
        EditingError: a file in place of a folder, or what ``load`` refuses.
    """
    folder = resolve_model(kind, name)
    if not folder.is_dir():
        raise EditingError(f"{name} is a single file; use the model's whole folder with its config.json and tokenizer.")
    with torch.inference_mode(False):
        network = load(folder)
        return network, managed_patcher(network)

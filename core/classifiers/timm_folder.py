"""Image classifiers of the timm library, from a local folder with the files that a model's hub page has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..file_names import shown_name
from ..files import load_tensors
from ..models.model_folder import offline, read_config, refusing
from ..models.transformers_files import LARGEST_INPUT, NORMALISATIONS
from ..reading.forms import Unfit, listed, number, text, whole
from ..reading.libraries import library
from .base import ImageClassifier
from .torchvision_networks import default_names, fill, linear, unique

TIMM = "timm"  # the kind of network, in files
WEIGHTS = "model.safetensors"
PROBES = 2  # random pictures with which it is tried whether the last layer was taken out rightly
AGREEMENT = 1e-3  # relative error up to which logits count as equal
_INPUT = listed(whole(1, LARGEST_INPUT), 3, 3)
_COLOURS = listed(number(-1e6, 1e6), 3, 3)
_SPREAD = listed(number(1e-6, 1e6), 3, 3)
_NAMES = listed(text(), 1, 100_000)


def load_timm_folder(folder: str | Path) -> ImageClassifier:
    """Load a folder with ``config.json`` (``architecture``, ``num_classes``, ``pretrained_cfg``) and
    ``model.safetensors``.

    The size, normalisation and interpolation of ``pretrained_cfg`` are kept; the whole picture is resized to that size.

    Raises:
        EditingError: no such folder, an unknown architecture, weights of another one, a last layer that is not linear,
            or no timm.
    """
    source = Path(folder)
    name = shown_name(source.name)
    config = read_config(source, name)
    architecture = config["architecture"]
    prepared = config.get("pretrained_cfg") or {}
    try:
        text(100)(architecture, "architecture")
        classes = int(config.get("num_classes") or prepared.get("num_classes") or 0)
        size = prepared.get("input_size") or [3, 224, 224]
        mean = prepared.get("mean") or list(NORMALISATIONS["imagenet"][0])
        std = prepared.get("std") or list(NORMALISATIONS["imagenet"][1])
        names = config.get("label_names") or prepared.get("label_names") or []
        for form, value in ((_INPUT, size), (_COLOURS, mean), (_SPREAD, std)):
            form(value, "pretrained_cfg")
        _NAMES(names, "label_names") if names else None
    except (Unfit, TypeError, ValueError, AttributeError) as error:
        raise EditingError(
            f"{name} has a config.json that timm did not write; download the whole model again."
        ) from error
    if size[0] != 3:
        raise EditingError(f"{name} sees pictures of {size[0]} colours; use a classifier of pictures in RGB.")
    weights = {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_tensors(source / WEIGHTS, kind="classifier")[0].items()
    }
    model = _network(architecture, classes, sum(value.numel() for value in weights.values()), name)
    fill(model, weights, name)
    model.eval().requires_grad_(False)
    with refusing(f"{name} cannot see pictures of {size[2]} x {size[1]} pixels; use another model.", TIMM):
        trunk, last = _split(model, (size[1], size[2]), name)
    outputs = last.out_features
    if len(names) not in (0, outputs):
        raise EditingError(f"{name} has {outputs} classes but {len(names)} names; download the whole model again.")
    return ImageClassifier(
        trunk,
        [last],
        {source.name: unique(names) if names else default_names(outputs, name)},
        (size[1], size[2]),
        mean,
        std,
        source.name,
        {"kind": TIMM, "name": architecture},
        "bicubic" if prepared.get("interpolation") == "bicubic" else "bilinear",
    )


def timm_trunk(architecture: str, weights: int, name: str) -> nn.Module:
    """A network of timm without its last layer, weights arbitrary; features ``[B, width]``.

    Args:
        weights: how many numbers there are to fill it with; a larger one is not built.

    Raises:
        EditingError: an unknown architecture, too few weights, or no timm.
    """
    trunk = _network(architecture, 0, weights, name)
    trunk.width = int(getattr(trunk, "head_hidden_size", 0) or trunk.num_features)
    made: nn.Module = trunk
    return made


def _network(architecture: str, classes: int, weights: int, name: str) -> Any:
    """timm's network; of its names only those of its own list, for others could be addresses of a hub."""
    timm = library("timm", f"{name}, a network of timm,", "create_model", "list_models")
    if architecture not in timm.list_models():
        raise EditingError(
            f"{name} is a {shown_name(architecture)}, which the installed timm does not know; update timm."
        )
    # Constructors fill in random weights
    with refusing(f"{name} describes its network in a damaged way; download it again.", TIMM), offline():
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            empty = timm.create_model(architecture, pretrained=False, num_classes=classes)
        if sum(parameter.numel() for parameter in empty.parameters()) > weights:
            raise EditingError(f"{name} lacks a part of its weights; download the whole model again.")
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(architecture, pretrained=False, num_classes=classes)


@torch.no_grad()
def _split(model: Any, size: tuple[int, int], name: str) -> tuple[nn.Module, nn.Linear]:
    """``(trunk, last layer)`` of a network that ends in a linear layer.

    Raises:
        EditingError: it does not.
    """
    probe = torch.rand(PROBES, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected: Any = model(probe)
    layer = model.get_classifier()
    if isinstance(layer, nn.Linear) and isinstance(expected, Tensor):
        last = linear(layer.weight, layer.bias, 0, name)
        model.reset_classifier(0)
        features = model(probe)
        if features.ndim == 2 and features.shape[1] == last.in_features:
            error = (last(features) - expected).abs().max()
            if error <= AGREEMENT * expected.abs().max().clamp(min=1.0):
                model.width = last.in_features
                return model, last
    raise EditingError(f"{name} does not end in one linear layer over its features; use another classifier of timm.")

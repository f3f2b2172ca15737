"""Classifiers from the tensors of torchvision's networks, which are told apart by the names and shapes of these.

ConvNeXt is also read by the names that timm and its authors give to the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..file_names import shown_name
from ..models.transformers_files import NORMALISATIONS
from ..reading.libraries import library
from .base import ImageClassifier

#: Networks by torchvision's names, and the dotted name of the last layer.
TORCHVISION = {
    **{f"vgg{depth}{norm}": "classifier.6" for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{f"resnet{depth}": "fc" for depth in (18, 34, 50, 101, 152)},
    **{f"convnext_{size}": "classifier.2" for size in ("tiny", "small", "base", "large")},
}
#: Kind of network -> a tensor that its networks have.
MARKS = {"vgg": "classifier.6.weight", "resnet": "layer4.0.conv1.weight", "convnext": "features.0.0.weight"}
#: Tensors that are not compared: files of torch before 0.4.1 lack them, and nothing is computed from them.
UNCOUNTED = "num_batches_tracked"
#: ConvNeXt's tensors by timm's and its authors' names -> torchvision's; \1 is a stage from 0, see :func:`_stage`.
CONVNEXT = (
    (r"stem\.(\d)\.(.*)", r"features.0.\1.\2"),
    (r"downsample_layers\.0\.(\d)\.(.*)", r"features.0.\1.\2"),
    (r"downsample_layers\.(\d)\.(\d)\.(.*)", r"features.<even \1>.\2.\3"),
    (r"stages\.(\d)\.downsample\.(\d)\.(.*)", r"features.<even \1>.\2.\3"),
    (r"stages\.(\d)\.(?:blocks\.)?(\d+)\.gamma", r"features.<odd \1>.\2.layer_scale"),
    (r"stages\.(\d)\.(?:blocks\.)?(\d+)\.(?:conv_dw|dwconv)\.(.*)", r"features.<odd \1>.\2.block.0.\3"),
    (r"stages\.(\d)\.(?:blocks\.)?(\d+)\.norm\.(.*)", r"features.<odd \1>.\2.block.2.\3"),
    (r"stages\.(\d)\.(?:blocks\.)?(\d+)\.(?:mlp\.fc1|pwconv1)\.(.*)", r"features.<odd \1>.\2.block.3.\3"),
    (r"stages\.(\d)\.(?:blocks\.)?(\d+)\.(?:mlp\.fc2|pwconv2)\.(.*)", r"features.<odd \1>.\2.block.5.\3"),
    (r"(?:head\.)?norm\.(.*)", r"classifier.0.\1"),
    (r"head\.(?:fc\.)?(weight|bias)", r"classifier.2.\1"),
)
YES_NO = ["no", "yes"]
IMAGENET_SIZE = 224
#: CASO's published classifiers see whole 512 x 512 pictures in -1..1.
PUBLISHED_SIZE = 512


def torchvision_classifier(
    tensors: Mapping[str, Tensor], name: str, classes: Sequence[str] = (), attribute: str = ""
) -> ImageClassifier:
    """A VGG, ResNet or ConvNeXt from its tensors, with or without the prefixes "model." and "module.".

    A head of one logit is a yes-or-no classifier, prepared as CASO's published ones are (512 pixels, -1..1); any other
    is prepared as ImageNet's (224 pixels).

    Raises:
        EditingError: another network, tensors missing or too many, as many names as classes not given, no torchvision.
    """
    state = _torchvision_names(tensors)
    kind = _kind_of(state, name)
    layer = TORCHVISION[kind]
    weight, bias = state.pop(f"{layer}.weight"), state.pop(f"{layer}.bias", None)
    trunk = torchvision_trunk(kind, name)
    last = linear(weight, bias, int(trunk.width), name)  # type: ignore[arg-type]
    fill(trunk, state, name)
    outputs = len(weight)
    published = outputs == 1
    names = list(classes) or (YES_NO if published else default_names(outputs, name))
    mean, std = NORMALISATIONS["-1..1" if published else "imagenet"]
    side = PUBLISHED_SIZE if published else IMAGENET_SIZE
    return ImageClassifier(
        trunk, [last], {attribute or Path(name).stem: names}, (side, side), mean, std, name, {"kind": kind}
    )


def torchvision_trunk(kind: str, name: str) -> nn.Module:
    """A network of torchvision without weights and without its last layer, features ``[B, width]``.

    Raises:
        EditingError: torchvision is not installed, or too old for this network.
    """
    net = _empty(kind, name)
    parent, _, child = TORCHVISION[kind].rpartition(".")
    net.width = net.get_submodule(TORCHVISION[kind]).in_features
    setattr(net.get_submodule(parent), child, nn.Identity())
    trunk: nn.Module = net
    return trunk


def torchvision_models(name: str) -> Any:
    """``torchvision.models``.

    Raises:
        EditingError: torchvision is not installed or broken.
    """
    return library("torchvision.models", f"{shown_name(name)}, a network of torchvision,")


def _empty(kind: str, name: str) -> Any:
    with torch.device("meta"):
        return getattr(torchvision_models(name), kind)(weights=None)


@cache
def _shapes(kind: str, name: str = "a classifier") -> dict[str, tuple[int, ...]]:
    """What a network's tensors look like, those of the last layer and :data:`UNCOUNTED` left out."""
    return _compared(_empty(kind, name).state_dict(), kind)


def _compared(state: Mapping[str, Tensor], kind: str) -> dict[str, tuple[int, ...]]:
    last = TORCHVISION[kind]
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if not key.startswith(f"{last}.") and not key.endswith(UNCOUNTED)
    }


def _kind_of(state: Mapping[str, Tensor], name: str) -> str:
    """Which network of :data:`TORCHVISION` has just these tensors.

    Raises:
        EditingError: none, or its last layer is missing.
    """
    families = tuple(family for family, mark in MARKS.items() if mark in state)
    likely = [kind for kind in TORCHVISION if kind.startswith(families)]
    for kind in likely:
        if f"{TORCHVISION[kind]}.weight" in state and _shapes(kind) == _compared(state, kind):
            return kind
    if any(f"{TORCHVISION[kind]}.weight" in state for kind in likely):
        raise EditingError(
            f"{shown_name(name)} holds other tensors than its kind of network has; it is damaged or another version of "
            "it."
        )
    raise EditingError(
        f"{shown_name(name)} is not a classifier that can be read; use a VGG, ResNet or ConvNeXt, a transformers or "
        "timm folder with its config.json, or one trained here."
    )


def _torchvision_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in fp32 under the names that torchvision gives them."""
    state = {_bare(key): value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    if not any(key.startswith("stages.") for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        made = next((re.sub(old, new, key) for old, new in CONVNEXT if re.fullmatch(old, key)), key)
        made = re.sub(r"<(even|odd) (\d)>", _stage, made)
        renamed[made] = value.reshape(-1, 1, 1) if made.endswith("layer_scale") and value.ndim == 1 else value
    return renamed


def _stage(found: re.Match[str]) -> str:
    """torchvision counts a ConvNeXt's stages and the steps between them as one row: 0 is the stem, 1 the first
    stage."""
    return str(2 * int(found[2]) + (found[1] == "odd"))


def _bare(key: str) -> str:
    for prefix in ("module.", "model."):
        key = key.removeprefix(prefix)
    return key


def default_names(outputs: int, name: str) -> list[str]:
    """ImageNet's names for 1000 classes, else numbers."""
    if outputs == 1000:
        return unique(torchvision_models(name).ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
    return [f"class {index}" for index in range(outputs)]


def unique(names: Sequence[str]) -> list[str]:
    """``names`` with a number behind every one that has been there before: ["crane", "crane (2)"]."""
    made: list[str] = []
    for name in names:
        count = sum(previous == name or previous.startswith(f"{name} (") for previous in made)
        made.append(f"{name} ({count + 1})" if name in made else name)
    return made


def linear(weight: Tensor, bias: Tensor | None, features: int, name: str) -> nn.Linear:
    """A linear layer over ``weight [n, F]`` and ``bias [n]`` of the file ``name``.

    Args:
        features: F of the network before it, 0 if that is not known.

    Raises:
        EditingError: other shapes, or whole numbers.
    """
    if weight.ndim != 2 or not weight.numel() or features not in (0, weight.shape[-1]):
        raise EditingError(
            f"{shown_name(name)} ends in a layer of shape {str(list(weight.shape))[:60]}; a classifier ends in a "
            "linear one over its features."
        )
    fits = bias is None or tuple(bias.shape) == (len(weight),)
    if not fits or not all(part.is_floating_point() for part in (weight, bias) if part is not None):
        raise EditingError(
            f"{shown_name(name)} ends in a layer whose parts do not fit together; train or download it again."
        )
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
    return layer


def fill(trunk: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Put the tensors of a file into an empty network, all and only those it has.

    Raises:
        EditingError: they do not fit.
    """
    try:
        trunk.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        raise EditingError(
            f"{shown_name(name)} holds other tensors than its kind of network has; it is damaged or another version of "
            "it."
        ) from error

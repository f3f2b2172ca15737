"""The networks that classifiers are made of, built empty from a short description that a file can carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..models.transformers_files import transformers_package
from .convnet import AttributeClassifier

CONVOLUTIONAL, VGG16, RESNET50, TRANSFORMERS = "convolutional", "vgg16", "resnet50", "transformers"


class TransformersTrunk(nn.Module):
    """A transformers image classifier whose last linear layer, named ``linear``, lets its input through.

    Args:
        model: an ``...ForImageClassification`` network; it is changed.
        linear: dotted name of the layer to take out, "" to leave the network whole.
    """

    def __init__(self, model: nn.Module, linear: str):
        super().__init__()
        self.model = model
        if linear:
            parent, _, child = linear.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels [B, 3, h, w]``, normalised -> features ``[B, F]``."""
        features: Tensor = self.model(pixel_values=pixels).logits
        return features


def build_trunk(architecture: Mapping[str, Any], name: str) -> nn.Module:
    """The trunk that ``architecture`` describes, its weights to be filled in (``load_state_dict(..., assign=True)``).

    Args:
        architecture: ``{"kind": "convolutional", "widths", "hidden", "fold"}``, ``{"kind": "vgg16"}``, ``{"kind": "resnet50"}`` or
            ``{"kind": "transformers", "config", "linear"}``.
        name: of the file, for errors.

    Raises:
        EditingError: an unknown description, or torchvision or transformers are missing.
    """
    kind = architecture.get("kind")
    try:
        if kind == CONVOLUTIONAL:
            with torch.device("meta"):
                widths, fold = list(architecture["widths"]), int(architecture.get("fold", 1))
                return convolutional_trunk(AttributeClassifier(widths, int(architecture["hidden"]), {}, fold=fold))
        if kind in (VGG16, RESNET50):
            return torchvision_trunk(str(kind), name)
        if kind == TRANSFORMERS:
            return TransformersTrunk(empty_transformers(architecture["config"], name), architecture["linear"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, EditingError):
            raise
        raise EditingError(f"{name} describes its network in a damaged way; save it again.") from error
    raise EditingError(
        f"{name} holds a network of an unknown kind ({kind}); it was saved by a newer version of this pack."
    )


def convolutional_trunk(net: AttributeClassifier) -> nn.Sequential:
    """Everything of the pack's small network but its heads; it reads images in -1..1."""
    return nn.Sequential(net.features, net.pool, net.fc)


def torchvision_trunk(kind: str, name: str) -> nn.Module:
    """torchvision's VGG16 or ResNet50 without weights and without its last layer, features ``[B, 4096]`` or ``[B, 2048]``.

    Raises:
        EditingError: torchvision is not installed.
    """
    models = torchvision_models(name)
    with torch.device("meta"):
        net: Any = models.vgg16(weights=None) if kind == VGG16 else models.resnet50(weights=None)
    if kind == VGG16:
        net.classifier[6] = nn.Identity()
    else:
        net.fc = nn.Identity()
    trunk: nn.Module = net
    return trunk


def torchvision_models(name: str) -> Any:
    """``torchvision.models``.

    Raises:
        EditingError: torchvision is not installed.
    """
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise EditingError(
            f"{name} is a VGG16 or ResNet50 and needs torchvision, which this Python lacks; install it."
        ) from error
    return models


def empty_transformers(config: Mapping[str, Any], name: str) -> nn.Module:
    """A transformers image classifier from its configuration, weights arbitrary.

    Raises:
        EditingError: transformers is missing or does not know this configuration.
    """
    transformers = transformers_package(name)
    try:
        known = transformers.AutoConfig.for_model(**config)
        with torch.random.fork_rng(devices=[]):  # the constructor fills in random weights
            model: nn.Module = transformers.AutoModelForImageClassification.from_config(known, trust_remote_code=False)
    except Exception as error:  # the constructors raise many types for a configuration that is not theirs
        raise EditingError(
            f"{name} holds a network that the installed transformers does not know; update transformers."
        ) from error
    return model

"""Image classifiers of the transformers library, from a local folder with configuration, weights and preprocessor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..models.model_folder import load_transformers, offline, read_config, refusing, weight_files
from ..models.model_settings import CLASSIFIERS, PARTS_OF_CLIP, SETTINGS, layers_of, transformers_settings
from ..models.transformers_files import input_of, preprocessor
from ..reading.libraries import library
from .base import ImageClassifier
from .torchvision_networks import unique

TRANSFORMERS = "transformers"  # the kind of network, in files
PROBES = 2  # random pictures with which the last layer is looked for
MOST_LAYERS = 1000
AGREEMENT = 1e-3  # relative error up to which logits count as equal


class TransformersTrunk(nn.Module):
    """A transformers image classifier whose last linear layer, named ``linear``, lets its input through.

    Args:
        model: an ``...ForImageClassification`` network; it is changed.
        linear: dotted name of the layer to take out, "" to leave the network whole.
    """

    def __init__(self, model: nn.Module, linear: str):
        super().__init__()
        self.model = model
        #: Width of the features, 0 where the network is whole.
        self.width = 0
        if linear:
            parent, _, child = linear.rpartition(".")
            self.width = int(model.get_submodule(linear).in_features)  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), child, nn.Identity())

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels [B, 3, h, w]``, normalised -> features ``[B, F]``."""
        features: Tensor = self.model(pixel_values=pixels).logits
        return features


def load_transformers_folder(folder: str | Path) -> ImageClassifier:
    """Load a folder that ``save_pretrained`` wrote. A classifier of several independent labels gives one attribute for
    each.

    The preprocessor's size and normalisation are kept. The whole picture is resized to the size that the network sees;
    where the preprocessor would cut out the middle, our classifier sees the borders too.

    Raises:
        EditingError: no such folder, no image classifier, no preprocessor, weights missing or pickled, or no
            transformers.
    """
    source = Path(folder)
    config = read_config(source, source.name)
    kinds = config.get("architectures") or [""]
    kind = kinds[0] if isinstance(kinds, list) and isinstance(kinds[0], str) else ""
    if not kind.endswith("ForImageClassification"):
        raise EditingError(
            f"{source.name} holds a {kind[:80] or 'network of an unnamed kind'}; use one that ends in "
            "ForImageClassification."
        )
    class_name = classifier_of(config, source.name)
    settings = transformers_settings(config, source.name)
    weight_files(source, "model", source.name)  # named before the preprocessor, which a person may forget later
    size, mean, std, interpolation = input_of(preprocessor(source), config, source.name)
    model = load_transformers(source, class_name, settings, source.name).float().eval().requires_grad_(False)
    blind = f"{source.name} cannot see pictures of {size[1]} x {size[0]} pixels; download the whole model again."
    with refusing(blind, "transformers"):
        trunk, last, name = _split(model, size)
    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    # What was passed on is what the network is built from again.
    described = {key: config[key] for key in ("model_type", *SETTINGS, *PARTS_OF_CLIP) if key in config}
    architecture = {"kind": TRANSFORMERS, "config": described, "linear": name} if name else {}
    if isinstance(last, nn.Linear) and (model.config.problem_type == "multi_label_classification" or len(labels) == 1):
        rows = [_row(last, index) for index in range(last.out_features)]
        heads = {label: ["no", "yes"] for label in unique(labels)}
        return ImageClassifier(trunk, rows, heads, size, mean, std, source.name, architecture, interpolation)
    return ImageClassifier(
        trunk, [last], {source.name: unique(labels)}, size, mean, std, source.name, architecture, interpolation
    )


def classifier_of(config: Mapping[str, Any], name: str) -> str:
    """transformers' class of the image classifier that a configuration describes.

    Raises:
        EditingError: it is none of those that are read.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSIFIERS:
        raise EditingError(f"{name} holds a {str(kind)[:80]} network; use one of {', '.join(sorted(CLASSIFIERS))}.")
    return CLASSIFIERS[kind]


def empty_transformers(config: Mapping[str, Any], weights: int, name: str) -> nn.Module:
    """A transformers image classifier from its configuration, weights arbitrary.

    Args:
        weights: how many numbers there are to fill it with; a larger one is not built.

    Raises:
        EditingError: an unknown kind of network, a damaged configuration, or transformers is missing.
    """
    class_name = classifier_of(config, name)
    settings = transformers_settings(config, name)
    cls = getattr(library("transformers", name, class_name), class_name)
    if layers_of(settings) > MOST_LAYERS:
        raise EditingError(f"{name} describes its network in a damaged way; save it again.")
    unknown = f"{name} holds a network that the installed transformers does not know; update transformers."
    # Constructors fill in random weights
    with refusing(unknown, "transformers"), torch.random.fork_rng(devices=[]), offline():
        known = cls.config_class(**settings)
        known._attn_implementation = "sdpa" if getattr(cls, "_supports_sdpa", False) else "eager"
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in cls(known).parameters())
        if wanted > weights:
            raise EditingError(f"{name} lacks a part of its weights; save it again.")
        model: nn.Module = cls(known)
    return model


def _row(layer: nn.Linear, index: int) -> nn.Linear:
    made = nn.Linear(layer.in_features, 1, bias=layer.bias is not None)
    made.weight = nn.Parameter(layer.weight[index : index + 1].detach().clone(), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias[index : index + 1].detach().clone(), requires_grad=False)
    return made


@torch.no_grad()
def _split(model: Any, size: tuple[int, int]) -> tuple[nn.Module, nn.Module, str]:
    """``(trunk, last layer, its name)``; the linear layer of the logits is found by trying, else the trunk is whole."""
    outputs = int(model.config.num_labels)
    probe = torch.rand(PROBES, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected: Tensor = model(pixel_values=probe).logits
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == outputs
    ]
    for name, layer in reversed(layers):
        trunk = TransformersTrunk(model, name)
        features = trunk(probe)
        if features.ndim == 2 and features.shape[1] == layer.in_features:
            error = (layer(features) - expected).abs().max()
            if error <= AGREEMENT * expected.abs().max().clamp(min=1.0):
                return trunk, layer, name
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return TransformersTrunk(model, ""), nn.Identity(), ""

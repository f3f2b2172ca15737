"""Image classifiers of the transformers library, from a local folder with configuration, weights and preprocessor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..models.transformers_files import (
    CONFIG,
    input_of,
    preprocessor,
    read_json,
    transformers_package,
)
from .base import ImageClassifier

TRANSFORMERS = "transformers"  # the kind of network, in files
PROBES = 2  # random pictures with which the last layer is looked for
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
        if linear:
            parent, _, child = linear.rpartition(".")
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
    transformers = transformers_package(source.name)
    config = read_json(source / CONFIG, source.name)
    kinds = config.get("architectures") or [""]
    if not kinds[0].endswith("ForImageClassification"):
        raise EditingError(
            f"{source.name} holds a {kinds[0] or 'network of an unnamed kind'}; use one that ends in "
            "ForImageClassification."
        )
    if not any(source.glob("*.safetensors")):
        raise EditingError(f"{source.name} has no .safetensors weights; download or convert the model to safetensors.")
    size, mean, std, interpolation = input_of(preprocessor(source), config, source.name)
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            source, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises many types for a missing or damaged part
        raise EditingError(
            f"{source.name} is damaged or unknown to the installed transformers; download it again."
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        raise EditingError(f"{source.name} lacks weights of its classifier; use a model that was trained to classify.")
    model = model.float().eval().requires_grad_(False)
    trunk, last, name = _split(model, size)
    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    architecture = (
        {"kind": TRANSFORMERS, "config": json.loads(model.config.to_json_string(use_diff=False)), "linear": name}
        if name
        else {}
    )
    if isinstance(last, nn.Linear) and (model.config.problem_type == "multi_label_classification" or len(labels) == 1):
        rows = [_row(last, index) for index in range(last.out_features)]
        heads = {label: ["no", "yes"] for label in unique(labels)}
        return ImageClassifier(trunk, rows, heads, size, mean, std, source.name, architecture, interpolation)
    return ImageClassifier(
        trunk, [last], {source.name: unique(labels)}, size, mean, std, source.name, architecture, interpolation
    )


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


def unique(names: Iterable[str]) -> list[str]:
    """``names`` with a number behind every one that has been there before: ["crane", "crane (2)"]."""
    made: list[str] = []
    for name in names:
        count = sum(previous == name or previous.startswith(f"{name} (") for previous in made)
        made.append(f"{name} ({count + 1})" if name in made else name)
    return made


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

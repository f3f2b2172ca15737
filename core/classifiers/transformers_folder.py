"""Any local image classifier of the transformers library, as one folder with its configuration, weights and preprocessor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from .architectures import TRANSFORMERS, TransformersTrunk, transformers_package
from .base import ImageClassifier

CONFIG = "config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
PROBES = 2
AGREEMENT = 1e-3


def load_transformers_folder(folder: str | Path) -> ImageClassifier:
    """Load a folder that ``save_pretrained`` wrote. A classifier of several independent labels gives one attribute for each.

    The preprocessor's size and normalisation are kept. The whole picture is resized to the size that the network sees;
    where the preprocessor would cut out the middle, our classifier sees the borders too.

    Raises:
        EditingError: no such folder, no image classifier, no preprocessor, weights missing or pickled, or no transformers.
    """
    source = Path(folder)
    transformers = transformers_package(source.name)
    config = _json(source / CONFIG, source.name)
    kinds = config.get("architectures") or [""]
    if not kinds[0].endswith("ForImageClassification"):
        raise EditingError(
            f"{source.name} holds a {kinds[0] or 'network of an unnamed kind'}; use one that ends in ForImageClassification."
        )
    if not any(source.glob("*.safetensors")):
        raise EditingError(f"{source.name} has no .safetensors weights; download or convert the model to safetensors.")
    size, mean, std, interpolation = input_of(preprocessor(source), config, source.name)
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            source, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises many types for a missing or damaged part
        raise EditingError(f"{source.name} is damaged or unknown to the installed transformers; download it again.") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        raise EditingError(f"{source.name} lacks weights of its classifier; use a model that was trained to classify.")
    model = model.float().eval().requires_grad_(False)
    trunk, last, name = _split(model, size)
    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    architecture = {"kind": TRANSFORMERS, "config": json.loads(model.config.to_json_string(use_diff=False)), "linear": name} if name else {}
    if isinstance(last, nn.Linear) and (model.config.problem_type == "multi_label_classification" or len(labels) == 1):
        rows = [_row(last, index) for index in range(last.out_features)]
        heads = {label: ["no", "yes"] for label in unique(labels)}
        return ImageClassifier(trunk, rows, heads, size, mean, std, source.name, architecture, interpolation)
    return ImageClassifier(trunk, [last], {source.name: unique(labels)}, size, mean, std, source.name, architecture, interpolation)


def unique(names: Iterable[str]) -> list[str]:
    """``names`` with a number behind every one that has been there before: ["crane", "crane (2)"]."""
    made: list[str] = []
    for name in names:
        count = sum(previous == name or previous.startswith(f"{name} (") for previous in made)
        made.append(f"{name} ({count + 1})" if name in made else name)
    return made


def preprocessor(folder: Path) -> dict[str, Any]:
    """The image preprocessor's settings.

    Raises:
        EditingError: there are none.
    """
    for name in PREPROCESSORS:
        if (folder / name).is_file():
            settings = _json(folder / name, folder.name)
            nested = settings.get("image_processor")
            return nested if isinstance(nested, dict) else settings
    raise EditingError(f"{folder.name} has no preprocessor_config.json, which says what its network sees; download that file too.")


Preparation = tuple[tuple[int, int], list[float], list[float], str]


def input_of(settings: dict[str, Any], config: dict[str, Any], name: str) -> Preparation:
    """``((h, w), mean, std, interpolation)`` of images in 0..1 from a preprocessor's settings.

    It rescales bytes ``p`` to ``r p - o`` and subtracts ``m`` and divides by ``s``; of ``x = p / 255`` that is mean
    ``(m + o) / (255 r)`` and std ``s / (255 r)``.

    Raises:
        EditingError: settings of another kind.
    """
    try:
        chosen = settings.get("crop_size") if settings.get("do_center_crop") else None
        size = _size(chosen or settings.get("size") or config.get("image_size"))
        if min(size) < 1:
            raise ValueError("no size")
        factor = 255 * (float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0)
        offset = 1.0 if settings.get("rescale_offset") else 0.0
        normalises = settings.get("do_normalize", True)
        mean = [float(value) for value in settings["image_mean"]] if normalises else [0.0] * 3
        std = [float(value) for value in settings["image_std"]] if normalises else [1.0] * 3
        interpolation = INTERPOLATIONS.get(settings.get("resample", 2), "bilinear")
        return size, [(value + offset) / factor for value in mean], [value / factor for value in std], interpolation
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise EditingError(f"{name} has a preprocessor of an unknown kind; use a classifier of pictures in RGB.") from error


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        side = value.get("shortest_edge") or value.get("longest_edge") or 0
        return int(value.get("height") or side), int(value.get("width") or side)
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[1])
    return int(value), int(value)


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise EditingError(f"{name} has no readable {path.name}; choose the folder of a whole transformers model.") from error


def _row(layer: nn.Linear, index: int) -> nn.Linear:
    made = nn.Linear(layer.in_features, 1, bias=layer.bias is not None)
    made.weight = nn.Parameter(layer.weight[index : index + 1].detach().clone(), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias[index : index + 1].detach().clone(), requires_grad=False)
    return made


@torch.no_grad()
def _split(model: Any, size: tuple[int, int]) -> tuple[nn.Module, nn.Module, str]:
    """``(trunk, last layer, its name)``: the linear layer that makes the logits is found by trying, or the network stays whole."""
    outputs = int(model.config.num_labels)
    probe = torch.rand(PROBES, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected: Tensor = model(pixel_values=probe).logits
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer.out_features == outputs]
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

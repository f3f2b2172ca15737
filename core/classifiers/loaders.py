"""Classifiers from files: this pack's own, the demo's, torchvision's VGG16 and ResNet50, transformers folders, CASO's
pickles.

What a file is follows from its content, never from its name alone. Nothing is downloaded and no code in a file runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..models.model_settings import CONFIG
from ..models.transformers_files import NORMALISATIONS
from ..reading.forms import facts, listed, table, text, whole
from ..reading.libraries import library
from ..reading.pickles import is_zip, read_network_pickle
from .base import ImageClassifier
from .convnet import CONVOLUTIONAL, AttributeClassifier, convolutional_trunk, load_classifier
from .transformers_folder import (
    TRANSFORMERS,
    TransformersTrunk,
    empty_transformers,
    load_transformers_folder,
    unique,
)

FILE_FORMAT = "semantic_editing.attribute_classifier"
FILE_VERSION = "1"
AUTO = "auto"
VGG16, RESNET50 = "vgg16", "resnet50"  # kinds of network, in files
YES_NO = ["no", "yes"]
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
#: Width of the features of torchvision's networks.
FEATURES = {VGG16: 4096, RESNET50: 2048}
#: Descriptions of networks in files.
CONVOLUTIONAL_FORM = table({"widths": listed(whole(1, 8192), 1, 8), "hidden": whole(1, 65_536)}, {"fold": whole(1, 64)})
TRANSFORMERS_FORM = table({"config": facts, "linear": text(300)})
IMAGENET_SIZE = 224
#: CASO's published classifiers see whole 512 x 512 pictures in -1..1.
PUBLISHED_SIZE = 512
#: Last layer of torchvision's networks, and a tensor by which each is known.
LAST_LAYERS = {VGG16: ("classifier.6", "features.28.weight"), RESNET50: ("fc", "layer4.2.conv3.weight")}


def load_image_classifier(
    path: str | Path, *, classes: Sequence[str] = (), size: int = 0, normalisation: str = AUTO, attribute: str = ""
) -> ImageClassifier:
    """Load any supported classifier, frozen, on the CPU, in fp32.

    Args:
        path: a ``.safetensors`` file, a published pickle (``.pt``, ``.pth``), or a transformers folder or a file in it.
        classes: names of the classes in the order of the logits, in place of the file's; for one attribute only.
        size: side of the square input in pixels, 0 for the file's own or the usual one of its kind.
        normalisation: "auto" (the file's own or the usual one of its kind) or a key of
            :data:`~..models.transformers_files.NORMALISATIONS`.
        attribute: name of the attribute, "" for the file's own; for one attribute only.

    Raises:
        EditingError: missing, damaged, hostile or not a classifier; names that do not match; an unknown normalisation.
    """
    source = Path(path)
    if normalisation not in (AUTO, *NORMALISATIONS):
        raise EditingError(
            f"The normalisation {normalisation!r} is unknown; use one of: {', '.join((AUTO, *NORMALISATIONS))}."
        )
    if size < 0:
        raise EditingError(f"The input size is {size} pixels; use a positive number, or 0 for the file's own.")
    loaded = _load(source, list(classes), attribute)
    if size:
        loaded.size = (size, size)
    if normalisation != AUTO:
        loaded.mean, loaded.std = NORMALISATIONS[normalisation]
    if not all(bool(value.isfinite().all()) for value in loaded.state_dict().values() if value.is_floating_point()):
        raise EditingError(
            f"{source.name} holds weights that are not numbers (NaN or infinity); train or download it again."
        )
    return loaded


def _load(source: Path, classes: list[str], attribute: str) -> ImageClassifier:
    if source.is_dir() or (source.name.startswith("model") and (source.parent / CONFIG).is_file()):
        folder = source if source.is_dir() else source.parent
        return _renamed(load_transformers_folder(folder), classes, attribute)
    if source.is_file() and (source.suffix.lower() in PICKLES or is_zip(source)):
        return torchvision_classifier(read_network_pickle(source).tensors, source.name, classes, attribute)
    tensors, metadata = load_tensors(source, kind="classifier")
    if metadata.get(FORMAT_KEY) == FILE_FORMAT:
        return _renamed(_own_file(tensors, metadata, source.name), classes, attribute)
    if any(key.startswith("heads.") for key in tensors):
        return _renamed(demo_classifier(load_classifier(source), source.name), classes, attribute)
    named = "classes" in metadata and not classes
    declared = metadata_json(metadata, "classes", source.name, "classifier") if named else classes
    if not isinstance(declared, list):
        raise EditingError(f"{source.name} names its classes in an unknown way; give the class names yourself.")
    return torchvision_classifier(tensors, source.name, declared, attribute)


def build_trunk(architecture: Mapping[str, Any], weights: int, name: str) -> nn.Module:
    """The trunk that ``architecture`` describes, its weights to be filled in (``load_state_dict(..., assign=True)``).

    Args:
        architecture: ``{"kind": "convolutional", "widths", "hidden", "fold"}``, ``{"kind": "vgg16"}``, ``{"kind":
            "resnet50"}`` or ``{"kind": "transformers", "config", "linear"}``.
        weights: how many numbers there are to fill it with; a larger one is not built.
        name: of the file, for errors.

    Raises:
        EditingError: an unknown description, or torchvision or transformers are missing.
    """
    kind = architecture.get("kind")
    try:
        if kind == CONVOLUTIONAL:
            CONVOLUTIONAL_FORM(architecture, "architecture")
            with torch.device("meta"):
                widths, fold = architecture["widths"], architecture.get("fold", 1)
                return convolutional_trunk(AttributeClassifier(widths, architecture["hidden"], {}, fold=fold))
        if kind in (VGG16, RESNET50):
            return torchvision_trunk(str(kind), name)
        if kind == TRANSFORMERS:
            TRANSFORMERS_FORM(architecture, "architecture")
            made = empty_transformers(architecture["config"], weights, name)
            return TransformersTrunk(made, architecture["linear"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, EditingError):
            raise
        raise EditingError(f"{name} describes its network in a damaged way; save it again.") from error
    raise EditingError(
        f"{name} holds a network of an unknown kind ({str(kind)[:80]}); it was saved by a newer version of this pack."
    )


def demo_classifier(net: AttributeClassifier, name: str) -> ImageClassifier:
    """The pack's small multi-attribute network as an :class:`ImageClassifier`; it shares the weights."""
    widths = [layer.out_channels for layer in net.features if isinstance(layer, nn.Conv2d)][::2]
    hidden = next(layer for layer in net.fc if isinstance(layer, nn.Linear)).out_features
    architecture = {"kind": CONVOLUTIONAL, "widths": widths, "hidden": hidden, "fold": net.fold}
    last = [net.heads[attribute] for attribute in net.classes]
    mean, std = NORMALISATIONS["-1..1"]
    return ImageClassifier(
        convolutional_trunk(net), last, net.classes, (net.size, net.size), mean, std, name, architecture
    )


def torchvision_classifier(
    tensors: Mapping[str, Tensor], name: str, classes: Sequence[str] = (), attribute: str = ""
) -> ImageClassifier:
    """VGG16 or ResNet50 from torchvision's tensor names, with or without the prefixes "model." and "module.".

    A head of one logit is a yes-or-no classifier, prepared as CASO's published ones are (512 pixels, -1..1); any other
    is prepared as ImageNet's (224 pixels).

    Raises:
        EditingError: another network, tensors missing or too many, as many names as classes not given, no torchvision.
    """
    state = {_bare(key): value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    kinds = [kind for kind, (_, mark) in LAST_LAYERS.items() if mark in state]
    if not kinds or f"{LAST_LAYERS[kinds[0]][0]}.weight" not in state:
        raise EditingError(
            f"{name} is not a classifier that can be read; use VGG16, ResNet50, a transformers folder or one trained "
            "here."
        )
    (kind,) = kinds[:1]
    layer = LAST_LAYERS[kind][0]
    weight, bias = state.pop(f"{layer}.weight"), state.pop(f"{layer}.bias", None)
    last = linear(weight, bias, FEATURES[kind], name)
    trunk = build_trunk({"kind": kind}, sum(value.numel() for value in state.values()), name)
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
    """torchvision's VGG16 or ResNet50 without weights and without its last layer, features ``[B, 4096]`` or ``[B,
    2048]``.

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
        EditingError: torchvision is not installed or broken.
    """
    return library("torchvision.models", f"{name}, a VGG16 or ResNet50,")


def _bare(key: str) -> str:
    for prefix in ("module.", "model."):
        key = key.removeprefix(prefix)
    return key


def default_names(outputs: int, name: str) -> list[str]:
    """ImageNet's names for 1000 classes, else numbers."""
    if outputs == 1000:
        return unique(torchvision_models(name).ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
    return [f"class {index}" for index in range(outputs)]


def linear(weight: Tensor, bias: Tensor | None, features: int, name: str) -> nn.Linear:
    """A linear layer over ``weight [n, F]`` and ``bias [n]`` of the file ``name``.

    Args:
        features: F of the network before it, 0 if that is not known.

    Raises:
        EditingError: other shapes, or whole numbers.
    """
    if weight.ndim != 2 or not weight.numel() or features not in (0, weight.shape[-1]):
        raise EditingError(
            f"{name} ends in a layer of shape {list(weight.shape)}; a classifier ends in a linear one over its "
            "features."
        )
    fits = bias is None or tuple(bias.shape) == (len(weight),)
    if not fits or not all(part.is_floating_point() for part in (weight, bias) if part is not None):
        raise EditingError(f"{name} ends in a layer whose parts do not fit together; train or download it again.")
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
            f"{name} holds other tensors than its kind of network has; it is damaged or another version of it."
        ) from error


def _renamed(loaded: ImageClassifier, classes: list[str], attribute: str) -> ImageClassifier:
    """``loaded`` with other names for its classes and attribute, where they are given."""
    if not classes and not attribute:
        return loaded
    if len(loaded.heads) != 1:
        raise EditingError(
            f"{loaded.name} knows {len(loaded.heads)} attributes with names of their own; leave the names empty."
        )
    ((own, names),) = loaded.heads.items()
    if classes and len(classes) != len(names):
        raise EditingError(
            f"{loaded.name} has {len(names)} classes but {len(classes)} names are given; give one for each."
        )
    loaded.heads = {attribute or own: classes or names}
    return loaded


def save_image_classifier(
    classifier: ImageClassifier, path: str | Path, info: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write a classifier whole or not at all, as safetensors that :func:`load_image_classifier` reads.

    Args:
        info: JSON-able facts about the training, kept in the metadata.

    Raises:
        EditingError: the file exists and ``overwrite`` is False, or the folder cannot be written.
    """
    metadata = {
        FORMAT_KEY: FILE_FORMAT,
        "version": FILE_VERSION,
        "heads": json.dumps(classifier.heads),
        "size": json.dumps(classifier.size),
        "mean": json.dumps(classifier.mean),
        "std": json.dumps(classifier.std),
        "interpolation": classifier.interpolation,
        "architecture": json.dumps(classifier.architecture),
        "fingerprint": classifier.fingerprint,
        "info": json.dumps(dict(info)),
    }
    return save_tensors(path, classifier.state_dict(), metadata, overwrite=overwrite)


def _own_file(tensors: dict[str, Tensor], metadata: dict[str, str], name: str) -> ImageClassifier:
    fields: dict[str, Any] = {
        key: metadata_json(metadata, key, name, "classifier")
        for key in ("heads", "size", "mean", "std", "architecture")
    }
    trunk = build_trunk(fields["architecture"], sum(value.numel() for value in tensors.values()), name)
    fill(trunk, {key.removeprefix("trunk."): value for key, value in tensors.items() if key.startswith("trunk.")}, name)
    if not all(f"last.{index}.weight" in tensors for index in range(len(fields["heads"]))):
        raise EditingError(f"{name} lacks a part of its weights; save it again.")
    kind = fields["architecture"]["kind"]
    width = (
        trunk.width
        if isinstance(trunk, TransformersTrunk)
        else FEATURES.get(kind, fields["architecture"].get("hidden"))
    )
    last = [
        linear(tensors[f"last.{index}.weight"], tensors.get(f"last.{index}.bias"), width, name)
        for index in range(len(fields["heads"]))
    ]
    interpolation = metadata.get("interpolation", "bilinear")
    return ImageClassifier(
        trunk,
        last,
        fields["heads"],
        tuple(fields["size"]),
        fields["mean"],
        fields["std"],
        name,
        fields["architecture"],
        interpolation,
    )

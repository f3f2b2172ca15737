"""Classifiers from files: this pack's own, the demo's, torchvision's networks, timm's and transformers' folders, CASO's
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
from ..file_names import shown_name
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..models.model_folder import read_config
from ..models.model_settings import CONFIG
from ..models.transformers_files import NORMALISATIONS
from ..reading.forms import Unfit, facts, listed, table, text, whole
from ..reading.pickles import is_zip, read_network_pickle
from .base import ImageClassifier
from .convnet import CONVOLUTIONAL, AttributeClassifier, convolutional_trunk, load_classifier
from .frozen_features import FEATURES, FeatureClassifier, FeatureTrunk
from .timm_folder import TIMM, load_timm_folder, timm_trunk
from .torchvision_networks import TORCHVISION, fill, linear, torchvision_classifier, torchvision_trunk
from .transformers_folder import TRANSFORMERS, TransformersTrunk, empty_transformers, load_transformers_folder

FILE_FORMAT = "semantic_editing.attribute_classifier"
FILE_VERSION = "1"
AUTO = "auto"
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
#: Descriptions of networks in files.
CONVOLUTIONAL_FORM = table({"widths": listed(whole(1, 8192), 1, 8), "hidden": whole(1, 65_536)}, {"fold": whole(1, 64)})
TRANSFORMERS_FORM = table({"config": facts, "linear": text(300)})
TIMM_FORM = table({"name": text(100)})
FEATURES_FORM = table({"identity": text(100), "width": whole(1, 65_536)})


def load_image_classifier(
    path: str | Path,
    *,
    classes: Sequence[str] = (),
    size: int = 0,
    normalisation: str = AUTO,
    attribute: str = "",
    backbone: FeatureTrunk | None = None,
) -> ImageClassifier:
    """Load any supported classifier, frozen, on the CPU, in fp32.

    Args:
        path: a ``.safetensors`` file, a published pickle (``.pt``, ``.pth``), or a transformers folder or a file in it.
        classes: names of the classes in the order of the logits, in place of the file's; for one attribute only.
        size: side of the square input in pixels, 0 for the file's own or the usual one of its kind.
        normalisation: "auto" (the file's own or the usual one of its kind) or a key of
            :data:`~..models.transformers_files.NORMALISATIONS`.
        attribute: name of the attribute, "" for the file's own; for one attribute only.
        backbone: of a file that holds nothing but a linear probe, the network whose features it reads.

    Raises:
        EditingError: missing, damaged, hostile or not a classifier; a backbone missing, another one, or too many; names
            that do not match; an unknown normalisation.
    """
    source = Path(path)
    if normalisation not in (AUTO, *NORMALISATIONS):
        raise EditingError(
            f"The normalisation {normalisation!r} is unknown; use one of: {', '.join((AUTO, *NORMALISATIONS))}."
        )
    if size < 0:
        raise EditingError(f"The input size is {size} pixels; use a positive number, or 0 for the file's own.")
    loaded = _load(source, list(classes), attribute, backbone)
    probe = isinstance(loaded, FeatureClassifier)
    if backbone is not None and not probe:
        raise EditingError(f"{shown_name(source.name)} brings a network of its own; unwire the backbone.")
    if probe and (size or normalisation != AUTO):
        raise EditingError(
            f"{shown_name(source.name)} sees what its backbone sees; set input_size to 0 and normalisation to {AUTO}."
        )
    if size:
        loaded.size = (size, size)
    if normalisation != AUTO:
        loaded.mean, loaded.std = NORMALISATIONS[normalisation]
    if not all(bool(value.isfinite().all()) for value in loaded.state_dict().values() if value.is_floating_point()):
        raise EditingError(
            f"{source.name} holds weights that are not numbers (NaN or infinity); train or download it again."
        )
    return loaded


def _load(source: Path, classes: list[str], attribute: str, backbone: FeatureTrunk | None) -> ImageClassifier:
    if source.is_dir() or (source.name.startswith("model") and (source.parent / CONFIG).is_file()):
        folder = source if source.is_dir() else source.parent
        config = read_config(folder, folder.name)
        by_timm = "architecture" in config and not config.keys() & {"architectures", "model_type"}
        load = load_timm_folder if by_timm else load_transformers_folder
        return _renamed(load(folder), classes, attribute)
    if source.is_file() and (source.suffix.lower() in PICKLES or is_zip(source)):
        return torchvision_classifier(read_network_pickle(source).tensors, source.name, classes, attribute)
    tensors, metadata = load_tensors(source, kind="classifier")
    if metadata.get(FORMAT_KEY) == FILE_FORMAT:
        return _renamed(_own_file(tensors, metadata, source.name, backbone), classes, attribute)
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
        architecture: ``{"kind": "convolutional", "widths", "hidden", "fold"}``, ``{"kind": "vgg16"}`` (or another name
            of torchvision), ``{"kind": "timm", "name"}`` or ``{"kind": "transformers", "config", "linear"}``.
        weights: how many numbers there are to fill it with; a larger one is not built.
        name: of the file, for errors.

    Raises:
        EditingError: an unknown description, or torchvision, timm or transformers are missing.
    """
    kind = architecture.get("kind")
    try:
        if kind == CONVOLUTIONAL:
            CONVOLUTIONAL_FORM(architecture, "architecture")
            with torch.device("meta"):
                widths, fold = architecture["widths"], architecture.get("fold", 1)
                return convolutional_trunk(AttributeClassifier(widths, architecture["hidden"], {}, fold=fold))
        if kind in TORCHVISION:
            return torchvision_trunk(str(kind), name)
        if kind == TIMM:
            TIMM_FORM(architecture, "architecture")
            return timm_trunk(architecture["name"], weights, name)
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


def _own_file(
    tensors: dict[str, Tensor], metadata: dict[str, str], name: str, backbone: FeatureTrunk | None
) -> ImageClassifier:
    fields: dict[str, Any] = {
        key: metadata_json(metadata, key, name, "classifier")
        for key in ("heads", "size", "mean", "std", "architecture")
    }
    if fields["architecture"]["kind"] == FEATURES:
        return _probe(tensors, fields, name, backbone)
    trunk = build_trunk(fields["architecture"], sum(value.numel() for value in tensors.values()), name)
    fill(trunk, {key.removeprefix("trunk."): value for key, value in tensors.items() if key.startswith("trunk.")}, name)
    width = int(getattr(trunk, "width", 0)) or fields["architecture"].get("hidden", 0)
    last = _last_layers(tensors, fields["heads"], width, name)
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


def _last_layers(tensors: Mapping[str, Tensor], heads: Mapping[str, Any], width: int, name: str) -> list[nn.Linear]:
    if not all(f"last.{index}.weight" in tensors for index in range(len(heads))):
        raise EditingError(f"{shown_name(name)} lacks a part of its weights; save it again.")
    return [
        linear(tensors[f"last.{index}.weight"], tensors.get(f"last.{index}.bias"), width, name)
        for index in range(len(heads))
    ]


def _probe(
    tensors: Mapping[str, Tensor], fields: Mapping[str, Any], name: str, backbone: FeatureTrunk | None
) -> FeatureClassifier:
    """A linear probe from its file and the network whose features it was trained on."""
    try:
        FEATURES_FORM(fields["architecture"], "architecture")
    except Unfit as error:
        raise EditingError(f"{shown_name(name)} describes its network in a damaged way; save it again.") from error
    if backbone is None:
        raise EditingError(
            f"{shown_name(name)} is a linear layer over the features of a CLIP; wire the CLIP Scorer or CLIP Vision "
            "that it was trained with into backbone."
        )
    if backbone.identity != fields["architecture"]["identity"]:
        raise EditingError(
            f"{shown_name(name)} was trained on another CLIP than the one wired into backbone; wire that one."
        )
    return FeatureClassifier(
        backbone, _last_layers(tensors, fields["heads"], backbone.width, name), fields["heads"], name
    )

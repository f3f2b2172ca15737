"""The pack's own small convolutional classifier of several attributes.

The demo world's two classifiers are of this kind, and so is what Attribute Classifier Trainer trains without a
backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from ..files import load_tensors, metadata_json
from ..reading.kinds import LARGEST_SIDE

CONVOLUTIONAL = "convolutional"  # the kind of network, in files
INPUT_SIZE = 64  # pixels; a file may say otherwise in its metadata ("size")
STAGE_LAYERS = 6  # two convolutions, each with its normalisation and activation
POOLED = 4  # the feature grid before the fully connected layer


class AttributeClassifier(nn.Module):
    """Convolutional stages at falling resolution, then one linear head for each attribute.

    Args:
        widths: channels of the stages; each halves the resolution.
        hidden: width of the fully connected layer.
        classes: attribute -> names of its labels, in the order of the logits.
        size: side of the square input in pixels.
        fold: side in pixels of the squares that the first layer takes as one; with 2 it reads pictures of twice the
            size for nearly the same cost.
    """

    def __init__(
        self, widths: list[int], hidden: int, classes: Mapping[str, list[str]], size: int = INPUT_SIZE, fold: int = 1
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            step = 1 if layers else fold
            layers += [nn.Conv2d(channels, width, 3 * step, 2 * step, step), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(POOLED)
        self.fc = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * POOLED**2, hidden), nn.ReLU())
        self.heads = nn.ModuleDict({attribute: nn.Linear(hidden, len(names)) for attribute, names in classes.items()})
        self.classes = {attribute: list(names) for attribute, names in classes.items()}
        self.size = size
        self.fold = fold

    def _resized(self, images: Tensor) -> Tensor:
        return functional.interpolate(images * 2 - 1, size=(self.size, self.size), mode="bilinear", antialias=True)

    def stages(self, images: Tensor) -> list[Tensor]:
        """``images [B, 3, H, W]`` in 0..1 -> of stage i ``[B, widths[i], s, s]``, s = size / fold / 2^(i+1)."""
        found, hidden = [], self._resized(images)
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index % STAGE_LAYERS == STAGE_LAYERS - 1:
                found.append(hidden)
        return found

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``images [B, 3, H, W]`` in 0..1 -> attribute -> logits ``[B, labels]``."""
        hidden = self.fc(self.pool(self.features(self._resized(images))))
        return {attribute: head(hidden) for attribute, head in self.heads.items()}

    @torch.no_grad()
    def labels(self, images: Tensor) -> list[dict[str, str]]:
        """The likeliest label of every attribute for each image."""
        best = {attribute: logits.argmax(1).tolist() for attribute, logits in self(images).items()}
        return [
            {attribute: self.classes[attribute][rows[i]] for attribute, rows in best.items()}
            for i in range(len(images))
        ]


def convolutional_trunk(net: AttributeClassifier) -> nn.Sequential:
    """Everything of ``net`` but its heads; it reads images in -1..1."""
    return nn.Sequential(net.features, net.pool, net.fc)


def load_classifier(path: str | Path) -> AttributeClassifier:
    """Read a classifier of this kind; its shape follows from the tensors, its label names from the metadata.

    Raises:
        EditingError: missing, damaged or not such a file.
    """
    name = Path(path).name
    tensors, metadata = load_tensors(path, kind="classifier")
    classes = metadata_json(metadata, "classes", name, "classifier")
    if not isinstance(classes, dict):
        raise EditingError(f"{name} does not name its attributes; save it or install the pack again.")
    convolutions = [value for key, value in tensors.items() if key.startswith("features.") and value.ndim == 4]
    try:
        indices = sorted(
            {
                int(key.split(".")[1])
                for key, value in tensors.items()
                if key.startswith("features.") and value.ndim == 4
            }
        )
        widths = [tensors[f"features.{index}.weight"].shape[0] for index in indices[::2]]
        if len(convolutions) != 2 * len(widths):
            raise EditingError(f"{name} is not an attribute classifier of this pack; install the pack again.")
        size = int(metadata.get("size", INPUT_SIZE))
        fold = tensors["features.0.weight"].shape[-1] // 3
        if not 1 <= size <= LARGEST_SIDE or not 1 <= fold <= size:
            raise EditingError(f"{name} asks for pictures of {size} pixels; save it or install the pack again.")
        with torch.device("meta"):  # the shapes are the file's claims until its tensors fit them
            net = AttributeClassifier(widths, tensors["fc.2.weight"].shape[0], classes, size, fold)
        net.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}, assign=True
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, EditingError):
            raise
        raise EditingError(f"{name} is a damaged attribute classifier; save it or install the pack again.") from error
    return net.eval().requires_grad_(False)

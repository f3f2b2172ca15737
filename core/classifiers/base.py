"""The one shape in which every classifier is used: a trunk that makes features, a linear layer for each attribute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from ..file_names import shown_name
from ..models.transformers_files import NORMALISATIONS

FINGERPRINT_DIGITS = 16
MOST_NAMED = 10  # names that a sentence repeats,
MOST_LETTERS = 130  # and how long they may be together


class ImageClassifier(nn.Module):
    """A frozen classifier of one or several attributes, differentiable with respect to the images.

    Args:
        trunk: normalised images ``[B, 3, h, w]`` -> features ``[B, F]``.
        last: the last layer of each attribute, in the order of ``heads``; a linear layer of one logit counts as two
            classes.
        heads: attribute -> class names in the order of the logits.
        size: ``(h, w)`` in pixels that the trunk expects.
        mean, std: normalisation of images in 0..1, one figure a colour.
        name: for people, e.g. the file's name.
        architecture: JSON-able description from which the trunk can be built again; empty if the file cannot be saved
            anew.
        interpolation: how images are resized, "bilinear" or "bicubic" (always antialiased).

    Raises:
        EditingError: an attribute with fewer than two classes, names that do not match the logits, or a useless
            normalisation.
    """

    def __init__(
        self,
        trunk: nn.Module,
        last: Sequence[nn.Module],
        heads: Mapping[str, Sequence[str]],
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        architecture: Mapping[str, Any] | None = None,
        interpolation: str = "bilinear",
    ):
        super().__init__()
        layers = [
            two_classes(layer) if isinstance(layer, nn.Linear) and layer.out_features == 1 else layer for layer in last
        ]
        self.heads = {attribute: [str(label) for label in names] for attribute, names in heads.items()}
        _check(self.heads, layers, size, mean, std, name)
        self.trunk = trunk
        self.last = nn.ModuleList(layers)
        self.size = (int(size[0]), int(size[1]))
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.name = name
        self.architecture = dict(architecture or {})
        self.interpolation = interpolation
        self._fingerprint = ""
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 over weights, classes and preparation of images: equal for equal classifiers."""
        if not self._fingerprint:
            digest = hashlib.sha256(json.dumps(self._facts()).encode())
            for key, value in sorted(self.state_dict().items()):
                digest.update(f"{key} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._fingerprint = digest.hexdigest()[:FINGERPRINT_DIGITS]
        return self._fingerprint

    def _facts(self) -> list[Any]:
        """What a classifier's answers depend on besides its weights, JSON-able."""
        return [self.heads, self.size, self.mean, self.std, self.interpolation]

    def prepare(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in 0..1 -> resized (the whole picture, aspect not kept) and normalised ``[B, 3, h,
        w]``.

        Raises:
            EditingError: not that shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise EditingError(
                f"The images have shape {list(images.shape)}; a classifier needs [batch, 3, height, width] in 0..1."
            )
        images = images.to(self.device, torch.float32)
        if tuple(images.shape[-2:]) != self.size:
            images = functional.interpolate(images, size=self.size, mode=self.interpolation, antialias=True)
        return (images - images.new_tensor(self.mean).view(3, 1, 1)) / images.new_tensor(self.std).view(3, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """:meth:`logits`."""
        return self.logits(images)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """``images [B, 3, H, W]`` in 0..1 of any size -> attribute -> logits ``[B, n_classes]``; softmax gives
        probabilities.

        Raises:
            EditingError: not that shape.
        """
        features = self.trunk(self.prepare(images))
        return {attribute: layer(features) for attribute, layer in zip(self.heads, self.last, strict=True)}

    def features(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in 0..1 -> what the last layer reads, ``[B, F]`` (the paper's F_-1(x), section 3.3).

        Raises:
            EditingError: not that shape, or a classifier whose last layer is not linear.
        """
        if not all(isinstance(layer, nn.Linear) for layer in self.last):
            raise EditingError(f"{self.name} does not end in a linear layer; its features cannot be told apart.")
        features: Tensor = self.trunk(self.prepare(images))
        return features

    def class_weights(self, attribute: str) -> Tensor:
        """Weights of the last layer, ``[n_classes, F]`` (the paper's w_a); the features' class means align with them
        (Theorem 1).

        Raises:
            EditingError: no such attribute, or its last layer is not linear.
        """
        layer = self.last[self.index(attribute)]
        if not isinstance(layer, nn.Linear):
            raise EditingError(f"{self.name} does not end in a linear layer; its class weights cannot be read.")
        return layer.weight

    def index(self, attribute: str) -> int:
        """Position of ``attribute`` among the heads.

        Raises:
            EditingError: no such attribute.
        """
        names = list(self.heads)
        if attribute not in names:
            raise EditingError(
                f"{shown_name(self.name)} knows no attribute '{shown_name(attribute)}'; use one of: {named(names)}."
            )
        return names.index(attribute)

    def class_index(self, attribute: str, label: str) -> int:
        """Column of the logits of ``attribute`` that stands for ``label``: a class's name, its number (from 0), or one
        of the names of a class that has several, as ImageNet's "tench, Tinca tinca" has.

        Raises:
            EditingError: no such attribute or label, or a label of several classes.
        """
        names = self.heads[list(self.heads)[self.index(attribute)]]
        if label in names:
            return names.index(label)
        asked = label.strip().casefold()
        found = [at for at, name in enumerate(names) if asked in (name.casefold(), *_parts(name))]
        if not found and asked.isdecimal() and len(asked) < 10 and int(asked) < len(names):
            found = [int(asked)]
        if len(found) == 1:
            return found[0]
        if found:
            raise EditingError(
                f"{shown_name(self.name)} has {len(found)} classes called '{shown_name(label)}': "
                f"{named([names[at] for at in found])}; write the whole name."
            )
        alike = [name for name in names if asked and asked in name.casefold()] or names
        raise EditingError(
            f"{shown_name(self.name)} has no class '{shown_name(label)}' of {shown_name(attribute)}; use one of: "
            f"{named(alike)}."
        )

    def classes_in(self, attribute: str, text: str) -> list[str]:
        """The classes of ``attribute`` that a text lists, by their full names, each once: one a line or separated by
        commas, as :meth:`class_index` knows them; a name that has commas itself may be written out.

        Raises:
            EditingError: see :meth:`class_index`.
        """
        names = self.heads[list(self.heads)[self.index(attribute)]]
        whole = {_plain(name): name for name in names}
        found: dict[str, None] = {}
        for line in text.splitlines():
            parts = [part for part in map(str.strip, line.split(",")) if part]
            while parts:
                lengths = range(len(parts), 1, -1)
                taken = next((n for n in lengths if _plain(", ".join(parts[:n])) in whole), 1)
                together = ", ".join(parts[:taken])
                found[whole[_plain(together)] if taken > 1 else names[self.class_index(attribute, together)]] = None
                parts = parts[taken:]
        return list(found)

    def sentence(self) -> str:
        """What it is for, in a sentence."""
        return f"It is ready and tells apart: {'; '.join(named(list(names)) for names in self.heads.values())}."

    def describe(self) -> str:
        """One line for people: classes, input size and normalisation, fingerprint."""
        classes = "; ".join(f"{attribute}: {named(names)}" for attribute, names in self.heads.items())
        return f"{classes} | {self._sees()} | fingerprint {self.fingerprint}"

    def _sees(self) -> str:
        """What pictures become before the trunk, in words."""
        return f"sees {self.size[1]} x {self.size[0]} pixels, {_normalisation(self.mean, self.std)}"


def two_classes(layer: nn.Linear) -> nn.Linear:
    """A layer of one logit z as one of two, ``(-z/2, z/2)``, whose softmax is ``(1 - sigmoid(z), sigmoid(z))``."""
    signs = torch.tensor([[-0.5], [0.5]], device=layer.weight.device, dtype=layer.weight.dtype)
    made = nn.Linear(
        layer.in_features, 2, bias=layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype
    )
    made.weight = nn.Parameter(signs * layer.weight.detach(), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter((signs * layer.bias.detach()).squeeze(1), requires_grad=False)
    return made


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """In words: by name where it has one."""
    for name, (known_mean, known_std) in NORMALISATIONS.items():
        if torch.allclose(torch.tensor([*mean, *std]), torch.tensor([*known_mean, *known_std]), rtol=0, atol=1e-4):
            return f"normalised to {name}"
    figures = (" ".join(f"{value:.3g}" for value in values) for values in (mean, std))
    return "normalised by mean {}, std {}".format(*figures)


def named(names: Sequence[str]) -> str:
    """``names`` as a sentence may repeat them: the first ten, or fewer where they are long, and how many there are."""
    shown: list[str] = []
    for name in map(shown_name, names[:MOST_NAMED]):
        if shown and len(", ".join([*shown, name])) > MOST_LETTERS:
            break
        shown.append(name)
    return ", ".join(shown) + (f" ... ({len(names)} in all)" if len(shown) < len(names) else "")


def _parts(name: str) -> list[str]:
    """The names of a class that has several, in small letters."""
    return [part.strip().casefold() for part in name.split(",")]


def _plain(name: str) -> str:
    """A name to compare by: spaces around commas and capitals do not count."""
    return ",".join(_parts(name))


def _check(
    heads: dict[str, list[str]],
    last: Sequence[nn.Module],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
) -> None:
    name = shown_name(name)
    if not heads or len(heads) != len(last):
        raise EditingError(
            f"{name} has {len(last)} outputs but names for {len(heads)} attributes; give one list of classes for each."
        )
    for (attribute, names), layer in zip(heads.items(), last, strict=True):
        what = shown_name(attribute)
        if len(names) < 2:
            raise EditingError(f"{name} has only one class of {what}; a classifier needs at least two.")
        if len(set(names)) != len(names):
            raise EditingError(f"{name} has two classes of {what} with the same name; name every class differently.")
        if isinstance(layer, nn.Linear) and layer.out_features != len(names):
            raise EditingError(
                f"{name} has {layer.out_features} classes of {what} but {len(names)} names; give one name for each."
            )
    if min(size) < 1 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise EditingError(
            f"{name} declares an input of {size} pixels with mean {mean} and std {std}; it cannot be used."
        )

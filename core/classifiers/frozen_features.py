"""Classifiers over the features of somebody else's network, which stays where it is: a CLIP, or its image side alone.

Such a classifier is nothing but linear layers. They are either learned on labelled pictures (a linear probe, as CLIP's
authors test features: Radford et al. 2021, section 3.2) or made of texts (zero-shot, section 3.1): the softmax over the
cosines between a picture and a text for each class, times the CLIP's own scale.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..file_names import shown_name
from ..models.clip import ClipScorer, check_texts
from .base import ImageClassifier, named

FEATURES = "features"  # the kind of network, in files
YES_NO = ("no", "yes")


class FeatureTrunk(nn.Module):
    """A network as the trunk of a classifier, of which it is no part: whoever owns it moves and frees it.

    Args:
        see: images ``[B, 3, H, W]`` in 0..1 of any size -> features ``[B, width]``, differentiable.
        identity: names the network and its weights.
        side: pixels of the square pictures that it takes.
    """

    def __init__(self, see: Callable[[Tensor], Tensor], identity: str, side: int, width: int):
        super().__init__()
        self.see, self.identity, self.side, self.width = see, identity, int(side), int(width)

    def forward(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in 0..1 -> features ``[B, width]``."""
        return self.see(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTrunk:
        return self  # the network is not ours to copy


def scorer_trunk(scorer: ClipScorer) -> FeatureTrunk:
    """A CLIP's unit features E_v as a trunk."""
    with torch.no_grad():
        width = scorer.image_features(torch.zeros(1, 3, scorer.side, scorer.side)).shape[1]
    return FeatureTrunk(scorer.image_features, scorer.identity, scorer.side, width)


class FeatureClassifier(ImageClassifier):
    """Linear layers over a :class:`FeatureTrunk`. Its own weights are these layers' alone.

    Args:
        trunk: makes pictures ready itself, the whole picture, aspect not kept.
        last, heads, name: see :class:`~.base.ImageClassifier`.
    """

    trunk: FeatureTrunk

    def __init__(self, trunk: FeatureTrunk, last: Sequence[nn.Module], heads: Mapping[str, Sequence[str]], name: str):
        described = {"kind": FEATURES, "identity": trunk.identity, "width": trunk.width}
        size = (trunk.side, trunk.side)
        super().__init__(trunk, last, heads, size, (0.0,) * 3, (1.0,) * 3, name, described, "bicubic")

    def _facts(self) -> list[Any]:
        return [*super()._facts(), self.trunk.identity]

    def _sees(self) -> str:
        return f"sees {self.trunk.side} x {self.trunk.side} pixels, made ready as its CLIP wants them"

    def prepare(self, images: Tensor) -> Tensor:
        """``images`` as they are; the trunk makes them ready.

        Raises:
            EditingError: not ``[B, 3, H, W]``.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise EditingError(
                f"The images have shape {list(images.shape)}; a classifier needs [batch, 3, height, width] in 0..1."
            )
        return images

    def features(self, images: Tensor) -> Tensor:
        """The trunk's features of ``images [B, 3, H, W]`` in 0..1, where the linear layers are."""
        return self.trunk(self.prepare(images)).to(self.device, torch.float32)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`~.base.ImageClassifier.logits`; one pass of the trunk serves all attributes."""
        features = self.features(images)
        return {attribute: layer(features) for attribute, layer in zip(self.heads, self.last, strict=True)}


def text_layer(scorer: ClipScorer, texts: Sequence[str]) -> nn.Linear:
    """The layer over a CLIP's features whose softmax is the CLIP's own choice among ``texts``, one for each class."""
    check_texts(texts)
    with torch.no_grad():
        weight = scorer.logit_scale * scorer.text_features(texts).detach().float().cpu()
    layer = nn.Linear(weight.shape[1], len(texts), bias=False, device="meta")
    layer.load_state_dict({"weight": weight}, assign=True)
    return layer


def classifier_from_texts(
    scorer: ClipScorer,
    attributes: Mapping[str, Mapping[str, str]],
    name: str,
    trunk: FeatureTrunk | None = None,
) -> FeatureClassifier:
    """A zero-shot classifier.

    Args:
        attributes: attribute -> class -> what a picture of that class shows, e.g. {"glasses": {"no": "a face", "yes":
            "a face with glasses"}}.
        trunk: the scorer's image side, where a host has a way of its own to it.

    Raises:
        EditingError: no attribute, fewer than two classes, an empty text, or texts that are all the same.
    """
    layers = []
    for attribute, texts in attributes.items():
        if len(set(texts.values())) < len(texts):
            raise EditingError(
                f"Two classes of {shown_name(attribute)} have the same text; say what differs in the picture."
            )
        layers.append(text_layer(scorer, list(texts.values())))
    heads = {attribute: list(texts) for attribute, texts in attributes.items()}
    return FeatureClassifier(trunk or scorer_trunk(scorer), layers, heads, name)


def attributes_in(text: str) -> dict[str, dict[str, str]]:
    """Attribute -> class -> text, from lines such as "hair: red hair | black hair"; a class is called as its text.

    Raises:
        EditingError: a line of another form, fewer than two texts, or an attribute twice.
    """
    found: dict[str, dict[str, str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        attribute, colon, rest = line.partition(":")
        texts = [part.strip() for part in rest.split("|")]
        if not colon or not attribute.strip() or len(texts) < 2 or not all(texts):
            raise EditingError(
                f"The line '{shown_name(line)}' cannot be read; write an attribute, a colon and two texts or more, "
                "e.g. hair: red hair | black hair."
            )
        if attribute.strip() in found:
            raise EditingError(f"The attribute {shown_name(attribute.strip())} has two lines; write one.")
        found[attribute.strip()] = {part: part for part in texts}
    return found


class JoinedClassifier(ImageClassifier):
    """Two classifiers as one that knows the attributes of both; what can be learned from is the first one's.

    Raises:
        EditingError: both know an attribute of one name.
    """

    def __init__(self, first: ImageClassifier, second: ImageClassifier):
        nn.Module.__init__(self)
        both = [attribute for attribute in second.heads if attribute in first.heads]
        if both:
            raise EditingError(f"Both classifiers know {named(both)}; give the further attributes other names.")
        self.first, self.second = first, second
        self.heads = first.heads | second.heads
        self.size, self.mean, self.std, self.interpolation = first.size, first.mean, first.std, first.interpolation
        self.name, self.architecture = first.name, {}
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """Of both."""
        return "-".join(part.fingerprint for part in (self.first, self.second))

    def _sees(self) -> str:
        return f"{self.first._sees()}; the further attributes: {self.second._sees()}"

    def prepare(self, images: Tensor) -> Tensor:
        """The first one's."""
        return self.first.prepare(images)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Of both, on the first one's device."""
        own = self.first.logits(images)
        device = next(iter(own.values())).device
        return own | {attribute: logits.to(device) for attribute, logits in self.second.logits(images).items()}

    def features(self, images: Tensor) -> Tensor:
        """The first one's."""
        return self.first.features(images)

    def class_weights(self, attribute: str) -> Tensor:
        """Of whichever knows the attribute."""
        return (self.first if attribute in self.first.heads else self.second).class_weights(attribute)


def joined(first: ImageClassifier, second: FeatureClassifier) -> ImageClassifier:
    """Both as one; over the same features a single pass serves all.

    Raises:
        EditingError: both know an attribute of one name.
    """
    if not isinstance(first, FeatureClassifier) or first.trunk.identity != second.trunk.identity:
        return JoinedClassifier(first, second)
    JoinedClassifier(first, second)  # refuses attributes of one name
    layers = copy.deepcopy([*first.last, *second.last])  # a host moves each classifier by itself
    return FeatureClassifier(first.trunk, layers, first.heads | second.heads, first.name)

"""What a candidate edit is worth: the losses of Eq. 3 to 6 and the ranking score of Eq. 7, from one CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..content_hash import content_hash
from ..errors import EditingError
from ..models.clip import ClipScorer, check_texts

TEXT_WEIGHT, IMAGE_WEIGHT = 2.0, 1.0  # alpha and beta of Eq. 7
CROP_RANGE = (0.6, 0.9)  # side of a random crop as a fraction of the image's


@dataclass(frozen=True)
class LossWeights:
    """The lambdas of Eq. 3."""

    clip: float = 1.0
    direction: float = 1.0
    structure: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.clip, self.direction, self.structure)
        if any(not 0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise EditingError(
                f"The loss weights are {weights}; use 0 (off) or positive numbers, at least one above 0."
            )


@dataclass(frozen=True)
class Verdict:
    """How one rendered edit did.

    Attributes:
        clip: L_Clip, cosine distance of edited image and target text (Eq. 4), 0..2.
        direction: L_Dir, cosine distance of the change in the image and the change in the text (Eq. 6), 0..2.
        structure: L_Str, root mean square difference of the token similarities (Eq. 5 divided by the number of tokens),
            0..2.
        text_similarity, image_similarity: S_t2i and S_i2i, cosines.
    """

    clip: float
    direction: float
    structure: float
    text_similarity: float
    image_similarity: float

    def loss(self, weights: LossWeights) -> float:
        """L of Eq. 3."""
        return weights.clip * self.clip + weights.direction * self.direction + weights.structure * self.structure

    @property
    def score(self) -> float:
        """S = 2 S_t2i + S_i2i (Eq. 7), higher is better."""
        return TEXT_WEIGHT * self.text_similarity + IMAGE_WEIGHT * self.image_similarity


class Judge(Protocol):
    """Judges an edited image. The search knows nothing else about texts and CLIP."""

    @property
    def identity(self) -> str:
        """Names everything that decides a verdict besides the edited image."""
        ...

    def __call__(self, edited: Tensor) -> Verdict:
        """The verdict on ``edited [1, 3, H, W]`` in 0..1."""
        ...


class ClipJudge:
    """Eq. 3 to 7. Both sides of every difference are seen alike: whole, and through the same ``crops`` if any.

    Args:
        scorer: any CLIP.
        image: ``[1, 3, H, W]`` in 0..1, the paper's X.
        source_text: what the image shows (T_ROI).
        target_text: what it should show (T).
        crops: random squares of the image, the same for every edit, whose losses are averaged with the whole image's.
        seed: of the crops.

    Raises:
        EditingError: a text is empty, both are the same, or they mean the same to this CLIP.
    """

    def __init__(
        self, scorer: ClipScorer, image: Tensor, source_text: str, target_text: str, *, crops: int = 0, seed: int = 0
    ):
        if not 0 <= crops <= 64:
            raise EditingError(f"crops is {crops}; use 0 (the whole image) to 64.")
        check_texts([source_text, target_text])
        self.scorer, self.size = scorer, tuple(image.shape[-2:])
        self._crops = _random_crops(crops, seed)
        with torch.inference_mode(False), torch.no_grad():
            source, target = scorer.text_features([source_text, target_text])
            self.text_change = target - source
            if source_text.strip() == target_text.strip() or float(self.text_change.norm()) < 1e-4:
                raise EditingError("Source and target text mean the same to this CLIP; say what should be different.")
            self.target = target
            views = self._views(image)
            self.source = scorer.embed_images(views)
        self.identity = content_hash(scorer.identity, image, source_text, target_text, f"{crops} {seed}")

    def terms(self, edited: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(L_Clip, L_Dir, L_Str)`` of ``edited [1, 3, H, W]`` in 0..1, as in :class:`Verdict`, differentiable
        scalars.

        Raises:
            EditingError: another size than the source image's, or not a number.
        """
        clip, direction, structure, _ = self._measure(edited)
        return clip, direction, structure

    @torch.no_grad()
    def __call__(self, edited: Tensor) -> Verdict:
        """The verdict on ``edited [1, 3, H, W]`` in 0..1.

        Raises:
            EditingError: as for :meth:`terms`.
        """
        clip, direction, structure, features = self._measure(edited)
        text = functional.cosine_similarity(features, self.target, dim=0)
        kept = functional.cosine_similarity(features, self.source.features[0], dim=0)
        return Verdict(*(float(value) for value in (clip, direction, structure, text, kept)))

    def _measure(self, edited: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The three losses, and the features ``[P]`` of the whole image."""
        if tuple(edited.shape[-2:]) != self.size:
            raise EditingError(
                f"The edited image is {list(edited.shape[-2:])} and the source {list(self.size)}; edit at the "
                "image's size."
            )
        features, similarity = self.scorer.embed_images(self._views(edited))
        towards = functional.cosine_similarity(features, self.target[None])
        same_way = functional.cosine_similarity(features - self.source.features, self.text_change[None])
        structure = (similarity - self.source.similarity).square().flatten(1).mean(1).clamp_min(1e-14).sqrt()
        return (1 - towards).mean(), (1 - same_way).mean(), structure.mean(), features[0]

    def _views(self, image: Tensor) -> Tensor:
        """The whole image and its crops at one size, ``[1 + crops, 3, h, w]``."""
        height, width = self.size
        views = [image]
        for side, left, top in self._crops:
            h, w = max(1, round(side * height)), max(1, round(side * width))
            y, x = round(top * (height - h)), round(left * (width - w))
            part = image[..., y : y + h, x : x + w]
            views.append(functional.interpolate(part, size=(height, width), mode="bilinear", antialias=True))
        return torch.cat(views) if self._crops else image


def _random_crops(count: int, seed: int) -> list[tuple[float, float, float]]:
    """``(side, left, top)`` as fractions: of the image, and of the room that is left."""
    numbers = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)).tolist()
    low, high = CROP_RANGE
    return [(low + (high - low) * side, left, top) for side, left, top in numbers]

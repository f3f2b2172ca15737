"""Vision transformers and CLIP among the host's models: it may evict them, and every use brings them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.regions.clip_scorer import ClipScorer, ImageEmbedding, TowerScorer
from ...core.regions.features import VisionFeatures
from .classifiers import bring, held_patcher


def hold_vision(make: Callable[[], VisionFeatures]) -> VisionFeatures:
    """Call ``make`` outside inference mode and hand the result to the host; calling it loads it first."""
    with torch.inference_mode(False):
        vision = make()
    patcher = held_patcher(vision)
    vision.register_forward_pre_hook(lambda *_: bring(patcher))
    return vision


def hold_scorer(make: Callable[[], TowerScorer]) -> ClipScorer:
    """The same for a CLIP, whose towers are of one network; gradients with respect to images are possible outside inference mode."""
    with torch.inference_mode(False):
        return _HeldScorer(make())


class _HeldScorer:
    """A ``core.regions.clip_scorer.ClipScorer`` on the host's device."""

    def __init__(self, scorer: TowerScorer):
        assert scorer.network is not None, "its weights must be known to be moved"
        self.scorer, self.patcher = scorer, held_patcher(scorer.network)

    @property
    def identity(self) -> str:
        return self.scorer.identity

    def embed_images(self, images: Tensor) -> ImageEmbedding:
        return self._loaded().embed_images(images)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return self._loaded().text_features(texts)

    def _loaded(self) -> Any:
        bring(self.patcher)
        return self.scorer

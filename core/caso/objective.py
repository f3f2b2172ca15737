"""What an edited picture is worth in training: classified as asked (Eq. 3), and its other attributes as they were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..classifiers.base import ImageClassifier
from ..errors import EditingError


@dataclass(frozen=True, eq=False)
class Verdict:
    """``classification`` and ``others`` are losses (scalars), ``right [B]`` says which images are classified as asked."""

    classification: Tensor
    others: Tensor
    right: Tensor


class Objective:
    """Judges edited images by a frozen classifier.

    Args:
        classifier: may know more attributes than the one to learn.
        attribute, targets: what to learn, by the classifier's names.

    Raises:
        EditingError: an attribute or class that the classifier does not know.
    """

    def __init__(self, classifier: ImageClassifier, attribute: str, targets: tuple[str, ...]):
        self.classifier, self.attribute = classifier, attribute
        self.columns = [classifier.class_index(attribute, target) for target in targets]
        self.others = [name for name in classifier.heads if name != attribute]

    def appearance(self, images: Tensor) -> Tensor:
        """How the other attributes look in ``images [B, 3, H, W]`` in 0..1: their log-probabilities side by side, ``[B, S]``."""
        return self._side_by_side(self.classifier.logits(images))

    def __call__(self, images: Tensor, targets: Tensor, before: Tensor | None = None) -> Verdict:
        """Judge ``images [B, 3, H, W]`` in 0..1, differentiably.

        Args:
            targets: ``[B]`` numbers of target classes.
            before: :meth:`appearance` of the unedited pictures, ``[B, S]``; None does not look at other attributes.

        Raises:
            EditingError: ``before`` is of another classifier.
        """
        found = self.classifier.logits(images)
        logits = found[self.attribute].float()
        wanted = torch.tensor([self.columns[target] for target in targets.tolist()], device=logits.device)
        right = logits.detach().argmax(1) == wanted
        others = logits.new_zeros(()) if before is None else self._changed(self._side_by_side(found), before.to(logits.device))
        return Verdict(functional.cross_entropy(logits, wanted), others, right)

    def _side_by_side(self, found: dict[str, Tensor]) -> Tensor:
        rows = [found[name].float().log_softmax(1) for name in self.others]
        return torch.cat(rows, 1) if rows else found[self.attribute].new_zeros(len(found[self.attribute]), 0)

    def _changed(self, after: Tensor, before: Tensor) -> Tensor:
        """Kullback-Leibler divergence from before to after, mean over the other attributes and the pictures, in nats."""
        if after.shape != before.shape:
            raise EditingError(
                f"The pictures before were looked at for {before.shape[-1]} classes and now for {after.shape[-1]}; use one classifier."
            )
        if not self.others:
            return after.new_zeros(())
        return (before.exp() * (before - after)).sum() / (len(after) * len(self.others))

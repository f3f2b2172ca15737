"""What a training of a classifier is told and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import EditingError
from ..images.curves import curves_plot
from .base import ImageClassifier


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        attribute: what the classes are values of, e.g. "glasses".
        epochs: passes over the pictures, at most.
        patience: epochs without a better one after which the training ends, 0 for never.
        batch_size: pictures in a step, two at least.
        learning_rate: AdamW's; 0 chooses one (2e-3 from nothing, 1e-4 for a given trunk, 1e-2 for its last layer alone).
        validation: part of every class that is set aside for testing, between 0 and 1 (at least one picture).
        augmentation: strength of the random changes, 0 for none, 1 usual (see :func:`~.augment.augmented`).
        flip: mirror half of the pictures; not for attributes that tell left from right.
        train_trunk: False trains the last layer alone.
        seed: of the split, the order, the changes and the first weights.
    """

    attribute: str = "attribute"
    epochs: int = 20
    patience: int = 0
    batch_size: int = 32
    learning_rate: float = 0.0
    validation: float = 0.2
    augmentation: float = 1.0
    flip: bool = True
    train_trunk: bool = True
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            EditingError: one is out of range.
        """
        if not self.attribute.strip():
            raise EditingError("The attribute has no name; write what the classes are values of, e.g. glasses.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise EditingError(f"{name} is {getattr(self, name)}; use 1 or more.")
        if not 0 < self.validation < 1:
            raise EditingError(f"validation is {self.validation}; use a part between 0 and 1, e.g. 0.2.")
        for name in ("learning_rate", "augmentation", "patience"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise EditingError(f"{name} is {getattr(self, name)}; use 0 or more.")


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is: ``step`` of ``steps`` in all, ``epoch`` from 1, the last step's loss, the best accuracy so far."""

    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float


#: Told of every step. True ends the training with the best epoch so far; an exception passes through.
TrainingCallback = Callable[[TrainingProgress], "bool | None"]


@dataclass(eq=False)
class TrainedClassifier:
    """What a training made.

    Attributes:
        classifier: frozen, of the best epoch.
        accuracy: its part of right answers on the pictures set aside.
        confusion: ``[K, K]`` counts there, row true class, column answer.
        best_epoch: from 1.
        history: per epoch "train loss", "validation loss", "validation accuracy".
        stopped: the callback ended it.
    """

    classifier: ImageClassifier
    accuracy: float
    confusion: Tensor
    best_epoch: int
    history: dict[str, list[float]]
    stopped: bool
    settings: TrainingSettings
    pictures: str = field(repr=False, default="")

    def plot(self) -> Tensor:
        """Losses and accuracy over the epochs, ``[H, W, 3]`` in 0..1; a line marks the epoch that was kept."""
        losses = {"train": self.history["train loss"], "validation": self.history["validation loss"]}
        accuracy = {"validation": self.history["validation accuracy"]}
        return curves_plot({"loss (cross-entropy)": losses, "accuracy": accuracy}, mark=self.best_epoch - 1)

    def confusion_text(self) -> str:
        """The confusion table with the recall of every class."""
        (names,) = self.classifier.heads.values()
        width = max(len("true \\ said"), *(len(name) for name in names)) + 2
        columns = [max(len(name), 5) + 2 for name in names]
        lines = [
            "true \\ said".ljust(width)
            + "".join(name.rjust(w) for name, w in zip(names, columns, strict=True))
            + "  recall"
        ]
        for name, row in zip(names, self.confusion.tolist(), strict=True):
            recall = row[names.index(name)] / max(sum(row), 1)
            lines.append(
                name.ljust(width)
                + "".join(str(n).rjust(w) for n, w in zip(row, columns, strict=True))
                + f"{recall:8.1%}"
            )
        return "\n".join(lines)

    def report(self) -> str:
        """Some lines for people."""
        ended = " (ended early)" if self.stopped else ""
        return (
            f"{self.pictures}\nvalidation accuracy {self.accuracy:.1%} on {int(self.confusion.sum())} pictures, "
            f"epoch {self.best_epoch} of {len(self.history['train loss'])}{ended}\n{self.confusion_text()}\n{self.classifier.describe()}"
        )

    def facts(self) -> dict[str, Any]:
        """What a file keeps about the training."""
        return {
            "validation_accuracy": self.accuracy,
            "confusion": self.confusion.tolist(),
            "best_epoch": self.best_epoch,
            "epochs_done": len(self.history["train loss"]),
            "settings": asdict(self.settings),
            "pictures": self.pictures,
        }


def confusion(labels: Tensor, answers: Tensor, classes: int) -> Tensor:
    """``[K, K]`` counts, row true class, column answer."""
    return torch.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)

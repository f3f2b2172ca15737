"""Training a classifier on labelled pictures: a small network from nothing, or another classifier's trunk trained on.

CASO's classifiers are VGG16 networks fine-tuned for some epochs ("Instructing Text-to-Image Diffusion Models via
Classifier-Guided Semantic Optimization", section 4, and the released training script); here the loss is cross-entropy
balanced over the classes, the learning rate falls along a cosine, and the epoch that does best on the validation
pictures is the one that is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from ..images.curves import curves_plot
from ..models.transformers_files import NORMALISATIONS
from .augment import augmented
from .base import ImageClassifier
from .convnet import CONVOLUTIONAL, AttributeClassifier, convolutional_trunk
from .pictures import LabelledPictures, split

WIDTHS, HIDDEN, SIZE = [24, 48, 80, 112], 128, 64  # of the network that is trained from nothing
RATE_SCRATCH = 2e-3  # AdamW's learning rate for the small network,
RATE_TUNED = 1e-4  # for a trunk that is trained on,
RATE_HEAD = 1e-2  # and for the last layer alone
WEIGHT_DECAY = 1e-2
WARM_UP = 0.05  # part of all steps in which the learning rate rises
SETTLE = 512  # pictures from which batch norm's figures are taken


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        attribute: what the classes are values of, e.g. "glasses".
        epochs: passes over the pictures, at most.
        patience: the training ends after so many epochs without a better one; 0 for never.
        batch_size: pictures in a step, two at least.
        learning_rate: AdamW's; 0 chooses one (2e-3 from nothing, 1e-4 for a given trunk, 1e-2 for its last layer
            alone).
        validation: part of every class that is tested on and not learned from, between 0 and 1 (at least one picture).
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
    """What the callback is told after each step; ``step`` and ``epoch`` count from 1, ``accuracy`` is the best yet."""

    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float


#: Called after every step. True ends the training with the best epoch so far; an exception passes through.
TrainingCallback = Callable[[TrainingProgress], "bool | None"]


@dataclass(eq=False)
class TrainedClassifier:
    """A trained classifier and how the training went.

    Attributes:
        classifier: frozen, of the best epoch.
        accuracy: its part of right answers on the validation pictures, 0 to 1.
        confusion: ``[K, K]`` counts there, row true class, column answer.
        best_epoch: from 1.
        history: per epoch "train loss", "validation loss", "validation accuracy".
        stopped: the callback ended it.
        settings: of the training.
        pictures: classes and numbers of the pictures, for people.
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
        """Pictures, accuracy, confusion table and input of the classifier, as text."""
        ended = " (ended early)" if self.stopped else ""
        return (
            f"{self.pictures}\nvalidation accuracy {self.accuracy:.1%} on {int(self.confusion.sum())} pictures, epoch "
            f"{self.best_epoch} of "
            f"{len(self.history['train loss'])}{ended}\n{self.confusion_text()}\n{self.classifier.describe()}"
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


def training_size(trunk_of: ImageClassifier | None, size: int = SIZE) -> tuple[int, int]:
    """``(h, w)`` that the pictures of a training must have: the given classifier's, or ``size`` for the small network.

    Raises:
        EditingError: a size below 16 pixels.
    """
    if trunk_of is not None:
        return trunk_of.size
    if size < 16:
        raise EditingError(f"The input size is {size} pixels; use 16 or more.")
    return size, size


def train_classifier(
    pictures: LabelledPictures,
    settings: TrainingSettings,
    trunk_of: ImageClassifier | None = None,
    *,
    device: str | torch.device = "cpu",
    callback: TrainingCallback | None = None,
) -> TrainedClassifier:
    """Train a classifier of one attribute.

    Args:
        pictures: at :func:`training_size`.
        trunk_of: a classifier whose trunk (backbone) is copied and trained on; None trains a small network from
            nothing.
        device: where to compute. Everything random comes from ``settings.seed``; the global generators stay as they
            are.

    Raises:
        EditingError: settings out of range, pictures of another size, a trunk that cannot be trained on, or a loss that
            is not a number any more.
    """
    settings.check()
    target = torch.device(device)
    with _seeded(settings.seed, target):
        parts = _prepare(trunk_of, pictures, settings.seed)
        return _Training(pictures, settings, parts, trunk_of is None, target).run(callback)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from the global generators, which come back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


@dataclass
class _Parts:
    """The networks in training and what an :class:`ImageClassifier` of them needs."""

    trunk: nn.Module
    last: nn.Linear
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: dict[str, Any]
    interpolation: str = "bilinear"

    def normalised(self, images: Tensor) -> Tensor:
        return (images - images.new_tensor(self.mean).view(3, 1, 1)) / images.new_tensor(self.std).view(3, 1, 1)

    def logits(self, images: Tensor) -> Tensor:
        made: Tensor = self.last(self.trunk(self.normalised(images)))
        return made

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trunk, last = (
            {k: v.detach().cpu().clone() for k, v in part.state_dict().items()} for part in (self.trunk, self.last)
        )
        return trunk, last


def _prepare(trunk_of: ImageClassifier | None, pictures: LabelledPictures, seed: int) -> _Parts:
    size = (int(pictures.pixels.shape[-2]), int(pictures.pixels.shape[-1]))
    classes = len(pictures.classes)
    if trunk_of is None:
        net = AttributeClassifier(WIDTHS, HIDDEN, {}, size[0])
        mean, std = NORMALISATIONS["-1..1"]
        architecture = {"kind": CONVOLUTIONAL, "widths": WIDTHS, "hidden": HIDDEN}
        return _Parts(convolutional_trunk(net), nn.Linear(HIDDEN, classes), size, mean, std, architecture)
    if not trunk_of.architecture:
        raise EditingError(
            f"{trunk_of.name} cannot be trained on, because it does not end in a linear layer; use another backbone."
        )
    if trunk_of.size != size:
        raise EditingError(
            f"The pictures are {size[1]} x {size[0]} pixels but {trunk_of.name} sees {trunk_of.size[1]} x "
            f"{trunk_of.size[0]}."
        )
    features = int(trunk_of.class_weights(next(iter(trunk_of.heads))).shape[1])
    trunk = copy.deepcopy(trunk_of.trunk).cpu()
    return _Parts(
        trunk,
        nn.Linear(features, classes),
        size,
        trunk_of.mean,
        trunk_of.std,
        trunk_of.architecture,
        trunk_of.interpolation,
    )


class _Training:
    """One training run's state."""

    def __init__(
        self, pictures: LabelledPictures, settings: TrainingSettings, parts: _Parts, scratch: bool, device: torch.device
    ):
        self.pictures, self.settings, self.parts, self.device = pictures, settings, parts, device
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.train, self.test = split(pictures.labels, settings.validation, self.generator)
        self.train = self.train[torch.randperm(len(self.train), generator=self.generator)]  # no class in one piece
        self.whole = scratch or settings.train_trunk
        parts.trunk.to(device).requires_grad_(self.whole)
        parts.last.to(device).requires_grad_(True)
        rate = settings.learning_rate or (RATE_SCRATCH if scratch else RATE_TUNED if self.whole else RATE_HEAD)
        weights = [p for part in (parts.trunk, parts.last) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=WEIGHT_DECAY)
        self.batches = self._batches(len(self.train))
        self.steps = settings.epochs * self.batches
        warm = max(1, round(WARM_UP * self.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        )
        counts = torch.bincount(pictures.labels[self.train], minlength=len(pictures.classes)).float()
        self.balance = (counts.sum() / counts / len(counts)).to(device)
        self.history: dict[str, list[float]] = {"train loss": [], "validation loss": [], "validation accuracy": []}
        self.best: tuple[float, float] = (-1.0, -math.inf)
        self.best_epoch = 0
        self.confusion = torch.zeros(0)
        self.kept = parts.state()

    def run(self, callback: TrainingCallback | None) -> TrainedClassifier:
        stopped, step = False, 0
        for epoch in range(1, self.settings.epochs + 1):
            losses = []
            order = self.train[torch.randperm(len(self.train), generator=self.generator)]
            for rows in order.tensor_split(self.batches):
                losses.append(self._step(rows, epoch))
                step += 1
                progress = TrainingProgress(step, self.steps, epoch, losses[-1], max(self.best[0], 0.0))
                if callback is not None and callback(progress):
                    stopped = True
                    break
            if not stopped or self.best_epoch == 0:  # a run that is ended inside its first epoch keeps what it has
                self._judge(epoch, sum(losses) / len(losses))
            if stopped or (self.settings.patience and epoch - self.best_epoch >= self.settings.patience):
                break
        return self._result(stopped)

    def _batches(self, count: int) -> int:
        """Number of even batches of ``count`` pictures, each of two at least: batch norm learns nothing from one."""
        return max(1, min(math.ceil(count / self.settings.batch_size), count // 2))

    def _step(self, rows: Tensor, epoch: int) -> float:
        parts = self.parts
        parts.trunk.train(self.whole)
        images = self.pictures.pixels[rows].to(self.device).float() / 255
        images = augmented(images, self.settings.augmentation, self.settings.flip, self.generator)
        loss = functional.cross_entropy(parts.logits(images), self.pictures.labels[rows].to(self.device), self.balance)
        value = loss.item()
        if not math.isfinite(value):
            raise EditingError(
                f"The training broke down in epoch {epoch} (its loss is not a number); lower the learning rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return value

    def _judge(self, epoch: int, train_loss: float) -> None:
        """Validate; keep the weights when more answers are right, or as many with a lower loss."""
        if self.whole:
            self._settle()
        logits = self._test_logits()
        labels = self.pictures.labels[self.test]
        loss = float(functional.cross_entropy(logits, labels, self.balance.cpu()))
        if not math.isfinite(loss):
            raise EditingError(
                f"The training broke down in epoch {epoch} (its answers are not numbers); lower the learning rate."
            )
        accuracy = float((logits.argmax(1) == labels).double().mean())
        for name, value in zip(self.history, (train_loss, loss, accuracy), strict=True):
            self.history[name].append(value)
        if (accuracy, -loss) > self.best:
            self.best, self.best_epoch = (accuracy, -loss), epoch
            self.confusion = confusion(labels, logits.argmax(1), len(self.pictures.classes))
            self.kept = self.parts.state()

    @torch.no_grad()
    def _settle(self) -> None:
        """Set batch norm's running figures to plain means over the training pictures.

        With some hundred pictures there are too few steps for the moving averages to arrive (Wu and Johnson,
        "Rethinking 'Batch' in BatchNorm", 2021, section 3).
        """
        norms = [layer for layer in self.parts.trunk.modules() if isinstance(layer, nn.BatchNorm2d)]
        if not norms:
            return
        momenta = [layer.momentum for layer in norms]
        self.parts.trunk.eval()
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean
            layer.train()
        some = self.train[:SETTLE]
        for rows in some.tensor_split(self._batches(len(some))):
            self.parts.logits(self.pictures.pixels[rows].to(self.device).float() / 255)
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum

    @torch.no_grad()
    def _test_logits(self) -> Tensor:
        self.parts.trunk.eval()
        parts = []
        for rows in self.test.split(self.settings.batch_size):
            parts.append(self.parts.logits(self.pictures.pixels[rows].to(self.device).float() / 255).cpu())
        return torch.cat(parts)

    def _result(self, stopped: bool) -> TrainedClassifier:
        parts, settings = self.parts, self.settings
        for part, state in zip((parts.trunk, parts.last), self.kept, strict=True):
            part.load_state_dict(state)
        classifier = ImageClassifier(
            parts.trunk,
            [parts.last],
            {settings.attribute.strip(): self.pictures.classes},
            parts.size,
            parts.mean,
            parts.std,
            settings.attribute.strip(),
            parts.architecture,
            parts.interpolation,
        )
        return TrainedClassifier(
            classifier.cpu(),
            self.best[0],
            self.confusion,
            self.best_epoch,
            self.history,
            stopped,
            settings,
            self.pictures.describe(),
        )

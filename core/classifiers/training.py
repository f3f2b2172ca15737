"""Training a classifier on labelled pictures: a small network from nothing, or another classifier's trunk trained on.

CASO's classifiers are VGG16 networks fine-tuned for some epochs ("Instructing Text-to-Image Diffusion Models via
Classifier-Guided Semantic Optimization", section 4, and the released training script); here the loss is cross-entropy
balanced over the classes, the learning rate falls along a cosine, and the epoch that does best on the validation
pictures is the one that is kept.

Where the trunk is not trained, its features are taken once, of each picture and its mirror image, and the last layer is
a logistic regression over them (a linear probe), solved by L-BFGS in seconds. Nothing is chosen by the validation
pictures then, and nothing is augmented: features of changed pictures made it worse in our trials.
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
from .frozen_features import FeatureClassifier, FeatureTrunk
from .pictures import LabelledPictures, split

WIDTHS, HIDDEN, SIZE = [24, 48, 80, 112], 128, 64  # of the network that is trained from nothing
RATE_SCRATCH = 2e-3  # AdamW's learning rate for the small network,
RATE_TUNED = 1e-4  # for a trunk that is trained on,
PENALTY = 0.1  # of a linear probe's squared weights over standardised features
WEIGHT_DECAY = 1e-2
WARM_UP = 0.05  # part of all steps in which the learning rate rises
SETTLE = 512  # pictures from which batch norm's figures are taken
SMALLEST_SPREAD = 1e-6  # of a feature that is worth dividing by


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        attribute: what the classes are values of, e.g. "glasses".
        epochs: passes over the pictures, at most; for the last layer alone steps of L-BFGS.
        patience: the training ends after so many epochs without a better one; 0 for never.
        batch_size: pictures in a step, two at least.
        learning_rate: AdamW's; 0 chooses one (2e-3 from nothing, 1e-4 for a given trunk). The last layer alone needs
            none.
        validation: part of every class that is tested on and not learned from, between 0 and 1 (at least one picture).
        augmentation: strength of the random changes, 0 for none, 1 usual (see :func:`~.augment.augmented`); the last
            layer alone is trained without.
        flip: mirror half of the pictures; not for attributes that tell left from right.
        train_trunk: False trains the last layer alone; so it is with a trunk that is not ours to train.
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


def training_size(trunk_of: ImageClassifier | FeatureTrunk | None, size: int = SIZE) -> tuple[int, int]:
    """``(h, w)`` that the pictures of a training must have: the given classifier's, or ``size`` for the small network.

    Raises:
        EditingError: a size below 16 pixels.
    """
    if isinstance(trunk_of, FeatureTrunk):
        return trunk_of.side, trunk_of.side
    if trunk_of is not None:
        return trunk_of.size
    if size < 16:
        raise EditingError(f"The input size is {size} pixels; use 16 or more.")
    return size, size


def train_classifier(
    pictures: LabelledPictures,
    settings: TrainingSettings,
    trunk_of: ImageClassifier | FeatureTrunk | None = None,
    *,
    device: str | torch.device = "cpu",
    callback: TrainingCallback | None = None,
) -> TrainedClassifier:
    """Train a classifier of one attribute.

    Args:
        pictures: at :func:`training_size`.
        trunk_of: a classifier whose trunk (backbone) is copied and trained on, or a trunk that stays as it is; None
            trains a small network from nothing.
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

    def features(self, images: Tensor) -> Tensor:
        made: Tensor = self.trunk(self.normalised(images))
        return made

    def logits(self, images: Tensor) -> Tensor:
        made: Tensor = self.last(self.features(images))
        return made

    def state(self, whole: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the weights in training; those of the trunk unless ``whole`` is False."""
        trunk, last = (
            {k: v.detach().cpu().clone() for k, v in part.state_dict().items()} if training else {}
            for part, training in ((self.trunk, whole), (self.last, True))
        )
        return trunk, last


def _prepare(trunk_of: ImageClassifier | FeatureTrunk | None, pictures: LabelledPictures, seed: int) -> _Parts:
    size = (int(pictures.pixels.shape[-2]), int(pictures.pixels.shape[-1]))
    classes = len(pictures.classes)
    if trunk_of is None:
        net = AttributeClassifier(WIDTHS, HIDDEN, {}, size[0])
        mean, std = NORMALISATIONS["-1..1"]
        architecture = {"kind": CONVOLUTIONAL, "widths": WIDTHS, "hidden": HIDDEN}
        return _Parts(convolutional_trunk(net), nn.Linear(HIDDEN, classes), size, mean, std, architecture)
    if isinstance(trunk_of, FeatureTrunk):
        _require_size(size, (trunk_of.side, trunk_of.side), "the backbone")
        last = nn.Linear(trunk_of.width, classes)
        return _Parts(trunk_of, last, size, (0.0,) * 3, (1.0,) * 3, {})
    if not trunk_of.architecture:
        raise EditingError(
            f"{trunk_of.name} cannot be trained on, because it does not end in a linear layer; use another backbone."
        )
    _require_size(size, trunk_of.size, trunk_of.name)
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


def _require_size(size: tuple[int, int], wanted: tuple[int, int], name: str) -> None:
    if wanted != size:
        raise EditingError(f"The pictures are {size[1]} x {size[0]} pixels but {name} sees {wanted[1]} x {wanted[0]}.")


class _Training:
    """One training run's state."""

    def __init__(
        self, pictures: LabelledPictures, settings: TrainingSettings, parts: _Parts, scratch: bool, device: torch.device
    ):
        self.pictures, self.settings, self.parts, self.device = pictures, settings, parts, device
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.train, self.test = split(pictures.labels, settings.validation, self.generator)
        self.train = self.train[torch.randperm(len(self.train), generator=self.generator)]  # no class in one piece
        self.whole = (scratch or settings.train_trunk) and not isinstance(parts.trunk, FeatureTrunk)
        parts.trunk.to(device).requires_grad_(self.whole)
        parts.last.to(device).requires_grad_(True)
        rate = settings.learning_rate or (RATE_SCRATCH if scratch else RATE_TUNED)
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
        self.kept = parts.state(self.whole)

    def run(self, callback: TrainingCallback | None) -> TrainedClassifier:
        stopped, step = False, 0
        if not self.whole:
            return self._probe(callback)
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

    def _probe(self, callback: TrainingCallback | None) -> TrainedClassifier:
        """Logistic regression of the labels on the trunk's features, with a penalty on the weights; the last step is
        kept. Cancel while the features are taken ends it after one step."""
        seen, passes, stopped = self._see(callback)
        rows = seen[:, self.train].flatten(0, 1)
        mean, spread = rows.mean(0), rows.std(0, unbiased=False)
        spread = torch.where(spread > SMALLEST_SPREAD, spread, 1.0)
        rows, test = (((part - mean) / spread).to(self.device) for part in (rows, seen[0, self.test]))
        labels, last = self.pictures.labels[self.train].repeat(len(seen)).to(self.device), self.parts.last
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # the problem is convex
        optimizer = torch.optim.LBFGS(last.parameters(), max_iter=1, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            error = functional.cross_entropy(last(rows), labels, self.balance)
            whole: Tensor = error + PENALTY / 2 * last.weight.square().sum()
            whole.backward()
            return whole

        for epoch in range(1, self.settings.epochs + 1):
            value = float(optimizer.step(loss).detach())
            with torch.no_grad():
                self._keep(epoch, value, last(test).cpu(), always=True)
            progress = TrainingProgress(passes + epoch, passes + self.settings.epochs, epoch, value, self.best[0])
            stopped = (callback is not None and bool(callback(progress))) or stopped
            if stopped:
                break
        with torch.no_grad():  # the layer over the features as they are
            last.load_state_dict(self.kept[1])
            weight = last.weight.cpu() / spread
            last.bias.sub_((weight @ mean).to(self.device))
            last.weight.copy_(weight)
        self.kept = self.parts.state(whole=False)
        return self._result(stopped)

    @torch.no_grad()
    def _see(self, callback: TrainingCallback | None) -> tuple[Tensor, int, bool]:
        """``(features [copies, N, F] of all pictures on the CPU, how many batches that took, whether the callback ended
        it)``; when it does, no further copies are made."""
        settings, pixels = self.settings, self.pictures.pixels
        copies = 1 + settings.flip
        batches = range(0, len(pixels), settings.batch_size)
        step, stopped, seen = 0, False, []
        self.parts.trunk.eval()
        for number in range(copies):
            found = []
            for start in batches:
                images = pixels[start : start + settings.batch_size].to(self.device).float() / 255
                found.append(self.parts.features(images.flip(-1) if number else images).float().cpu())
                step += 1
                progress = TrainingProgress(step, copies * len(batches) + settings.epochs, 0, 0.0, 0.0)
                stopped = (callback is not None and bool(callback(progress))) or stopped
            seen.append(torch.cat(found))
            if stopped:
                break
        if not all(bool(part.isfinite().all()) for part in seen):
            raise EditingError("The backbone's features are not numbers (NaN or infinity); use another backbone.")
        return torch.stack(seen), step, stopped

    def _batches(self, count: int) -> int:
        """Number of even batches of ``count`` pictures, each of two at least: batch norm learns nothing from one."""
        return max(1, min(math.ceil(count / self.settings.batch_size), count // 2))

    def _step(self, rows: Tensor, epoch: int) -> float:
        self.parts.trunk.train(True)
        images = self.pictures.pixels[rows].to(self.device).float() / 255
        logits = self.parts.logits(augmented(images, self.settings.augmentation, self.settings.flip, self.generator))
        loss = functional.cross_entropy(logits, self.pictures.labels[rows].to(self.device), self.balance)
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
        self._settle()
        self._keep(epoch, train_loss, self._test_logits())

    def _keep(self, epoch: int, train_loss: float, logits: Tensor, always: bool = False) -> None:
        """Note what ``logits`` of the validation pictures are worth, and keep the weights if they are the best yet."""
        labels = self.pictures.labels[self.test]
        loss = float(functional.cross_entropy(logits, labels, self.balance.cpu()))
        if not math.isfinite(loss):
            raise EditingError(
                f"The training broke down in epoch {epoch} (its answers are not numbers); lower the learning rate."
            )
        accuracy = float((logits.argmax(1) == labels).double().mean())
        for name, value in zip(self.history, (train_loss, loss, accuracy), strict=True):
            self.history[name].append(value)
        if always or (accuracy, -loss) > self.best:
            self.best, self.best_epoch = (accuracy, -loss), epoch
            self.confusion = confusion(labels, logits.argmax(1), len(self.pictures.classes))
            self.kept = self.parts.state(self.whole)

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
        trunk, last = self.kept
        parts.last.load_state_dict(last)
        if self.whole:
            parts.trunk.load_state_dict(trunk)
        attribute = settings.attribute.strip()
        heads = {attribute: self.pictures.classes}
        if isinstance(parts.trunk, FeatureTrunk):
            classifier: ImageClassifier = FeatureClassifier(parts.trunk, [parts.last], heads, attribute)
        else:
            classifier = ImageClassifier(
                parts.trunk,
                [parts.last],
                heads,
                parts.size,
                parts.mean,
                parts.std,
                attribute,
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

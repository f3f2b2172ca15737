"""What trainings have in common: steps, looks at what is held out, the best of them, and a state to go on from.

A technique's trainer says what is learned, what a step's loss is, and how weights do on what is held out.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from .content_hash import content_hash
from .errors import EditingError
from .files import FORMAT_KEY, load_tensors, metadata_json, save_tensors

#: Part of the first learning rate at which the cosine ends.
LAST_RATE = 0.02
SMOOTHING = 0.95  # of the training loss that is shown
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's

Made = TypeVar("Made")


@dataclass(frozen=True)
class Titles:
    """What a training and its state's file are called.

    Attributes:
        made: what it makes, for messages.
        kind: of the file, a key of :data:`~.reading.kinds.KINDS`.
        file_format: of the file.
        judged_by: the figure of a look by which the best is chosen; the lowest is best.
        another: how a refusal to go on names a setting that differs.
    """

    made: str
    kind: str
    file_format: str
    judged_by: str = "loss"
    another: str = "another {}; use the same ones"


@dataclass
class Best:
    """What had the lowest score so far.

    Attributes:
        score: the figure that is minimised.
        step: after which; -1 if there is none yet.
        weights: by name, empty if there are none yet.
    """

    score: float = math.inf
    step: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)


class Trainer(ABC, Generic[Made]):
    """Trains step by step and keeps the best; an exception from the callback stops it at any step.

    A look, of the class :attr:`look`, is a dataclass of numbers, whose first is the ``step`` after which it was taken.

    Args:
        settings: with ``steps``, ``learning_rate``, ``warm_up``, ``averaging``, ``check_every`` and ``seed``.
        rows: of what there is to learn from.
        held: how many of them are held out.

    Attributes:
        held, train: rows that are held out and learned from, ascending; ``lot`` has the held ones as they were drawn.
        step: taken so far.
        losses: of each step's batch.
        validations: looks at the held-out rows that ``check_every`` asks for.
        broken: why the training ended early, "" if it did not.
        weights, averages: what is learned, and its running mean.
        longest_gradient: longer ones are cut to this norm; 0: none are.
    """

    titles: ClassVar[Titles]
    look: ClassVar[type]

    def __init__(self, settings: Any, rows: int, held: int, device: str | torch.device):
        self.settings, self.device = settings, torch.device(device)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(settings.seed % 2**63))
        self.lot = order[:held]
        self.held, self.train = self.lot.sort().values, order[held:].sort().values
        self.step = 0
        self.losses: list[float] = []
        self.validations: list[Any] = []
        self.broken = ""
        self.longest_gradient = 1.0
        #: The best of the looks that ``check_every`` asks for, and one besides these since the last step.
        self.scheduled, self.extra = Best(), Best()

    def _learn(self, network: nn.Module, **options: Any) -> None:
        """Learn the weights of ``network`` with AdamW, which is given ``options``."""
        self.weights: dict[str, Tensor] = dict(network.named_parameters())
        self.averages = {name: value.detach().clone() for name, value in self.weights.items()}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=self.settings.learning_rate, **options)

    @abstractmethod
    def _loss(self) -> Tensor:
        """The loss of the next step's batch, a scalar; whatever it draws at random depends on the seed and the step."""

    @abstractmethod
    def _validation(self, weights: Mapping[str, Tensor]) -> Any:
        """A look at the held-out rows with ``weights``."""

    @abstractmethod
    def _finished(self, found: Best) -> Made:
        """The result with the best weights, frozen, on the CPU."""

    @abstractmethod
    def _told(self, look: Any) -> str:
        """A look in a few words, for people."""

    @abstractmethod
    def run_facts(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""

    @property
    def best_found(self) -> Best:
        """The best of all looks; one that ``check_every`` did not ask for counts only until training goes on."""
        return self.extra if self.extra.score < self.scheduled.score else self.scheduled

    def run(self, callback: Callable[[Any], None] | None = None) -> Made:
        """Train the steps that are left; returns :meth:`best`.

        Args:
            callback: told after each step; an exception it raises ends the run, and :meth:`best` still has the best.

        Raises:
            EditingError: the loss stopped being a number before there was anything to keep.
        """
        while self.step < self.settings.steps and not self.broken:
            self.advance()
            if callback is not None:
                callback(self)
        if self.scheduled.step != self.step and not self.broken:
            self.validate()
        return self.best()

    def advance(self) -> None:
        """Take one step, and look at what is held out where it is time; a loss of NaN ends the training."""
        with torch.inference_mode(False), torch.enable_grad():
            value = float(self._gradients())
            if not math.isfinite(value):
                self.broken = (
                    f"stopped at step {self.step + 1}, where the loss was not a number any more; lower the learning "
                    "rate to train on"
                )
                return
            self._update()
        self.step += 1
        self.losses.append(value)
        self.extra = Best()
        if self.step % self.settings.check_every == 0:
            self.validate()

    def _gradients(self) -> Tensor:
        """The loss of the next step's batch, with gradients on the weights."""
        with self._seeded(self.step):
            loss = self._loss()
            for weight in self.weights.values():
                weight.grad = None
            loss.backward()
        return loss.detach()

    def _update(self) -> None:
        weights = list(self.weights.values())
        if self.longest_gradient:
            torch.nn.utils.clip_grad_norm_(weights, self.longest_gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.optimizer.step()
        if self.settings.averaging:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averages.values()), weights, 1 - self.averaging(self.step))

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0: it rises over ``warm_up`` steps, and falls along a cosine."""
        fall: float = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / self.settings.steps))
        return self.warm_rate(step) * fall

    def warm_rate(self, step: int) -> float:
        """Learning rate of a step that rises and does not fall."""
        rate: float = self.settings.learning_rate * min(1.0, (step + 1) / max(self.settings.warm_up, 1))
        return rate

    def averaging(self, step: int) -> float:
        """How much of their running mean the weights keep at a step."""
        keep: float = self.settings.averaging
        return keep

    def validate(self) -> None:
        """Look at what is held out, and keep the weights if they are the best."""
        result, judged_by = self._validation(self.kept()), self.titles.judged_by
        score = getattr(result, judged_by)
        if not math.isfinite(score):
            self.broken = f"stopped at step {self.step}, where the held-out {judged_by} was not a number any more"
            return
        due = self.step > 0 and self.step % self.settings.check_every == 0
        if due:
            self.validations.append(result)
        best = self.scheduled if due else self.extra
        if score < best.score:
            best.score, best.step = score, self.step
            best.weights = {name: value.detach().clone() for name, value in self.kept().items()}

    def kept(self) -> dict[str, Tensor]:
        """The weights as they would be kept now: their running mean, or as they are."""
        return self.averages if self.settings.averaging else self.weights

    def best(self) -> Made:
        """The best so far, frozen, on the CPU.

        Raises:
            EditingError: there is none yet.
        """
        found = self.best_found
        if not found.weights:
            raise EditingError(
                "The training broke down before there was anything to keep; lower the learning rate."
                if self.broken
                else f"There is no trained {self.titles.made} yet; train some steps."
            )
        return self._finished(found)

    def line(self) -> str:
        """Where the training is, in one line."""
        told = f"step {self.step} of {self.settings.steps}: loss {self.losses[-1]:.3f}" if self.losses else "step 0"
        return f"{told}; {self._told(self.validations[-1])}" if self.validations else told

    def smoothed(self) -> list[float]:
        """The loss of each step's batch, smoothed, for a plot."""
        found, value = [], math.nan
        for loss in self.losses:
            value = loss if math.isnan(value) else SMOOTHING * value + (1 - SMOOTHING) * loss
            found.append(value)
        return found

    def looked(self, figure: str) -> list[float]:
        """A figure of the looks at each step, for a plot: it stands until the next look; NaN before the first."""
        found: list[float] = []
        steps = [at.step for at in self.validations]
        for at, start, end in zip(self.validations, steps, [*steps, self.step + 1][1:], strict=True):
            found += [math.nan] * (start - 1 - len(found)) + [getattr(at, figure)] * (end - start)
        return found

    def mark(self) -> int | None:
        """Where a plot marks what is kept: its step from 0."""
        return self.best_found.step - 1 if self.best_found.weights else None

    def fingerprint(self) -> str:
        """A hash of :meth:`run_facts`, by which what is saved is known as this training's."""
        return content_hash(json.dumps(self.run_facts(), sort_keys=True))[:16]

    @contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """Everything random inside depends on the seed and the step; the global generators come back as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self.settings.seed * 1_000_003 + step) % 2**63)
            yield


def save_training(trainer: Trainer[Any], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write everything that :func:`resume_training` needs: weights, their mean, AdamW's moments, the best, the history.

    A look that ``check_every`` did not ask for (at a stop) is left out: in a training that goes on it never took place.

    Raises:
        EditingError: the training broke down, the file exists and ``overwrite`` is False, or it cannot be written.
    """
    if trainer.broken:
        raise EditingError(f"The training {trainer.broken}; there is nothing to go on with.")
    best = trainer.scheduled
    parts = {"weight": trainer.weights, "average": trainer.averages if trainer.settings.averaging else {}}
    parts["best"] = best.weights
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    tensors |= moments(trainer.optimizer, trainer.weights)
    tensors["losses"] = torch.tensor(trainer.losses, dtype=torch.float64)
    progress = {
        "step": trainer.step,
        "best_step": best.step,
        "best_score": best.score if best.weights else None,
        "validations": [list(astuple(look)) for look in trainer.validations],
    }
    metadata = {
        FORMAT_KEY: trainer.titles.file_format,
        "version": "1",
        "progress": json.dumps(progress),
        "run": json.dumps(trainer.run_facts()),
    }
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def resume_training(trainer: Trainer[Any], path: str | Path) -> None:
    """Put a new ``trainer`` where the saved one was; it then goes on exactly as the saved one would have.

    Raises:
        EditingError: missing, damaged or foreign file, or one of a training with other data or settings.
    """
    titles, name = trainer.titles, Path(path).name
    tensors, metadata = load_tensors(path, titles.file_format, kind=titles.kind)
    saved, progress = (metadata_json(metadata, key, name, titles.kind) for key in ("run", "progress"))
    check_same_run(saved, trainer.run_facts(), name, titles.another)
    step, score = progress["step"], progress["best_score"]
    kinds = ["weight", *(["average"] if trainer.settings.averaging else []), *(["best"] if score is not None else [])]
    kinds += MOMENTS if step else ()
    wanted = {f"{kind}.{key}": weight.shape for kind in kinds for key, weight in trainer.weights.items()}
    check_parts(tensors, wanted | {"losses": (step,)}, name)
    with torch.inference_mode(False), torch.no_grad():
        for key, weight in trainer.weights.items():
            weight.copy_(tensors[f"weight.{key}"])
            if trainer.settings.averaging:
                trainer.averages[key].copy_(tensors[f"average.{key}"])
        restore_moments(trainer.optimizer, trainer.weights, tensors, step)
        best = {key: tensors[f"best.{key}"].clone().to(trainer.device) for key in trainer.weights if score is not None}
    trainer.step, trainer.losses = step, tensors["losses"].tolist()
    trainer.validations = [trainer.look(int(at), *figures) for at, *figures in progress["validations"]]
    trainer.scheduled = Best(float(score), progress["best_step"], best) if best else Best()


def made_with(facts: Mapping[str, str], trainer: Trainer[Any]) -> bool:
    """Whether the facts of what was saved say that a training of these settings and data made it."""
    return facts.get("training") == trainer.fingerprint()


def check_same_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], name: str, another: str = Titles.another
) -> None:
    """Refuse the state ``name`` of a training that differs in something; the sentence says in what."""
    current = json.loads(json.dumps(current))
    different = [key for key in current if saved.get(key) != current[key]]
    if different:
        told = another.format(different[0].replace("_", " "))
        raise EditingError(f"{name} belongs to a training with {told} or start anew.")


def check_parts(tensors: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], name: str) -> None:
    """Refuse a state whose tensors are not all there, of the shapes ``wanted``, and numbers."""
    if not set(wanted) <= set(tensors):
        raise EditingError(f"{name} is incomplete; start the training anew.")
    parts = [tensors[key] for key in wanted]
    fits = all(tuple(part.shape) == tuple(shape) for part, shape in zip(parts, wanted.values(), strict=True))
    if not fits or not all(part.is_floating_point() and part.isfinite().all() for part in parts):
        raise EditingError(f"{name} has parts that do not fit together; start the training anew.")


def moments(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What AdamW remembers of each weight, for a state; nothing before the first step."""
    known = {name: state for name, weight in weights.items() if (state := optimizer.state.get(weight))}
    return {f"{moment}.{name}": state[moment] for name, state in known.items() for moment in MOMENTS}


def restore_moments(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], step: int
) -> None:
    """Give AdamW back what :func:`moments` saved after ``step`` steps; without gradient, outside inference mode."""
    for key, weight in weights.items() if step else ():
        remembered = {moment: torch.empty_like(weight).copy_(tensors[f"{moment}.{key}"]) for moment in MOMENTS}
        counter = torch.tensor(float(step), device=weight.device if optimizer.defaults["fused"] else "cpu")
        optimizer.state[weight] = {"step": counter, **remembered}

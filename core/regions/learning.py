"""Learning which box suits an edit, with a signal that is real (section 3.2): the editor stays a black box.

Strategies. ``exact``: render every box, minimise the expected loss by its exact gradient. ``sampled``: render what the policy
draws, leave-one-out REINFORCE, until a budget of boxes is spent. ``halving``: cheap renders of every box, the better part
again with other noise, full renders of the last (successive halving, Jamieson & Talwalkar, arXiv 1502.07943). ``policy``: no
learning, one render for each anchor of the box that the network prefers: how a trained network is used on a new image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..errors import EditingError
from .gradients import expected_loss, reinforce_loss
from .network import RegionNetwork, gumbel_argmax, region_features
from .proposals import Box
from .ranking import Candidate, Choice, rank
from .table import RewardTable

Strategy = Literal["exact", "sampled", "halving", "policy"]
STRATEGIES: tuple[Strategy, ...] = ("exact", "sampled", "halving", "policy")


@dataclass(frozen=True)
class LearningSettings:
    """How to search.

    Attributes:
        strategy: one of :data:`STRATEGIES`.
        epochs: passes over the images; each takes one Adam step an image.
        learning_rate: of Adam.
        budget: "sampled": different boxes of an image that may be looked at, cached ones included.
        draws: "sampled": boxes drawn for each anchor and step.
        rungs, keep: "halving": rounds of screening, and the part of the boxes (the best) that survives each.
        choice: who may be best, see :func:`~.ranking.rank`.
        seed: of the policy's draws.
    """

    strategy: Strategy = "exact"
    epochs: int = 60
    learning_rate: float = 3e-3
    budget: int = 32
    draws: int = 2
    rungs: int = 2
    keep: float = 1 / 3
    choice: Choice = "anchors"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise EditingError(f"The strategy {self.strategy!r} is unknown; use one of: {', '.join(STRATEGIES)}.")
        for name, low in (("epochs", 0), ("budget", 1), ("draws", 2), ("rungs", 1)):
            if getattr(self, name) < low:
                raise EditingError(f"{name} is {getattr(self, name)}; use {low} or more.")
        if not 0 < self.learning_rate < float("inf") or not 0 < self.keep <= 1:
            raise EditingError(f"learning_rate is {self.learning_rate:g} and keep {self.keep:g}; use positive numbers, keep at most 1.")

    @classmethod
    def official(cls, strategy: Strategy = "exact", seed: int = 0) -> LearningSettings:
        """The paper's schedule (section 4): 5 epochs of Adam at 0.003."""
        return cls(strategy, epochs=5, learning_rate=3e-3, seed=seed)


@dataclass(frozen=True, eq=False)
class RegionTask:
    """One image and edit to learn from: its table, and its boxes' features ``[K, M, D, l, l]``."""

    table: RewardTable
    regions: Tensor

    @classmethod
    def of(cls, table: RewardTable, features: Tensor, network: RegionNetwork) -> RegionTask:
        """From the vision features ``[D, gh, gw]`` of the table's image."""
        return cls(table, region_features(features, table.proposals, network.bins))

    @property
    def boxes(self) -> list[Box]:
        """Its different boxes, anchor by anchor."""
        return list(dict.fromkeys(box for row in self.table.proposals.boxes for box in row if box is not None))


@dataclass(frozen=True)
class LearningProgress:
    """What the callback is told after each box that was looked at (phase "screen" or "full") and each epoch ("learn").

    ``done`` of ``total`` boxes looked at or epochs; ``loss`` of the box, or the epoch's mean expected loss.
    """

    phase: Literal["screen", "full", "learn"]
    task: int
    done: int
    total: int
    loss: float


Callback = Callable[[LearningProgress], None]


class RegionLearner:
    """Searches the boxes of one image, or trains one network on several (amortised).

    It can be stopped at any point (an exception from the callback does); :meth:`results` then ranks what was rendered.

    Args:
        network: learned in place.
        tasks: images with their tables.

    Raises:
        EditingError: no tasks, or a budget below one box for each anchor.
    """

    def __init__(self, network: RegionNetwork, tasks: Sequence[RegionTask], settings: LearningSettings):
        if not tasks:
            raise EditingError("There is no image to search; give at least one.")
        for task in tasks:
            anchors = len(task.table.proposals.anchors)
            if settings.strategy == "sampled" and settings.budget < min(anchors, len(task.boxes)):
                raise EditingError(f"budget is {settings.budget} for {anchors} anchors; use at least one render for each anchor.")
        self.network, self.tasks, self.settings = network, list(tasks), settings
        self.history: list[float] = []
        self._callback: Callback = lambda progress: None
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._device = next(network.parameters()).device
        self._regions = [task.regions.to(self._device) for task in self.tasks]
        with torch.inference_mode(False):
            self._optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)

    def run(self, callback: Callback | None = None) -> list[list[Candidate]]:
        """Search, and return :meth:`results`.

        Raises:
            EditingError: from the editor or the judge.
        """
        self._callback = callback or self._callback
        for number in range(len(self.tasks)):  # a network of another shape is told before the first render
            self.logits(number)
        if self.settings.strategy == "sampled":
            self._sample()
        elif self.settings.strategy == "policy":
            for number in range(len(self.tasks)):
                self._render_preferred(number, limit=None)
        else:
            for number, task in enumerate(self.tasks):
                if self.settings.strategy == "exact":
                    self._look(number, task.boxes)
                else:
                    self._halve(number, task.boxes)
            self._fit()
        return self.results()

    def results(self) -> list[list[Candidate]]:
        """Each image's candidates, the best first (see :func:`~.ranking.rank`)."""
        return [rank(task.table, self.settings.choice) for task in self.tasks]

    @torch.no_grad()
    def logits(self, task: int) -> Tensor:
        """The network's logits on one image's boxes, ``[K, M]`` on the CPU; their softmax is the policy."""
        return self.network(self._regions[task], self.tasks[task].table.proposals.valid).cpu()

    def _look(self, number: int, boxes: Sequence[Box], screen: bool = False, draw: int = 0) -> None:
        table = self.tasks[number].table
        for index, box in enumerate(boxes):
            loss = table.evaluate(box, "screen" if screen else "full", draw).loss(table.weights)
            self._callback(LearningProgress("screen" if screen else "full", number, index + 1, len(boxes), loss))

    def _halve(self, number: int, boxes: list[Box]) -> None:
        table = self.tasks[number].table
        totals = dict.fromkeys(boxes, 0.0)
        for rung in range(self.settings.rungs):
            self._look(number, boxes, screen=True, draw=rung)
            for box in boxes:
                totals[box] += table.evaluate(box, "screen", rung).loss(table.weights)
            survivors = math.ceil(len(boxes) * self.settings.keep - 1e-9)
            boxes = sorted(boxes, key=lambda box: totals[box])[:survivors]
        self._look(number, boxes)

    def _fit(self) -> None:
        """Minimise the expected loss over what the tables know."""
        tables = [task.table.losses() for task in self.tasks]
        for epoch in range(self.settings.epochs):
            means = []
            for number, losses in enumerate(tables):
                means.append(self._update(number, partial(expected_loss, losses=losses)))
            self._finish_epoch(epoch, means)

    def _sample(self) -> None:
        """Draw, render what is new, and step, until the epochs are over or every image's budget is spent."""
        for epoch in range(self.settings.epochs):
            means = [self._sampled_step(number) for number in range(len(self.tasks))]
            known = [mean for mean in means if mean is not None]
            if not known:
                break
            self._finish_epoch(epoch, known)
        for number in range(len(self.tasks)):
            self._render_preferred(number, self.settings.budget)

    def _sampled_step(self, number: int) -> float | None:
        """One step on one image; None where the budget did not last for its draws."""
        table = self.tasks[number].table
        logits = self.logits(number)
        choices = torch.stack([gumbel_argmax(logits, self._generator) for _ in range(self.settings.draws)])
        boxes = [[table.proposals.box(anchor, int(slot)) for anchor, slot in enumerate(row)] for row in choices]
        for box in dict.fromkeys(box for row in boxes for box in row):
            if not self._look_within(number, box, self.settings.budget):
                return None
        losses = torch.tensor([[table.evaluate(box).loss(table.weights) for box in row] for row in boxes])
        self._update(number, partial(reinforce_loss, choices=choices, losses=losses))
        return float(losses.mean())

    def _look_within(self, number: int, box: Box, limit: int | None) -> bool:
        """Look at ``box`` unless that exceeds ``limit`` boxes of this image; True where its verdict is known then."""
        table = self.tasks[number].table
        if table.known(box) is None:
            if limit is not None and len(table.evaluated) >= limit:
                return False
            loss = table.evaluate(box).loss(table.weights)
            self._callback(LearningProgress("full", number, len(table.evaluated), limit or len(table.proposals.anchors), loss))
        return True

    def _render_preferred(self, number: int, limit: int | None) -> None:
        """Look at each anchor's most probable box, as far as ``limit`` allows."""
        proposals = self.tasks[number].table.proposals
        for anchor, slot in enumerate(self.logits(number).argmax(1).tolist()):
            self._look_within(number, proposals.box(anchor, slot), limit)

    def _update(self, number: int, objective: Callable[[Tensor], Tensor]) -> float:
        with torch.inference_mode(False), torch.enable_grad():
            logits = self.network(self._regions[number], self.tasks[number].table.proposals.valid)
            loss = objective(logits)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return float(loss.detach())

    def _finish_epoch(self, epoch: int, means: Sequence[float]) -> None:
        mean = sum(means) / len(means)
        self.history.append(mean)
        self._callback(LearningProgress("learn", len(self.tasks) - 1, epoch + 1, self.settings.epochs, mean))

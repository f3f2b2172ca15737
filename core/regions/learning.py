"""Searching the boxes of an image, and learning from it: the strategies, and the signal that trains the region network.

The signal is the expected loss of the network's choice, exactly or from samples. The released code has none: its editor
returns pictures without gradient and its network never changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import EditingError
from .editors import Sharing
from .network import RegionNetwork, gumbel_argmax, region_features
from .proposals import Box
from .ranking import LOOKS, Candidate, can_refine, preferences, rank, refine
from .settings import LearningProgress, LearningSettings
from .soft_mask import box_masks, soft_mask_loss
from .table import RewardTable

SLACK = 1e-9  # against rounding of shares such as 1/3


def expected_loss(logits: Tensor, losses: Tensor) -> Tensor:
    """Mean over anchors of sum_j p_kj l_kj with ``p_k = softmax(logits_k)``; its gradient on logit j is ``p_j (l_j -
    mean l) / K``.

    Args:
        logits: ``[K, M]``, minus infinity in empty slots.
        losses: ``[K, M]``, NaN where unknown; the softmax is over what is known, and anchors without any are left out.

    Returns:
        A scalar.
    """
    known = torch.isfinite(losses).to(logits.device) & torch.isfinite(logits)
    rows = known.any(1)
    chances = logits.masked_fill(~known, float("-inf"))[rows].softmax(1)
    values = losses.to(chances).masked_fill(~known, 0.0)[rows]
    return (chances * values).sum(1).mean()


def reinforce_loss(logits: Tensor, choices: Tensor, losses: Tensor) -> Tensor:
    """A scalar whose gradient is an unbiased estimate of that of :func:`expected_loss`, from n draws of each anchor.

    REINFORCE with the leave-one-out baseline (Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019):
    ``mean_i (l_i - mean of the other l) log p(choice_i)``.

    Args:
        logits: ``[K, M]``.
        choices: ``[n, K]`` slots, drawn independently from ``softmax(logits)``.
        losses: ``[n, K]`` of the choices.

    Raises:
        EditingError: fewer than two draws, which have no baseline.
    """
    draws = len(choices)
    if draws < 2:
        raise EditingError(f"draws is {draws}; use 2 or more.")
    values = losses.to(logits)
    others = (values.sum(0) - values) / (draws - 1)
    chosen = logits.log_softmax(1).expand(draws, -1, -1).gather(2, choices.to(logits.device)[..., None])[..., 0]
    return ((values - others) * chosen).mean()


@dataclass(frozen=True)
class HalvingPlan:
    """Boxes screened in each rung, and the best of the last that are rendered fully."""

    screened: tuple[int, ...]
    finalists: int

    @property
    def looks(self) -> int:
        """Renders in all."""
        return sum(self.screened) + self.finalists


def halving_plan(
    boxes: int,
    screen: float,
    full: float,
    *,
    share: float = 0.25,
    rungs: int = 2,
    keep: float = 1 / 3,
    once: float = 0.0,
) -> HalvingPlan:
    """Plan a search of ``boxes`` that costs at most ``share * boxes * full``.

    All are screened once and one is rendered fully in any case, even where that alone costs more (few boxes, or
    screening renders that are hardly cheaper); where it costs as much as rendering all of them, all are rendered. A
    further rung is climbed when a second full render is left after it, and what is left then goes into full renders.

    Args:
        boxes: at least one.
        screen, full: u of a screening and of a full render.
        share: of what rendering every box fully costs.
        rungs: screenings at most, each with other noise.
        keep: part of the boxes (the best) that survives a screening.
        once: u that screening costs besides, whatever the number of boxes. Where screening a box costs nothing itself,
            its result does not change either: there is one rung, and what is left goes into full renders.
    """
    if boxes * screen + once + full >= boxes * full:
        return HalvingPlan((), boxes)
    spare = share * boxes * full - full - once + SLACK
    screened: list[int] = []
    left = boxes
    if not screen:
        return HalvingPlan((boxes,), min(boxes, 1 + max(0, math.floor(spare / full))))
    for rung in range(rungs):
        if rung and (left == 1 or left * screen + full > spare):
            break
        screened.append(left)
        spare -= left * screen
        left = max(1, math.ceil(left * keep - SLACK))
    return HalvingPlan(tuple(screened), min(left, 1 + max(0, math.floor(spare / full))))


@dataclass(frozen=True, eq=False)
class RegionTask:
    """One image and edit to learn from.

    Attributes:
        regions: its boxes' features ``[K, M, D, l, l]``.
        preview: "soft mask": a guess of the edited image ``[1, 3, H, W]`` in 0..1, see :class:`~.editors.Previewing`.
    """

    table: RewardTable
    regions: Tensor
    preview: Tensor | None = None

    @classmethod
    def of(
        cls, table: RewardTable, features: Tensor, network: RegionNetwork, preview: Tensor | None = None
    ) -> RegionTask:
        """From the vision features ``[D, gh, gw]`` of the table's image."""
        return cls(table, region_features(features, table.proposals, network.bins), preview)

    @property
    def boxes(self) -> list[Box]:
        """Its different boxes, anchor by anchor."""
        return list(dict.fromkeys(box for row in self.table.proposals.boxes for box in row if box is not None))


#: Told after each box that was rendered and each epoch; what it raises ends the search.
Callback = Callable[[LearningProgress], None]


class RegionLearner:
    """Searches the boxes of one image, or trains one network on several (amortised).

    It can be stopped at any point (an exception from the callback does); :meth:`results` then ranks what was rendered.

    Args:
        network: learned in place.
        tasks: images with their tables.

    Raises:
        EditingError: no tasks, a budget below one box for each anchor, "soft mask" without a preview, or a network of
            another shape.
    """

    def __init__(self, network: RegionNetwork, tasks: Sequence[RegionTask], settings: LearningSettings):
        if not tasks:
            raise EditingError("There is no image to search; give at least one.")
        for task in tasks:
            anchors = len(task.table.proposals.anchors)
            if settings.strategy == "sampled" and settings.budget < min(anchors, len(task.boxes)):
                raise EditingError(
                    f"budget is {settings.budget} for {anchors} anchors; use at least one render for each anchor."
                )
            if settings.strategy == "soft mask" and task.preview is None:
                raise EditingError(
                    "Learning through the mask needs a preview of the edit; give one or use another strategy."
                )
        self.network, self.tasks, self.settings = network, list(tasks), settings
        self.history: list[float] = []
        self._callback: Callback = lambda progress: None
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._device = next(network.parameters()).device
        self._regions = [task.regions.to(self._device) for task in self.tasks]
        with torch.inference_mode(False):
            self._optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        for number in range(len(self.tasks)):  # a network of another shape is told before the first render
            self.logits(number)

    def run(self, callback: Callback | None = None) -> list[list[Candidate]]:
        """Search, and return :meth:`results`.

        Raises:
            EditingError: from the editor or the judge.
        """
        self._callback = callback or self._callback
        if self.settings.strategy == "sampled":
            self._sample()
        elif self.settings.strategy in ("soft mask", "policy"):
            if self.settings.strategy == "soft mask":
                self._blend()
            for number in range(len(self.tasks)):
                self._render_preferred(number, limit=None)
        else:
            for number, task in enumerate(self.tasks):
                if self.settings.strategy == "exact":
                    self._look(number, task.boxes)
                else:
                    self._halve(number, task.boxes)
            self._fit()
        for number in range(len(self.tasks)):
            self._refine(number)
        return self.results()

    def learn_from_known(self) -> None:
        """After a stop during the renders of "exact" or "halving": learn from what was rendered so far, if anything
        was."""
        if self.settings.strategy in ("exact", "halving") and not self.history:
            self._fit()

    def planned(self) -> int:
        """How many boxes :meth:`run` looks at, at most."""
        return sum(self._planned(number) for number in range(len(self.tasks)))

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

    def _planned(self, number: int) -> int:
        boxes, anchors = len(self.tasks[number].boxes), len(self.tasks[number].table.proposals.anchors)
        refined = LOOKS + 1 if self._refines(number) else 0
        if self.settings.strategy == "halving":
            return self._plan(number).looks + refined
        return {"exact": boxes, "sampled": min(boxes, self.settings.budget)}.get(
            self.settings.strategy, anchors
        ) + refined

    def _refines(self, number: int) -> bool:
        return self.settings.refine and self.settings.choice == "tightest" and can_refine(self.tasks[number].table)

    def _refine(self, number: int) -> None:
        """Move the sides of the best box, if it is wanted and costs nothing but one full render, which the budget must
        allow."""
        table = self.tasks[number].table
        spent = self.settings.strategy == "sampled" and len(table.evaluated) >= self.settings.budget
        if spent or not self._refines(number):
            return
        looked = 0

        def look(box: Box) -> None:
            nonlocal looked
            looked += 1
            loss = table.evaluate(box, "screen").loss(table.weights)
            self._callback(LearningProgress("screen", number, looked, LOOKS, loss))

        found = refine(table, look)
        if found is not None:
            self._look(number, [found])

    def _plan(self, number: int) -> HalvingPlan:
        task, settings = self.tasks[number], self.settings
        editor = task.table.editor
        once = editor.screening_cost if isinstance(editor, Sharing) else 0.0
        if self._refines(number):
            once += editor.cost("full")  # of the box that is moved
        return halving_plan(
            len(task.boxes),
            editor.cost("screen"),
            editor.cost("full"),
            share=settings.share,
            rungs=settings.rungs,
            keep=settings.keep,
            once=once,
        )

    def _halve(self, number: int, boxes: list[Box]) -> None:
        table, plan = self.tasks[number].table, self._plan(number)
        totals = dict.fromkeys(boxes, 0.0)
        by_loss = self.settings.choice == "anchors"

        def best(boxes: list[Box], rungs: int) -> list[Box]:
            """Sorted by what decides in the end: the loss of an anchor's boxes, or the score of all, or the
            preference."""
            means = {box: totals[box] / max(rungs, 1) for box in boxes}
            if self.settings.choice == "tightest":
                means = preferences(table, means, "screen")
            return sorted(boxes, key=lambda box: means[box] if by_loss else -means[box])

        for rung, count in enumerate(plan.screened):
            boxes = best(boxes, rung)[:count]
            self._look(number, boxes, screen=True, draw=rung)
            for box in boxes:
                verdict = table.evaluate(box, "screen", rung)
                totals[box] += verdict.loss(table.weights) if by_loss else verdict.score
        self._look(number, best(boxes, len(plan.screened))[: plan.finalists])

    def _fit(self) -> None:
        """Minimise the expected loss over what the tables know."""
        tables = {number: task.table.losses() for number, task in enumerate(self.tasks)}
        known = {number: losses for number, losses in tables.items() if losses.isfinite().any()}
        for epoch in range(self.settings.epochs if known else 0):
            means = [self._update(number, partial(expected_loss, losses=losses)) for number, losses in known.items()]
            self._finish_epoch(epoch, means)

    def _blend(self) -> None:
        """Minimise the loss of previews blended in by soft masks; nothing is rendered."""
        masks = [box_masks(task.table) for task in self.tasks]
        for epoch in range(self.settings.epochs):
            means = []
            for number, (task, shapes) in enumerate(zip(self.tasks, masks, strict=True)):
                assert task.preview is not None
                objective = partial(
                    soft_mask_loss, table=task.table, preview=task.preview, masks=shapes, generator=self._generator
                )
                means.append(self._update(number, objective))
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
            self._callback(
                LearningProgress("full", number, len(table.evaluated), limit or len(table.proposals.anchors), loss)
            )
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

"""Searching the boxes of an image: which of them are rendered, and how finely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .editors import Sharing
from .proposals import Box
from .ranking import LOOKS, Candidate, can_refine, preferences, rank, refine
from .settings import StrategyProgress, StrategySettings
from .table import RewardTable

SLACK = 1e-9  # against rounding of shares such as 1/3
#: Told after each box that was looked at; what it raises ends the search.
Callback = Callable[[StrategyProgress], None]


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


class BoxSearch:
    """Looks at the boxes of one table.

    It can be stopped at any point (an exception from the callback does); :meth:`results` then ranks what was rendered.
    """

    def __init__(self, table: RewardTable, settings: StrategySettings):
        self.table, self.settings = table, settings
        self._callback: Callback = lambda progress: None

    @property
    def boxes(self) -> list[Box]:
        """The table's different boxes, anchor by anchor."""
        return list(dict.fromkeys(box for row in self.table.proposals.boxes for box in row if box is not None))

    def run(self, callback: Callback | None = None) -> list[Candidate]:
        """Search, and return :meth:`results`.

        Raises:
            EditingError: from the editor or the judge.
        """
        self._callback = callback or self._callback
        if self.settings.strategy == "exact":
            self._look(self.boxes)
        else:
            self._halve(self.boxes)
        self._refine()
        return self.results()

    def planned(self) -> int:
        """How many boxes :meth:`run` looks at, at most."""
        looks = len(self.boxes) if self.settings.strategy == "exact" else self._plan().looks
        return looks + (LOOKS + 1 if self._refines else 0)

    def results(self) -> list[Candidate]:
        """The candidates, the best first (see :func:`~.ranking.rank`)."""
        return rank(self.table, self.settings.choice)

    def _look(self, boxes: Sequence[Box], screen: bool = False, draw: int = 0) -> None:
        for index, box in enumerate(boxes):
            loss = self.table.evaluate(box, "screen" if screen else "full", draw).loss(self.table.weights)
            self._callback(StrategyProgress("screen" if screen else "full", index + 1, len(boxes), loss))

    @property
    def _refines(self) -> bool:
        return self.settings.refine and self.settings.choice == "tightest" and can_refine(self.table)

    def _refine(self) -> None:
        """Move the sides of the best box, if it is wanted and costs nothing but one full render."""
        if not self._refines:
            return
        looked = 0

        def look(box: Box) -> None:
            nonlocal looked
            looked += 1
            loss = self.table.evaluate(box, "screen").loss(self.table.weights)
            self._callback(StrategyProgress("screen", looked, LOOKS, loss))

        found = refine(self.table, look)
        if found is not None:
            self._look([found])

    def _plan(self) -> HalvingPlan:
        settings, editor = self.settings, self.table.editor
        once = editor.screening_cost if isinstance(editor, Sharing) else 0.0
        if self._refines:
            once += editor.cost("full")  # of the box that is moved
        return halving_plan(
            len(self.boxes),
            editor.cost("screen"),
            editor.cost("full"),
            share=settings.share,
            rungs=settings.rungs,
            keep=settings.keep,
            once=once,
        )

    def _halve(self, boxes: list[Box]) -> None:
        table, plan = self.table, self._plan()
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
            self._look(boxes, screen=True, draw=rung)
            for box in boxes:
                verdict = table.evaluate(box, "screen", rung)
                totals[box] += verdict.loss(table.weights) if by_loss else verdict.score
        self._look(best(boxes, len(plan.screened))[: plan.finalists])

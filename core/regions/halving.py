"""How many boxes successive halving screens and renders, so that it costs a set share of rendering them all."""

from __future__ import annotations

import math
from dataclasses import dataclass

SLACK = 1e-9  # against rounding of shares such as 1/3


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
    boxes: int, screen: float, full: float, *, share: float = 0.25, rungs: int = 2, keep: float = 1 / 3, once: float = 0.0
) -> HalvingPlan:
    """Plan a search of ``boxes`` that costs at most ``share * boxes * full``.

    All are screened once and one is rendered fully in any case, even where that alone costs more (few boxes, or screening renders
    that are hardly cheaper); where it costs as much as rendering all of them, all are rendered. A further rung is climbed when a
    second full render is left after it, and what is left then goes into full renders.

    Args:
        boxes: at least one.
        screen, full: u of a screening and of a full render.
        share: of what rendering every box fully costs.
        rungs: screenings at most, each with other noise.
        keep: part of the boxes (the best) that survives a screening.
        once: u that screening costs besides, whatever the number of boxes. Where screening a box costs nothing itself, its result
            does not change either: there is one rung, and what is left goes into full renders.
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

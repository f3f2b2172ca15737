"""The order in which candidates are shown (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .editors import Quality
from .proposals import Box
from .rewards import Verdict
from .table import RewardTable

#: Who competes for the first place: the box of lowest loss of each anchor (the paper), or every rendered box.
Choice = Literal["anchors", "all"]


@dataclass(frozen=True)
class Candidate:
    """One rendered box.

    Attributes:
        anchor, slot: the first place in the table that has this box.
        loss: L of Eq. 3.
        chosen: it is the box of lowest loss of an anchor.
    """

    box: Box
    anchor: int
    slot: int
    quality: Quality
    verdict: Verdict
    loss: float
    chosen: bool

    @property
    def score(self) -> float:
        """S of Eq. 7."""
        return self.verdict.score


def rank(table: RewardTable, choice: Choice = "anchors") -> list[Candidate]:
    """Every fully rendered box, the best first: by score S (Eq. 7), with ``choice`` "anchors" each anchor's box of lowest loss first.

    Where nothing was fully rendered (a run that was stopped early), the screened boxes; empty where there are none.
    """
    quality: Quality = "full" if table.evaluated else "screen"
    found: dict[Box, Candidate] = {}
    winners: set[Box] = set()
    for anchor, row in enumerate(table.proposals.boxes):
        losses: dict[Box, float] = {}
        for slot, box in enumerate(row):
            verdict = None if box is None else table.known(box, quality)
            if box is not None and verdict is not None:
                losses[box] = verdict.loss(table.weights)
                found.setdefault(box, Candidate(box, anchor, slot, quality, verdict, losses[box], False))
        if losses:
            winners.add(min(losses, key=losses.__getitem__))
    candidates = [Candidate(c.box, c.anchor, c.slot, c.quality, c.verdict, c.loss, c.box in winners) for c in found.values()]
    return sorted(candidates, key=lambda c: (choice == "anchors" and not c.chosen, -c.score, c.loss, c.box))

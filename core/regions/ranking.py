"""The order in which candidates are shown (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .editors import Quality
from .proposals import Box
from .rewards import Verdict
from .table import RewardTable

#: Who is first: the best by score of each anchor's box of lowest loss (the paper), of every rendered box, or the tightest of all
#: boxes whose score is within :data:`TOLERANCE` of the best. CLIP does not see such differences well: it is the box that best frames
#: what the edit changed, see :meth:`~.proposals.Proposals.tightness`, and where that is not known the smallest, which changes least.
Choice = Literal["anchors", "all", "tightest"]
TOLERANCE = 0.02


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
    """Every fully rendered box, the best first: by score S (Eq. 7), with ``choice`` "anchors" each anchor's box of lowest loss first, with
    "tightest" the boxes about as good as the best first, by how tightly they frame the edit.

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
    bound = max((c.score for c in candidates), default=0.0) - TOLERANCE

    def order(c: Candidate) -> tuple[float, ...]:
        if choice == "tightest":
            good = c.score >= bound
            return (not good, -table.proposals.tightness(c.box) if good else 0, -c.score, c.loss, *c.box)
        return (choice == "anchors" and not c.chosen, -c.score, c.loss, *c.box)

    return sorted(candidates, key=order)

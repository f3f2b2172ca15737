"""The order in which candidates are shown (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .editors import Quality
from .proposals import Box
from .rewards import Verdict
from .table import RewardTable

#: Who is first: the best by score of each anchor's box of lowest loss (the paper), of every rendered box, or by score and by how
#: tightly the box frames the edit, see :func:`preferences`.
Choice = Literal["anchors", "all", "tightest"]
TOLERANCE = 0.02
AIM = 0.3  # found on the demo model


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


def preferences(table: RewardTable, scores: Mapping[Box, float], quality: Quality = "full") -> dict[Box, float]:
    """How much each box is preferred by "tightest", higher is better; ``scores`` are S of Eq. 7. Ours: CLIP hardly sees small things.

    Where it is known where the text pulls: the box's share of the best box's gain over the unedited image, plus its tightness (see
    :meth:`~.proposals.Proposals.tightness`), plus :data:`AIM` times the aim of its render of ``quality`` (see
    :meth:`~.table.RewardTable.aim`). Else, and where nothing gains, the tightest (the smallest, which changes
    least) of the boxes whose score is within :data:`TOLERANCE` of the best comes first, and then the others by score.
    """
    best = max(scores.values(), default=0.0)
    tightness = table.proposals.tightness
    if table.proposals.change is not None and best > table.unedited_score:
        gain = best - table.unedited_score
        return {
            box: (score - table.unedited_score) / gain + tightness(box) + AIM * table.aim(box, quality) for box, score in scores.items()
        }
    return {box: 1 + tightness(box) if score >= best - TOLERANCE else score - best for box, score in scores.items()}


def rank(table: RewardTable, choice: Choice = "anchors") -> list[Candidate]:
    """Every fully rendered box, the best first: by score S (Eq. 7), with ``choice`` "anchors" each anchor's box of lowest loss first, with
    "tightest" by :func:`preferences`.

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
    preferred = preferences(table, {c.box: c.score for c in candidates}, quality) if choice == "tightest" else {}

    def order(c: Candidate) -> tuple[float, ...]:
        return (choice == "anchors" and not c.chosen, -preferred.get(c.box, 0.0), -c.score, c.loss, *c.box)

    return sorted(candidates, key=order)

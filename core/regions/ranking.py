"""The order in which rendered boxes are shown (section 3.3), and a last step: moving the sides of the best one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from .editors import Quality
from .proposals import Box, tight
from .rewards import Verdict
from .table import RewardTable

#: Who is first: the best by score of each anchor's box of lowest loss (the paper), of every rendered box, or by score
#: and by how tightly the box frames the edit, see :func:`preferences`.
Choice = Literal["anchors", "all", "tightest"]
#: Scores so near to the best one count as equally good.
TOLERANCE = 0.02
#: Weight of a render's aim (see :meth:`~.table.RewardTable.aim`) in the preference; found on the demo model.
AIM = 0.3
#: Weight of the tightness between a moved box and the one it came from, more than 1 because the score that a small move
#: gains says less; found on the demo model.
FRAMING = 2.0


@dataclass(frozen=True)
class Candidate:
    """One rendered box.

    Attributes:
        anchor, slot: the first place in the table that has this box, or that it was moved from.
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


def preferences(
    table: RewardTable, scores: Mapping[Box, float], quality: Quality = "full", most: float | None = None
) -> dict[Box, float]:
    """How much each box is preferred by "tightest", higher is better. Ours: CLIP hardly sees small things.

    Where it is known where the text pulls: the box's share of the best box's gain over the unedited image, plus its
    tightness (see :meth:`~.proposals.Proposals.tightness`), plus :data:`AIM` times the aim of its render of ``quality``
    (see :meth:`~.table.RewardTable.aim`). A box that was moved (``table.refined``) is as much better than the one it
    came from as this sum says with :data:`FRAMING` times the tightness. Else, and where nothing gains, the tightest
    (the smallest, which changes least) of the boxes whose score is within :data:`TOLERANCE` of the best comes first,
    and then the others by score.

    Args:
        scores: S of Eq. 7.
        most: the best box's, the highest of ``scores`` by default.
    """
    best = max(scores.values(), default=0.0) if most is None else most
    tightness, gain = table.proposals.tightness, best - table.unedited_score
    if table.proposals.change is None or gain <= 0:
        return {box: 1 + tightness(box) if score >= best - TOLERANCE else score - best for box, score in scores.items()}

    def sum_of(box: Box, framing: float = 1.0) -> float:
        return (scores[box] - table.unedited_score) / gain + framing * tightness(box) + AIM * table.aim(box, quality)

    liked = {box: sum_of(box) for box in scores}
    for box, origin in table.refined.items():
        if box in scores and origin in scores:
            liked[box] = sum_of(origin) + sum_of(box, FRAMING) - sum_of(origin, FRAMING)
    return liked


def rank(table: RewardTable, choice: Choice = "anchors") -> list[Candidate]:
    """Every fully rendered box, the best first: by score S (Eq. 7), with ``choice`` "anchors" each anchor's box of
    lowest loss first, with "tightest" by :func:`preferences`.

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
    for box, origin in table.refined.items():
        verdict = table.known(box, quality)
        if verdict is not None and origin in found:
            place = found[origin]
            found.setdefault(
                box, Candidate(box, place.anchor, place.slot, quality, verdict, verdict.loss(table.weights), False)
            )
    candidates = [
        Candidate(c.box, c.anchor, c.slot, c.quality, c.verdict, c.loss, c.box in winners) for c in found.values()
    ]
    preferred = preferences(table, {c.box: c.score for c in candidates}, quality) if choice == "tightest" else {}

    def order(c: Candidate) -> tuple[float, ...]:
        return (choice == "anchors" and not c.chosen, -preferred.get(c.box, 0.0), -c.score, c.loss, *c.box)

    return sorted(candidates, key=order)


#: How far one side of the best box moves, one move after another, as a part of the image's shorter side; found on the
#: demo model.
MOVES = (1 / 16, 1 / 32, 1 / 32)
LEAST = 1 / 16  # shortest side of a moved box, the same way
MOVED = 8  # boxes screened for a move: each of four sides outwards and inwards
LOOKS = MOVED * len(MOVES) + 1  # screenings at most
#: Screens a box: renders it cheaply and judges it.
Look = Callable[[Box], None]


def can_refine(table: RewardTable) -> bool:
    """Whether it is known where the edit acts, and screening a box costs nothing."""
    return table.proposals.change is not None and table.editor.cost("screen") == 0


def refine(table: RewardTable, look: Look) -> Box | None:
    """The best box by :func:`~.ranking.rank` with "tightest", after :data:`MOVES`: each moves one side, or none where
    :func:`~.ranking.preferences` does not rise by that.

    Args:
        table: all boxes screened are noted in ``table.refined``; the one found is not rendered fully yet.
        look: judges a box by its screening render.

    Returns:
        None where no move is better, nothing was rendered fully, or no render scores more than the unedited image.

    Raises:
        EditingError: from the editor or the judge.
    """
    ranked = rank(table, "tightest")
    most = max((candidate.score for candidate in ranked if candidate.quality == "full"), default=table.unedited_score)
    if most <= table.unedited_score:
        return None
    origin = best = ranked[0].box
    look(origin)
    for share in MOVES:
        moved = [box for box in dict.fromkeys(_moves(table, best, share)) if box != origin and box not in table.refined]
        for box in moved:
            look(box)
        table.refined.update(dict.fromkeys(moved, origin))
        scores = {box: verdict.score for box in (origin, best, *moved) if (verdict := table.known(box, "screen"))}
        liked = preferences(table, scores, "screen", most)
        best = max(scores, key=lambda box: liked[box])
    return None if best == origin else best


def _moves(table: RewardTable, box: Box, share: float) -> Iterator[Box]:
    """``box`` with one side moved by ``share`` of the image's shorter side, within the image, tight around what may
    change."""
    height, width = table.proposals.image_size
    short = min(height, width)
    step, least = max(1, round(share * short)), max(1, round(LEAST * short))
    sides = (box.x, box.y, box.x + box.width, box.y + box.height)
    for number in range(4):
        for change in (-step, step):
            moved = list(sides)
            moved[number] = min(max(moved[number] + change, 0), (width, height)[number % 2])
            left, top, right, bottom = moved
            if right - left >= least and bottom - top >= least:
                framed = tight(Box(left, top, right - left, bottom - top), table.proposals.allowed)
                if framed is not None and framed != box:
                    yield framed

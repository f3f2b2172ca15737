"""Moving the sides of the best box to where the edit is preferred most. Ours: the paper takes its boxes as they were proposed.

Only where looking at a box costs no evaluations, because it is cut out of one edit of the whole picture (see
:class:`~.edit_invert.InversionEditor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .proposals import Box, tight
from .ranking import preferences, rank
from .table import RewardTable

# Parts of the shorter side of the image by which one side of the box moves, one move after another; found on the demo model.
MOVES = (1 / 16, 1 / 32, 1 / 32)
LEAST = 1 / 16  # shortest side of a moved box, the same way
MOVED = 8  # boxes looked at in a move: each of four sides outwards and inwards
LOOKS = MOVED * len(MOVES) + 1  # screenings at most

Look = Callable[[Box], None]


def can_refine(table: RewardTable) -> bool:
    """Whether it is known where the edit acts, and looking at a box costs nothing."""
    return table.proposals.change is not None and table.editor.cost("screen") == 0


def refine(table: RewardTable, look: Look) -> Box | None:
    """The best box by :func:`~.ranking.rank` with "tightest", after :data:`MOVES`: each moves one side, or none where
    :func:`~.ranking.preferences` does not rise by that.

    Args:
        table: all boxes looked at are noted in ``table.refined``; the one found is not rendered fully yet.
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
    """``box`` with one side moved by ``share`` of the image's shorter side, within the image, tight around what may change."""
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

"""What a search tells in words and in JSON: the ranked boxes, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .ranking import Candidate
from .search import RegionSearch


def score_table(candidates: Sequence[Candidate]) -> str:
    """A line for each candidate in its order: rank, box, score and its parts, loss and its parts, quality.

    A star marks the box of lowest loss of an anchor.
    """
    lines = ["rank  box (x, y, width, height)    S      S_t2i  S_i2i   loss   L_clip L_dir  L_str  render"]
    for rank, candidate in enumerate(candidates, start=1):
        verdict, star = candidate.verdict, "*" if candidate.chosen else " "
        box = "{}, {}, {}, {}".format(*candidate.box)
        figures = (candidate.score, verdict.text_similarity, verdict.image_similarity)
        losses = (candidate.loss, verdict.clip, verdict.direction, verdict.structure)
        numbers = " ".join(f"{value:6.3f}" for value in figures) + "  " + " ".join(f"{value:6.3f}" for value in losses)
        lines.append(f"{rank:3d}{star}  {box:<28} {numbers}  {candidate.quality}")
    return "\n".join(lines)


def boxes_json(candidates: Sequence[Candidate], image_size: tuple[int, int]) -> str:
    """The ranked boxes as JSON: ``{"image": {"width", "height"}, "boxes": [{"rank", "x", "y", "width", "height", "score", ...}]}``.

    Args:
        image_size: ``(H, W)`` in pixels.
    """
    boxes = [
        {
            "rank": rank,
            **candidate.box._asdict(),
            "score": round(candidate.score, 6),
            "text_similarity": round(candidate.verdict.text_similarity, 6),
            "image_similarity": round(candidate.verdict.image_similarity, 6),
            "loss": round(candidate.loss, 6),
            "quality": candidate.quality,
        }
        for rank, candidate in enumerate(candidates, start=1)
    ]
    return json.dumps({"image": {"width": image_size[1], "height": image_size[0]}, "boxes": boxes}, indent=1)


def search_report(search: RegionSearch) -> str:
    """A few lines on what was searched and what it cost, all images together."""
    counts = [table.count for table in search.tables]
    boxes = sum(len({box for row in table.proposals.boxes for box in row if box is not None}) for table in search.tables)
    anchors = [anchor for table in search.tables for anchor in table.proposals.anchors]
    changed = sum(anchor.found_by == "change" for anchor in anchors)
    where = f"{len(anchors)} anchors" + (f" ({changed} of them where the edit acts)" if changed else "")
    full, screen, reused = (sum(getattr(count, name) for count in counts) for name in ("full", "screen", "reused"))
    lines = [
        f"{search.settings.learning.strategy}: {boxes} different boxes around {where} in {len(counts)} image(s)",
        f"rendered {full} fully and {screen} as screening; {reused} were kept from earlier",
        f"network evaluations: {search.units:.0f} u",
    ]
    for number, table in enumerate(search.tables):
        for best in search.candidates(number)[:1]:
            before = table.refined.get(best.box)
            if before is not None:
                lines.append(f"the best box's sides were moved from {before.width} x {before.height} at ({before.x}, {before.y})")
    if search.learner is not None and search.learner.history:
        first, last = search.learner.history[0], search.learner.history[-1]
        lines.append(f"learned in {len(search.learner.history)} epochs: mean loss {first:.3f} to {last:.3f}")
    return "\n".join(lines)


def policy_report(search: RegionSearch) -> str:
    """How well the network chooses now, in a line: mean loss of its choice at every anchor, of chance and of the best box.

    Only boxes whose loss is known count; empty before anything is.
    """
    rows = []
    for number, table in enumerate(search.tables):
        losses = table.losses()
        known = losses.isfinite()
        if search.learner is None or not known.any():
            continue
        choices = search.learner.logits(number).masked_fill(~known, float("-inf")).argmax(1)
        for row, there, choice in zip(losses, known, choices, strict=True):
            if there.any():
                rows.append((float(row[choice]), float(row[there].mean()), float(row[there].min())))
    if not rows:
        return ""
    chosen, chance, best = (sum(values) / len(rows) for values in zip(*rows, strict=True))
    return f"mean loss at an anchor: {chosen:.3f} the network's choice, {chance:.3f} a box by chance, {best:.3f} the best box"

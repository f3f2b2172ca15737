"""What a search found, for people and programs: a picture, a table of scores, JSON, and a few lines of report."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..images.contact_sheet import to_picture
from ..images.heat import under_heat
from .proposals import Box, FoundBy, Proposals
from .ranking import Candidate
from .search import RegionSearch

SMALLEST = 512  # pixels of the shorter side; smaller images are enlarged by a whole number
FAINT, LABEL = (255, 255, 255), (0, 0, 0)  # red, green and blue in 0..255, like all colours here
PLACES: dict[FoundBy, tuple[int, int, int]] = {
    "attention": (255, 230, 0),
    "change": (0, 230, 255),
    "given": (255, 120, 255),
}
RANKS = ((60, 220, 90), (70, 170, 255), (230, 120, 255))  # the best, the second, all others that are drawn strongly
STRENGTH = 0.6  # opacity of the heat where attention is highest
FAINTNESS = 0.35  # opacity of the boxes that are not among the best


def region_picture(
    image: Tensor, attention: Tensor, proposals: Proposals, candidates: Sequence[Candidate], best: int = 3
) -> Tensor:
    """Draw a search over its image.

    Args:
        image: ``[1, 3, H, W]`` in 0..1.
        attention: ``[heads, gh, gw]``, see :func:`~.proposals.propose`; its mean over the heads is the heat, from its
            lowest value (nothing) to its highest.
        candidates: the best first.
        best: how many of them are drawn strongly, with their ranks.

    Returns:
        ``[H', W', 3]`` in 0..1: the image's size times the least whole number that makes the shorter side 512 or more.
    """
    scale = -(-SMALLEST // min(image.shape[-2:]))
    canvas = to_picture(heated(image, attention)[0], scale)
    drawn = canvas.copy()
    draw = ImageDraw.Draw(drawn)
    for box in dict.fromkeys(box for row in proposals.boxes for box in row if box is not None):
        draw.rectangle(_frame(box, scale), outline=FAINT)
    canvas = Image.blend(canvas, drawn, FAINTNESS)
    draw = ImageDraw.Draw(canvas)
    for anchor in proposals.anchors:
        x, y = anchor.x * scale, anchor.y * scale
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=PLACES[anchor.found_by], outline=LABEL)
    strong = list(enumerate(candidates[:best], start=1))
    for rank, candidate in reversed(strong):  # the best on top
        draw.rectangle(_frame(candidate.box, scale), outline=colour_of(rank), width=3)
    for rank, candidate in reversed(strong):
        left, top, *_ = _frame(candidate.box, scale)
        text = str(rank)
        draw.rectangle((left, top, left + draw.textlength(text) + 8, top + 16), fill=colour_of(rank))
        draw.text((left + 4, top + 3), text, fill=LABEL)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


def colour_of(rank: int) -> tuple[int, int, int]:
    """Colour of the box of a rank from 1, as red, green and blue in 0..255."""
    return RANKS[min(rank, len(RANKS)) - 1]


def heated(image: Tensor, attention: Tensor) -> Tensor:
    """``image [1, 3, H, W]`` in 0..1, redder where the mean of ``attention [heads, gh, gw]`` is higher."""
    weight = attention.detach().float().cpu().mean(0)
    weight = (weight - weight.min()) / (weight.max() - weight.min()).clamp_min(1e-12) * STRENGTH
    return under_heat(image, weight)


def _frame(box: Box, scale: int) -> tuple[int, int, int, int]:
    """First and last pixels of the enlarged box: left, top, right, bottom."""
    return box.x * scale, box.y * scale, (box.x + box.width) * scale - 1, (box.y + box.height) * scale - 1


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
    """The ranked boxes as JSON: ``{"image": {"width", "height"}, "boxes": [{"rank", "x", "y", "width", "height",
    "score", ...}]}``.

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
    boxes = sum(
        len({box for row in table.proposals.boxes for box in row if box is not None}) for table in search.tables
    )
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
                lines.append(
                    f"the best box's sides were moved from {before.width} x {before.height} at ({before.x}, {before.y})"
                )
    if search.learner is not None and search.learner.history:
        first, last = search.learner.history[0], search.learner.history[-1]
        lines.append(f"learned in {len(search.learner.history)} epochs: mean loss {first:.3f} to {last:.3f}")
    return "\n".join(lines)


def policy_report(search: RegionSearch) -> str:
    """How well the network chooses now, in a line: mean loss of its choice at every anchor, of chance and of the best
    box.

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
    return (
        f"mean loss at an anchor: {chosen:.3f} the network's choice, {chance:.3f} a box by chance, {best:.3f} the "
        "best box"
    )

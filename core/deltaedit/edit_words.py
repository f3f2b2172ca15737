"""What an edit by a Delta Mapper did to each face, in words that are true for that face."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..images.difference import changed_region, difference_map, place
from .edit import DeltaEdit
from .style_code import LEVELS

#: Change of a cosine below which CLIP is said to see none.
LEAST_STEP = 0.005


def edit_sentences(edit: DeltaEdit, features: Tensor, edited_features: Tensor, before: Tensor, after: Tensor) -> str:
    """A line for each edited face: channels moved, what CLIP makes of it, how much of the picture changed.

    Args:
        features: CLIP's unit features of the faces' own pictures ``[F, P]``.
        edited_features: of the edited ones ``[T * F, P]``.
        before, after: the pictures, ``[T * F, 3, H, W]`` in 0..1.
    """
    was, became = readings(edit, features, edited_features)
    difference = difference_map(after, before)
    region = changed_region(difference)
    lines = []
    for row, name in enumerate(edit.names):
        said = [f"{name}: {moved_in_words(edit, row)}"]
        if edit.moved[row].any():
            said.append(reading_in_words(float(was[row]), float(became[row])))
            said.append(change_in_words(difference[row], region[row]))
        lines.append(" ".join(said))
    return "\n".join(lines)


def readings(edit: DeltaEdit, features: Tensor, edited_features: Tensor) -> tuple[Tensor, Tensor]:
    """How far the pictures are on the way that was asked for, as CLIP sees it: cosines of their features with the
    difference, before and after, ``[T * F]`` each.
    """
    wanted = functional.normalize(edit.differences.rows, dim=1).repeat_interleave(len(features), 0)
    return (features.repeat(len(edit.differences.rows), 1) * wanted).sum(1), (edited_features * wanted).sum(1)


def moved_in_words(edit: DeltaEdit, row: int) -> str:
    """How much of a face's code moved, or why nothing did."""
    target = row // (len(edit.names) // len(edit.differences.rows))
    if not edit.differences.rows[target].any():
        return "source and target are the same to CLIP, so this is the unedited picture."
    if not edit.allowed[target].any():
        return (
            "no style channel is relevant enough, so this is the unedited picture; raise disentangle or lower the "
            "threshold."
        )
    count, widths = int(edit.moved[row].sum()), edit.code.layout.level_widths
    if count == 0:
        return "the change is zero, so this is the unedited picture."
    levels = ", ".join(
        f"{int(part)} of {width} {level}" for part, width, level in zip(edit.moved[row], widths, LEVELS, strict=True)
    )
    return (
        f"{count} of {sum(widths)} style channels moved ({levels}), by {100 * float(edit.length[row]):.2g} % of the "
        "code's length."
    )


def reading_in_words(before: float, after: float) -> str:
    """What CLIP says of an edit, by two of :func:`readings`."""
    step, figures = after - before, f"{before:+.3f} before, {after:+.3f} after"
    if abs(step) < LEAST_STEP:
        return f"CLIP sees it as far from the target as before ({figures})."
    nearer = "nearer to" if step > 0 else "farther from"
    return f"CLIP sees it {nearer} the target than before ({figures})."


def change_in_words(difference: Tensor, region: Tensor) -> str:
    """How much of a picture changed and where, by its difference and changed region ``[H, W]``."""
    share = float(region.float().mean())
    if share == 0:
        return "Nobody sees a change in the picture."
    where = place(torch.where(region, difference, torch.zeros_like(difference)))
    return f"{max(100 * share, 1):.0f} % of the picture changed visibly, {where}."

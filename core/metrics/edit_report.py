"""The report on an edit: what changed, what stayed, and whether it came nearer to what was wanted.

Needs nothing but the two pictures. Every further input adds figures, and a figure that cannot be computed is named with
its reason while the others are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError
from ..images.difference import changed_region, difference_map, place
from ..models.clip import ClipScorer
from ..models.vision_features import VisionFeatures
from .checks import masked_mean
from .clip import clip_accuracy, clip_score, directional_similarity
from .edit_sentence import Finding, sentence, summary
from .image import mse, psnr, ssim_map
from .structure import structure_distance

#: Rows on the true edit: of the picture after and before, over the whole picture and over what the true edit changes.
TRUTH, IDLE, PART, PART_IDLE = "true edit:", "doing nothing:", "true edit's part:", "that part, doing nothing:"

#: A measure of images, references and an optional mask, ``[B]``.
Measure = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Row:
    """One measure of all pictures. Each column is ``[B]`` float64, NaN for a picture that has no such part.

    Attributes:
        name: for people, with its unit.
        good: what a good value is.
        whole, outside, inside: of the whole picture and of its two parts; None where it was not measured there.
        digits: after the point.
        higher: whether more is better, which tells the worst of a batch; None where neither is.
    """

    name: str
    good: str
    whole: Tensor | None = None
    outside: Tensor | None = None
    inside: Tensor | None = None
    digits: int = 2
    higher: bool | None = True


@dataclass(frozen=True, eq=False)
class EditReport:
    """What an edit did to ``B`` pictures.

    Attributes:
        sentence: the finding in plain English; of several pictures a summary.
        sentences: the finding of every picture.
        rows: the table.
        parts: what the table's columns "outside" and "inside" are called.
        missing: what was not measured and why, a line each.
        before, after: ``[B, 3, H, W]`` in 0..1, as they were compared.
        truth, mask: ``[B, 3, H, W]`` and ``[B, 1, H, W]``, or None.
        difference: ``[B, H, W]``, see :func:`~..images.difference.difference_map`.
        region: ``[B, H, W]`` bool, see :func:`~..images.difference.changed_region`.
    """

    sentence: str
    sentences: tuple[str, ...]
    rows: tuple[Row, ...]
    parts: tuple[str, str]
    missing: tuple[str, ...]
    before: Tensor
    after: Tensor
    truth: Tensor | None
    mask: Tensor | None
    difference: Tensor
    region: Tensor

    def text(self) -> str:
        """The whole report as plain text: the sentence, then the table, then what is missing."""
        count = len(self.sentences)
        blocks = [self.sentence]
        if count > 1:
            blocks.append("\n".join(f"picture {number}: {line}" for number, line in enumerate(self.sentences, start=1)))
        blocks.append(_table(self.rows, self.parts, count))
        if self.missing:
            blocks.append("\n".join(f"not measured: {line}" for line in self.missing))
        return "\n\n".join(blocks)


@torch.no_grad()
def edit_report(
    before: Tensor,
    after: Tensor,
    *,
    truth: Tensor | None = None,
    mask: Tensor | None = None,
    source_text: str | Sequence[str] = "",
    target_text: str | Sequence[str] = "",
    scorer: ClipScorer | None = None,
    vision: VisionFeatures | None = None,
) -> EditReport:
    """Compare pictures before and after an edit.

    Args:
        before, after: ``[B, 3, H, W]`` in 0..1 (values outside are clipped, as a file would). Either may be one
            picture for all of the other.
        truth: the true edit, where it is known; one or ``B``.
        mask: ``[B or 1, 1, H, W]`` in 0..1, where the edit was to happen.
        source_text, target_text: what the pictures showed and were to show; one for all or one for each.
        scorer: a CLIP; measures with the texts.
        vision: a vision transformer; measures how far the structure moved.

    Raises:
        EditingError: two sizes, batches that do not match, a picture that is not a number, an empty mask.
    """
    before, after, truth, mask = _inputs(before, after, truth, mask)
    difference = difference_map(after, before)
    region = changed_region(difference)
    inner = region.double()[:, None] if mask is None else mask
    parts = ("the rest", "changed part") if mask is None else ("outside", "inside")
    missing: list[str] = []
    rows: list[Row] = []

    def add(name: str, good: str, compute: Callable[[], Sequence[Tensor | None]], **options: int | bool | None) -> None:
        try:
            rows.append(Row(name, good, *compute(), **options))  # type: ignore[arg-type]
        except EditingError as error:
            missing.append(str(error) if str(error).startswith(name) else f"{name}: {error}")

    def parted(measure: Measure, images: Tensor, reference: Tensor) -> Sequence[Tensor | None]:
        outside, inside = (_over(measure, images, reference, part) for part in (1 - inner, inner))
        return measure(images, reference, None), outside, inside

    def similarity() -> Sequence[Tensor | None]:
        maps = ssim_map(after, before, torch.float32).double()  # the table has three digits
        return parted(lambda values, _, part: masked_mean(values, part), maps, maps)

    add("PSNR, dB", "high: 30 nearly untouched, 38 untouched", lambda: parted(psnr, after, before), digits=1)
    add("MSE", "low", lambda: parted(mse, after, before), digits=5, higher=False)
    add("SSIM", "high: 1 is the same", similarity, digits=3)
    add("changed visibly, %", "no more than needed", lambda: _shares(region, mask), digits=1, higher=None)
    if vision is not None:
        add(
            "structure distance",
            "low: 0 is the same layout",
            lambda: [structure_distance(vision, after, before)],
            digits=4,
            higher=False,
        )
    if truth is not None:
        goal = truth
        add(f"{TRUTH} PSNR, dB", "high: nearer to it", lambda: parted(psnr, after, goal), digits=1)
        add(f"{IDLE} PSNR, dB", "lower", lambda: [psnr(before, goal)], digits=1)
        part = changed_region(difference_map(goal, before)).double()[:, None]
        if part.any():
            add(f"{PART} PSNR, dB", "high: nearer to it", lambda: [_over(psnr, after, goal, part)], digits=1)
            add(f"{PART_IDLE} PSNR, dB", "lower", lambda: [_over(psnr, before, goal, part)], digits=1)
    sources, targets = (_texts(text, len(before)) for text in (source_text, target_text))
    if scorer is None:
        if sources or targets:
            missing.append("CLIP figures: a text is given but no CLIP; wire a clip_scorer.")
    elif not targets:
        missing.append("CLIP figures: there is no target text; write what the picture was to show.")
    else:
        _clip_rows(add, scorer, before, after, sources, targets, mask)
        if not sources:
            missing.append("directional similarity: there is no source text; write what the picture showed before.")
    findings = _findings(rows, difference, region, mask)
    lines = tuple(map(sentence, findings))
    first = lines[0] if len(lines) == 1 else summary(findings)
    return EditReport(first, lines, tuple(rows), parts, tuple(missing), before, after, truth, mask, difference, region)


def _clip_rows(
    add: Callable[..., None],
    scorer: ClipScorer,
    before: Tensor,
    after: Tensor,
    sources: list[str] | None,
    targets: list[str],
    mask: Tensor | None,
) -> None:
    """The figures that need a CLIP."""

    def edited() -> list[Tensor | None]:
        inside = None if mask is None else clip_score(scorer, after, targets, mask)
        return [clip_score(scorer, after, targets), None, inside]

    add("CLIP score", "high: more like the target text", edited)
    add("CLIP score before", "lower", lambda: [clip_score(scorer, before, targets)])
    if sources:
        add(
            "directional similarity",
            "high: 1 changed as the texts do",
            lambda: [directional_similarity(scorer, before, after, sources, targets)],
            digits=3,
        )
        add(
            "CLIP accuracy",
            "1: more like the target text than the source text",
            lambda: [clip_accuracy(scorer, after, sources, targets)],
            digits=0,
        )


def _inputs(
    before: Tensor, after: Tensor, truth: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """All of one batch and clipped, or one sentence on what does not fit."""
    named = {"The picture before": before, "The picture after": after, "The true edit": truth, "The mask": mask}
    given = {what: images for what, images in named.items() if images is not None}
    count = max(len(before), len(after))
    for what, images in given.items():
        channels = 1 if what == "The mask" else 3
        if images.ndim != 4 or images.shape[1] != channels or not images.numel():
            raise EditingError(f"{what} has shape {list(images.shape)}; use [batch, {channels}, height, width].")
        check_finite(images, what)
        if images.shape[-2:] != after.shape[-2:]:
            raise EditingError(
                f"{what} is {images.shape[-1]} x {images.shape[-2]} pixels and the picture after {after.shape[-1]} x "
                f"{after.shape[-2]}; scale or crop one to the other's size."
            )
        if len(images) not in (1, count):
            raise EditingError(
                f"{what} is a batch of {len(images)} and there are {count} pictures to compare; use 1 or {count}."
            )
    expanded = [
        None if images is None else images.detach().float().cpu().clamp(0, 1).expand(count, -1, -1, -1)
        for images in named.values()
    ]
    before, after, truth, mask = expanded  # type: ignore[assignment]
    if mask is not None:
        empty = (mask.amax((1, 2, 3)) == 0).nonzero().flatten().tolist()
        if empty:
            which = f"The mask of picture {empty[0] + 1}" if count > 1 else "The mask"
            raise EditingError(f"{which} is empty; paint where the edit was to happen, or unwire it.")
    return before, after, truth, mask


def _texts(text: str | Sequence[str], count: int) -> list[str] | None:
    """One text for each picture; None where none was written."""
    texts = [text] * count if isinstance(text, str) else list(text)
    if len(texts) != count:
        raise EditingError(f"There are {len(texts)} texts for {count} pictures; write one for all or one for each.")
    return texts if any(line.strip() for line in texts) else None


def _over(measure: Measure, images: Tensor, reference: Tensor, part: Tensor) -> Tensor | None:
    """``measure`` inside ``part [B, 1, H, W]``; NaN for pictures without such a part, None where none has one."""
    there = part.sum((1, 2, 3)) > 0
    if not there.any():
        return None
    values = torch.full((len(images),), float("nan"), dtype=torch.float64)
    values[there] = measure(images[there], reference[there], part[there])
    return values


def _shares(region: Tensor, mask: Tensor | None) -> list[Tensor | None]:
    """How many percent of the picture changed visibly; with a mask also outside and inside it."""
    changed = region.double()[:, None]
    whole = torch.ones_like(changed)
    parts = [whole] if mask is None else [whole, 1 - mask.double(), mask.double()]
    return [100 * (changed * part).sum((1, 2, 3)) / part.sum((1, 2, 3)) for part in parts]


def _findings(rows: Sequence[Row], difference: Tensor, region: Tensor, mask: Tensor | None) -> list[Finding]:
    """The figures of every picture that its sentence is made of."""
    named = {row.name: row for row in rows}

    def value(name: str, column: str, number: int) -> float:
        row = named.get(name)
        values = None if row is None else getattr(row, column)
        return float("nan") if values is None else float(values[number]) + 0.0  # no -0 dB

    def pair(after: str, before: str, number: int) -> tuple[float, float] | None:
        both = value(after, "whole", number), value(before, "whole", number)
        return None if math.isnan(sum(both)) else both

    findings = []
    for number, (map_, changed) in enumerate(zip(difference.double(), region, strict=True)):
        visible = map_ * changed
        total = float(visible.sum())
        inside = None if mask is None else float((visible * mask[number, 0]).sum()) / total if total else 0.0
        named_part = visible if mask is None or not inside else visible * mask[number, 0]
        findings.append(
            Finding(
                value("PSNR, dB", "whole", number),
                value("PSNR, dB", "outside", number),
                value("PSNR, dB", "inside", number),
                not map_.any(),
                float(changed.double().mean()),
                inside,
                place(named_part) if total else "",
                pair(f"{TRUTH} PSNR, dB", f"{IDLE} PSNR, dB", number),
                pair(f"{PART} PSNR, dB", f"{PART_IDLE} PSNR, dB", number),
                pair("CLIP score", "CLIP score before", number),
            )
        )
    return findings


def _table(rows: Sequence[Row], parts: tuple[str, str], count: int) -> str:
    """The rows as text in columns; of several pictures the mean and the worst first, then each."""
    lines: list[tuple[str, ...]] = [("", "whole", *parts, "good is")]
    for row in rows:
        columns = (row.whole, row.outside, row.inside)
        if count == 1:
            lines.append((row.name, *(_figure(column, 0, row.digits) for column in columns), row.good))
            continue
        lines.append((f"{row.name}: mean", *(_figure(_mean(column), 0, row.digits) for column in columns), row.good))
        if row.higher is not None:
            worst = [_worst(column, row.higher) for column in columns[:2]]
            lines.append(("  worst", *(_figure(column, 0, row.digits) for column in (*worst, None)), ""))
        for number in range(count):
            lines.append((f"  {number + 1}", *(_figure(column, number, row.digits) for column in columns), ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in (0, 4) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _figure(values: Tensor | None, number: int, digits: int) -> str:
    if values is None or values[number].isnan():
        return "-"
    return f"{float(values[number]) + 0.0:.{digits}f}"


def _mean(values: Tensor | None) -> Tensor | None:
    """Over the pictures that have a value, ``[1]``."""
    return None if values is None else values.nanmean()[None]


def _worst(values: Tensor | None, higher: bool) -> Tensor | None:
    if values is None or values.isnan().all():
        return None
    known = values[~values.isnan()]
    return (known.min() if higher else known.max())[None]

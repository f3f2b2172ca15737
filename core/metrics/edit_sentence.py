"""What an edit did to a picture, said in a sentence or two of plain English, true for this picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: PSNR in dB from which on a part is called so; what lies lower is "changed too". 38 dB is an error of 3 of 255 levels,
#: 30 dB of 8, 24 dB of 16.
KEPT = ((50.0, "identical to the eye"), (38.0, "untouched"), (30.0, "nearly untouched"), (24.0, "slightly changed"))
SAME_PSNR, SAME_CLIP = 0.05, 0.05  # smaller gaps (dB; CLIP score of 100) are called none
ALL = 0.995  # of the change
MOST = 0.6  # of the picture; then there is no rest worth naming


@dataclass(frozen=True)
class Finding:
    """Figures of one picture that the sentence is made of; PSNR in dB, NaN where there is no such part.

    Attributes:
        whole: PSNR between after and before.
        kept: the same over what was to stay: outside the mask, without one outside the changed region.
        changed: the same inside the mask.
        equal: every pixel is the same.
        share: of the picture that changed visibly, 0..1.
        inside: share of the visible change that lies in the mask; None without a mask.
        place: where the visible change is, see :func:`~..images.difference.place`; empty where there is none.
        near: PSNR to the true edit of the picture after and before; None where the true edit is not known.
        near_there: the same over the part that the true edit changes; None where there is no such part.
        clip: CLIP score with the target text of the picture after and before; None where it was not measured.
    """

    whole: float
    kept: float
    changed: float
    equal: bool
    share: float
    inside: float | None
    place: str
    near: tuple[float, float] | None = None
    near_there: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None


def kept_word(psnr: float) -> str:
    """How well a part was kept, by its PSNR in dB, rounded as it is shown."""
    return next((word for least, word in KEPT if psnr >= least - 0.5), "changed too")


def sentence(finding: Finding) -> str:
    """One picture's finding in words: what stayed, what changed and where, then the true edit and CLIP if measured."""
    parts = [_without_mask(finding) if finding.inside is None else _with_mask(finding, finding.inside)]
    if finding.near is not None:
        parts.append(_truth(finding.near, finding.near_there))
    if finding.clip is not None:
        parts.append(_clip(*finding.clip))
    return " ".join(parts)


def summary(findings: Sequence[Finding]) -> str:
    """Several pictures' findings in words: the worst of what was to stay, and how many reached what was wanted."""
    count = len(findings)
    masked = findings[0].inside is not None
    kept = {number: finding.kept for number, finding in enumerate(findings, start=1) if not math.isnan(finding.kept)}
    parts = [f"{count} pictures."]
    if kept:
        where = "Outside the mask" if masked else "Outside the changed part"
        worst = min(kept, key=kept.__getitem__)
        finite = [value for value in kept.values() if math.isfinite(value)]
        if not finite:
            parts.append(f"{where} every pixel is the same.")
        else:
            average = f", {math.fsum(finite) / len(finite):.0f} dB on average"
            others = " of those that changed at all" if len(finite) < len(kept) else ""
            parts.append(
                f"{where} the worst of them (picture {worst}) is {kept_word(kept[worst])}: {kept[worst]:.0f} "
                f"dB{average}{others}."
            )
    changed = sum(finding.share > 0 for finding in findings)
    share = math.fsum(finding.share for finding in findings) / count
    parts.append(
        f"{changed} of {count} changed visibly, on average {_percent(share)} of the picture."
        if changed
        else "None changed visibly."
    )
    near = [finding.near for finding in findings if finding.near is not None]
    if near:
        there = [finding.near_there for finding in findings if finding.near_there is not None]
        nearer, nearer_there = (sum(_way(pair) > 0 for pair in pairs) for pairs in (near, there))
        parts.append(
            f"{nearer} of {len(near)} came nearer to the true edit than doing nothing"
            + (f", {nearer_there} of {len(there)} where it changes something." if there else ".")
        )
    clip = [finding.clip for finding in findings if finding.clip is not None]
    if clip:
        liked = sum(after > idle + SAME_CLIP for after, idle in clip)
        parts.append(f"CLIP sees {liked} of {len(clip)} nearer to the target text than before.")
    return " ".join(parts)


def _with_mask(finding: Finding, inside: float) -> str:
    if finding.equal:
        return "Nothing changed: the two pictures are the same in every pixel."
    if math.isnan(finding.kept):
        stayed = "The mask covers the whole picture."
    elif math.isinf(finding.kept):
        stayed = "Outside the mask every pixel is the same."
    else:
        stayed = f"Outside the mask the picture is {kept_word(finding.kept)}: {finding.kept:.0f} dB."
    if not finding.share:
        there = "nothing changed" if math.isinf(finding.changed) else f"no change is visible ({finding.changed:.0f} dB)"
        return f"{stayed} Inside it {there}."
    if inside < 1 - ALL:
        return f"{stayed} None of the visible change lies inside it: it is {finding.place}."
    much = "All" if inside >= ALL else _percent(inside)
    return f"{stayed} {much} of the visible change lies inside it, {finding.place}."


def _without_mask(finding: Finding) -> str:
    if finding.equal:
        return "Nothing changed: the two pictures are the same in every pixel."
    if not finding.share:
        word = kept_word(finding.whole) if finding.whole >= KEPT[-1][0] - 0.5 else "changed a little everywhere"
        return f"The picture is {word}: {finding.whole:.0f} dB; no part of it stands out."
    if finding.share >= MOST or math.isnan(finding.kept):
        return f"Most of the picture changed ({_percent(finding.share)} of it): {finding.whole:.0f} dB."
    rest = (
        "every other pixel is the same"
        if math.isinf(finding.kept)
        else f"the rest is {kept_word(finding.kept)}: {finding.kept:.0f} dB"
    )
    return f"{_percent(finding.share)} of the picture changed, {finding.place}; {rest}."


def _truth(near: tuple[float, float], there: tuple[float, float] | None) -> str:
    after, idle = near
    if math.isinf(idle):
        return "The true edit is the picture before itself."
    if math.isinf(after):
        return "It is the true edit in every pixel."
    way = _way(near)
    whole = {1: "nearer to the true edit than", 0: "as near to the true edit as", -1: "further from the true edit than"}
    if there is None or _way(there) == way:
        return f"It is {whole[way]} doing nothing: {after:.1f} dB{f' against {idle:.1f}' if way else ''}."
    # A small edit in a picture that lost a little everywhere: one figure would tell half of it.
    part = {1: "nearer", 0: "as near", -1: "further"}[_way(there)]
    return (
        f"Over the whole picture it is {whole[way]} doing nothing ({after:.1f} dB against {idle:.1f}), but where the "
        f"true edit changes something it is {part} ({there[0]:.1f} dB against {there[1]:.1f})."
    )


def _way(pair: tuple[float, float]) -> int:
    """1 where the picture after has more decibels than the one before, -1 where less, 0 where they are the same."""
    after, idle = pair
    return 0 if after == idle or abs(after - idle) < SAME_PSNR else 1 if after > idle else -1


def _clip(after: float, idle: float) -> str:
    if abs(after - idle) < SAME_CLIP:
        return f"CLIP sees it as near to the target text as before ({after:.1f})."
    way = "nearer to" if after > idle else "further from"
    return f"CLIP sees it {way} the target text than before ({after:.1f} against {idle:.1f})."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.01 else f"{100 * share:.0f} %"

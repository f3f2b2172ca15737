"""How well a CLIP's texts and pictures agree, in themselves and in their differences: Fig. 1 of DeltaEdit as figures.

The paper finds that the *difference* of two pictures' features points where the difference of their texts' points,
while the features themselves lie in two separate clouds. A cosine alone does not say that, for any text has a high
cosine to any picture; what counts is how far a matching one stands out from the others. Hence each cosine stands beside
that of partners that do not belong together, and beside how often the matching text is the nearest of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..images.scatter import scatter_plot
from ..metrics.clip import SAME

#: Two differences that share no picture take four.
FEWEST = 4
#: Rows of the table of cosines that are made at a time.
CHUNK = 1024
#: Cosines closer than this are ties: captions that are the same word for word.
TIE = 1e-6
NAMES = (("pictures", "texts"), ("of pictures", "of texts"))
#: How many standard errors apart two means must lie to be called different.
CERTAIN = 3.0
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Mean:
    """A mean, and the ``error`` (standard error) that its number of samples leaves."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{_rounded(self.value)} ± {_rounded(self.error)}"


@dataclass(frozen=True)
class Agreement:
    """How matching rows of two sets of features agree.

    Attributes:
        count: rows compared.
        matched: cosine of a picture's row with its own text's.
        shuffled: with the texts' of others.
        first, fifth: share of pictures whose own text is the nearest of all, or among the five nearest; ties count by
            their chance.
    """

    count: int
    matched: Mean
    shuffled: Mean
    first: Mean
    fifth: Mean

    @property
    def chance(self) -> tuple[float, float]:
        """What :attr:`first` and :attr:`fifth` would be by guessing."""
        return 1 / self.count, min(5, self.count) / self.count

    @property
    def margin(self) -> float:
        """How far a matching text stands out: matched minus shuffled cosine."""
        return self.matched.value - self.shuffled.value

    @property
    def certain(self) -> bool:
        """Whether it stands out by more than chance would have it."""
        return self.margin > CERTAIN * math.hypot(self.matched.error, self.shuffled.error)


@dataclass(frozen=True, eq=False)
class DeltaSpace:
    """What :func:`analyse` finds.

    Attributes:
        features: agreement of pictures and texts.
        differences: agreement of their differences to a partner.
        alike: rows left out of ``differences``, because they and their partner have the same text or picture to this
            CLIP.
        plot: both spaces in two dimensions, ``[H, W, 3]`` in 0..1.
    """

    features: Agreement
    differences: Agreement
    alike: int
    plot: Tensor


def analyse(images: Tensor, texts: Tensor, seed: int = 0) -> DeltaSpace:
    """Compare pictures with their texts, row by row.

    Args:
        images, texts: CLIP features ``[N, P]``, row i of one belongs to row i of the other.
        seed: of the partners whose differences are taken.

    Raises:
        EditingError: fewer than four rows, sets of different shapes, values that are not numbers, or hardly any two
            rows that differ.
    """
    if images.ndim != 2 or images.shape != texts.shape:
        raise EditingError(
            f"The features of pictures and texts have shapes {list(images.shape)} and {list(texts.shape)}; both must "
            "be [pictures, width], of one CLIP."
        )
    check_count(len(images))
    images, texts = images.double(), texts.double()
    if not (images.isfinite().all() and texts.isfinite().all()):
        raise EditingError("The features hold values that are not numbers; use another CLIP or other pictures.")
    images, texts = functional.normalize(images, dim=1), functional.normalize(texts, dim=1)
    partner = partners(len(images), seed)
    image_deltas, text_deltas = images[partner] - images, texts[partner] - texts
    kept = ((image_deltas.norm(dim=1) >= SAME) & (text_deltas.norm(dim=1) >= SAME)).nonzero()[:, 0]
    if len(kept) < FEWEST:
        raise EditingError(
            "Nearly all the pictures, or nearly all their captions, are the same to this CLIP, so that there are no "
            "differences to compare; use captions that say what each picture shows."
        )
    image_deltas, text_deltas = image_deltas[kept], text_deltas[kept]
    shared = torch.stack([kept, partner[kept]], 1)
    features, differences = agreement(images, texts), agreement(image_deltas, text_deltas, shared)
    plot = delta_plot({"features": features, "differences": differences}, (images, texts), (image_deltas, text_deltas))
    return DeltaSpace(features, differences, len(images) - len(kept), plot)


def check_count(count: int) -> None:
    """Raise :class:`EditingError` where there are too few pictures with captions to compare."""
    if count < FEWEST:
        raise EditingError(
            f"There are {count} pictures with captions; use {FEWEST} or more, and some hundred for figures that mean "
            "something."
        )


def partners(count: int, seed: int) -> Tensor:
    """``[count]``: for each row another row, each once: the next one in a shuffled circle."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner


def agreement(first: Tensor, second: Tensor, shared: Tensor | None = None) -> Agreement:
    """Compare row i of ``first [N, P]`` with row i and with all other rows of ``second``, by their cosines.

    Args:
        shared: ``[N, K]``, what each row was made of; rows that have any of it in common are no strangers, and are left
            out of the shuffled cosine (not of the retrieval). None: every row stands for itself.
    """
    first, second = functional.normalize(first.double(), dim=1), functional.normalize(second.double(), dim=1)
    count = len(first)
    made_of = torch.arange(count)[:, None] if shared is None else shared
    matched, shuffled, hits = [], [], []
    for start in range(0, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        cosines = first[rows] @ second.T
        own = cosines.gather(1, torch.arange(rows.start, rows.stop)[:, None])
        strangers = (made_of[rows, None, :, None] != made_of[None, :, None, :]).flatten(2).all(2)
        matched.append(own[:, 0])
        shuffled.append((cosines * strangers).sum(1) / strangers.sum(1))
        nearer = (cosines > own + TIE).sum(1)
        tied = ((cosines - own).abs() <= TIE).sum(1)
        hits.append(torch.stack([((k - nearer) / tied).clamp(0, 1) for k in (1, 5)], 1))
    others = torch.cat(shuffled)
    found = torch.cat(hits)
    return Agreement(
        count,
        _mean(torch.cat(matched)),
        _mean(others[others.isfinite()]),  # with very few rows all may share something
        _mean(found[:, 0]),
        _mean(found[:, 1]),
    )


def _rounded(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0: never "-0.000"


def _mean(values: Tensor) -> Mean:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
    return Mean(float(values.mean()), error)


def principal_plane(*sets: Tensor) -> list[Tensor]:
    """Sets of features ``[N, P]`` in the plane in which all of them together vary most (PCA): ``[N, 2]`` each.

    An axis points to where the feature that it weighs most is positive.
    """
    together = torch.cat(sets).double()
    together = together - together.mean(0)
    _, axes = torch.linalg.eigh(together.T @ together)
    plane = axes[:, -2:].flip(1)
    heaviest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    return list((together @ (plane * heaviest.sign())).split([len(one) for one in sets]))


def delta_plot(titles: Mapping[str, Agreement], features: Pair, differences: Pair) -> Tensor:
    """Fig. 1: pictures and texts on the left, their differences at unit length on the right; ``[H, W, 3]`` in 0..1.

    Args:
        titles: of both panels, and the figures that stand there.
        features, differences: of pictures and of texts, ``[N, P]`` each.
    """
    panels = {}
    for (title, found), names, pair in zip(titles.items(), NAMES, (features, differences), strict=True):
        points = principal_plane(*(functional.normalize(one, dim=1) for one in pair))
        cosines = f"cosine {_rounded(found.matched.value)}, of strangers {_rounded(found.shuffled.value)}"
        panels[f"{title} in the plane of most variance (PCA): {cosines}"] = dict(zip(names, points, strict=True))
    return scatter_plot(panels)


def sentences(found: DeltaSpace) -> list[str]:
    """What the figures mean, for a person."""
    delta, plain = found.differences, found.features
    if not delta.certain:
        return [
            "Texts and pictures do not agree in their differences: the difference of two captions does not tell where "
            f"the pictures differ (cosine {delta.matched}, that of strangers {delta.shuffled}).",
            "Edits by text will not work with this CLIP on pictures like these; write captions that say what differs, "
            "or use another CLIP.",
        ]
    lines = [
        "Texts and pictures agree in their differences: where two captions differ tells where their pictures differ.",
        f"For {100 * delta.first.value:.1f} % of the differences of pictures the difference of their own captions is "
        f"the nearest of {delta.count} (by guessing: {100 * delta.chance[0]:.1f} %); its cosine is {delta.matched}, "
        f"that of strangers {delta.shuffled}.",
    ]
    plainly = "less plainly" if plain.margin < delta.margin else "as plainly"
    lines.append(
        f"The features themselves agree {plainly}: a picture's own caption is the nearest for "
        f"{100 * plain.first.value:.1f} %; its cosine is {plain.matched}, that of strangers' captions {plain.shuffled}."
    )
    return lines


def table(found: DeltaSpace) -> str:
    """The figures in full."""
    both = (found.features, found.differences)
    rows = [["", "pictures and texts", "their differences"], ["pairs", *(str(one.count) for one in both)]]
    rows.append(["cosine of what belongs together", *(str(one.matched) for one in both)])
    rows.append(["cosine of strangers", *(str(one.shuffled) for one in both)])
    rows.append(["own text is the nearest, %", *(_share(one.first, one.chance[0]) for one in both)])
    rows.append(["own text among the five, %", *(_share(one.fifth, one.chance[1]) for one in both)])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if found.alike:
        lines.append(
            f"{found.alike} differences were left out: two captions or two pictures that are the same to this CLIP."
        )
    return "\n".join(lines)


def _share(mean: Mean, chance: float) -> str:
    return f"{100 * mean.value:.1f} ± {100 * mean.error:.1f} (guessing: {100 * chance:.1f})"

"""Pairs of pictures before and after an edit: read, filtered, and made to say only what was edited.

Filtered as in the paper (appendix A): an edited picture must have come nearer to the target's text in CLIP's eyes, and
enough of the picture must be as it was. The paper takes the overlap of two segmentations for that; here it is the
share of the picture that did not change, for which no further network is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..images.difference import changed_region, difference_map
from ..images.files import check_square, picture_files, square_picture
from ..metrics.clip import clip_score
from ..models.clip import ClipScorer

#: Share of the shorter side by which the changed region is widened, and over which its edge is soft.
MARGIN = 0.02
TOGETHER = 16  # pictures that are looked at at once


@dataclass(frozen=True, eq=False)
class EditPairs:
    """Pictures and what an edit made of them.

    Attributes:
        before, after: uint8 ``[N, 3, H, W]``.

    Raises:
        EditingError: another number or size of pictures, or none.
    """

    before: Tensor
    after: Tensor

    def __post_init__(self) -> None:
        if len(self.before) != len(self.after):
            raise EditingError(
                f"There are {len(self.before)} pictures before and {len(self.after)} after the edit; give one edited "
                "picture for each."
            )
        if self.before.shape[-2:] != self.after.shape[-2:]:
            sizes = [f"{part.shape[-1]} x {part.shape[-2]}" for part in (self.before, self.after)]
            raise EditingError(
                f"The pictures are {sizes[0]} pixels before and {sizes[1]} after the edit; bring them to one size."
            )
        if not len(self.before) or min(self.before.shape[-2:]) < 8:
            raise EditingError("There are no pairs to learn from; give pictures of at least 8 pixels a side.")

    def __len__(self) -> int:
        return len(self.before)

    @property
    def side(self) -> int:
        """Pixels of the shorter side."""
        return min(self.before.shape[-2:])

    def select(self, rows: Tensor) -> EditPairs:
        """The pairs ``rows``, bool ``[N]`` or indices."""
        return EditPairs(self.before[rows], self.after[rows])

    def floats(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """``(before, after)`` of some pairs, ``[b, 3, H, W]`` in 0..1."""
        before, after = (part[rows].float() / 255 for part in (self.before, self.after))
        return before, after


def as_bytes(images: Tensor) -> Tensor:
    """``images [N, 3, H, W]`` in 0..1 (values outside are cut) as uint8."""
    return (images.clamp(0, 1) * 255).round().byte()


def read_pairs(
    before: str | Path, after: str | Path, size: int, callback: Callable[[int, int], None] | None = None
) -> tuple[EditPairs, list[str]]:
    """Pairs of two folders, by the order of their names: ``(pairs of squares, names of the unreadable)``.

    Args:
        size: pixels of a side to which pictures are scaled; the centre is cut out.
        callback: told ``(pairs done, pairs in all)``; an exception it raises ends the reading.

    Raises:
        EditingError: the folders hold unequal numbers of pictures, or not one readable pair; an unusable size.
    """
    check_square(size)
    files = [picture_files(folder) for folder in (before, after)]
    if len(files[0]) != len(files[1]):
        raise EditingError(
            f"The folders hold {len(files[0])} and {len(files[1])} pictures; put one edited picture for each into the "
            "second, in the same order of names."
        )
    made: list[list[Tensor]] = [[], []]
    skipped = []
    for number, pair in enumerate(zip(*files, strict=True)):
        try:
            pictures = [as_bytes(square_picture(path, size)) for path in pair]
        except EditingError:
            skipped.append(pair[0].name)
        else:
            for part, picture in zip(made, pictures, strict=True):
                part.append(picture)
        if callback is not None:
            callback(number + 1, len(files[0]))
    if not made[0]:
        raise EditingError("Not one pair of the two folders can be read; use PNG, JPEG or WebP files.")
    return EditPairs(*(torch.cat(part) for part in made)), skipped


@dataclass(frozen=True)
class PairFilter:
    """Which pairs are learned from.

    Attributes:
        source, target: texts of what is there and of what is wanted. Without a target CLIP is not asked.
        clip_gain: how much nearer to the target's text the picture must come at least, in cosines.
        overlap: least share of the picture that stays as it is.
    """

    source: str = ""
    target: str = ""
    clip_gain: float = 0.0
    overlap: float = 0.0


@dataclass(frozen=True, eq=False)
class FilteredPairs:
    """What a :class:`PairFilter` left, and figures of every pair.

    Attributes:
        pairs: those that passed.
        kept: bool ``[N]``.
        gains: ``[N]``, how much nearer each came to the target's text; NaN where CLIP was not asked.
        overlaps: ``[N]``, share of each picture that stayed.
        convinced: bool ``[N]``, whether the edited picture is nearer to the target's text than to the source's.
    """

    pairs: EditPairs
    kept: Tensor
    gains: Tensor
    overlaps: Tensor
    convinced: Tensor

    def report(self) -> str:
        """A line or two for people."""
        count = len(self.kept)
        lines = [f"{int(self.kept.sum())} of {count} pairs are learned from"]
        if self.gains.isfinite().all():
            lines.append(
                f"CLIP: nearer to the target's text by {float(self.gains.mean()):+.3f} (cosine, mean), "
                f"{int(self.convinced.sum())} of {count} look more like the target than like the source"
            )
        lines.append(f"{100 * float(self.overlaps.mean()):.0f} % of a picture stays as it is (mean)")
        return "\n".join(lines)


@torch.no_grad()
def filter_pairs(
    pairs: EditPairs,
    wanted: PairFilter,
    scorer: ClipScorer | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> FilteredPairs:
    """Leave the pairs in which the edit happened and the rest stayed.

    Args:
        scorer: the CLIP that is asked; None: none is.
        callback: told ``(pairs done, pairs in all)``; an exception it raises ends it.

    Raises:
        EditingError: no pair passes, or a scorer without a target's text.
    """
    asked = scorer is not None
    if asked and not wanted.target.strip():
        raise EditingError("The CLIP scorer has no target text to compare with; write one, or unwire clip_scorer.")
    figures: list[Tensor] = []
    for start in range(0, len(pairs), TOGETHER):
        before, after = pairs.floats(slice(start, start + TOGETHER))
        overlap = 1 - changed_region(difference_map(after, before)).double().mean((1, 2))
        gain, lead = torch.full_like(overlap, torch.nan), torch.ones_like(overlap)
        if scorer is not None:
            near = clip_score(scorer, after, wanted.target) / 100
            gain = near - clip_score(scorer, before, wanted.target) / 100
            if wanted.source.strip():
                lead = near - clip_score(scorer, after, wanted.source) / 100
        figures.append(torch.stack([gain.cpu(), overlap.cpu(), lead.cpu()]))
        if callback is not None:
            callback(min(start + TOGETHER, len(pairs)), len(pairs))
    gains, overlaps, leads = torch.cat(figures, 1)
    kept = overlaps >= wanted.overlap
    if asked:
        kept &= (gains >= wanted.clip_gain) & (leads > 0)
    if not kept.any():
        raise EditingError(
            f"Not one of the {len(pairs)} pairs passes: the edits change too much or do not come nearer to the "
            "target's text; lower clip_gain and overlap, or edit more strongly."
        )
    return FilteredPairs(pairs.select(kept), kept, gains, overlaps, leads > 0)


@torch.no_grad()
def edited_region(before: Tensor, after: Tensor) -> Tensor:
    """Where ``after`` was edited, ``[B, 1, H, W]`` in 0..1 with soft edges; both ``[B, 3, H, W]`` in 0..1."""
    region = changed_region(difference_map(after, before))[:, None].float()
    reach = max(1, round(MARGIN * min(before.shape[-2:])))
    wide = functional.max_pool2d(region, 2 * reach + 1, stride=1, padding=reach)
    padded = functional.pad(wide, (reach,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * reach + 1, stride=1)


def only_edited(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """``(after, region)`` with ``after`` as ``before`` outside the edited region: what an autoencoder lost there on the
    way is nothing to learn."""
    region = edited_region(before, after)
    return torch.lerp(before, after, region.expand_as(before)), region

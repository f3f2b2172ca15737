"""Editing faces with a Delta Mapper (section 4.1, Eq. 4 and 7): differences of texts or of pictures move style codes.

The mapper is told unit differences. Which channels may move follows from the differences as they are, whose length
says how far two texts lie apart: so the published program computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import EditingError
from ..metrics.clip import SAME
from ..models.clip import ClipScorer, embed_pictures
from .mapper import DeltaMapper
from .relevance import Relevance
from .style_code import StyleCode
from .text import NONE, text_deltas

#: Share of the channels that an edit may move, where nothing else is asked for.
SHARE = 0.3
#: The paper's threshold tau of relevance.
THRESHOLD = 0.03
#: Edited faces that go through the mapper together.
CHUNK = 64


@dataclass(frozen=True)
class EditSettings:
    """How an edit is made.

    Attributes:
        strength: factor of the change; 0 changes nothing, below 0 the change is the opposite.
        share: of the channels that may move, 0..1: those whose relevance for the difference is greatest. 1: all.
        threshold: least relevance (tau) of a channel that may move, in place of the share; None: the share counts.
        subtract_idle: see :meth:`~.mapper.DeltaMapper.change`.
    """

    strength: float = 1.0
    share: float = SHARE
    threshold: float | None = None
    subtract_idle: bool = True

    def check(self) -> None:
        """Raise :class:`EditingError` for what cannot be edited with."""
        if not math.isfinite(self.strength):
            raise EditingError("The strength is not a number; use 1 for the edit as it was learned.")
        if not 0 <= self.share <= 1:
            raise EditingError(f"The share of channels is {self.share}; use 0 to 1.")
        if self.threshold is not None and not self.threshold >= 0:
            raise EditingError(f"The threshold of relevance is {self.threshold}; use 0 or more.")

    @property
    def masks(self) -> bool:
        """Whether some channels are to stay, if a relevance matrix says which."""
        return self.threshold is not None or self.share < 1


class Differences(NamedTuple):
    """What is to change: ``names`` of T targets, and ``rows [T, P]``, CLIP's unit features of the target less those of
    the source."""

    names: list[str]
    rows: Tensor


@dataclass(frozen=True, eq=False)
class DeltaEdit:
    """Faces after an edit; T targets of F faces, ordered by target, then by face.

    Attributes:
        code: ``[T * F]`` faces.
        names: of each of them, e.g. "face with glasses, face 2".
        differences: what was asked for.
        allowed: which channels each target might move, bool ``[T, S]``.
        masked: whether relevance decided that; otherwise all might.
        moved: how many channels of each level each face did move, ``[T * F, 3]``.
        length: of each change, ``[T * F]``, as a share of the length of the face's code.
    """

    code: StyleCode
    names: list[str]
    differences: Differences
    allowed: Tensor
    masked: bool
    moved: Tensor
    length: Tensor


@torch.no_grad()
def delta_edit(
    mapper: DeltaMapper,
    code: StyleCode,
    image_features: Tensor,
    differences: Differences,
    settings: EditSettings | None = None,
    relevance: Relevance | None = None,
    clip: str = "",
    callback: Callable[[int, int], None] | None = None,
) -> DeltaEdit:
    """Edit F faces towards T targets: ``s + strength * mask * DeltaMapper(s, i, difference)`` for each pair of them.

    A difference of zero (source and target say the same) leaves a face as it is, to the bit.

    Args:
        code: the faces.
        image_features: unit features of their pictures ``[F, P]``, or ``[1, P]`` for all.
        relevance: which channels matter for what; None: the mapper's own, and where it has none, all channels may move.
        clip: identity of the CLIP that all features are from.
        callback: told ``(edits done, edits)``.

    Raises:
        EditingError: a generator, CLIP or matrix that is not the mapper's, or values that are not numbers.
    """
    settings = settings or EditSettings()
    settings.check()
    rows, faces, width = differences.rows, len(code), differences.rows.shape[1]
    relevance = relevance or mapper.relevance
    mapper.check(code, clip, width)
    if len(image_features) not in (1, faces) or image_features.shape[1] != width:
        raise EditingError(
            f"There are {len(image_features)} pictures for {faces} faces; wire one for each face, or one for all."
        )
    if settings.threshold is not None and relevance is None:
        raise EditingError(
            "A threshold of relevance needs a relevance matrix, which this mapper has not; wire one or choose its file."
        )
    if not (code.convs.isfinite().all() and image_features.isfinite().all() and rows.isfinite().all()):
        raise EditingError("The style code or CLIP's features hold values that are not numbers; make them again.")
    masked = settings.masks and relevance is not None
    allowed = torch.ones(len(rows), code.layout.width, dtype=torch.bool)
    if masked and relevance is not None:
        relevance.check(code, clip, width)
        tau = settings.threshold
        allowed = relevance.most(rows, settings.share) if tau is None else relevance.above(rows, tau)

    before = code.convs.repeat(len(rows), 1)
    features = image_features.expand(faces, -1).repeat(len(rows), 1)
    wanted, channels = rows.repeat_interleave(faces, 0), allowed.repeat_interleave(faces, 0)
    changes = []
    device = mapper.mean.device  # a host may have moved the mapper
    for part in torch.arange(len(before)).split(CHUNK):
        styles, seen, way = (tensor[part].to(device) for tensor in (before, features, wanted))
        changes.append(mapper.change(styles, seen, way, settings.subtract_idle).to(before.device))
        if callback is not None:
            callback(int(part[-1]) + 1, len(before))
    change = torch.where(channels, settings.strength * torch.cat(changes), 0.0)
    after = before + change
    if not after.isfinite().all():
        raise EditingError("The edit is too strong for any number; lower the strength.")

    repeated = [index for _ in rows for index in range(faces)]
    edited = StyleCode(code.layout, after, code.rgbs[repeated], code.generator, facts=code.facts)
    moved = torch.stack([(part != 0).sum(1) for part in change.split(code.layout.level_widths, 1)], 1)
    length = change.norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)
    names = [f"{name}, face {face + 1}" if faces > 1 else name for name in differences.names for face in range(faces)]
    return DeltaEdit(edited, names, differences, allowed, masked, moved, length)


def differences_of_texts(scorer: ClipScorer, source: str, targets: str, templates: str = NONE) -> Differences:
    """From a source text to each line of ``targets``, see :func:`~.text.text_deltas`."""
    found = text_deltas(scorer, source, targets, templates)
    return Differences(found.names, found.difference)


def differences_of_pictures(scorer: ClipScorer, sources: Tensor, targets: Tensor, preprocessing: str) -> Differences:
    """From each picture of ``sources [A, 3, H, W]`` to the one of ``targets [B, 3, h, w]``; either may be one for all
    (section 5.5.2).

    Raises:
        EditingError: two batches that do not match.
    """
    if len(sources) != len(targets) and 1 not in (len(sources), len(targets)):
        raise EditingError(
            f"There are {len(sources)} pictures to start from and {len(targets)} to go to; wire equally many, or one."
        )
    start, end = (features_of(scorer, pictures, preprocessing) for pictures in (sources, targets))
    rows = without_rounding(end - start)
    names = ["the pair of pictures"] if len(rows) == 1 else [f"pair {number + 1}" for number in range(len(rows))]
    return Differences(names, rows)


def features_of(
    scorer: ClipScorer, pictures: Tensor, preprocessing: str, callback: Callable[[int], None] | None = None
) -> Tensor:
    """Unit features ``[B, P]`` of ``pictures [B, 3, H, W]`` in 0..1, on the CPU.

    Args:
        preprocessing: the mapper's, see :attr:`~.mapper.DeltaMapper.preprocessing`.
    """
    return embed_pictures(scorer, pictures.split(1), preprocessing, callback=callback)


def without_rounding(differences: Tensor) -> Tensor:
    """Differences ``[T, P]`` of unit features; exactly zero where the two are the same to CLIP. Rounding, made unit
    length, would be an edit of full strength to nowhere."""
    return torch.where(differences.norm(dim=1, keepdim=True) >= SAME, differences, torch.zeros_like(differences))

"""Several edits at once, each in a place of its own, after LEDITS++ (Brack et al. 2023, arXiv 2311.16711) and SEGA
(arXiv 2301.12247).

Each edit is a few words, alone or behind a context that all share. How its prediction differs from that of the context
(or of an empty prompt) is added to the source's own, scaled, where it differs most and, if wanted, where its words are
looked at; everywhere else the source stays. The source is held by the inversion's trajectory, where LEDITS++ keeps the
noise of a stochastic inversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention.capture import apply_maps, attention_maps
from ..attention.site import Kind, Site
from ..attention.store import Parts
from ..denoiser import check_finite
from ..errors import EditingError
from .attended import AttendedPlaces
from .engine import CROSS, Engine, EngineSettings, MakeControl, check_share, latent_size
from .words import ReadPrompt

#: Branches of an evaluation before those of the edits: the source's text and the context alone, at the edit's latent.
SOURCE, EMPTY, FIRST_EDIT = 0, 1, 2
#: Strengths that differ by so small a share are one.
SAME = 1e-5


@dataclass(frozen=True)
class SemanticEdit:
    """One edit.

    Attributes:
        text: its words.
        scale: how strongly it is added; negative takes away.
        threshold: share of the picture, 0 to 1, that it leaves alone; None is the settings'.

    Raises:
        EditingError: a value out of range.
    """

    text: str
    scale: float = 3.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not abs(self.scale) < float("inf"):
            raise EditingError(f"The scale of {self.text!r} is {self.scale:g}; use a number, usually 1 to 10.")
        if self.threshold is not None:
            check_share(f"The threshold of {self.text!r}", self.threshold)


def parse_edits(text: str, scale: float = SemanticEdit.scale) -> list[SemanticEdit]:
    """Edits of a text, one a line: "wearing glasses", "red hair: 4", "-beard", "hat: 6 @ 0.9".

    A number after ":" is the scale, one after "@" the threshold, a leading "-" takes away.

    Raises:
        EditingError: no edit, or a line of another form.
    """
    edits = []
    for line in filter(None, map(str.strip, text.splitlines())):
        words, _, threshold = line.partition("@")
        words, _, number = words.partition(":")
        away, words = words.strip().startswith("-"), words.strip().removeprefix("-").strip()
        try:
            strength = float(number) if number.strip() else scale
            share = float(threshold) if threshold.strip() else None
        except ValueError:
            words = ""
        if not words:
            raise EditingError(
                f"The line {line!r} is no edit; write its words, e.g. 'red hair', 'red hair: 4', '-beard' or "
                "'hat: 6 @ 0.9'."
            )
        edits.append(SemanticEdit(words, -strength if away else strength, share))
    if not edits:
        raise EditingError("There are no edits; write one a line, e.g. 'wearing glasses' or '-beard'.")
    return edits


@dataclass(frozen=True)
class SemanticSettings(EngineSettings):
    """Settings of all edits.

    Attributes:
        threshold: share of the picture, 0 to 1, that an edit leaves alone.
        start: share of the steps, from the noisy end, before the edits begin; until then the source is followed for
            nothing.
        attention: whether an edit is also kept to where its words are looked at (LEDITS++); off as it suits the demo
            model, whose maps are 8 places wide.
        cfg: not used.
    """

    threshold: float = 0.8
    start: float = 0.1
    attention: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("threshold", self.threshold)
        check_share("start", self.start)


class _Looking:
    """Adds the cross-attention maps of the edits' words to their places; the output is the layer's own."""

    kinds: tuple[Kind, ...] = CROSS

    def __init__(self, places: Sequence[AttendedPlaces], largest: int):
        self.places, self.largest = places, largest
        self._parts = Parts()

    def wants(self, site: Site) -> bool:
        return site.kind == "cross" and site.block != "mid" and max(site.resolution) <= self.largest

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        outs = []
        for key, part in self._parts.split(q, k, v, site):
            number = key[2] - FIRST_EDIT
            if not 0 <= number < len(self.places):
                outs.append(site.attend(*part))
                continue
            maps = attention_maps(part.q, part.k)
            self.places[number].add(maps, site, target=False)
            outs.append(apply_maps(maps, part.v))
        return torch.cat([out.to(q.dtype) for out in outs])


@dataclass
class SemanticGuidance(Engine):
    """The edits, step by step; ``target_cond`` is not used, ``uncond`` is the context alone, or an empty prompt.

    Attributes:
        edits: what is to change.
        edit_conds: conditioning of each edit's words.
        tokens: positions of each edit's words in its conditioning.
    """

    settings: SemanticSettings = field(default_factory=SemanticSettings)
    edits: Sequence[SemanticEdit] = ()
    edit_conds: Sequence[Any] = ()
    tokens: Sequence[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.edits) == len(self.edit_conds) == len(self.tokens):
            raise EditingError("Give each edit its conditioning and the positions of its words.")
        self._places = [AttendedPlaces((tokens, ())) for tokens in self.tokens]

    def controls(self, level: int) -> MakeControl | None:
        """Nothing is taken from the source's attention."""
        return None

    @property
    def takes(self) -> bool:
        """Whether the source's prediction is needed to stay with it."""
        return bool(self.edits)

    def on_source(self, level: int) -> bool:
        """Before the edits begin, the source's own steps."""
        return self.within(self.settings.start, level) or not self.edits

    def _edited(self, x: Tensor, level: int) -> Tensor:
        if self.on_source(level):
            return self._landing(x, self._source(x, level - 1), level)
        with torch.no_grad():
            sigma, largest = self._levels(level)[0], max(latent_size(self.inversion)) // 2
            conds = [self.source_cond, self.uncond, *self.edit_conds]
            latents = [x] * len(conds)
            if self.shifts:
                conds, latents = [*conds, self.source_cond], [*latents, self._source(x, level)]
            control = _Looking(self._places, max(1, largest)) if self.settings.attention else None
            predictions = self.denoiser.batch(latents, sigma, conds, control=control)
            denoised = self._combined(x, sigma, predictions[:1], conds[:1])
            for number, edit in enumerate(self.edits):
                difference = predictions[FIRST_EDIT + number] - predictions[EMPTY]
                denoised = denoised + edit.scale * self._where(difference, number) * difference
            if self.shifts:
                alone = self._combined(latents[-1], sigma, predictions[-1:], conds[-1:])
                denoised = denoised + self._stored_shift(alone, level)
        check_finite(denoised, f"The prediction at step {self.inversion.steps - level + 1}")
        return denoised

    def _where(self, difference: Tensor, number: int) -> Tensor:
        """``[B, 1, h, w]`` of 0 and 1: where an edit acts."""
        own = self.edits[number].threshold
        threshold = self.settings.threshold if own is None else own
        strength = difference.abs().sum(1, keepdim=True).float()
        places = self._places[number].places(latent_size(self.inversion)) if self.settings.attention else None
        if places is not None:
            strength = strength * _above(places, threshold)
        return _above(strength, threshold).to(difference)


def _above(values: Tensor, threshold: float) -> Tensor:
    """Where ``values [B, 1, h, w]`` are at least their own quantile and not 0; everywhere for a threshold of 0.

    Attended places are widened to plateaus of one value, whose last bits differ; a plateau is taken whole or left.
    """
    if threshold == 0:
        return torch.ones_like(values)
    level = values.flatten(1).quantile(threshold, dim=1).view(-1, 1, 1, 1)
    return ((values >= level * (1 - SAME)) & (values > 0)).float()


def in_context(edits: Sequence[SemanticEdit], context: str) -> list[str]:
    """The text of each edit behind a context, from which it is told apart: "a photo of a cat, with a hat"."""
    start = context.strip().rstrip(",").rstrip()
    return [f"{start}, {edit.text}" if start else edit.text for edit in edits]


def edit_words(edits: Sequence[SemanticEdit], read: ReadPrompt, context: str = "") -> list[tuple[int, ...]]:
    """Positions of the words of each edit in the conditioning of its text (:func:`in_context`)."""
    return [read(text).find(read(edit.text)) for edit, text in zip(edits, in_context(edits, context), strict=True)]

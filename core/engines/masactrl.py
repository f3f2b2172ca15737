"""MasaCtrl (Cao et al. 2023, arXiv 2304.08465): the edit looks at the source's picture with its own layout.

From some step and layer on the edit's self-attention takes keys and values from the source, so that its new shape is
filled with the source's textures. With words given, foreground looks at foreground only, and background at background
(the paper's mask-guided variant).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.capture import apply_maps, attention_maps
from ..attention.site import Site
from ..attention.store import InjectAttention, PartKey, Projections
from ..errors import EditingError
from .attended import AttendedPlaces, require_one_text
from .engine import Engine, EngineSettings, MakeControl, check_share, chosen
from .words import ReadPrompt, places_of

#: Of start_layer: the decoder's layers finer than its coarsest, the paper's 10 to 15 of SD1's 16.
FINE_DECODER = -1


@dataclass(frozen=True)
class MasaCtrlSettings(EngineSettings):
    """When and where the edit looks at the source.

    Attributes:
        start_step: share of the steps, from the noisy end, that are the edit's own before it looks (the paper's 4 of
            50).
        start_layer: number of the first self-attention layer that looks, from 0 in network order; -1 is the decoder
            above its coarsest resolution, in SD1 the paper's 10, in SDXL 64.
        threshold: share of the highest attention from which a place counts as foreground.

    Raises:
        EditingError: a value out of range.
    """

    start_step: float = 0.1
    start_layer: int = FINE_DECODER
    threshold: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_step", "threshold"):
            check_share(name, getattr(self, name))
        if self.start_layer < FINE_DECODER:
            raise EditingError(f"start_layer is {self.start_layer}; use -1 for the paper's, or a layer from 0 on.")


class _Layers:
    """Which self-attention layers look at the source, told site by site in network order."""

    def __init__(self, start_layer: int, words: bool):
        self.start_layer, self.words = start_layer, words
        self.coarsest: tuple[int, int] | None = None

    def __call__(self, site: Site) -> bool:
        if site.kind == "cross":
            return self.words and site.block != "mid"
        if self.start_layer != FINE_DECODER:
            return site.index >= self.start_layer
        if site.block != "up":
            return False
        self.coarsest = self.coarsest or site.resolution
        return site.resolution > self.coarsest


def foreground_places(
    words: str, source: str, target: str, read: ReadPrompt
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions in both texts of the foreground's ``words``, parted by commas; both empty where there are none.

    Raises:
        EditingError: no source text, words that are not there, none of them in one of the texts.
    """
    if not words.strip():
        return (), ()
    before, after = read(source), read(target)
    places = places_of(words, before, after, read)
    if not all(places):
        lacking = "source" if not places[0] else "target"
        raise EditingError(f"None of the foreground's words is in the {lacking} text; name one of that text as well.")
    return places


@dataclass
class MasaCtrl(Engine):
    """The edit, step by step; see :class:`~.engine.Engine`.

    Attributes:
        foreground: positions of the words of the foreground in the source and the target; both empty: no mask.
    """

    settings: MasaCtrlSettings = field(default_factory=MasaCtrlSettings)
    foreground: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def __post_init__(self) -> None:
        super().__post_init__()
        words = all(self.foreground)
        self._control: InjectAttention | None = None
        self._places = AttendedPlaces(self.foreground, self.settings.threshold) if words else None

    def looks(self, level: int) -> bool:
        """Whether the step from ``level`` looks at the source."""
        steps = self.inversion.steps
        return steps - level >= round(self.settings.start_step * steps)

    def controls(self, level: int) -> MakeControl | None:
        """Keys and values of the source, in every branch; before the start step only the words' places are found."""
        looks, words = self.looks(level), self._places is not None
        kinds = chosen(looks, words)
        if not kinds or not self.takes:
            return None

        def make(source: int, branches: int, kept: Any) -> InjectAttention:
            layers = _Layers(self.settings.start_layer, words)
            self._control = InjectAttention(source, branches, self._attend, kinds, layers, kept)
            return self._control

        return make

    def _edited(self, x: Tensor, level: int) -> Tensor:
        denoised = super()._edited(x, level)
        if self.looks(level) and self._control is not None and "self" not in self._control.shown:
            raise EditingError(
                f"This model has no self-attention at or behind start_layer {self.settings.start_layer}; use a smaller "
                "number from 0 on."
            )
        return denoised

    @property
    def takes(self) -> bool:
        """Whether any step looks at the source."""
        return self.looks(1)

    def _attend(self, mine: Projections, source: Projections, site: Site, key: PartKey) -> Tensor | None:
        if site.kind == "self":
            masks = self._masks(site)
            if masks is None:
                return site.attend(mine.q, source.k, source.v)
            theirs, own = masks
            front, back = (_masked(mine.q, source, where) for where in (theirs, ~theirs))
            return torch.where(own[:, None, :, None], front, back)
        if key[2] != 0 or self._places is None:
            return None
        require_one_text(key)
        theirs_maps, own_maps = attention_maps(source.q, source.k), attention_maps(mine.q, mine.k)
        self._places.add(theirs_maps, site, target=False)
        self._places.add(own_maps, site, target=True)
        return apply_maps(own_maps, mine.v)

    def _masks(self, site: Site) -> tuple[Tensor, Tensor] | None:
        """Foreground of source and target at a site, bool ``[B, N]``; None without words or before any is found."""
        if self._places is None:
            return None
        source, target = (self._places.mask(site.resolution, target=side) for side in (False, True))
        if source is None or target is None:
            return None
        return source.flatten(1).bool(), target.flatten(1).bool()


def _masked(q: Tensor, source: Projections, where: Tensor) -> Tensor:
    """Attention of ``q`` to the source's places in ``where [B, N]``; to all of them where there are none."""
    where = where | ~where.any(1, keepdim=True)
    return functional.scaled_dot_product_attention(q, source.k, source.v, attn_mask=where[:, None, None, :])

"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626): the edit attends as the source does.

Cross-attention: tokens that both prompts have take the source's maps (refine), words that replace others may take over
theirs (replace), any word may be weighted. Self-attention: the source's queries and keys, which hold the layout. Local
blend keeps the source wherever neither prompt's chosen words are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..attention.capture import apply_maps, attention_maps
from ..attention.site import Site
from ..attention.store import InjectAttention, PartKey, Projections
from ..errors import EditingError
from .attended import AttendedPlaces, require_one_text
from .engine import Engine, EngineSettings, MakeControl, check_share, chosen, latent_size
from .words import Alignment, ReadPrompt, align, places_of, word_factors

Mode = Literal["refine", "replace"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class PromptToPromptSettings(EngineSettings):
    """How much of the source's attention is used, and for how long.

    Attributes:
        cross_fraction: share of the steps, from the noisy end, on which the source's cross-attention maps are used.
        self_fraction: the same of its self-attention.
        mode: "refine": changed words keep their own maps; "replace": they take over those of the words whose place
            they have.
        blend_threshold: share of the highest attention from which a place counts as attended, for local blend.
        blend_start: share of the steps before local blend begins.

    Raises:
        EditingError: a value out of range.
    """

    cross_fraction: float = 0.8
    self_fraction: float = 0.6
    mode: Mode = "refine"
    blend_threshold: float = 0.3
    blend_start: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cross_fraction", "self_fraction", "blend_threshold", "blend_start"):
            check_share(name, getattr(self, name))
        if self.mode not in MODES:
            raise EditingError(f"There is no mode {self.mode!r}; use one of {', '.join(MODES)}.")


@dataclass(frozen=True, eq=False)
class WordMap:
    """What the edit does with each token; see :func:`word_map`.

    Attributes:
        alignment: from the source's tokens to the target's.
        factors: ``[L]`` of the target's tokens, or None.
        blend: positions of the words of local blend in both prompts; both empty: no local blend.
    """

    alignment: Alignment
    factors: Tensor | None = None
    blend: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


def released_spdinv() -> PromptToPromptSettings:
    """Settings of the editing engine in SPDInv's released code, beside what its paper says.

    Its quantile of 0.7 runs over the source's differences too, which are all 0 where the negative is the source prompt:
    of the target's alone it is 0.4. Words of local blend that the target has weigh twice (:func:`released_words`).
    """
    return PromptToPromptSettings(
        7.5, False, 0.8, 0.6, "refine", 0.3, 0.2, proximal=0.4, background_keep=0.4, by_guidance=True
    )


def released_words(words: WordMap) -> WordMap:
    """``words`` with the factor 2 on the target's words of local blend, where no factors are given."""
    if words.factors is not None or not words.blend[1]:
        return words
    factors = torch.ones(len(words.alignment.taken))
    factors[list(words.blend[1])] = 2.0
    return replace(words, factors=factors)


def word_map(
    source: str, target: str, read: ReadPrompt, mode: Mode = "refine", word_weights: str = "", blend_words: str = ""
) -> WordMap:
    """The map of two texts.

    Args:
        read: reads a text as the model's tokenizer does.
        word_weights: factors of the target's words, "glasses: 2, hair: 0.5".
        blend_words: words of either text, parted by commas; outside of where they are looked at the source stays.

    Raises:
        EditingError: no source text, words that are not there, texts of different lengths.
    """
    before, after = read(source), read(target)
    if not before.words or not after.words:
        raise EditingError(
            "Prompt-to-Prompt needs both texts: write the prompt the image was inverted with and that of the edited "
            "image."
        )
    blend = places_of(blend_words, before, after, read)
    factors = word_factors(word_weights, after, read)
    return WordMap(align(before, after, mode == "replace"), factors, blend)


@dataclass
class PromptToPrompt(Engine):
    """The edit, step by step; see :class:`~.engine.Engine`.

    Attributes:
        words: what the edit does with each token.

    Raises:
        EditingError: besides, conditionings of several parts, or of other lengths than the texts.
    """

    settings: PromptToPromptSettings = field(default_factory=PromptToPromptSettings)
    words: WordMap | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words is None:
            raise EditingError("Prompt-to-Prompt needs both texts; make a map of them with word_map.")
        self._words = self.words
        blends = any(self._words.blend)
        self._places = AttendedPlaces(self._words.blend, self.settings.blend_threshold) if blends else None

    def controls(self, level: int) -> MakeControl | None:
        """Cross- and self-attention of the target, each for its share of the steps."""
        cross = self.within(self.settings.cross_fraction, level)
        own = self.within(self.settings.self_fraction, level)
        kinds = chosen(own, cross)
        if not kinds:
            return None

        def make(source: int, branches: int, kept: Any) -> InjectAttention:
            return InjectAttention(source, branches, self._attend, kinds, kept=kept)

        return make

    def mask_at(self, level: int) -> Tensor | None:
        """What every engine keeps, and where local blend found its words."""
        others = super().mask_at(level)
        if self._places is None or self.within(self.settings.blend_start, level):
            return others
        found = self._places.mask(latent_size(self.inversion))
        if found is None:
            return others
        return found if others is None else found * others.to(found)

    def _attend(self, mine: Projections, source: Projections, site: Site, key: PartKey) -> Tensor | None:
        if key[2] != 0:
            return None
        if site.kind == "self":
            return site.attend(source.q, source.k, mine.v)
        require_one_text(key)
        if mine.k.shape != source.k.shape or mine.k.shape[-2] < len(self._words.alignment.taken):
            raise EditingError(
                f"The source conditioning is {source.k.shape[-2]} tokens long, the target's {mine.k.shape[-2]} and the "
                f"texts {len(self._words.alignment.taken)}; wire conditionings of these very texts, or none."
            )
        theirs, own = attention_maps(source.q, source.k), attention_maps(mine.q, mine.k)
        if self._places is not None:
            self._places.add(theirs, site, target=False)
            self._places.add(own, site, target=True)
        maps = self._words.alignment.edited(theirs, own)
        if self._words.factors is not None:
            length = len(self._words.factors)
            factors = self._words.factors.to(maps).repeat(maps.shape[-1] // length)
            maps[..., : len(factors)] *= factors
        return apply_maps(maps, mine.v)

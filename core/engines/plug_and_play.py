"""Plug-and-Play (Tumanyan et al. 2022, arXiv 2211.12572): the edit has the source's features and self-attention.

Early in the decoder what one residual block puts out is the source's, and the self-attention of the decoder has the
source's queries and keys; colours and textures follow the target's text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..attention.features import InjectFeatures, StoreFeatures
from ..attention.site import FeatureSite, Kind, Site
from ..attention.store import InjectAttention, PartKey, Projections, StoreAttention
from ..errors import EditingError
from .engine import Engine, EngineSettings, MakeControl, check_share


@dataclass(frozen=True)
class PlugAndPlaySettings(EngineSettings):
    """How much of the source is plugged in, and for how long.

    Attributes:
        feature_fraction: share of the steps, from the noisy end, on which the residual block puts out what the
            source's does (the paper's 0.8).
        attention_fraction: the same of the self-attention's queries and keys (the paper's 0.5).
        feature_block: number of the decoder's residual block, from 0 in network order; -1 is the one under the second
            transformer of the decoder, in SD1 the paper's 4.

    Raises:
        EditingError: a value out of range.
    """

    feature_fraction: float = 0.8
    attention_fraction: float = 0.5
    feature_block: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("feature_fraction", self.feature_fraction)
        check_share("attention_fraction", self.attention_fraction)
        if self.feature_block < -1:
            raise EditingError(f"feature_block is {self.feature_block}; use -1 for the paper's, or a block from 0 on.")


class _Block:
    """Which residual block is the source's, told site by site in network order."""

    def __init__(self, number: int, on: bool):
        self.number, self.on = number, on
        self.attending: list[int] = []

    def __call__(self, site: FeatureSite) -> bool:
        if not self.on or site.block != "up":
            return False
        if self.number >= 0:
            return site.index == self.number
        if site.attends and site.index not in self.attending:  # a host may show all sites again
            self.attending.append(site.index)
        return site.index in self.attending[1:2]


class _Layers:
    """The self-attention of the decoder but its first layer, as in the published code."""

    def __init__(self) -> None:
        self.first: int | None = None

    def __call__(self, site: Site) -> bool:
        if site.block != "up":
            return False
        self.first = site.index if self.first is None else self.first
        return site.index > self.first


class _PlugAndPlay(InjectFeatures):
    """Features and attention of one evaluation; a control of both kinds."""

    def __init__(self, source: int, branches: int, number: int, kinds: list[Kind], features: bool, kept: Any):
        named = kept or {}
        own = None if kept is None else {key: part for key, part in named.items() if key[0] != "self"}
        super().__init__(source, _Block(number, features), own)
        attention = None if kept is None else {key: part for key, part in named.items() if key[0] == "self"}
        self.attention = InjectAttention(source, branches, _queries_and_keys, kinds, _Layers(), attention)
        self.kinds = tuple(kinds)
        self._again = number, kinds, features

    def wants(self, site: Site) -> bool:
        """See :class:`InjectAttention`."""
        return self.attention.wants(site)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """See :class:`InjectAttention`."""
        return self.attention(q, k, v, site)

    def storing(self) -> _Storing:
        """What keeps of the source all that this takes."""
        return _Storing(*self._again)


class _Storing(StoreFeatures):
    """Keeps features and attention of one evaluation."""

    def __init__(self, number: int, kinds: list[Kind], features: bool):
        super().__init__(_Block(number, features))
        self.kinds = tuple(kinds)
        self.attention = StoreAttention("qkv", kinds, _Layers())
        self.attention.kept = self.kept  # type: ignore[assignment]  # one dictionary: their keys differ in the first part

    def wants(self, site: Site) -> bool:
        """See :class:`StoreAttention`."""
        return self.attention.wants(site)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """See :class:`StoreAttention`."""
        return self.attention(q, k, v, site)


def _queries_and_keys(mine: Projections, source: Projections, site: Site, key: PartKey) -> Tensor:
    return site.attend(source.q, source.k, mine.v)


@dataclass
class PlugAndPlay(Engine):
    """The edit, step by step; see :class:`~.engine.Engine`."""

    settings: PlugAndPlaySettings = field(default_factory=PlugAndPlaySettings)

    def controls(self, level: int) -> MakeControl | None:
        """Features and self-attention in every branch, each for its share of the steps."""
        features = self.within(self.settings.feature_fraction, level)
        kinds: list[Kind] = ["self"] if self.within(self.settings.attention_fraction, level) else []
        if not features and not kinds:
            return None
        number = self.settings.feature_block
        return lambda source, branches, kept: _PlugAndPlay(source, branches, number, kinds, features, kept)

"""How a region search is to be done (:class:`StrategySettings`), and what it reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import EditingError
from .ranking import Choice

Strategy = Literal["exact", "halving"]
STRATEGIES: tuple[Strategy, ...] = ("exact", "halving")


@dataclass(frozen=True)
class StrategySettings:
    """How to search.

    Attributes:
        strategy: one of :data:`STRATEGIES`.
        share: "halving": at most this part of the evaluations that "exact" takes, see
            :func:`~.strategies.halving_plan`.
        rungs, keep: "halving": rounds of screening at most, and the part of the boxes (the best) that survives each.
        choice: who may be best, see :func:`~.ranking.rank`.
        refine: with the choice "tightest", whether the sides of the best box are moved in the end, see
            :func:`~.ranking.refine`.
        seed: of the renders.
    """

    strategy: Strategy = "exact"
    share: float = 0.25
    rungs: int = 2
    keep: float = 1 / 3
    choice: Choice = "anchors"
    refine: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise EditingError(f"The strategy {self.strategy!r} is unknown; use one of: {', '.join(STRATEGIES)}.")
        if self.rungs < 1:
            raise EditingError(f"rungs is {self.rungs}; use 1 or more.")
        for name in ("keep", "share"):
            if not 0 < getattr(self, name) <= 1:
                raise EditingError(f"{name} is {getattr(self, name):g}; use a part above 0 and at most 1.")


@dataclass(frozen=True)
class StrategyProgress:
    """What the callback is told after each box that was looked at: ``done`` of ``total`` by renders of this quality,
    and the box's loss."""

    quality: Literal["screen", "full"]
    done: int
    total: int
    loss: float

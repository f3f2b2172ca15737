"""How a region search is to be done (:class:`LearningSettings`), and what it reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import EditingError
from .ranking import Choice

Strategy = Literal["exact", "sampled", "halving", "soft mask", "policy"]
STRATEGIES: tuple[Strategy, ...] = ("exact", "sampled", "halving", "soft mask", "policy")


@dataclass(frozen=True)
class LearningSettings:
    """How to search.

    Attributes:
        strategy: one of :data:`STRATEGIES`.
        epochs: passes over the images; each takes one Adam step an image.
        learning_rate: of Adam.
        budget: "sampled": different boxes of an image that may be rendered, cached ones included.
        draws: "sampled": boxes drawn for each anchor and step.
        share: "halving": at most this part of the evaluations that "exact" takes, see :func:`~.learning.halving_plan`.
        rungs, keep: "halving": rounds of screening at most, and the part of the boxes (the best) that survives each.
        choice: who may be best, see :func:`~.ranking.rank`.
        refine: with the choice "tightest", whether the sides of the best box are moved in the end, see
            :func:`~.ranking.refine`.
        seed: of the policy's draws.
    """

    strategy: Strategy = "exact"
    epochs: int = 60
    learning_rate: float = 3e-3
    budget: int = 32
    draws: int = 2
    share: float = 0.25
    rungs: int = 2
    keep: float = 1 / 3
    choice: Choice = "anchors"
    refine: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise EditingError(f"The strategy {self.strategy!r} is unknown; use one of: {', '.join(STRATEGIES)}.")
        for name, low in (("epochs", 0), ("budget", 1), ("draws", 2), ("rungs", 1)):
            if getattr(self, name) < low:
                raise EditingError(f"{name} is {getattr(self, name)}; use {low} or more.")
        if not 0 < self.learning_rate < float("inf"):
            raise EditingError(f"learning_rate is {self.learning_rate:g}; use a positive number, usually 0.003.")
        for name in ("keep", "share"):
            if not 0 < getattr(self, name) <= 1:
                raise EditingError(f"{name} is {getattr(self, name):g}; use a part above 0 and at most 1.")

    @classmethod
    def official(cls, strategy: Strategy = "exact", seed: int = 0) -> LearningSettings:
        """The paper's schedule (section 4): 5 epochs of Adam at 0.003."""
        return cls(strategy, epochs=5, learning_rate=3e-3, seed=seed)


@dataclass(frozen=True)
class LearningProgress:
    """What the callback is told after each box that was looked at (phase "screen" or "full") and each epoch ("learn").

    ``done`` of ``total`` boxes looked at or epochs; ``loss`` of the box, or the epoch's mean expected loss.
    """

    phase: Literal["screen", "full", "learn"]
    task: int
    done: int
    total: int
    loss: float

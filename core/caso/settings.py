"""What a training of semantic embeddings is told, and what it tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import EditingError
from ..token_vectors import MAX_TOKENS

#: Noise level of training as a fraction of the steps (section 4.1).
LEVELS = {"faces": 0.3, "others": 0.4}


@dataclass(frozen=True)
class TrainingSettings:
    """What to learn and how.

    Attributes:
        attribute, targets: of the classifier; one embedding is learned for each target class (the paper's K).
        steps, batch: steps in all and samples a step.
        learning_rate, weight_decay: of AdamW, on vectors measured in the token table's root mean square.
        cfg: guidance scale while learning.
        level: noise level L as a fraction of the model's steps, see :data:`LEVELS`.
        band: half the width of a band around L from which levels are drawn, 0 for L alone.
        reconstruction: weight gamma of the latent reconstruction; 0 turns it off.
        keep_others: weight of what the classifier sees of its *other* attributes: they must stay what they are without the
            embedding (ours, not the paper's); 0 turns it off. A classifier of one attribute has no others.
        tokens: vectors of each embedding.
        start_words: what learning starts from: the word for what changes ("hair"), not for how. It stands last of the vectors, those
            before it start neutral. Empty: all are neutral, as the paper's.
        bank: noises for each image; the unconditional prediction is evaluated once for each and kept, which is exact. 0 draws
            new noise every time and evaluates every time.
        augment, flip: strength of the random changes before the classifier, see :func:`~..classifiers.augment.augmented`.
        draft_fraction: share of the steps, from the first, for the draft decoder if there is one.
        check_every: steps between looks at the held pictures; 0 for the last step only.
        seed: of everything random.
    """

    attribute: str
    targets: tuple[str, ...]
    steps: int = 150
    batch: int = 4
    learning_rate: float = 0.05
    weight_decay: float = 0.01
    cfg: float = 10.0
    level: float = LEVELS["faces"]
    band: float = 0.0
    reconstruction: float = 1.0
    keep_others: float = 0.0
    tokens: int = 1
    bank: int = 2
    augment: float = 1.0
    flip: bool = True
    draft_fraction: float = 0.8
    check_every: int = 25
    seed: int = 0
    start_words: str = ""

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise EditingError(f"The target classes are {list(self.targets)}; give at least one, each once.")
        whole = {"steps": self.steps, "batch": self.batch, "tokens": self.tokens}
        for name, value in whole.items():
            if value < 1:
                raise EditingError(f"{name} is {value}; use 1 or more.")
        if self.tokens > MAX_TOKENS:
            raise EditingError(f"tokens is {self.tokens}; a prompt holds {MAX_TOKENS}.")
        if not 0 < self.level <= 1 or not 0 <= self.band < 1:
            raise EditingError(
                f"The noise level is {self.level:g} with band {self.band:g}; use fractions of the steps, usually 0.3 or 0.4 and 0."
            )
        for name in ("learning_rate", "cfg"):
            if not 0 < getattr(self, name) < float("inf"):
                raise EditingError(f"{name} is {getattr(self, name):g}; use a positive number.")
        for name in ("weight_decay", "reconstruction", "keep_others", "bank", "augment", "check_every"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise EditingError(f"{name} is {getattr(self, name):g}; use 0 (off) or a positive number.")


@dataclass(frozen=True, eq=False)
class HeldCheck:
    """How the embeddings do on pictures they were not learned from, without augmentation.

    ``images [K * H, 3, H', W']`` in 0..1, those of the first target class first, None where only the figures were saved;
    ``accuracy`` is the share classified as asked.
    """

    loss: float
    accuracy: float
    images: Tensor | None


@dataclass(frozen=True, eq=False)
class TrainingProgress:
    """What the callback is told after each step (0-based); ``accuracy`` is of the step's samples, ``held`` at checks only.

    ``loss`` is the weighted sum of ``classification``, ``reconstruction`` and ``others``, which are given unweighted.
    """

    step: int
    steps: int
    loss: float
    classification: float
    reconstruction: float
    others: float
    accuracy: float
    held: HeldCheck | None

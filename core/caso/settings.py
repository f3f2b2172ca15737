"""The settings of a training of semantic embeddings, recipes for kinds of attributes, and what each step reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import EditingError
from ..token_vectors import MAX_TOKENS

#: Noise level of training as a fraction of the steps (section 4.1).
LEVELS = {"faces": 0.3, "others": 0.4}
#: Fields of :class:`TrainingSettings` that files keep under another name: field -> name in the file.
STORED_NAMES = {
    "noise_level": "level",
    "noise_level_jitter": "band",
    "attribute_preservation": "keep_others",
    "noises_per_image": "bank",
}
#: Settings that older files lack, with the values that change nothing; files name them only where they are otherwise.
LATER = {"classification": 1.0, "contrast": 0.0, "contrast_scale": 0.005, "averaging": 0.0}


@dataclass(frozen=True)
class TrainingSettings:
    """What to learn and how.

    Attributes:
        attribute, targets: names of the classifier; one embedding is learned for each target class (the paper's K).
        steps, batch: number of steps, and samples in each.
        learning_rate, weight_decay: of AdamW. The learned vectors are measured in units of the token table's root mean
            square.
        cfg: guidance scale while learning.
        noise_level: noise level L as a fraction of the model's steps, see :data:`LEVELS`.
        noise_level_jitter: levels are drawn from ``noise_level`` plus or minus this; 0 always takes ``noise_level``.
        reconstruction: weight gamma of the latent reconstruction; 0 turns it off.
        attribute_preservation: weight of the loss that keeps the classifier's *other* attributes what they are without
            the embedding (ours, not the paper's); 0 turns it off. A classifier of one attribute has no others.
        tokens: vectors of each embedding.
        noises_per_image: how many noises each image gets in turn. The unconditional prediction is computed once for
            each and then remembered, which changes nothing in the result. 0 draws a new noise and computes it every
            time.
        augment, flip: strength of the random changes before the classifier, and whether half of the pictures are
            mirrored, see :func:`~..classifiers.augment.augmented`.
        draft_fraction: share of the steps, from the first, that use the draft decoder if there is one.
        check_every: steps from one validation to the next; 0 validates after the last step only.
        seed: of everything random.
        start_words: words to start from, which name what changes ("hair"), not how. They are the last of the vectors;
            those before them start neutral. Empty: all start neutral, as in the paper.
        classification: weight of the classifier's loss (Eq. 3); 0 learns without a classifier.
        contrast: weight of the contrast between pictures that have it and pictures that have it not (ours, see
            :func:`~.contrast.contrast_loss`), in place of a classifier; 0 turns it off, as in the paper's training,
            which needs no pictures that have it.
        contrast_scale: the gain at which a picture counts as told, in units of the latents' variance.
        averaging: the vectors that are looked at and kept are an exponential mean over the steps, of which each keeps
            this share; 0 takes the vectors as they are.

    Raises:
        EditingError: a value out of range.
    """

    attribute: str
    targets: tuple[str, ...]
    steps: int = 150
    batch: int = 4
    learning_rate: float = 0.05
    weight_decay: float = 0.01
    cfg: float = 10.0
    noise_level: float = LEVELS["faces"]
    noise_level_jitter: float = 0.0
    reconstruction: float = 1.0
    attribute_preservation: float = 0.0
    tokens: int = 1
    noises_per_image: int = 2
    augment: float = 1.0
    flip: bool = True
    draft_fraction: float = 0.8
    check_every: int = 25
    seed: int = 0
    start_words: str = ""
    classification: float = 1.0
    contrast: float = 0.0
    contrast_scale: float = 0.005
    averaging: float = 0.0

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise EditingError(f"The target classes are {list(self.targets)}; give at least one, each once.")
        for name in ("steps", "batch", "tokens"):
            if getattr(self, name) < 1:
                raise EditingError(f"{name} is {getattr(self, name)}; use 1 or more.")
        if self.tokens > MAX_TOKENS:
            raise EditingError(f"tokens is {self.tokens}; a prompt holds {MAX_TOKENS}.")
        if not 0 < self.noise_level <= 1 or not 0 <= self.noise_level_jitter < 1:
            raise EditingError(
                f"The noise level is {self.noise_level:g} with band {self.noise_level_jitter:g}; "
                "use fractions of the steps, usually 0.3 or 0.4 and 0."
            )
        for name in ("learning_rate", "cfg", "contrast_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise EditingError(f"{name} is {getattr(self, name):g}; use a positive number.")
        for name in (
            "weight_decay",
            "reconstruction",
            "attribute_preservation",
            "noises_per_image",
            "augment",
            "check_every",
            "classification",
            "contrast",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                shown = STORED_NAMES.get(name, name)  # the node's widget has this name, too
                raise EditingError(f"{shown} is {getattr(self, name):g}; use 0 (off) or a positive number.")
        if bool(self.classification) == self.shown:
            raise EditingError(
                "Either a classifier teaches or pictures do; give one weight, classification or contrast."
            )
        if not 0 <= self.averaging < 1:
            raise EditingError(f"averaging is {self.averaging:g}; use 0 (off) or a share below 1, usually 0.95.")
        if self.shown and len(self.targets) > 1:
            raise EditingError("From pictures that have it one class is learned at a time; name one target.")

    @property
    def shown(self) -> bool:
        """Whether pictures that have it teach."""
        return bool(self.contrast)

    def stored(self) -> dict[str, Any]:
        """The settings under the names that files keep, in their order."""
        return {
            STORED_NAMES.get(name, name): value
            for name, value in asdict(self).items()
            if name not in LATER or value != LATER[name]
        }


@dataclass(frozen=True)
class Kind:
    """What is measured to do well for a kind of attribute, in training and in the edits that follow.

    Attributes:
        noise_level, noise_level_jitter, contrast_scale: see :class:`TrainingSettings`.
        start: where the guided part of an edit begins, as a fraction of the trajectory.
        focus: share of the latent's elements that an edit guides.
        strength: of an edit.
    """

    noise_level: float
    noise_level_jitter: float
    contrast_scale: float
    start: float
    focus: float
    strength: float

    def settings(self, attribute: str, target: str, **changes: Any) -> TrainingSettings:
        """Learning from pictures that have it and pictures that have it not, with what ``changes`` says otherwise."""
        recipe = TrainingSettings(attribute, (target,), noise_level=self.noise_level, **FOLDERS)
        own = {"noise_level_jitter": self.noise_level_jitter, "contrast_scale": self.contrast_scale}
        return replace(recipe, **(own | changes))

    def paper(self, attribute: str, targets: tuple[str, ...], **changes: Any) -> TrainingSettings:
        """The paper's training, at the noise levels of this kind."""
        recipe = TrainingSettings(attribute, targets, noise_level=self.noise_level)
        return replace(recipe, **{"noise_level_jitter": self.noise_level_jitter, **changes})

    @property
    def edit(self) -> dict[str, float]:
        """How what is learned is used in edits, as its file keeps it."""
        return {"start": self.start, "focus": self.focus, "strength": self.strength}


#: What learning from two folders differs in from the paper's training.
FOLDERS: dict[str, Any] = {
    "steps": 200,
    "learning_rate": 0.03,
    "tokens": 2,
    "noises_per_image": 0,
    "check_every": 50,
    "averaging": 0.95,
    "classification": 0.0,
    "contrast": 1.0,
}
#: Small parts of a picture (a mouth), large ones (glasses, a beard), colours, and what changes the shape of all.
KINDS = {
    "fine": Kind(0.3, 0.15, 0.0015, 0.5, 0.03, 5.0),
    "large": Kind(0.3, 0.15, 0.0015, 0.5, 0.1, 4.0),
    "colour": Kind(0.5, 0.2, 0.02, 0.7, 0.1, 2.0),
    "species": Kind(0.7, 0.2, 0.02, 0.7, 0.2, 2.0),
}


@dataclass(frozen=True, eq=False)
class ValidationResult:
    """How the embeddings do on the validation pictures, which they were not learned from, without augmentation.

    Attributes:
        loss: mean over classes and pictures; what has the lowest is kept.
        accuracy: share of the edited pictures that the classifier puts into the target class, or in which the opinion
            of a real look (:class:`~.look.RealLook`) sees it.
        images: ``[K * V, 3, H, W]`` in 0..1, the V pictures of the first target class first; None where a file kept the
            figures only.
    """

    loss: float
    accuracy: float
    images: Tensor | None


@dataclass(frozen=True, eq=False)
class TrainingProgress:
    """What the callback is told after each step.

    Attributes:
        step: from 0.
        steps: in all.
        loss: weighted sum of ``classification``, ``reconstruction`` and ``others``, which are given unweighted.
        others: how much the classifier's other attributes changed.
        accuracy: share of the step's samples that the classifier puts into the target class; without a classifier the
            share that the embedding tells apart.
        contrast: see :class:`TrainingSettings`, unweighted; 0 where no pictures that have it teach.
        validation: after the steps that had one, else None.
    """

    step: int
    steps: int
    loss: float
    classification: float
    reconstruction: float
    others: float
    accuracy: float
    validation: ValidationResult | None
    contrast: float = 0.0

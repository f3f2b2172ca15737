"""CASO Training Settings: what of a training is rarely changed, in a node of its own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...core.caso.look import STEPS
from ...core.caso.settings import Kind, TrainingSettings
from ...core.classifiers.base import ImageClassifier, named
from ...core.errors import EditingError
from ...core.token_vectors import MAX_TOKENS
from ..common.inputs import seed_input
from ..host.schema import io, schema, widget
from .classifier_loader import names_in
from .embeddings import CATEGORY

#: Socket that carries a :class:`TrainingChoices`.
TrainingSettingsType = io.Custom("SEMEDIT_CASO_TRAINING_SETTINGS")
DEFAULTS = TrainingSettings("attribute", ("class",))
#: What teaches: pictures of both kinds, or a classifier as in the paper; auto: pictures where some have it.
LOSSES = ("auto", "pictures", "classifier")


@dataclass(frozen=True)
class TrainingChoices:
    """The node's widgets; see their tooltips. 0 (-1 where 0 means something) leaves a value to kind and loss."""

    loss: str = "auto"
    steps: int = 0
    batch_size: int = DEFAULTS.batch
    seed: int = 0
    tokens: int = 0
    learning_rate: float = 0.0
    cfg: float = 0.0
    noise_level: float = 0.0
    band: float = -1.0
    attribute: str = ""
    reconstruction: float = DEFAULTS.reconstruction
    keep_others: float = DEFAULTS.attribute_preservation
    bank: int = -1
    augmentation: float = DEFAULTS.augment
    flip: bool = DEFAULTS.flip
    held_out: int = 16
    check_every: int = -1
    look_strength: float = 0.0
    look_steps: int = STEPS
    checkpointing: bool = True
    targets: str = ""
    image_size: int = 0

    def taught_by(self, having: bool, classifier: bool) -> str:
        """``loss`` without "auto".

        Args:
            having: whether there are pictures that have it.
            classifier: whether a classifier is wired.

        Raises:
            EditingError: what it needs is missing.
        """
        loss = ("pictures" if having else "classifier") if self.loss == "auto" else self.loss
        if loss == "pictures" and not having:
            raise EditingError(
                "There are no pictures that have it; choose having_folder or wire having, or set loss to classifier."
            )
        if loss == "classifier" and not classifier:
            raise EditingError(
                "There is nothing to learn from: wire attribute_classifier, or choose having_folder with loss auto."
            )
        return loss

    def settings(
        self, loss: str, kind: Kind, targets: tuple[str, ...], start_words: str, classifier: ImageClassifier | None
    ) -> TrainingSettings:
        """The settings of a training of ``kind``.

        Args:
            loss: of :meth:`taught_by`.
            targets: classes to learn; the classifier's names, where it teaches.

        Raises:
            EditingError: a value out of range, or a class that the classifier does not know.
        """
        changes: dict[str, Any] = {
            "batch": self.batch_size,
            "seed": self.seed,
            "reconstruction": self.reconstruction,
            "attribute_preservation": self.keep_others,
            "augment": self.augmentation,
            "flip": self.flip,
            "start_words": start_words.strip(),
        }
        for name, value, untouched in (
            ("steps", self.steps, 0),
            ("tokens", self.tokens, 0),
            ("learning_rate", self.learning_rate, 0),
            ("cfg", self.cfg, 0),
            ("noise_level", self.noise_level, 0),
            ("noise_level_jitter", self.band, -1),
            ("noises_per_image", self.bank, -1),
            ("check_every", self.check_every, -1),
        ):
            if value != untouched:
                changes[name] = value
        attribute = self.attribute.strip()
        if loss != "pictures" and classifier is not None:
            attribute = chosen_attribute(classifier, attribute)
            targets = tuple(classifier.classes_in(attribute, ", ".join(targets)))  # refuses one that it does not know
        if loss == "classifier":
            return kind.paper(attribute, targets, **changes)
        if len(targets) != 1:
            raise EditingError("From pictures that have it one class is learned at a time; name one target.")
        return kind.settings(attribute or targets[0], targets[0], **changes)


def chosen_attribute(classifier: ImageClassifier, attribute: str) -> str:
    """The attribute asked for, or the only one of the classifier when none is.

    Raises:
        EditingError: none, and there are several.
    """
    if not attribute and len(classifier.heads) > 1:
        raise EditingError(
            "The classifier knows several attributes; write one of them into attribute of CASO Training Settings: "
            f"{named(list(classifier.heads))}."
        )
    return attribute or next(iter(classifier.heads))


def target_names(text: str) -> tuple[str, ...]:
    """Classes in a widget, separated by commas."""
    return tuple(names_in(text))


class CASOTrainingSettings(io.ComfyNode):
    """All of CASO's training that the trainer itself does not ask for."""

    @classmethod
    def define_schema(cls) -> Any:
        """Widgets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        given = TrainingChoices()
        return schema(
            node_id="SemEdit_CASOTrainingSettings",
            display_name="CASO Training Settings",
            category=CATEGORY,
            description="Changes how CASO Embedding Trainer learns. Leave it out for the measured recipes; a value "
            "left at 0 (or -1) is the recipe's.",
            search_aliases=["caso settings", "textual inversion settings", "learning rate", "training options"],
            inputs=[
                widget(
                    io.Combo,
                    "loss",
                    options=list(LOSSES),
                    default=given.loss,
                    tooltip="What teaches. pictures: those that have it against those that have it not. classifier: as "
                    "in the paper. auto: pictures, or classifier where none have it.",
                ),
                widget(
                    io.Int,
                    "steps",
                    default=given.steps,
                    min=0,
                    max=100_000,
                    tooltip="Steps of learning; 0: 200, or 150 for a classifier alone. 100 to 300 is usual.",
                ),
                widget(
                    io.Int,
                    "batch_size",
                    default=given.batch_size,
                    min=1,
                    max=64,
                    tooltip="Pictures of each kind in one step. Lower it when memory runs out.",
                ),
                seed_input("Of everything random: noise, order, augmentation."),
                widget(
                    io.Int,
                    "tokens",
                    default=given.tokens,
                    min=0,
                    max=MAX_TOKENS,
                    tooltip="Token vectors of an embedding; 0: 2, or 1 for a classifier alone (the paper's).",
                ),
                widget(
                    io.Float,
                    "learning_rate",
                    default=given.learning_rate,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="Of AdamW, in units of the token table; 0: 0.03, or 0.05 for a classifier alone. Lower "
                    "it when the loss jumps.",
                ),
                widget(
                    io.Float,
                    "cfg",
                    default=given.cfg,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance scale of what the classifier sees while learning; 0: 3, or 10, the paper's, "
                    "for a classifier alone.",
                ),
                widget(
                    io.Float,
                    "noise_level",
                    default=given.noise_level,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise the pictures get, as a fraction of the steps; 0: the kind's. The paper has 0.3 for "
                    "faces, 0.4 for others.",
                ),
                widget(
                    io.Float,
                    "band",
                    default=given.band,
                    min=-1.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Draw the noise level from this far around noise_level; -1: 0.2, 0 is off.",
                ),
                widget(
                    io.String,
                    "attribute",
                    default=given.attribute,
                    tooltip="Which attribute of the classifier, e.g. glasses. Empty: its only one.",
                ),
                widget(
                    io.Float,
                    "reconstruction",
                    default=given.reconstruction,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="With a classifier: how much the rest of the picture counts (gamma). 0 is off, 1 to "
                    "10 usual.",
                ),
                widget(
                    io.Float,
                    "keep_others",
                    default=given.keep_others,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="With a classifier of several attributes: how much it counts that the others stay as they "
                    "are. 0 is the paper's loss; 1 changes less besides.",
                ),
                widget(
                    io.Int,
                    "bank",
                    default=given.bank,
                    min=-1,
                    max=1000,
                    tooltip="Noises for each picture that come again, so that evaluations are kept from earlier; 0: "
                    "always new ones. -1: 0, or 2 for a classifier alone.",
                ),
                widget(
                    io.Float,
                    "augmentation",
                    default=given.augmentation,
                    min=0.0,
                    max=3.0,
                    step=0.1,
                    tooltip="How much pictures are shifted, zoomed and made noisy before the classifier, against "
                    "patterns that fool it. 0 is off.",
                ),
                widget(
                    io.Boolean,
                    "flip",
                    default=given.flip,
                    tooltip="Learn from mirrored copies as well. Switch it off for classes that tell left from right.",
                ),
                widget(
                    io.Int,
                    "held_out",
                    default=given.held_out,
                    min=0,
                    max=64,
                    tooltip="Pictures that have it not, the first ones but at most a quarter, that are not learned "
                    "from but edited to see what is best; eight are shown. 0: none.",
                ),
                widget(
                    io.Int,
                    "check_every",
                    default=given.check_every,
                    min=-1,
                    max=10_000,
                    tooltip="Steps between looks at the held-out pictures; 0: at the end only. -1: 50, or 25 for "
                    "a classifier alone.",
                ),
                widget(
                    io.Float,
                    "look_strength",
                    default=given.look_strength,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Strength of the edits that are looked at; 0: the kind's.",
                ),
                widget(
                    io.Int,
                    "look_steps",
                    default=given.look_steps,
                    min=2,
                    max=1000,
                    tooltip="Steps of the edits that are looked at. 12 is quick, 20 nearer to yours.",
                ),
                widget(
                    io.Boolean,
                    "checkpointing",
                    default=given.checkpointing,
                    tooltip="Compute parts of model and VAE again instead of keeping them: several times less memory, "
                    "somewhat slower. The result is the same.",
                ),
                widget(
                    io.String,
                    "targets",
                    default=given.targets,
                    tooltip="The class to learn by the name that a classifier has for it, one that teaches or judges; "
                    "several, separated by commas, are learned at once. Empty: the name of having_folder.",
                ),
                widget(
                    io.Int,
                    "image_size",
                    default=given.image_size,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Side in pixels to which a folder's pictures are scaled and cut; 0: what the model was "
                    "made for (512 for SD 1.x, 1024 for SDXL). Wired images keep their size.",
                ),
            ],
            outputs=[
                TrainingSettingsType.Output(
                    "training_settings",
                    display_name="settings",
                    tooltip="Wire it into settings of CASO Embedding Trainer.",
                )
            ],
        )

    @classmethod
    def execute(cls, **widgets: Any) -> Any:
        """The widgets as they are."""
        return io.NodeOutput(TrainingChoices(**{field.name: widgets[field.name] for field in fields(TrainingChoices)}))


NODES = [CASOTrainingSettings]

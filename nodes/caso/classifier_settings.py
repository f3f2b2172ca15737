"""Attribute Classifier Training Settings: what of a classifier's training is rarely changed, in a node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..host.schema import io, schema, widget
from .classifier_loader import CATEGORY

#: Socket carrying :class:`TrainingOptions`.
ClassifierTrainingSettingsType = io.Custom("SEMEDIT_CLASSIFIER_TRAINING_SETTINGS")


@dataclass(frozen=True)
class TrainingOptions:
    """See :class:`~...core.classifiers.training.TrainingSettings`; ``input_size`` is the side of the pictures that a
    classifier without backbone sees. The defaults are for somebody's own pictures, which are few."""

    batch_size: int = 16
    validation: float = 0.2
    augmentation: float = 1.0
    flip: bool = True
    learning_rate: float = 0.0
    patience: int = 0
    input_size: int = 64


DEFAULTS = TrainingOptions()


class AttributeClassifierTrainingSettings(io.ComfyNode):
    """How a classifier is trained, for the trainer's ``settings``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_AttributeClassifierTrainingSettings",
            display_name="Attribute Classifier Training Settings",
            category=CATEGORY,
            description="What of a classifier's training is rarely changed: batches, validation, augmentation, "
            "learning rate, patience and size.",
            search_aliases=["classifier settings", "training options", "learning rate", "augmentation"],
            inputs=[
                widget(
                    io.Int,
                    "batch_size",
                    default=DEFAULTS.batch_size,
                    min=1,
                    max=1024,
                    tooltip="Pictures in one step. Lower it when memory runs out.",
                ),
                widget(
                    io.Float,
                    "validation",
                    default=DEFAULTS.validation,
                    min=0.01,
                    max=0.9,
                    step=0.01,
                    tooltip="Part of every class that is not learned from but tested on.",
                ),
                widget(
                    io.Float,
                    "augmentation",
                    default=DEFAULTS.augmentation,
                    min=0.0,
                    max=3.0,
                    step=0.1,
                    tooltip="How much pictures are shifted, zoomed, relit, blurred and made noisy at random. 0 is "
                    "off, 1 usual; it keeps the classifier from relying on single pixels.",
                ),
                widget(
                    io.Boolean,
                    "flip",
                    default=DEFAULTS.flip,
                    tooltip="Mirror half of the pictures. Switch it off for classes that tell left from right.",
                ),
                widget(
                    io.Float,
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    tooltip="Of AdamW. 0 chooses: 0.002 from nothing, 0.0001 with a backbone. The last layer alone "
                    "needs none.",
                ),
                widget(
                    io.Int,
                    "patience",
                    default=DEFAULTS.patience,
                    min=0,
                    max=1000,
                    tooltip="Stop after so many epochs without a better one. 0: never.",
                ),
                widget(
                    io.Int,
                    "input_size",
                    default=DEFAULTS.input_size,
                    min=16,
                    max=512,
                    tooltip="Pixels of the square picture that a classifier without backbone sees; a backbone has "
                    "its own.",
                ),
            ],
            outputs=[
                ClassifierTrainingSettingsType.Output(
                    "training_settings",
                    display_name="settings",
                    tooltip="Wire it into settings of Attribute Classifier Trainer.",
                )
            ],
        )

    @classmethod
    def execute(cls, **options: Any) -> Any:
        """Pass the values on; the trainer checks them."""
        return io.NodeOutput(TrainingOptions(**options))


NODES = [AttributeClassifierTrainingSettings]

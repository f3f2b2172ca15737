"""Distil Training Settings: what of a distillation is rarely changed, in a node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.distillation.network import SHAPES, EditorShape
from ...core.distillation.pairs import PairFilter
from ...core.distillation.training import DistillationSettings
from ...core.errors import EditingError
from ..common.inputs import seed_input
from ..host.schema import io, schema, widget
from .sockets import CATEGORY

#: Socket that carries :class:`TrainingChoices`.
TrainingSettingsType = io.Custom("SEMEDIT_DISTIL_TRAINING_SETTINGS")
RECIPE, FILTER = DistillationSettings(), PairFilter()


@dataclass(frozen=True)
class TrainingChoices:
    """The node's widgets; see their tooltips."""

    batch_size: int = RECIPE.batch
    seed: int = 0
    network: str = "small"
    image_size: int = 512
    clip_gain: float = FILTER.clip_gain
    overlap: float = FILTER.overlap
    keep_outside: bool = RECIPE.keep_outside
    flip: bool = RECIPE.flip
    augmentation: float = RECIPE.augment
    learning_rate: float = RECIPE.learning_rate
    check_every: int = RECIPE.check_every

    @property
    def shape(self) -> EditorShape:
        """The network's shape.

        Raises:
            EditingError: there is no such network.
        """
        if self.network not in SHAPES:
            raise EditingError(f"There is no network {self.network[:40]!r}; use one of: {', '.join(SHAPES)}.")
        return SHAPES[self.network]

    def settings(self, steps: int) -> DistillationSettings:
        """The settings of a training of ``steps``.

        Raises:
            EditingError: a value out of range.
        """
        made = DistillationSettings(
            steps=steps,
            batch=self.batch_size,
            learning_rate=self.learning_rate,
            keep_outside=self.keep_outside,
            flip=self.flip,
            augment=self.augmentation,
            check_every=self.check_every,
            seed=self.seed,
        )
        made.check()
        return made


DEFAULTS = TrainingChoices()


class DistilTrainingSettings(io.ComfyNode):
    """All of a distillation that Distil Edit Trainer itself does not ask for."""

    @classmethod
    def define_schema(cls) -> Any:
        """Widgets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_DistilTrainingSettings",
            display_name="Distil Training Settings",
            category=CATEGORY,
            description="Changes how Distil Edit Trainer learns, and which pairs it learns from. Leave it out for the "
            "measured recipe.",
            search_aliases=["distillation settings", "pix2pix settings", "learning rate", "training options"],
            inputs=[
                widget(
                    io.Int,
                    "batch_size",
                    default=DEFAULTS.batch_size,
                    min=1,
                    max=1024,
                    tooltip="Pairs in one step. Lower it when memory runs out.",
                ),
                seed_input("Of first weights, order, augmentation, and which pairs are held out."),
                widget(
                    io.Combo,
                    "network",
                    options=list(SHAPES),
                    default=DEFAULTS.network,
                    tooltip="small: a million weights, for 128 pixels on a CPU. large: for photographs, on a GPU.",
                ),
                widget(
                    io.Int,
                    "image_size",
                    default=DEFAULTS.image_size,
                    min=8,
                    max=2048,
                    step=8,
                    tooltip="Side in pixels to which the folders' pictures are scaled and cut. Wired images keep their "
                    "size.",
                ),
                widget(
                    io.Float,
                    "clip_gain",
                    default=DEFAULTS.clip_gain,
                    min=-2.0,
                    max=2.0,
                    step=0.01,
                    tooltip="With a CLIP scorer: how much nearer (cosine) to target_text a picture must come to be "
                    "learned from. 0: nearer at all; the paper takes 0.1.",
                ),
                widget(
                    io.Float,
                    "overlap",
                    default=DEFAULTS.overlap,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Least share of a picture that must stay as it is for the pair to be learned from. 0: off; "
                    "0.7 for edits of a small part.",
                ),
                widget(
                    io.Boolean,
                    "keep_outside",
                    default=DEFAULTS.keep_outside,
                    tooltip="Learn to leave the photo's own pixels where the edit changed nothing to be seen. Off: "
                    "copy the edit with what its VAE lost.",
                ),
                widget(
                    io.Boolean,
                    "flip",
                    default=DEFAULTS.flip,
                    tooltip="Mirror half of the pairs. Switch it off for edits that tell left from right, or texts.",
                ),
                widget(
                    io.Float,
                    "augmentation",
                    default=DEFAULTS.augmentation,
                    min=0.0,
                    max=4.0,
                    step=0.1,
                    tooltip="How much pairs are shifted, recoloured and made noisy, so that few say more. 0 is off.",
                ),
                widget(
                    io.Float,
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=0.000001,
                    max=1.0,
                    step=0.0001,
                    round=0.000001,
                    tooltip="Of AdamW. Lower it when the loss jumps.",
                ),
                widget(
                    io.Int,
                    "check_every",
                    default=DEFAULTS.check_every,
                    min=1,
                    max=100_000,
                    tooltip="Steps between looks at the held-out pairs, by which the best is chosen; curves and saved "
                    "progress are new then.",
                ),
            ],
            outputs=[
                TrainingSettingsType.Output(
                    "training_settings",
                    display_name="settings",
                    tooltip="Wire it into settings of Distil Edit Trainer.",
                )
            ],
        )

    @classmethod
    def execute(cls, **options: Any) -> Any:
        """Pass the values on; the trainer checks them."""
        return io.NodeOutput(TrainingChoices(**options))


NODES = [DistilTrainingSettings]

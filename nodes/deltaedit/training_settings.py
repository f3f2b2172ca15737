"""DeltaEdit Training Settings: what of both trainers is rarely changed, in a node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..common.inputs import seed_input
from ..host.schema import io, schema, widget
from .sockets import CATEGORY

#: Socket that carries :class:`TrainingChoices`.
TrainingSettingsType = io.Custom("SEMEDIT_DELTAEDIT_TRAINING_SETTINGS")


@dataclass(frozen=True)
class TrainingChoices:
    """The node's widgets; 0 leaves a value to the trainer and its preset."""

    seed: int = 0
    learning_rate: float = 0.0
    check_every: int = 0
    hidden: int = 0


DEFAULTS = TrainingChoices()


def training_settings_input() -> Any:
    """The trainers' socket for the node below."""
    return widget(
        TrainingSettingsType,
        "settings",
        optional=True,
        tooltip="Seed, learning rate and more, from DeltaEdit Training Settings. Unwired: the preset's.",
    )


class DeltaEditTrainingSettings(io.ComfyNode):
    """How DeltaEdit Mapper Trainer and Style Diffusion Trainer learn, for their ``settings``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Widgets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_DeltaEditTrainingSettings",
            display_name="DeltaEdit Training Settings",
            category=CATEGORY,
            description="Changes how DeltaEdit Mapper Trainer and Style Diffusion Trainer learn. Leave it out for "
            "their presets; a value left at 0 is the preset's.",
            search_aliases=["mapper settings", "style diffusion settings", "learning rate", "training options"],
            inputs=[
                seed_input("Of first weights, order, what is held out, and all else drawn at random."),
                widget(
                    io.Float,
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    round=0.000001,
                    tooltip="Of AdamW. 0: the preset's. Mapper: 0.003 for fast, 0.5 for released (whose layers "
                    "multiply it by 0.01). Style diffusion: 0.001 for small, 0.0001 for paper. Lower it when the loss "
                    "jumps.",
                ),
                widget(
                    io.Int,
                    "check_every",
                    default=DEFAULTS.check_every,
                    min=0,
                    max=100_000,
                    tooltip="Steps between looks at what is held out, by which the best is chosen; curves and saved "
                    "progress are new then. 0: the trainer's own.",
                ),
                widget(
                    io.Int,
                    "hidden",
                    default=DEFAULTS.hidden,
                    min=0,
                    max=4096,
                    tooltip="Of the mapper alone: width of the modules of fast; more learns slower and can hold more. "
                    "0: the preset's.",
                ),
            ],
            outputs=[
                TrainingSettingsType.Output(
                    "training_settings",
                    display_name="settings",
                    tooltip="Wire it into settings of DeltaEdit Mapper Trainer or Style Diffusion Trainer.",
                )
            ],
        )

    @classmethod
    def execute(cls, **options: Any) -> Any:
        """Pass the values on; the trainers check them."""
        return io.NodeOutput(TrainingChoices(**options))


NODES = [DeltaEditTrainingSettings]

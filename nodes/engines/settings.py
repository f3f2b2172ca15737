"""Guider Settings: what of the editing engines is rarely changed, in a node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.engines.engine import EngineSettings
from ...core.engines.prompt_to_prompt import PromptToPromptSettings
from ..host.schema import io, schema, widget
from .front import CATEGORY, shift_input

#: Socket that carries :class:`GuiderOptions`.
GuiderSettingsType = io.Custom("SEMEDIT_GUIDER_SETTINGS")


@dataclass(frozen=True)
class GuiderOptions:
    """The node's widgets; see :class:`~...core.engines.engine.EngineSettings`, and for ``blend_threshold``
    :class:`~...core.engines.prompt_to_prompt.PromptToPromptSettings`. The defaults are those of an engine alone."""

    stored_shift: bool = EngineSettings.stored_shift
    proximal: float = EngineSettings.proximal
    background_keep: float = EngineSettings.background_keep
    blend_threshold: float = PromptToPromptSettings.blend_threshold

    @property
    def shared(self) -> dict[str, Any]:
        """What every engine's settings have, by name."""
        names = ("stored_shift", "proximal", "background_keep")
        return {name: getattr(self, name) for name in names}


DEFAULTS = GuiderOptions()


def settings_input() -> Any:
    """The guiders' socket for the node below."""
    return widget(
        GuiderSettingsType,
        "settings",
        optional=True,
        tooltip="What is rarely changed, from Guider Settings. Unwired: as there by default.",
    )


class GuiderSettings(io.ComfyNode):
    """What Prompt-to-Prompt, MasaCtrl and Plug-and-Play share beside their prompts."""

    @classmethod
    def define_schema(cls) -> Any:
        """Widgets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_GuiderSettings",
            display_name="Guider Settings",
            category=CATEGORY,
            description="What of Prompt-to-Prompt, MasaCtrl and Plug-and-Play Guider is rarely changed: what keeps "
            "more of the source. Leave it out for the measured defaults.",
            search_aliases=["ProxEdit", "proximal guidance", "direct inversion", "keep background", "guider options"],
            inputs=[
                shift_input(),
                widget(
                    io.Float,
                    "proximal",
                    default=DEFAULTS.proximal,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Proximal guidance (ProxEdit): this share of the difference between target and negative, "
                    "the smallest values, is dropped and the rest shrunk by as much, so that the edit acts where it "
                    "differs most. 0: off; 0.4 to 0.7 is usual. No use at cfg 1.",
                ),
                widget(
                    io.Float,
                    "background_keep",
                    default=DEFAULTS.background_keep,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps, from the clean end, in which places that the edit leaves nearly alone "
                    "go back to the source. 0: off; 0.4 to 0.6 is usual.",
                ),
                widget(
                    io.Float,
                    "blend_threshold",
                    default=DEFAULTS.blend_threshold,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="For blend_words of Prompt-to-Prompt Guider: share of the highest attention from which a "
                    "place belongs to the words. Higher: a smaller place is edited.",
                ),
            ],
            outputs=[
                GuiderSettingsType.Output(
                    "guider_settings",
                    display_name="settings",
                    tooltip="Wire it into settings of Prompt-to-Prompt, MasaCtrl or Plug-and-Play Guider.",
                )
            ],
        )

    @classmethod
    def execute(cls, **options: Any) -> Any:
        """Pass the values on; the guider checks them."""
        return io.NodeOutput(GuiderOptions(**options))


NODES = [GuiderSettings]

"""Plug-and-Play Guider."""

from __future__ import annotations

from typing import Any

from ...core.engines.plug_and_play import PlugAndPlay, PlugAndPlaySettings
from ..host.schema import io, schema
from .front import (
    CATEGORY,
    back_inputs,
    engine_guider,
    front_inputs,
    guider_output,
    no_words,
    share_input,
)
from .settings import DEFAULTS, GuiderOptions, settings_input


class PlugAndPlayGuider(io.ComfyNode):
    """Plug-and-Play (https://arxiv.org/abs/2211.12572) over any inversion."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        defaults = PlugAndPlaySettings()
        return schema(
            node_id="SemEdit_PlugAndPlayGuider",
            display_name="Plug-and-Play Guider",
            category=CATEGORY,
            description="Edits that change a style or material: the edit has the source's structure, plugged in as "
            "features of the decoder and as the queries and keys of its self-attention, and its looks from the target "
            "text.",
            search_aliases=["plug and play", "pnp", "feature injection", "style", "image to image translation"],
            inputs=[
                *front_inputs("Empty: the prompt in the inversion."),
                share_input(
                    "feature_fraction",
                    defaults.feature_fraction,
                    "Share of the steps, from the noisy end, with the source's features. More keeps more of the "
                    "structure (the paper's is 0.8).",
                ),
                share_input(
                    "attention_fraction",
                    defaults.attention_fraction,
                    "Share of the steps with the source's self-attention. More keeps more of the layout (the paper's "
                    "is 0.5).",
                ),
                *back_inputs(),
                settings_input(),
            ],
            outputs=[guider_output()],
        )

    @classmethod
    def execute(
        cls,
        cfg: float,
        feature_fraction: float,
        attention_fraction: float,
        settings: GuiderOptions = DEFAULTS,
        **wired: Any,
    ) -> Any:
        """A guider that keeps no state between sampling runs; ``wired``: the texts and what ``front`` reads."""
        own = PlugAndPlaySettings(
            cfg, feature_fraction=feature_fraction, attention_fraction=attention_fraction, **settings.shared
        )
        return engine_guider(no_words(PlugAndPlay), own, **wired)


NODES = [PlugAndPlayGuider]

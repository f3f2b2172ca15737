"""Plug-and-Play Guider."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.engines.plug_and_play import PlugAndPlay, PlugAndPlaySettings
from ...core.inversion import Inversion
from ..host.schema import io, schema
from .front import (
    CATEGORY,
    back_inputs,
    engine_guider,
    front_inputs,
    guider_output,
    option_inputs,
    share_input,
    shift_input,
)


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
                shift_input(),
                *option_inputs(),
                *back_inputs(),
            ],
            outputs=[guider_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        inversion: Inversion,
        source_text: str,
        target_text: str,
        cfg: float,
        feature_fraction: float,
        attention_fraction: float,
        stored_shift: bool,
        proximal: float = 0.0,
        background_keep: float = 0.0,
        target: Any = None,
        source: Any = None,
        negative: Any = None,
        mask: Tensor | None = None,
    ) -> Any:
        """A guider that keeps no state between sampling runs."""
        settings = PlugAndPlaySettings(
            cfg, stored_shift, feature_fraction, attention_fraction, proximal=proximal, background_keep=background_keep
        )
        return engine_guider(
            PlugAndPlay, settings, model, clip, inversion, source_text, target_text, target, source, negative, mask
        )


NODES = [PlugAndPlayGuider]

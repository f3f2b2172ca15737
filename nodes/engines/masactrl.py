"""MasaCtrl Guider."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...core.engines.masactrl import FINE_DECODER, MasaCtrl, MasaCtrlSettings, foreground_places
from ...core.engines.words import ReadPrompt
from ..host.schema import io, schema, widget
from .front import (
    CATEGORY,
    back_inputs,
    engine_guider,
    front_inputs,
    guider_output,
    share_input,
)
from .settings import DEFAULTS, GuiderOptions, settings_input


class MasaCtrlGuider(io.ComfyNode):
    """MasaCtrl (https://arxiv.org/abs/2304.08465) over any inversion."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        defaults = MasaCtrlSettings()
        return schema(
            node_id="SemEdit_MasaCtrlGuider",
            display_name="MasaCtrl Guider",
            category=CATEGORY,
            description="Edits that change a shape or pose: the edit makes its own layout from the target text and "
            "fills it with what it finds in the source, through the source's keys and values in self-attention.",
            search_aliases=["masactrl", "mutual self-attention", "non-rigid edit", "pose", "shape", "proxmasactrl"],
            inputs=[
                *front_inputs("Empty: the one in the inversion."),
                share_input(
                    "start_step",
                    defaults.start_step,
                    "Share of the steps, from the noisy end, before the edit looks at the source. More changes the "
                    "layout more (the paper's is 0.1).",
                ),
                widget(
                    io.Int,
                    "start_layer",
                    default=defaults.start_layer,
                    min=FINE_DECODER,
                    max=99,
                    tooltip="First self-attention layer that looks at the source, counted from 0. -1 is the paper's: "
                    "the fine part of the decoder (10 of 16 in SD 1.5, 64 of 70 in SDXL). Lower keeps more.",
                ),
                widget(
                    io.String,
                    "foreground_words",
                    default="",
                    tooltip="Words for the thing that changes, parted by commas, at least one in each text: it then "
                    "looks at the source's foreground only, the rest at its background. Empty: no mask.",
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
        start_step: float,
        start_layer: int,
        foreground_words: str,
        settings: GuiderOptions = DEFAULTS,
        **wired: Any,
    ) -> Any:
        """A guider that keeps no state between sampling runs; ``wired``: the texts and what ``front`` reads."""
        own = MasaCtrlSettings(cfg, start_step=start_step, start_layer=start_layer, **settings.shared)

        def of_words(source: str, target: str, read: ReadPrompt) -> Any:
            return partial(MasaCtrl, foreground=foreground_places(foreground_words, source, target, read))

        return engine_guider(of_words, own, needed=bool(foreground_words.strip()), **wired)


NODES = [MasaCtrlGuider]

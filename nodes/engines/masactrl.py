"""MasaCtrl Guider."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ...core.engines.masactrl import FINE_DECODER, MasaCtrl, MasaCtrlSettings, foreground_places
from ...core.inversion import Inversion
from ..host.schema import io, schema, widget
from .front import (
    CATEGORY,
    back_inputs,
    engine_guider,
    front_inputs,
    guider_output,
    option_inputs,
    reader,
    share_input,
    shift_input,
    source_words,
)


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
        start_step: float,
        start_layer: int,
        foreground_words: str,
        stored_shift: bool,
        proximal: float = 0.0,
        background_keep: float = 0.0,
        target: Any = None,
        source: Any = None,
        negative: Any = None,
        mask: Tensor | None = None,
    ) -> Any:
        """A guider that keeps no state between sampling runs."""
        settings = MasaCtrlSettings(
            cfg, stored_shift, start_step, start_layer, proximal=proximal, background_keep=background_keep
        )
        source_text = source_words(inversion, source_text, clip, needed=bool(foreground_words.strip()))
        places = foreground_places(foreground_words, source_text, target_text, reader(clip))
        make = partial(MasaCtrl, foreground=places)
        return engine_guider(
            make, settings, model, clip, inversion, source_text, target_text, target, source, negative, mask
        )


NODES = [MasaCtrlGuider]

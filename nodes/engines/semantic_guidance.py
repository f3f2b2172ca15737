"""Semantic Guidance Guider: several edits at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core.engines.semantic_guidance import (
    SemanticGuidance,
    SemanticSettings,
    edit_words,
    in_context,
    parse_edits,
)
from ...core.inversion import Inversion
from ..common.inputs import mask_input
from ..common.recording import changed_remarks
from ..common.sockets import InversionType
from ..common.trajectory_edit import edit_mask, on_device, refuse_noise_mask, source_prompt
from ..host.identity import identity
from ..host.schema import io, schema, widget
from ..host.session import Session
from ..host.words import encoded_text
from .front import (
    CATEGORY,
    OTHER_NODE,
    guider_output,
    reader,
    remarked_guider,
    share_input,
    shift_input,
    source_words,
)

#: What context says to have none, also where the inversion has words.
NO_CONTEXT = "-"
#: Of edits that name none, as it suits the demo model.
SCALE = 3.0


class SemanticGuidanceGuider(io.ComfyNode):
    """Semantic guidance as in LEDITS++ (https://arxiv.org/abs/2311.16711) over any inversion."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        defaults = SemanticSettings()
        return schema(
            node_id="SemEdit_SemanticGuidanceGuider",
            display_name="Semantic Guidance Guider",
            category=CATEGORY,
            description="Several edits at once, each a few words that find their own place: added where they "
            "change most, or also where they are looked at; everything else stays as in the source.",
            search_aliases=["ledits", "ledits++", "sega", "semantic guidance", "several edits", "multi edit"],
            inputs=[
                widget(io.Model, "model", tooltip="The model the inversion was made with; SD 1.x, SD 2.x or SDXL."),
                widget(io.Clip, "clip", tooltip="The model's CLIP; it reads the edits."),
                widget(
                    InversionType,
                    "inversion",
                    tooltip="From SPDInv Inversion, Autocorr DDIM Inversion, Reference From Noise or Load Inversion.",
                ),
                widget(
                    io.String,
                    "edits",
                    default="",
                    multiline=True,
                    tooltip="One edit a line: 'wearing glasses' adds, '-beard' takes away, 'red hair: 4' has a scale "
                    "of its own, 'hat @ 0.9' a threshold of its own.",
                ),
                widget(
                    io.Float,
                    "scale",
                    default=SCALE,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How strongly edits act that have no scale of their own. 0 changes nothing; 1 to 10 is "
                    "usual.",
                ),
                share_input(
                    "threshold",
                    defaults.threshold,
                    "Share of the picture that an edit leaves alone: 0.9 for something small, 0.5 for something "
                    "large, 0 to let it act everywhere.",
                ),
                share_input(
                    "start",
                    defaults.start,
                    "Share of the steps, from the noisy end, before the edits begin. More keeps more of the layout.",
                ),
                widget(
                    io.Boolean,
                    "attention",
                    default=defaults.attention,
                    tooltip="Keep each edit also to where its words are looked at, as in LEDITS++. Off: only to where "
                    "it changes most.",
                ),
                widget(
                    io.String,
                    "context",
                    default="",
                    tooltip="A text that all edits stand behind, best the source prompt: an edit is then what its "
                    "words add to it. Empty: the words in the inversion, if any. A lone '-': the edits' words alone, "
                    "as in LEDITS++.",
                ),
                shift_input(advanced=True),
                widget(
                    io.Conditioning,
                    "source",
                    optional=True,
                    tooltip="The prompt the image was inverted with. Unwired: the one in the inversion.",
                ),
                mask_input(),
            ],
            outputs=[guider_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        inversion: Inversion,
        edits: str,
        scale: float,
        threshold: float,
        start: float,
        attention: bool,
        context: str,
        stored_shift: bool,
        source: Any = None,
        mask: Tensor | None = None,
    ) -> Any:
        """A guider that keeps no state between sampling runs."""
        wanted = parse_edits(edits, scale)
        settings = SemanticSettings(1.0, stored_shift, threshold, start, attention)
        where = edit_mask(mask)
        inversion.require_model(own := identity(model))
        refuse_noise_mask(inversion, OTHER_NODE)
        context = "" if context.strip() == NO_CONTEXT else source_words(inversion, context, clip)
        words = edit_words(wanted, reader(clip), context)
        names = [f"edit {number + 1}" for number in range(len(wanted))]
        known = source_prompt(inversion, source)
        conds = {"positive": known, "negative": encoded_text(clip, context)}
        texts = in_context(wanted, context)
        conds |= {name: encoded_text(clip, text) for name, text in zip(names, texts, strict=True)}

        def engine(session: Session, conds: Mapping[str, Any]) -> SemanticGuidance:
            return SemanticGuidance(
                session.denoiser,
                on_device(inversion, session),
                conds["positive"],
                None,
                conds["negative"],
                settings,
                where,
                wanted,
                [conds[name] for name in names],
                words,
            )

        return remarked_guider(model, conds, engine, changed_remarks(inversion, own, source))


NODES = [SemanticGuidanceGuider]

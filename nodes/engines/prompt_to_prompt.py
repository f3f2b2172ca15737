"""Prompt-to-Prompt Guider."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from ...core.engines.prompt_to_prompt import (
    MODES,
    Mode,
    PromptToPrompt,
    PromptToPromptSettings,
    released_spdinv,
    released_words,
    word_map,
)
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

#: In place of a mode: all settings are those of the editing engine in SPDInv's released code.
RELEASED = "released_spdinv"


class PromptToPromptGuider(io.ComfyNode):
    """Prompt-to-Prompt (https://arxiv.org/abs/2208.01626) over any inversion."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        defaults = PromptToPromptSettings()
        return schema(
            node_id="SemEdit_PromptToPromptGuider",
            display_name="Prompt-to-Prompt Guider",
            category=CATEGORY,
            description="Edits by changing the prompt's words: what both prompts say attends as in the source, so the "
            "layout stays, and the new words go their own way. Source and edit run side by side, 3 evaluations a step "
            "and no gradients.",
            search_aliases=[
                "prompt to prompt",
                "p2p",
                "attention control",
                "refine",
                "word swap",
                "reweight",
                "local blend",
                "negative-prompt inversion",
                "ProxEdit",
                "released SPDInv",
            ],
            inputs=[
                *front_inputs(
                    "It must be the same text, or words are mixed up. Empty: the words in the inversion, where its "
                    "node was given clip and prompt."
                ),
                share_input(
                    "cross_fraction",
                    defaults.cross_fraction,
                    "Share of the steps, from the noisy end, on which words of both prompts are looked at as in the "
                    "source. More keeps more.",
                ),
                share_input(
                    "self_fraction",
                    defaults.self_fraction,
                    "Share of the steps on which the picture looks at itself as the source does. More keeps shapes; "
                    "less lets them change.",
                ),
                widget(
                    io.Combo,
                    "mode",
                    options=[*MODES, RELEASED],
                    default=defaults.mode,
                    tooltip="refine: changed and added words go their own way. replace: changed words stand exactly "
                    "where the words were that they replace (cat to dog). released_spdinv: the editing engine of "
                    "SPDInv's released code in place of cfg, fractions and settings (cfg 7.5; leave negative unwired).",
                ),
                widget(
                    io.String,
                    "blend_words",
                    default="",
                    tooltip="Words of either prompt, parted by commas: the source is kept wherever none of them is "
                    "looked at (local blend). Empty: off.",
                ),
                widget(
                    io.String,
                    "word_weights",
                    default="",
                    tooltip="Words of the target with a factor on their attention, e.g. 'glasses: 2, hair: 0.5'. "
                    "Empty: none.",
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
        cross_fraction: float,
        self_fraction: float,
        mode: str,
        blend_words: str,
        word_weights: str,
        settings: GuiderOptions = DEFAULTS,
        **wired: Any,
    ) -> Any:
        """A guider that keeps no state between sampling runs; ``wired``: the texts and what ``front`` reads."""
        released = mode == RELEASED
        own = (
            released_spdinv()
            if released
            else PromptToPromptSettings(
                cfg,
                cross_fraction=cross_fraction,
                self_fraction=self_fraction,
                mode=cast(Mode, mode),
                blend_threshold=settings.blend_threshold,
                **settings.shared,
            )
        )

        def of_words(source: str, target: str, read: ReadPrompt) -> Any:
            words = word_map(source, target, read, own.mode, word_weights, blend_words)
            return partial(PromptToPrompt, words=released_words(words) if released else words)

        return engine_guider(of_words, own, needed=True, **wired)


NODES = [PromptToPromptGuider]

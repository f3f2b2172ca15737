"""Sentence Edit Direction, Apply Edit Direction: what changes between two lists of sentences, as a shift of the prompt's embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.directions import EditDirection, sentence_direction
from ..core.errors import EditingError
from ..core.sentences import expand_words
from .host import EditDirectionType, apply_to_conditioning, encode_sentences, io, schema, text_encoder_name, widget
from .reports import report_output, shown

CATEGORY = "semantic editing/direction"
MODES = ("auto", "words", "sentences")


def sentence_lists(source: str, target: str, mode: str, count: int, seed: int) -> tuple[list[str], list[str]]:
    """The sentences of both sides: the lines as they are, or two phrases put into the same built-in sentences.

    Raises:
        EditingError: an unknown mode, an empty side, or several lines where a word is asked for.
    """
    if mode not in MODES:
        raise EditingError(f"There is no mode {mode!r}; use one of {', '.join(MODES)}.")
    sides = [[line.strip() for line in text.splitlines() if line.strip()] for text in (source, target)]
    for name, lines in zip(("source", "target"), sides, strict=True):
        if not lines:
            raise EditingError(f"The {name} text is empty; write a word, or sentences one per line.")
    single = all(len(lines) == 1 for lines in sides)
    if mode == "words" and not single:
        raise EditingError("Mode 'words' takes one line on each side; use mode 'sentences' for several lines.")
    if mode == "sentences" or not single:
        return sides[0], sides[1]
    return expand_words(sides[0][0], sides[1][0], count, seed)


class SentenceEditDirection(io.ComfyNode):
    """The edit direction of pix2pix-zero (https://arxiv.org/abs/2302.03027, section 3.2)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_SentenceEditDirection",
            display_name="Sentence Edit Direction",
            category=CATEGORY,
            description="Finds the direction from one meaning to another in the text encoder: two words, or two lists of sentences. "
            "The mean difference of many sentences is a steadier edit than swapping one word in one prompt.",
            search_aliases=["pix2pix-zero", "word to word", "text direction", "cat to dog", "semantic direction", "edit by words"],
            inputs=[
                widget(io.Clip, "clip", tooltip="Text encoder of the model you edit with."),
                widget(
                    io.String,
                    "source",
                    multiline=True,
                    default="cat",
                    tooltip="What the image shows: one word or short phrase, or sentences, one per line.",
                ),
                widget(
                    io.String,
                    "target",
                    multiline=True,
                    default="dog",
                    tooltip="What it shall show instead: one word or short phrase, or sentences, one per line.",
                ),
                widget(
                    io.Combo,
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto: one line is a word, several lines are sentences. words: put the phrase into the built-in sentences. "
                    "sentences: take every line as it is.",
                ),
                widget(
                    io.Int,
                    "count",
                    default=256,
                    min=1,
                    max=2000,
                    tooltip="How many built-in sentences a word is put into on each side. More is steadier and slower; 100 to 1000 is "
                    "usual. "
                    "Lines of your own are not affected.",
                ),
                widget(
                    io.Int,
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    advanced=True,
                    tooltip="Which built-in sentences are drawn; both sides get the same ones.",
                ),
            ],
            outputs=[
                EditDirectionType.Output(
                    "edit_direction", display_name="edit direction", tooltip="The direction; wire it into Apply Edit Direction."
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, source: str, target: str, mode: str, count: int, seed: int) -> Any:
        """Encode both sides in batches; EditingError for an empty side or an over-long sentence."""
        sources, targets = sentence_lists(source, target, mode, count, seed)
        direction = sentence_direction(
            lambda sentences: encode_sentences(clip, sentences),
            sources,
            targets,
            encoder_name=text_encoder_name(clip),
            source=source.strip().splitlines()[0],
            target=target.strip().splitlines()[0],
        )
        report = f"{direction.describe()}\nsource, e.g.: {sources[0]}\ntarget, e.g.: {targets[0]}"
        return io.NodeOutput(direction, report, ui=shown(report))


class ApplyEditDirection(io.ComfyNode):
    """Shift a prompt's embedding along a direction."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_ApplyEditDirection",
            display_name="Apply Edit Direction",
            category=CATEGORY,
            description="Adds an edit direction to a prompt. Chain several of these nodes to add several edits.",
            search_aliases=["add direction", "pix2pix-zero", "semantic slider", "concept slider"],
            inputs=[
                widget(io.Conditioning, "conditioning", tooltip="The prompt that describes the image (the one it was inverted with)."),
                widget(
                    EditDirectionType, "edit_direction", tooltip="From Sentence Edit Direction or Load Edit Direction, same text encoder."
                ),
                widget(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=-3.0,
                    max=3.0,
                    step=0.05,
                    tooltip="0 leaves the prompt exactly as it is, 1 is the whole direction, negative goes the other way. 0.5 to 2 is "
                    "usual.",
                ),
                widget(
                    io.Clip,
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the prompt. Wired, a direction made with another encoder is refused by name; "
                    "unwired, only the width is compared.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "edited_conditioning",
                    display_name="conditioning",
                    tooltip="The shifted prompt; wire it as target of Cross-Attn Guided Sampler or as positive of any sampler.",
                )
            ],
        )

    @classmethod
    def execute(cls, conditioning: Any, edit_direction: EditDirection, strength: float, clip: Any = None) -> Any:
        """Every entry of the conditioning is shifted; EditingError when the direction is another text encoder's."""
        if clip is not None:
            edit_direction.require_encoder(text_encoder_name(clip))

        def shift(embeds: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return edit_direction.apply(embeds, pooled, strength)

        return io.NodeOutput(apply_to_conditioning(conditioning, shift))


NODES = [SentenceEditDirection, ApplyEditDirection]

"""Sentence Edit Direction, Apply Edit Direction: from one meaning to another in the text encoder."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from ...core.pix2pix_zero.edit_direction import EditDirection, sentence_direction, token_ids, unpaired_reason
from ...core.pix2pix_zero.sentences import DEFAULT_COUNT, MAX_COUNT, Bank, Mode, sentences_of
from ..common.reports import report_output, report_text, shown
from ..host.conditioning import apply_to_conditioning, encode_sentences, sentence_tokenizer, text_encoding_name
from ..host.progress import counting_bar
from ..host.schema import io, schema, widget

#: Socket carrying a ``core.pix2pix_zero.edit_direction.EditDirection``.
EditDirectionType = io.Custom("EDIT_DIRECTION")
CATEGORY = "semantic editing/direction"


class SentenceEditDirection(io.ComfyNode):
    """The edit direction of pix2pix-zero (https://arxiv.org/abs/2302.03027, section 3.2)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_SentenceEditDirection",
            display_name="Sentence Edit Direction",
            category=CATEGORY,
            description="Finds the direction from one meaning to another in the text encoder: two words, or two lists "
            "of sentences. Sentences that come in pairs show word by word what changes; other lists give their mean "
            "difference.",
            search_aliases=[
                "edit photo",
                "replace",
                "change cat to dog",
                "turn into",
                "words",
                "what to change",
                "add glasses",
                "remove glasses",
                "smile",
                "age",
                "change hair colour",
                "change hair color",
                "pix2pix-zero",
                "word to word",
                "text direction",
                "cat to dog",
                "semantic direction",
                "edit by words",
            ],
            inputs=[
                widget(io.Clip, "clip", tooltip="Text encoder of the model you edit with."),
                widget(
                    io.String,
                    "source",
                    multiline=True,
                    default="cat",
                    tooltip="What the image shows: one word or short phrase, or sentences, one per line. With the "
                    "banks portrait and style it may be empty: then the target is added.",
                ),
                widget(
                    io.String,
                    "target",
                    multiline=True,
                    default="dog",
                    tooltip="What it shall show instead: one word or short phrase, or sentences, one per line; best in "
                    "pairs, line by line worded like the source's but for what is edited.",
                ),
                widget(
                    io.Combo,
                    "mode",
                    options=list(get_args(Mode)),
                    default="auto",
                    tooltip="auto: one line without a full stop is a word, all else are sentences. words: put the "
                    "phrase into the built-in sentences. sentences: take every line as it is.",
                ),
                widget(
                    io.Combo,
                    "bank",
                    options=list(get_args(Bank)),
                    default="general",
                    tooltip="Built-in sentences for words. general: everyday photos, for a noun (cat, red car). "
                    "portrait: captions of the demo world, for a look (smiling, with a beard). style: for a medium "
                    "(oil painting), a season, time of day or weather (winter, at night), or a material (wood).",
                ),
                widget(
                    io.Int,
                    "count",
                    default=DEFAULT_COUNT,
                    min=1,
                    max=MAX_COUNT,
                    tooltip="How many built-in sentences a word is put into on each side. More is steadier and slower; "
                    "100 to 1000 is usual. Lines of your own are not affected.",
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
                    "edit_direction",
                    display_name="edit direction",
                    tooltip="The direction; wire it into Apply Edit Direction.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, source: str, target: str, mode: Any, bank: Any, count: int, seed: int) -> Any:
        """Encode both sides in batches; EditingError for an empty side or an over-long sentence."""
        sources, targets = sentences_of([source, target], mode, count, seed, bank)
        tokenize = sentence_tokenizer(clip)
        if tokenize is not None:
            token_ids(tokenize, [" ".join(text.split()) for text in (source, target) if text.strip()])
        direction = sentence_direction(
            lambda sentences: encode_sentences(clip, sentences),
            sources,
            targets,
            tokenize=tokenize,
            encoder_name=text_encoding_name(clip),
            source=_first_line(source),
            target=_first_line(target),
            callback=counting_bar(),
        )
        report = report_text(
            direction.sentence(),
            direction.describe(),
            f"source, e.g.: {sources[0]}",
            f"target, e.g.: {targets[0]}",
        )
        if direction.field is None:
            reason = unpaired_reason(tokenize, sources, targets)
            report += f"\nNot word by word: {reason}. It moves the prompt as a whole and may miss its own words."
        return io.NodeOutput(direction, report, ui=shown(report))


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[0]


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
            search_aliases=[
                "edit strength",
                "slider",
                "more or less",
                "add direction",
                "pix2pix-zero",
                "semantic slider",
                "concept slider",
            ],
            inputs=[
                widget(
                    io.Conditioning,
                    "conditioning",
                    tooltip="The prompt that describes the image (the one it was inverted with).",
                ),
                widget(
                    EditDirectionType,
                    "edit_direction",
                    tooltip="From Sentence Edit Direction or Load Edit Direction, same text encoder.",
                ),
                widget(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=-3.0,
                    max=3.0,
                    step=0.05,
                    tooltip="0 leaves the prompt exactly as it is, 1 is the whole direction, negative goes the other "
                    "way. 0.5 to 2 is usual.",
                ),
                widget(
                    io.Clip,
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the prompt. Wired, a direction made with another encoder or layer is "
                    "refused by name; unwired, the width is compared and the report says what else differs.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "edited_conditioning",
                    display_name="conditioning",
                    tooltip="The shifted prompt; wire it as target of Cross-Attn Guided Sampler or as positive of any "
                    "sampler.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(cls, conditioning: Any, edit_direction: EditDirection, strength: float, clip: Any = None) -> Any:
        """Every entry of the conditioning is shifted; EditingError when the direction is another text encoder's."""
        if clip is not None:
            edit_direction.require_encoder(text_encoding_name(clip))
        lines = [f"{edit_direction.describe()}, strength {strength:g}"]

        def shift(embeds: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
            shifted = edit_direction.apply(embeds, pooled, strength)
            lines.append(edit_direction.encoding_warning(embeds))
            return shifted

        changed = apply_to_conditioning(conditioning, shift)
        first = f"The prompt is moved at strength {strength:g}. {edit_direction.sentence()}"
        report = report_text(first, *dict.fromkeys(line for line in lines if line))
        return io.NodeOutput(changed, report, ui=shown(report))


NODES = [SentenceEditDirection, ApplyEditDirection]

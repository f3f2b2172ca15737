"""Sentences from a Text Model: both lists of a direction, written by a local GPT-2 or T5."""

from __future__ import annotations

from typing import Any

from ...core.models.text_generator import load_text_generator
from ...core.pix2pix_zero.written_sentences import MOST, PROMPT, written_sentences
from ..common.inputs import seed_input
from ..common.reports import model_fingerprint, report_output, report_text, shown
from ..host.folders import TEXT_MODELS
from ..host.managed_models import load_to_device
from ..host.memory import memory_advice
from ..host.progress import stop_if_cancelled
from ..host.schema import io, schema, widget
from .local_models import CATEGORY, model_folder_input, network_of_folder


class WrittenSentences(io.ComfyNode):
    """What pix2pix-zero asks GPT-3 or FLAN-T5 for, from a model on this machine."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_WrittenSentences",
            display_name="Sentences from a Text Model",
            category=CATEGORY,
            description="Has a local text model (GPT-2, T5 or FLAN-T5) write sentences with two words, and says each "
            "with the other word too: pairs for Sentence Edit Direction, in place of its built-in sentences.",
            search_aliases=["llm", "flan-t5", "gpt2", "prompt generator", "pix2pix-zero", "sentence list"],
            inputs=[
                model_folder_input(
                    "text_model",
                    TEXT_MODELS,
                    "A transformers folder of GPT-2, T5 or FLAN-T5 in ComfyUI's models/LLM folder. Press R after "
                    "adding one.",
                ),
                widget(io.String, "source", default="cat", tooltip="What the image shows: one word or a short phrase."),
                widget(io.String, "target", default="dog", tooltip="What it shall show instead."),
                widget(
                    io.String,
                    "prompt",
                    multiline=True,
                    default=PROMPT,
                    tooltip="What the model is asked, or goes on with; {word} stands for the word. GPT-2 does better "
                    "with a few captions as an example.",
                ),
                widget(
                    io.Int,
                    "count",
                    default=64,
                    min=1,
                    max=MOST,
                    tooltip="How many pairs of sentences are wanted; 50 to 300 is usual. Texts that cannot be used "
                    "are told in the report.",
                ),
                seed_input("Which sentences are written; the same seed writes the same.", advanced=True),
            ],
            outputs=[
                io.String.Output(
                    "source_sentences",
                    display_name="source sentences",
                    tooltip="One a line; wire them into source of Sentence Edit Direction.",
                ),
                io.String.Output(
                    "target_sentences",
                    display_name="target sentences",
                    tooltip="The same with the other word; wire them into target of Sentence Edit Direction.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, text_model: str, **_: Any) -> str:
        """Sizes and times of the files, so that a model put in anew is read anew."""
        return model_fingerprint(TEXT_MODELS, text_model)

    @classmethod
    def execute(cls, text_model: str, source: str, target: str, prompt: str, count: int, seed: int) -> Any:
        """Write; EditingError for a damaged or foreign model, and for one that writes nothing of use."""
        writer, patcher = network_of_folder(TEXT_MODELS, text_model, load_text_generator)

        def write(asked: str, number: int, with_seed: int) -> list[str]:
            return writer.write(asked, number, with_seed, callback=stop_if_cancelled)

        with memory_advice("use a smaller text model"):
            load_to_device(patcher)
            made = written_sentences(write, source, target, count, seed, prompt)
        report = report_text(
            f"Wrote {len(made.source)} pairs of sentences about {source.strip()!r} and {target.strip()!r}.",
            f"{text_model}: {made.describe()}",
            f"source, e.g.: {made.source[0]}",
            f"target, e.g.: {made.target[0]}",
        )
        if len(made.source) < count:
            report += f"\nFewer than the {count} wanted: the model repeats itself or leaves the word out."
        return io.NodeOutput("\n".join(made.source), "\n".join(made.target), report, ui=shown(report))


NODES = [WrittenSentences]

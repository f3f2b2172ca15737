"""CASO Embedding Loader and CASO Combine: embeddings from files, and several as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...core.caso.editing import EditSettings
from ...core.caso.embedding import LEGACY_SUFFIXES, MAX_STRENGTH, SemanticEmbedding, check_together
from ..common.bundled import bundled, bundled_file, bundled_names
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..host.folders import list_files, resolve_file
from ..host.schema import io, schema, widget
from ..host.tokens import HostVectorEncoder, vectors_read

#: Socket carrying semantic embeddings with their relative strengths, see :data:`Chosen`.
SemanticEmbeddingType = io.Custom("SEMANTIC_EMBEDDING")
CATEGORY = "semantic editing/caso"
FOLDER = "embeddings"


#: Embeddings with their relative strengths.
Chosen = tuple[tuple[SemanticEmbedding, float], ...]


def embedding_names() -> list[str]:
    """The bundled embeddings, then the files of ``models/embeddings``."""
    return [*bundled_names(FOLDER), *list_files(FOLDER)]


def chosen_one(embedding: SemanticEmbedding) -> Chosen:
    """An embedding at its relative strength: a sampler's default strength then is what is measured to do well for its
    kind."""
    return ((embedding, embedding.edit.get("strength", EditSettings.strength) / EditSettings.strength),)


def embedding_output(tooltip: str) -> Any:
    """The embedding as SEMANTIC_EMBEDDING."""
    return SemanticEmbeddingType.Output("chosen_embedding", display_name="embedding", tooltip=tooltip)


class CASOEmbeddingLoader(io.ComfyNode):
    """A textual-inversion file, or a published CASO linear layer, as CONDITIONING and as embedding."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOEmbeddingLoader",
            display_name="CASO Embedding Loader",
            category=CATEGORY,
            description="Loads a semantic embedding: one made by CASO Embedding Trainer, any textual inversion of SD "
            "1.x, SD 2.x or SDXL (also several tokens, or those inside a LoRA file), or a published CASO .pt file. No "
            "code in a file is run.",
            search_aliases=[
                "load attribute",
                "smile",
                "add glasses",
                "attribute slider",
                "textual inversion",
                "load embedding",
                "semantic embedding",
                "caso",
                "attribute embedding",
            ],
            inputs=[
                widget(io.Clip, "clip", tooltip="The text encoder of the model the embedding was made for."),
                widget(
                    io.Combo,
                    "embedding_file",
                    options=embedding_names(),
                    tooltip="A file of ComfyUI's models/embeddings folder, or one of the demo's. Press R after "
                    "adding one.",
                ),
            ],
            outputs=[
                embedding_output(
                    "The embedding itself; wire it into CASO Edit Sampler, CASO Generate or CASO Combine."
                ),
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="The prompt that holds nothing but this embedding, as CLIP Text Encode makes it of "
                    "embedding:name.",
                ),
                io.String.Output(
                    "prompt_text",
                    display_name="prompt text",
                    tooltip="What to write in any prompt to use the file, e.g. embedding:glasses. Empty for the "
                    "demo's, and where ComfyUI cannot find the file by its name (the report says why).",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, embedding_file: str, clip: Any = None) -> str:
        """Size and time of the file, so that a file saved anew is read anew."""
        return embedding_file if bundled(FOLDER, embedding_file) else file_fingerprint(FOLDER, embedding_file)

    @classmethod
    def execute(cls, clip: Any, embedding_file: str) -> Any:
        """Read; EditingError for a damaged, hostile or foreign file, or one of another model."""
        embedding = SemanticEmbedding.load(bundled_file(FOLDER, embedding_file) or resolve_file(FOLDER, embedding_file))
        encoder = HostVectorEncoder(clip)
        conditioning = embedding.condition(encoder)
        lines = [f"{embedding_file}: {embedding.describe()}", *silent_encoders(embedding, encoder)]
        text = ""
        if not bundled(FOLDER, embedding_file):
            text, why = prompt_text(clip, embedding_file, embedding)
            lines += [why] if why else []
        report = report_text(f"It is ready to turn {embedding.target or 'an attribute'} up and down.", *lines)
        return io.NodeOutput(chosen_one(embedding), conditioning, text, report, ui=shown(report))


def silent_encoders(embedding: SemanticEmbedding, encoder: HostVectorEncoder) -> list[str]:
    """A line for people where the model has an encoder that the embedding says nothing to."""
    silent = [name for name in encoder.names if name not in embedding.vectors]
    if not silent:
        return []
    return [f"The file has vectors for {' and '.join(embedding.vectors)} alone; {silent[0]} reads the empty prompt."]


def prompt_text(clip: Any, embedding_file: str, embedding: SemanticEmbedding) -> tuple[str, str]:
    """``(what to write in a prompt to use the file, why there is nothing to write)``; one of them is empty.

    The host is asked about safetensors files only: others it reads with less care than this pack, so their names alone
    are looked at.
    """
    name = Path(embedding_file).with_suffix("").as_posix()
    if Path(embedding_file).suffix.lower() in LEGACY_SUFFIXES:
        if _means_more(name) or embedding.note:
            return "", unreadable_name(embedding_file, partly=bool(embedding.note))
        return f"embedding:{name}", ""
    escaped = name.replace("(", "\\(").replace(")", "\\)")  # brackets are emphasis
    partly = False
    for spelling in (name, escaped, Path(embedding_file).as_posix()):
        written = f"embedding:{spelling}"
        read = vectors_read(clip, written)
        mine = {encoder: embedding.vectors.get(encoder, rows[:0]) for encoder, rows in read.items()}
        if all(rows.shape == mine[name].shape and torch.equal(rows, mine[name]) for name, rows in read.items()):
            return written, ""
        partly = partly or any(len(rows) for rows in read.values())
    return "", unreadable_name(embedding_file, partly)


def unreadable_name(embedding_file: str, partly: bool) -> str:
    """Why there is no text for a prompt."""
    if partly:
        return (
            "From a prompt ComfyUI would read only a part of this file, so there is no prompt text; use the embedding "
            "or conditioning output."
        )
    if _means_more(embedding_file):
        why = "its name has spaces or brackets, which mean something else there; rename the file without them"
    else:
        why = "with this CLIP it reads no such file as an embedding"
    return f"ComfyUI cannot find this file from a prompt: {why}. The embedding output works all the same."


def _means_more(name: str) -> bool:
    """Whether a prompt reads more than a name in ``name``: words, or emphasis."""
    return any(character.isspace() or character in "()" for character in name)


class CASOCombine(io.ComfyNode):
    """Several embeddings, each with its own strength, as one."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        names = ("first", "second", "third", "fourth")
        strengths = [
            widget(
                io.Float,
                f"{name}_strength",
                default=1.0,
                min=-MAX_STRENGTH,
                max=MAX_STRENGTH,
                step=0.1,
                tooltip=f"Times the sampler's strength, for the {name} embedding. 1 is as it is, 0 leaves it out, "
                "below 0 turns it round.",
            )
            for name in names
        ]
        sockets = [
            widget(
                SemanticEmbeddingType,
                name,
                optional=number > 0,
                tooltip=f"The {name} embedding, from Loader, Trainer or Combine.",
            )
            for number, name in enumerate(names)
        ]
        return schema(
            node_id="SemEdit_CASOCombine",
            display_name="CASO Combine",
            category=CATEGORY,
            description="Puts two to four semantic embeddings together, each with a strength of its own (below 0 "
            "removes). Embeddings of equal strength share one prompt and cost one evaluation of the model together.",
            search_aliases=[
                "several attributes",
                "two edits at once",
                "multiple attributes",
                "mix embeddings",
                "add embeddings",
                "caso",
            ],
            inputs=[sockets[0], *strengths, *sockets[1:]],
            outputs=[
                embedding_output("All of them; wire it into CASO Edit Sampler, CASO Generate or another CASO Combine."),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        first: Chosen,
        first_strength: float,
        second_strength: float,
        third_strength: float,
        fourth_strength: float,
        second: Chosen = (),
        third: Chosen = (),
        fourth: Chosen = (),
    ) -> Any:
        """Multiply the strengths and put the embeddings together; EditingError for embeddings of different models."""
        strengths = (first_strength, second_strength, third_strength, fourth_strength)
        groups = zip((first, second, third, fourth), strengths, strict=True)
        chosen: Chosen = tuple((embedding, own * factor) for group, factor in groups for embedding, own in group or ())
        check_together([embedding for embedding, _ in chosen])
        names = ", ".join(f"{embedding.target or 'embedding'} at {strength:+g}" for embedding, strength in chosen)
        report = report_text(
            f"{len(chosen)} embedding(s) together: {names}.",
            *(f"{strength:+g} x {embedding.describe()}" for embedding, strength in chosen),
        )
        return io.NodeOutput(chosen, report, ui=shown(report))


NODES = [CASOEmbeddingLoader, CASOCombine]

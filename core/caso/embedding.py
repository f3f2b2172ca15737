"""Semantic embeddings: a class of an attribute as token vectors, saved as a textual inversion of any program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..denoiser import check_finite
from ..errors import EditingError
from ..file_names import shown_name
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..token_vectors import MAX_TOKENS, TokenVectorEncoder, TokenVectors, encoder_title, joined_widths
from .textual_inversion import SINGLE_KEY, named_vectors, pickled_vectors

FILE_FORMAT = "semantic_editing.embedding"
FILE_VERSION = "1"
LEGACY_SUFFIXES = (".pt", ".pth", ".bin")
MAX_STRENGTH = 100.0


@dataclass(frozen=True, eq=False)
class SemanticEmbedding:
    """Token vectors that mean one class of one attribute (the paper's e_a).

    Attributes:
        vectors: encoder -> ``[n, D]`` fp32 on the CPU; n may differ. Where a model has an encoder more, that one reads
            the empty prompt.
        encoder_name: text encoder they belong to, e.g. "clip_l 768 + clip_g 1280".
        attribute, target: what was learned, e.g. "mouth", "smile"; "" in files of other programs.
        method: how it was learned, "caso" or "" if unknown.
        info: facts of the training for people and programs, JSON-able: classes, level (noise level L), steps,
            classifier (its fingerprint), base_model (family), settings (:meth:`~.settings.TrainingSettings.stored`) and
            edit (how it is used, :attr:`~.settings.Kind.edit`).
        note: what a person should know of a file that holds more than one thing, "" of others.
    """

    vectors: TokenVectors
    encoder_name: str = ""
    attribute: str = ""
    target: str = ""
    method: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        matrices = bool(self.vectors) and all(tensor.ndim == 2 for tensor in self.vectors.values())
        counts = [len(tensor) for tensor in self.vectors.values()] if matrices else [0]
        if not 1 <= min(counts) <= max(counts) <= MAX_TOKENS or 0 in self.widths.values():
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.vectors.items())[:90]
            raise EditingError(
                f"A semantic embedding has 1 to {MAX_TOKENS} token vectors, [tokens, width] for each text encoder, not "
                f"{shapes or 'none'}; choose a textual-inversion file."
            )
        for name, tensor in self.vectors.items():
            check_finite(tensor, f"The embedding's {name} part")
        if not self.encoder_name:
            object.__setattr__(self, "encoder_name", encoder_title(self.widths))

    @property
    def widths(self) -> dict[str, int]:
        """Encoder -> width D."""
        return {name: tensor.shape[1] for name, tensor in self.vectors.items()}

    @property
    def tokens(self) -> int:
        """Number of token vectors n, the largest of an encoder."""
        return max(len(tensor) for tensor in self.vectors.values())

    @property
    def edit(self) -> dict[str, float]:
        """How it is meant to be used in edits: start, focus and strength of its :class:`~.settings.Kind`; empty where
        the file does not say, or says what cannot be."""
        said = self.info.get("edit")
        most = {"start": 1.0, "focus": 1.0, "strength": MAX_STRENGTH}
        if not isinstance(said, Mapping) or set(said) != set(most):
            return {}
        if not all(isinstance(said[key], int | float) and 0 < said[key] <= most[key] for key in most):
            return {}
        return {key: float(said[key]) for key in most}

    def describe(self) -> str:
        """One line for people."""
        what = f"{self.attribute}: {self.target}" if self.target else "embedding of unknown meaning"
        norms = ", ".join(f"{name} {float(tensor.norm(dim=1).mean()):.3g}" for name, tensor in self.vectors.items())
        counts = [len(tensor) for tensor in self.vectors.values()]
        tokens = " + ".join(map(str, counts if len(set(counts)) > 1 else counts[:1]))
        said = f"; {self.note}" if self.note else ""
        return f"{what} ({self.encoder_name}, {tokens} token{'s' * (tokens != '1')}, mean norm {norms}){said}"

    def require_encoder(self, vector_encoder: TokenVectorEncoder) -> None:
        """Raise :class:`EditingError` unless the embedding is for ``vector_encoder`` or one of its encoders."""
        if not self.widths.items() <= dict(vector_encoder.widths).items():
            raise EditingError(
                f"This embedding belongs to the text encoder {self.encoder_name}, but the model uses "
                f"{vector_encoder.encoder_name}; use an embedding trained on this kind of model."
            )

    def condition(self, vector_encoder: TokenVectorEncoder) -> Any:
        """The Denoiser's conditioning of the prompt that holds just these vectors, one row, without gradient.

        Raises:
            EditingError: of another text encoder.
        """
        self.require_encoder(vector_encoder)
        with torch.no_grad():
            return vector_encoder(self.filled(vector_encoder))

    def filled(self, vector_encoder: TokenVectorEncoder) -> TokenVectors:
        """``[1, n, D]`` for every encoder of ``vector_encoder``, n = 0 for those that the embedding says nothing to."""
        return {
            name: self.vectors.get(name, torch.zeros(0, width))[None] for name, width in vector_encoder.widths.items()
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a textual-inversion safetensors file (``embedding:name`` in ComfyUI) with the facts as metadata,
        atomically.

        Raises:
            EditingError: not a .safetensors name, the file exists and ``overwrite`` is False, or it cannot be written.
        """
        if Path(path).suffix.lower() != ".safetensors":
            raise EditingError(
                f"{Path(path).name} does not end in .safetensors; embeddings are saved as safetensors files."
            )
        single = len(self.vectors) == 1
        # No tensor besides: ComfyUI falls back to the first one of the file whatever it is.
        tensors = {SINGLE_KEY if single else name: tensor.float() for name, tensor in self.vectors.items()}
        metadata = {
            FORMAT_KEY: FILE_FORMAT,
            "version": FILE_VERSION,
            "method": self.method,
            "base_model": self.encoder_name,
            "attribute": self.attribute,
            "target": self.target,
            "info": json.dumps(dict(self.info)),
        }
        return save_tensors(path, tensors, metadata, overwrite=overwrite)

    @staticmethod
    def load(path: str | Path) -> SemanticEmbedding:
        """Read a textual-inversion file (ours or another program's), or a linear layer of the released CASO code (.pt).

        The layouts are those of :mod:`.textual_inversion`, all that ComfyUI reads from a prompt.

        Raises:
            EditingError: missing, damaged, hostile, or nothing of the kind.
        """
        source = Path(path)
        if source.suffix.lower() in LEGACY_SUFFIXES:
            vectors, released, note = pickled_vectors(source)
            facts: dict[str, Any] = {"method": "caso", "info": {"file": source.name}} if released else {}
            return SemanticEmbedding(vectors, target=source.stem, note=note, **facts)
        tensors, metadata = load_tensors(source, kind="embedding")
        if (
            metadata.get(FORMAT_KEY, FILE_FORMAT).startswith("semantic_editing.")
            and metadata.get(FORMAT_KEY, FILE_FORMAT) != FILE_FORMAT
        ):
            raise EditingError(
                f"{shown_name(source.name)} is a {shown_name(metadata[FORMAT_KEY])} file; choose a textual-inversion "
                "embedding."
            )
        vectors, note = named_vectors(tensors, metadata.get("base_model", ""), source.name)
        if metadata.get(FORMAT_KEY) != FILE_FORMAT:
            return SemanticEmbedding(vectors, target=source.stem, note=note)
        info = metadata_json(metadata, "info", source.name, "embedding")
        return SemanticEmbedding(
            vectors,
            encoder_title({name: tensor.shape[1] for name, tensor in vectors.items()}),
            metadata.get("attribute", ""),
            metadata.get("target", ""),
            metadata.get("method", ""),
            info,
        )


@dataclass(frozen=True, eq=False)
class GuidanceTerm:
    """One conditional evaluation of an edit: a conditioning of one row (or one for each image) and its strength
    (lambda).

    The guided prediction is ``D_u + sum_i strength_i * (D_i - D_u)`` (Eq. 2 for one term): 0 is off, 1 the plain
    conditional prediction, a negative value leads the other way. A term with ``against`` leads away from these instead:
    their mean prediction takes the place of ``D_u`` in its difference, so that what both have in common cancels.

    Attributes:
        label: for people, e.g. "smile".
        focus: share of the latent's elements that are guided: those where ``D_i - D_u`` is largest, found at each step
            and for each image separately. 1 is all, the paper's edit; less is SEGA's way to leave the rest of the image
            alone (Brack et al. 2023, Eq. 6).
        against: conditionings of other classes of the attribute, of one row each; none compares with the empty prompt,
            as the paper does.

    Raises:
        EditingError: values out of range.
    """

    cond: Any
    strength: float
    label: str = ""
    focus: float = 1.0
    against: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if not 0 < self.focus <= 1:
            raise EditingError(f"focus is {self.focus:g}; use a share above 0 and at most 1, which guides everywhere.")
        if not abs(self.strength) <= MAX_STRENGTH:
            limit = f"{MAX_STRENGTH:g}"
            raise EditingError(
                f"The strength is {self.strength:g}; use a value from -{limit} to {limit}, usually -10 to 10."
            )


def concatenate(embeddings: Sequence[SemanticEmbedding]) -> SemanticEmbedding:
    """Several embeddings as one prompt, their tokens one after another (the paper's multi-attribute edit).

    Raises:
        EditingError: none, different text encoders, or more tokens than a prompt holds.
    """
    if not embeddings:
        raise EditingError("There is no embedding to combine; wire at least one.")
    first = embeddings[0]
    widths = check_together(embeddings)
    if len(embeddings) == 1:
        return first
    vectors = {name: torch.cat([part.vectors[name] for part in embeddings if name in part.vectors]) for name in widths}
    titles = [f"{part.attribute}: {part.target}" if part.attribute else part.target for part in embeddings]
    return SemanticEmbedding(vectors, encoder_title(widths), "", " + ".join(titles), first.method)


def check_together(embeddings: Sequence[SemanticEmbedding]) -> dict[str, int]:
    """Encoder -> width of embeddings that one model can read together.

    Raises:
        EditingError: there is no such model.
    """
    first = embeddings[0]
    for number in range(1, len(embeddings) + 1):
        widths = joined_widths(embedding.widths for embedding in embeddings[:number])
        if widths is None and number > 1:
            raise EditingError(
                f"One embedding belongs to the text encoder {first.encoder_name}, another to "
                f"{embeddings[number - 1].encoder_name}; combine embeddings of one kind of model."
            )
    return widths or first.widths


def scaled_terms(terms: Sequence[GuidanceTerm], factor: float) -> list[GuidanceTerm]:
    """All strengths times ``factor``; terms that end at 0 are left out."""
    return [replace(term, strength=term.strength * factor) for term in terms if term.strength * factor != 0]

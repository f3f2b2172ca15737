"""Learning words: what a model must offer so that token vectors can be learned through it, and their checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import CutTextWarning, EditingError

#: Text encoder -> token vectors; ``[n, D]`` of one prompt or ``[B, n, D]`` of several. SDXL has two encoders, "clip_l"
#: and "clip_g".
TokenVectors = Mapping[str, Tensor]
#: Positions of a prompt besides the start and the end token.
MAX_TOKENS = 75
#: Text encoders by the width of their vectors, for published files that do not name theirs.
ENCODER_OF_WIDTH = {768: "clip_l 768", 1024: "clip_h 1024", 1280: "clip_g 1280"}
#: Text encoders that stand together in one model: SD 1.x and SDXL, SD 2.x.
TOGETHER = ({"clip_l", "clip_g"}, {"clip_h"})


def warn_of_cut(texts: Iterable[str], lengths: Iterable[int], most: int) -> None:
    """Warn, on behalf of the caller's caller, of texts that fill all tokens which a text encoder reads.

    Args:
        lengths: of the texts in tokens, from the start to the end token; cut where the encoder cuts.
        most: that the encoder reads.
    """
    for text, length in zip(texts, lengths, strict=True):
        if length >= most:
            message = f"The text {text[:40]!r} fills all {most} tokens that the text encoder reads; what is beyond is "
            warnings.warn(message + "left out, so shorten it.", CutTextWarning, stacklevel=3)


class TokenVectorEncoder(Protocol):
    """A text encoder that reads given vectors at positions 1..n of the empty prompt, in place of token-table rows.

    Attributes:
        widths: encoder -> width D of its token table, in the order of the encoders.
        encoder_name: as edit directions and embeddings carry it, e.g. "clip_l 768" or "clip_l 768 + clip_g 1280".
        end_vectors: encoder -> ``[D]``, the table's row of the end token. On Stable Diffusion 1, which pads with that
            token, n of them give the empty prompt exactly: the neutral place to start learning from.
        token_scale: encoder -> root mean square of the table's elements, the natural unit of a step of learning.
    """

    widths: Mapping[str, int]
    encoder_name: str
    end_vectors: TokenVectors
    token_scale: Mapping[str, float]

    def __call__(self, vectors: TokenVectors) -> Any:
        """The Denoiser's conditioning of ``vectors``, each ``[B, n, D]``, as B rows; differentiable in the vectors.

        n may be 0: the empty prompt. What the tokenizer would put after a text of n tokens (the end token, padding)
        follows the vectors, so that a vector equal to a word's table row gives that word's conditioning.
        """
        ...

    def word_vectors(self, text: str) -> TokenVectors:
        """The table's rows of the tokens of ``text``, each ``[n, D]``, without gradient; n is 0 for an empty text."""
        ...


class ImageDecoder(Protocol):
    """The latent decoder of a model, differentiable; any cheaper one (TAESD) has the same shape."""

    def __call__(self, latent: Tensor) -> Tensor:
        """``latent [B, C, h, w]`` in the Denoiser's units -> images ``[B, 3, H, W]``, about 0..1 and *not* clipped.

        Clipping would cut the gradient wherever a pixel is black or white.
        """
        ...


def encoder_title(widths: Mapping[str, int]) -> str:
    """The name of a text encoder from its parts' widths: "clip_l 768 + clip_g 1280"."""
    return " + ".join(f"{encoder} {width}" for encoder, width in widths.items())


def empty_condition(vector_encoder: TokenVectorEncoder) -> Any:
    """The empty prompt's conditioning, one row, without gradient: the paper's null text."""
    with torch.no_grad():
        return vector_encoder({encoder: torch.zeros(1, 0, width) for encoder, width in vector_encoder.widths.items()})


def start_vectors(vector_encoder: TokenVectorEncoder, tokens: int, words: str = "") -> TokenVectors:
    """Where learning starts, ``[tokens, D]`` for each encoder: neutral vectors, then those of ``words``.

    The neutral vectors (:attr:`TokenVectorEncoder.end_vectors`) come first because a causal encoder lets a word see
    only what stands before it, and what describes a thing stands before its name: "<learned> hair".

    Raises:
        EditingError: more words than ``tokens``, or words that the encoders know nothing of or count differently.
    """
    rows = {
        encoder: vectors.detach().float().cpu()
        for encoder, vectors in vector_encoder.word_vectors(words.strip()).items()
    }
    counts = {len(vectors) for vectors in rows.values()}
    if len(counts) != 1 or (words.strip() and 0 in counts):
        raise EditingError(f"The text encoder cannot begin from {words.strip()!r}; use plain words, or none.")
    (count,) = counts
    if count > tokens:
        raise EditingError(
            f"The start words {words.strip()!r} are {count} tokens, but tokens is {tokens}; set tokens to {count} or "
            "more."
        )
    ends = {
        encoder: vector.detach().float().cpu().expand(tokens - count, -1)
        for encoder, vector in vector_encoder.end_vectors.items()
    }
    return {encoder: torch.cat([ends[encoder], vectors]) for encoder, vectors in rows.items()}


def joined_widths(parts: Iterable[Mapping[str, int]]) -> dict[str, int] | None:
    """Encoder -> width of several embeddings in one prompt, None where no model reads them together."""
    joined: dict[str, int] = {}
    for widths in parts:
        if any(joined.get(encoder, width) != width for encoder, width in widths.items()):
            return None
        joined |= widths
    known = any(joined.keys() <= encoders for encoders in TOGETHER)
    return dict(sorted(joined.items(), reverse=True)) if known else None  # in the order of a model's encoders


def check_vectors(vectors: TokenVectors, encoder_widths: Mapping[str, int]) -> int:
    """B of ``vectors [B, n, D]``, the same for every encoder; n may differ, for each encoder reads a prompt of its own.

    Raises:
        EditingError: other encoders or widths, unequal B, or more tokens than a prompt holds.
    """
    rows = {len(tensor) for tensor in vectors.values()}
    widths = {encoder: tensor.shape[-1] for encoder, tensor in vectors.items()}
    if widths != dict(encoder_widths) or len(rows) != 1 or any(tensor.ndim != 3 for tensor in vectors.values()):
        raise EditingError(
            f"The token vectors are for {encoder_title(widths)}, but the model's text encoder is "
            f"{encoder_title(encoder_widths)}; use an embedding made with this kind of model."
        )
    tokens = max(tensor.shape[1] for tensor in vectors.values())
    if tokens > MAX_TOKENS:
        raise EditingError(
            f"There are {tokens} token vectors, but a prompt holds {MAX_TOKENS}; combine fewer embeddings."
        )
    return rows.pop()


def clamp_through(images: Tensor) -> Tensor:
    """Clip to 0..1 in value; the gradient passes as if nothing was clipped (straight-through)."""
    return images + (images.clamp(0, 1) - images).detach()

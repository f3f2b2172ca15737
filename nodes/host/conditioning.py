"""CONDITIONING as plain tensors, and text encoding in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def conditioning_tensors(conditioning: list[Any]) -> dict[str, Tensor] | None:
    """``{"embeds": [B, L, D], "pooled"?: [B, P]}`` of a single plain CONDITIONING entry, else None.

    None means: several entries, or parts that are not text (ControlNet, areas, masks, hooks, reference latents).
    """
    raise NotImplementedError


def conditioning_from_tensors(tensors: dict[str, Tensor]) -> list[Any]:
    """The CONDITIONING that :func:`conditioning_tensors` took apart."""
    raise NotImplementedError


def apply_to_conditioning(conditioning: list[Any], change: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]) -> list[Any]:
    """A copy of ``conditioning`` with ``change(embeds [B, L, D], pooled [B, P] | None)`` applied to every entry;
    areas, masks, ControlNet and all other parts are kept."""
    raise NotImplementedError


def encode_sentences(clip: Any, sentences: Sequence[str], batch_size: int = 16) -> tuple[Tensor, Tensor | None]:
    """Encode N sentences with the host's CLIP: ``(embeds [N, L, D], pooled [N, P] or None where the model has no use for it)``.

    Raises:
        EditingError: no sentence, or one longer than a single block of tokens.
    """
    raise NotImplementedError


def text_encoder_name(clip: Any) -> str:
    """A stable name of the text encoder, its parts and widths: "clip_l 768", "clip_l 768 + clip_g 1280"."""
    raise NotImplementedError

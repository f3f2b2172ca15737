"""Edit directions: the mean difference of two lists of sentences in a text encoder (pix2pix-zero, arXiv 2302.03027, 3.2).

A direction is added to a prompt's embedding. It covers every token position, padding included: most of its energy lies
there (94.5 % from position 10 on in the direction between the published cat and dog embeddings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .denoiser import check_finite
from .direction_record import ENCODER_OF_WIDTH, EditDirection
from .errors import EditingError

__all__ = ["ENCODER_OF_WIDTH", "EditDirection", "Encode", "sentence_direction"]

#: Sentences -> ``embeds [N, L, D]``, or ``(embeds, pooled [N, P] or None)``.
Encode = Callable[[list[str]], Tensor | tuple[Tensor, Tensor | None]]


def sentence_direction(
    encode: Encode,
    source_sentences: Sequence[str],
    target_sentences: Sequence[str],
    *,
    batch_size: int = 32,
    encoder_name: str = "",
    source: str = "",
    target: str = "",
    callback: Callable[[int, int], None] | None = None,
) -> EditDirection:
    """Mean state of the target sentences minus that of the source sentences, at every token position.

    Args:
        encode: a list of N sentences -> ``[N, L, D]`` states padded to one length, or ``(states, pooled [N, P] | None)``.
        source_sentences, target_sentences: at least one each; blank ones are left out. Hundreds that differ only in the
            word make the steadiest direction (:func:`~.sentences.expand_words`); the numbers need not be equal.
        batch_size: sentences for each call of ``encode``.
        encoder_name: stored as :attr:`EditDirection.text_encoder`.
        source, target: names for people; the first sentences when empty.
        callback: told ``(sentences done, sentences in all)`` after each batch; an exception it raises ends the run.

    Raises:
        EditingError: a side without sentences, states that are not numbers or differ in shape between batches.
    """
    sides = [[text.strip() for text in texts if text.strip()] for texts in (source_sentences, target_sentences)]
    for texts, side in zip(sides, ("source", "target"), strict=True):
        if not texts:
            raise EditingError(f"The {side} sentence list is empty; write at least one sentence or word.")
    if batch_size < 1:
        raise EditingError(f"batch_size is {batch_size}; use 1 or more.")
    total = sum(map(len, sides))
    means: list[tuple[Tensor, Tensor | None]] = []
    for texts in sides:
        offset = total - len(texts) if means else 0

        def report(done: int, offset: int = offset) -> None:
            if callback is not None:
                callback(offset + done, total)

        means.append(_mean_states(encode, texts, batch_size, report))
    (source_embeds, source_pooled), (target_embeds, target_pooled) = means
    if source_embeds.shape != target_embeds.shape:
        raise EditingError("The text encoder makes sentences of different lengths; use one that pads them to a fixed length.")
    pooled = None if source_pooled is None or target_pooled is None else (target_pooled - source_pooled).float()[None]
    return EditDirection(
        (target_embeds - source_embeds).float()[None], pooled, encoder_name, source or sides[0][0], target or sides[1][0], total
    )  # fmt: skip


def _mean_states(encode: Encode, texts: list[str], batch_size: int, report: Callable[[int], None]) -> tuple[Tensor, Tensor | None]:
    """Means over sentences in fp64 on the CPU: ``([L, D], [P] or None)``."""
    embeds_sum: Tensor | None = None
    pooled_sum: Tensor | None = None
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            encoded = encode(batch)
            embeds, pooled = (encoded, None) if isinstance(encoded, Tensor) else encoded
            if embeds.ndim != 3 or len(embeds) != len(batch):
                raise EditingError(
                    f"The text encoder returned shape {list(embeds.shape)} for {len(batch)} sentences; it cannot be used here."
                )
            check_finite(embeds, "The text encoder's output")
            part = embeds.double().cpu().sum(0)
            if embeds_sum is not None and embeds_sum.shape != part.shape:
                raise EditingError("The text encoder makes sentences of different lengths; use one that pads them to a fixed length.")
            embeds_sum = part if embeds_sum is None else embeds_sum + part
            if pooled is not None:
                check_finite(pooled, "The text encoder's pooled output")
                pooled_part = pooled.double().cpu().sum(0)
                pooled_sum = pooled_part if pooled_sum is None else pooled_sum + pooled_part
            report(start + len(batch))
    assert embeds_sum is not None  # there is at least one batch
    return embeds_sum / len(texts), None if pooled_sum is None else pooled_sum / len(texts)

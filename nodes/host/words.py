"""A prompt's tokens as the host's CLIP puts them into a conditioning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.errors import EditingError
from ...core.inversion import Words
from .conditioning import BLOCK_ENCODERS, PREFIX, token_number


def token_ids(clip: Any, text: str) -> dict[str, list[list[int]]]:
    """Name of each encoder, "l", "g", "h" -> blocks of token ids of a text: a start token, the end token and padding.

    Emphasis, as in (hair:1.2), says nothing here.

    Raises:
        EditingError: a text encoder without fixed blocks of tokens.
    """
    tokens = clip.tokenize(text)
    if set(tokens) not in BLOCK_ENCODERS:
        raise EditingError(
            "The words of this text encoder's prompts cannot be told apart; use the CLIP of an SD 1.x, SD 2.x or SDXL "
            "model."
        )
    return {name: [[token_number(token) for token, *_ in block] for block in blocks] for name, blocks in tokens.items()}


def prompt_blocks(clip: Any, text: str) -> tuple[list[list[int]], Callable[[int], str], int]:
    """``(blocks of token ids, byte pairs of an id, id of the end token)`` of a text; "" are the byte pairs of a vector.

    Raises:
        EditingError: see :func:`token_ids`.
    """
    tokens = token_ids(clip, text)
    name = min(tokens, key=len)  # the encoders of a model read the same byte pairs
    tokenizer = getattr(clip.tokenizer, PREFIX + name)
    return tokens[name], lambda number: str(tokenizer.inv_vocab.get(number, "")), tokenizer.end_token


def prompt_words(clip: Any, text: str) -> Words:
    """A text as an INVERSION keeps it."""
    return Words(text, {name: tuple(map(tuple, blocks)) for name, blocks in token_ids(clip, text).items()})


def encoded_text(clip: Any, text: str) -> Any:
    """CONDITIONING of a text, the one that stock CLIP Text Encode makes."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))

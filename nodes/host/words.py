"""A prompt's tokens as the host's CLIP puts them into a conditioning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.errors import EditingError
from .conditioning import BLOCK_ENCODERS
from .tokens import PREFIX


def prompt_blocks(clip: Any, text: str) -> tuple[list[list[int]], Callable[[int], str], int]:
    """``(blocks of token ids, byte pairs of an id, id of the end token)`` of a text.

    Each block has a start token, the end token and padding. Vectors of ``embedding:name`` have no id: equal ones get
    one negative number, whose byte pairs are "". Emphasis, as in (hair:1.2), says nothing here.

    Raises:
        EditingError: a text encoder without fixed blocks of tokens.
    """
    tokens = clip.tokenize(text)
    if set(tokens) not in BLOCK_ENCODERS:
        raise EditingError(
            "The words of this text encoder's prompts cannot be told apart; use the CLIP of an SD 1.x, SD 2.x or SDXL "
            "model."
        )
    name = min(tokens, key=len)  # the encoders of a model read the same byte pairs
    tokenizer = getattr(clip.tokenizer, PREFIX + name)
    blocks = [
        [
            token if isinstance(token, int) else -1 - abs(hash(token.float().cpu().numpy().tobytes()))
            for token, *_ in block
        ]
        for block in tokens[name]
    ]
    return blocks, lambda number: str(tokenizer.inv_vocab.get(number, "")), tokenizer.end_token


def encoded_text(clip: Any, text: str) -> Any:
    """CONDITIONING of a text, the one that stock CLIP Text Encode makes."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))

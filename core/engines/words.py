"""The words of a prompt as its conditioning has them, and which tokens of one prompt correspond to those of another."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import EditingError

#: By which CLIP's byte pairs mark the last piece of a word.
WORD_END = "</w>"


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens at the positions of its conditioning.

    Attributes:
        text: as written.
        length: positions of the conditioning, those of start, end and padding included.
        words: in order; punctuation is a word of its own.
        positions: of the tokens of each word.
        tails: for each block of tokens, the positions from its end token on.
    """

    text: str
    length: int
    words: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    tails: tuple[tuple[int, ...], ...]

    def find(self, phrase: Prompt) -> tuple[int, ...]:
        """Positions of all tokens of ``phrase``, wherever its words stand in a row.

        Raises:
            EditingError: no such words; the sentence lists those that there are.
        """
        found = self.occurrences(phrase)
        if not found:
            raise EditingError(
                f"{_short(self.text)} has no {phrase.text.strip()!r}; its words are: {', '.join(self.words) or 'none'}."
            )
        return found

    def occurrences(self, phrase: Prompt) -> tuple[int, ...]:
        """:meth:`find`, and () where the words are not there."""
        wanted, found = phrase.words, set[int]()
        for start in range(len(self.words) - len(wanted) + 1) if wanted else ():
            if self.words[start : start + len(wanted)] == wanted:
                found.update(*self.positions[start : start + len(wanted)])
        return tuple(sorted(found))


#: Reads a text as its encoder's tokenizer does.
ReadPrompt = Callable[[str], Prompt]


def read_prompt(text: str, blocks: Sequence[Sequence[int]], piece: Callable[[int], str], end: int) -> Prompt:
    """The prompt of token ids in ``blocks``, each with a start token, the end token and padding.

    Args:
        piece: the byte pairs of an id, with :data:`WORD_END` where a word ends; "" for what is no word (a vector).
        end: id of the end token.
    """
    words, positions, tails, offset = [], [], [], 0
    for block in blocks:
        last = list(block).index(end) if end in block else len(block)
        pieces: list[str] = []
        held: list[int] = []
        for number in range(1, last):
            part = piece(block[number])
            pieces.append(part.removesuffix(WORD_END) if part else f"[{block[number]}]")
            held.append(offset + number)
            if not part or part.endswith(WORD_END) or number == last - 1:
                words.append("".join(pieces))
                positions.append(tuple(held))
                pieces, held = [], []
        tails.append(tuple(range(offset + last, offset + len(block))))
        offset += len(block)
    return Prompt(text, offset, tuple(words), tuple(positions), tuple(tails))


@dataclass(frozen=True, eq=False)
class Swap:
    """Tokens that stand in the place of others: ``weights [len(rows), len(columns)]`` share out the source's mass, each
    row summing to 1."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where each token of the target takes its attention from.

    Attributes:
        taken: long ``[L]``, the source's position that corresponds to each of the target's; -1: it keeps its own.
        swaps: words that replace others (Prompt-to-Prompt's word swap), whose tokens may differ in number.
    """

    taken: Tensor
    swaps: tuple[Swap, ...] = ()

    def edited(self, source: Tensor, own: Tensor) -> Tensor:
        """The target's maps ``[B, heads, N, M]`` from the source's and its ``own`` of the same shape.

        A host may repeat the text (M a multiple of L) or other packs may add tokens behind it: those keep their order.
        """
        length, count = len(self.taken), source.shape[-1]
        copies = count // length if count % length == 0 else 1
        index = torch.arange(count)
        for copy in range(copies):
            here = self.taken.clone()
            here[here >= 0] += copy * length
            index[copy * length : (copy + 1) * length] = here
        index = index.to(source.device)
        made = source.index_select(-1, index.clamp_min(0))
        made = torch.where(index >= 0, made, own)
        for copy in range(copies):
            for swap in self.swaps:
                rows, columns = (
                    torch.tensor(part, device=source.device) + copy * length for part in (swap.rows, swap.columns)
                )
                made[..., columns] = source[..., rows] @ swap.weights.to(source)
        return made


def align(source: Prompt, target: Prompt, swap: bool = False) -> Alignment:
    """Match the words of two prompts: equal ones token by token, start, end and padding in their order.

    Args:
        swap: words that replace others take over their attention; otherwise they keep their own, as inserted ones do.

    Raises:
        EditingError: prompts whose conditionings differ in length.
    """
    if source.length != target.length:
        raise EditingError(
            f"The source text is {source.length} tokens long and the target text {target.length}; "
            "use prompts that both fit into one chunk of 77 tokens, or both into as many."
        )
    taken = torch.full((target.length,), -1)
    swaps = []
    for one, other in zip(source.tails, target.tails, strict=True):
        taken[list(other[: len(one)])] = torch.tensor(one[: len(other)], dtype=torch.long)
    starts = {0, *(tail[-1] + 1 for tail in target.tails[:-1] if tail)}
    taken[list(starts)] = torch.tensor(list(starts))
    for kind, rows, columns in _matched(source, target):
        if kind == "equal":
            taken[columns] = torch.tensor(rows)
        elif kind == "replace" and swap:
            swaps.append(Swap(tuple(rows), tuple(columns), _shares(len(rows), len(columns))))
    return Alignment(taken, tuple(swaps))


def changed_words(source: Prompt, target: Prompt) -> tuple[list[str], list[str]]:
    """Words of the source that the target has not in their place, and those that it has instead or besides."""
    removed: list[str] = []
    added: list[str] = []
    matcher = difflib.SequenceMatcher(None, source.words, target.words, autojunk=False)
    for kind, first, last, begin, stop in matcher.get_opcodes():
        if kind != "equal":
            removed += source.words[first:last]
            added += target.words[begin:stop]
    return removed, added


def _matched(source: Prompt, target: Prompt) -> Iterator[tuple[str, list[int], list[int]]]:
    matcher = difflib.SequenceMatcher(None, source.words, target.words, autojunk=False)
    for kind, first, last, begin, stop in matcher.get_opcodes():
        rows = [position for word in source.positions[first:last] for position in word]
        columns = [position for word in target.positions[begin:stop] for position in word]
        yield kind, rows, columns


def _shares(rows: int, columns: int) -> Tensor:
    """``[rows, columns]``: both stretched over the same length, the part of each row that lies on each column."""
    row, column = torch.arange(rows).double(), torch.arange(columns).double()
    upper = torch.minimum((row[:, None] + 1) / rows, (column + 1) / columns)
    lower = torch.maximum(row[:, None] / rows, column / columns)
    return ((upper - lower).clamp_min(0) * rows).float()


def word_factors(text: str, prompt: Prompt, read: ReadPrompt) -> Tensor | None:
    """Factor ``[L]`` of each token's attention from "glasses: 2, red hair: 0.5"; None for an empty text.

    Raises:
        EditingError: another form, a factor that is not a number, words that the prompt does not have.
    """
    if not text.strip():
        return None
    factors = torch.ones(prompt.length)
    for entry in filter(str.strip, text.split(",")):
        word, _, number = entry.rpartition(":")
        try:
            factor = float(number)
        except ValueError:
            factor = float("nan")
        if not word.strip() or not abs(factor) < float("inf"):
            raise EditingError(f"{entry.strip()!r} is no word with its factor; write e.g. 'glasses: 2, red hair: 0.5'.")
        factors[list(prompt.find(read(word)))] = factor
    return factors


def places_of(text: str, source: Prompt, target: Prompt, read: ReadPrompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions in both prompts of the words in ``text``, parted by commas; each must be in one of them.

    Raises:
        EditingError: words that neither has.
    """
    found: tuple[set[int], set[int]] = (set(), set())
    for entry in filter(str.strip, text.split(",")):
        phrase = read(entry)
        places = [prompt.occurrences(phrase) for prompt in (source, target)]
        if not any(places):
            words = dict.fromkeys((*source.words, *target.words))
            raise EditingError(f"Neither prompt has {entry.strip()!r}; their words are: {', '.join(words) or 'none'}.")
        for positions, more in zip(found, places, strict=True):
            positions.update(more)
    return tuple(sorted(found[0])), tuple(sorted(found[1]))


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return f"The text {shown[:60] + '...' if len(shown) > 60 else shown!r}"

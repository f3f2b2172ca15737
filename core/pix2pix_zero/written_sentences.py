"""Sentences for an edit direction that a text model writes, in pairs that differ in the edited word alone.

pix2pix-zero (section 3.2) has a language model write about a thousand sentences with each word and takes the difference
of their means. Here what is written with one word is said with the other too: the pair then shows word by word what
changes (:mod:`.shift_field`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import EditingError
from .sentences import with_article

#: ``(prompt, how many, seed) -> texts``, see :meth:`~..models.text_generator.TextGenerator.write`.
Write = Callable[[str, int, int], list[str]]

PROMPT = "Write a caption of a photo with the word: {word}\n"
LEAST_WORDS, MOST_WORDS = 3, 40
TRIES = 4  # texts that are asked for, for each wanted sentence at most
MOST = 1000


@dataclass(frozen=True)
class WrittenSentences:
    """Paired sentences, and what became of all that was written.

    Attributes:
        source, target: sentence i of both differs in the word only.
        tried: texts that were written.
        unfit: how many of them were empty, too short or long, said before, or did not say the one word once.
    """

    source: list[str]
    target: list[str]
    tried: int
    unfit: int

    def describe(self) -> str:
        """One line for people."""
        return f"{len(self.source)} pairs of sentences from {self.tried} texts ({self.unfit} unfit)"


def written_sentences(
    write: Write, source: str, target: str, count: int, seed: int = 0, prompt: str = PROMPT
) -> WrittenSentences:
    """``count`` pairs, half of them written about each word; fewer where the model writes too much that is unfit.

    Args:
        prompt: what the model goes on with; ``{word}`` stands for the word.

    Raises:
        EditingError: an empty word, a prompt without ``{word}``, a count out of range, or a model of whose texts none
            can be used.
    """
    words = [" ".join(word.split()).strip(" ,.") for word in (source, target)]
    if not all(words):
        raise EditingError("A word of the edit is empty; write what the image shows and what it shall show instead.")
    if words[0].lower() == words[1].lower():
        raise EditingError("Source and target are the same; write what the image shows and what it shall show instead.")
    if "{word}" not in prompt:
        raise EditingError("The prompt of the text model does not hold {word}; say where the word goes.")
    if not 1 <= count <= MOST:
        raise EditingError(f"The number of sentences is {count}; use 1 to {MOST}.")
    found: dict[tuple[str, str], None] = {}
    tried = 0
    last = ""
    for number, word in enumerate(words):
        wanted = len(found) + (count - len(found) if number else (count + 1) // 2)
        for attempt in range(TRIES):
            missing = wanted - len(found)
            if missing < 1:
                break
            texts = write(prompt.replace("{word}", word), missing, seed + 2 * attempt + number)
            tried += len(texts)
            for text in texts:
                last = text.strip() or last
                if sentence := usable(text, word, words[1 - number]):
                    other = said_with(sentence, word, words[1 - number])
                    found.setdefault((sentence, other) if number == 0 else (other, sentence))
    if not found:
        example = f", such as {last[:60]!r}" if last else ""
        raise EditingError(
            f"The text model wrote {tried} texts{example}, none a sentence of {LEAST_WORDS} to {MOST_WORDS} words with "
            f"{words[0]!r} or {words[1]!r} once; use another prompt or model, or the built-in sentences."
        )
    pairs = list(found)
    return WrittenSentences([pair[0] for pair in pairs], [pair[1] for pair in pairs], tried, tried - len(pairs))


def usable(text: str, word: str, other: str) -> str:
    """The first sentence in ``text`` if it says ``word`` just once, not ``other``, and is neither too short nor too
    long; else ""."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^\W*(\d+[.):]\s*)?", "", line).strip().strip("\"'")
    sentence = re.split(r"(?<=[.!?])\s", line)[0].strip()
    enough = LEAST_WORDS <= len(sentence.split()) <= MOST_WORDS
    once = len(_place(word).findall(sentence)) == 1 and not _place(other).search(sentence)
    return sentence if enough and once else ""


def said_with(sentence: str, word: str, other: str) -> str:
    """``sentence`` with ``other`` in place of ``word``, its article and its capital."""

    def put(match: re.Match[str]) -> str:
        article, said = match[1] or "", match[2]
        shown = other[:1].upper() + other[1:] if said[:1].isupper() and not word[:1].isupper() else other
        if not article:
            return shown
        made = with_article(shown).split()[0]
        return f"{made.capitalize() if article[0].isupper() else made}{article[len(article.rstrip()) :]}{shown}"

    return _place(word).sub(put, sentence)


def _place(word: str) -> re.Pattern[str]:
    """Where a text says ``word``, with "a" or "an" before it (first group)."""
    return re.compile(rf"(?i)\b(an?\s+)?(?<![\w-])({re.escape(word)})(?![\w-])")

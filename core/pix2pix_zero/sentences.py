"""Sentences around a word, for edit directions without a language model.

pix2pix-zero asks GPT-3 for about 1000 sentences a word and calls its offline template bank entangled, because each word
draws its own random templates. Here all words of a call are put into *the same* frames, so that the frames cancel in
the mean difference and what differs is the word alone. The bank is written for this pack (``sentence_bank.json``): no
verb depends on the word, which stands as an object or after a preposition, so any noun phrase fits grammatically. What
is said of a picture as a whole (its medium, season, time of day, what things are made of) has a bank of its own.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import EditingError

Bank = Literal["general", "portrait", "style"]
Mode = Literal["auto", "words", "sentences"]

BANK_FILE = Path(__file__).with_name("sentence_bank.json")
DEFAULT_COUNT = 256
MAX_COUNT = 2000
MAX_DETAILS = 3
#: Banks in which one of several words may say nothing.
SILENT = ("portrait", "style")
DRAWS = 50  # tries for each wanted sentence, before the bank counts as exhausted
#: Nouns in -s of one thing, which take an article; other words in -s are taken as plurals.
SINGULAR_IN_S = re.compile(r"(ss|us|is|os)$")


def expand_word(word: str, count: int = DEFAULT_COUNT, seed: int = 0, bank: Bank = "general") -> list[str]:
    """``count`` different sentences around ``word``; the same frames for the same ``count``, ``seed`` and ``bank``.

    See :func:`expand_words`, which also keeps a detail from contradicting any of several words.
    """
    return expand_words([word], count, seed, bank)[0]


def expand_words(
    words: Sequence[str], count: int = DEFAULT_COUNT, seed: int = 0, bank: Bank = "general"
) -> list[list[str]]:
    """Put each word into the same ``count`` sentences: one list a word; sentence i differs in the word only.

    Args:
        words: nouns ("cat"), noun phrases ("an oil painting"), or looks of a person ("smiling", "wearing glasses").
        count: 1..2000 sentences a word.
        seed: which of the sentences are drawn.
        bank: ``"general"``: everyday sentences for any noun phrase. ``"portrait"``: captions of the demo world, into
            which the word goes as it is ("with a beard", "red hair"); details of the same kind are left out.
            ``"style"``: "{style} of {subject}"; subjects in a season, at a time of day or in some weather ("winter",
            "at night"); things made of a material ("wood"). All words are of one of these kinds. In the last two banks
            one of several words may be empty: nothing is said ("with a beard" against none).

    Raises:
        EditingError: an empty word, words of different kinds of style, a count out of range, or an unknown bank.
    """
    cleaned = [" ".join(word.split()).strip(" ,.") for word in words]
    if not (any(cleaned) if bank in SILENT else cleaned and all(cleaned)):
        raise EditingError("A word of the edit is empty; write what the image shows and what it shall show instead.")
    if not 1 <= count <= MAX_COUNT:
        raise EditingError(f"The number of sentences is {count}; use 1 to {MAX_COUNT}.")
    if bank not in get_args(Bank):
        raise EditingError(f"There is no sentence bank {bank!r}; use one of {', '.join(get_args(Bank))}.")
    kind = style_kind(cleaned) if bank == "style" else ""
    if kind:
        cleaned = [style_phrase(word, kind) for word in cleaned]
    frames = _FRAMES[bank]
    rng = random.Random(seed)  # nosec B311 # the same sentences for the same seed, nothing secret
    seen: dict[str, tuple[str, str]] = {}
    for _ in range(DRAWS * count):
        frame, adjective = frames(rng, [kind] if kind else cleaned)
        seen.setdefault(f"{frame} {adjective}", (frame, adjective))
        if len(seen) == count:
            break
    else:
        raise EditingError(
            f"The bank {bank!r} has fewer than {count} sentences for these words; use fewer sentences or shorter words."
        )
    return [
        [
            _sentence(frame, noun_phrase(word, adjective) if bank == "general" else word)
            for frame, adjective in seen.values()
        ]
        for word in cleaned
    ]


def sentences_of(
    texts: Sequence[str], mode: Mode = "auto", count: int = DEFAULT_COUNT, seed: int = 0, bank: Bank = "general"
) -> list[list[str]]:
    """Sentences from text fields, a list for each: lines as they are, or a word or phrase put into ``count`` sentences.

    The words among ``texts`` are expanded together, so that they share their sentences.

    Args:
        mode: ``"auto"``: a single line without a full stop at its end is a word, all else are sentences. ``"words"``,
            ``"sentences"``: one of the two without guessing.

    Raises:
        EditingError: nothing but blank lines, several lines where one word is wanted, an unknown mode; see
            :func:`expand_words`.
    """
    fields = [[line.strip() for line in text.splitlines() if line.strip()] for text in texts]
    if mode not in get_args(Mode):
        raise EditingError(f"There is no mode {mode!r}; use one of {', '.join(get_args(Mode))}.")
    silent = bank in SILENT and mode != "sentences" and any(_is_word(lines, mode) for lines in fields if lines)
    if not (any(fields) if silent else fields and all(fields)):
        raise EditingError(
            "The sentence list is empty; write one word, or sentences one per line. To add what is not there, the "
            "banks portrait and style take a word on one side and nothing on the other."
        )
    fields = [lines or [""] for lines in fields]
    longest = max(map(len, fields))
    if mode == "words" and longest > 1:
        raise EditingError(
            f"There are {longest} lines where one word or phrase is wanted; write one line or use the mode 'sentences'."
        )
    words = [lines[0] for lines in fields if _is_word(lines, mode)]
    expanded = iter(expand_words(words, count, seed, bank) if words else [])
    return [next(expanded) if _is_word(lines, mode) else lines for lines in fields]


def _is_word(lines: list[str], mode: Mode) -> bool:
    return mode == "words" or (mode == "auto" and len(lines) == 1 and not lines[0].endswith((".", "!", "?")))


def noun_phrase(word: str, adjective: str = "") -> str:
    """``word`` as a noun phrase with its article, ``adjective`` (may be empty) before the noun: "cat" -> "a small cat".

    A determiner that is there is kept ("the old man"), plurals and uncounted things get none ("small dogs", "snow"),
    and looks become a person's: "smiling" -> "a smiling person", "wearing glasses" -> "a person wearing glasses".
    """
    grammar = _bank("grammar")
    first, *rest = word.split()
    if first.lower() in grammar["descriptions"]:
        word = f"person {word}"
    elif not rest and first.lower() in grammar["adjectives"]:
        word = f"{word} person"
    elif first.lower() in grammar["determiners"]:
        described = " ".join(part for part in (adjective, *rest) if part)
        determiner = first if first.lower() not in ("a", "an") else _article(described)
        return f"{determiner} {described}".strip()
    described = f"{adjective} {word}".strip()
    last = word.split()[-1].lower() if len(word.split()) <= 2 else first.lower()
    bare = last in grammar["uncounted"] or (
        last.endswith("s") and not SINGULAR_IN_S.search(last) and not word.startswith("person ")
    )
    return described if bare else f"{_article(described)} {described}"


def style_kind(words: Sequence[str]) -> str:
    """Which kind of style the words are of: "picture", "time" or "material"; empty ones are of any.

    Raises:
        EditingError: words of different kinds.
    """
    kinds = {word: _kind_of(word) for word in words if word}
    if len(set(kinds.values())) > 1:
        named = " and ".join(f"{word!r} ({kind})" for word, kind in kinds.items())
        raise EditingError(
            f"The words are of different kinds of style: {named}; use two mediums, two times or seasons, or two "
            "materials."
        )
    return next(iter(kinds.values()))


def _kind_of(word: str) -> str:
    bank, said = _bank("style"), word.lower()
    for kind, entry in bank["kinds"].items():
        if said in entry["phrases"] or said in entry["phrases"].values():
            return str(kind)
    if said.startswith("made "):
        return "material"
    return "time" if said.split()[0] in bank["adverbs"] else "picture"


def style_phrase(word: str, kind: str) -> str:
    """The word as the frames of its kind take it: "winter" -> "in winter", "oil painting" -> "an oil painting", "anime"
    -> "an anime style picture"; "" says nothing, but a picture stays a picture.
    """
    entry = _bank("style")["kinds"][kind]
    known: str | None = entry["phrases"].get(word.lower())
    if known is not None or kind != "picture":
        return word if known is None else known
    if word.lower().split()[-1].rstrip("s") in entry["nouns"] or " of " in word or " by " in word:
        return noun_phrase(word)
    return noun_phrase(f"{word.removesuffix(' style')} style picture")


def with_article(phrase: str) -> str:
    """``phrase`` with "a" or "an" before it."""
    return f"{_article(phrase)} {phrase}"


def _article(phrase: str) -> str:
    return "an" if re.match(r"(?i)(?!uni|use|one|eu)[aeiou]|hour|honest", phrase) else "a"


def _sentence(frame: str, phrase: str) -> str:
    if not phrase:
        frame = re.sub(r"^{word}, |, {word}| taken {word}| {word}", "", frame)
    text = frame.replace("{word}", phrase)
    return text[:1].upper() + text[1:] if text.endswith((".", "!")) else text


def _fill(rng: random.Random, frame: str, slots: dict[str, list[str]]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: rng.choice(slots[match[1]]) if match[1] in slots else match[0], frame)


def _general_frames(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    bank = _bank("general")
    return _fill(rng, rng.choice(bank["frames"]), bank["slots"]), rng.choice(bank["adjectives"])


def _portrait_frames(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    bank = _bank("portrait")
    used = {part.lower().strip(",.") for word in words for part in word.split()}
    kinds = [kind["options"] for kind in bank["details"] if used.isdisjoint(kind["excluded_by"])]
    rng.shuffle(kinds)
    frame = _fill(rng, rng.choice(bank["frames"]), bank["slots"])
    while "{details}" in frame:
        chosen = [rng.choice(kinds.pop()) for _ in range(min(len(kinds), rng.randint(1, MAX_DETAILS)))]
        frame = frame.replace(", {details}", "".join(f", {detail}" for detail in chosen), 1)
    return frame, ""


def _style_frames(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    bank = _bank("style")
    return _fill(rng, rng.choice(bank["kinds"][words[0]]["frames"]), bank["slots"]), ""


_FRAMES = {"general": _general_frames, "portrait": _portrait_frames, "style": _style_frames}


@cache
def _bank(name: str) -> dict[str, Any]:
    banks: dict[str, dict[str, Any]] = json.loads(BANK_FILE.read_text(encoding="utf-8"))
    return banks[name]

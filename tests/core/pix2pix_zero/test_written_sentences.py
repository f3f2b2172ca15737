"""Sentences of a text model: pairs that differ in the word alone, and what cannot be used is told."""

import pytest

from semantic_editing.core.errors import EditingError
from semantic_editing.core.pix2pix_zero.written_sentences import said_with, usable, written_sentences


class Writer:
    """Says what it is told to, in turn, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = texts, []

    def __call__(self, prompt, count, seed):
        self.asked.append((prompt, count, seed))
        start = sum(entry[1] for entry in self.asked[:-1])
        return [self.texts[(start + index) % len(self.texts)] for index in range(count)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A cat sits on a mat.", "A cat sits on a mat."),
        ("\n 1. A Cat sits here. Then it goes.\nMore", "A Cat sits here."),
        ("- two cats sit here", ""),  # another word
        ("my bobcat sits here", ""),
        ("a cat-like thing sits", ""),
        ("a cat", ""),
        ("", ""),
        ("a cat sits by a cat", ""),  # twice
        ("a cat sits by a dog", ""),  # the other as well
        ("the cat " + "sits " * 40, ""),
    ],
)
def test_what_can_be_used_of_a_text(text, sentence):
    assert usable(text, "cat", "dog") == sentence


@pytest.mark.parametrize(
    ("sentence", "word", "other", "expected"),
    [
        ("A cat and an old cat.", "cat", "owl", "An owl and an old owl."),
        ("Cat on an umbrella", "cat", "dog", "Dog on an umbrella"),
        ("an  owl at night", "owl", "red fox", "a  red fox at night"),
        ("The oil painting hangs", "oil painting", "sketch", "The sketch hangs"),
    ],
)
def test_the_other_word_is_said_in_its_place(sentence, word, other, expected):
    assert said_with(sentence, word, other) == expected


def test_half_of_the_pairs_are_written_about_each_word():
    def write(prompt, count, seed):
        return [f"{'A cat' if 'cat' in prompt else 'An owl'} sits at {seed} {number}" for number in range(count)]

    made = written_sentences(write, "cat", "owl", 5, seed=7, prompt="about {word}: ")
    assert made.source == [f"A cat sits at {place}" for place in ("7 0", "7 1", "7 2", "8 0", "8 1")]
    assert made.target == [text.replace("A cat", "An owl") for text in made.source]
    assert (made.tried, made.unfit) == (5, 0) and made.describe() == "5 pairs of sentences from 5 texts (0 unfit)"


def test_what_is_unfit_is_asked_for_again_and_counted():
    writer = Writer("a cat sits here", "junk", "the cat sits there", "a cat sits here")
    made = written_sentences(writer, "cat", "dog", 4)
    assert made.source == ["a cat sits here", "the cat sits there"] and made.unfit == made.tried - 2
    assert len({seed for _, _, seed in writer.asked}) == len(writer.asked)  # never the same texts again


@pytest.mark.parametrize(
    ("texts", "source", "more", "said"),
    [
        (("",), "cat", {}, "wrote 24 texts, none a sentence"),  # 4 tries of half of them, then of all
        (("cat", "no"), "cat", {}, "such as 'no', none a sentence of 3 to 40 words with 'cat' or 'dog'"),
        (("a",), " ", {}, "A word of the edit is empty"),
        (("a",), "Dog", {}, "Source and target are the same"),
        (("a",), "cat", {"prompt": "write"}, r"does not hold \{word\}"),
        (("a",), "cat", {"count": 0}, "number of sentences is 0; use 1 to 1000"),
    ],
)
def test_junk_and_bad_input_are_told(texts, source, more, said):
    with pytest.raises(EditingError, match=said):
        written_sentences(Writer(*texts), source, "dog", **{"count": 4, **more})

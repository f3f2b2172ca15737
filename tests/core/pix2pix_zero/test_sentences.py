"""The sentence bank: enough, different, paired, and grammatical where it can be checked by rule."""

import random
import re

import pytest

from semantic_editing.core.errors import EditingError
from semantic_editing.core.pix2pix_zero.sentences import (
    expand_word,
    expand_words,
    noun_phrase,
    sentences_of,
    style_kind,
    style_phrase,
)


@pytest.mark.parametrize("bank", ["general", "portrait"])
def test_hundreds_of_different_sentences(bank):
    sentences = expand_word("owl", 1000, bank=bank)
    assert len(set(sentences)) == 1000
    assert all("owl" in sentence.lower() for sentence in sentences)
    words = {word for sentence in sentences for word in sentence.lower().split()}
    assert len(words) > 60


@pytest.mark.parametrize("bank", ["general", "portrait"])
def test_both_sides_are_the_same_sentences_but_for_the_word(bank):
    cats, fawns = expand_words(["gray cat", "tall fawn"], 300, bank=bank)
    assert [sentence.replace("gray cat", "tall fawn").replace("Gray cat", "Tall fawn") for sentence in cats] == fawns
    assert expand_word("gray cat", 300, bank=bank) == cats


def test_the_seed_decides_and_the_global_state_is_left_alone():
    before = random.getstate()
    assert expand_word("cat", 50, seed=1) == expand_word("cat", 50, seed=1)
    assert set(expand_word("cat", 50, seed=1)) != set(expand_word("cat", 50, seed=2))
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("word", "adjective", "phrase"),
    [
        ("cat", "", "a cat"),
        ("owl", "", "an owl"),
        ("owl", "small", "a small owl"),
        ("cat", "old", "an old cat"),
        ("unicorn", "", "a unicorn"),
        ("hourglass", "", "an hourglass"),
        ("an owl", "small", "a small owl"),
        ("a cat", "old", "an old cat"),
        ("the Eiffel Tower", "", "the Eiffel Tower"),
        ("two dogs", "small", "two small dogs"),
        ("dogs", "", "dogs"),
        ("glass", "", "a glass"),
        ("bus", "old", "an old bus"),
        ("snow", "bright", "bright snow"),
        ("red hair", "", "red hair"),
        ("smiling", "", "a smiling person"),
        ("old", "", "an old person"),
        ("wearing glasses", "", "a person wearing glasses"),
        ("with a beard", "tall", "a tall person with a beard"),
        ("a person wearing glasses", "tall", "a tall person wearing glasses"),
        ("oil painting", "", "an oil painting"),
    ],
)
def test_noun_phrases(word, adjective, phrase):
    assert noun_phrase(word, adjective) == phrase


@pytest.mark.parametrize("word", ["cat", "owl", "dogs", "snow", "smiling", "wearing glasses", "the old house"])
def test_articles_fit_and_nothing_is_left_unfilled(word):
    for sentence in expand_word(word, 400):
        assert not re.search(r"(?i)\ba (?=[aeiou])(?!uni|use|one)", sentence), sentence
        assert not re.search(r"(?i)\ban (?![aeiouh])", sentence), sentence
        assert not re.search(r"[{}]|  |,,| ,", sentence), sentence
        assert sentence[0].isupper() and sentence[-1] in ".!"


def test_portraits_do_not_contradict_the_words():
    for with_beard, shaven in zip(*expand_words(["with a beard", "clean shaven"], 300, bank="portrait"), strict=True):
        assert with_beard.count("beard") == 1 and "mustache" not in with_beard
        assert shaven.count("shaven") == 1 and "beard" not in shaven


def test_a_portrait_may_say_nothing_about_the_edit():
    said, unsaid = expand_words(["wearing glasses", ""], 200, bank="portrait")
    assert [sentence.replace(", wearing glasses", "") for sentence in said] == unsaid
    assert not any("glasses" in sentence for sentence in unsaid)


def test_sentences_are_short_enough_for_clip():
    longest = max(
        expand_word("a very old person wearing large round glasses", 2000), key=lambda sentence: len(sentence.split())
    )
    assert len(re.findall(r"\w+|[^\w\s]", longest)) < 50


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("one cat\n\n  two cats ", "auto", ["one cat", "two cats"]),
        ("A cat sat there.", "auto", ["A cat sat there."]),
        ("cat", "sentences", ["cat"]),
    ],
)
def test_own_sentences_are_taken_as_they_are(text, mode, expected):
    assert sentences_of([text], mode, 10) == [expected]


@pytest.mark.parametrize("mode", ["auto", "words"])
def test_a_single_line_is_a_word(mode):
    assert sentences_of([" cat \n"], mode, 20, 3) == [expand_word("cat", 20, 3)]


def test_words_of_both_sides_share_their_sentences_whatever_kind_they_are():
    """Each expanded alone, the two would share a tenth of their portraits: details that fit one word are left out for
    it only.
    """
    words = ["wearing glasses", "red hair"]
    source, target = sentences_of(words, count=200, bank="portrait")
    assert [sentence.replace(words[0], words[1]) for sentence in source] == target
    assert sentences_of(["cat", "One dog.\nTwo dogs."], count=5) == [expand_word("cat", 5), ["One dog.", "Two dogs."]]


@pytest.mark.parametrize(
    ("word", "kind", "phrase"),
    [
        ("photo", "picture", "a photo"),
        ("oil painting", "picture", "an oil painting"),
        ("watercolors", "picture", "watercolors"),
        ("a drawing by a child", "picture", "a drawing by a child"),
        ("anime", "picture", "an anime style picture"),
        ("anime style", "picture", "an anime style picture"),
        ("Van Gogh", "picture", "a painting by van gogh"),
        ("winter", "time", "in winter"),
        ("in winter", "time", "in winter"),
        ("night", "time", "at night"),
        ("on a hot day", "time", "on a hot day"),
        ("wooden", "material", "made of wood"),
        ("made of jelly", "material", "made of jelly"),
    ],
)
def test_words_of_style_find_their_kind_and_phrase(word, kind, phrase):
    assert style_kind([word, ""]) == kind and style_phrase(word, kind) == phrase


@pytest.mark.parametrize(
    "words",
    [("photo", "oil painting"), ("", "anime"), ("summer", "winter"), ("", "night"), ("wood", "glass"), ("", "gold")],
)
def test_styles_share_their_sentences_and_may_be_unsaid(words):
    kind = style_kind(words)
    phrases = [style_phrase(word, kind) for word in words]
    sources, targets = expand_words(words, 300, bank="style")
    assert len(set(targets)) == 300
    for source, target in zip(sources, targets, strict=True):
        assert target.count(phrases[1]) == 1 and not re.search(r"[{}]|  |,,| ,|^,|,$", source + "|" + target)
        if phrases[0]:
            assert target.replace(phrases[1], phrases[0]) == source
        else:
            assert [word for word in source.replace(",", "").split() if word != "taken"] == [
                word for word in target.replace(phrases[1], "").replace(",", "").split() if word != "taken"
            ]


def test_the_styles_of_two_kinds_are_told_apart():
    with pytest.raises(EditingError, match=r"'photo' \(picture\) and 'winter' \(time\)"):
        expand_words(["photo", "winter"], bank="style")


@pytest.mark.parametrize(("bank", "word"), [("portrait", "smiling"), ("style", "at night")])
@pytest.mark.parametrize("mode", ["auto", "words"])
def test_a_side_may_be_empty_where_a_bank_can_say_nothing(bank, word, mode):
    assert sentences_of(["", word], mode, 20, bank=bank) == expand_words(["", word], 20, bank=bank)
    assert sentences_of([word, " \n"], mode, 20, bank=bank) == expand_words([word, ""], 20, bank=bank)
    for texts, how in ((["", ""], mode), (["", "A cat.\nTwo cats."], "auto"), (["", word], "sentences")):
        with pytest.raises(EditingError, match="sentence list is empty"):
            sentences_of(texts, how, 20, bank=bank)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: expand_word(" "), "A word of the edit is empty"),
        (lambda: expand_words(["", ""], bank="portrait"), "empty"),
        (lambda: expand_words([]), "empty"),
        (lambda: expand_word("cat", 0), "use 1 to 2000"),
        (lambda: expand_word("cat", 2001), "use 1 to 2000"),
        (lambda: expand_word("cat", bank="poems"), "no sentence bank"),
        (lambda: sentences_of(["cat", " \n "]), "sentence list is empty"),
        (lambda: sentences_of(["cat\ndog"], "words"), "2 lines"),
        (lambda: sentences_of(["cat"], "guess"), "no mode"),
        (
            lambda: expand_word("hair glasses beard mouth eyes skin hoodie background", 2000, bank="portrait"),
            "fewer than 2000 sentences",
        ),
    ],
)
def test_bad_input_is_said(call, said):
    with pytest.raises(EditingError, match=said):
        call()

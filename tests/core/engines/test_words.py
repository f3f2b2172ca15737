"""Words of prompts and the map of their tokens, on a tokenizer written out here and on CLIP's own."""

from __future__ import annotations

import pytest
import torch

from semantic_editing.core.engines.masactrl import foreground_places
from semantic_editing.core.engines.prompt_to_prompt import word_map
from semantic_editing.core.engines.words import Alignment, Swap, align, places_of, read_prompt, word_factors
from semantic_editing.core.errors import EditingError

START, END, LENGTH = 0, 1, 16
VOCABULARY: list[str] = ["<start>", "<end>"]


def number(piece):
    if piece not in VOCABULARY:
        VOCABULARY.append(piece)
    return VOCABULARY.index(piece)


def tokenized(text):
    """Pieces of three letters; commas are words."""
    words = text.lower().replace(",", " , ").split()
    pieces = [
        word[i : i + 3] + ("</w>" if i + 3 >= len(word) else "") for word in words for i in range(0, len(word), 3)
    ]
    return [number(piece) for piece in pieces]


def read(text, length=LENGTH):
    ids = tokenized(text)
    blocks = [ids[i : i + length - 2] for i in range(0, max(1, len(ids)), length - 2)]
    blocks = [[START, *block, *[END] * (length - 1 - len(block))] for block in blocks]
    return read_prompt(text, blocks, lambda token: VOCABULARY[token] if token >= 0 else "", END)


def test_words_have_the_positions_of_their_pieces():
    prompt = read("a glasses, cat")
    assert prompt.words == ("a", "glasses", ",", "cat") and prompt.length == LENGTH
    assert prompt.positions == ((1,), (2, 3, 4), (5,), (6,))
    assert prompt.tails == (tuple(range(7, LENGTH)),)
    assert prompt.find(read("Glasses, cat")) == (2, 3, 4, 5, 6)
    assert read("cat, cat").find(read("cat")) == (1, 3)


def test_long_prompts_have_blocks_with_starts_of_their_own():
    text = " ".join(f"w{n}" for n in range(20))
    prompt = read(text)
    assert prompt.length == 2 * LENGTH and prompt.words[14] == "w14" and prompt.positions[14] == (LENGTH + 1,)
    alignment = align(prompt, prompt)
    assert torch.equal(alignment.taken, torch.arange(2 * LENGTH))


def test_a_vector_is_a_word_of_its_own():
    block = [START, -5, number("cat</w>"), END]
    prompt = read_prompt("x", [block], lambda token: VOCABULARY[token] if token >= 0 else "", END)
    assert prompt.words == ("[-5]", "cat") and prompt.positions == ((1,), (2,))


def test_equal_inserted_and_replaced_words():
    source, target = read("a cat, sitting"), read("a big dog, sitting")
    # start 0, a 1, cat 2, "," 3, sitting 4 5 6, end 7..15; a 1, big 2, dog 3, "," 4, sitting 5 6 7, end 8..15
    alignment = align(source, target)
    assert alignment.taken.tolist() == [0, 1, -1, -1, 3, 4, 5, 6, *range(7, 15)] and not alignment.swaps
    swapped = align(source, target, swap=True)
    (swap,) = swapped.swaps
    assert swap.rows == (2,) and swap.columns == (2, 3) and torch.equal(swap.weights, torch.tensor([[0.5, 0.5]]))
    back = align(target, source, swap=True)
    assert back.taken.tolist() == [0, 1, -1, 4, 5, 6, 7, *range(8, 16), -1]  # the last place has no partner
    assert torch.equal(back.swaps[0].weights, torch.ones(2, 1))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (3, 2), (4, 1), (5, 7)])
def test_the_mass_of_swapped_words_is_kept_whatever_their_pieces(rows, columns):
    source, target = ("".join(letter * 3 for letter in "bcdefghij"[:count]) for count in (rows, columns))
    if rows == columns:
        target = "zzz"
    (swap,) = align(read(f"a {source} here"), read(f"a {target} here"), swap=True).swaps
    assert swap.weights.shape == (rows, columns)
    torch.testing.assert_close(swap.weights.sum(1), torch.ones(rows))
    torch.testing.assert_close(swap.weights.sum(0), torch.full((columns,), rows / columns))
    if rows == columns:
        assert torch.equal(swap.weights, torch.eye(rows))


def test_edited_maps_equal_a_loop_over_tokens_also_where_the_text_is_repeated_or_followed_by_others():
    generator = torch.Generator().manual_seed(0)
    alignment = Alignment(torch.tensor([0, -1, 1, -1]), (Swap((2, 3), (3,), torch.tensor([[1.0], [0.5]])),))
    for count in (4, 8, 5):
        source, own = (torch.rand(2, 3, 6, count, generator=generator) for _ in range(2))
        want = torch.empty_like(own)
        for column in range(count):
            copy, place = (column // 4 * 4, column % 4) if count % 4 == 0 else (0, column)
            if place >= 4:  # a token that another pack added
                want[..., column] = source[..., column]
            elif place == 1:
                want[..., column] = own[..., column]
            elif place == 3:
                want[..., column] = source[..., copy + 2] + 0.5 * source[..., copy + 3]
            else:
                want[..., column] = source[..., copy + (0, None, 1)[place]]
        torch.testing.assert_close(alignment.edited(source, own), want)
    same = Alignment(torch.arange(4))
    assert torch.equal(same.edited(source, own), source)


def test_factors_are_of_the_words_named():
    prompt = read("a glasses, red hair")
    factors = word_factors("glasses: 2, red hair:0.5", prompt, read)
    assert factors.tolist() == [1, 1, 2, 2, 2, 1, 0.5, 0.5, 0.5, *[1] * 7]
    assert word_factors("  ", prompt, read) is None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: read("a cat, here").find(read("dog")), "has no 'dog'; its words are: a, cat, ,, here"),
        (lambda: word_factors("dog: 2", read("a cat"), read), "its words are: a, cat"),
        (lambda: word_factors("cat", read("a cat"), read), "'cat' is no word with its factor"),
        (lambda: word_factors("cat: two", read("a cat"), read), "'cat: two' is no word"),
        (lambda: word_factors("cat: inf", read("a cat"), read), "is no word with its factor"),
        (lambda: word_factors(": 2", read("a cat"), read), "is no word with its factor"),
        (
            lambda: places_of("cow", read("a cat"), read("a dog"), read),
            "Neither prompt has 'cow'; their words are: a, cat, dog",
        ),
        (lambda: align(read("a"), read("a", 8)), "16 tokens long and the target text 8"),
        (lambda: word_map("", "a cat", read), "needs both texts"),
        (lambda: word_map("a cat", " ", read), "needs both texts"),
        (lambda: foreground_places("cat", "a cat", "a dog", read), "in the target text"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(EditingError, match=sentence):
        make()


def test_places_are_of_either_prompt():
    source, target = read("a cat here"), read("a big dog here")
    assert places_of("cat, big dog", source, target, read) == ((2,), (2, 3))
    assert foreground_places("cat, dog", "a cat", "the dog", read) == ((2,), (2,))
    assert foreground_places(" ", "a cat", "the dog", read) == ((), ())
    words = word_map("a cat here", "a dog here", read, "replace", "dog: 3", "cat")
    assert words.blend == ((2,), ()) and words.factors[2] == 3 and len(words.alignment.swaps) == 1


def test_clips_own_tokenizer_reads_the_demos_captions():
    transformers = pytest.importorskip("transformers")
    from semantic_editing.core.demo.data import FOLDER

    folder = next((path.parent for path in FOLDER.rglob("vocab.json") if (path.parent / "merges.txt").exists()), None)
    if folder is None:
        from semantic_editing.core.demo.model import load_demo_model

        tokenizer = load_demo_model().tokenizer
    else:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)

    def by_clip(text):
        ids = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
        return read_prompt(text, [ids], tokenizer.convert_ids_to_tokens, tokenizer.eos_token_id)

    source, target = by_clip("a face, without glasses, smiling"), by_clip("a face, wearing glasses, smiling")
    assert source.words == ("a", "face", ",", "without", "glasses", ",", "smiling")
    taken = align(source, target).taken
    (changed,) = target.find(by_clip("wearing"))
    assert taken.tolist() == [-1 if place == changed else place for place in range(77)]

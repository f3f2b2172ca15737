"""Directions that go word by word, against a loop over tokens and against pairs whose answer is known."""

import dataclasses
import math

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.pix2pix_zero import shift_field
from semantic_editing.core.pix2pix_zero.edit_direction import EditDirection, sentence_direction, unpaired_reason
from semantic_editing.core.pix2pix_zero.shift_field import FieldBuilder, ShiftField, counterparts, why_unpaired

LENGTH, WIDTH, START, END = 9, 6, 100, 101


def tokenize(texts):
    """A token a word, and three for a long one."""
    return [
        [START, *(hash_of(part) for word in text.split() for part in pieces(word)), END] for text in texts
    ]  # fmt: skip


def pieces(word):
    return [word[:3], word[3:6], word[6:]] if len(word) > 6 else [word]


def hash_of(text):
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 9973


def state(ids):
    """A causal encoder: each state depends on the tokens so far, those after the end token on its place too."""
    padded = ids + [END] * (LENGTH - len(ids))
    rows, total = [], 0
    for place, token in enumerate(padded):
        total = (total * 131 + token * 7 + place) % 1_000_003
        rows.append(torch.randn(WIDTH, generator=torch.Generator().manual_seed(total)))
    return torch.stack(rows)


def encode(texts):
    return torch.stack([state(ids) for ids in tokenize(texts)])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a cat sat", "a dog sat", [0, 1, 2, 3, 4]),
        ("a cat sat", "a cat sat", [0, 1, 2, 3, 4]),
        ("a cat sat", "a big dog sat", [0, 1, 3, 4, 5]),  # a word alone goes to the last
        ("a big cat sat", "a dog sat", [0, 1, 2, 2, 3, 4]),
        ("a big old cat sat", "a red dog sat", [0, 1, 2, 3, 3, 4, 5]),  # halves: the even step from the end
        ("a cat sat", "a sat", [0, 1, 2, 2, 3]),  # what is gone goes to what follows
        ("a sat", "a cat sat", [0, 1, 3, 4]),
        ("a cat", "a", [0, 1, 2, 2]),  # here the end token follows
        ("cat", "dog", [0, 1, 2]),
        ("one two", "three four five", [0, 1, 3, 4]),
    ],
)
def test_counterparts(source, target, expected):
    assert counterparts(*tokenize([source, target])) == expected


def test_a_word_that_the_tokenizer_splits_is_taken_as_a_whole():
    assert len(tokenize(["rhinoceros"])[0]) == 5
    assert counterparts(*tokenize(["a rhinoceros sat", "a cat sat"])) == [0, 1, 2, 2, 2, 3, 4]
    assert counterparts(*tokenize(["a cat sat", "a rhinoceros sat"])) == [0, 1, 4, 5, 6]


SOURCE = ["a cat sat", "my cat ran off", "a big cat", "the cat"]
TARGET = ["a dog sat", "my dog ran off", "a big dog", "the dog"]


def test_a_sentence_of_the_list_becomes_its_partner_exactly():
    """Words of one token each: every token of a source is a key of its own or has a common beginning, whose shift is
    nothing; only the padding is interpolated."""
    found = sentence_direction(encode, SOURCE, TARGET, tokenize=tokenize)
    for source, target, ids in zip(SOURCE, TARGET, tokenize(SOURCE), strict=True):
        moved, _ = found.apply(encode([source]))
        torch.testing.assert_close(moved[0, : len(ids)], encode([target])[0, : len(ids)], rtol=0, atol=4e-3)  # 16 bits
        back, _ = found.apply(encode([target]), strength=-1.0)
        torch.testing.assert_close(back[0, : len(ids)], encode([source])[0, : len(ids)], rtol=0, atol=8e-3)


def reference(keys, shifts, query, neighbours):
    """The weighted mean by its definition, one query, float64."""
    distances = [math.dist(query.tolist(), key.tolist()) for key in keys]
    order = sorted(range(len(keys)), key=distances.__getitem__)[:neighbours]
    nearest = distances[order[0]]
    weights = [math.exp(-(distances[i] ** 2) / (2 * nearest**2)) for i in order]
    total = sum(weight * shifts[i].double() for weight, i in zip(weights, order, strict=True))
    return total / sum(weights)


@pytest.mark.parametrize("count", [3, 8, 40])
def test_between_the_keys_it_is_the_kernel_mean_of_the_nearest(count):
    keys, shifts, asked = noise(count, WIDTH).half(), noise(count, WIDTH, seed=1).half(), noise(2, 3, WIDTH, seed=2)
    found = ShiftField(keys, shifts).at(asked)
    assert found.shape == asked.shape and found.dtype == torch.float32
    for row in range(2):
        for place in range(3):
            wanted = reference(keys, shifts, asked[row, place].half(), shift_field.NEIGHBOURS)
            torch.testing.assert_close(found[row, place].double(), wanted, rtol=1e-4, atol=1e-5)


def test_large_states_that_lie_close_are_told_apart():
    """SDXL's states are hundreds long; their squared distance is lost in the product that finds the nearest."""
    keys = (300 * torch.ones(2, 512)).half()
    keys[1, 0] += 0.5
    field = ShiftField(keys, torch.tensor([[1.0], [-1.0]]).expand(2, 512).half())
    torch.testing.assert_close(field.at(keys.float()), field.shifts.float())


def test_equal_states_are_one_key_with_their_mean_shift():
    """A cat that sat and a big cat begin alike: that is stored once, and where the two lead apart it is the mean."""
    builder, lists = FieldBuilder(), (["a cat sat", "a cat"], ["a dog sat", "a big cat"])
    ids = [tokenize(texts) for texts in lists]
    for source, target, own, theirs in zip(*(encode(texts) for texts in lists), *ids, strict=True):
        builder.add(source, target, own, theirs)
    field = builder.build()
    assert len(torch.unique(field.keys, dim=0)) == len(field.keys)
    # a, cat, sat, end, two paddings; cat and a are met again: end, two paddings
    assert len(field.keys) == 6 + 3
    cat = encode(["a cat"])[0, 2]
    expected = (encode(["a dog sat"])[0, 2] + encode(["a big cat"])[0, 3]) / 2 - cat
    torch.testing.assert_close(field.at(cat), expected, rtol=0, atol=4e-3)


def test_the_padding_is_paired_place_by_place_behind_both_ends():
    builder = FieldBuilder()
    own, theirs = tokenize(["a cat", "a big red dog"])
    source, target = encode(["a cat"])[0], encode(["a big red dog"])[0]
    builder.add(source, target, own, theirs)
    field = builder.build()
    for place in (len(theirs), LENGTH - 1):
        torch.testing.assert_close(field.at(source[place]), target[place] - source[place], rtol=0, atol=4e-3)
    assert len(field.keys) == len(own) - 1 + shift_field.PADDINGS


def test_a_sentence_that_fills_the_block_has_no_padding():
    full = " ".join("abcdefg")
    found = sentence_direction(encode, [full], [full.replace("g", "h")], tokenize=tokenize)
    assert len(found.field.keys) == LENGTH - 1


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_make_no_difference_and_the_mean_stays_beside_it(batch_size):
    found = sentence_direction(encode, SOURCE, TARGET, tokenize=tokenize, batch_size=batch_size)
    whole, mean = (
        sentence_direction(encode, SOURCE, TARGET, tokenize=tokenize),
        sentence_direction(encode, SOURCE, TARGET),
    )
    assert torch.equal(found.field.keys, whole.field.keys) and torch.equal(found.field.shifts, whole.field.shifts)
    torch.testing.assert_close(found.embeds, mean.embeds)
    assert mean.field is None and "word by word" in found.describe() and "one mean" in mean.describe()


def test_progress_counts_the_sentences_of_pairs():
    told = []
    sentence_direction(encode, SOURCE, TARGET, tokenize=tokenize, batch_size=3, callback=lambda *at: told.append(at))
    assert told == [(3, 8), (6, 8), (7, 8), (8, 8)]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (SOURCE, TARGET[:3], "the lists have 4 and 3 sentences"),
        (["the sun is out", "we all saw it"], ["some dogs came by", "nobody knew them then"], "not worded alike"),
    ],
)
def test_lists_that_do_not_come_in_pairs_keep_the_mean_and_say_why(source, target, said):
    found = sentence_direction(encode, source, target, tokenize=tokenize)
    assert found.field is None and said in unpaired_reason(tokenize, source, target)
    torch.testing.assert_close(found.embeds, sentence_direction(encode, source, target).embeds)
    assert unpaired_reason(tokenize, SOURCE, TARGET) == "" and "no fixed length" in unpaired_reason(
        None, SOURCE, TARGET
    )


def test_pairs_share_a_third_of_the_shorter_ones_words():
    assert why_unpaired(*(tokenize([text]) for text in ("a b c", "a x y"))) == ""
    assert why_unpaired(*(tokenize([text]) for text in ("a b c d", "a x y z"))) != ""


def direction(**changes):
    field = ShiftField(noise(20, WIDTH).half(), noise(20, WIDTH, seed=1).half())
    made = EditDirection(noise(1, LENGTH, WIDTH, seed=2), noise(1, 4, seed=3), "clip_l 6", "cat", "dog", 4, field)
    return dataclasses.replace(made, **changes)


def test_every_prompt_block_and_place_is_alike_but_for_the_start():
    found, prompt = direction(), noise(2, 2 * LENGTH, WIDTH, seed=4)
    moved, pooled = found.apply(prompt, torch.zeros(2, 4), 0.5)
    torch.testing.assert_close(pooled, (0.5 * found.pooled).expand(2, 4))
    for row in range(2):
        for place in range(2 * LENGTH):
            wanted = 0 if place % LENGTH == 0 else 0.5 * found.field.at(prompt[row, place])
            torch.testing.assert_close(moved[row, place], prompt[row, place] + wanted, rtol=1e-5, atol=1e-6)


def test_the_other_way_is_the_field_of_the_swapped_lists():
    there, back = (
        sentence_direction(encode, *lists, tokenize=tokenize) for lists in ((SOURCE, TARGET), (TARGET, SOURCE))
    )
    prompt = encode(["a fox sat", "my old dog"])
    torch.testing.assert_close(
        there.apply(prompt, strength=-1.0)[0], back.apply(prompt, strength=1.0)[0], rtol=0, atol=2e-2
    )


def test_strength_zero_and_precision():
    prompt = noise(1, LENGTH, WIDTH)
    assert direction().apply(prompt, None, 0.0)[0] is prompt
    assert direction().apply(prompt.bfloat16())[0].dtype == torch.bfloat16


def test_fields_add_by_following_one_another():
    one, two = direction(), direction(field=ShiftField(noise(9, WIDTH, seed=7).half(), noise(9, WIDTH, seed=8).half()))
    prompt = noise(1, LENGTH, WIDTH, seed=9)
    first = one.apply(prompt)[0]
    both = two.apply(first)[0]
    torch.testing.assert_close(both[:, 1:] - first[:, 1:], two.field.at(first[:, 1:]), rtol=1e-5, atol=1e-6)
    assert torch.equal(both[:, 0], prompt[:, 0])


def test_it_is_saved_and_loaded_bit_for_bit(tmp_path):
    saved = direction(start=noise(WIDTH))
    loaded = EditDirection.load(saved.save(tmp_path / "d.safetensors"))
    assert torch.equal(loaded.field.keys, saved.field.keys) and torch.equal(loaded.field.shifts, saved.field.shifts)
    assert torch.equal(loaded.start, saved.start)
    prompt = noise(1, LENGTH, WIDTH, seed=4)
    assert torch.equal(loaded.apply(prompt)[0], saved.apply(prompt)[0])
    stored, metadata = load_tensors(tmp_path / "d.safetensors")
    assert stored["field_keys"].dtype == torch.float16 and metadata["method"] == "shift field of paired sentences"


def test_a_file_without_a_field_is_a_mean(tmp_path):
    loaded = EditDirection.load(direction(field=None).save(tmp_path / "d.safetensors"))
    assert loaded.field is None and loaded.start is None
    prompt = noise(1, LENGTH, WIDTH, seed=4)
    torch.testing.assert_close(loaded.apply(prompt)[0], prompt + loaded.embeds)


def test_two_files_make_the_difference_of_their_means(tmp_path):
    one, two = direction(), direction(embeds=noise(1, LENGTH, WIDTH, seed=5), start=noise(WIDTH))
    files = one.save(tmp_path / "a.safetensors"), two.save(tmp_path / "b.safetensors")
    found = EditDirection.load(files[1], files[0])
    assert found.field is None and found.start is None
    torch.testing.assert_close(found.embeds, two.embeds - one.embeds)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"field_shifts": None}, "incomplete"),
        ({"field_shifts": torch.zeros(19, WIDTH)}, "not \\[states, width\\] twice"),
        ({"field_keys": torch.zeros(0, WIDTH), "field_shifts": torch.zeros(0, WIDTH)}, "make the direction again"),
        ({"field_keys": torch.full((20, WIDTH), float("nan"))}, "not a number"),
        ({"field_shifts": torch.full((20, WIDTH), 1e6)}, "not a number"),
        ({"field_keys": torch.zeros(20, 5), "field_shifts": torch.zeros(20, 5)}, "5 wide and its mean 6"),
        ({"start": torch.zeros(5)}, "start token"),
    ],
)
def test_damaged_fields_are_refused(tmp_path, changes, said):
    saved = direction(start=noise(WIDTH)).save(tmp_path / "d.safetensors")
    tensors, metadata = load_tensors(saved)
    tensors = {key: value.clone() for key, value in (tensors | changes).items() if value is not None}
    with pytest.raises(EditingError, match=said):
        EditDirection.load(save_tensors(tmp_path / "broken.safetensors", tensors, metadata))


@pytest.mark.parametrize(
    ("source", "target"), [(["a cat", "\u200b ."], TARGET[:2]), (TARGET[:2], ["a cat", "\u200b ."])]
)
def test_a_text_without_words_is_said(source, target):
    def deaf(texts):
        return [[START, *(hash_of(word) for word in text.split() if word.isalpha()), END] for text in texts]

    with pytest.raises(EditingError, match="holds no words for the text encoder"):
        sentence_direction(encode, source, target, tokenize=deaf)


def test_sides_that_say_the_same_are_refused():
    with pytest.raises(EditingError, match="the same to the text encoder"):
        sentence_direction(encode, SOURCE, [f" {text}" for text in SOURCE], tokenize=tokenize)


def test_another_tokenizer_is_refused():
    with pytest.raises(EditingError, match="the encoder's own tokenizer"):
        sentence_direction(
            encode, SOURCE, TARGET, tokenize=lambda texts: [[START, *range(8), hash_of(text), END] for text in texts]
        )


def test_large_fields_are_thinned(monkeypatch):
    whole = sentence_direction(encode, SOURCE, TARGET, tokenize=tokenize).field
    monkeypatch.setattr(shift_field, "LARGEST_TABLE", whole.keys.numel() - 1)
    thin = sentence_direction(encode, SOURCE, TARGET, tokenize=tokenize).field
    assert torch.equal(thin.keys, whole.keys[::2]) and torch.equal(thin.shifts, whole.shifts[::2])


def test_a_prompt_of_another_encoding_is_noticed():
    """Clip skip and fine-tuned encoders move the state of the start token, which no text does."""
    found = sentence_direction(encode, SOURCE, TARGET, tokenize=tokenize)
    prompt = encode(["the fox", "two owls"])
    assert found.encoding_warning(prompt) == "" and found.encoding_warning(prompt.bfloat16()) == ""
    assert "10%" in found.encoding_warning(1.1 * prompt) and "layer" in found.encoding_warning(-prompt)
    assert direction().encoding_warning(prompt) == ""

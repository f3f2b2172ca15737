"""Edit directions against brute force, files round trip, and the embeddings published with pix2pix-zero."""

from pathlib import Path

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import save_tensors
from semantic_editing.core.pix2pix_zero.edit_direction import EditDirection, sentence_direction

LENGTH, WIDTH, POOLED = 5, 3, 2
PUBLISHED = Path(__file__).resolve().parents[3] / "../shared/data/edit_directions_sd14"


def state(text):
    """An arbitrary but fixed state of a text, ``[5, 3]``; its first position does not depend on the text, as in
    CLIP.
    """
    states = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, text))))
    states[0] = 7.0
    return states


def encode(texts):
    return torch.stack([state(text) for text in texts])


def encode_with_pooled(texts):
    return encode(texts), torch.stack([state(text)[-1, :POOLED] for text in texts])


def direction(embeds=None, pooled=None, encoder="clip_l 3", **names):
    embeds = torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(9)) if embeds is None else embeds
    return EditDirection(embeds, pooled, encoder, names.get("source", "cat"), names.get("target", "dog"), 4)


SOURCE, TARGET = ["a cat", "two cats", "my cat"], ["a dog", "the dogs"]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_it_is_the_mean_difference_at_every_position(batch_size):
    found = sentence_direction(encode, SOURCE, TARGET, batch_size=batch_size)
    expected = sum(state(t) for t in TARGET) / 2 - sum(state(s) for s in SOURCE) / 3
    torch.testing.assert_close(found.embeds, expected[None], rtol=0, atol=1e-6)
    assert found.pooled is None and found.sentences == 5
    torch.testing.assert_close(found.embeds[:, 0], torch.zeros(1, WIDTH), rtol=0, atol=1e-6)


def test_the_pooled_part_is_a_mean_difference_too():
    found = sentence_direction(encode_with_pooled, SOURCE, TARGET, batch_size=2)
    expected = sum(state(t)[-1, :POOLED] for t in TARGET) / 2 - sum(state(s)[-1, :POOLED] for s in SOURCE) / 3
    torch.testing.assert_close(found.pooled, expected[None], rtol=0, atol=1e-6)


def test_no_batch_is_larger_than_asked_and_progress_counts_sentences():
    sizes, told = [], []

    def watch(texts):
        sizes.append(len(texts))
        return encode(texts)

    sentence_direction(watch, SOURCE, TARGET, batch_size=2, callback=lambda done, total: told.append((done, total)))
    assert sizes == [2, 1, 2]
    assert told == [(2, 5), (3, 5), (5, 5)]


def test_an_exception_from_the_callback_ends_the_run():
    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sentence_direction(encode, SOURCE, TARGET, callback=cancel)


def test_blank_sentences_are_left_out():
    padded = sentence_direction(encode, ["", *SOURCE, "  "], [f" {TARGET[0]}", TARGET[1], "\n"])
    torch.testing.assert_close(padded.embeds, sentence_direction(encode, SOURCE, TARGET).embeds, rtol=0, atol=0)
    assert padded.sentences == 5


def test_swapping_the_sides_negates():
    there, back = (
        sentence_direction(encode_with_pooled, SOURCE, TARGET),
        sentence_direction(encode_with_pooled, TARGET, SOURCE),
    )
    torch.testing.assert_close(there.embeds, -back.embeds, rtol=0, atol=0)
    torch.testing.assert_close(there.pooled, -back.pooled, rtol=0, atol=0)
    assert (there.source, there.target) == (back.target, back.source)


def test_the_same_sentences_on_both_sides_give_zero():
    assert not sentence_direction(encode, SOURCE, SOURCE).embeds.any()


def test_applying_adds_the_scaled_direction_to_every_row():
    shift = direction(pooled=torch.tensor([[1.0, -2.0]]))
    prompt, pooled = encode(["x", "y"]), torch.zeros(2, POOLED)
    embeds, moved = shift.apply(prompt, pooled, -1.5)
    torch.testing.assert_close(embeds, prompt - 1.5 * shift.embeds)
    torch.testing.assert_close(moved, torch.tensor([[-1.5, 3.0]]).repeat(2, 1))


def test_strength_zero_returns_the_prompt_itself():
    prompt = encode(["x"])
    embeds, pooled = direction().apply(prompt, None, 0.0)
    assert embeds is prompt and pooled is None


def test_several_directions_add_in_any_order():
    one, two = direction(), direction(torch.full((1, LENGTH, WIDTH), 0.25))
    prompt = encode(["x"])
    forth, _ = two.apply(one.apply(prompt, strength=2.0)[0])
    back, _ = one.apply(two.apply(prompt)[0], strength=2.0)
    torch.testing.assert_close(forth, back)
    torch.testing.assert_close(forth, prompt + 2 * one.embeds + 0.25)


def test_a_prompt_of_several_blocks_is_shifted_in_each():
    shift, prompt = direction(), torch.cat([encode(["x"]), encode(["y"])], dim=1)
    embeds, _ = shift.apply(prompt)
    torch.testing.assert_close(embeds[:, :LENGTH] - prompt[:, :LENGTH], shift.embeds)
    torch.testing.assert_close(embeds[:, LENGTH:] - prompt[:, LENGTH:], shift.embeds)


def test_the_prompts_precision_is_kept():
    embeds, _ = direction().apply(encode(["x"]).bfloat16())
    assert embeds.dtype == torch.bfloat16


@pytest.mark.parametrize("strength", [3.01, -4.0, float("nan"), float("inf")])
def test_strength_out_of_range_is_refused(strength):
    with pytest.raises(EditingError, match="use a value from -3 to 3"):
        direction().apply(encode(["x"]), strength=strength)


@pytest.mark.parametrize(
    ("prompt", "pooled", "said"),
    [
        (
            torch.zeros(1, LENGTH, WIDTH + 1),
            None,
            r"another text encoder \(4 wide\) and the edit direction from clip_l 3 \(3 wide\)",
        ),
        (torch.zeros(1, LENGTH, 2048), None, r"from clip_l 768 \+ clip_g 1280 \(2048 wide\)"),
        (torch.zeros(LENGTH, WIDTH), None, r"use \[batch, tokens, width\]"),
        (torch.zeros(1, LENGTH + 1, WIDTH), None, "6 tokens and the edit direction 5"),
        (torch.zeros(1, LENGTH, WIDTH), torch.zeros(1, POOLED + 1), "3 wide and the edit direction's 2"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompt, pooled, said):
    with pytest.raises(EditingError, match=said):
        direction(pooled=torch.zeros(1, POOLED)).apply(prompt, pooled)


def test_another_text_encoder_is_refused_with_both_names():
    with pytest.raises(EditingError, match=r"clip_l 3, but the model uses clip_g 1280"):
        direction().require_encoder("clip_g 1280")
    direction().require_encoder("clip_l 3")
    direction().require_encoder("")
    direction(encoder="").require_encoder("clip_g 1280")


@pytest.mark.parametrize(("source", "target", "side"), [([], TARGET, "source"), (SOURCE, ["", " "], "target")])
def test_an_empty_side_is_named(source, target, side):
    with pytest.raises(EditingError, match=f"{side} sentence list is empty"):
        sentence_direction(encode, source, target)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda texts: encode(texts) * float("nan"), "text encoder's output is not a number"),
        (lambda texts: (encode(texts), torch.full((len(texts), 2), float("inf"))), "pooled output is not a number"),
        (lambda texts: torch.zeros(len(texts), len(texts[0]), WIDTH), "different lengths"),
        (lambda texts: torch.zeros(1, LENGTH, WIDTH), "for 2 sentences"),
        (lambda texts: torch.zeros(len(texts), WIDTH), "cannot be used"),
    ],
)
def test_what_a_text_encoder_may_do_wrong(broken, said):
    with pytest.raises(EditingError, match=said):
        sentence_direction(broken, ["a", "bb", "ccc"], ["dddd"], batch_size=2)


def test_batch_size_zero_is_refused():
    with pytest.raises(EditingError, match="batch_size is 0"):
        sentence_direction(encode, SOURCE, TARGET, batch_size=0)


@pytest.mark.parametrize("pooled", [None, torch.tensor([[0.5, -1.0]])])
def test_saving_and_loading_keeps_everything(tmp_path, pooled):
    saved = direction(pooled=pooled, source="a cat", target="größer")
    loaded = EditDirection.load(saved.save(tmp_path / "d.safetensors"))
    torch.testing.assert_close(loaded.embeds, saved.embeds, rtol=0, atol=0)
    assert (loaded.pooled is None) == (pooled is None)
    if pooled is not None:
        torch.testing.assert_close(loaded.pooled, pooled, rtol=0, atol=0)
    for name in ("text_encoder", "source", "target", "sentences"):
        assert getattr(loaded, name) == getattr(saved, name)
    with pytest.raises(EditingError, match="exists already"):
        saved.save(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({"x": torch.zeros(1)}, {"format": "semantic_editing.edit_direction", "sentences": "1"}, "incomplete"),
        ({"embeds": torch.zeros(1, 5, 3)}, {"format": "semantic_editing.edit_direction"}, "incomplete"),
        (
            {"embeds": torch.zeros(1, 5, 3)},
            {"format": "semantic_editing.inversion"},
            "not a semantic_editing.edit_direction file",
        ),
        (
            {"embeds": torch.zeros(2, 5, 3)},
            {"format": "semantic_editing.edit_direction", "sentences": "1"},
            r"\[1, tokens, width\]",
        ),
        (
            {"embeds": torch.full((1, 5, 3), float("nan"))},
            {"format": "semantic_editing.edit_direction", "sentences": "1"},
            "not a number",
        ),
    ],
)
def test_files_that_are_no_direction_are_refused(tmp_path, tensors, metadata, said):
    with pytest.raises(EditingError, match=said):
        EditDirection.load(save_tensors(tmp_path / "d.safetensors", tensors, metadata))


def published(tmp_path, name, value):
    torch.save(value, tmp_path / name)
    return tmp_path / name


def test_published_embeddings_of_many_sentences_are_averaged(tmp_path):
    values = torch.randn(4, 77, 768, generator=torch.Generator().manual_seed(0))
    loaded = EditDirection.load(published(tmp_path, "dog.pt", values.half()))
    torch.testing.assert_close(loaded.embeds, values.half().float().mean(0, keepdim=True))
    assert (loaded.text_encoder, loaded.target, loaded.sentences) == ("clip_l 768", "dog", 4)


def test_two_published_embeddings_make_a_direction(tmp_path):
    cat, dog = torch.randn(2, 1, 77, 768, generator=torch.Generator().manual_seed(0))
    cat[:, 0] = dog[:, 0] = 3.0
    files = published(tmp_path, "cat.pt", cat), published(tmp_path, "dog.pt", dog)
    found = EditDirection.load(files[1], files[0])
    torch.testing.assert_close(found.embeds, dog - cat)
    assert (found.source, found.target) == ("cat", "dog")
    assert not found.is_mean_embedding and EditDirection.load(files[0]).is_mean_embedding
    assert "apply it at +1 and the source word's at -1" in EditDirection.load(files[0]).describe()


@pytest.mark.parametrize(
    "value", [torch.zeros(77, 768), torch.zeros(1, 76, 768), torch.zeros(1, 77, 768).long(), torch.zeros(0, 77, 768)]
)
def test_other_published_shapes_are_refused(tmp_path, value):
    with pytest.raises(EditingError, match=r"bad\.pt has shape"):
        EditDirection.load(published(tmp_path, "bad.pt", value))


def test_embeddings_of_different_encoders_make_no_direction(tmp_path):
    small, large = (
        published(tmp_path, "a.pt", torch.ones(1, 77, 768)),
        published(tmp_path, "b.pt", torch.ones(1, 77, 1024)),
    )
    with pytest.raises(EditingError, match="clip_l 768, but the model uses clip_h 1024"):
        EditDirection.load(large, small)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published embeddings are not here")
def test_the_published_cat_and_dog():
    found = EditDirection.load(PUBLISHED / "dog.pt", PUBLISHED / "cat.pt")
    assert found.embeds.shape == (1, 77, 768) and found.text_encoder == "clip_l 768"
    assert float(found.embeds.norm()) == pytest.approx(
        140.3, abs=0.05
    )  # norm of the difference, all positions together
    assert float(found.embeds[:, 0].norm()) < 1e-4  # the start token's state is the same for every text
    energy = found.embeds.square().sum((0, 2))
    assert float(energy[10:].sum() / energy.sum()) == pytest.approx(0.945, abs=1e-3)  # as core/directions.py says
    assert EditDirection.load(PUBLISHED / "cat.pt").is_mean_embedding

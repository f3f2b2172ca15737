"""CLIP measures: by hand on a CLIP of known features, and on the demo model's own CLIP."""

import math

import pytest
import torch

from semantic_editing.core.demo.builders import demo_scorer
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.clip import clip_accuracy, clip_score, directional_similarity, text_similarity
from semantic_editing.core.models.clip import TowerScorer

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "yellow": (1.0, 1.0, 0.0), "grey": (0.3, 0.3, 0.3)}


def colour_scorer():
    """Sees the mean colour of a picture and knows the colours' names."""
    return TowerScorer(
        "colours",
        lambda pixels: (pixels.mean((2, 3)), pixels.flatten(2).transpose(1, 2)),
        lambda texts: torch.tensor([COLOURS[text] for text in texts]),
        4,
        (0.0,) * 3,
        (1.0,) * 3,
    )


def painted(*names):
    return torch.stack([torch.tensor(COLOURS[name]).reshape(3, 1, 1).expand(3, 4, 4) for name in names])


def test_text_similarity_is_a_cosine_in_percent():
    images = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    expected = torch.tensor([100.0, 100 / math.sqrt(2), -100.0]).double()
    torch.testing.assert_close(text_similarity(images, texts), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_score_by_hand(dtype):
    scorer, pictures = colour_scorer(), painted("red", "yellow", "green").to(dtype)
    one, each = clip_score(scorer, pictures, "red"), clip_score(scorer, pictures, ["red", "green", "grey"])
    assert one.dtype == torch.float64
    assert one.tolist() == pytest.approx([100, 100 / math.sqrt(2), 0], abs=1e-4)
    assert each.tolist() == pytest.approx([100, 100 / math.sqrt(2), 100 / math.sqrt(3)], abs=1e-4)


def test_only_the_edited_part_counts():
    scorer, pictures = colour_scorer(), painted("red", "green")
    pictures[:, :, :2] = painted("yellow")[:, :, :2]  # the upper half
    upper = torch.zeros(1, 1, 4, 4)
    upper[:, :, :2] = 1
    assert clip_score(scorer, pictures, "yellow", upper).tolist() == pytest.approx([100, 100], abs=1e-4)
    assert clip_score(scorer, pictures, ["red", "green"], 1 - upper).tolist() == pytest.approx([100, 100], abs=1e-4)
    assert (clip_score(scorer, pictures, "yellow") < 99).all()


def test_direction_by_hand():
    scorer = colour_scorer()
    before, after = painted("red", "red", "green", "red"), painted("green", "yellow", "red", "red")
    towards_yellow = (math.sqrt(0.5) - 1, math.sqrt(0.5))
    half = (-towards_yellow[0] + towards_yellow[1]) / (math.sqrt(2) * math.hypot(*towards_yellow))
    got = directional_similarity(scorer, before, after, "red", "green")
    assert got.dtype == torch.float64 and got.tolist() == pytest.approx([1, half, -1, 0], abs=1e-5)
    each = directional_similarity(scorer, before[:2], after[:2], ["red", "red"], ["green", "yellow"])
    assert each.tolist() == pytest.approx([1, 1], abs=1e-5)


def test_accuracy_is_whether_the_target_fits_better():
    after = painted("red", "green", "yellow")
    assert clip_accuracy(colour_scorer(), after, "red", "green").tolist() == [0, 1, 0]  # a tie is no success
    assert clip_accuracy(colour_scorer(), after, ["green", "grey", "grey"], ["red", "red", "yellow"]).tolist() == [
        1,
        0,
        1,
    ]


def test_the_demo_clip_tells_edits_by_their_texts():
    demo = load_demo_model()
    scorer = demo_scorer(demo)
    pairs = demo.pairs[:8]
    before, after = (torch.stack([getattr(pair, side) for pair in pairs]) for side in ("source", "target"))
    texts = [pair.source_caption for pair in pairs], [pair.target_caption for pair in pairs]
    assert clip_accuracy(scorer, after, *texts).mean() >= 0.75
    assert directional_similarity(scorer, before, after, *texts).mean() > 0.3
    expected = 100 * (scorer.embed_images(after).features * scorer.text_features(texts[1])).sum(1)
    torch.testing.assert_close(clip_score(scorer, after, texts[1]), expected.double(), rtol=1e-4, atol=1e-3)


def test_bad_input_is_refused():
    scorer, pictures = colour_scorer(), painted("red", "green")
    for act, message in [
        (lambda: clip_score(scorer, pictures, ["red"]), "1 texts for 2 images"),
        (lambda: clip_score(scorer, pictures, " "), "text is empty"),
        (lambda: clip_score(scorer, pictures * float("nan"), "red"), "not a number"),
        (lambda: clip_score(scorer, pictures, "red", torch.zeros(1, 1, 4, 4)), "mask is empty"),
        (lambda: clip_score(scorer, pictures, "red", torch.ones(1, 1, 5, 4)), "images' size"),
        (lambda: directional_similarity(scorer, pictures, pictures[:1], "red", "green"), "shapes"),
        (lambda: directional_similarity(scorer, pictures, pictures, "red", "red"), "mean the same"),
        (lambda: clip_accuracy(scorer, pictures, "red", ["red"] * 3), "3 texts for 2 images"),
    ]:
        with pytest.raises(EditingError, match=message):
            act()

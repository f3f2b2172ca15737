"""Differences of texts: templates against their definition by hand, lines, and what is exactly nothing."""

import numpy as np
import pytest
import torch

from semantic_editing.core.deltaedit.text import IMAGENET_TEMPLATES, text_delta, text_deltas, text_features
from semantic_editing.core.errors import EditingError
from semantic_editing.core.models.clip import TowerScorer

WIDTH = 16


def letters(text):
    """A feature of a text: how often each letter comes, and where; not unit length."""
    found = np.zeros(WIDTH)
    for place, letter in enumerate(text):
        found[ord(letter) % WIDTH] += 1 + place / 10
    return found


class Scorer(TowerScorer):
    def __init__(self):
        self.told = []
        super().__init__("letters", None, self.listen, 8, (0.5,) * 3, (0.5,) * 3)

    def listen(self, texts):
        self.told += texts
        return torch.tensor(np.stack([letters(text) for text in texts])).float()


def unit(vector):
    return vector / np.linalg.norm(vector)


def ensembled(text):
    return unit(np.mean([unit(letters(frame.replace("{}", text))) for frame in IMAGENET_TEMPLATES], 0))


def test_the_templates_are_deltaedits_seventy_nine():
    assert len(IMAGENET_TEMPLATES) == len(set(IMAGENET_TEMPLATES)) == 79
    assert all(frame.count("{}") == 1 and frame.endswith(".") for frame in IMAGENET_TEMPLATES)
    assert "a photo of many {}." not in IMAGENET_TEMPLATES and "a photo of a {}." in IMAGENET_TEMPLATES


def test_a_text_as_typed_and_in_templates():
    for templates, expected in (("none", [unit(letters(t)) for t in ("face", "face with glasses")]),
                                ("imagenet", [ensembled(t) for t in ("face", "face with glasses")])):  # fmt: skip
        difference, direction = text_delta(Scorer(), "face", " face  with glasses", templates)
        expected = expected[1] - expected[0]
        np.testing.assert_allclose(difference, expected, atol=1e-6)
        np.testing.assert_allclose(direction, unit(expected), atol=1e-5)
        assert difference.shape == (WIDTH,) and difference.dtype == torch.float32


@pytest.mark.parametrize("templates", ["none", "imagenet"])
def test_the_same_text_twice_is_exactly_nothing(templates):
    for source, target in (("a face", "a face"), ("a face ", " a  face")):
        difference, direction = text_delta(Scorer(), source, target, templates)
        assert not difference.any() and not direction.any()


def test_what_only_rounding_tells_apart_is_nothing():
    """A CLIP that reads two spellings alike but for rounding must not edit at full strength in a random direction."""

    class Rounding(Scorer):
        def listen(self, texts):
            noise = torch.Generator().manual_seed(len(self.told))
            self.told += texts
            return torch.ones(len(texts), WIDTH) + 1e-6 * torch.randn(len(texts), WIDTH, generator=noise)

    difference, direction = text_delta(Rounding(), "face", "Face")
    assert not difference.any() and not direction.any()


def test_several_targets_are_lines():
    scorer = Scorer()
    names, difference, direction = text_deltas(scorer, "face", "glasses\n\n  red hair \nface\n")
    assert names == ["glasses", "red hair", "face"] and difference.shape == direction.shape == (3, WIDTH)
    assert sorted(scorer.told) == ["face", "glasses", "red hair"], "each text is read once"
    for row, name in enumerate(names):
        assert torch.equal(difference[row], text_delta(Scorer(), "face", name).difference)
        assert torch.equal(direction[row], text_delta(Scorer(), "face", name).unit)
    each = text_deltas(Scorer(), "sad\nblack hair", "smiling\nred hair")
    assert torch.equal(each.unit[1], text_delta(Scorer(), "black hair", "red hair").unit)


def test_braces_are_letters():
    found = text_features(Scorer(), "a {0} {x}", "imagenet")
    np.testing.assert_allclose(found, ensembled("a {0} {x}"), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "target", "templates", "message"),
    [
        ("face", " \n ", "none", "The target text is empty"),
        ("", "face", "none", "The source text is empty"),
        ("face", "smile", "clip", "use none or imagenet"),
        ("a\nb", "c\nd\ne", "none", "2 source texts for 3 target texts"),
        ("face", "\n".join(map(str, range(65))), "none", "65 target texts; write 64 lines"),
    ],
)
def test_texts_that_cannot_be_used(source, target, templates, message):
    with pytest.raises(EditingError, match=message):
        text_deltas(Scorer(), source, target, templates)


def test_one_target_where_one_is_needed():
    with pytest.raises(EditingError, match="2 target texts where one is needed"):
        text_delta(Scorer(), "face", "a\nb")

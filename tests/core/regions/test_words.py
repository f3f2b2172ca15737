"""The edit by words: the map on noised copies, the boxes that frame it, and what a judge makes of them."""

import pytest
import torch

from semantic_editing.core.denoiser import ModelIdentity
from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.changes import change_frames
from semantic_editing.core.regions.edit_inpaint import (
    InpaintEditor,
    InpaintSettings,
    LocatingInpaintEditor,
    noised_pulls,
)
from semantic_editing.core.regions.paste import Framing
from semantic_editing.core.regions.proposals import Box
from semantic_editing.core.regions.words import Painted, WordsEdit, edit_by_words
from semantic_editing.tests.core.oracles import GaussianDenoiser

SIZE, CELLS = (64, 96), (slice(2, 5), slice(7, 11))  # rows and columns of the 8 x 12 cells where the text pulls
TRUTH = Box(56, 16, 32, 24)


class Pulled(GaussianDenoiser):
    """Predicts a picture by its conditioning: a number that it adds in :data:`CELLS`, and noise of its own."""

    def __init__(self):
        super().__init__(0.5)
        self.identity = ModelIdentity("toy", 4, "eps")

    def x0(self, x, sigma, cond):
        predicted = 0.1 * x  # what both texts share cancels
        predicted[..., CELLS[0], CELLS[1]] += float(cond.mean())
        return predicted


def encode(image):
    return torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 8).expand(-1, 4, -1, -1).clone()


def decode(latent):
    return latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).clamp(0, 1)


def locating():
    settings = InpaintSettings(1.0, 2, framing=Framing(float("inf"), working_size=None, feather=0))
    plain = InpaintEditor(Pulled(), encode, decode, torch.full((1, 3, 8), 0.4), None, settings)
    return LocatingInpaintEditor.of(plain, torch.zeros(1, 3, 8))


def picture():
    return torch.full((1, 3, *SIZE), 0.3)


def test_the_map_is_the_pull_of_the_text_and_nothing_else():
    editor = locating()
    pulls = noised_pulls(editor.denoiser, encode(picture()), editor.source_cond, editor.cond)
    assert pulls.shape == (3, 1, 4, 8, 12)
    inside = torch.zeros(8, 12)
    inside[CELLS] = 0.4
    torch.testing.assert_close(pulls, inside.expand_as(pulls), atol=1e-5, rtol=0)
    assert sum(editor.denoiser.calls) == editor.locating_cost


def test_the_first_frame_is_the_place():
    box = change_frames(locating().change(picture()), torch.ones(SIZE, dtype=torch.bool))[0]
    for found, true in zip(box, TRUTH, strict=True):
        assert abs(found - true) <= 8  # the map is blurred by two cells of it


def test_nothing_pulls_nothing_is_painted():
    editor = locating()
    editor.source_cond = editor.cond
    edit = edit_by_words(editor, picture())
    assert edit.painted == () and not edit.helped and torch.equal(edit.result, picture())


def test_one_box_without_a_judge_and_outside_it_every_bit():
    editor = locating()
    edit = edit_by_words(editor, picture())
    (made,) = edit.painted
    x, y, width, height = made.box
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[y : y + height, x : x + width] = False
    assert edit.helped and not torch.equal(edit.result, picture())
    assert torch.equal(edit.result[..., outside], picture()[..., outside])
    assert edit.units == editor.locating_cost + editor.cost("full") == sum(editor.denoiser.calls)


def test_given_boxes_need_no_map_and_stay_inside_the_mask():
    allowed = torch.zeros(SIZE, dtype=torch.bool)
    allowed[:, :40] = True
    edit = edit_by_words(locating(), picture(), allowed=allowed, boxes=[Box(32, 8, 32, 32)])
    assert edit.painted[0].box == Box(32, 8, 8, 32) and edit.units == 2
    with pytest.raises(EditingError, match="move the boxes"):
        edit_by_words(locating(), picture(), allowed=allowed, boxes=[Box(50, 0, 8, 8)])


def test_a_judge_that_sees_no_gain_gives_the_picture_back():
    edited, before = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    worse = Painted(Box(0, 0, 4, 4), edited, 1.0, 1.1, 1.2, 1.2)
    better = Painted(Box(0, 0, 4, 4), edited, 1.0, 1.1, 1.5, 1.2)
    assert torch.equal(WordsEdit(before, (worse,), True, 0).result, before)
    assert torch.equal(WordsEdit(before, (better,), True, 0).result, edited)


def test_a_source_is_needed():
    with pytest.raises(EditingError, match="source_cond"):
        LocatingInpaintEditor(Pulled(), encode, decode, torch.zeros(1, 3, 8), settings=InpaintSettings(1.0))

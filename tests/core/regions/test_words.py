"""The edit by words: the map on noised copies, the boxes that frame it, and what a judge makes of them."""

from itertools import pairwise

import pytest
import torch

from semantic_editing.core.denoiser import ModelIdentity
from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.cache import RenderCache
from semantic_editing.core.regions.edit_inpaint import (
    InpaintEditor,
    InpaintSettings,
    LocatingInpaintEditor,
    noised_pulls,
)
from semantic_editing.core.regions.paste import Framing
from semantic_editing.core.regions.proposals import Box
from semantic_editing.core.regions.words import Painted, WordsEdit, _ordered, edit_by_words
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
    box = edit_by_words(locating(), picture()).painted[0].box
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
    assert edit.units == editor.locating_cost + editor.cost() == sum(editor.denoiser.calls)


def test_given_boxes_need_no_map_and_stay_inside_the_mask():
    allowed = torch.zeros(SIZE, dtype=torch.bool)
    allowed[:, :40] = True
    edit = edit_by_words(locating(), picture(), allowed=allowed, boxes=[Box(32, 8, 32, 32)])
    assert edit.painted[0].box == Box(32, 8, 8, 32) and edit.units == 2
    with pytest.raises(EditingError, match="move the boxes"):
        edit_by_words(locating(), picture(), allowed=allowed, boxes=[Box(50, 0, 8, 8)])


def scored(box, edited, *scores, tightness=0.0):
    return Painted(torch.ones(1, 3, 8, 8), box, torch.full((1, 3, box.height, box.width), edited), *scores, tightness)


def test_a_judge_that_sees_no_gain_gives_the_picture_back():
    before, box = torch.ones(1, 3, 8, 8), Box(0, 0, 4, 4)
    worse, better = scored(box, 0.0, 1.0, 1.1, 1.2, 1.2), scored(box, 0.0, 1.0, 1.1, 1.5, 1.2)
    assert torch.equal(WordsEdit(before, (worse,), True, 0).result, before)
    edited = WordsEdit(before, (better,), True, 0).result
    assert not edited[..., :4, :4].any() and edited.sum() == 3 * (64 - 16)


def test_gain_first_and_among_gains_the_tightness_too():
    wide = scored(Box(0, 0, 8, 8), 0.0, 1.2, 1.0, 1.2, 1.0, tightness=0.0)
    close = scored(Box(0, 0, 4, 4), 0.0, 1.15, 1.0, 1.15, 1.0, tightness=0.6)
    lost = scored(Box(0, 0, 2, 2), 0.0, 0.9, 1.0, 0.9, 1.0, tightness=0.9)
    assert _ordered([wide, lost, close]) == [close, wide, lost]


def test_exact_needs_a_judge_and_old_names_are_told():
    with pytest.raises(EditingError, match="wire clip_scorer, or use map"):
        edit_by_words(locating(), picture(), strategy="exact")
    with pytest.raises(EditingError, match="use map or exact"):
        edit_by_words(locating(), picture(), strategy="halving")


def boxes_painted(editor, boxes, **more):
    masks = []
    for x, y, width, height in boxes:
        mask = torch.zeros(1, *SIZE)
        mask[0, y : y + height, x : x + width] = 1
        masks.append(mask)
    return editor.sample_all(picture(), masks, boxes, seed=3, **more)


def test_boxes_in_one_batch_are_those_painted_alone():
    boxes = [Box(0, 0, 16, 16), Box(40, 8, 32, 32), Box(8, 8, 8, 40)]
    editor = locating()
    together = [editor.finish(picture(), one) for one in boxes_painted(editor, boxes)]
    alone = [editor.finish(picture(), *boxes_painted(editor, [box])) for box in boxes]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_all_is_encoded_then_sampled_then_decoded():
    """A host swaps its models where one kind of call follows another: twice for any number of boxes."""
    editor, calls = locating(), []

    def told(kind, inner):
        def call(*args, **named):
            calls.append(kind)
            return inner(*args, **named)

        return call

    editor.encode, editor.decode = told("vae", encode), told("vae", decode)
    inner = editor._sampled
    editor._sampled = told("network", inner)
    boxes = [Box(8 * number, 0, 16, 16) for number in range(9)]
    for one in boxes_painted(editor, boxes):
        editor.finish(picture(), one)
    assert calls.count("network") == 3 and calls.count("vae") == 18  # batches of at most 4
    assert sum(one != other for one, other in pairwise(calls)) == 2


def test_a_stopped_edit_goes_on_where_it_was():
    editor, kept = locating(), RenderCache()
    boxes = [Box(8 * number, 0, 16, 16) for number in range(6)]

    def stop(progress):
        if sum(editor.denoiser.calls) > 8:  # the second batch
            raise KeyboardInterrupt

    editor.callback = stop
    with pytest.raises(KeyboardInterrupt):
        boxes_painted(editor, boxes, kept=kept)
    editor.callback = None
    again = boxes_painted(editor, boxes, kept=kept)
    assert [one.new for one in again] == [False] * 4 + [True] * 2
    for one, fresh in zip(again, boxes_painted(locating(), boxes), strict=True):
        torch.testing.assert_close(one.latent, fresh.latent)


def test_a_source_is_needed():
    with pytest.raises(EditingError, match="source_cond"):
        LocatingInpaintEditor(Pulled(), encode, decode, torch.zeros(1, 3, 8), settings=InpaintSettings(1.0))

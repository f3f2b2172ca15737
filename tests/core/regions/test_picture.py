"""The picture of a search: heat where attention is, a frame on the box's own border pixels, ranks, and the untouched
image elsewhere."""

import pytest
import torch

from semantic_editing.core.images.heat import HEAT
from semantic_editing.core.regions.picture import (
    FAINTNESS,
    SMALLEST,
    STRENGTH,
    colour_of,
    heated,
    region_picture,
)
from semantic_editing.core.regions.proposals import Box

SIZE = (96, 160)
SCALE = -(-SMALLEST // SIZE[0])


def grey():
    return torch.full((1, 3, *SIZE), 0.5)


def attention(peak=(2, 7)):
    values = torch.zeros(2, 6, 10)
    values[:, peak[0], peak[1]] = 1.0
    return values


def pixel(picture, x, y):
    return [round(float(value) * 255) for value in picture[y, x]]


def test_the_heat_is_highest_at_the_attended_patch_and_nothing_far_from_it():
    image = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    hot = heated(image, attention())
    y, x = (
        int(2.5 * 16),
        int(7.5 * 16),
    )  # the peak's middle, between four pixels, where interpolation has all but reached it
    torch.testing.assert_close(
        hot[0, :, y, x], image[0, :, y, x] * (1 - STRENGTH) + torch.tensor(HEAT) / 255 * STRENGTH, atol=0.05, rtol=0
    )
    assert torch.equal(hot[..., :64, :80], image[..., :64, :80])
    change = (hot - image).abs().sum(1)[0]
    assert change[y - 8 : y + 8, x - 8 : x + 8].mean() == change.unfold(0, 16, 8).unfold(1, 16, 8).mean((2, 3)).max()


@pytest.mark.parametrize("box", [Box(10, 20, 40, 30), Box(0, 0, 160, 96), Box(120, 66, 40, 30)])
def test_the_best_boxes_are_framed_on_their_own_border_pixels(box):
    picture = region_picture(grey(), attention(), [box])
    assert picture.shape == (SIZE[0] * SCALE, SIZE[1] * SCALE, 3) and picture.min() >= 0 and picture.max() <= 1
    right, bottom = (box.x + box.width) * SCALE - 1, (box.y + box.height) * SCALE - 1
    for x, y in (
        (right, box.y * SCALE),
        (right, bottom),
        (box.x * SCALE, bottom),
        (right, bottom - 40),
        (right - 40, bottom),
    ):
        assert pixel(picture, x, y) == list(colour_of(1))
    for x, y in ((right + 1, bottom), (right, bottom + 1), (box.x * SCALE - 1, bottom)):
        if 0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]:
            assert pixel(picture, x, y) != list(colour_of(1))


def test_faint_boxes_and_ranks():
    boxes = [Box(2, 2, 30, 30), Box(40, 40, 30, 30), Box(90, 50, 30, 30), Box(20, 60, 20, 20)]
    picture = region_picture(grey(), None, boxes, best=3)
    faint = boxes[3]
    x, y = faint.x * SCALE, (faint.y + faint.height) * SCALE - 1
    bare = pixel(region_picture(grey(), None, []), x, y)
    expected = [round(old * (1 - FAINTNESS) + 255 * FAINTNESS) for old in bare]
    assert pixel(picture, x, y) == pytest.approx(expected, abs=1) and expected != bare
    for rank, box in enumerate(boxes[:3], start=1):
        assert pixel(picture, (box.x + box.width) * SCALE - 1, (box.y + box.height) * SCALE - 1) == list(
            colour_of(rank)
        )
        label = picture[box.y * SCALE + 3 : box.y * SCALE + 16, box.x * SCALE + 3 : box.x * SCALE + 12]
        assert label.sum(2).min() < 0.5 * label.sum(2).max(), "a dark number"
    fourth = boxes[3]
    corner = pixel(picture, (fourth.x + fourth.width) * SCALE - 1, (fourth.y + fourth.height) * SCALE - 1)
    assert corner not in [list(colour_of(rank)) for rank in (1, 2, 3)]


def test_a_large_image_is_not_enlarged_and_nothing_found_is_no_error():
    image, looked = torch.rand(1, 3, 520, 600), torch.rand(1, 5, 6)
    picture = region_picture(image, looked, [])
    assert picture.shape == (520, 600, 3)

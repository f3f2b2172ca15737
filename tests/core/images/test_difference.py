"""The difference of two pictures against numpy and scikit-image, what counts as changed, and the words for where."""

import numpy as np
import pytest
import torch
from skimage.filters import gaussian

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.difference import (
    FULL_HEAT,
    OUTLINE,
    STRONG,
    VISIBLE,
    changed_region,
    difference_map,
    difference_picture,
    full_heat,
    place,
    smoothed,
)
from semantic_editing.core.images.heat import HEAT

SIZE = (90, 120)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def patch(rows, columns, value=0.5, size=SIZE):
    """A map that is ``value`` in a rectangle and 0 elsewhere."""
    made = torch.zeros(1, *size)
    made[0, rows, columns] = value
    return made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1, 3, 7, 5), (3, 3, 16, 24), (2, 1, 1, 1)])
def test_the_map_is_numpys(dtype, shape):
    after, before = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    found = difference_map(after, before)
    expected = np.abs(after.double().numpy() - before.double().numpy()).mean(1)
    assert found.dtype == dtype and found.shape == (shape[0], *shape[2:])
    np.testing.assert_allclose(found.double().numpy(), expected, atol=2e-3 if dtype == torch.float16 else 1e-6)
    assert torch.equal(found, difference_map(before, after))


def test_two_sizes_are_both_named():
    with pytest.raises(EditingError, match=r"24 x 16 and 16 x 24 .*\.$"):
        difference_map(torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 24, 16))


@pytest.mark.parametrize("size", [(40, 60), (300, 200), (1, 5)])
def test_smoothing_is_scikit_images(size):
    field = random(2, *size)
    sigma = max(1.0, 0.01 * min(size))
    for row, found in zip(field, smoothed(field), strict=True):
        expected = gaussian(row.double().numpy(), sigma, mode="nearest", truncate=round(3 * sigma) / sigma)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_changed_patch_is_the_region_and_nothing_else():
    region = changed_region(patch(slice(30, 50), slice(60, 90)))
    inside = patch(slice(30, 50), slice(60, 90)) > 0
    grown = torch.nn.functional.max_pool2d(inside.float()[None], 7, 1, 3)[0] > 0
    assert region[inside].all() and not region[~grown].any()


def test_equal_pictures_and_single_faint_pixels_are_not_changed():
    assert not changed_region(torch.zeros(2, *SIZE)).any()
    assert not changed_region(patch(slice(40, 41), slice(40, 41), 0.2)).any()  # 0.2 / (2 pi) when smoothed
    assert changed_region(patch(slice(40, 41), slice(40, 41), 1.0)).any()


def test_in_a_restless_picture_only_what_stands_out_counts():
    grain = 0.05 * random(1, *SIZE)  # mean 0.025, below VISIBLE
    edges = grain.clone()
    edges[0, :, ::12] += 0.3  # what a VAE leaves at edges, some of it above VISIBLE when smoothed
    assert (smoothed(edges) > VISIBLE).float().mean() > 0.2
    assert changed_region(edges).float().mean() < 0.25
    assert changed_region(edges + patch(slice(30, 50), slice(60, 90)))[0, 32:48, 62:88].all()


@pytest.mark.parametrize("amount", [VISIBLE * 1.2, STRONG * 1.5, 0.5])
def test_a_change_of_the_whole_picture_is_a_change(amount):
    restless = amount * (0.9 + 0.2 * random(1, *SIZE))
    assert changed_region(restless).float().mean() > 0.95


def test_each_picture_of_a_batch_is_judged_alone():
    maps = torch.cat([patch(slice(0, 20), slice(0, 20)), torch.zeros(1, *SIZE), 0.5 * torch.ones(1, *SIZE)])
    alone = torch.cat([changed_region(one[None]) for one in maps])
    assert torch.equal(changed_region(maps), alone)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (slice(0, 90), slice(0, 120), "all over the picture"),
        (slice(40, 50), slice(55, 65), "in the middle"),
        (slice(20, 28), slice(20, 35), "in the upper left"),
        (slice(20, 28), slice(55, 65), "in the upper middle"),
        (slice(60, 70), slice(90, 100), "in the lower right"),
        (slice(62, 72), slice(55, 65), "in the lower middle"),
        (slice(40, 50), slice(90, 100), "in the right middle"),
        (slice(40, 50), slice(20, 35), "in the left middle"),
        (slice(40, 50), slice(0, 8), "at the left edge"),
        (slice(82, 90), slice(55, 65), "at the lower edge"),
        (slice(0, 8), slice(110, 120), "in the upper right corner"),
        (slice(60, 75), slice(5, 115), "across the lower part"),
        (slice(40, 50), slice(0, 120), "across the middle"),
        (slice(5, 85), slice(10, 30), "down the left side"),
        (slice(5, 85), slice(95, 110), "down the right side"),
    ],
)
def test_where_it_is(rows, columns, words):
    change = patch(rows, columns)[0]
    assert place(change) == words
    mirrored = {"left": "right", "right": "left"}
    assert place(change.flip(1)) == " ".join(mirrored.get(word, word) for word in words.split())


def test_four_corners_are_many_places():
    corners = torch.zeros(*SIZE)
    for row in (0, 80):
        for column in (0, 110):
            corners[row : row + 10, column : column + 10] = 1
    assert place(corners) == "in many places"


def test_one_pixel_has_a_place():
    assert place(torch.ones(1, 1)) == "all over the picture"
    assert place(patch(slice(45, 46), slice(60, 61))[0]) == "in the middle"


def test_the_heat_is_red_where_it_is_full_and_grey_where_nothing_changed():
    before = random(1, 3, *SIZE)
    change = patch(slice(30, 50), slice(60, 90))[0]
    drawn = difference_picture(before, change, 0.5)
    torch.testing.assert_close(drawn[0, :, 40, 75], torch.tensor(HEAT) / 255)
    assert (drawn[0, 0] == drawn[0, 1])[change == 0].all() and drawn.amin() >= 0 and drawn.amax() <= 1


def test_a_still_picture_does_not_glow():
    assert full_heat(torch.full((1, *SIZE), 0.01)) == FULL_HEAT
    assert full_heat(patch(slice(10, 50), slice(10, 50), 0.4)) == pytest.approx(0.4, abs=1e-3)


def test_the_mask_is_outlined_on_its_own_border():
    before, mask = torch.zeros(1, 3, *SIZE), patch(slice(30, 50), slice(60, 90), 1.0)[0]
    drawn = difference_picture(before, torch.zeros(SIZE), 0.1, mask)
    blue = (drawn[0] == torch.tensor(OUTLINE).reshape(3, 1, 1) / 255).all(0)
    border = mask.bool().clone()
    border[31:49, 61:89] = False
    assert torch.equal(blue, border)
    assert not difference_picture(before, torch.zeros(SIZE), 0.1, torch.ones(SIZE))[0, 2].gt(0.9).any()

"""Anchors and boxes against loops over pixels, on images that are not square."""

import math

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.proposals import DEFAULT_SIZES, Box, box_sides, propose
from semantic_editing.tests.core.regions.tiny_regions import HEIGHT, SIZES, WIDTH, tiny_attention, tiny_proposals


def peak(row, column, grid=(6, 10)):
    attention = torch.rand(3, *grid, generator=torch.Generator().manual_seed(1)) * 0.1
    attention[:, row, column] = 1.0
    return attention


@pytest.mark.parametrize(("row", "column"), [(1, 7), (4, 2), (0, 9), (5, 0)])
def test_an_anchor_off_the_diagonal_is_not_transposed(row, column):
    """Issue 4 of the released code: (row, column) used as (x, y)."""
    found = propose(peak(row, column), (60, 200), 1, (9.0,))
    (anchor,) = found.anchors
    assert (anchor.row, anchor.column) == (row, column)
    assert (anchor.x, anchor.y) == (20 * column + 10, 10 * row + 5)  # patches are 20 wide and 10 high here
    box = found.box(0, 0)
    assert abs(box.x + box.width / 2 - anchor.x) <= 0.5 or box.x == 0 or box.x + box.width == 200
    mask = found.mask(box)[0]
    assert mask[int(anchor.y), int(anchor.x)] == 1 and mask.sum() == box.width * box.height


def test_boxes_are_the_clipped_squares_of_a_brute_force():
    found = tiny_proposals(anchors=12)
    for anchor, row in zip(found.anchors, found.boxes, strict=True):
        seen = []
        for size, box in zip(SIZES, row, strict=True):
            side = round(size * HEIGHT)
            left, top = math.floor(anchor.x - side / 2 + 0.5), math.floor(anchor.y - side / 2 + 0.5)
            pixels = [
                (x, y)
                for x in range(left, left + side)
                for y in range(top, top + side)
                if 0 <= x < WIDTH and 0 <= y < HEIGHT
            ]
            if pixels in seen:
                assert box is None
                continue
            seen.append(pixels)
            painted = [(x, y) for x in range(box.x, box.x + box.width) for y in range(box.y, box.y + box.height)]
            assert painted == pixels
    assert found.valid.tolist() == [[box is not None for box in row] for row in found.boxes]


def test_boxes_that_clipping_makes_equal_are_merged():
    found = propose(peak(0, 0), (24, 24), 1, (0.5, 0.5, 2000.0, 4000.0))
    assert found.valid.tolist() == [[True, False, True, False]]
    assert found.box(0, 2) == Box(0, 0, 24, 24)
    with pytest.raises(EditingError, match="slot 1"):
        found.box(0, 1)


def test_anchors_are_the_most_attended_patches_in_order():
    attention = tiny_attention()
    found = tiny_proposals(anchors=5)
    every = sorted(((float(attention[:, r, c].mean()), r, c) for r in range(6) for c in range(10)), reverse=True)[:5]
    assert [(a.row, a.column) for a in found.anchors] == [(r, c) for _, r, c in every]
    assert [a.attention for a in found.anchors] == pytest.approx([value for value, _, _ in every])


def test_spread_keeps_anchors_apart_and_loses_none_that_fits():
    found = tiny_proposals(anchors=8, spread=1)
    cells = [(a.row, a.column) for a in found.anchors]
    for index, one in enumerate(cells):
        assert all(max(abs(one[0] - other[0]), abs(one[1] - other[1])) > 1 for other in cells[:index])
    (best,) = tiny_proposals(anchors=1).anchors
    assert cells[0] == (best.row, best.column)
    assert len(tiny_proposals(anchors=60, spread=20).anchors) == 1


def test_sizes_are_fractions_or_pixels_and_aspects_keep_the_area():
    assert box_sides((0.5, 16.0), (1.0,), (24, 40)) == [(12, 12), (16, 16)]
    assert box_sides((40.0,), (4.0, 0.25), (100, 100)) == [(80, 20), (20, 80)]
    assert len(DEFAULT_SIZES) == 7 and len(box_sides(DEFAULT_SIZES, (1.0,), (64, 64))) == 7


@pytest.mark.parametrize("use", ["restrict", "exclude"])
def test_a_mask_decides_what_may_change(use):
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[3:14, 6:21] = 1.0
    found = tiny_proposals(anchors=5, mask=mask, mask_use=use)
    allowed = mask > 0 if use == "restrict" else mask == 0
    for anchor, row in zip(found.anchors, found.boxes, strict=True):
        patch = allowed[anchor.row * 4 : anchor.row * 4 + 4, anchor.column * 4 : anchor.column * 4 + 4]
        assert patch.float().mean() >= 0.5
        for box in filter(None, row):
            painted = found.mask(box)[0] > 0
            assert painted.any() and not (painted & ~allowed).any()
            rows, columns = painted.any(1).nonzero(), painted.any(0).nonzero()
            assert box == Box(
                int(columns.min()),
                int(rows.min()),
                int(columns.max() - columns.min()) + 1,
                int(rows.max() - rows.min()) + 1,
            )


def test_a_box_without_a_mask_is_wholly_inside_its_restricting_frame():
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[:, :20] = 1
    whole = tiny_proposals(anchors=2, mask=mask).box(0, 3)
    assert whole.x + whole.width <= 20


BAD = {
    "no box sizes": {"sizes": ()},
    "not a positive number": {"sizes": (0.5, float("nan"))},
    "positive number;": {"sizes": (0.5, -1.0)},
    "below one pixel": {"sizes": (0.01,)},
    "too many": {"sizes": (0.5,) * 65},
    "use 1 to 60": {"anchors": 61},
    "anchors is 0": {"anchors": 0},
    "leaves no patch": {"mask": torch.zeros(HEIGHT, WIDTH)},
    "None of the 1 boxes": {"given": [Box(WIDTH, 0, 5, 5)]},
    "finds no object": {"attention": torch.ones(2, 6, 10)},
    "is not a number": {"attention": torch.full((2, 6, 10), float("nan"))},
    "one image's": {"attention": torch.ones(1, 2, 6, 10)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_a_sentence(message):
    options = {"attention": tiny_attention(), "image_size": (HEIGHT, WIDTH), "anchors": 2, "sizes": SIZES} | BAD[
        message
    ]
    with pytest.raises(EditingError, match=message):
        propose(**options)


def test_a_mask_that_allows_few_patches_gives_as_many_places():
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[:8, :8] = 1  # four patches
    assert len(tiny_proposals(anchors=5, mask=mask).anchors) == 4


@pytest.mark.parametrize("highest", [1.0, 0.2])
@pytest.mark.parametrize("times", [1, 3])
def test_one_pixel_is_enough_soft_or_hard_in_a_mask_of_any_size(highest, times):
    mask = torch.zeros(HEIGHT * times, WIDTH * times)
    mask[HEIGHT * times - 1, 5 * times] = highest
    mask[0, 0] = 0.4 * highest  # below half
    proposals = tiny_proposals(anchors=2, mask=mask)
    boxes = {box for row in proposals.boxes for box in row if box is not None}
    assert boxes == {Box(5, HEIGHT - 1, 1, 1)}
    small = torch.zeros(HEIGHT // 4, WIDTH // 4)
    small[2, 3] = highest
    assert Box(12, 8, 4, 4) in {box for row in tiny_proposals(anchors=2, mask=small).boxes for box in row}


def test_given_boxes_are_the_places_cut_to_image_and_mask_each_once():
    mask = torch.ones(HEIGHT, WIDTH)
    mask[:, :4] = 0
    given = [Box(2, 3, 10, 5), Box(-5, -5, 12, 12), Box(2, 3, 10, 5), Box(0, 0, 3, 3), Box(WIDTH, 0, 2, 2)]
    proposals = tiny_proposals(anchors=2, mask=mask, given=given)
    assert proposals.boxes == tuple((box, None, None, None)[: len(SIZES)] for box in (Box(4, 3, 8, 5), Box(4, 0, 3, 7)))
    assert [(each.x, each.y, each.found_by) for each in proposals.anchors] == [(8.0, 5.5, "given"), (5.5, 3.5, "given")]
    assert not proposals.mask(Box(0, 0, 8, 8))[:, :, :4].any()
    flat = propose(torch.ones(2, 6, 10), (HEIGHT, WIDTH), 2, SIZES, given=given)  # nothing need be attended
    assert len(flat.anchors) == 3

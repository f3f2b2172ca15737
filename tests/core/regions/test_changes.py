"""Places where an edit acts, on planted changes in images that are not square."""

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.changes import DEFAULT_CHANGES, MAP_SIDE, blurred, shares, with_changes
from semantic_editing.core.regions.proposals import Box, propose

HEIGHT, WIDTH = 96, 160
SIZES = (0.2, 0.4, 0.6, 1.0)


def attended(mask=None, size=(HEIGHT, WIDTH)):
    attention = torch.rand(2, 6, 10, generator=torch.Generator().manual_seed(0))
    return propose(attention, size, 2, SIZES, mask=mask)


def planted(*regions, size=(HEIGHT, WIDTH)):
    """Change of the given strengths inside boxes, none elsewhere."""
    change = torch.zeros(size)
    for strength, box in regions:
        change[box.y : box.y + box.height, box.x : box.x + box.width] += strength
    return change


def gap(one, other):
    """How far two boxes' edges are apart at most."""
    ends = [(b.x, b.y, b.x + b.width, b.y + b.height) for b in (one, other)]
    return max(abs(a - b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("box", [Box(100, 20, 30, 16), Box(4, 60, 16, 30), Box(60, 8, 70, 40)])
def test_the_boxes_of_the_first_place_frame_the_planted_change(box):
    found = with_changes(attended(), planted((0.5, box)), 1)
    assert found.anchors[:2] == attended().anchors and found.boxes[:2] == attended().boxes
    (anchor,), (boxes,) = found.anchors[2:], found.boxes[2:]
    assert (
        anchor.found_by == "change"
        and box.x <= anchor.x <= box.x + box.width
        and box.y <= anchor.y <= box.y + box.height
    )
    seen = [found_box for found_box in boxes if found_box is not None]
    assert (
        min(gap(found_box, box) for found_box in seen) <= 2
    )  # a level near half of the peak finds the edge, the blur aside
    areas = [found_box.width * found_box.height for found_box in seen]
    assert areas == sorted(set(areas))  # the lower the level, the larger the box, none twice
    assert len(boxes) == len(SIZES)


def test_a_change_that_reaches_the_border_has_boxes_that_reach_it_and_others_do_not():
    everywhere = with_changes(attended(), torch.full((HEIGHT, WIDTH), 0.5), 1).boxes[2]
    assert [box for box in everywhere if box is not None] == [
        Box(0, 0, WIDTH, HEIGHT)
    ]  # no frame is left unedited around a background
    lower = [
        box for box in with_changes(attended(), planted((0.5, Box(40, 56, 60, 40))), 1).boxes[2] if box is not None
    ]
    assert {box.y + box.height for box in lower} == {HEIGHT} and all(
        box.x > 20 and box.x + box.width < WIDTH - 20 for box in lower
    )
    apart = with_changes(attended(), planted((0.5, Box(12, 30, 50, 40))), 1).boxes[2]
    assert all(box.x > 0 and box.y > 0 for box in apart if box is not None)


def test_places_come_by_strength_and_faint_ones_not_at_all():
    strong, weak, faint = Box(120, 10, 20, 20), Box(10, 50, 24, 24), Box(90, 70, 20, 20)
    found = with_changes(attended(), planted((0.2, weak), (0.6, strong), (0.01, faint)), 5)
    centres = [(anchor.x, anchor.y) for anchor in found.anchors[2:]]
    inside = [
        [b.x <= x <= b.x + b.width and b.y <= y <= b.y + b.height for b in (strong, weak, faint)] for x, y in centres
    ]
    assert inside[0] == [True, False, False]
    assert [False, True, False] in inside and [False, False, True] not in inside


def test_parts_that_lie_close_are_one_region_and_distant_ones_are_not():
    left, near, far = Box(20, 40, 12, 12), Box(34, 40, 12, 12), Box(120, 40, 12, 12)
    boxes = with_changes(attended(), planted((0.5, left), (0.5, near), (0.4, far)), 1).boxes[2]
    largest = [box for box in boxes if box is not None][-1]
    assert gap(largest, Box(20, 40, 26, 12)) <= 5


def test_no_change_and_none_asked_add_nothing():
    assert with_changes(attended(), torch.zeros(HEIGHT, WIDTH), DEFAULT_CHANGES).boxes == attended().boxes
    assert with_changes(attended(), planted((1.0, Box(0, 0, 9, 9))), 0).boxes == attended().boxes


def test_a_change_where_the_mask_is_thinner_than_the_maps_cells_adds_nothing():
    mask = torch.zeros(4 * HEIGHT, 4 * WIDTH)
    mask[:, : 2 * WIDTH] = 1
    mask[::4, 2 * WIDTH :] = 1  # a quarter of each cell
    whole = attended(mask, (4 * HEIGHT, 4 * WIDTH))
    assert 4 * HEIGHT > 2 * MAP_SIDE
    found = with_changes(whole, planted((0.9, Box(3 * WIDTH, 100, 60, 60)), size=(4 * HEIGHT, 4 * WIDTH)), 2)
    assert found is whole and found.change is None


def test_a_mask_keeps_places_and_boxes_inside_it():
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[:, : WIDTH // 2] = 1
    change = planted((0.9, Box(100, 20, 30, 30)), (0.3, Box(60, 50, 40, 20)))
    found = with_changes(attended(mask), change, 3)
    assert len(found.anchors) > 2
    for anchor, boxes in zip(found.anchors[2:], found.boxes[2:], strict=True):
        assert anchor.x <= WIDTH / 2
        assert all(box.x + box.width <= WIDTH // 2 for box in boxes if box is not None)


def test_a_map_of_another_size_and_a_large_image_give_the_same_boxes_scaled():
    small = with_changes(attended(), planted((0.5, Box(64, 32, 32, 16))), 1).boxes[2]
    halved = torch.nn.functional.avg_pool2d(planted((0.5, Box(64, 32, 32, 16)))[None], 2)[0]
    for one, other in zip(small, with_changes(attended(), halved, 1).boxes[2], strict=True):
        assert one is None or other is None or gap(one, other) <= 3
    size = (MAP_SIDE * 4, MAP_SIDE * 6)
    box = Box(300, 200, 160, 80)
    large = with_changes(attended(size=size), planted((0.5, box), size=size), 1).boxes[2]
    assert min(gap(found, box) for found in large if found is not None) <= 8


def test_levels_fall_and_the_blur_keeps_the_sum():
    levels = shares(7)
    assert levels == sorted(levels, reverse=True) and levels[-1] > 0.1 and levels[0] < 0.8 and len(shares(1)) == 1
    field = torch.zeros(40, 50)
    field[20, 25] = 1
    spread = blurred(field)
    assert torch.isclose(spread.sum(), torch.tensor(1.0)) and spread.argmax() == field.argmax() and spread.max() < 0.1


def test_a_change_that_is_no_number_is_refused():
    with pytest.raises(EditingError, match="not a number"):
        with_changes(attended(), torch.full((HEIGHT, WIDTH), float("nan")), 1)

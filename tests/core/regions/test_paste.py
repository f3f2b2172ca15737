"""Crop and stitch: where the window lies, what keeps its bits, how the feather rises, what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from semantic_editing.core.content_hash import fingerprint
from semantic_editing.core.demo.data import DemoData
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.image import psnr
from semantic_editing.core.regions.paste import Framing, box_mask, feathered, paste, repainted_cells, resized


def picture(height=40, width=56, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def full_mask(image):
    return torch.ones(1, *image.shape[-2:])


def invert_colours(crop, mask):
    return 1 - crop


def edited_in(framing, image, mask, box, edit):
    """Cut, edit, paste."""
    cut = framing.cut(image, mask, box)
    return paste(image, edit(cut.pixels, cut.mask), cut)


def outside(image, box):
    x, y, width, height = box
    keep = torch.ones(image.shape[-2:], dtype=torch.bool)
    keep[y : y + height, x : x + width] = False
    return image[..., keep]


BOXES = [(0, 0, 9, 7), (47, 33, 9, 7), (20, 0, 1, 1), (10, 12, 20, 9), (0, 0, 56, 40), (55, 39, 1, 1), (3, 2, 53, 5)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(
    "framing",
    [Framing(), Framing(0.0, 16, 64, 3), Framing(float("inf"), 8, 32), Framing(2.0, 32, None, 0)],
    ids=["native", "resized", "whole", "coarse"],
)
def test_only_the_box_changes(box, framing):
    image = picture()
    seen = []

    def edit(crop, mask):
        seen.append((crop, mask))
        return 1 - crop

    result = edited_in(framing, image, full_mask(image), box, edit)
    assert torch.equal(outside(result, box), outside(image, box))
    x, y, width, height = box
    assert not torch.equal(result[..., y : y + height, x : x + width], image[..., y : y + height, x : x + width])
    (crop, mask) = seen[0]
    assert crop.shape[-2:] == mask.shape[-2:] and all(side % framing.multiple == 0 for side in crop.shape[-2:])
    assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask.any()


def window_by_rule(start, length, side, limit):
    """Brute force: of all windows of that side inside the image that hold the box, the one best centred on it."""
    places = [p for p in range(limit - side + 1) if p <= start and p + side >= start + length]
    return min(places, key=lambda p: abs((p + side / 2) - (start + length / 2)))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("context", [0.0, 0.25, 1.5])
def test_the_window_is_centred_and_inside(box, context):
    crop = Framing(context).crop(40, 56, box)
    x, y, width, height = box
    left, top, window_width, window_height = crop.window
    wanted = max(width, height) * (1 + 2 * context)
    for start, length, first, span, limit in ((x, width, left, window_width, 56), (y, height, top, window_height, 40)):
        assert span == limit or (span % 8 == 0 and wanted <= span < wanted + 8)
        best = window_by_rule(start, length, span, limit)
        centre = start + length / 2
        assert 0 <= first <= limit - span and first <= start and first + span >= start + length
        assert abs(abs(first + span / 2 - centre) - abs(best + span / 2 - centre)) < 1e-9


def test_native_crop_has_the_images_own_pixels_and_mask():
    image = picture(48, 64)
    seen = {}

    def edit(crop, mask):
        seen.update(crop=crop, mask=mask)
        return crop

    box = (20, 11, 8, 8)
    result = edited_in(Framing(0.5), image, full_mask(image), box, edit)
    left, top, width, height = Framing(0.5).crop(48, 64, box).window
    assert torch.equal(seen["crop"], image[..., top : top + height, left : left + width])
    expected = box_mask(full_mask(image), box)[..., top : top + height, left : left + width]
    assert torch.equal(seen["mask"], expected) and torch.equal(result, image)


def test_working_size_keeps_the_aspect_and_area():
    crop = Framing(float("inf"), 8, 64).crop(100, 200, (0, 0, 10, 10))
    height, width = crop.size
    assert crop.window == (0, 0, 200, 100) and 1.8 < width / height < 2.2 and 0.8 < height * width / 64**2 < 1.2


@pytest.mark.parametrize("working", [160, 256, 512])
def test_a_small_picture_is_scaled_up_to_the_working_size_and_back_without_blur(working):
    """The mean of every 2 x 2 pixels is 23 dB from the portrait; up and down it stays above 38."""
    portrait = DemoData().pairs[0].source[None]
    box = (40, 40, 48, 48)
    cut = Framing(0.5, working_size=working).cut(portrait, full_mask(portrait), box)
    assert tuple(cut.pixels.shape[-2:]) == (working, working) and cut.window.width < working
    back = paste(portrait, cut.pixels, cut)[..., 40:88, 40:88]
    blurred = functional.avg_pool2d(portrait, 2, 1)[..., 40:88, 40:88]
    assert psnr(back, portrait[..., 40:88, 40:88]) > 38 > 30 > psnr(blurred, portrait[..., 40:88, 40:88])


def test_feather_rises_linearly_from_the_edge_and_ignores_the_images_border():
    mask = torch.zeros(1, 20, 30)
    mask[:, 4:16, 5:25] = 1
    opacity = feathered(mask, 3)[0]
    for y in range(20):
        for x in range(30):
            depth = min(y - 3, 16 - y, x - 4, 25 - x)  # pixels inside, counted from 1
            assert float(opacity[y, x]) == pytest.approx(min(max(depth, 0), 4) / 4, abs=1e-6)
    assert torch.equal(feathered(torch.ones(1, 20, 30), 5), torch.ones(1, 20, 30))
    assert torch.equal(feathered(mask, 0), mask)
    thin = torch.zeros(1, 20, 30)
    thin[:, 8:10, 5:25] = 1
    assert float(feathered(thin, 8).max()) == 1 and torch.equal(feathered(thin, 8) > 0, thin > 0)


def test_full_opacity_shows_the_edit_bit_for_bit():
    image = picture(48, 64)
    edited = picture(48, 64, seed=1)
    result = edited_in(
        Framing(float("inf"), feather=2), image, full_mask(image), (10, 10, 20, 20), lambda crop, mask: edited
    )
    assert torch.equal(result[..., 12:28, 12:28], edited[..., 12:28, 12:28])
    assert torch.allclose(result[..., 10, 15], image[..., 10, 15] + (edited - image)[..., 10, 15] / 3, atol=1e-6)


@pytest.mark.parametrize(("size", "depth"), [(7, 0), (9, 1), (17, 2), (40, 4)])
def test_a_small_box_fades_in_faster(size, depth):
    """At most an eighth of the box: the pixel that is ``depth`` deep is the first to show the edit itself."""
    image = torch.zeros(1, 3, 60, 60)
    result = edited_in(
        Framing(float("inf"), 4), image, full_mask(image), (10, 10, size, size), lambda crop, mask: crop + 1
    )
    row = result[0, 0, 10 + size // 2]
    assert float(row[9]) == 0 and float(row[10 + depth]) == 1
    assert [round(float(v), 5) for v in row[10 : 10 + depth]] == [round((n + 1) / (depth + 1), 5) for n in range(depth)]


def test_mask_within_the_box_limits_the_paste():
    image = picture()
    mask = torch.zeros(1, 40, 56)
    mask[:, 10:20, 10:20] = 1
    mask[:, 30:, 50:] = 1  # outside the box: does not count
    result = edited_in(Framing(), image, mask, (8, 8, 20, 20), invert_colours)
    assert torch.equal(outside(result, (10, 10, 10, 10)), outside(image, (10, 10, 10, 10)))
    assert not torch.equal(result, image)


@pytest.mark.parametrize("size", [(5, 7), (40, 56), (80, 60)])
def test_repainted_cells_are_those_the_mask_touches(size):
    mask = torch.zeros(1, 40, 56)
    mask[:, 13:15, 21] = 0.2
    cells = repainted_cells(mask, size)[0, 0]
    for row in range(size[0]):
        for column in range(size[1]):
            rows = range(row * 40 // size[0], -(-(row + 1) * 40 // size[0]))
            columns = range(column * 56 // size[1], -(-(column + 1) * 56 // size[1]))
            assert float(cells[row, column]) == float(any(mask[0, y, x] > 0 for y in rows for x in columns))


def test_resized_keeps_a_constant_and_the_bits_of_its_own_size():
    image = picture()
    assert resized(image, (40, 56)) is image
    assert torch.allclose(resized(torch.full((1, 3, 40, 56), 0.3), (17, 90)), torch.tensor(0.3), atol=1e-6)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((5, 5, 0, 4), "box is empty"),
        ((5, 5, 4, -1), "box is empty"),
        ((50, 5, 10, 4), "outside the image"),
        ((-1, 5, 10, 4), "outside the image"),
        ((60, 50, 4, 4), "outside the image"),
        ((0, 0, 2.5, 4), "whole pixels"),
        ((0, 0, 2), "whole pixels"),
    ],
)
def test_bad_boxes_are_refused(box, words):
    image = picture()
    with pytest.raises(EditingError, match=words):
        edited_in(Framing(), image, full_mask(image), box, invert_colours)


def test_bad_pictures_masks_and_edits_are_refused():
    image, box = picture(), (5, 5, 10, 10)
    mask = full_mask(image)
    for bad_mask in (torch.ones(1, 40, 55), torch.ones(40, 56), torch.ones(2, 40, 56)):
        with pytest.raises(EditingError, match="56 x 40 pixels"):
            edited_in(Framing(), image, bad_mask, box, invert_colours)
    with pytest.raises(EditingError, match="empty within the box"):
        edited_in(Framing(), image, torch.zeros(1, 40, 56), box, invert_colours)
    for bad_image in (image[0], image.repeat(2, 1, 1, 1), image[:, :1]):
        with pytest.raises(EditingError, match="one image"):
            edited_in(Framing(), bad_image, mask, box, invert_colours)
    with pytest.raises(EditingError, match="mask is not a number"):
        edited_in(Framing(), image, mask * float("nan"), box, invert_colours)
    with pytest.raises(EditingError, match="edited crop"):
        edited_in(Framing(), image, mask, box, lambda crop, mask: crop[..., 1:])
    with pytest.raises(EditingError, match="edited picture is not a number"):
        edited_in(Framing(), image, mask, box, lambda crop, mask: crop * float("nan"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": -1.0}, "context"),
        ({"context": float("nan")}, "context"),
        ({"multiple": 0}, "multiple"),
        ({"feather": -1}, "feather"),
        ({"working_size": 4}, "working_size"),
    ],
)
def test_bad_frames_are_refused(options, words):
    with pytest.raises(EditingError, match=words):
        Framing(**options)


@dataclass
class Settings:
    cfg: float
    embeds: torch.Tensor


def test_fingerprint_reads_content_only():
    embeds = torch.arange(6.0).reshape(2, 3)
    same = [fingerprint([Settings(2.0, embeds.clone()), {"a": 1, "b": "x"}]) for _ in range(2)]
    assert same[0] == same[1] == fingerprint([Settings(2.0, embeds), {"b": "x", "a": 1}])
    others = [
        [Settings(3.0, embeds), {"a": 1, "b": "x"}],
        [Settings(2.0, embeds + 1), {"a": 1, "b": "x"}],
        [Settings(2.0, embeds.reshape(3, 2)), {"a": 1, "b": "x"}],
        [Settings(2.0, embeds), {"a": 1.0, "b": "x"}],
        [Settings(2.0, embeds), {"a": 1, "b": None}],
        [torch.tensor(2.0)],
    ]
    assert len({same[0], *(fingerprint(other) for other in others)}) == 7
    assert fingerprint(object()) != fingerprint(object()) and fingerprint(torch.zeros(2).bfloat16()) == fingerprint(
        torch.zeros(2).bfloat16()
    )

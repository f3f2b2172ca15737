"""The strip of an edit: every picture stands in it, whole, at a size that can be seen."""

import numpy as np
import pytest
import torch

from semantic_editing.core.images.edit_strip import LARGEST, LONGEST, MOST_ROWS, SMALLEST, edit_strip

RED, GREEN, BLUE = (torch.eye(3)[index].reshape(1, 3, 1, 1) for index in range(3))


def count(strip, colour):
    """Pixels of exactly one of the pure colours."""
    return int((strip[0] == torch.tensor(colour).float()).all(-1).sum())


@pytest.mark.parametrize(
    ("size", "shown"), [((128, 128), 256), ((100, 150), 300), ((256, 300), 256), ((1024, 1024), LARGEST)]
)
def test_pictures_are_brought_to_a_size_that_can_be_seen(size, shown):
    before, after, truth = (colour.expand(1, 3, *size) for colour in (RED, GREEN, BLUE))
    strip = edit_strip(before, after, torch.zeros(1, *size), ["a title"], truth)
    area = shown * round(shown * max(size) / min(size))
    assert [count(strip, colour) for colour in ((1, 0, 0), (0, 1, 0), (0, 0, 1))] == [area] * 3
    assert strip.dtype == torch.float32 and strip.shape[0] == 1 and strip.shape[-1] == 3


def test_a_long_thin_picture_is_not_blown_up():
    strip = edit_strip(*(torch.zeros(1, 3, 4, 900),) * 2, torch.zeros(1, 4, 900), [""])
    assert strip.shape[2] < 3 * (LONGEST + SMALLEST)


def test_a_batch_has_a_row_each_up_to_a_number_that_is_told():
    def strip(many):
        pictures = torch.zeros(many, 3, 64, 64)
        return np.asarray(edit_strip(pictures, pictures, torch.zeros(many, 64, 64), ["title"] * many))

    heights = [strip(many).shape[1] for many in (1, 2, MOST_ROWS, MOST_ROWS + 3)]
    assert heights[1] == 2 * heights[0] and heights[2] == heights[3] == MOST_ROWS * heights[0]
    last = heights[0] * (MOST_ROWS - 1)
    assert (strip(MOST_ROWS)[:, last:] != strip(MOST_ROWS + 3)[:, last:]).any()

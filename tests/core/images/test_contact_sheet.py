"""The contact sheet, read back pixel by pixel."""

import numpy as np
import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.contact_sheet import MARGIN, TITLE_HEIGHT, contact_sheet, to_picture

RED, BLUE = torch.zeros(3, 20, 30), torch.zeros(3, 40, 24)
RED[0], BLUE[2] = 1, 1


def colour_boxes(sheet, colour):
    """Bounding box (top, bottom, left, right) and count of the pixels of one colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1), len(rows)


def test_pictures_stand_whole_and_apart():
    sheet = contact_sheet([("one", [(RED, "red"), (BLUE, "blue")]), ("two", [(RED, "")])])
    box, count = colour_boxes(sheet.crop((0, 0, sheet.width, TITLE_HEIGHT + 40)), (255, 0, 0))
    assert box == (TITLE_HEIGHT, TITLE_HEIGHT + 20, MARGIN, MARGIN + 30) and count == 600
    box, count = colour_boxes(sheet, (0, 0, 255))
    assert box == (TITLE_HEIGHT, TITLE_HEIGHT + 40, 2 * MARGIN + 30, 2 * MARGIN + 54) and count == 960
    assert colour_boxes(sheet, (255, 0, 0))[1] == 1200


def test_captions_and_titles_leave_ink():
    plain = np.asarray(contact_sheet([("", [(RED, "")])]))
    titled = np.asarray(contact_sheet([("title", [(RED, "")])]))
    assert (plain != titled).any(-1)[:TITLE_HEIGHT].any()
    captioned = np.asarray(contact_sheet([("", [(RED, "x")])], width_of_text=100))
    assert (captioned[TITLE_HEIGHT + 20 :] < 200).any()


def test_a_long_caption_wraps_instead_of_overlapping():
    words = "many words of a caption " * 6
    short = contact_sheet([("", [(RED, "x"), (BLUE, "y")])], width_of_text=120)
    long = contact_sheet([("", [(RED, words), (BLUE, "y")])], width_of_text=120)
    assert long.width == short.width and long.height > short.height


def test_a_long_title_wraps_instead_of_being_cut():
    short = contact_sheet([("title", [(RED, "")])], width_of_text=120)
    long = contact_sheet([("many words of a title " * 4, [(RED, "")])], width_of_text=120)
    assert long.width == short.width and long.height > short.height
    assert colour_boxes(long, (255, 0, 0))[1] == 600  # the title covers nothing of the picture


def test_letters_grow_and_make_room_for_themselves():
    small, large = (contact_sheet([("title", [(RED, "x")])], width_of_text=200, text_size=size) for size in (10, 20))
    ink = [(np.asarray(sheet) < 200).all(-1).sum() for sheet in (small, large)]
    assert ink[1] > 2 * ink[0] and large.height > small.height
    assert colour_boxes(large, (255, 0, 0))[1] == 600


def test_enlarging_repeats_pixels():
    image = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))
    once, twice = np.asarray(to_picture(image)), np.asarray(to_picture(image, 2))
    assert (np.kron(once, np.ones((2, 2, 1), dtype=np.uint8)) == twice).all()


def test_values_are_clipped_and_rounded():
    image = torch.tensor([-1.0, 0.5, 2.0])[:, None, None]
    assert to_picture(image).getpixel((0, 0)) == (0, 128, 255)


def test_nothing_to_show_is_said():
    with pytest.raises(EditingError, match="at least one picture"):
        contact_sheet([("empty", [])])
    with pytest.raises(EditingError, match=r"\[3, height, width\]"):
        to_picture(torch.zeros(1, 3, 4, 4))

"""Picture files: any mode, orientation and size in; whole files out."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images import files as pictures
from semantic_editing.core.images.files import check_writable, read_picture, save_picture, square_pictures


def picture(width, height):
    """Red grows to the right, green downward."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[..., 0] = np.linspace(0, 255, width)[None]
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values)


def test_a_picture_of_fitting_size_is_read_exactly(tmp_path):
    original = picture(24, 16)
    original.save(tmp_path / "x.png")
    image, note = read_picture(tmp_path / "x.png")
    assert image.shape == (1, 3, 16, 24) and note == "24 x 16"
    torch.testing.assert_close(image[0], torch.from_numpy(np.asarray(original).copy()).permute(2, 0, 1) / 255)


def test_other_sizes_are_cropped_in_the_middle(tmp_path):
    original = picture(30, 21)
    original.save(tmp_path / "x.png")
    image, note = read_picture(tmp_path / "x.png")
    expected = np.asarray(original)[2:18, 3:27]
    assert note == "30 x 21, cropped to 24 x 16"
    torch.testing.assert_close(image[0], torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("before", "after"), [((40, 20), (32, 16)), ((20, 40), (16, 32)), ((100, 37), (40, 16)), ((8, 8), (16, 16))]
)
def test_the_shorter_side_gets_the_size_and_the_aspect_stays(tmp_path, before, after):
    picture(*before).save(tmp_path / "x.png")
    image, note = read_picture(tmp_path / "x.png", 16)
    assert tuple(image.shape[:1:-1]) == after
    assert "resized to" in note
    assert float(image[0, 0, 8, -1]) > 0.9 and float(image[0, 0, 8, 0]) < 0.1


def test_the_orientation_tag_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    picture(24, 16).save(tmp_path / "x.png", exif=exif)
    image, _ = read_picture(tmp_path / "x.png")
    assert image.shape == (1, 3, 24, 16)
    assert float(image[0, 0, -1, 0]) > 0.9 > 0.1 > float(image[0, 0, 0, 0])  # red grew to the right, now downward


def test_transparency_is_laid_on_white(tmp_path):
    layer = Image.new("RGBA", (16, 8), (0, 0, 255, 0))
    layer.paste((0, 0, 255, 255), (0, 0, 8, 8))
    layer.save(tmp_path / "x.png")
    image, _ = read_picture(tmp_path / "x.png")
    assert image[0, :, 0, 0].tolist() == [0, 0, 1]
    assert image[0, :, 0, -1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    base = Image.new("I;16", (16, 8), 65535) if mode == "I;16" else Image.new("RGB", (16, 8), "white").convert(mode)
    base.save(tmp_path / "x.tiff")
    image, _ = read_picture(tmp_path / "x.tiff")
    assert image.shape == (1, 3, 8, 16)
    assert float(image.min()) > 0.98


@pytest.mark.parametrize(
    ("prepare", "size", "said"),
    [
        (lambda path: None, None, "was not found"),
        (lambda path: path.write_text("no picture"), None, "damaged or not a picture"),
        (lambda path: picture(7, 30).save(path), None, "too small"),
        (lambda path: picture(16, 16).save(path), 20, "multiple of 8"),
        (lambda path: picture(16, 16).save(path), 0, "multiple of 8"),
        (lambda path: picture(16, 16).save(path), -8, "multiple of 8"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, prepare, size, said):
    prepare(tmp_path / "x.png")
    with pytest.raises(EditingError, match=said):
        read_picture(tmp_path / "x.png", size)


def test_half_a_picture_is_damaged(tmp_path):
    picture(64, 64).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EditingError, match="damaged"):
        read_picture(tmp_path / "x.png")


def test_saving_and_reading_again(tmp_path):
    path = save_picture(tmp_path / "new" / "x.png", picture(16, 8))
    assert (np.asarray(Image.open(path)) == np.asarray(picture(16, 8))).all()


def test_an_existing_picture_is_kept_unless_allowed(tmp_path):
    save_picture(tmp_path / "x.png", picture(16, 8))
    with pytest.raises(EditingError, match="exists already"):
        save_picture(tmp_path / "x.png", picture(8, 8))
    assert Image.open(tmp_path / "x.png").size == (16, 8)
    save_picture(tmp_path / "x.png", picture(8, 8), overwrite=True)
    assert Image.open(tmp_path / "x.png").size == (8, 8)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.os, "fsync", full_disk)
    with pytest.raises(EditingError, match="No space left"):
        save_picture(tmp_path / "x.png", picture(16, 8))
    assert os.listdir(tmp_path) == []


def test_an_ending_of_no_picture_format_is_refused(tmp_path):
    with pytest.raises(EditingError, match=r"use \.png"):
        check_writable(tmp_path / "x.doc")


def test_a_file_where_a_folder_is_needed_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EditingError, match="cannot be made"):
        check_writable(tmp_path / "file" / "x.png")


def test_the_centre_of_a_folders_pictures_is_kept_and_the_unreadable_are_named(tmp_path):
    picture = Image.new("RGB", (96, 32), "black")
    picture.paste("white", (32, 0, 64, 32))  # the middle third
    picture.save(tmp_path / "a.png")
    Image.new("RGB", (40, 80), "white").save(tmp_path / "b.jpg", quality=100)
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("passed over")
    told = []
    images, skipped = square_pictures(tmp_path, 16, lambda done, total: told.append((done, total)))
    assert images.shape == (2, 3, 16, 16) and skipped == ["c.png"] and told == [(1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(images[:, :, :, 2:-2], torch.ones(2, 3, 16, 12), rtol=0, atol=0.02)


def test_folders_that_give_no_squares_are_refused(tmp_path):
    with pytest.raises(EditingError, match="holds no pictures"):
        square_pictures(tmp_path, 16)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(EditingError, match="None of the 1 pictures"):
        square_pictures(tmp_path, 16)
    with pytest.raises(EditingError, match="multiple of 8"):
        square_pictures(tmp_path, 20)

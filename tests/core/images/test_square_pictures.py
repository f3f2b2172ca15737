"""A folder's pictures as squares."""

import pytest
import torch
from PIL import Image

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.files import square_pictures


def test_the_centre_is_kept_and_the_unreadable_are_named(tmp_path):
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


def test_refused(tmp_path):
    with pytest.raises(EditingError, match="holds no pictures"):
        square_pictures(tmp_path, 16)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(EditingError, match="None of the 1 pictures"):
        square_pictures(tmp_path, 16)
    with pytest.raises(EditingError, match="multiple of 8"):
        square_pictures(tmp_path, 20)

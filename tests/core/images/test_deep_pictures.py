"""Pictures of more than 8 bits, and pictures that go back to their own size."""

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.files import decoded, read_picture, read_whole_picture

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", (RAMP * 65535).round().astype(np.uint16)),
        ("a.tif", (RAMP * 65535).round().astype(np.uint16)),
        ("b.tif", RAMP.astype(np.float32)),
        ("c.tif", (RAMP * 255).astype(np.float32)),
        ("d.tif", (RAMP * 65535).astype(np.float32)),
        ("e.tif", (RAMP * (2**31 - 1)).astype(np.int32)),
    ],
)
def test_a_picture_of_more_bits_keeps_its_greys(tmp_path, name, values):
    """The same ramp in every depth is the ramp, to the last of 8 bits."""
    Image.fromarray(values).save(tmp_path / name)
    read = np.asarray(decoded(tmp_path / name)).astype(float) / 255
    assert read.shape == (48, 64, 3)
    assert np.abs(read - RAMP[..., None]).max() <= 1 / 255


def test_floats_that_are_no_numbers_are_refused(tmp_path):
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(EditingError, match="not numbers"):
        decoded(tmp_path / "a.tif")


def saved(path, width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("width", "height"), [(64, 48), (37, 53), (61, 64)])
def test_padding_is_undone_bit_for_bit(tmp_path, width, height):
    photo = saved(tmp_path / "a.png", width, height)
    pixels, note, fit = read_whole_picture(tmp_path / "a.png")
    assert all(side % 8 == 0 and side - own < 8 for side, own in zip(pixels.shape[-2:], (height, width), strict=True))
    assert ("padded" in note) == (pixels.shape != photo.shape)
    assert torch.equal(fit.undo(pixels), photo)
    assert torch.equal(pixels[..., -1, :width], photo[..., -1, :])  # the last row goes on


def test_a_resized_picture_comes_back_at_its_own_size(tmp_path):
    """A smooth picture survives the way to a smaller size and back, in place: no shift, no border."""
    y, x = np.mgrid[0:151, 0:203]
    smooth = np.stack([x / 202, y / 150, (x + y) / 352], -1)
    Image.fromarray((smooth * 255).round().astype(np.uint8)).save(tmp_path / "a.png")
    pixels, _, fit = read_whole_picture(tmp_path / "a.png", 64)
    assert min(pixels.shape[-2:]) == 64
    back = fit.undo(pixels)
    assert back.shape == (1, 3, 151, 203)
    assert (back - torch.from_numpy(smooth).permute(2, 0, 1)).abs().max() < 0.02


def test_reading_for_training_still_crops(tmp_path):
    photo = saved(tmp_path / "a.png", 37, 53)
    assert torch.equal(read_picture(tmp_path / "a.png")[0], photo[..., 2:50, 2:34])

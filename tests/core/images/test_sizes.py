"""An edit at its photo's size: margins that VAE Encode cuts, scaled photos, batches, other shapes."""

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.sizes import at_photo_size, resized


def photo(height, width, count=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("side, cell", [((21, 35), 8), ((24, 39), 8), ((70, 40), 16)])
def test_what_vae_encode_cut_off_is_put_back_and_changes_with_its_neighbour(side, cell):
    source = photo(*side) * 0.5
    height, width = (length // cell * cell for length in side)
    top, left = (side[0] - height) // 2, (side[1] - width) // 2
    inner = source[..., top : top + height, left : left + width]
    edited = inner + 0.25
    whole = at_photo_size(source, edited)
    assert whole.shape == source.shape
    assert torch.equal(whole[..., top : top + height, left : left + width], edited)
    torch.testing.assert_close(whole, source + 0.25)  # everywhere as the edit beside it
    assert torch.equal(at_photo_size(source, inner), source)  # an edit that changed nothing gives the photo itself


def test_a_scaled_photo_is_scaled_back_and_one_of_the_same_size_is_left_alone():
    x = torch.linspace(0, 1, 96)
    source = x.expand(1, 3, 64, 96)
    small = torch.nn.functional.interpolate(source, (32, 48), mode="bilinear", antialias=True)
    back = at_photo_size(source, small)
    assert back.shape == source.shape
    assert (back - source).abs().max() < 0.02
    assert at_photo_size(small, small) is small


def test_one_photo_stands_for_a_batch_of_edits_and_other_counts_are_refused():
    source = photo(20, 20)
    edits = torch.cat([source[..., 2:18, 2:18], source[..., 2:18, 2:18].clamp(max=0.5)])
    whole = at_photo_size(source, edits)
    assert torch.equal(whole[:1], source) and torch.equal(whole[1:, :, 2:18, 2:18], edits[1:])
    with pytest.raises(EditingError, match="2 photos for 1"):
        at_photo_size(photo(20, 20, 2), edits[:1])


def test_another_shape_is_refused_with_what_to_do():
    with pytest.raises(EditingError, match=r"512 x 512 and the photo 900 x 600.*scale the photo without cropping"):
        at_photo_size(torch.zeros(1, 3, 600, 900), torch.zeros(1, 3, 512, 512))


@pytest.mark.parametrize("black", [0.0, -1.0])
def test_another_side_is_means_of_whole_pixels_or_bicubic_within_the_range(black):
    pictures = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).round() * (1 - black) + black
    assert torch.equal(resized(pictures, 12, black), pictures)
    torch.testing.assert_close(resized(pictures, 4, black), pictures.unfold(2, 3, 3).unfold(3, 3, 3).mean((-1, -2)))
    larger = resized(pictures, 30, black)
    assert larger.shape == (2, 3, 30, 30) and float(larger.min()) == black and float(larger.max()) == 1
    assert float(resized(pictures, 7, black).mean()) == pytest.approx(float(pictures.mean()), abs=0.05)

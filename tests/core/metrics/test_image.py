"""Measures against closed forms and brute force."""

import math

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.image import attributes_kept, perceptual_distance, psnr, ssim, success


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_constant_offset_is_its_square_in_decibel():
    reference = torch.full((2, 3, 5, 7), 0.5)
    offset = torch.tensor([0.1, 0.01])[:, None, None, None]
    torch.testing.assert_close(
        psnr(reference + offset, reference), torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=1e-6, atol=1e-5
    )


def test_psnr_of_equal_images_is_infinite_and_each_row_stands_alone():
    reference = images(2, 3, 8, 8)
    other = reference.clone()
    other[1] += 0.2
    first, second = psnr(other, reference).tolist()
    assert first == math.inf
    assert second == pytest.approx(-20 * math.log10(0.2), abs=1e-4)


def brute_force_ssim(x, y):
    """Wang et al. 2004, Eq. 13, window by window in plain loops; one channel."""
    weights = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)]
    total = sum(weights)
    weights = [w / total for w in weights]
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            mean_x = mean_y = xx = yy = xy = 0.0
            for i in range(11):
                for j in range(11):
                    w, a, b = weights[i] * weights[j], float(x[top + i, left + j]), float(y[top + i, left + j])
                    mean_x, mean_y, xx, yy, xy = (
                        mean_x + w * a,
                        mean_y + w * b,
                        xx + w * a * a,
                        yy + w * b * b,
                        xy + w * a * b,
                    )
            vx, vy, cxy = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * mean_x * mean_y + c1) * (2 * cxy + c2) / ((mean_x**2 + mean_y**2 + c1) * (vx + vy + c2)))
    return sum(values) / len(values)


def test_ssim_equals_brute_force():
    x, y = images(1, 1, 13, 12), images(1, 1, 13, 12, seed=1)
    y = 0.7 * x + 0.3 * y
    assert float(ssim(x, y)) == pytest.approx(brute_force_ssim(x[0, 0], y[0, 0]), abs=1e-9)


def test_ssim_is_one_for_equal_images_and_symmetric():
    x, y = images(2, 3, 16, 20), images(2, 3, 16, 20, seed=1)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert (ssim(x, y) < 0.5).all()


def test_perceptual_distance_equals_brute_force():
    layers = [images(2, 3, 4, 5, seed=1), images(2, 6, 2, 2, seed=2)]
    others = [images(2, 3, 4, 5, seed=3), images(2, 6, 2, 2, seed=4)]
    expected = []
    for row in range(2):
        total = 0.0
        for layer, other in zip(layers, others, strict=True):
            height, width = layer.shape[-2:]
            for y in range(height):
                for x in range(width):
                    a, b = layer[row, :, y, x].double(), other[row, :, y, x].double()
                    total += float((a / a.norm() - b / b.norm()).square().sum()) / (height * width)
        expected.append(total)
    assert perceptual_distance(layers, others).tolist() == pytest.approx(expected, rel=1e-6)
    assert perceptual_distance(layers, layers).tolist() == [0.0, 0.0]
    with pytest.raises(EditingError, match="one network"):
        perceptual_distance(layers, others[:1])


def test_success_reads_the_edited_attribute():
    labels = [{"hair": "red", "hat": "yes"}, {"hair": "black", "hat": "red"}]
    assert success(labels, "hair", "red").tolist() == [1.0, 0.0]


def test_attributes_kept_leaves_the_edited_one_out():
    expected = [{"hair": "red", "hat": "no", "eyes": "open", "mouth": "sad"}] * 3
    labels = [
        {"hair": "black", "hat": "no", "eyes": "open", "mouth": "sad"},
        {"hair": "red", "hat": "yes", "eyes": "open", "mouth": "sad"},
        {"hair": "red", "hat": "yes", "eyes": "shut", "mouth": "smile"},
    ]
    assert attributes_kept(labels, expected, "hair").tolist() == pytest.approx([1, 2 / 3, 0])


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_other_shapes_are_refused(measure):
    with pytest.raises(EditingError, match="shapes"):
        measure(images(1, 3, 16, 16), images(1, 3, 16, 17))


def test_bad_measure_input_is_refused():
    with pytest.raises(EditingError, match="at least 11"):
        ssim(images(1, 3, 10, 20), images(1, 3, 10, 20))
    with pytest.raises(EditingError, match="one for each"):
        attributes_kept([{}], [], "hair")

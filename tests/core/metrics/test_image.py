"""Measures against closed forms and brute force."""

import math

import numpy
import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.image import attributes_kept, mse, perceptual_distance, psnr, ssim, success


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


def masks(rows, height, width, seed=5):
    """Soft masks, 0 in many places."""
    return (2 * images(rows, 1, height, width, seed=seed) - 1).clamp_min(0)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shape", [(1, 3, 11, 16), (3, 3, 24, 13), (2, 1, 12, 12)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mse_and_psnr_are_those_of_skimage(dtype, shape):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = images(*shape).to(dtype), images(*shape, seed=1).to(dtype)
    a, b = x.double().numpy(), y.double().numpy()
    squares, decibels = mse(x, y), psnr(x, y)
    assert squares.dtype == decibels.dtype == torch.float64
    for row in range(shape[0]):
        assert float(squares[row]) == pytest.approx(metrics.mean_squared_error(a[row], b[row]), rel=1e-9)
        expected = metrics.peak_signal_noise_ratio(a[row], b[row], data_range=1.0)
        assert float(decibels[row]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mask_rows", [1, 3])
def test_a_mask_chooses_the_pixels(mask_rows):
    x, y, soft = images(3, 3, 12, 14), images(3, 3, 12, 14, seed=1), masks(mask_rows, 12, 14)
    hard = (soft > 0).float()
    for row in range(3):
        weights = soft[row % mask_rows, 0].double().numpy()
        difference = ((x[row].double() - y[row].double()) ** 2).numpy().mean(0)
        expected = numpy.average(difference, weights=weights)
        assert float(mse(x, y, soft)[row]) == pytest.approx(expected, rel=1e-12)
        assert float(psnr(x, y, soft)[row]) == pytest.approx(-10 * math.log10(expected), rel=1e-12)
        picked = difference[weights > 0].mean()
        assert float(mse(x, y, hard)[row]) == pytest.approx(picked, rel=1e-12)
    changed_outside = torch.where(hard > 0, y, 1 - y)
    for measure in (mse, psnr):
        torch.testing.assert_close(measure(x, changed_outside, hard), measure(x, y, hard))
        torch.testing.assert_close(measure(x, y, torch.full_like(hard, 0.25)), measure(x, y))


def mirrored(picture):
    """``[C, H, W]`` with 5 mirrored pixels on every side, so that a window fits everywhere."""
    return numpy.pad(picture.double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect")


def skimage_ssim_map(x, y):
    metrics = pytest.importorskip("skimage.metrics")
    _, found = metrics.structural_similarity(
        mirrored(x), mirrored(y), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return found[:, 5:-5, 5:-5]


@pytest.mark.parametrize("shape", [(1, 3, 11, 16), (3, 3, 24, 13), (2, 1, 12, 12)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ssim_is_that_of_skimage(dtype, shape):
    x = images(*shape)
    y = (0.7 * x + 0.3 * images(*shape, seed=1)).to(dtype)
    x, mask = x.to(dtype), masks(shape[0], *shape[2:])
    got, inside = ssim(x, y), ssim(x, y, mask)
    assert got.dtype == inside.dtype == torch.float64
    for row in range(shape[0]):
        expected = skimage_ssim_map(x[row], y[row])
        assert float(got[row]) == pytest.approx(expected.mean(), abs=1e-9)
        weighted = numpy.average(expected.mean(0), weights=mask[row, 0].double().numpy())
        assert float(inside[row]) == pytest.approx(weighted, abs=1e-9)


def test_ssim_written_out():
    """Wang et al. 2004, Eq. 13, window by window in plain loops; one channel."""
    x, y = images(1, 1, 13, 12), images(1, 1, 13, 12, seed=1)
    y = 0.7 * x + 0.3 * y
    weights = numpy.array([math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)])
    weights = numpy.outer(weights, weights) / weights.sum() ** 2
    a, b = mirrored(x[0])[0], mirrored(y[0])[0]
    values = []
    for top in range(13):
        for left in range(12):
            p, q = a[top : top + 11, left : left + 11], b[top : top + 11, left : left + 11]
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
            both = (weights * (p - mean_p) * (q - mean_q)).sum()
            light = (2 * mean_p * mean_q + 0.01**2) / (mean_p**2 + mean_q**2 + 0.01**2)
            values.append(light * (2 * both + 0.03**2) / (var_p + var_q + 0.03**2))
    assert float(ssim(x, y)) == pytest.approx(sum(values) / len(values), abs=1e-9)


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
    assert success(labels, {"hair": "red"}).tolist() == [1.0, 0.0]


def test_attributes_kept_leaves_the_edited_one_out():
    expected = [{"hair": "red", "hat": "no", "eyes": "open", "mouth": "sad"}] * 3
    labels = [
        {"hair": "black", "hat": "no", "eyes": "open", "mouth": "sad"},
        {"hair": "red", "hat": "yes", "eyes": "open", "mouth": "sad"},
        {"hair": "red", "hat": "yes", "eyes": "shut", "mouth": "smile"},
    ]
    assert attributes_kept(labels, expected, "hair").tolist() == pytest.approx([1, 2 / 3, 0])


def test_bad_measure_input_is_refused():
    with pytest.raises(EditingError, match="at least 11"):
        ssim(images(1, 3, 10, 20), images(1, 3, 10, 20))
    with pytest.raises(EditingError, match="one for each"):
        attributes_kept([{}], [], "hair")

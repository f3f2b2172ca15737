"""The Frechet distance against scipy's matrix square root and against closed forms."""

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.distribution import feature_fid

pytest.importorskip("torchmetrics")


def features(rows, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator) + seed


def with_scipy(x, y):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = x.double(), y.double()
    first, second = (torch.cov(v.T, correction=1).reshape(v.shape[1], -1).numpy() for v in (x, y))
    root = linalg.sqrtm(first @ second)
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    return mean + float((first + second - 2 * root.real).trace())


@pytest.mark.parametrize(("rows", "others", "width"), [(40, 40, 6), (60, 25, 3), (9, 12, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_it_is_scipys(rows, others, width, dtype):
    x, y = features(rows, width).to(dtype), features(others, width, seed=1).to(dtype)
    got = feature_fid(x, y)
    assert isinstance(got, float) and got == pytest.approx(with_scipy(x, y), rel=1e-6)
    assert feature_fid(y, x) == pytest.approx(got, rel=1e-6)


def test_fewer_pictures_than_features():
    x, y = features(8, 20).double(), features(6, 20, seed=1).double()
    assert feature_fid(x, y) == pytest.approx(with_scipy(x, y), rel=1e-3)  # scipy's root of a singular matrix


def test_a_shift_is_its_square_and_far_from_zero_no_digits_are_lost():
    x = features(50, 4).double()
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0]).double()
    assert feature_fid(x, x) == pytest.approx(0, abs=1e-6)
    assert feature_fid(x + shift, x) == pytest.approx(5.25, abs=1e-6)
    assert feature_fid(x + shift + 1e5, x + 1e5) == pytest.approx(5.25, abs=1e-4)


def test_scaled_features_differ_by_their_spread():
    x = features(50, 1).double()
    expected = float((2 * x.mean() - x.mean()) ** 2 + (2 * x.std() - x.std()) ** 2)
    assert feature_fid(2 * x, x) == pytest.approx(expected, rel=1e-6)


def test_bad_features_are_refused():
    x = features(5, 3)
    for arguments, message in [
        ((x[:1], x), "at least 2 on each side"),
        ((x, x[:0]), "at least 2 on each side"),
        ((x, x[:, :2]), "one network"),
        ((x[0], x), "one network"),
        ((x, x * float("inf")), "not a number"),
    ]:
        with pytest.raises(EditingError, match=message):
            feature_fid(*arguments)

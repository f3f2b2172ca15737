"""What every measure refuses, in one sentence each, and the mean over a mask."""

import sys

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.checks import check_mask, masked_mean, torchmetrics_part
from semantic_editing.core.metrics.distribution import feature_fid
from semantic_editing.core.metrics.image import mse, psnr, ssim

MEASURES = [mse, psnr, ssim]


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("measure", MEASURES)
def test_bad_pictures_and_masks_are_refused(measure):
    x, y = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=1)
    nan, mask = y.clone(), torch.ones(2, 1, 16, 16)
    nan[1, 2, 3, 4] = float("nan")
    halved = mask.clone()
    halved[1] = 0
    for arguments, message in [
        ((x, images(2, 3, 16, 17)), "shapes"),
        ((x, images(1, 3, 16, 16)), "shapes"),
        ((x[0], y[0]), "shapes"),
        ((x, nan), "not a number"),
        ((nan, x), "not a number"),
        (((x * 255).byte(), (y * 255).byte()), "divided by 255"),
        ((x, y, mask * 0), "mask is empty"),
        ((x, y, halved), "mask is empty"),
        ((x, y, mask[..., :15]), "mask of the images' size"),
        ((x, y, mask[:, 0]), "mask of the images' size"),
        ((x, y, mask.expand(-1, 3, -1, -1)), "mask of the images' size"),
        ((x, y, mask.expand(2, 1, 16, 16).repeat(2, 1, 1, 1)), "mask of the images' size"),
        ((x, y, mask * float("nan")), "mask is not a number"),
        ((x, y, mask * 2), "outside 0..1"),
        ((x, y, mask - 1.5), "outside 0..1"),
    ]:
        with pytest.raises(EditingError, match=message) as raised:
            measure(*arguments)
        assert str(raised.value).endswith(".") and str(raised.value).count(". ") == 0


def test_the_mean_counts_each_pixel_as_much_as_the_mask_says():
    values = torch.arange(8.0).reshape(2, 1, 2, 2).double()
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.5]]]])
    expected = torch.tensor([(0 + 0.5 + 1.5) / 2, (4 + 2.5 + 3.5) / 2]).double()
    torch.testing.assert_close(masked_mean(values, mask), expected)
    torch.testing.assert_close(masked_mean(values, mask * 0.1), expected)
    torch.testing.assert_close(masked_mean(values, None), torch.tensor([1.5, 5.5]).double())
    assert check_mask(values, mask).shape == (2, 1, 2, 2)


def test_a_missing_torchmetrics_is_named_and_psnr_does_without(monkeypatch):
    x, y = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    for name in ("torchmetrics", "torchmetrics.functional.image", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EditingError, match=r"SSIM needs torchmetrics.*pip install torchmetrics"):
        ssim(x, y)
    with pytest.raises(EditingError, match="pip install torchmetrics"):
        feature_fid(torch.rand(3, 2), torch.rand(3, 2))
    with pytest.raises(EditingError, match="LPIPS needs torchmetrics"):
        torchmetrics_part("functional.image", "LPIPS")
    assert torch.isfinite(psnr(x, y)).all()

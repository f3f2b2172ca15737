"""How good an edit is: fidelity of images, and what a classifier says about success and side effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``[B]``: ``-10 log10(mean squared error)`` of images ``[B, C, H, W]`` in 0..1.

    Infinite for equal images.

    Raises:
        EditingError: shapes differ.
    """
    _same_shape(images, reference)
    return -10 * (images.double() - reference.double()).square().mean((1, 2, 3)).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity ``[B]`` in -1..1 (Wang et al. 2004) of images ``[B, C, H, W]`` in 0..1, sides at least 11.

    Gaussian window of 11 pixels and sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, mean over channels and the positions where the
    window fits.

    Raises:
        EditingError: shapes differ or sides are shorter than the window.
    """
    _same_shape(images, reference)
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise EditingError(
            f"The images are {images.shape[-1]} x {images.shape[-2]} pixels; SSIM needs at least {SSIM_WINDOW}."
        )
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=images.device) - SSIM_WINDOW // 2
    window = (-(offsets**2) / (2 * SSIM_SIGMA**2)).exp()
    kernel = (window / window.sum()).outer(window / window.sum())[None, None]

    def blur(values: Tensor) -> Tensor:
        return functional.conv2d(values.flatten(0, 1)[:, None], kernel).unflatten(0, values.shape[:2])[:, :, 0]

    x, y = images.double(), reference.double()
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * structure).mean((1, 2, 3))


def perceptual_distance(features: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """LPIPS without its learned weights (Zhang et al. 2018, Eq. 1 with w = 1), ``[B]``; 0 for equal features.

    Args:
        features, reference: a network's activations of the images and of the references, ``[B, C_l, H_l, W_l]``
            for each layer.

    Raises:
        EditingError: other layers or shapes.
    """
    if [layer.shape for layer in features] != [layer.shape for layer in reference]:
        raise EditingError(
            "The features come from different layers or batches; compute both with one network on images of one size."
        )
    unit = [
        [functional.normalize(layer.double(), dim=1, eps=1e-10) for layer in layers] for layers in (features, reference)
    ]
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(*unit, strict=True)]).sum(0)


def success(labels: Sequence[Mapping[str, str]], attribute: str, target: str) -> Tensor:
    """Whether a classifier sees the edit, ``[B]`` of 0 or 1: ``labels[i][attribute] == target``."""
    return torch.tensor([float(seen[attribute] == target) for seen in labels])


def attributes_kept(
    labels: Sequence[Mapping[str, str]], expected: Sequence[Mapping[str, str]], attribute: str
) -> Tensor:
    """Share of the *other* attributes that are as expected, ``[B]``.

    Args:
        labels: what a classifier sees in the edited images.
        expected: what it sees in the true edited images (or in the sources: only ``attribute`` may differ).
        attribute: the edited one, left out.

    Raises:
        EditingError: lists of different lengths.
    """
    if len(labels) != len(expected):
        raise EditingError(
            f"There are {len(labels)} labelled images and {len(expected)} expectations; give one for each."
        )
    shares = []
    for seen, wanted in zip(labels, expected, strict=True):
        others = [key for key in wanted if key != attribute]
        shares.append(sum(seen[key] == wanted[key] for key in others) / len(others))
    return torch.tensor(shares)


def _same_shape(images: Tensor, reference: Tensor) -> None:
    if images.ndim != 4 or images.shape != reference.shape:
        raise EditingError(
            f"The images have shapes {list(images.shape)} and {list(reference.shape)}; compare equal [batch, channels, "
            "height, width]."
        )

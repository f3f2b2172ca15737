"""How good an edit is: fidelity of images, and what a classifier says about success and side effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from .checks import check_pair, masked_mean, torchmetrics_part

#: Side in pixels and width of the Gaussian window over which SSIM compares.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def mse(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference ``[B]`` of images ``[B, C, H, W]`` in 0..1; 0 for equal images.

    Args:
        mask: ``[B or 1, 1, H, W]`` in 0..1, how much each pixel counts: the mean is over what counts, so that a small
            and a large background compare. (PIE-Bench's code blackens what does not count and divides by all pixels.)
            None: all count.

    Raises:
        EditingError: shapes differ, a value is not a number, or the mask is empty.
    """
    check_pair(images, reference)
    return masked_mean((images.double() - reference.to(images.device).double()).square(), mask)


def psnr(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``[B]``: ``-10 log10(mse)`` of images ``[B, C, H, W]`` in 0..1.

    Infinite for equal images.

    Args:
        mask: see :func:`mse`.

    Raises:
        EditingError: as for :func:`mse`.
    """
    return -10 * mse(images, reference, mask).log10()


def ssim(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity ``[B]`` in -1..1 (Wang et al. 2004) of images ``[B, C, H, W]`` in 0..1, sides at least 11.

    The mean of :func:`ssim_map`. The windows of pixels near the mask's edge reach 5 pixels across it.

    Args:
        mask: the map is averaged over it, see :func:`mse`.

    Raises:
        EditingError: as for :func:`mse` and :func:`ssim_map`.
    """
    return masked_mean(ssim_map(images, reference), mask)


def ssim_map(images: Tensor, reference: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Structural similarity of every pixel and channel, ``[B, C, H, W]``, of images in 0..1, sides at least 11.

    torchmetrics' map of it: Gaussian window of 11 pixels and sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, images mirrored at
    the border.

    Args:
        dtype: to compute in. fp32 is some twenty times faster on a CPU, and wrong by 0.001 in flat bright parts.

    Raises:
        EditingError: shapes differ, a value is not a number, sides are shorter than the window, or torchmetrics is not
            installed.
    """
    check_pair(images, reference)
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise EditingError(
            f"The images are {images.shape[-1]} x {images.shape[-2]} pixels; SSIM needs at least {SSIM_WINDOW}."
        )
    package = torchmetrics_part("functional.image", "SSIM")
    _, similarity = package.structural_similarity_index_measure(
        images.to(dtype),
        reference.to(images.device, dtype),
        gaussian_kernel=True,
        sigma=SSIM_SIGMA,
        kernel_size=SSIM_WINDOW,
        reduction="none",
        data_range=1.0,
        return_full_image=True,
    )
    found: Tensor = similarity
    return found


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


def success(labels: Sequence[Mapping[str, str]], wanted: Mapping[str, str]) -> Tensor:
    """Whether a classifier sees the whole edit, ``[B]`` of 0 or 1: every label of ``wanted``, attribute -> label."""
    return torch.tensor([float(all(seen[key] == wanted[key] for key in wanted)) for seen in labels])


def attributes_kept(labels: Sequence[Mapping[str, str]], expected: Sequence[Mapping[str, str]], *edited: str) -> Tensor:
    """Share of the *other* attributes that are as expected, ``[B]``.

    Args:
        labels: what a classifier sees in the edited images.
        expected: what it sees in the true edited images (or in the sources).
        edited: attributes left out, because they are to change.

    Raises:
        EditingError: lists of different lengths.
    """
    if len(labels) != len(expected):
        raise EditingError(
            f"There are {len(labels)} labelled images and {len(expected)} expectations; give one for each."
        )
    shares = []
    for seen, wanted in zip(labels, expected, strict=True):
        others = [key for key in wanted if key not in edited]
        shares.append(sum(seen[key] == wanted[key] for key in others) / len(others))
    return torch.tensor(shares)

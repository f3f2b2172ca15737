"""Learning an attribute from two sets of pictures without a classifier: the diffusion model itself tells them apart.

An embedding that means the attribute makes the noise on pictures that have it easier to take off, and on pictures that
have it not harder, than the empty prompt does ("Your Diffusion Model is Secretly a Zero-Shot Classifier", Li et al.
2023, reads classes off these errors; textual inversion, Gal et al. 2022, lowers the first of them alone). Ours, not the
CASO paper's. It cannot be fooled by patterns that nobody sees, as a small classifier can.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

SMALLEST = 1e-4  # of the scale of gains


def denoising_gain(predicted: Tensor, unconditional: Tensor, latents: Tensor) -> Tensor:
    """``1 - |D(x; v) - z|^2 / |D(x; empty) - z|^2`` of each picture, ``[B]``: 0 where the embedding explains nothing.

    Args:
        predicted, unconditional: clean latents as predicted with and without the embedding, ``[B, C, h, w]``.
        latents: the clean latents themselves.
    """
    errors = [(prediction - latents).square().flatten(1).mean(1) for prediction in (predicted, unconditional)]
    return 1 - errors[0] / errors[1]


def contrast_loss(having: Tensor, without: Tensor) -> Tensor:
    """Logistic loss of telling pictures apart by the embedding's gain, a scalar; ``log 2`` of an embedding that says
    nothing.

    Gains are measured in units of their own mean size in the batch, because a smile changes a hundredth of what a hat
    does: the loss is as steep for both.

    Args:
        having, without: :func:`denoising_gain` of pictures that have the attribute and of pictures that have it not,
            ``[B]`` each.
    """
    scale = 0.5 * (having.detach().abs().mean() + without.detach().abs().mean())
    scale = scale.clamp_min(SMALLEST)
    return 0.5 * (functional.softplus(-having / scale).mean() + functional.softplus(without / scale).mean())

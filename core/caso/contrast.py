"""Learning an attribute from pictures that have it: the diffusion model itself says what explains them.

An embedding that means the attribute makes the noise on pictures that have it easier to take off, and on pictures that
have it not harder, than the empty prompt does ("Your Diffusion Model is Secretly a Zero-Shot Classifier", Li et al.
2023, reads classes off these errors; textual inversion, Gal et al. 2022, lowers the first of them). Ours, not the CASO
paper's. It cannot be fooled by patterns that nobody sees, as a small classifier can.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor


def denoising_errors(predicted: Tensor, latents: Tensor) -> Tensor:
    """Mean square error of each predicted clean latent, ``[B]``; both are ``[B, C, h, w]``."""
    return (predicted - latents).square().flatten(1).mean(1)


def contrast_loss(having: Tensor, without: Tensor, scale: float) -> Tensor:
    """Logistic loss of telling pictures apart by what the embedding gains on them, a scalar; ``log 2`` of an embedding
    that says nothing.

    Args:
        having, without: error under the empty prompt minus error with the embedding (:func:`denoising_errors`) of
            pictures that have the attribute and of pictures that have it not, ``[B]`` each.
        scale: the gain at which a picture counts as told, in units of the latents' variance. Beyond it little more is
            learned: too small, and an embedding of a colour stops at the eyebrows.
    """
    return 0.5 * (functional.softplus(-having / scale).mean() + functional.softplus(without / scale).mean())

"""How far a noise map is from white Gaussian noise, and how far an inversion is from the true trajectory.

``R(d) = mean(noise * roll(noise, d))`` is the circular autocorrelation of one channel at shift d along one axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoiser import ModelIdentity, unit_scale
from ..errors import EditingError


def neighbour_correlation(noise: Tensor) -> Tensor:
    """Correlation of neighbouring pixels ``[B]``: ``R(1) / R(0)``, mean of both axes, all channels; 0 if white."""
    power = noise.square().sum((1, 2, 3)).clamp_min(torch.finfo(noise.dtype).tiny)
    beside = sum((noise * noise.roll(1, axis)).sum((1, 2, 3)) for axis in (-2, -1))
    return torch.as_tensor(beside) / 2 / power


def noise_gap(inverted: Tensor, generated: Tensor, sigmas: Tensor, identity: ModelIdentity) -> Tensor:
    """Gap between an inversion and the trajectory that really made the image, ``[T+1]`` (SPDInv's ``D_noi``).

    Mean square difference of the latents at every level, in unit-variance latent units; the paper plots it over the
    levels and reports its size at the noise end.

    Args:
        inverted: ``[T+1, B, C, H, W]`` sigma-space latents of the inversion, see :class:`~..inversion.Inversion`.
        generated: the same levels as they were while the image was generated from known noise.
        sigmas: ``[T+1]`` the levels.

    Raises:
        EditingError: shapes that do not fit together.
    """
    if inverted.shape != generated.shape or len(sigmas) != len(inverted):
        raise EditingError(
            f"Inverted latents {list(inverted.shape)}, generated latents {list(generated.shape)} and {len(sigmas)} "
            "sigmas do not fit together; compare trajectories on the same grid."
        )
    scale = unit_scale(identity, sigmas.double()).to(inverted.device)
    return (inverted.double() - generated.double()).square().flatten(1).mean(1) * scale**2


def noise_statistics(noise: Tensor) -> dict[str, float]:
    """Mean over images ``[B, C, H, W]`` of what white Gaussian noise fixes.

    ``mean`` (0), ``std`` (1), ``kurtosis`` (fourth standardised moment, 3), ``correlation`` of neighbouring pixels (0)
    and ``channel_correlation`` (root mean square correlation between channels, 0).
    """
    flat = noise.double().flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    channels = noise.double().flatten(2)
    channels = channels - channels.mean(2, keepdim=True)
    unit = channels / channels.norm(dim=2, keepdim=True).clamp_min(1e-12)
    between = (unit @ unit.mT)[:, ~torch.eye(noise.shape[1], dtype=torch.bool, device=noise.device)]
    return {
        "mean": float(flat.mean()),
        "std": float(variance.sqrt().mean()),
        "kurtosis": float((centred.pow(4).mean(1) / variance.square().clamp_min(1e-24)).mean()),
        "correlation": float(neighbour_correlation(noise.double()).mean()),
        "channel_correlation": float(between.square().mean(1).sqrt().mean()) if noise.shape[1] > 1 else 0.0,
    }

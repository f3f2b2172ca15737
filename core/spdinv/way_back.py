"""What an inversion learns of its way back: how an error left at one level has grown when the image is reached.

The way back from ``y`` at ``sigma_next`` is the Euler step ``E(y) = y - (sigma_next - sigma) * slope(y)``, whose
Jacobian is ``r + (1 - r) * J`` with ``r = sigma / sigma_next`` and ``J`` the Jacobian of the denoiser. For most
pictures ``J`` lies between 0 and 1 and errors do not grow. Where the picture is near the border between two modes of
the model ``J`` exceeds 1 along one direction, and every step of the way back lengthens whatever error lies along it.
The misses of a solver lie along that direction too, so two latents evaluated at one level tell it for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoiser import Precise
from .implicit_step import ImplicitStep

#: The Rayleigh quotient along a miss is below the largest eigenvalue: measured growth is taken to this power.
CAUTION = 2.0
SUSPECT = 0.75  # a gain that most pictures do not reach; those that do are measured at every step
MOST_GROWTH = 1e3  # beyond it, fp32 itself is the limit
#: Rounding errors of a network's output in units of its precision, as a root mean square of its range.
ROUNDINGS = 2.0
ABOVE_ROUNDING = 100.0  # times the mean square of rounding that a move must have to be told from it


@dataclass
class WayBack:
    """Per picture, what errors have become when the clean latent is reached.

    Attributes:
        clean: ``[B, C, H, W]`` the clean latent.
        gain: ``[B]`` Rayleigh quotient of the denoiser's Jacobian along the last measured miss.
        growth: ``[B]`` factor by which an error at the current level has grown at the clean latent, 1 or more.
        missed: ``[B]`` estimated mean square of the rebuilt clean latent's error.
    """

    clean: Tensor
    gain: Tensor = field(init=False)
    growth: Tensor = field(init=False)
    missed: Tensor = field(init=False)

    def __post_init__(self) -> None:
        batch = len(self.clean)
        self.gain = torch.zeros(batch, dtype=self.clean.dtype, device=self.clean.device)
        self.growth = torch.ones_like(self.gain)
        self.missed = torch.zeros_like(self.gain)

    def expansion(self, step: ImplicitStep) -> Tensor:
        """``[B]`` how much the Euler step back lengthens an error along the last measured miss."""
        ratio = step.sigma / step.sigma_next
        return ratio + (1 - ratio) * self.gain

    def contraction(self, step: ImplicitStep) -> Tensor:
        """``[B]`` by which one Picard move is expected to shrink a miss, before it was measured at this level.

        That is ``(1 - r) * |1 - J|``; where the last ``J`` was suspiciously large, nothing is promised, and so it is
        measured again.
        """
        share = torch.full_like(self.gain, 1 - step.sigma / step.sigma_next)
        return torch.where(self.gain > SUSPECT, 1.0, share)

    def watch(self, step: ImplicitStep, moved: Tensor, bent: Tensor, rows: Tensor) -> None:
        """Learn the gain of ``rows [b]`` from a move and the change of slope along it, both ``[b, C, H, W]``.

        A move that is lost in rounding teaches nothing.
        """
        length = moved.flatten(1).square().mean(1)
        along = 1 - step.sigma_next * (moved * bent).flatten(1).mean(1) / length.clamp_min(1e-30)
        self.gain[rows] = torch.where(length > ABOVE_ROUNDING * self.floor(step)[rows], along, self.gain[rows])

    def allowed(self, tolerance: float, step: ImplicitStep) -> Tensor:
        """``[B]`` mean-square miss, in sigma space, that may be left here for ``tolerance`` at the clean latent.

        Not below what the precision of the network can tell.
        """
        return torch.maximum(tolerance / self.growth**2, self.floor(step))

    def floor(self, step: ImplicitStep) -> Tensor:
        """``[B]`` mean-square miss, in sigma space, that rounding alone makes."""
        precision = step.denoiser.precision if isinstance(step.denoiser, Precise) else step.start.dtype
        share = 1 - step.sigma / step.sigma_next
        of_network = share * torch.finfo(precision).eps * self.clean.flatten(1).square().mean(1).sqrt()
        of_latent = torch.finfo(step.start.dtype).eps * step.start.flatten(1).square().mean(1).sqrt()
        return (ROUNDINGS * torch.maximum(of_network, of_latent)) ** 2

    def passed(self, step: ImplicitStep, left: Tensor) -> None:
        """Count a step that leaves the mean-square miss ``left [B]`` (sigma space), and climb to its level."""
        self.missed = self.missed + left * self.growth**2
        self.growth = (self.growth * self.expansion(step).clamp_min(1) ** CAUTION).clamp_max(MOST_GROWTH)

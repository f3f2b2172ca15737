"""Denoisers with a closed form, for tests: they implement the ``Denoiser`` protocol and count their evaluations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semantic_editing.core.denoiser import Evaluations, ModelIdentity, ddim_grid


def sd_sigmas() -> Tensor:
    """The 1000 levels of Stable Diffusion's scaled-linear schedule, ascending, fp64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    return ((1 - alphas) / alphas).sqrt()


class ClosedFormDenoiser:
    """Shared parts: counters, identity, SD's grid, and a log of how many rows each call had."""

    def __init__(self, prediction: str = "eps") -> None:
        self.evaluations = Evaluations()
        self.identity = ModelIdentity("toy", 4, prediction)  # type: ignore[arg-type]
        self.calls: list[int] = []

    def x0(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor, sigma: float | Tensor, cond: Any, *, control: Any = None) -> Tensor:
        self.calls.append(x.shape[0])
        levels = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return self.evaluations.track(self.x0(x, levels, cond))

    def batch(self, x: Tensor, sigma: float | Tensor, conds: Any, *, control: Any = None) -> list[Tensor]:
        return [self(x, sigma, cond, control=control) for cond in conds]

    def select(self, cond: Any, rows: Tensor) -> Any:
        return cond if cond is None or cond.shape[0] == 1 else cond[rows]

    def sigma_grid(self, steps: int) -> Tensor:
        return ddim_grid(sd_sigmas(), steps)


class GaussianDenoiser(ClosedFormDenoiser):
    """The exact denoiser of data N(0, std^2): ``x std^2 / (std^2 + sigma^2)``. ``cond [B or 1, 1, 1]`` scales std."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def x0(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        std = self.std if cond is None else self.std * cond.reshape(-1, 1, 1, 1)
        return x * std**2 / (std**2 + sigma**2)


class AffineMapDenoiser(ClosedFormDenoiser):
    """A denoiser built so that the step from ``sigma`` to ``sigma_next`` has the fixed-point map
    ``f(y) = fixed + eigenvalues * (y - fixed)``, whatever the start; ``eigenvalues`` is one number or one per row.
    """

    def __init__(self, start: Tensor, fixed: Tensor, eigenvalues: Tensor, sigma: float, sigma_next: float) -> None:
        super().__init__()
        self.start, self.fixed, self.eigenvalues = start, fixed, eigenvalues
        self.sigma, self.sigma_next = sigma, sigma_next

    def x0(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        rows = slice(None) if cond is None else cond.reshape(-1).long()
        fixed, start, eigenvalues = self.fixed[rows], self.start[rows], self.eigenvalues.expand_as(self.fixed)[rows]
        image = fixed + eigenvalues * (x - fixed)
        return x - sigma * (image - start) / (self.sigma_next - self.sigma)

"""One implicit Euler step of an inversion: its fixed-point map, its residual, its cost, and where to start.

A DDIM sampling step takes ``y`` at ``sigma_next`` to ``start`` at ``sigma`` with the prediction made *at y*. Inverting
it means finding the fixed point of ``f(y) = start + (sigma_next - sigma) * slope(y)`` with
``slope(y) = (y - x0_hat(y, sigma_next)) / sigma_next`` (SPDInv, https://arxiv.org/abs/2403.11105, Eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser, check_finite, unit_scale
from ..sampling import guidance_of


@dataclass
class ImplicitStep:
    """One implicit Euler step for a batch: its evaluations, their count, and the best latent visited per row.

    Attributes:
        start: ``[B, C, H, W]`` latent at ``sigma``, fp32.
        report: called after every network evaluation with the iteration and the current x0 predictions
            ``[B, C, H, W]``.
        name: how an error names this step.
        cfg: scale of classifier-free guidance under which the image is inverted; other than 1 costs two evaluations.
        uncond: negative conditioning for it.
        best: ``[B, C, H, W]`` the visited latent with the smallest residual.
        slope: ``[B, C, H, W]`` the network's ``dx/dsigma`` at ``best``.
        result: ``[B, C, H, W]`` where the inversion goes on from: ``best``, or one move further.
        residual: ``[B]`` mean square of ``f(best) - best`` in unit-variance latent units (SPDInv Eq. 4, as a mean).
        forward: ``[B]`` network evaluations spent; ``backward`` likewise.
    """

    denoiser: Denoiser
    cond: Any
    start: Tensor
    sigma: float
    sigma_next: float
    report: Callable[[int, Tensor], None]
    name: str = "this step"
    cfg: float = 1.0
    uncond: Any | None = None
    best: Tensor = field(init=False)
    slope: Tensor = field(init=False)
    result: Tensor = field(init=False)
    residual: Tensor = field(init=False)
    forward: Tensor = field(init=False)
    backward: Tensor = field(init=False)

    def __post_init__(self) -> None:
        batch = self.start.shape[0]
        self.best = self.start.clone()
        self.result = self.best
        self.slope = torch.zeros_like(self.start)
        self.residual = torch.full((batch,), float("inf"), dtype=self.start.dtype, device=self.start.device)
        self.forward = torch.zeros(batch, dtype=torch.long)
        self.backward = torch.zeros(batch, dtype=torch.long)
        self._denoised = self.start.clone()
        self._calls = 0

    @property
    def scale(self) -> float:
        """Factor from sigma space to unit-variance latents at ``sigma_next``."""
        return float(unit_scale(self.denoiser.identity, self.sigma_next))

    @property
    def rows(self) -> Tensor:
        """All batch rows, ``[B]``."""
        return torch.arange(self.start.shape[0], device=self.start.device)

    def unconverged(self, tolerance: float) -> Tensor:
        """Batch rows ``[b]`` whose best residual is still above ``tolerance``."""
        return (self.residual > tolerance).nonzero().flatten()

    def network(self, y: Tensor, rows: Tensor) -> Tensor:
        """``slope(y)`` for ``y [b, C, H, W]`` of batch rows ``rows``; its evaluations are counted and reported."""
        whole = len(rows) == len(self.start)
        cond, uncond = (
            part if whole or part is None else self.denoiser.select(part, rows) for part in (self.cond, self.uncond)
        )
        predict = guidance_of(self.denoiser)
        denoised = predict(y, self.sigma_next, cond, uncond, self.cfg).to(y.dtype)
        self.forward[rows.cpu()] += 1 if uncond is None or self.cfg == 1 else 2
        check_finite(denoised, f"The prediction at {self.name}")
        self._denoised[rows] = denoised.detach()
        self.report(self._calls, self._denoised)
        self._calls += 1
        return (y - denoised) / self.sigma_next

    def image(self, slope: Tensor, rows: Tensor) -> Tensor:
        """``f``: where the step from ``start`` along ``slope [b, C, H, W]`` arrives."""
        return self.start[rows] + (self.sigma_next - self.sigma) * slope

    def squared_miss(self, y: Tensor, slope: Tensor, rows: Tensor) -> Tensor:
        """Residual ``[b]`` of ``y``, given the slope there."""
        return ((self.image(slope, rows) - y) * self.scale).square().flatten(1).mean(1)

    def keep_best(self, y: Tensor, slope: Tensor, residual: Tensor, rows: Tensor) -> None:
        """Remember ``y [b, C, H, W]``, its slope and ``residual [b]`` for those of ``rows [b]`` where it is better."""
        better = residual < self.residual[rows]
        kept = rows[better]
        self.best[kept], self.slope[kept], self.residual[kept] = y[better], slope[better], residual[better]

    def accept(self, y: Tensor, *, measure: bool) -> None:
        """Take ``y [B, C, H, W]`` as the result; its residual is measured (one evaluation) or left as NaN."""
        self.best = self.result = y
        if measure:
            with torch.no_grad():
                slope = self.network(y, self.rows)
            self.residual = self.squared_miss(y, slope, self.rows)
        else:
            self.residual = torch.full_like(self.residual, float("nan"))


def ddim_guess(step: ImplicitStep) -> Tensor:
    """Plain DDIM inversion's explicit step (SPDInv Eq. 2): one evaluation, ``[B, C, H, W]`` at ``sigma_next``.

    As in the released code the unit-variance latent of the *lower* level is shown to the network at the *higher*
    level's timestep; in sigma space that is the start, rescaled.
    """
    lower = float(unit_scale(step.denoiser.identity, step.sigma))
    with torch.no_grad():
        slope = step.network(step.start * (lower / step.scale), step.rows)
    step.slope = slope
    return step.image(slope, step.rows)


def extrapolate(slopes: Sequence[tuple[float, Tensor]], sigma: float) -> Tensor:
    """Polynomial through the last slopes ``[(sigma, [B, C, H, W]), ...]``, continued to ``sigma``, in ``log sigma``."""
    nodes = [math.log(level) for level, _ in slopes]
    target = math.log(sigma)
    result = torch.zeros_like(slopes[0][1])
    for i, (_, slope) in enumerate(slopes):
        weight = 1.0
        for j, node in enumerate(nodes):
            if j != i:
                weight *= (target - node) / (nodes[i] - node)
        result = result + weight * slope
    return result

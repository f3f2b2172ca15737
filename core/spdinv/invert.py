"""The third seam: an inversion, the trajectory from a clean latent to noise, and how it is made and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Callback, Denoiser, Progress
from ..errors import EditingError
from ..inversion import Inversion, check_latent, inversion_grid
from .implicit_step import ImplicitStep, ddim_guess, extrapolate
from .solvers import OPTIMIZERS, SOLVERS, Optimizer, Solver, solve


def invert(
    denoiser: Denoiser,
    latent: Tensor,
    cond: Any,
    steps: int = 50,
    solver: Solver = "auto",
    tolerance: float = 5e-6,
    max_iterations: int = 25,
    callback: Callback | None = None,
    *,
    sigmas: Tensor | None = None,
    optimizer: Optimizer = "adamw",
    learning_rate: float = 1e-3,
    cond_tensors: Mapping[str, Tensor] | None = None,
    check_residual: bool = False,
) -> Inversion:
    """Invert a clean latent to noise so that plain DDIM sampling comes back to it (SPDInv, arXiv 2403.11105).

    Each step solves ``y = x + (sigma_next - sigma) * (y - x0_hat(y, sigma_next)) / sigma_next`` (SPDInv Eq. 3 in sigma
    space), until the mean-square residual (Eq. 4) is at most ``tolerance``.

    Args:
        latent: ``[B, C, H, W]`` VAE latent, already scaled.
        cond: conditioning of the image, used at cfg 1: ``[B or 1, L, D]``, or the backend's own object.
        solver: ``"auto"`` (extrapolated start, accelerated fixed point, descent only as a last resort),
            ``"fixed_point"`` (Picard, damped where the residual grows), ``"anderson"``, ``"gradient"`` (SPDInv
            Algorithm 1) or ``"ddim"`` (plain DDIM inversion, one explicit evaluation a step: the baseline).
        tolerance: residual to reach, mean square in unit-variance latent units (the paper's delta).
        max_iterations: most residual measurements a step (the paper's K); the explicit guess of ``"gradient"`` is extra.
        callback: told after every network evaluation; an exception it raises ends the run.
        sigmas: levels to use instead of the model's grid of ``steps`` steps, see :func:`inversion_grid`.
        optimizer: of ``"gradient"``: ``"adamw"`` as released, ``"gradient_descent"`` as printed.
        learning_rate: of ``"gradient"`` (the paper's eta).
        cond_tensors: what to store as :attr:`Inversion.cond`; ``{"embeds": cond}`` when ``cond`` is a tensor.
        check_residual: ``"ddim"`` does not need its residuals and reports NaN; True spends one more evaluation a step
            (counted) to measure them.

    Raises:
        EditingError: wrong latent shape, bad steps, grid, solver, tolerance or iterations, NaN from the model.
    """
    if solver not in SOLVERS:
        raise EditingError(f"There is no solver {solver!r}; use one of {', '.join(SOLVERS)}.")
    if optimizer not in OPTIMIZERS:
        raise EditingError(f"There is no optimizer {optimizer!r}; use one of {', '.join(OPTIMIZERS)}.")
    if max_iterations < 1 or not tolerance >= 0:
        raise EditingError(
            f"max_iterations is {max_iterations} and tolerance {tolerance}; use 1 or more and 0 or more."
        )
    x = check_latent(latent, denoiser.identity)
    grid = inversion_grid(denoiser, steps, sigmas)
    levels = [float(level) for level in grid]
    total = len(levels) - 1
    trajectory = [x]
    figures: list[tuple[Tensor, Tensor, Tensor]] = []
    slopes: list[tuple[float, Tensor]] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):

        def report(iteration: int, denoised: Tensor, index: int = index) -> None:
            if callback is not None:
                callback(Progress(index, total, iteration, max_iterations, denoised))

        step = ImplicitStep(denoiser, cond, x, sigma, sigma_next, report, f"step {index + 1}")
        if solver == "ddim":
            step.accept(ddim_guess(step), measure=check_residual)
        elif solver == "gradient":
            solve(step, ddim_guess(step), solver, tolerance, max_iterations, optimizer, learning_rate)
        elif solver == "auto":
            guess = step.image(extrapolate(slopes, sigma_next), step.rows) if slopes else x
            solve(step, guess, solver, tolerance, max_iterations, optimizer, learning_rate)
        else:
            guess = step.image(slopes[-1][1], step.rows) if slopes else x
            solve(step, guess, solver, tolerance, max_iterations)
        x = step.best
        slopes = [*slopes, (sigma_next, step.slope)][-2:]
        trajectory.append(x)
        figures.append((step.residual.float().cpu(), step.forward, step.backward))
    residuals, forward, backward = (torch.stack(column) for column in zip(*figures, strict=True))
    stored = cond_tensors if cond_tensors is not None else {"embeds": cond} if isinstance(cond, Tensor) else None
    return Inversion(
        latents=torch.stack(trajectory),
        sigmas=grid,
        residuals=residuals,
        forward_evaluations=forward,
        backward_evaluations=backward,
        identity=denoiser.identity,
        method="ddim" if solver == "ddim" else f"spdinv/{solver}",
        cond=stored,
    )

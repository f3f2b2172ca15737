"""SPDInv: the trajectory of a clean latent to noise, every step solved for its fixed point."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Callback, Denoiser, Progress, unit_scale
from ..errors import EditingError
from ..inversion import Inversion, check_latent, inversion_grid
from ..sampling import require_negative
from .implicit_step import ImplicitStep, ddim_guess, extrapolate
from .solvers import FOR_THE_IMAGE, Solver, SPDInvSettings, solve
from .way_back import WayBack

#: Sum of the steps' mean-square misses, in sigma space, beyond which an inversion under guidance is refused: a tenth of
#: the standard deviation of a latent.
UNSETTLED = 1e-2


def spdinv(
    denoiser: Denoiser,
    latent: Tensor,
    cond: Any,
    steps: int,
    settings: SPDInvSettings,
    *,
    sigmas: Tensor | None = None,
    cond_tensors: Mapping[str, Tensor] | None = None,
    cfg: float = 1.0,
    uncond: Any | None = None,
    callback: Callback | None = None,
) -> Inversion:
    """Invert a clean latent to noise so that plain DDIM sampling comes back to it (SPDInv, arXiv 2403.11105).

    Each step solves ``y = x + (sigma_next - sigma) * (y - x0_hat(y, sigma_next)) / sigma_next`` (SPDInv Eq. 3 in sigma
    space), until the mean-square residual (Eq. 4) is at most the tolerance.

    Args:
        latent: ``[B, C, H, W]`` VAE latent, already scaled.
        cond: conditioning of the image: ``[B or 1, L, D]``, or the backend's own object.
        steps: number of steps of the model's own grid.
        sigmas: levels to use instead of that grid, see :func:`~..inversion.inversion_grid`.
        cond_tensors: what to store as :attr:`~..inversion.Inversion.cond`; ``{"embeds": cond}`` when ``cond`` is a
            tensor.
        cfg: classifier-free guidance under which the noise must rebuild the image; other than 1 costs two evaluations
            where 1 costs one, and more evaluations the higher it is.
        uncond: negative conditioning, needed when ``cfg`` is not 1.
        callback: told after every network evaluation; an exception it raises ends the run.

    Raises:
        EditingError: wrong latent shape, bad steps or grid, NaN from the model, a ``cfg`` without ``uncond`` or one
            under which the steps do not settle.
    """
    require_negative(cfg, uncond)
    solver = settings.solver
    x = check_latent(latent, denoiser.identity)
    grid = inversion_grid(denoiser, steps, sigmas)
    levels = [float(level) for level in grid]
    total = len(levels) - 1
    trajectory = [x]
    figures: list[tuple[Tensor, Tensor, Tensor]] = []
    slopes: list[tuple[float, Tensor]] = []
    way = WayBack(x)
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):

        def report(iteration: int, denoised: Tensor, index: int = index) -> None:
            if callback is not None:
                callback(Progress(index, total, iteration, settings.max_iterations, denoised))

        step = ImplicitStep(denoiser, cond, x, sigma, sigma_next, report, f"step {index + 1}", cfg, uncond)
        if solver == "ddim":
            step.accept(ddim_guess(step), measure=settings.check_residual)
        elif solver == "gradient":
            solve(step, ddim_guess(step), settings)
        elif solver in FOR_THE_IMAGE:
            guess = step.image(extrapolate(slopes, sigma_next), step.rows) if slopes else x
            solve(step, guess, settings, way)
        else:
            guess = step.image(slopes[-1][1], step.rows) if slopes else x
            solve(step, guess, settings)
        x = step.result
        slopes = [*slopes, (sigma_next, step.slope)][-2:]
        trajectory.append(x)
        figures.append((step.residual.float().cpu(), step.forward, step.backward))
    if cfg != 1.0:
        _require_settled(figures, levels, denoiser, cfg)
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
        info=({"rebuild_error": way.missed.tolist()} if solver in FOR_THE_IMAGE else {})
        | ({} if cfg == 1.0 else {"cfg": cfg}),
    )


def _require_settled(
    figures: list[tuple[Tensor, Tensor, Tensor]], levels: list[float], denoiser: Denoiser, cfg: float
) -> None:
    """Raise :class:`EditingError` when guidance kept the steps from settling: nothing would rebuild the image."""
    missed = torch.zeros_like(figures[0][0])
    for (residual, _, _), level in zip(figures, levels[1:], strict=True):
        missed = missed + residual / float(unit_scale(denoiser.identity, level)) ** 2
    if bool((missed > UNSETTLED).any()):
        raise EditingError(
            f"Under cfg {cfg:g} the steps of this inversion do not settle, so its noise would not rebuild the image; "
            "use cfg 3 or less, more steps, or cfg 1, which is usual: the edit may have a higher cfg all the same."
        )


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
) -> Inversion:
    """:func:`spdinv` with the usual settings as plain arguments, see :class:`~.solvers.SPDInvSettings`."""
    settings = SPDInvSettings(solver, tolerance, max_iterations)
    return spdinv(denoiser, latent, cond, steps, settings, sigmas=sigmas, callback=callback)

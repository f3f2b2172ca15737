"""Inversion for DPM-Solver++(2M) (Lu et al., arXiv 2211.01095), so that a stock `dpmpp_2m` sampler rebuilds the image.

Its step from ``y`` at ``sigma_next`` to ``sigma`` is ``r y + (1 - r) (D(y) + c)`` with ``r = sigma / sigma_next`` and
``c = (D(y) - D(z)) / (2 h' / h)``, where ``z`` is the latent one level above, and ``h``, ``h'`` are the lengths of this
step and of the one above in ``log sigma``. Without ``c`` it is the Euler step that SPDInv inverts. So SPDInv's steps
are solved from a start moved by ``-(1 - r) c``, with ``c`` of the sweep before, and sweeps are repeated until ``c``
stands still.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Callback, Denoiser, Progress
from ..errors import EditingError
from ..inversion import Inversion, check_latent, inversion_grid
from ..sampling import DPMPP_2M, multistep_shares, require_negative
from .implicit_step import ImplicitStep, extrapolate
from .solvers import SPDInvSettings, solve
from .way_back import WayBack

MOST_SWEEPS = 8


def invert_dpmpp_2m(
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
    """Invert a clean latent to noise from which DPM-Solver++(2M) comes back to it; arguments as of
    :func:`~.invert.spdinv`. It costs some four to six times as much.

    Raises:
        EditingError: see :func:`~.invert.spdinv`; a solver that does not iterate, sweeps that do not settle.
    """
    require_negative(cfg, uncond)
    if settings.solver != "auto":
        raise EditingError("An inversion for dpmpp_2m is solved by solver auto alone; choose auto, or sampler euler.")
    clean = check_latent(latent, denoiser.identity)
    grid = inversion_grid(denoiser, steps, sigmas)
    levels = [float(level) for level in grid]
    total, shares = len(levels) - 1, multistep_shares(levels)
    corrections = [torch.zeros_like(clean) for _ in range(total)]
    known: list[Tensor] = []  # slopes of the sweep before
    forward = torch.zeros(total, len(clean), dtype=torch.long)
    for sweep in range(MOST_SWEEPS):
        x, way, trajectory = clean, WayBack(clean), [clean]
        predictions: list[Tensor] = []
        slopes: list[Tensor] = []
        residuals: list[Tensor] = []
        for index, (sigma, sigma_next) in enumerate(pairwise(levels)):

            def report(iteration: int, denoised: Tensor, done: int = sweep * total + index) -> None:
                if callback is not None:
                    callback(Progress(done, MOST_SWEEPS * total, iteration, settings.max_iterations, denoised))

            ratio = sigma / sigma_next
            start = x - (1 - ratio) * corrections[index]
            step = ImplicitStep(denoiser, cond, start, sigma, sigma_next, report, f"step {index + 1}", cfg, uncond)
            if known:
                slope = known[index]
            else:
                recent = list(zip(levels[1:], slopes, strict=False))[-2:]
                slope = extrapolate(recent, sigma_next) if recent else torch.zeros_like(clean)
            solve(step, step.image(slope, step.rows), settings, way)
            x = step.result
            # Where the last move went the slope is not measured; the one that leads there is nearer than the last one.
            slopes.append((x - start) / (sigma_next - sigma))
            predictions.append(x - sigma_next * slopes[-1])
            trajectory.append(x)
            residuals.append(step.residual.float().cpu())
            forward[index] += step.forward
        known, before = slopes, corrections
        corrections = [
            share * (here - above) for share, here, above in zip(shares, predictions, predictions[1:], strict=False)
        ] + [torch.zeros_like(clean)]
        moved = torch.zeros_like(way.missed)
        for (sigma, sigma_next), old, new in zip(pairwise(levels), before, corrections, strict=True):
            moved = moved + ((1 - sigma / sigma_next) * (new - old)).flatten(1).square().mean(1) * way.growth
        if bool((moved <= settings.tolerance / 10).all()):
            break
    if bool((moved > 1e-3).any()):
        raise EditingError("The sweeps of this inversion do not settle; use more steps, cfg 1, or sampler euler.")
    stored = cond_tensors if cond_tensors is not None else {"embeds": cond} if isinstance(cond, Tensor) else None
    info = {"rebuild_error": (way.missed + moved).tolist(), "sampler": DPMPP_2M}
    return Inversion(
        latents=torch.stack(trajectory),
        sigmas=grid,
        residuals=torch.stack(residuals),
        forward_evaluations=forward,
        backward_evaluations=torch.zeros_like(forward),
        identity=denoiser.identity,
        method=f"spdinv/{DPMPP_2M}",
        cond=stored,
        info=info | ({} if cfg == 1.0 else {"cfg": cfg}),
    )

"""DDIM inversion with the predicted noise kept white: pix2pix-zero's regularised inversion.

Parmar et al., https://arxiv.org/abs/2302.03027, section 3.1. Each step is one explicit DDIM inversion step whose
predicted noise is first moved, for a few iterations, down ``L_pair + lambda * L_KL`` (:mod:`.autocorrelation`). The
network is evaluated once a step and never differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..denoiser import Callback, Denoiser, Progress, check_finite, unit_scale
from ..errors import EditingError
from ..inversion import Inversion, check_latent, inversion_grid
from ..metrics.noise import neighbour_correlation
from .autocorrelation import (
    UNIT_VARIANCE_GAIN,
    Shifts,
    kl_loss,
    pair_loss,
    pyramid_levels,
    random_shifts,
    released_shifts,
)

Preset = Literal["consistent", "released"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
ShiftChoice = Literal["random", "all"]
SHIFTS: tuple[ShiftChoice, ...] = get_args(ShiftChoice)


@dataclass(frozen=True)
class AutocorrSettings:
    """How the predicted noise of every inversion step is made white.

    Attributes:
        weight_pair: weight of the pair loss, 0 or more; 0 with ``weight_kl`` 0 is plain DDIM inversion.
        weight_kl: weight of the KL term, 0 or more (the paper's lambda), see :func:`regularise`.
        iterations: of the regularisation, a step; 0 is plain DDIM inversion.
        shifts: ``"random"`` draws shifts from ``seed`` (the same for every image of a batch), ``"all"`` takes all of
            them.
        seed: of the random shifts.
        preset: ``"consistent"`` inverts the very grid that sampling walks down. ``"released"`` does as the published
            code: the first and the last timestep are left out, each update is taken one stride above the level the
            latent is at, so that sampling does not retrace it; no factor 2 in the pyramid, ineffective KL, random
            shifts.

    Raises:
        EditingError: a preset or shifts that do not exist, a negative weight or number.
    """

    weight_pair: float = 20.0
    weight_kl: float = 20.0
    iterations: int = 5
    shifts: ShiftChoice = "random"
    seed: int = 0
    preset: Preset = "consistent"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS or self.shifts not in SHIFTS:
            raise EditingError(
                f"Use a preset of {', '.join(PRESETS)} and shifts of {', '.join(SHIFTS)}, "
                f"not {self.preset!r} and {self.shifts!r}."
            )
        if min(self.weight_pair, self.weight_kl, self.iterations) < 0:
            raise EditingError("A regularisation weight or its iterations is negative; use 0 to switch it off.")


#: The paper's values, on the consistent grid.
DEFAULT_SETTINGS = AutocorrSettings()

#: Pair steps an iteration, each with a fifth of the weight (released code: ``num_ac_rolls``).
PAIR_STEPS = 5
#: Largest relative change of a noise map in one pair step. The loss is quartic in the noise, so its plain gradient step
#: overshoots on strongly correlated maps of small latents.
PAIR_TRUST = 0.1
#: Divides the KL weight: lambda 20 then makes a Newton step of the per-element KL at unit variance, see `regularise`.
KL_UNIT = 80.0
#: Largest growth of the noise in one KL step, where the variance is near 0 and the KL gradient unbounded.
KL_GROWTH = 2.0


def regularise(
    noise: Tensor,
    shifts: Shifts | None = None,
    *,
    weight_pair: float = 20.0,
    weight_kl: float = 20.0,
    iterations: int = 5,
) -> Tensor:
    """Move predicted noise ``[B, C, H, W]`` towards white Gaussian noise; every image on its own.

    An iteration makes five pair steps of ``weight_pair / 5`` down :func:`~.autocorrelation.pair_loss` and one KL step.

    The KL step differs from the released code, where the KL is a mean over all elements and its gradient, of order
    1/elements, moves nothing: with the pyramid's factor 2 restored the pair loss then visibly lowers the variance. Here
    the KL counts per element, as in the paper, and 20 is the weight whose step is Newton's at unit variance,
    ``noise -= (noise - mean) * (1 - 1/var) / 2 + mean / 2``: what the pair steps take from the variance comes back.

    Args:
        shifts: see :func:`~.autocorrelation.pair_loss`; None uses all shifts.
        weight_pair: 0 leaves correlations alone.
        weight_kl: 0 leaves mean and variance alone; 40 and more overshoots.
    """
    for _ in range(iterations):
        for _ in range(PAIR_STEPS if weight_pair else 0):
            move = pair_loss(noise, shifts)[1] * (weight_pair / PAIR_STEPS)
            ratio = _norm(move) / _norm(noise).clamp_min(1e-12)
            noise = noise - move / (ratio / PAIR_TRUST).clamp_min(1.0)
        if weight_kl:
            move = kl_loss(noise, epsilon=1e-7)[1] * (noise[0].numel() * weight_kl / KL_UNIT)
            ratio = _norm(move) / _norm(noise).clamp_min(1e-12)
            noise = noise - move / (ratio / (KL_GROWTH - 1)).clamp_min(1.0)
    return noise


def regularise_as_released(
    noise: Tensor, shifts: Shifts, *, weight_pair: float, weight_kl: float, iterations: int
) -> Tensor:
    """The released code's regularisation of predicted noise ``[B, C, H, W]``: no factor 2 in the pyramid, KL as a mean
    over all elements.

    Args: as in :func:`regularise`, in plain gradient steps.
    """
    for _ in range(iterations):
        for _ in range(PAIR_STEPS):
            noise = noise - weight_pair / PAIR_STEPS * pair_loss(noise, shifts, gain=UNIT_VARIANCE_GAIN / 2)[1]
        noise = noise - weight_kl * kl_loss(noise, epsilon=1e-7)[1]
    return noise


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def autocorr_invert(
    denoiser: Denoiser,
    latent: Tensor,
    cond: Any,
    steps: int = 50,
    settings: AutocorrSettings = DEFAULT_SETTINGS,
    *,
    sigmas: Tensor | None = None,
    cond_tensors: Mapping[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Inversion:
    """Invert a clean latent by DDIM with autocorrelation-regularised noise (pix2pix-zero, section 3.1, Eq. 3).

    Args:
        latent: ``[B, C, H, W]`` VAE latent, already scaled.
        cond: conditioning of the image, used at cfg 1.
        steps: number of steps of the model's own grid.
        sigmas: levels to use instead of that grid (``"consistent"`` only), see :func:`~..inversion.inversion_grid`.
        cond_tensors: what to store as :attr:`~..inversion.Inversion.cond`; ``{"embeds": cond}`` when ``cond`` is a
            tensor.
        callback: told after every network evaluation; an exception it raises ends the run.

    Returns:
        An inversion on the sampling grid. Residuals are NaN: an explicit step does not measure them. ``info`` has,
        for each step before and after regularisation (mean over the images), the correlation of neighbouring pixels and
        the variance of the predicted noise.

    Raises:
        EditingError: wrong latent shape, bad steps or grid, NaN from the model.
    """
    x = check_latent(latent, denoiser.identity)
    generator = torch.Generator().manual_seed(settings.seed)
    weights: dict[str, Any] = {
        "weight_pair": settings.weight_pair,
        "weight_kl": settings.weight_kl,
        "iterations": settings.iterations,
    }
    shifts = settings.shifts
    released = settings.preset == "released"
    if released:
        if sigmas is not None or shifts != "random":
            raise EditingError(
                "The released preset has its own grid and random shifts; do not give sigmas or all shifts with it."
            )
        grid, updates = _released_updates(denoiser, steps)
    else:
        grid = inversion_grid(denoiser, steps, sigmas)
        updates = [(low, high, high) for low, high in pairwise(grid.tolist())]

    latents, info = [x], _empty_info(x)
    unit = x * float(unit_scale(denoiser.identity, float(grid[0])))  # unit-variance latent, the papers' z
    forward = torch.zeros(len(grid) - 1, len(x), dtype=torch.long)
    idle = len(grid) - 1 - len(updates)
    latents += [unit / float(unit_scale(denoiser.identity, level)) for level in grid[1 : 1 + idle].tolist()]
    for index, (low, high, seen) in enumerate(updates, start=idle):
        # Section 3.1: predict the noise, make it white, take the DDIM step with it.
        noise, drift, denoised = _predict(denoiser, unit, seen, cond, index)
        forward[index] = 1
        if released:
            white = regularise_as_released(noise, released_shifts(generator), **weights)
        else:
            white = regularise(noise, random_shifts(generator) if shifts == "random" else None, **weights)
        check_finite(white, f"The regularised noise at step {index + 1} (lower weight_pair or weight_kl)")
        _note(info, noise, white)
        state = unit / float(unit_scale(denoiser.identity, low)) + (high - low) * (white + drift)
        unit = state * float(unit_scale(denoiser.identity, high))
        latents.append(unit / float(unit_scale(denoiser.identity, float(grid[index + 1]))))
        if callback is not None:
            callback(Progress(index, len(grid) - 1, 0, 1, denoised))
    stored = cond_tensors if cond_tensors is not None else {"embeds": cond} if isinstance(cond, Tensor) else None
    return Inversion(
        latents=torch.stack(latents),
        sigmas=grid,
        residuals=torch.full(forward.shape, float("nan")),
        forward_evaluations=forward,
        backward_evaluations=torch.zeros_like(forward),
        identity=denoiser.identity,
        method=f"autocorr/{settings.preset}",
        cond=stored,
        info={key: value if isinstance(value, int) else [round(v, 6) for v in value] for key, value in info.items()},
    )


def _predict(
    denoiser: Denoiser, unit: Tensor, sigma: float, cond: Any, index: int
) -> tuple[Tensor, Tensor | float, Tensor]:
    """Predicted noise, the rest of ``dx/dsigma`` and x0, all ``[B, C, H, W]``, of a unit-variance latent."""
    x = unit / float(unit_scale(denoiser.identity, sigma))
    with torch.no_grad():
        denoised = denoiser(x, sigma, cond).to(x.dtype)
    check_finite(denoised, f"The prediction at step {index + 1}")
    slope = (x - denoised) / sigma
    if denoiser.identity.prediction == "flow":  # x = (1 - sigma) x0 + sigma noise, so dx/dsigma = noise - x0
        return slope + denoised, -denoised, denoised
    return slope, 0.0, denoised


def _released_updates(denoiser: Denoiser, steps: int) -> tuple[Tensor, list[tuple[float, float, float]]]:
    """The sampling grid, and the released inversion's updates: (level taken at, level reached, level seen).

    Its DDIM inverse scheduler drops the first and the last timestep and moves timestep t from table entry t - 1 to
    t - 1 + stride, while the sampler later goes from entry t to t - stride.
    """
    if denoiser.identity.prediction == "flow":
        raise EditingError(
            "The released preset is for Stable Diffusion's noise table; use the consistent preset with a flow model."
        )
    if not 3 <= steps <= 500:
        raise EditingError(f"steps is {steps}; the released preset needs 3 to 500.")
    table = denoiser.sigma_grid(999).tolist()  # 999 steps visit the whole table of 1000 levels
    if len(table) != 1000:
        raise EditingError(
            "The released preset needs a noise table of 1000 levels; use the consistent preset with this model."
        )
    stride = 1000 // steps
    seen = [1 + stride * k for k in range(1, steps - 1)]
    return denoiser.sigma_grid(steps), [(table[t - 1], table[t - 1 + stride], table[t]) for t in seen]


def _empty_info(latent: Tensor) -> dict[str, Any]:
    info: dict[str, Any] = {"pyramid_levels": pyramid_levels(*latent.shape[-2:])}
    return info | {f"{figure}_{when}": [] for figure in ("correlation", "variance") for when in ("before", "after")}


def _note(info: dict[str, Any], before: Tensor, after: Tensor) -> None:
    """Append the mean over images of correlation and variance, before and after regularisation."""
    for when, noise in (("before", before), ("after", after)):
        info[f"correlation_{when}"].append(float(neighbour_correlation(noise).mean()))
        info[f"variance_{when}"].append(float(noise.flatten(1).var(1).mean()))

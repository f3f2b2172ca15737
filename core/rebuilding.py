"""How well an inversion rebuilds its image: the estimate that comes with it, a check that rebuilds, and the sentence.

The latent's decibels are ``10 log10(range^2 / mean square error)`` with the range of that latent itself, as a
picture's are with the range of a picture; through Stable Diffusion's kind of autoencoder the two agree within a few dB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .denoiser import Callback, Denoiser, unit_scale
from .errors import EditingError
from .inversion import Inversion
from .sampling import TrajectoryEdit, reconstruct

UNSEEN, FAINT, PLAIN = 45.0, 35.0, 25.0  # dB from which on a difference is not seen, hardly seen, seen side by side
FLOOR = 1e-14  # mean square below which fp32 has no figures
#: Share of the model's highest noise level that an inversion must reach for its end to be noise.
REACHES_NOISE = 0.7


def latent_decibels(error: Tensor, clean: Tensor) -> Tensor:
    """PSNR ``[B]`` of a latent ``clean [B, C, H, W]`` with mean square error ``error [B]``, against its own range."""
    flat = clean.flatten(1).double()
    span = flat.amax(1) - flat.amin(1)
    return 10 * (span.square() / error.double().to(span.device).clamp_min(FLOOR)).log10()


def estimated_decibels(inversion: Inversion) -> Tensor | None:
    """PSNR ``[B]`` of the rebuilt latent as the inversion itself can tell, or None when its steps were not measured.

    What each step leaves is added up, with the growth that ``auto`` measured where it did.
    """
    known = inversion.info.get("rebuild_error")
    if known is not None:
        error = torch.tensor(known)
    elif inversion.residuals.isfinite().all():
        scale = unit_scale(inversion.identity, inversion.sigmas[1:]).view(-1, 1)
        error = (inversion.residuals / scale**2).sum(0)
    else:
        return None
    return latent_decibels(error, inversion.latents[0])


def left_over(step: TrajectoryEdit) -> list[str]:
    """What an edit took off of what its inversion left over, in a line; none where nothing was known to be left."""
    if step.taken_off is None:
        return []
    lowest = float(latent_decibels(step.taken_off, step.inversion.latents[0]).min())
    return [
        "what the inversion left over is taken off: the source's path lands on the picture itself, in place of at "
        f"about {min(lowest, 99.0):.0f} dB"
    ]


def settled(inversion: Inversion) -> bool:
    """Whether an inversion is known to rebuild its picture without a difference that can be seen."""
    decibels = estimated_decibels(inversion)
    return decibels is not None and bool((decibels >= UNSEEN).all())


def plain_sentence(decibels: Tensor, about: bool) -> str:
    """What ``decibels [B]`` mean to a person; ``about`` says that they are an estimate."""
    lowest = float(decibels.min())
    verdict = (
        "you will not see a difference"
        if lowest >= UNSEEN
        else "a difference is hard to see"
        if lowest >= FAINT
        else "side by side you will see a difference"
        if lowest >= PLAIN
        else "it will look different"
    )
    if len(decibels) > 1:
        where = f" (lowest of {len(decibels)} images, number {int(decibels.argmin()) + 1})"
    else:
        where = ""
    return f"Rebuilds at {'about ' if about else ''}{min(lowest, 99.0):.0f} dB{where}: {verdict}."


@dataclass(frozen=True, eq=False)
class RebuildCheck:
    """An image rebuilt from its noise alone by Euler steps.

    Attributes:
        rebuilt: ``[B, C, H, W]`` clean latent.
        latent_decibels: ``[B]`` against the latent that was inverted.
        evaluations: network evaluations per image that the check cost.
    """

    rebuilt: Tensor
    latent_decibels: Tensor
    evaluations: float


def check_rebuild(
    denoiser: Denoiser,
    inversion: Inversion,
    cond: Any,
    cfg: float = 1.0,
    uncond: Any | None = None,
    callback: Callback | None = None,
) -> RebuildCheck:
    """Rebuild an inversion from its noise with Euler steps, as a stock sampler does, and compare: T u (2 T with cfg).

    Raises:
        EditingError: see :func:`~.sampling.reconstruct`.
    """
    before = denoiser.evaluations.forward
    rebuilt = reconstruct(denoiser, inversion, cond, cfg, uncond, callback)
    error = (rebuilt - inversion.latents[0].to(rebuilt)).square().flatten(1).mean(1)
    spent = (denoiser.evaluations.forward - before) / len(rebuilt)
    return RebuildCheck(rebuilt, latent_decibels(error, inversion.latents[0]), spent)


def short_of_noise(inversion: Inversion, highest: float) -> str:
    """A sentence when the last level is far below the model's ``highest``, so that its latent is no noise yet; else "".

    Few steps of the model's own (leading) levels end there: 3 steps of Stable Diffusion at 2.9 of 14.6.
    """
    top = float(inversion.sigmas[-1])
    if inversion.identity.prediction == "flow" or top >= REACHES_NOISE * highest:
        return ""
    return (
        f"The levels end at sigma {top:.3g} and this model's noise begins at {highest:.3g}: the noise latent still "
        "shows the image. To rebuild or edit along it that is fine; to use it as noise take 20 steps or more, or wire "
        "sigmas that go higher."
    )


@dataclass
class SourcePath(TrajectoryEdit):
    """The way back along the stored trajectory itself: every step lands where the inversion came from, exactly.

    A step's own prediction differs from the one that lands there by what the solver left over; adding that difference
    back is direct inversion (Ju et al., PnP Inversion, arXiv 2310.01506).

    Nothing is evaluated: where the step must land is known.
    """

    denoiser: Denoiser
    inversion: Inversion
    mask: Tensor | None = None

    def on_source(self, level: int) -> bool:
        """Everywhere."""
        return True

    def _edited(self, x: Tensor, level: int) -> Tensor:
        raise EditingError("The source's path has no edit.")

"""What nodes that edit along an inversion share: prompts, trajectory on the device, and the check of samplers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import euler_step
from ...core.errors import EditingError
from ...core.inversion import Inversion
from ...core.sampling import TrajectoryEdit
from ..host.conditioning import conditioning_from_tensors
from ..host.session import Session


def source_prompt(inversion: Inversion, source: Any) -> Any:
    """The wired source CONDITIONING, or the one the INVERSION carries.

    Raises:
        EditingError: neither is there.
    """
    if source is not None:
        return source
    if inversion.cond is None:
        raise EditingError("This inversion carries no prompt of its own; wire the prompt it was made with into source.")
    return conditioning_from_tensors(dict(inversion.cond))


def edit_conditionings(inversion: Inversion, target: Any, source: Any, negative: Any) -> dict[str, Any]:
    """CONDITIONING by name for a run: "positive" and "negative" are the names for which the host has rules.

    Args:
        source: None takes the prompt that the INVERSION carries.
        negative: None leaves it out.
    """
    conds = {"positive": target, "source": source_prompt(inversion, source)}
    return conds if negative is None else conds | {"negative": negative}


def on_device(inversion: Inversion, session: Session) -> Inversion:
    """The trajectory where the loaded model computes."""
    return replace(inversion, latents=inversion.latents.to(session.latent.device))


class EulerOnly:
    """An edit as ``step(x, sigma)`` for a host's sampler; refuses samplers that do not take its Euler steps."""

    def __init__(self, step: TrajectoryEdit):
        self.step = step
        self.expected: Tensor | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The denoised latent at ``sigma``.

        Raises:
            EditingError: a level off the grid, another start than the inversion's, a sampler that adds noise or is not
                first-order.
        """
        inversion = self.step.inversion
        level = inversion.level_of(sigma)
        expected = inversion.latents[level] if self.expected is None else self.expected
        if level == 0 or not torch.allclose(x, expected.to(x), rtol=1e-3, atol=1e-3 * (1 + sigma)):
            raise EditingError(
                "The sampler left the path of this inversion; wire the inversion's noise latent, noise and sigmas, "
                "no latent noise mask, and a deterministic first-order sampler such as euler."
            )
        denoised = self.step.denoised(x, level)
        self.expected = euler_step(x, denoised, sigma, float(inversion.sigmas[level - 1]))
        return denoised

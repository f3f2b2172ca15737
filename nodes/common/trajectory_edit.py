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
from ..host.latents import latent_from_model
from ..host.session import Session
from .recording import own_negative


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


def edit_conditionings(model: Any, inversion: Inversion, target: Any, source: Any, negative: Any) -> dict[str, Any]:
    """CONDITIONING by name for a run: "positive" and "negative" are the names for which the host has rules.

    Args:
        source: None takes the prompt that the INVERSION carries.
        negative: None takes the one that an INVERSION made at another cfg than 1 carries, and leaves it out for others.
    """
    negative = own_negative(inversion, model) if negative is None else negative
    conds = {"positive": target, "source": source_prompt(inversion, source)}
    return conds if negative is None else conds | {"negative": negative}


def source_latent(model: Any, inversion: Inversion) -> dict[str, Any]:
    """The LATENT that was inverted, with the noise mask that an inpainting model read."""
    latent = latent_from_model(model, inversion.latents[0])
    return latent if inversion.noise_mask is None else {**latent, "noise_mask": inversion.noise_mask[:, None]}


def refuse_noise_mask(inversion: Inversion, node: str) -> None:
    """Raise :class:`EditingError` for an INVERSION whose mask a host's own sampler could not hand to the model."""
    if inversion.noise_mask is not None:
        raise EditingError(
            f"This inversion was made with a noise mask, which a guider cannot hand to the model; use {node} instead."
        )


def edit_mask(mask: Tensor | None) -> Tensor | None:
    """A wired MASK.

    Raises:
        EditingError: it is empty, so that nothing would be edited.
    """
    if mask is not None and not bool((mask > 0).any()):
        raise EditingError(
            "The mask is empty (all black, as Load Image gives it for a picture without transparency): nothing would "
            "be edited. Paint where to edit, or take the mask's wire away to edit everywhere."
        )
    return mask


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

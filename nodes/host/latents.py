"""LATENT, NOISE and SIGMAS of the host in and out of model space.

A LATENT's ``samples`` are what the VAE made; a model wants them scaled (``process_in``). Sigma-space latents of eps and v
models leave as ``process_out(x)``: SamplerCustomAdvanced with DisableNoise and euler then starts exactly at ``x``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def latent_to_model(model: Any, latent: dict[str, Any]) -> Tensor:
    """The clean latent ``[B, C, H, W]`` of a LATENT in ``model``'s own units, fp32.

    Raises:
        EditingError: video or nested latents, channels the model does not have.
    """
    raise NotImplementedError


def latent_from_model(model: Any, x: Tensor) -> dict[str, Any]:
    """A LATENT of ``x [B, C, H, W]`` given in model units, on the host's intermediate device."""
    raise NotImplementedError


def noise_object(x: Tensor, sigma: float = 1.0) -> Any:
    """A NOISE that makes SamplerCustomAdvanced start a flow model at ``x [B, C, H, W]`` (model units, level ``sigma``).

    A flow model's start is ``sigma * noise + (1 - sigma) * latent``, so a LATENT cannot carry the inverted noise.
    """
    raise NotImplementedError


def sigmas_out(sigmas: Tensor) -> Tensor:
    """An ascending grid ``[T+1]`` as the host's SIGMAS: descending, fp32, CPU."""
    raise NotImplementedError

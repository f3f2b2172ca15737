"""LATENT, NOISE and SIGMAS of the host in and out of model space.

A LATENT's ``samples`` are what the VAE made; a model wants them scaled (``process_in``). Sigma-space latents of eps and
v models leave as ``process_out(x)``: SamplerCustomAdvanced with DisableNoise and euler then starts exactly at ``x``.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as model_management
import torch
from torch import Tensor

from ...core.errors import EditingError


def require_image_latent(model: Any, samples: Any) -> None:
    """Raise :class:`EditingError` unless ``samples`` is ``[B, C, H, W]`` with the channels of ``model``."""
    if getattr(samples, "is_nested", False) or samples.ndim != 4:
        raise EditingError("This latent is a video or a stack of several latents; wire the latent of still images.")
    channels = model.model.latent_format.latent_channels
    if samples.shape[1] != channels:
        raise EditingError(
            f"The latent has {samples.shape[1]} channels and the model works on {channels}; encode the image with the "
            "model's own VAE."
        )


def latent_to_model(model: Any, latent: dict[str, Any]) -> Tensor:
    """The clean latent ``[B, C, H, W]`` of a LATENT in ``model``'s own units, fp32.

    Raises:
        EditingError: video or nested latents, channels the model does not have.
    """
    samples = latent["samples"]
    require_image_latent(model, samples)
    return model.model.process_latent_in(samples.float())


def latent_from_model(model: Any, x: Tensor) -> dict[str, Any]:
    """A LATENT of ``x [B, C, H, W]`` given in model units, on the host's intermediate device."""
    samples = model.model.process_latent_out(x.detach().float())
    return {"samples": samples.to(model_management.intermediate_device())}


class InvertedNoise:
    """A NOISE that makes SamplerCustomAdvanced start at a given latent instead of at random; see
    :func:`noise_object`.
    """

    seed = 0

    def __init__(self, start: Tensor, sigma: float, model: Any | None):
        self.start, self.sigma, self.model = start, sigma, model

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """The noise ``n`` for which ``sigma * n + (1 - sigma) * latent`` is the wanted start, ``[B, C, H, W]``.

        Raises:
            EditingError: the latent wired into the sampler has another shape.
        """
        samples = input_latent["samples"]
        if samples.shape != self.start.shape:
            raise EditingError(
                f"The sampler's latent is {list(samples.shape)} and the inverted noise {list(self.start.shape)}; "
                "wire the latent that was inverted."
            )
        start, scale = self.start, 1.0
        if self.model is not None:
            scale = getattr(self.model.get_model_object("model_sampling"), "noise_scale", 1.0)
            if self.sigma < 1.0 and torch.count_nonzero(samples) > 0:  # the host leaves an all-zero latent unscaled
                clean = self.model.model.process_latent_in(samples.float())
                start = start - (1.0 - self.sigma) * clean.to(start.device)
        return (start / (self.sigma * scale)).to(samples.device)


def noise_object(x: Tensor, sigma: float = 1.0, model: Any | None = None) -> InvertedNoise:
    """A NOISE that makes SamplerCustomAdvanced start a flow model at ``x [B, C, H, W]`` (model units, level ``sigma``).

    A flow model's start is ``sigma * noise + (1 - sigma) * latent``, so a LATENT cannot carry the inverted noise. Give
    the ``model`` unless ``sigma`` is 1, so that the latent's share can be taken off.
    """
    return InvertedNoise(x.detach().float().to(model_management.intermediate_device()), sigma, model)


def sigmas_out(sigmas: Tensor) -> Tensor:
    """An ascending grid ``[T+1]`` as the host's SIGMAS: descending, fp32, CPU."""
    return sigmas.detach().flip(0).float().cpu()

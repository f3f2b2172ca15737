"""LATENT, NOISE and SIGMAS of the host in and out of model space.

A LATENT's ``samples`` are what the VAE made; a model wants them scaled (``process_in``). Sigma-space latents of eps and
v models leave as ``process_out(x)``: SamplerCustomAdvanced with DisableNoise and euler then starts exactly at ``x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as model_management
import comfy.sample
import torch
from torch import Tensor
from torch.nn import functional

from ...core.errors import EditingError
from .identity import prediction_of, unet_family

#: Attribute of a host's model that says for how many latent pixels a side it was trained; only the demo model has it,
#: whose edits do not come out in pictures of half as many pixels a side again.
TRAINED_SIDE = "semantic_editing_trained_side"
#: What such a model takes: the sides of a square of the largest area, and the longer side, in trained sides.
LARGEST, LONGEST = 1.25, 2
#: Smallest side in latent pixels that a network halves a few times and doubles again.
SMALLEST = 2


def training_size(model: Any) -> int:
    """Side in pixels of the pictures that a MODEL was trained with: 1024 of SDXL, 768 of SD 2.x with v-prediction, what
    the demo model says of itself, else 512."""
    side = getattr(model.model, TRAINED_SIDE, None)
    if side is not None:
        return int(side) * 8
    family = unet_family(model.model.model_config.unet_config)
    if family == "sd2" and prediction_of(model.get_model_object("model_sampling")) == "v":
        return 768
    return 1024 if family == "sdxl" else 512


def fitted_latent(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """A LATENT with ``samples [B, C, H, W]`` of still images as ``model`` takes them; the rest of it is kept.

    An empty latent gets the channels of the model, as the stock samplers do it, and a time axis of length 1 is left
    out; ``noise_mask`` becomes ``[B or 1, H, W]`` or stays out where there is none.

    Raises:
        EditingError: video or several latents, no picture at all, one too small, channels the model does not have.
    """
    samples = latent["samples"]
    if (
        getattr(samples, "is_nested", False)
        or samples.ndim not in (4, 5)
        or (samples.ndim == 5 and samples.shape[2] != 1)
    ):
        raise EditingError("This latent is a video or a stack of several latents; wire the latent of still images.")
    if not len(samples):
        raise EditingError("The latent is a batch of no pictures; wire at least one.")
    image = image_latent(samples)
    channels = model.model.latent_format.latent_channels
    if image.shape[1] != channels and not torch.count_nonzero(image):
        image = image_latent(comfy.sample.fix_empty_latent_channels(model, samples))
    if image.shape[1] != channels:
        raise EditingError(
            f"The latent has {image.shape[1]} channels and the model works on {channels}; encode the image with the "
            "model's own VAE."
        )
    if min(image.shape[-2:]) < SMALLEST:
        raise EditingError(
            f"The latent is only {image.shape[-1]} x {image.shape[-2]} latent pixels; use a picture of at least "
            f"{SMALLEST * 8} x {SMALLEST * 8} pixels."
        )
    side = getattr(model.model, TRAINED_SIDE, None)
    height, width = image.shape[-2:]
    if side is not None and (height * width > (LARGEST * side) ** 2 or max(height, width) > LONGEST * side):
        raise EditingError(
            f"The demo model draws {side * 8} x {side * 8} pixels and this picture has {width * 8} x {height * 8}; "
            f"scale it to {side * 8} x {side * 8} (Upscale Image, or working_size where a node has it), take a picture "
            "of Load Demo Image, or load a checkpoint of your own."
        )
    return {**latent, "samples": image}


def image_latent(samples: Tensor) -> Tensor:
    """``[B, C, H, W]`` of a latent of still images, with or without a time axis of length 1."""
    return samples.squeeze(2) if samples.ndim == 5 else samples


def host_latent(model: Any, samples: Tensor) -> Tensor:
    """``[B, C, H, W]`` as ``model`` keeps it: image models made from video networks have a time axis of length 1."""
    return samples.unsqueeze(2) if model.model.latent_format.latent_dimensions == 3 and samples.ndim == 4 else samples


def latent_to_model(model: Any, latent: dict[str, Any]) -> Tensor:
    """The clean latent ``[B, C, H, W]`` of a LATENT in ``model``'s own units, fp32.

    Raises:
        EditingError: see :func:`fitted_latent`.
    """
    samples = host_latent(model, fitted_latent(model, latent)["samples"].float())
    return image_latent(model.model.process_latent_in(samples))


def latent_from_model(model: Any, x: Tensor) -> dict[str, Any]:
    """A LATENT of ``x [B, C, H, W]`` given in model units, on the host's intermediate device."""
    samples = model.model.process_latent_out(host_latent(model, x.detach().float()))
    return {"samples": samples.to(model_management.intermediate_device())}


def seeded_noise(latent: dict[str, Any], shape: Sequence[int], seed: int) -> Tensor:
    """Noise ``[B, C, H, W]`` of a seed as the stock samplers draw it, by the LATENT's ``batch_index`` where it has one:
    a row taken out of a batch gets the noise it had there.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = batch_index(latent)
    if not rows:
        return torch.randn(tuple(shape), generator=generator)
    drawn = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(rows) + 1)]
    return torch.cat([drawn[row] for row in rows])


def batch_index(latent: dict[str, Any]) -> tuple[int, ...]:
    """Rows of a larger batch that a LATENT holds; () where it does not say."""
    return tuple(int(row) for row in latent.get("batch_index") or ())


def noise_mask_of(latent: dict[str, Any]) -> Tensor | None:
    """The ``noise_mask`` of a LATENT at its own size, ``[B or 1, h, w]``, or None; 1 is where to paint."""
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    plain = mask.detach().float().reshape(-1, 1, *mask.shape[-2:])
    return functional.interpolate(plain, latent["samples"].shape[-2:], mode="bilinear")[:, 0].clamp(0, 1).cpu()


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
        given = input_latent["samples"]
        samples = image_latent(given) if not getattr(given, "is_nested", False) and given.ndim in (4, 5) else given
        if samples.shape != self.start.shape:
            raise EditingError(
                f"The sampler's latent is {list(given.shape)} and the inverted noise {list(self.start.shape)}; "
                "wire the latent that was inverted."
            )
        start, scale = self.start, 1.0
        if self.model is not None:
            scale = getattr(self.model.get_model_object("model_sampling"), "noise_scale", 1.0)
            if self.sigma < 1.0 and torch.count_nonzero(samples) > 0:  # the host leaves an all-zero latent unscaled
                clean = latent_to_model(self.model, input_latent)
                start = start - (1.0 - self.sigma) * clean.to(start.device)
        return (start / (self.sigma * scale)).to(given.device).reshape(given.shape)


def noise_object(x: Tensor, sigma: float = 1.0, model: Any | None = None) -> InvertedNoise:
    """A NOISE that makes SamplerCustomAdvanced start a flow model at ``x [B, C, H, W]`` (model units, level ``sigma``).

    A flow model's start is ``sigma * noise + (1 - sigma) * latent``, so a LATENT cannot carry the inverted noise. Give
    the ``model`` unless ``sigma`` is 1, so that the latent's share can be taken off.
    """
    return InvertedNoise(x.detach().float().to(model_management.intermediate_device()), sigma, model)


def sigmas_out(sigmas: Tensor) -> Tensor:
    """An ascending grid ``[T+1]`` as the host's SIGMAS: descending, fp32, CPU."""
    return sigmas.detach().flip(0).float().cpu()

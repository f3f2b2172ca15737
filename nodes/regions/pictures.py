"""What a region search needs to know of a MODEL and its VAE between renders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.content_hash import fingerprint
from ...core.denoiser import Evaluations, ModelIdentity, weight_signature
from ...core.errors import EditingError
from ..host.denoiser import identity
from ..host.latents import latent_from_model, latent_to_model
from ..host.progress import stop_if_cancelled
from ..host.vae import decode_images, encode_images


@dataclass
class _Unloaded:
    """The MODEL as far as an editor asks about it between renders."""

    identity: ModelIdentity
    evaluations: Evaluations = field(default_factory=Evaluations)


class Pictures:
    """Pictures ``[1, 3, h, w]`` in 0..1 to the latents of a MODEL and back, by stock VAE Encode and Decode.

    Raises:
        EditingError: a model of video or of a kind that the pack cannot sample, or a VAE that is not its own.
    """

    def __init__(self, model: Any, vae: Any):
        self.model, self.vae = model, vae
        self.denoiser: Any = _Unloaded(identity(model))
        latent, channels = model.model.latent_format, vae.latent_channels
        if latent.latent_dimensions != 2 or vae.latent_dim != 2:
            raise EditingError("This model or VAE is one of video or sound; wire an image model with its own VAE.")
        if latent.latent_channels != channels:
            raise EditingError(
                f"The VAE makes latents of {channels} channels and the model works on {latent.latent_channels}; wire the model's own VAE."
            )

    def encode(self, image: Tensor) -> Tensor:
        """A scaled latent ``[1, C, h, w]``."""
        return latent_to_model(self.model, self.raw(image))

    def raw(self, image: Tensor) -> dict[str, Any]:
        """A LATENT as the VAE makes it."""
        return encode_images(self.vae, image.movedim(1, -1))

    def decode(self, latent: Tensor) -> Tensor:
        """The picture of a scaled latent."""
        stop_if_cancelled()
        return decode_images(self.vae, latent_from_model(self.model, latent))[..., :3].movedim(-1, 1)

    @property
    def multiple(self) -> int:
        """Pixels per latent pixel."""
        return int(self.vae.spacial_compression_encode())

    @property
    def label(self) -> str:
        """Patches of the MODEL and a few weights of the VAE; a new one every time when a patch is code that cannot be read."""
        model, weights = self.model, [p for p in self.vae.first_stage_model.parameters() if p.ndim > 1]
        patched = str(model.patches_uuid) if model.patches else ""
        return fingerprint(
            patched,
            model.model_options,
            model.object_patches,
            model.wrappers,
            weight_signature(weights[0], weights[-1]),
        )


def reads_mask(model: Any) -> bool:
    """Whether ``model`` is a true inpainting model, told mask and masked picture by its conditioning; False for a plain one.

    Raises:
        EditingError: it reads another picture besides the latent (to edit, to upscale, of depth or edges).
    """
    base, channels = model.model, model.model.latent_format.latent_channels

    def told(picture: float, mask: float) -> Tensor | None:
        latent = torch.full((1, channels, 8, 8), picture)
        found: Tensor | None = base.concat_cond(
            noise=latent, device=latent.device, concat_latent_image=latent, concat_mask=torch.full((1, 1, 8, 8), mask)
        )
        return found

    known, masked, pictured = told(0, 0), told(0, 1), told(1, 0)
    if known is None or masked is None or pictured is None:
        taken = base.model_config.unet_config.get("in_channels", channels)
        if not hasattr(base.diffusion_model, "input_blocks") or taken == channels:
            return False
    elif not torch.equal(known, masked) and not torch.equal(known, pictured):
        return True
    raise EditingError(
        "This model reads another picture besides the latent (instruct-pix2pix, depth or upscale models do) and cannot inpaint; "
        "wire a plain or an inpainting model."
    )

"""The host's VAE: decoding with gradients (``core.token_vectors.ImageDecoder``), pictures to latents and back."""

from __future__ import annotations

from typing import Any

import comfy.model_management as model_management
import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.gradient_checkpointing import blocks_of, checkpointed
from .gradients import static_patcher
from .session import Session


class SessionDecoder:
    """``core.token_vectors.ImageDecoder`` while a MODEL is loaded: latents to images, differentiable, not clipped.

    Make one before the run, load :attr:`patcher` together with the MODEL (``additional_models`` of ``run``), and
    :meth:`bind` it inside.

    Args:
        vae: a VAE of still images, of any dtype; a tiny one (TAESD) is one too.
        gradient_checkpointing: the decoder's blocks keep no activations but run again in the backward pass.
    """

    def __init__(self, vae: Any, gradient_checkpointing: bool = False):
        self.vae, self.gradient_checkpointing = vae, gradient_checkpointing
        self.patcher = static_patcher(vae.patcher)
        self.session: Session | None = None

    def bind(self, session: Session) -> SessionDecoder:
        """From now on decode latents of ``session``'s model; returns itself."""
        self.session = session
        return self

    def __call__(self, latent: Tensor) -> Tensor:
        """See :class:`~...core.token_vectors.ImageDecoder`; fp32."""
        assert self.session is not None, "bind a session first"
        scaled = self.session.denoiser.base.process_latent_out(latent)
        with checkpointed(decoder_blocks(self.patcher.model) if self.gradient_checkpointing else []):
            decoded: Tensor = self.patcher.model.decode(scaled.to(self.patcher.load_device, self.vae.vae_dtype))
        return decoded.float() / 2 + 0.5  # the host's own step from -1..1, without the clipping


def decoder_blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """Blocks of what a VAE's network decodes with, by the names that the host's and TAESD's decoders have; none
    elsewhere.
    """
    return [block for name, part in network.named_modules() if name.endswith("decoder") for block in blocks_of(part)]


def encode_images(vae: Any, images: Tensor, batch_size: int = 4) -> dict[str, Any]:
    """The LATENT of ``images [N, H, W, C]`` in 0..1, as stock VAE Encode makes it, ``batch_size`` images at a time.

    Raises:
        EditingError: no images, or values that are not numbers.
    """
    if not len(images):
        raise EditingError("There are no pictures; wire at least one.")
    if not bool(torch.isfinite(images).all()):
        raise EditingError(
            "The pictures hold values that are not numbers (NaN or infinity); check the node that makes them."
        )
    parts = []
    for part in images[..., :3].split(batch_size):
        model_management.throw_exception_if_processing_interrupted()
        parts.append(vae.encode(part))
    return {"samples": torch.cat(parts)}


def decode_images(vae: Any, latent: dict[str, Any]) -> Tensor:
    """The images ``[N, H, W, C]`` in 0..1 of a LATENT, as stock VAE Decode makes them."""
    decoded: Tensor = vae.decode(latent["samples"])
    return decoded.flatten(0, 1) if decoded.ndim == 5 else decoded

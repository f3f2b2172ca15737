"""Stable Diffusion checkpoints through diffusers, from local files only: what the command line edits with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EditingError
from .checkpoint_shapes import Prediction
from .denoiser import DiffusersDenoiser, TextCond
from .single_file import load_single_file

SINGLE_FILES = (".safetensors", ".ckpt")


class Checkpoint:
    """A text-to-image model of the Stable Diffusion family: SD 1.x, SD 2.x or SDXL.

    Args:
        pipeline: diffusers' ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        device: where to compute.
        dtype: of the U-Net and the text encoders; the VAE stays in fp32 (SDXL's overflows in fp16).
    """

    def __init__(self, pipeline: Any, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        self.pipeline = pipeline
        self.device = torch.device(device)
        self.is_xl = getattr(pipeline, "text_encoder_2", None) is not None
        encoders = [pipeline.text_encoder] + ([pipeline.text_encoder_2] if self.is_xl else [])
        for network in (pipeline.unet, *encoders):
            network.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        pipeline.vae.to(device=self.device, dtype=torch.float32).eval().requires_grad_(False)
        self.patch = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        widths = [encoder.config.hidden_size for encoder in encoders]
        #: Name of the text encoder as edit directions carry it; the ComfyUI side names encoders alike.
        self.encoder_name = (
            " + ".join(f"{name} {width}" for name, width in zip(("clip_l", "clip_g"), widths, strict=False))
            if self.is_xl
            else f"{'clip_h' if widths[0] == 1024 else 'clip_l'} {widths[0]}"
        )

    @property
    def native_size(self) -> int:
        """Side in pixels of the square images it was trained on."""
        return int(self.pipeline.unet.config.sample_size * self.patch)

    def denoiser(self) -> DiffusersDenoiser:
        """A fresh denoiser over the U-Net."""
        return DiffusersDenoiser(self.pipeline.unet, self.pipeline.scheduler)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Texts -> ``(embeds [B, 77, D], pooled [B, P] for SDXL, else None)`` in fp32."""
        encoded = self.pipeline.encode_prompt(
            prompt=list(texts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return encoded[0].float(), encoded[2].float() if self.is_xl else None

    def cond(self, embeds: Tensor, pooled: Tensor | None) -> TextCond:
        """The denoiser's conditioning from what :meth:`encode_text` returns, ``embeds [B, L, D]`` and
        ``pooled [B, P]``.
        """
        return TextCond(embeds, pooled)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in 0..1 -> scaled latent mean ``[B, 4, H/8, W/8]``."""
        latent: Tensor = self.pipeline.vae.encode(images.to(self.device) * 2 - 1).latent_dist.mode()
        return latent * self.pipeline.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent ``[B, 4, h, w]`` -> images ``[B, 3, 8h, 8w]`` in 0..1."""
        images: Tensor = self.pipeline.vae.decode(latent.float() / self.pipeline.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1)


def load_checkpoint(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: Prediction | None = None,
) -> Checkpoint:
    """Load a diffusers folder or a single-file checkpoint. Nothing is downloaded.

    Args:
        prediction: what the network of a single file predicts, where :func:`~.single_file.describe` is mistaken.

    Raises:
        EditingError: missing or damaged, or another family of models.
    """
    source = Path(path)
    if not source.exists():
        raise EditingError(f"{source.name} was not found; give a diffusers folder or a .safetensors checkpoint.")
    try:
        import diffusers
    except ImportError as error:
        raise EditingError("Editing needs diffusers and transformers; install the pack with its demo extra.") from error
    if source.is_dir():
        return Checkpoint(_from_folder(source, diffusers), device, dtype)
    if source.suffix.lower() not in SINGLE_FILES:
        raise EditingError(f"{source.name} is no checkpoint; give a diffusers folder or a .safetensors file.")
    return Checkpoint(load_single_file(source, prediction), device, dtype)


def _from_folder(folder: Path, diffusers: Any) -> Any:
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise EditingError(
            f"{folder.name} is no diffusers model (no readable model_index.json); choose the folder that has one."
        ) from error
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise EditingError(f"{folder.name} is a {kind}; use a Stable Diffusion 1.x, 2.x or SDXL text-to-image model.")
    extra = {"safety_checker": None, "requires_safety_checker": False} if kind == "StableDiffusionPipeline" else {}
    try:
        return getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, **extra)
    except Exception as error:  # diffusers raises many types for a missing or damaged part
        raise EditingError(f"{folder.name} is incomplete or damaged; download the model again.") from error

"""Stable Diffusion checkpoints through diffusers, from local files only: what the command line edits with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EditingError
from ..models.model_folder import (
    load_clip_tokenizer,
    load_diffusers,
    load_scheduler,
    load_text_encoder,
    read_index,
    refusing,
)
from ..reading.libraries import library
from ..token_vectors import warn_of_cut
from .checkpoint_shapes import Prediction
from .denoiser import DiffusersDenoiser, TextCond
from .single_file import load_single_file

SINGLE_FILES = (".safetensors", ".ckpt")
#: Kinds of diffusers folders, and the parts that each must have.
PIPELINES = {
    "StableDiffusionPipeline": {
        "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
    },
    "StableDiffusionXLPipeline": {
        "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
}  # fmt: skip


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
        """Texts -> ``(embeds [B, 77, D], pooled [B, P] for SDXL, else None)`` in fp32; warns of texts that it cuts."""
        texts = list(texts)
        warn_of_cut(texts, map(len, self.token_ids(texts)), self.pipeline.tokenizer.model_max_length)
        encoded = self.pipeline.encode_prompt(
            prompt=texts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return encoded[0].float(), encoded[2].float() if self.is_xl else None

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text from the start to the end token, without padding; cut where :meth:`encode_text` cuts."""
        tokenizer = self.pipeline.tokenizer
        ids: list[list[int]] = tokenizer(
            list(texts), truncation=True, max_length=tokenizer.model_max_length, padding=False
        ).input_ids
        return ids

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
    if source.is_dir():
        return Checkpoint(_from_folder(source), device, dtype)
    if source.suffix.lower() not in SINGLE_FILES:
        raise EditingError(f"{source.name} is no checkpoint; give a diffusers folder or a .safetensors file.")
    return Checkpoint(load_single_file(source, prediction), device, dtype)


def _from_folder(folder: Path) -> Any:
    """The pipeline in a diffusers folder, put together from its parts; of ``model_index.json`` only names are taken."""
    name, index = folder.name, read_index(folder)
    kind = index["_class_name"]
    if kind not in PIPELINES:
        raise EditingError(f"{name} is a {kind}; use a Stable Diffusion 1.x, 2.x or SDXL text-to-image model.")
    said = {part: entry[1] for part, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    for part, class_name in PIPELINES[kind].items():
        if said.get(part) != class_name:
            raise EditingError(f"{name} has an unknown {part} ({str(said.get(part))[:80]}); use one with {class_name}.")
    pipeline = getattr(library("diffusers", "Editing", kind), kind)
    texts = {
        part: load_text_encoder(folder / part, class_name, name)
        for part, class_name in PIPELINES[kind].items()
        if part.startswith("text_encoder")
    }
    tokenizers = {part.replace("text_encoder", "tokenizer"): "" for part in texts}
    parts = {
        "unet": load_diffusers(folder / "unet", "UNet2DConditionModel", name),
        "vae": load_diffusers(folder / "vae", "AutoencoderKL", name),
        "scheduler": load_scheduler(folder / "scheduler", str(said.get("scheduler")), name),
        **texts,
        **{part: load_clip_tokenizer(folder / part, name) for part in tokenizers},
    }
    with refusing(f"{name} is incomplete or damaged; download the model again."):
        if kind == "StableDiffusionPipeline":
            return pipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        zeros = index.get("force_zeros_for_empty_prompt", True)
        return pipeline(**parts, force_zeros_for_empty_prompt=zeros is not False)

"""The demo model: a small latent diffusion model of cartoon portraits whose true edited pictures are known.

Stable Diffusion's layout (eps prediction, scaled-linear noise, CLIP text of 77 tokens, 8x smaller latents) at 128
pixels, with its CLIP and two attribute classifiers. diffusers and transformers are imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..classifiers.convnet import AttributeClassifier, load_classifier
from ..errors import EditingError
from ..files import load_json
from ..models.model_folder import (
    load_clip_tokenizer,
    load_diffusers,
    load_scheduler,
    load_transformers,
    read_config,
    refuse_code,
)
from ..models.model_settings import transformers_settings
from ..reading.libraries import library
from ..token_vectors import warn_of_cut
from .data import FOLDER, TOKENIZER, DemoData, DemoPair, damaged

if TYPE_CHECKING:
    from ..diffusers.denoiser import DiffusersDenoiser

CLIP_ROWS = 49408  # tokens of CLIP's byte-pair vocabulary
END_OF_TEXT = 49407  # ends a text and pads it, as in Stable Diffusion 1
TEXT_LENGTH = 77
UNSEEN_SEED = 0  # fixes the vectors of words the model never saw
PATCH = 8  # image pixels per latent pixel

__all__ = ["DemoData", "DemoModel", "DemoPair", "expand_token_table", "load_demo_model"]


def expand_token_table(small: Tensor, vocab: Sequence[int]) -> Tensor:
    """The token table for CLIP's whole vocabulary from the rows of a small one.

    Args:
        small: ``[V, D]``, row i belongs to CLIP token ``vocab[i]``.
        vocab: V token ids below 49408.

    Returns:
        ``[49408, D]`` in fp32; tokens outside ``vocab`` get fixed random directions of the known rows' mean norm.

    Raises:
        EditingError: lengths differ or an id is out of range.
    """
    if len(vocab) != len(small) or not all(0 <= index < CLIP_ROWS for index in vocab):
        raise damaged("vocab.json")
    rows = small.detach().float().cpu()
    generator = torch.Generator().manual_seed(UNSEEN_SEED)
    table = (
        functional.normalize(torch.randn(CLIP_ROWS, rows.shape[1], generator=generator), dim=1)
        * rows.norm(dim=1).mean()
    )
    table[torch.tensor(list(vocab))] = rows
    return table


class DemoModel(DemoData):
    """The demo model's networks and pictures. Make one with :func:`load_demo_model`.

    Attributes:
        unet, scheduler, vae: diffusers' ``UNet2DConditionModel``, ``DDIMScheduler``, ``AutoencoderKL``, fp32, frozen.
        clip, tokenizer: transformers' ``CLIPModel`` (token table expanded to CLIP's vocabulary) and ``CLIPTokenizer``.
        images, captions, attributes, pairs, edits: see :class:`~.data.DemoData`.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        super().__init__(folder)
        self.device = torch.device(device)
        parts = _load_parts(folder)
        self.unet, self.vae, self.clip = (network.to(self.device) for network in parts[:3])
        self.scheduler, self.tokenizer = parts[3:]

    def denoiser(self) -> DiffusersDenoiser:
        """A fresh denoiser (its evaluation count at 0) over the shared network."""
        from ..diffusers.denoiser import DiffusersDenoiser

        return DiffusersDenoiser(self.unet, self.scheduler)

    def tokenize(self, texts: Iterable[str]) -> Tensor:
        """Token ids ``[B, 77]``: start, text, and end of text repeated to the end; longer texts are cut."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=TEXT_LENGTH).input_ids
        return torch.tensor(ids, device=self.clip.device).reshape(-1, TEXT_LENGTH)

    def token_ids(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text from the start to the end token, without padding."""
        return [ids[: ids.index(END_OF_TEXT) + 1] for ids in self.tokenize(texts).tolist()]

    def encode_text(self, texts: Iterable[str]) -> Tensor:
        """Texts -> last hidden states after the final LayerNorm, ``[B, 77, D]``, as Stable Diffusion 1 uses them.

        Attention is causal and padding is attended. "" is the unconditional text. It warns of texts that it cuts.
        """
        texts = list(texts)
        ids = self.tokenize(texts)
        warn_of_cut(texts, (ids != END_OF_TEXT).sum(1).add(1).tolist(), TEXT_LENGTH)
        states: Tensor = self.clip.text_model(input_ids=ids).last_hidden_state
        return states

    def encode_image(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in 0..1 -> scaled latent mean ``[B, 4, H/8, W/8]``.

        Raises:
            EditingError: not that shape, or sides that 8 does not divide.
        """
        _check_images(images, multiple=PATCH)
        half = functional.avg_pool2d(images.to(self.device) * 2 - 1, 2)
        latent: Tensor = self.vae.encode(functional.pixel_unshuffle(half, 2)).latent_dist.mode()
        return latent * self.vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent ``[B, 4, h, w]`` -> images ``[B, 3, 8h, 8w]`` in 0..1.

        Raises:
            EditingError: not that shape.
        """
        return self.decode_unclipped(latent).clamp(0, 1)

    def decode_unclipped(self, latent: Tensor) -> Tensor:
        """:meth:`decode` without the final clipping, which would cut gradients.

        Values lie a little outside 0..1 where colours are pure.

        A decoder of 12 channels paints half the resolution (doubled bicubically), one of 48 channels the whole.

        Raises:
            EditingError: not that shape.
        """
        channels = self.vae.config.latent_channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise EditingError(
                f"The latent has shape {list(latent.shape)}; the demo model needs [batch, {channels}, height, width]."
            )
        folded = self.vae.decode(latent.to(self.device) / self.vae.config.scaling_factor).sample
        images = functional.pixel_shuffle(folded, round((folded.shape[1] // 3) ** 0.5))
        if images.shape[-1] != PATCH * latent.shape[-1]:
            images = functional.interpolate(images, scale_factor=2, mode="bicubic")
        return images / 2 + 0.5

    def text_features(self, texts: Iterable[str]) -> Tensor:
        """Unit CLIP features of texts, ``[B, P]``, from the state at the first end-of-text token."""
        ids = self.tokenize(texts)
        states = self.clip.text_model(input_ids=ids).last_hidden_state
        ends = (ids == END_OF_TEXT).int().argmax(1)
        pooled = states[torch.arange(len(ids), device=states.device), ends]
        return functional.normalize(self.clip.text_projection(pooled), dim=1)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit CLIP features ``[B, P]`` of ``images [B, 3, H, W]`` in 0..1.

        Their cosine with :meth:`text_features` is the CLIP similarity.

        Raises:
            EditingError: not that shape.
        """
        _check_images(images)
        side = self.clip.config.vision_config.image_size
        pixels = functional.interpolate(images.to(self.device) * 2 - 1, size=(side, side), mode="area")
        pooled = self.clip.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self.clip.visual_projection(pooled), dim=1)

    @cached_property
    def classifier(self) -> AttributeClassifier:
        """The shipped attribute classifier."""
        return load_classifier(self.folder / "classifier.safetensors").to(self.device)

    @cached_property
    def judge(self) -> AttributeClassifier:
        """A second classifier of other seed and shape, for judging what the first one helped to make."""
        return load_classifier(self.folder / "classifier_judge.safetensors").to(self.device)

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        """``images [B, 3, H, W]`` in 0..1 -> attribute -> logits ``[B, labels]``; label names: ``classifier.classes``.

        Raises:
            EditingError: not that shape, or the classifier file is missing.
        """
        _check_images(images)
        logits: dict[str, Tensor] = self.classifier(images.to(self.device))
        return logits


def load_demo_model(folder: str | Path | None = None, device: str | torch.device = "cpu") -> DemoModel:
    """Load the demo model from ``folder`` (the pack's own ``assets/demo`` by default).

    Raises:
        EditingError: a file is missing or damaged, or diffusers or transformers are not installed.
    """
    return DemoModel(FOLDER if folder is None else Path(folder), device)


def _load_parts(folder: Path) -> tuple[Any, ...]:
    library("diffusers", "The demo model", "AutoencoderKL", "DDIMScheduler", "UNet2DConditionModel")
    library("transformers", "The demo model", "CLIPModel", "CLIPTokenizer")
    try:
        refuse_code(folder)
        unet = load_diffusers(folder / "unet", "UNet2DConditionModel", "unet")
        scheduler = load_scheduler(folder / "scheduler", "DDIMScheduler", "scheduler")
        vae = load_diffusers(folder / "vae", "AutoencoderKL", "vae")
        clip = load_transformers(
            folder / "clip", "CLIPModel", transformers_settings(read_config(folder / "clip", "clip"), "clip"), "clip"
        )
        tokenizer = load_clip_tokenizer(TOKENIZER, "clip_tokenizer")
        vocab = load_json(folder / "vocab.json", "words")
    except EditingError as error:
        raise EditingError(
            f"The demo model in {folder.name} is incomplete or damaged; install the pack again with its assets."
        ) from error
    embeddings: Any = clip.text_model.embeddings
    embeddings.token_embedding = torch.nn.Embedding.from_pretrained(
        expand_token_table(embeddings.token_embedding.weight, vocab)
    )
    networks: list[Any] = [network.float().eval().requires_grad_(False) for network in (unet, vae, clip)]
    return *networks, scheduler, tokenizer


def _check_images(images: Tensor, multiple: int = 1) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or any(side % multiple for side in images.shape[-2:]):
        wanted = f", both sides multiples of {multiple}" if multiple > 1 else ""
        raise EditingError(
            f"The images have shape {list(images.shape)}; "
            f"the demo model needs [batch, 3, height, width] in 0..1{wanted}."
        )

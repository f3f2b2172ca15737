"""The bundled demo model as stock MODEL, CLIP and VAE, and the demo's entries in the loaders of techniques."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.nn.functional as functional
from torch import Tensor, nn

from ...core.demo.builders import demo_scorer, demo_vision_features
from ...core.demo.data import FOLDER, DemoData, embedding_files
from ...core.demo.model import expand_token_table
from ...core.demo.model import load_demo_model as load_demo_networks
from ...core.errors import EditingError
from ...core.files import load_tensors
from ..common.bundled import bundle
from ..host.latents import TRAINED_SIDE
from ..host.weights import autoencoder, sd1_text_encoder, unet_patcher

#: Least-squares map from the demo VAE's scaled latent to RGB in -1..1 (R^2 0.90 on 120 validation pictures), for
#: previews.
PREVIEW_FACTORS = [
    [-0.5833, 0.0142, 0.0596],
    [0.0892, 0.5340, -0.2819],
    [0.2441, 0.0587, 0.2430],
    [0.1202, -0.2188, -0.3105],
]
PREVIEW_BIAS = [0.1891, 0.0654, 0.2498]
#: Model folder -> the demo's file for it.
STYLE_FILES = {
    "stylegan2": "generator",
    "style_encoders": "encoder",
    "delta_mappers": "mapper",
    "style_diffusion": "diffusion",
}
#: Distilled edits by what they do -> their files.
DISTILLED = {"glasses": "glasses", "red hair": "red_hair"}
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


def offer_to_loaders() -> None:
    """Enter the demo's classifiers, embeddings, CLIP, image tower and style networks into the lists of the loaders."""
    classifiers = {"demo": "classifier", "demo (second, for judging)": "classifier_judge"}
    bundle("attribute_classifiers", {name: FOLDER / f"{file}.safetensors" for name, file in classifiers.items()})
    bundle("embeddings", {f"demo: {name}": path for name, path in embedding_files().items()})
    bundle("vision_features", {"demo model": lambda: demo_vision_features(load_demo_networks())})
    bundle("clip_scorer", {"demo model": lambda: demo_scorer(load_demo_networks())})
    for kind, file in STYLE_FILES.items():
        bundle(kind, {"demo": FOLDER / "style" / f"{file}.safetensors"})
    bundle(
        "distilled_edits",
        {f"demo: {name}": FOLDER / "distilled" / f"{file}.safetensors" for name, file in DISTILLED.items()},
    )
    bundle("captioned_pictures", {"demo pictures": captioned_pictures})


def captioned_pictures() -> tuple[list[Tensor], list[str]]:
    """All the demo's pictures ``[1, 3, H, W]`` in 0..1, with their captions."""
    data = DemoData()
    pictures, captions = list(data.images), list(data.captions)
    for pair in data.pairs:
        pictures += [pair.source, pair.target]
        captions += [pair.source_caption, pair.target_caption]
    return [picture[None] for picture in pictures], captions


def load_demo_model(folder: Path = FOLDER) -> tuple[Any, Any, Any]:
    """``(MODEL, CLIP, VAE)`` from ``assets/demo``; every stock node works on them.

    Everything computes in fp32: the networks are small, and their results then agree with diffusers to 1e-4.

    Args:
        folder: holds ``unet/``, ``clip/`` and ``vae/`` in diffusers' and transformers' layout, and ``vocab.json``.

    Raises:
        EditingError: the demo assets are missing or damaged.
    """
    if not folder.is_dir():
        raise EditingError(
            f"The demo model is missing ({folder.name} is not in the pack's assets); install the pack again."
        )
    vae, unet, clip = (_config(folder / part) for part in ("vae", "unet", "clip"))
    scale = float(vae["scaling_factor"])
    patcher = unet_patcher(unet, _weights(folder / "unet"), scale, PREVIEW_FACTORS, PREVIEW_BIAS)
    setattr(patcher.model, TRAINED_SIDE, int(unet["sample_size"]))
    return (
        patcher,
        sd1_text_encoder(clip["text_config"], _text_weights(folder)),
        autoencoder(vae, _weights(folder / "vae"), PixelShuffled),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise EditingError(
            f"The demo model's {folder.name}/config.json cannot be read; install the pack again."
        ) from error


def _weights(folder: Path) -> dict[str, Tensor]:
    (file,) = sorted(folder.glob("*.safetensors"))[:1] or [folder / "model.safetensors"]
    tensors, _ = load_tensors(file)
    return {key: value.float() for key, value in tensors.items()}


def _text_weights(folder: Path) -> dict[str, Tensor]:
    weights = {key: value for key, value in _weights(folder / "clip").items() if key.startswith("text_")}
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return weights | {TOKEN_TABLE: expand_token_table(weights[TOKEN_TABLE], vocab)}


class PixelShuffled(nn.Module):
    """The demo's autoencoder seen as an ordinary VAE of images at eight times the latent's size.

    Its encoder sees half the resolution with 2x2 pixels folded into channels: ``[B, 3, 8h, 8w]`` is averaged to ``4h``,
    unshuffled to ``[B, 12, 2h, 2w]`` and encoded to ``[B, 4, h, w]``. A decoder of 12 channels goes the same way back
    and ends with a bicubic doubling; one of 48 channels paints all pixels.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner: Any = inner

    def encode(self, pixels: Tensor) -> Tensor:
        """``pixels [B, 3, 8h, 8w]`` in -1..1 -> latent mean ``[B, 4, h, w]``."""
        latent: Tensor = self.inner.encode(functional.pixel_unshuffle(functional.avg_pool2d(pixels, 2), 2))
        return latent

    def decode(self, latent: Tensor, **options: Any) -> Tensor:
        """``latent [B, 4, h, w]`` -> pixels ``[B, 3, 8h, 8w]``."""
        folded = self.inner.decode(latent, **options)
        pixels = functional.pixel_shuffle(folded, round((folded.shape[1] // 3) ** 0.5))
        if pixels.shape[-1] == 8 * latent.shape[-1]:
            return pixels
        return functional.interpolate(pixels, scale_factor=2, mode="bicubic")

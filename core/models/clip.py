"""CLIP as the pack uses it: features of images and texts, and how alike the parts of an image are.

Read from local files only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..content_hash import content_hash
from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_tensors, tensor_shapes
from ..reading.libraries import library
from .file_settings import clip_settings, is_transformers_file
from .model_folder import CLIP_TOKENIZER, load_clip_tokenizer, load_transformers, offline, read_config
from .model_settings import CONFIG, transformers_settings
from .transformers_files import PREPROCESSORS, input_of, preprocessor

Triple = tuple[float, float, float]
#: Mean and standard deviation of images in 0..1 that OpenAI's CLIP was trained with; OpenCLIP keeps them.
CLIP_NORMALISATION: tuple[Triple, Triple] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: The largest that CLIP's training allows, where nearly all published ones end.
LOGIT_SCALE = 100.0
#: How a picture is made ready: as the model's authors do it, or as DeltaEdit's published weights were trained.
OWN, DELTAEDIT = "own", "deltaedit"
PREPROCESSINGS = (OWN, DELTAEDIT)


class ImageEmbedding(NamedTuple):
    """Unit ``features [B, P]`` (E_v), and ``similarity [B, T, T]``: cosines between the last layer's patch tokens (Q of
    Eq. 5)."""

    features: Tensor
    similarity: Tensor


class ClipScorer(Protocol):
    """What the techniques need of a CLIP. Images are ``[B, 3, H, W]`` in 0..1 of any size; they are resized whole,
    never cropped."""

    @property
    def identity(self) -> str:
        """Names the model and its weights."""
        ...

    @property
    def side(self) -> int:
        """Pixels of the square pictures that the image tower takes."""
        ...

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosine similarities by before the softmax (CLIP's exp(t), about 100)."""
        ...

    def embed_images(self, images: Tensor) -> ImageEmbedding:
        """What CLIP makes of ``images [B, 3, H, W]``; differentiable."""
        ...

    def image_features(self, images: Tensor, preprocessing: str = OWN) -> Tensor:
        """Unit features E_v alone, ``[B, P]``; differentiable. ``preprocessing`` is one of :data:`PREPROCESSINGS`."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features E_t, ``[B, P]``."""
        ...


class TowerScorer:
    """A :class:`ClipScorer` from two functions.

    Args:
        identity: see :class:`ClipScorer`.
        image_tower: normalised images ``[B, 3, side, side]`` -> ``(features [B, P], patch tokens of the last layer [B,
            T, D])``.
        text_tower: texts -> features ``[B, P]``.
        side: pixels that the image tower takes.
        mean, std: normalisation of images in 0..1.
        network: what holds the towers' weights; images go where they are. None: the towers compute on the CPU.
        logit_scale: see :class:`ClipScorer`.
    """

    def __init__(
        self,
        identity: str,
        image_tower: Callable[[Tensor], tuple[Tensor, Tensor]],
        text_tower: Callable[[list[str]], Tensor],
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        network: nn.Module | None = None,
        logit_scale: float = LOGIT_SCALE,
    ):
        self.identity, self.side, self.network, self.logit_scale = identity, side, network, logit_scale
        self._image_tower, self._text_tower = image_tower, text_tower
        with torch.inference_mode(False):
            self._mean, self._std = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))

    @property
    def device(self) -> torch.device:
        """Where the towers compute now; a host may move them."""
        return torch.device("cpu") if self.network is None else next(self.network.parameters()).device

    def embed_images(self, images: Tensor) -> ImageEmbedding:
        """What CLIP makes of ``images [B, 3, H, W]`` in 0..1; differentiable.

        Raises:
            EditingError: not that shape, or not a number.
        """
        features, tokens = self._image_tower(self._prepare(images))
        tokens = functional.normalize(tokens.float(), dim=-1)
        return ImageEmbedding(functional.normalize(features.float(), dim=1), tokens @ tokens.transpose(1, 2))

    def image_features(self, images: Tensor, preprocessing: str = OWN) -> Tensor:
        """Unit features of ``images [B, 3, H, W]`` in 0..1, ``[B, P]``; differentiable.

        Raises:
            EditingError: not that shape, not a number, or a preprocessing that is none of :data:`PREPROCESSINGS`.
        """
        if preprocessing not in PREPROCESSINGS:
            raise EditingError(f"The preprocessing is {preprocessing[:40]!r}; use {' or '.join(PREPROCESSINGS)}.")
        ready = self._prepare(images) if preprocessing == OWN else deltaedit_pixels(self._checked(images), self.side)
        features, _ = self._image_tower(ready)
        return functional.normalize(features.float(), dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features of ``texts``, ``[B, P]``.

        Raises:
            EditingError: a text is empty.
        """
        check_texts(texts)
        return functional.normalize(self._text_tower(list(texts)).float(), dim=1)

    def _checked(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise EditingError(
                f"The images have shape {list(images.shape)}; CLIP needs [batch, 3, height, width] in 0..1."
            )
        check_finite(images, "The image")
        return images.to(self.device).float()

    def _prepare(self, images: Tensor) -> Tensor:
        pixels = self._checked(images)
        if tuple(pixels.shape[-2:]) != (self.side, self.side):
            pixels = functional.interpolate(pixels, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(
                0, 1
            )
        return (pixels - self._mean.to(pixels)) / self._std.to(pixels)


def deltaedit_pixels(images: Tensor, side: int) -> Tensor:
    """``images [B, 3, H, W]`` in 0..1 as DeltaEdit's published weights know them: ``[B, 3, side, side]`` in -1..1,
    *without* CLIP's mean and deviation.

    There a picture of 1024 pixels is enlarged sevenfold by repetition and averaged in squares of 32, which is what
    this does at any size: every pixel made is the mean of the area of the picture that it covers.
    """
    rows, columns = (_coverage(length, side).to(images) for length in images.shape[-2:])
    return rows @ images @ columns.T * 2 - 1


def _coverage(length: int, side: int) -> Tensor:
    """``[side, length]``: the share of each of ``length`` equal intervals in each of ``side``, rows sum to 1."""
    made = torch.arange(side + 1, dtype=torch.float64) * length / side
    given = torch.arange(length + 1, dtype=torch.float64)
    overlap = torch.minimum(made[1:, None], given[1:]) - torch.maximum(made[:-1, None], given[:-1])
    return overlap.clamp(min=0) * side / length


def embed_pictures(
    scorer: ClipScorer,
    pictures: Iterable[Tensor],
    preprocessing: str = OWN,
    batch: int = 16,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Features ``[N, P]`` on the CPU of any number of ``pictures``, each ``[1, 3, H, W]`` in 0..1 of its own size.

    They are taken from the iterable as they are needed; neighbours of one size go through CLIP together.

    Args:
        batch: how many at a time at most.
        callback: told how many are done; an exception it raises ends the work.

    Raises:
        EditingError: no picture, or see :meth:`TowerScorer.image_features`.
    """
    found: list[Tensor] = []
    done = 0
    for _, alike in groupby(pictures, key=lambda picture: picture.shape[-2:]):
        while chunk := list(islice(alike, batch)):
            found.append(scorer.image_features(torch.cat(chunk), preprocessing).detach().float().cpu())
            done += len(chunk)
            if callback is not None:
                callback(done)
    if not found:
        raise EditingError("There are no pictures to look at; give one at least.")
    return torch.cat(found)


def embed_texts(scorer: ClipScorer, texts: Sequence[str], batch: int = 64) -> Tensor:
    """Features ``[N, P]`` on the CPU of any number of texts, ``batch`` at a time.

    Raises:
        EditingError: no text, or an empty one.
    """
    if not texts:
        raise EditingError("There are no texts to read; write one at least.")
    chunks = [list(texts[start : start + batch]) for start in range(0, len(texts), batch)]
    return torch.cat([scorer.text_features(chunk).detach().float().cpu() for chunk in chunks])


def check_texts(texts: Sequence[str]) -> None:
    """Raise :class:`EditingError` when a text is empty."""
    if any(not text.strip() for text in texts):
        raise EditingError("A text is empty; write what the image shows and what it should show instead.")


def load_clip(path: str | Path, architecture: str = "ViT-B-16") -> TowerScorer:
    """A whole CLIP, told apart by itself: a transformers folder or file, or an OpenCLIP file.

    Args:
        architecture: of an OpenCLIP file, see :func:`load_open_clip`.

    Raises:
        EditingError: see :func:`load_transformers_clip` and :func:`load_open_clip`.
    """
    source = Path(path)
    if source.is_dir() or is_transformers_file(tensor_shapes(source)[0]):
        return load_transformers_clip(source)
    return load_open_clip(source, architecture)


def load_transformers_clip(folder: str | Path, device: str | torch.device = "cpu") -> TowerScorer:
    """A ``CLIPModel`` folder that ``save_pretrained`` wrote, with its tokenizer and preprocessor; or its weights alone
    in a safetensors file, see :mod:`.file_settings`, with CLIP's own.

    Raises:
        EditingError: no such folder, another model, files missing or damaged, or no transformers.
    """
    source = Path(folder)
    if source.is_file():
        settings = clip_settings(tensor_shapes(source)[0], source.name).config
        return _transformers_scorer(source, settings, CLIP_TOKENIZER, CLIP_NORMALISATION, device)
    if not (source / CONFIG).is_file():
        raise EditingError(
            f"{source.name} is no transformers model (no config.json); choose the folder of a CLIPModel."
        )
    config = read_config(source, source.name)
    if config.get("model_type") != "clip":
        raise EditingError(
            f"{source.name} holds a {str(config.get('model_type'))[:80]} model; choose a CLIPModel, for example CLIP "
            "ViT-B/16."
        )
    settings = transformers_settings(config, source.name)
    return _transformers_scorer(source, settings, source, None, device)


def _transformers_scorer(
    source: Path,
    settings: dict[str, Any],
    words: Path,
    normalisation: tuple[Sequence[float], Sequence[float]] | None,
    device: str | torch.device,
) -> TowerScorer:
    """A folder or file, with the tokenizer of the folder ``words``; None takes the folder's own normalisation."""
    model = load_transformers(source, "CLIPModel", settings, source.name)
    tokenizer = load_clip_tokenizer(words, source.name)
    model = model.to(device).float().eval().requires_grad_(False)
    length = model.config.text_config.max_position_embeddings
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise EditingError(
            f"{source.name}'s tokenizer is another model's; download the model again with its own files."
        )
    mean, std = normalisation or _preprocessor_normalisation(source)

    def texts(strings: list[str]) -> Tensor:
        batch = tokenizer(strings, padding="max_length", truncation=True, max_length=length, return_tensors="pt").to(
            model.device
        )
        pooled = model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
        features: Tensor = model.text_projection(pooled)
        return features

    identity = content_hash("transformers", model.visual_projection.weight, model.text_projection.weight)
    side, scale = model.config.vision_config.image_size, float(model.logit_scale.exp())
    return TowerScorer(identity, transformers_tower(model), texts, side, mean, std, model, scale)


def load_open_clip(path: str | Path, architecture: str = "ViT-B-16", device: str | torch.device = "cpu") -> TowerScorer:
    """An OpenCLIP model from one safetensors file, through the ``open_clip_torch`` package.

    Args:
        architecture: OpenCLIP's name; OpenAI's own weights need the one that ends in "-quickgelu".

    Raises:
        EditingError: the package is missing, the name is unknown or needs downloads, the file does not fit it, or the
            image tower has no patches.
    """
    open_clip = library("open_clip", "An OpenCLIP file", instead="use a transformers CLIPModel folder")
    if architecture not in open_clip.list_models():  # other names could be addresses of a hub
        raise EditingError(
            f"OpenCLIP knows no architecture {architecture!r}; use one of its names, for example ViT-B-16 or ViT-L-14."
        )
    config = open_clip.get_model_config(architecture)
    if config["text_cfg"].get("hf_model_name") or config["text_cfg"].get("hf_tokenizer_name"):
        raise EditingError(
            f"{architecture} takes its text side from a hub; use an architecture with CLIP's own, for example ViT-B-16."
        )
    if not isinstance(config["vision_cfg"].get("layers"), int):
        raise EditingError(f"{architecture} has no patches to compare; use a ViT, for example ViT-B-16.")
    weights, _ = load_tensors(path)
    misfit = f"{Path(path).name} does not fit {architecture}; choose the architecture that its page names."
    with offline(), torch.random.fork_rng(devices=[]):  # constructors fill in random weights
        with torch.device("meta"):
            empty = open_clip.create_model(architecture, pretrained=None, load_weights=False, device="meta")
        if sum(parameter.numel() for parameter in empty.parameters()) > sum(map(Tensor.numel, weights.values())):
            raise EditingError(misfit)
        model = open_clip.create_model(architecture, pretrained=None, load_weights=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise EditingError(misfit) from error
    model = model.to(device).float().eval().requires_grad_(False)
    visual: Any = model.visual
    tokenizer = open_clip.get_tokenizer(architecture)

    def image_tower(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")
        return output["image_features"], output["image_intermediates"][-1]

    def texts(strings: list[str]) -> Tensor:
        features: Tensor = model.encode_text(tokenizer(strings).to(model.text_projection.device))
        return features

    settings = open_clip.get_model_preprocess_cfg(model)
    side = settings["size"] if isinstance(settings["size"], int) else settings["size"][0]
    identity = content_hash("open_clip", architecture, *(weights[key] for key in ("visual.proj", "text_projection")))
    scale = float(model.logit_scale.exp())
    return TowerScorer(identity, image_tower, texts, side, settings["mean"], settings["std"], model, scale)


def transformers_tower(model: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The image tower of transformers' ``CLIPModel`` as :class:`TowerScorer` takes it."""

    def tower(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = model.vision_model(pixel_values=pixels)
        return model.visual_projection(output.pooler_output), output.last_hidden_state[:, 1:]

    return tower


def _preprocessor_normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """A folder's own normalisation of images in 0..1, CLIP's where it has no preprocessor."""
    if not any((folder / name).is_file() for name in PREPROCESSORS):
        return CLIP_NORMALISATION
    _, mean, std, _ = input_of(preprocessor(folder), {"image_size": 224}, folder.name)
    return mean, std

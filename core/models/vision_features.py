"""Where the objects of an image are: class-token attention and patch features of a frozen vision transformer (section
3.1).

DINO (Caron et al., arXiv 2104.14294) and DINOv2 are made for it; any ViT with a class token serves. Local files only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..content_hash import content_hash
from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_tensors, tensor_shapes
from .clip import CLIP_NORMALISATION
from .file_settings import is_transformers_file, vision_settings
from .model_folder import load_transformers, read_config
from .model_settings import numbers_in, transformers_settings
from .transformers_files import NORMALISATIONS, PREPROCESSORS, input_of, preprocessor
from .vit import VisionTransformer

LARGEST_SIDE = 1344  # pixels: attention over more patches than that needs gigabytes
FLAT = 1 / 255
#: transformers' model types -> class to load.
TRANSFORMERS_CLASSES = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModel",
}
#: Classes that interpolate positions only when they are told to.
INTERPOLATE_ON_REQUEST = ("ViTModel", "CLIPModel", "CLIPVisionModel")
#: What transformers calls the layer that makes keys, in newer and older releases.
KEY_PROJECTIONS = ("k_proj", "key")


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """What a vision transformer sees in images of one size.

    Attributes:
        attention: ``[B, heads, gh, gw]``, softmax weights from the class token to each patch, in the last block.
        features: ``[B, D, gh, gw]``, patch tokens of the last block.
        image_size: ``(H, W)`` in pixels of the images, which the grid covers.
        vision: identity of the vision model.
    """

    attention: Tensor
    features: Tensor
    image_size: tuple[int, int]
    vision: str


class VisionFeatures(nn.Module):
    """A frozen vision transformer for images of any size.

    Args:
        network: normalised pixels ``[B, 3, h, w]`` -> ``(patch tokens [B, N, D], class attention [B, heads, N])``; its
            ``keys`` gives the last block's keys of all tokens, ``[B, T, D]``.
        patch: side of a patch in pixels.
        native: side in pixels of the images it was trained on, or of its table of positions.
        mean, std: normalisation of images in 0..1.
        name: for people.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, patch: int, native: int, mean: Sequence[float], std: Sequence[float], name: str
    ):
        super().__init__()
        self.network = network.float().eval().requires_grad_(False)
        self.patch, self.native, self.name = patch, native, name
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)
        matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        #: Names the network; features of different ones do not mix.
        self.identity = content_hash(
            type(network).__name__, matrices[0], matrices[-1], f"{patch} {native} {tuple(mean)} {tuple(std)}"
        )

    @torch.no_grad()
    def forward(self, images: Tensor, resolution: int | None = None, *, only_keys: bool = False) -> FeatureMap | Tensor:
        """Attention and features of ``images [B, 3, H, W]`` in 0..1.

        Args:
            resolution: pixels to which the shorter side is resized before the network, ``native`` by default, less
                where the longer would exceed :data:`LARGEST_SIDE`; each side is rounded to whole patches. The grid
                covers the whole image.
            only_keys: return what :meth:`keys` promises. It comes this way because a host moves the network's weights
                when the module is called.

        Raises:
            EditingError: not that shape, smaller than a patch, one flat colour, not a number, or a resolution below a
                patch.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise EditingError(
                f"The images have shape {list(images.shape)}; the vision model needs [batch, 3, height, width] in 0..1."
            )
        check_finite(images, "The image")
        size = (images.shape[-2], images.shape[-1])
        if min(size) < self.patch:
            raise EditingError(
                f"The image is {size[1]} x {size[0]} pixels, smaller than a patch of {self.patch}; use a larger image."
            )
        if not only_keys and float((images.amax((2, 3)) - images.amin((2, 3))).amax(1).min()) < FLAT:
            raise EditingError("The image is one flat colour without any object; use a photo or a drawing.")
        height, width = self._input_size(size, self.native if resolution is None else resolution)
        pixels = images.to(self.mean.device).float()
        if size != (height, width):
            pixels = functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - self.mean) / self.std
        if only_keys:
            return self.network.keys(pixels)  # type: ignore[operator]
        tokens, attention = self.network(pixels)
        grid = (height // self.patch, width // self.patch)
        return FeatureMap(attention.unflatten(2, grid), tokens.transpose(1, 2).unflatten(2, grid), size, self.identity)

    def keys(self, images: Tensor, resolution: int | None = None) -> Tensor:
        """The last block's keys of ``images [B, 3, H, W]`` in 0..1: ``[B, T, D]``, heads side by side.

        T counts all tokens: the class token, registers where there are some, then the patches row by row. Images that
        have the network's size already pass as they are.

        Args:
            resolution: see :meth:`forward`.

        Raises:
            EditingError: as for :meth:`forward`, but flat images are welcome.
        """
        found: Tensor = self(images, resolution, only_keys=True)
        return found

    def _input_size(self, size: tuple[int, int], resolution: int) -> tuple[int, int]:
        """``(h, w)`` in whole patches, nearest to the image's proportions."""
        if resolution < self.patch:
            raise EditingError(
                f"The resolution is {resolution}, smaller than a patch of {self.patch} pixels; use {self.native}."
            )
        scale = min(resolution / min(size), LARGEST_SIDE / max(size)) / self.patch
        height, width = (max(1, round(side * scale)) * self.patch for side in size)
        return height, width


class _TransformersNetwork(nn.Module):
    """A transformers ViT loaded with eager attention, which alone tells its weights."""

    def __init__(self, model: Any, interpolates_on_request: bool):
        super().__init__()
        self.model = model
        self.arguments = {"interpolate_pos_encoding": True} if interpolates_on_request else {}

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values=pixels, output_attentions=True, **self.arguments)
        patch = self.model.config.patch_size
        count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        return output.last_hidden_state[:, -count:], output.attentions[-1][:, :, 0, -count:]

    def keys(self, pixels: Tensor) -> Tensor:
        """The output of the last block's key projection, ``[B, T, D]``."""
        projections = [part for name, part in self.model.named_modules() if name.rsplit(".", 1)[-1] in KEY_PROJECTIONS]
        seen: list[Tensor] = []
        handle = projections[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            self.model(pixel_values=pixels, **self.arguments)
        finally:
            handle.remove()
        return seen[-1]


def load_vision_features(path: str | Path, heads: int | None = None) -> VisionFeatures:
    """Load a local vision model, told apart by itself.

    A transformers folder: ``ViTModel`` (DINO's too), ``Dinov2Model`` with or without registers, the image side of a
    CLIP. Its preprocessor's normalisation is used; without one ImageNet's, for CLIP CLIP's own. A safetensors file:
    the same networks, see :mod:`.file_settings`, or DINO or DINOv2 under their own names or timm's; normalised as
    ImageNet, CLIP as its own.

    Args:
        heads: attention heads of a safetensors file, see :class:`~.vit.VisionTransformer`.

    Raises:
        EditingError: missing, damaged, another kind of model, or no transformers.
    """
    source = Path(path)
    if source.is_dir():
        return load_vision_folder(source, None)
    shapes, _ = tensor_shapes(source)
    if is_transformers_file(shapes):
        class_name, settings = vision_settings(shapes, source.name, heads)
        return _from_transformers(source, class_name, settings, None)
    weights, _ = load_tensors(source)
    try:
        network = VisionTransformer(weights, heads)
    except EditingError as error:
        raise EditingError(f"{source.name} cannot be used: {error}") from error
    return VisionFeatures(
        network, network.patch, network.native * network.patch, *NORMALISATIONS["imagenet"], source.name
    )


def load_vision_folder(
    folder: Path, normalisation: tuple[Sequence[float], Sequence[float]] | None = None
) -> VisionFeatures:
    """A transformers folder, see :func:`load_vision_features`.

    Args:
        normalisation: mean and standard deviation to use instead of the folder's own.
    """
    config = read_config(folder, folder.name)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TRANSFORMERS_CLASSES:
        raise EditingError(
            f"{folder.name} holds a model of another kind ({str(kind)[:80]}); use a DINO, DINOv2 or CLIP vision "
            "transformer."
        )
    name = TRANSFORMERS_CLASSES[kind]
    return _from_transformers(folder, name, transformers_settings(config, folder.name), normalisation)


def _from_transformers(
    folder: Path, name: str, settings: dict[str, Any], normalisation: tuple[Sequence[float], Sequence[float]] | None
) -> VisionFeatures:
    """The network ``name`` of a folder or of a file."""
    pooling = {"add_pooling_layer": False} if name == "ViTModel" else {}
    model = load_transformers(folder, name, settings, folder.name, eager=True, **pooling)
    if name == "CLIPModel":
        model = model.vision_model
    if normalisation is None and any((folder / file).is_file() for file in PREPROCESSORS):
        _, mean, std, _ = input_of(preprocessor(folder), {"image_size": model.config.image_size}, folder.name)
        normalisation = mean, std
    if normalisation is None:
        normalisation = CLIP_NORMALISATION if name.startswith("CLIP") else NORMALISATIONS["imagenet"]
    sides = [numbers_in(value) for value in (model.config.patch_size, model.config.image_size)]
    if any(len(set(part)) != 1 for part in sides):
        raise EditingError(f"{folder.name} sees pictures or patches that are not square; use a DINO, DINOv2 or CLIP.")
    network = _TransformersNetwork(model, name in INTERPOLATE_ON_REQUEST)
    return VisionFeatures(network, sides[0][0], sides[1][0], *normalisation, folder.name)

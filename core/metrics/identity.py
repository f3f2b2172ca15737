"""Whether an edited portrait is still the same person (the identity measure of DeltaEdit, e4e and StyleCLIP)."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..files import load_weights
from ..models.arcface import FACE_SIDE, IdentityNetwork
from .checks import check_pair

#: Side to which pictures are brought, and the rows and columns of the face in it. Those papers' identity loss cuts so:
#: it is where the face is in a picture aligned as FFHQ and CelebA-HQ are.
ALIGNED_SIDE, ROWS, COLUMNS = 256, slice(35, 223), slice(32, 220)


def load_identity(file: str | Path) -> IdentityNetwork:
    """ArcFace's IR-SE50 from ``model_ir_se50.pth``, or the same weights as safetensors.

    Raises:
        EditingError: missing, damaged, or another network's.
    """
    source = Path(file)
    weights = load_weights(source, "face network")
    try:
        return IdentityNetwork(weights)
    except EditingError as error:
        raise EditingError(f"{source.name} cannot be used: {error}") from error


def identity_similarity(network: IdentityNetwork, images: Tensor, reference: Tensor) -> Tensor:
    """Cosine ``[B]`` in -1..1 between the faces in ``images`` and ``reference``, both ``[B, 3, H, W]`` in 0..1; 1 for
    equal images.

    The pictures must be square and aligned as FFHQ and CelebA-HQ are: eyes and mouth at fixed places, of which the
    middle is cut out. On other pictures the figure means little.

    Raises:
        EditingError: shapes differ, the pictures are not square, or a value is not a number.
    """
    check_pair(images, reference)
    if images.shape[1] != 3 or images.shape[-2] != images.shape[-1]:
        raise EditingError(
            f"The images have shape {list(images.shape)}; identity is measured on square portraits aligned as FFHQ's, "
            "[batch, 3, side, side]."
        )
    first, second = (network(_face(network, pictures)).cpu().double() for pictures in (images, reference))
    return functional.cosine_similarity(first, second, dim=1)


def _face(network: IdentityNetwork, images: Tensor) -> Tensor:
    """The network's input ``[B, 3, 112, 112]`` in -1..1: averaged down to 256 pixels (smaller ones are smoothly
    enlarged), cut, averaged down again."""
    pixels = images.to(next(network.parameters()).device).float()
    size = (ALIGNED_SIDE, ALIGNED_SIDE)
    if pixels.shape[-1] > ALIGNED_SIDE:
        pixels = functional.adaptive_avg_pool2d(pixels, size)
    elif pixels.shape[-1] < ALIGNED_SIDE:
        pixels = functional.interpolate(pixels, size=size, mode="bilinear")
    return functional.adaptive_avg_pool2d(pixels[..., ROWS, COLUMNS], (FACE_SIDE, FACE_SIDE)) * 2 - 1

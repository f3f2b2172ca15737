"""Structure distance: whether the parts of a picture still resemble each other as before (pix2pix-zero, PIE-Bench).

The keys of a vision transformer's last block, compared with each other, tell shapes and layout and forget colours and
texture (Tumanyan et al., Splicing ViT Features, arXiv 2201.00424). The papers take DINO ViT-B/8 and its
last block (number 11) at 224 pixels; with that model's file or folder it is their measure, up to the way of resizing
(theirs bilinear). Figures of different models do not compare.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from ..models.vision_features import VisionFeatures
from .checks import check_pair


def self_similarity(keys: Tensor) -> Tensor:
    """Cosine of every token's key with every other's, ``[B, T, T]``, of ``keys [B, T, D]``."""
    unit = functional.normalize(keys.double(), dim=2)
    return unit @ unit.mT


def structure_distance(vision: VisionFeatures, images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference ``[B]`` of the self-similarities of ``images`` and ``reference``, both ``[B, 3, H, W]``
    in 0..1; 0 for equal images. All tokens take part, the class token too.

    Raises:
        EditingError: shapes differ, a value is not a number, or the images are smaller than a patch.
    """
    check_pair(images, reference)
    first, second = (self_similarity(vision.keys(pictures).cpu()) for pictures in (images, reference))
    return (first - second).square().mean((1, 2))

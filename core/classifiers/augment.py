"""Random changes of pictures that do not change what they show.

A classifier that is trained with them, or an embedding that it teaches, cannot rely on single pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

SHIFT, ZOOM = 0.08, 0.12  # of the side; at strength 1
BRIGHTNESS, CONTRAST, NOISE = 0.08, 0.15, 0.05
BLUR = 0.5  # smallest side to which a picture is shrunk and enlarged again
BLURRED = 0.3  # part of the batches


def augmented(images: Tensor, strength: float, flip: bool, generator: torch.Generator) -> Tensor:
    """``images [B, 3, H, W]`` in 0..1, differently moved, zoomed, lit and made noisy each; sometimes the batch is
    blurred.

    Differentiable in ``images``. Strength 0 without ``flip`` returns ``images`` itself.

    Args:
        strength: 0 for none, 1 for shifts up to 8 % and zooms up to 12 % of the side, brightness 0.08, contrast 15 %,
            noise up to 0.05.
        flip: mirror each picture with probability one half.
        generator: on the CPU, so that every device gets the same changes.
    """
    if not strength and not flip:
        return images
    count = len(images)

    def uniform(spread: float) -> Tensor:
        return ((torch.rand(count, generator=generator) * 2 - 1) * spread * strength).to(images.device)

    mirrored = (
        (torch.rand(count, generator=generator) < 0.5).to(images.device)
        if flip
        else torch.zeros(count, dtype=torch.bool)
    )
    scale = (1 + uniform(ZOOM)).clamp(min=0.1)
    matrix = images.new_zeros(count, 2, 3)
    matrix[:, 0, 0] = torch.where(mirrored.to(images.device), -scale, scale)
    matrix[:, 1, 1] = scale
    matrix[:, 0, 2], matrix[:, 1, 2] = 2 * uniform(SHIFT), 2 * uniform(SHIFT)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if not strength:
        return images
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + uniform(CONTRAST)).view(-1, 1, 1, 1) + mean + uniform(BRIGHTNESS).view(-1, 1, 1, 1)
    if float(torch.rand(1, generator=generator)) < BLURRED:
        height, width = images.shape[-2:]
        part = 1 - (1 - BLUR) * float(torch.rand(1, generator=generator))
        small = functional.interpolate(
            images, size=(max(1, int(height * part)), max(1, int(width * part))), mode="area"
        )
        images = functional.interpolate(small, size=(height, width), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return images + noise * uniform(NOISE).abs().view(-1, 1, 1, 1)

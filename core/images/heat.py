"""Heat: a picture under a colour that is stronger where a map is higher."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

HEAT = (255, 60, 0)  # red, green and blue in 0..255


def under_heat(image: Tensor, weight: Tensor) -> Tensor:
    """``image [1, 3, H, W]`` in 0..1 blended with :data:`HEAT`, fp32 on the CPU.

    Args:
        weight: opacity of the heat ``[h, w]`` in 0..1, of any size; it is interpolated to the image's.
    """
    size = (image.shape[-2], image.shape[-1])
    weight = functional.interpolate(weight[None, None], size=size, mode="bilinear", align_corners=False)
    colour = torch.tensor(HEAT).reshape(1, 3, 1, 1) / 255
    return image.detach().float().cpu() * (1 - weight) + colour * weight

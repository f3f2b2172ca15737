"""ROIAlign (He et al., arXiv 1703.06870, section 3): features of a box of any size on a grid of fixed size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from .proposals import Box

SAMPLES = 2  # bilinear samples along each side of a bin, as torchvision's and detectron's usual setting


def roi_align(features: Tensor, boxes: Sequence[Box], image_size: tuple[int, int], bins: int = 7, samples: int = SAMPLES) -> Tensor:
    """Mean of ``samples`` x ``samples`` bilinear samples in each of ``bins`` x ``bins`` cells of every box.

    It equals ``torchvision.ops.roi_align(..., sampling_ratio=samples, aligned=True)`` for boxes inside the image, and needs
    no compiled operator. ROIAlign is the pooling of Eq. 1 without rounding boxes to patches.

    Args:
        features: ``[D, gh, gw]``, the centre of cell (r, c) at image pixel ((c + 0.5) W / gw, (r + 0.5) H / gh).
        boxes: N boxes in image pixels.
        image_size: ``(H, W)`` in pixels.

    Returns:
        ``[N, D, bins, bins]``.
    """
    rows, columns = features.shape[-2:]
    frame = torch.tensor([[box.x, box.y, box.width, box.height] for box in boxes], dtype=features.dtype, device=features.device)
    scale = torch.tensor([columns / image_size[1], rows / image_size[0]], dtype=features.dtype, device=features.device)
    start, extent = frame[:, :2] * scale - 0.5, frame[:, 2:] * scale
    step = (torch.arange(bins * samples, dtype=features.dtype, device=features.device) + 0.5) / (bins * samples)
    x = start[:, :1] + extent[:, :1] * step
    y = start[:, 1:] + extent[:, 1:] * step
    grid = torch.stack([_unit(x, columns)[:, None, :].expand(-1, len(step), -1), _unit(y, rows)[:, :, None].expand(-1, -1, len(step))], -1)
    sampled = [functional.grid_sample(features[None], one[None], padding_mode="border", align_corners=True) for one in grid]
    return functional.avg_pool2d(torch.cat(sampled), samples)


def _unit(position: Tensor, count: int) -> Tensor:
    """Index of a cell (0 is the first one's centre) -> grid_sample's -1..1, where -1 and 1 are the outermost centres.

    Along a single cell every position means that cell.
    """
    return position * (2 / (count - 1)) - 1 if count > 1 else torch.zeros_like(position)

"""Encoders from a picture to W+: e4e's (Tov et al., TOG 2021, arXiv 2102.02766) and the demo world's small one.

Both give a code that all rows share and differences of each row from it, on top of the generator's mean (e4e, section
3.2): what the shared code alone draws is what the generator can edit best.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..models.arcface import STAGES, ir_se_layers
from .stylegan2 import EqualLinear

#: Rows of W+ that e4e reads off the deepest features, and off these and the middle ones together; the rest use all.
COARSE_ROWS, MIDDLE_ROWS = 3, 7


class StyleEncoder(Protocol):
    """What the inversion needs of an encoder.

    Attributes:
        side: pixels of the pictures that it looks at.
    """

    side: int

    def __call__(self, pictures: Tensor) -> Tensor:
        """``pictures [B, 3, side, side]`` in -1..1 -> W+ ``[B, rows, style_dim]``."""
        ...


class Residual(nn.Module):
    """Two convolutions after group normalisation beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, down: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if down else 1, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` -> ``[B, outputs, H, W]``, half the size when ``down``."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        return hidden + self.shortcut(functional.avg_pool2d(x, 2) if self.down else x)


class CompactEncoder(nn.Module):
    """A small convolutional encoder.

    Args:
        rows, style_dim: of the generator's W+.
        side: of the pictures.
        widths: channels at ``side`` / 2, / 4, / 8 and / 16.
        hidden: width of the layer before the last.
        differing: rows may differ; False: all get the shared code.
    """

    def __init__(
        self,
        rows: int,
        style_dim: int,
        side: int = 64,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        hidden: int = 512,
        differing: bool = True,
    ):
        super().__init__()
        self.rows, self.style_dim, self.side, self.widths, self.hidden = rows, style_dim, side, tuple(widths), hidden
        self.first = nn.Conv2d(12, widths[0], 3, 1, 1)
        self.body = nn.Sequential(
            Residual(widths[0], widths[0], False),
            *(Residual(a, b, True) for a, b in pairwise(widths)),
            Residual(widths[-1], widths[-1], False),
        )
        self.norm = nn.GroupNorm(8, widths[-1])
        places = (side // 2 ** len(widths)) ** 2
        self.pooled = nn.Linear(widths[-1] * places, hidden)
        self.shared = nn.Linear(hidden, style_dim)
        self.differences = nn.Linear(hidden, rows * style_dim) if differing else None
        self.register_buffer("mean", torch.zeros(style_dim))

    def parts(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """``(shared code [B, style_dim], differences [B, rows, style_dim])``, whose sum is W+."""
        folded = functional.pixel_unshuffle(pictures, 2).contiguous(memory_format=torch.channels_last)
        hidden = functional.silu(self.norm(self.body(self.first(folded)))).flatten(1)
        hidden = functional.silu(self.pooled(hidden))
        shared, sizes = self.mean + self.shared(hidden), (self.rows, self.style_dim)
        if self.differences is None:
            return shared, shared.new_zeros(len(shared), *sizes)
        return shared, self.differences(hidden).unflatten(1, sizes)

    def forward(self, pictures: Tensor) -> Tensor:
        """``pictures [B, 3, side, side]`` in -1..1 -> W+ ``[B, rows, style_dim]``."""
        shared, differences = self.parts(pictures)
        return shared[:, None] + differences

    def shape(self) -> dict[str, Any]:
        """What a file must say to build it anew."""
        sizes = {"rows": self.rows, "style_dim": self.style_dim, "side": self.side}
        rest = {"widths": list(self.widths), "hidden": self.hidden, "differing": self.differences is not None}
        return {"kind": "compact", **sizes, **rest}


class StyleBlock(nn.Module):
    """Features to one vector: convolutions that halve the side until one pixel is left, then a linear layer (pSp's
    map2style, Richardson et al., CVPR 2021, arXiv 2008.00951, section 3.1).

    Args:
        side: of the features; a power of 2.
    """

    def __init__(self, channels: int, outputs: int, side: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(side.bit_length() - 1):
            layers += [nn.Conv2d(channels, outputs, 3, 2, 1), nn.LeakyReLU()]
            channels = outputs
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, side, side]`` -> ``[B, outputs]``."""
        vector: Tensor = self.linear(self.convs(x).flatten(1))
        return vector


class E4eEncoder(nn.Module):
    """e4e's encoder, and pSp's, which has the same layers: the trunk of a face recognition network, a pyramid over its
    last three stages, and one block a row of W+. Layers bear the names of ``e4e_ffhq_encode.pt``.

    Args:
        rows: of the generator's W+; 18 for 1024 pixels, 14 for 256.
        style_dim: of the generator's W; also the channels of the trunk's last stage and of the pyramid.
        side: of the pictures.
        stages: channels and units of the trunk.
        differences: the first block gives a code for all rows, and the others each row's difference from it (e4e);
            False: each block gives its row (pSp).

    Attributes:
        latent_avg: added to the result, ``[rows, style_dim]``; the generator's mean W.
    """

    latent_avg: Tensor

    def __init__(
        self,
        rows: int,
        style_dim: int = 512,
        side: int = 256,
        stages: Sequence[tuple[int, int]] = STAGES,
        differences: bool = True,
    ):
        super().__init__()
        self.rows, self.style_dim, self.side, self.differences = rows, style_dim, side, differences
        self.stages = tuple((width, units) for width, units in stages)
        (_, first), (fine, second), (middle, third), (deep, _) = self.stages
        #: The units after which the pyramid branches off.
        self.taps = (first + second - 1, first + second + third - 1)
        self.input_layer, self.body = ir_se_layers(self.stages)
        sides = [side // 16] * COARSE_ROWS + [side // 8] * (MIDDLE_ROWS - COARSE_ROWS) + [side // 4] * rows
        self.styles = nn.ModuleList(StyleBlock(deep, style_dim, sides[row]) for row in range(rows))
        self.latlayer1, self.latlayer2 = nn.Conv2d(middle, deep, 1), nn.Conv2d(fine, deep, 1)
        self.register_buffer("latent_avg", torch.zeros(rows, style_dim))

    def forward(self, pictures: Tensor) -> Tensor:
        """``pictures [B, 3, side, side]`` in -1..1 -> W+ ``[B, rows, style_dim]``."""
        x, branches = self.input_layer(pictures), []
        for number, unit in enumerate(self.body):
            x = unit(x)
            if number in self.taps:
                branches.append(x)
        fine, middle = branches
        pyramid = [x, _enlarged(x, self.latlayer1(middle))]
        pyramid.append(_enlarged(pyramid[1], self.latlayer2(fine)))
        levels = [pyramid[(row >= COARSE_ROWS) + (row >= MIDDLE_ROWS)] for row in range(self.rows)]
        codes = torch.stack([style(level) for style, level in zip(self.styles, levels, strict=True)], 1)
        if self.differences:
            codes = torch.cat([codes[:, :1], codes[:, :1] + codes[:, 1:]], 1)
        return codes + self.latent_avg

    def shape(self) -> dict[str, Any]:
        """What a file must say to build it anew."""
        kind = "e4e" if self.differences else "psp"
        sizes = {"rows": self.rows, "style_dim": self.style_dim, "side": self.side}
        return {"kind": kind, **sizes, "stages": [list(stage) for stage in self.stages]}


def _enlarged(above: Tensor, beside: Tensor) -> Tensor:
    """A level of the pyramid: the one above at this one's size, corners on corners, plus this one's own features."""
    size = (beside.shape[-2], beside.shape[-1])
    return functional.interpolate(above, size, mode="bilinear", align_corners=True) + beside

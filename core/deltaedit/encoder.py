"""Encoders from a picture to W+: e4e's (Tov et al., TOG 2021, arXiv 2102.02766) and the demo world's small one.

Both give a code that all rows share and differences of each row from it, on top of the generator's mean (e4e, section
3.2): what the shared code alone draws is what the generator can edit best.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


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
    """

    def __init__(
        self, rows: int, style_dim: int, side: int = 64, widths: tuple[int, ...] = (32, 64, 96, 128), hidden: int = 512
    ):
        super().__init__()
        self.rows, self.style_dim, self.side, self.widths, self.hidden = rows, style_dim, side, tuple(widths), hidden
        self.first = nn.Conv2d(12, widths[0], 3, 1, 1)
        pairs = itertools.pairwise(widths)
        self.body = nn.Sequential(
            Residual(widths[0], widths[0], False),
            *(Residual(a, b, True) for a, b in pairs),
            Residual(widths[-1], widths[-1], False),
        )
        self.norm = nn.GroupNorm(8, widths[-1])
        places = (side // 2 ** len(widths)) ** 2
        self.pooled = nn.Linear(widths[-1] * places, hidden)
        self.shared, self.differences = nn.Linear(hidden, style_dim), nn.Linear(hidden, rows * style_dim)
        self.register_buffer("mean", torch.zeros(style_dim))

    def parts(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """``(shared code [B, style_dim], differences [B, rows, style_dim])``, whose sum is W+."""
        folded = functional.pixel_unshuffle(pictures, 2).contiguous(memory_format=torch.channels_last)
        hidden = functional.silu(self.norm(self.body(self.first(folded)))).flatten(1)
        hidden = functional.silu(self.pooled(hidden))
        return self.mean + self.shared(hidden), self.differences(hidden).unflatten(1, (self.rows, self.style_dim))

    def forward(self, pictures: Tensor) -> Tensor:
        """``pictures [B, 3, side, side]`` in -1..1 -> W+ ``[B, rows, style_dim]``."""
        shared, differences = self.parts(pictures)
        return shared[:, None] + differences

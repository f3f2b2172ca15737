"""DeltaEdit-D's U-Net (Lyu et al., section 4.2.2): DDPM's, whose blocks are normalised by the style code.

Built on the U-Net of Diffusion Autoencoders (Preechakul et al., CVPR 2022, arXiv 2111.15640), whose
``AdaGN = z_s (t_s GroupNorm(h) + t_b)`` takes scale and shift from the time and another scale from the style. Here a
block reads the coarse, medium or fine part of the style code, by the size of its feature map. Plainer than there:
resolutions are changed by averaging and by repeating pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from .style_code import COARSE, MEDIUM

#: Sines and cosines that tell the network the time.
FREQUENCIES = 32
HEAD_WIDTH = 64  # channels of an attention head
#: Standard deviation from which learned places start.
PLACE_SCALE = 0.1


@dataclass(frozen=True)
class UNetShape:
    """What a U-Net is made of. The defaults are DiffAE's for FFHQ at 128 pixels.

    Attributes:
        size: pixels of a picture's side.
        fold: side of the squares of pixels that the first layer takes as one.
        width: channels that ``multipliers`` multiply, one for each resolution; each halves the map.
        multipliers: see ``width``.
        blocks: residual blocks of a resolution on the way down, as many between down and up, and one more on the way
            up.
        attention: map sides at which blocks are followed by self-attention.
        dropout: share of a block's features that a training leaves out.
        embedding: width of the embedded time, and of the embedded style of each level.
        coarse, medium: largest map sides whose blocks read the coarse and the medium styles; the defaults are those by
            which the style code itself is split.
        places: learned maps are added at every resolution, as StyleGAN starts from one. Then the network knows where
            it is where noise hides the picture, and learns to draw from the style code sooner.
        prediction: what the last layer gives: the noise, or ``v = alpha * noise - sigma * picture``, of which the noise
            follows. The second is exact where the noise is nearly all there is.
    """

    size: int = 128
    fold: int = 1
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 3, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    embedding: int = 512
    coarse: int = COARSE
    medium: int = MEDIUM
    places: bool = False
    prediction: Literal["eps", "v"] = "eps"
    sides: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sides = [self.size // self.fold // 2**level for level in range(len(self.multipliers))]
        if not sides or sides[-1] < 1 or sides[-1] * self.fold * 2 ** (len(sides) - 1) != self.size:
            raise EditingError(
                f"Pictures of {self.size} pixels cannot be halved {len(self.multipliers) - 1} times after folding by "
                f"{self.fold}; use a size that is a multiple of {self.fold * 2 ** max(len(self.multipliers) - 1, 0)}."
            )
        object.__setattr__(self, "sides", tuple(sides))

    @property
    def channels(self) -> list[int]:
        """Channels of each resolution, from the largest map down."""
        return [self.width * factor for factor in self.multipliers]

    def level_at(self, side: int) -> int:
        """Index in :data:`~.style_code.LEVELS` of the styles that blocks on maps of ``side`` pixels read."""
        return 0 if side <= self.coarse else 1 if side <= self.medium else 2


#: The demo world's: maps of 32, 16 and 8 pixels read fine, medium and coarse styles.
DEMO_SHAPE = UNetShape(
    size=64,
    fold=2,
    width=16,
    multipliers=(3, 5, 6),
    blocks=1,
    attention=(),
    dropout=0.0,
    embedding=128,
    coarse=8,
    medium=16,
    places=True,
    prediction="v",
)


def groups(channels: int) -> nn.GroupNorm:
    """Group normalisation, of 32 groups where these divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def embed_time(times: Tensor) -> Tensor:
    """``[B]`` -> sines and cosines ``[B, 2 * FREQUENCIES]`` (Vaswani et al., arXiv 1706.03762, section 3.5)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES, device=times.device) / FREQUENCIES)
    angles = times.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class StyledBlock(nn.Module):
    """Two convolutions beside a shortcut; the second's input is normalised by time and style (AdaGN).

    Args:
        embedding: width of the embedded time and style.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = groups(inputs), groups(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time, self.style = nn.Linear(embedding, 2 * outputs), nn.Linear(embedding, outputs)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor, style: Tensor) -> Tensor:
        """``x [B, inputs, H, W]``, ``time`` and ``style [B, embedding]`` -> ``[B, outputs, H, W]``."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        factor = 1 + self.style(style)[:, :, None, None]
        hidden = factor * ((1 + scale) * self.norm2(hidden) + shift)
        shortcut: Tensor = self.shortcut(x)
        return shortcut + self.conv2(self.dropout(functional.silu(hidden)))


class SelfAttention(nn.Module):
    """Attention of a map's places to each other, beside a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.heads = groups(channels), math.gcd(channels, max(1, channels // HEAD_WIDTH))
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(attended.reshape(x.shape))


class Stage(nn.Module):
    """A styled block, and self-attention after it where the shape asks for it."""

    def __init__(self, inputs: int, outputs: int, side: int, shape: UNetShape):
        super().__init__()
        self.block = StyledBlock(inputs, outputs, shape.embedding, shape.dropout)
        self.attention = SelfAttention(outputs) if side in shape.attention else nn.Identity()
        self.level = shape.level_at(side)

    def forward(self, x: Tensor, time: Tensor, styles: list[Tensor]) -> Tensor:
        """``styles``: the embedded ones of each level, ``[B, embedding]``."""
        result: Tensor = self.attention(self.block(x, time, styles[self.level]))
        return result


class StyleUNet(nn.Module):
    """The network from a noisy picture, the time and a style code to the noise or v.

    Args:
        level_widths: style channels of the coarse, medium and fine level.
    """

    def __init__(self, shape: UNetShape, level_widths: list[int]):
        super().__init__()
        self.shape, self.level_widths = shape, list(level_widths)
        embedding, channels, folded = shape.embedding, shape.channels, 3 * shape.fold**2
        self.time = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.styles = nn.ModuleList(
            nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
            for width in level_widths
        )
        self.first = nn.Conv2d(folded, channels[0], 3, padding=1)
        down, skips, inputs = [], [channels[0]], channels[0]
        for level, (side, outputs) in enumerate(zip(shape.sides, channels, strict=True)):
            if level:
                skips.append(inputs)  # the map after it was halved
            stages = nn.ModuleList()
            for _ in range(shape.blocks):
                stages.append(Stage(inputs, outputs, side, shape))
                inputs = outputs
                skips.append(inputs)
            down.append(stages)
        self.down = nn.ModuleList(down)
        lowest = shape.sides[-1]
        self.middle = nn.ModuleList(Stage(inputs, inputs, lowest, shape) for _ in range(shape.blocks))
        up, places = [], []
        for side, outputs in zip(reversed(shape.sides), reversed(channels), strict=True):
            places.append(nn.Parameter(PLACE_SCALE * torch.randn(1, inputs, side, side)) if shape.places else None)
            stages = nn.ModuleList()
            for _ in range(shape.blocks + 1):
                stages.append(Stage(inputs + skips.pop(), outputs, side, shape))
                inputs = outputs
            up.append(stages)
        self.up = nn.ModuleList(up)
        self.places = nn.ParameterList([place for place in places if place is not None])
        self.norm, self.last = groups(inputs), nn.Conv2d(inputs, folded, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, times: Tensor, styles: Tensor) -> Tensor:
        """The noise, or v, in ``x``.

        Args:
            x: noisy pictures ``[B, 3, size, size]`` of unit variance.
            times: ``[B]``, steps of the training's noise schedule, whole or between.
            styles: standardised convolution styles ``[B, sum(level_widths)]``.

        Returns:
            ``[B, 3, size, size]``.
        """
        time: Tensor = self.time(embed_time(times).to(x.dtype))
        parts = [embed(part) for embed, part in zip(self.styles, styles.split(self.level_widths, 1), strict=True)]
        folded = functional.pixel_unshuffle(x, self.shape.fold)
        hidden = self.first(folded.contiguous(memory_format=torch.channels_last))  # faster on CPUs
        skips = [hidden]
        for level, stages in enumerate(self.down):
            if level:
                hidden = functional.avg_pool2d(hidden, 2)
                skips.append(hidden)
            for stage in stages:  # type: ignore[attr-defined]
                hidden = stage(hidden, time, parts)
                skips.append(hidden)
        for stage in self.middle:
            hidden = stage(hidden, time, parts)
        for level, stages in enumerate(self.up):
            if level:
                hidden = functional.interpolate(hidden, scale_factor=2, mode="nearest")
            if self.shape.places:
                hidden = hidden + self.places[level]
            for stage in stages:  # type: ignore[attr-defined]
                hidden = stage(torch.cat([hidden, skips.pop()], 1), time, parts)
        result: Tensor = functional.pixel_shuffle(self.last(functional.silu(self.norm(hidden))), self.shape.fold)
        return result

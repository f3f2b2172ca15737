"""StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958) in plain PyTorch: any resolution, any number of channels.

Names of layers are those of the PyTorch port in which DeltaEdit, e4e and StyleCLIP share their generators (``g_ema``),
so that its tables load as they are. Two things are written otherwise, with the same result: a modulated convolution
multiplies its input by the style and its output by the demodulation factor, rather than making one kernel a picture;
and filters are torch's own convolutions, with no compiled operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from .style_code import StyleCode, StyleLayout

#: The low-pass filter of every change of resolution, in one direction.
FILTER = (1.0, 3.0, 3.0, 1.0)
SQRT2 = math.sqrt(2)
#: Learning rates of the mapping network's weights are this much smaller; their size is multiplied by it.
MAPPING_RATE = 0.01


def channels_of(resolution: int, multiplier: int = 2) -> int:
    """Channels at a resolution in the published networks; FFHQ's multiplier is 2: 512 up to 64 pixels, 32 at 1024."""
    return min(512, 16384 * multiplier // resolution)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope .2, times the square root of 2, which keeps the variance."""
    return functional.leaky_relu(x, 0.2) * SQRT2


def limited(x: Tensor, clamp: float | None) -> Tensor:
    """``x`` with its values held between ``-clamp`` and ``clamp``; None leaves them as they are."""
    return x if clamp is None else x.clamp(-clamp, clamp)


def low_pass(gain: float = 1.0) -> Tensor:
    """The filter ``[4, 4]``; its elements sum to ``gain``."""
    line = torch.tensor(FILTER)
    square = line[:, None] * line
    return square / square.sum() * gain


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros between pixels, a border of zeros, a filter, every ``down``-th pixel kept.

    Args:
        x: ``[B, C, H, W]``.
        kernel: ``[k, k]``; convolved with, so flipped against what ``conv2d`` does.
        up: each pixel becomes ``up`` in both directions, the others 0.
        pad: pixels before and after, in both directions; negative ones crop.
    """
    batch, channels, height, width = x.shape
    if up > 1:
        spread = x.new_zeros(batch, channels, height, up, width, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.reshape(batch, channels, height * up, width * up)
    x = functional.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    weight = kernel.flip(0, 1).to(x)[None, None].expand(channels, 1, -1, -1)
    return functional.conv2d(x, weight, stride=down, groups=channels)


def normal(*shape: int) -> Tensor:
    """Numbers of a normal distribution; on the meta device, where a first draw costs seconds of imports, none."""
    empty = torch.empty(*shape)
    return empty if empty.is_meta else torch.randn(*shape)


class EqualLinear(nn.Module):
    """A linear layer whose weight is stored with unit variance and scaled when used (equalised learning rate).

    Args:
        bias: value that the bias starts from.
        rate: weights and bias are multiplied by it.
        activate: a :func:`leaky` follows.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(normal(outputs, inputs).div_(rate))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate, self.activate = rate / math.sqrt(inputs), rate, activate

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` -> ``[..., outputs]``."""
        x = functional.linear(x, self.weight * self.scale, self.bias * self.rate)
        return leaky(x) if self.activate else x


class PixelNorm(nn.Module):
    """Divides by the root mean square over one dimension."""

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * (x.square().mean(self.dim, keepdim=True) + 1e-8).rsqrt()


class Blur(nn.Module):
    """The low-pass filter over a feature map that is one pixel too large on each side of the kernel."""

    kernel: Tensor

    def __init__(self, gain: float, pad: tuple[int, int]):
        super().__init__()
        self.register_buffer("kernel", low_pass(gain))
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same, filtered and cropped by the padding."""
        return upfirdn2d(x, self.kernel, pad=self.pad)


class Upsample(nn.Module):
    """Twice the height and width, smoothly."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", low_pass(4.0))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, 2H, 2W]``."""
        return upfirdn2d(x, self.kernel, up=2, pad=(2, 1))


class ModulatedConv(nn.Module):
    """A convolution whose input channels are multiplied by a style, and whose output is scaled back to unit variance.

    Args:
        style_dim: of W; 0 leaves the affine layer out.
        up: the result has twice the height and width.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, style_dim: int, *, up: bool = False, demodulate: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, size, size))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.scale, self.padding = 1 / math.sqrt(inputs * size * size), size // 2
        self.up, self.demodulate = up, demodulate
        if up:
            self.blur = Blur(4.0, (1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """``x [B, inputs, H, W]``, ``style [B, inputs]`` -> ``[B, outputs, H, W]`` (twice the size when ``up``)."""
        weight = self.weight[0] * self.scale
        x = x * style[:, :, None, None]
        if self.up:
            x = self.blur(functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = functional.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            power = style.square() @ weight.square().sum((2, 3)).T
            x = x * (power + 1e-8).rsqrt()[:, :, None, None]
        return x


class Noise(nn.Module):
    """How strongly a layer's noise picture shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Bias(nn.Module):
    """A layer's bias, under the name that the published files give it."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False, clamp: float | None = None):
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up=up)
        self.noise = Noise()
        self.activate = Bias(outputs)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """``noise [1 or B, 1, H, W]`` of the result's size."""
        added = noise * self.noise.weight + self.activate.bias[:, None, None]
        return limited(leaky(self.conv(x, style) + added), self.clamp)


class ToRGB(nn.Module):
    """The colour that a resolution adds to the picture of the one below."""

    def __init__(self, inputs: int, style_dim: int, up: bool = True, clamp: float | None = None):
        super().__init__()
        if up:
            self.upsample = Upsample()
        self.up, self.clamp = up, clamp
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, below: Tensor | None) -> Tensor:
        """``below [B, 3, H/2, W/2]`` -> ``[B, 3, H, W]``."""
        picture = limited(self.conv(x, style) + self.bias, self.clamp)
        return picture if below is None else picture + self.upsample(below)


class Constant(nn.Module):
    """The 4-pixel map that every picture starts from."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleGAN2(nn.Module):
    """A generator.

    Args:
        size: pixels of a side; a power of 2 from 8 on.
        channels: resolution -> channels, from 4 to ``size``; None: FFHQ's.
        style_dim: of Z, W and each row of W+.
        mapping_layers: of the network from Z to W.
        clamp: no layer gives values beyond it (256 in networks trained for half precision); None: no limit.

    Attributes:
        identity: names the generator and its weights; style codes carry it.
        layout: of its style space.
        w_mean: mean of W ``[style_dim]``, towards which truncation pulls; NaN until known.
    """

    w_mean: Tensor

    def __init__(
        self,
        size: int,
        channels: Mapping[int, int] | None = None,
        style_dim: int = 512,
        mapping_layers: int = 8,
        clamp: float | None = None,
    ):
        super().__init__()
        if size < 8 or size & (size - 1):
            raise EditingError(f"A StyleGAN2 of {size} pixels does not exist; the side is a power of 2 from 8 on.")
        sides = [2**power for power in range(2, size.bit_length())]
        widths = {side: channels_of(side) for side in sides} if channels is None else dict(channels)
        if sorted(widths) != sides:
            raise EditingError(
                f"The channels of a StyleGAN2 of {size} pixels must be given for {sides}, not {sorted(widths)}."
            )
        self.size, self.style_dim, self.widths, self.identity = size, style_dim, widths, ""
        self.mapping_layers, self.clamp = mapping_layers, clamp
        layers = [EqualLinear(style_dim, style_dim, rate=MAPPING_RATE, activate=True) for _ in range(mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = Constant(widths[4])
        self.conv1 = StyledConv(widths[4], widths[4], style_dim, clamp=clamp)
        self.to_rgb1 = ToRGB(widths[4], style_dim, up=False, clamp=clamp)
        convs, rgbs = [], []
        for side in sides[1:]:
            convs += [
                StyledConv(widths[side // 2], widths[side], style_dim, up=True, clamp=clamp),
                StyledConv(widths[side], widths[side], style_dim, clamp=clamp),
            ]
            rgbs.append(ToRGB(widths[side], style_dim, clamp=clamp))
        self.convs, self.to_rgbs = nn.ModuleList(convs), nn.ModuleList(rgbs)
        self.noises = nn.Module()
        resolutions = [4, *(side for side in sides[1:] for _ in range(2))]
        for index, side in enumerate(resolutions):
            self.noises.register_buffer(f"noise_{index}", torch.randn(1, 1, side, side))
        self.register_buffer("w_mean", torch.full((style_dim,), math.nan), persistent=False)
        conv_widths = [layer.conv.weight.shape[2] for layer in self._convs()]
        rgb_widths = [layer.conv.weight.shape[2] for layer in self._rgbs()]
        self.layout = StyleLayout(
            tuple(zip(resolutions, conv_widths, strict=True)), tuple(zip(sides, rgb_widths, strict=True))
        )

    def _convs(self) -> list[StyledConv]:
        return [self.conv1, *self.convs]  # type: ignore[list-item]

    def _rgbs(self) -> list[ToRGB]:
        return [self.to_rgb1, *self.to_rgbs]  # type: ignore[list-item]

    def map(self, z: Tensor) -> Tensor:
        """``z [B, style_dim]`` -> W ``[B, style_dim]``."""
        w: Tensor = self.style(z)
        return w

    @torch.no_grad()
    def mean_w(self, samples: int = 10_000) -> Tensor:
        """The mean of W ``[style_dim]``: as stored with the weights, else over seeded samples, then kept."""
        if self.w_mean.isnan().any():
            seeded = torch.Generator().manual_seed(0)
            z = torch.randn(samples, self.style_dim, generator=seeded).to(self.w_mean)
            self.w_mean.copy_(self.map(z).mean(0))
        return self.w_mean

    def sample_w_plus(self, count: int, seed: int, truncation: float = 0.7) -> Tensor:
        """Seeded random W+ ``[count, rows, style_dim]``.

        Args:
            truncation: 1 samples freely, 0 gives the mean face every time; between them variety is traded for quality
                (Karras et al. 2019, appendix B).
        """
        z = torch.randn(count, self.style_dim, generator=torch.Generator().manual_seed(seed)).to(self.w_mean)
        w = self.map(z)
        if truncation != 1:
            w = self.mean_w().lerp(w, truncation)
        return w[:, None].repeat(1, self.layout.rows, 1)

    def styles(self, w_plus: Tensor) -> StyleCode:
        """The style code of W+ ``[B, rows, style_dim]``.

        Row 0 drives the first convolution, 1 the first colour layer; each resolution after that takes two rows for its
        convolutions, and its colour layer shares the next resolution's first.
        """
        rows = self.layout.rows
        if w_plus.ndim != 3 or tuple(w_plus.shape[1:]) != (rows, self.style_dim):
            raise EditingError(
                f"The W+ code has shape {list(w_plus.shape)}; this generator needs [batch, {rows}, {self.style_dim}]."
            )
        convs = [layer.conv.modulation(w_plus[:, row]) for row, layer in enumerate(self._convs())]
        rgbs = [layer.conv.modulation(w_plus[:, 2 * row + 1]) for row, layer in enumerate(self._rgbs())]
        return StyleCode(self.layout, torch.cat(convs, 1), torch.cat(rgbs, 1), self.identity, w_plus)

    def check(self, code: StyleCode) -> None:
        """Raise :class:`EditingError` when a style code belongs to another generator."""
        if code.layout != self.layout or code.generator != self.identity:
            raise EditingError(
                f"The style code was made by another generator ({code.layout.width} channels; this one has "
                f"{self.layout.width}); make it with this one's StyleGAN2 Generate or Invert to Style Code."
            )

    def noise(self, seed: int | None = None) -> list[Tensor]:
        """The layers' noise pictures: the stored ones, or others of a seed."""
        stored = [getattr(self.noises, f"noise_{index}") for index in range(len(self.layout.convs))]
        if seed is None:
            return stored
        seeded = torch.Generator().manual_seed(seed)
        return [torch.randn(picture.shape, generator=seeded).to(picture) for picture in stored]

    def describe(self) -> str:
        """Size and style space in a line."""
        levels = ", ".join(map(str, self.layout.level_widths))
        return (
            f"{self.size} x {self.size} pixels, W of {self.style_dim}, a style space of {self.layout.width} channels "
            f"(coarse, medium, fine: {levels}) and {sum(self.layout.rgb_widths)} of colour layers"
        )

    def synthesize(self, code: StyleCode, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Pictures ``[B, 3, size, size]`` of about -1..1 from a style code (Eq. 7).

        Args:
            noise: of :meth:`noise`; None: the stored pictures.
        """
        noise = self.noise() if noise is None else noise
        conv_styles, rgb_styles = code.conv_styles(), code.rgb_styles()
        x = self.input.input.expand(len(code), -1, -1, -1).contiguous(memory_format=torch.channels_last)  # faster
        x = self.conv1(x, conv_styles[0], noise[0])
        picture: Tensor = self.to_rgb1(x, rgb_styles[0], None)
        for level, to_rgb in enumerate(self.to_rgbs):
            for index in (2 * level + 1, 2 * level + 2):
                x = self.convs[index - 1](x, conv_styles[index], noise[index])
            picture = to_rgb(x, rgb_styles[level + 1], picture)
        return picture

    def forward(self, w_plus: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """W+ ``[B, rows, style_dim]`` -> pictures ``[B, 3, size, size]``."""
        return self.synthesize(self.styles(w_plus), noise)

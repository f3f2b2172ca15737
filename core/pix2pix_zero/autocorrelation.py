"""How far a noise map is from white Gaussian noise, and which way is back: pix2pix-zero's losses and gradients.

pix2pix-zero (https://arxiv.org/abs/2302.03027), section 3.1: ``L_auto = L_pair + lambda * L_KL``. Both gradients are
closed forms, so no graph is built. For one channel with N pixels, ``R(d) = mean(noise * roll(noise, d))`` is the
circular autocorrelation at shift d along one axis; the pair loss (Eq. 3, squared as the text says) sums ``R(d)^2`` over
channels, both axes and the levels of a pyramid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

COARSEST = 8
#: Gain of a 2x2 average that keeps the variance of white noise (the paper's "multiply by 2").
UNIT_VARIANCE_GAIN = 2.0
#: Gives the shifts of one level, ``[C]`` each for rows and columns, from (channels, height, width); see
#: :func:`pair_loss`.
Shifts = Callable[[int, int, int], tuple[Tensor, Tensor]]


def pyramid_levels(height: int, width: int) -> int:
    """Number of pyramid levels of a noise map: it is halved while both sides are even and their halves at least 8.

    64x64 gives the paper's four levels (64, 32, 16, 8), a 16x16 latent two, anything below 16 one.
    """
    levels = 1
    while height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= COARSEST:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels


def coarser(noise: Tensor, gain: float = UNIT_VARIANCE_GAIN) -> Tensor:
    """The next pyramid level ``[B, C, H/2, W/2]``: 2x2 mean times ``gain``."""
    return functional.avg_pool2d(noise, 2) * gain


def _spread(gradient: Tensor, gain: float) -> Tensor:
    """Adjoint of :func:`coarser`."""
    return gradient.repeat_interleave(2, -1).repeat_interleave(2, -2) * (gain / 4)


def pair_loss(noise: Tensor, shifts: Shifts | None = None, gain: float = UNIT_VARIANCE_GAIN) -> tuple[Tensor, Tensor]:
    """Pair loss ``[B]`` of noise maps ``[B, C, H, W]`` and its gradient ``[B, C, H, W]``.

    Args:
        shifts: draws one shift for every level, channel and axis; None takes the mean over all shifts 1..S-1 of each
            axis (by FFT), which is what uniformly random shifts give on average.
        gain: of the pyramid, 2 in the paper, 1 in the released code.
    """
    levels = [noise]
    for _ in range(pyramid_levels(*noise.shape[-2:]) - 1):
        levels.append(coarser(levels[-1], gain))
    loss = torch.zeros(len(noise), dtype=noise.dtype, device=noise.device)
    gradient = torch.zeros_like(levels[-1])
    for depth, level in reversed(list(enumerate(levels))):
        if depth < len(levels) - 1:
            gradient = _spread(gradient, gain)
        drawn = (None, None) if shifts is None else shifts(*level.shape[1:])
        for axis, shift in zip((-2, -1), drawn, strict=True):
            value, slope = _all_shifts(level, axis) if shift is None else _one_shift(level, axis, shift)
            loss, gradient = loss + value, gradient + slope
    return loss, gradient


def _one_shift(level: Tensor, axis: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_c R_c(shift_c)^2`` and gradient, for one shift ``[C]`` per channel."""
    size, pixels = level.shape[axis], level.shape[-2] * level.shape[-1]
    shape = [1, -1, 1, 1]
    shape[axis] = size
    position = torch.arange(size, device=level.device)

    def rolled(by: Tensor) -> Tensor:
        index = (position - by.to(level.device)[:, None]) % size
        return level.take_along_dim(index.view(shape).expand_as(level), axis)

    forth, back = rolled(shift), rolled(-shift)
    correlation = (level * forth).mean((-2, -1), keepdim=True)
    return correlation.square().sum((1, 2, 3)), 2 * correlation * (forth + back) / pixels


def _all_shifts(level: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean over shifts 1..S-1 of ``sum_c R_c(shift)^2``, and gradient, by the Wiener-Khinchin theorem."""
    size, pixels = level.shape[axis], level.shape[-2] * level.shape[-1]
    if size == 1:
        return torch.zeros(len(level), dtype=level.dtype, device=level.device), torch.zeros_like(level)
    other = -1 if axis == -2 else -2
    spectrum = torch.fft.rfft(level, dim=axis)
    power = spectrum.abs().square().sum(other, keepdim=True)
    correlation = torch.fft.irfft(power, n=size, dim=axis) / pixels
    correlation.select(axis, 0).zero_()
    loss = correlation.square().sum((1, 2, 3)) / (size - 1)
    smeared = torch.fft.irfft(torch.fft.rfft(correlation, dim=axis) * spectrum, n=size, dim=axis)
    return loss, smeared * (4 / (pixels * (size - 1)))


def kl_loss(noise: Tensor, epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    """``var + mean^2 - 1 - log(var + epsilon)`` of each noise map ``[B, C, H, W]``: loss ``[B]`` and gradient.

    Twice the Kullback-Leibler divergence of N(mean, var) from N(0, 1), over all elements of a map.
    """
    count = noise[0].numel()
    mean = noise.mean((1, 2, 3), keepdim=True)
    variance = (noise - mean).square().mean((1, 2, 3), keepdim=True)
    loss = variance + mean.square() - 1 - (variance + epsilon).log()
    gradient = 2 * (noise - mean) / count * (1 - 1 / (variance + epsilon)) + 2 * mean / count
    return loss.flatten(), gradient


def random_shifts(generator: torch.Generator) -> Shifts:
    """A uniform shift in 1..S-1 for every channel and axis (paper, section 3.1)."""

    def draw(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        down = torch.randint(1, max(height, 2), (channels,), generator=generator)
        across = torch.randint(1, max(width, 2), (channels,), generator=generator)
        return down, across

    return draw


def released_shifts(generator: torch.Generator) -> Shifts:
    """As the released code draws: one shift in 1..H/2-1 a channel, used along both axes."""

    def draw(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        shift = torch.randint(1, max(height // 2, 2), (channels,), generator=generator)
        return shift, shift

    return draw

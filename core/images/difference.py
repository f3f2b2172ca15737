"""What differs between two pictures: how much at every pixel, which part counts as changed, and where that is in words.

There is one such map in the pack; searches and reports all measure change by it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from .heat import under_heat

SMOOTHING = 0.01  # standard deviation of the smoothing before the threshold, as a share of the shorter side
# The threshold, in units of the map, lies between these whatever the picture does. VISIBLE (16 of 255 levels) is seen
# side by side; at 10 three times as much of the loss of the demo's VAE counts. STRONG nobody overlooks.
VISIBLE, STRONG = 16 / 255, 24 / 255
RESTLESS = 3.0  # standard deviations over its usual change that a pixel of a restless picture must reach
SIGMA_OF_MAD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation

MOST = 0.6  # share of the picture from which on a change is everywhere
WIDE = 0.55  # share of a side over which the middle 80 % of a change stretch when it has no one place there
EDGE = 0.125  # share of a side that is its edge
COLUMNS, ROWS = ("left", "middle", "right"), ("upper", "middle", "lower")

FULL_HEAT = 0.1  # least difference that is drawn in full heat, so that a still picture does not glow
OUTLINE = (40, 90, 255)  # of the mask, red, green and blue in 0..255


def difference_map(after: Tensor, before: Tensor) -> Tensor:
    """How much every pixel differs: the mean over the channels of the absolute difference.

    Args:
        after, before: ``[B, C, H, W]`` in 0..1, in any order.

    Returns:
        ``[B, H, W]`` in 0..1.

    Raises:
        EditingError: pictures of two sizes.
    """
    if after.shape[-2:] != before.shape[-2:]:
        raise EditingError(
            f"The pictures are {after.shape[-1]} x {after.shape[-2]} and {before.shape[-1]} x {before.shape[-2]} "
            "pixels; scale or crop one to the other's size."
        )
    return (after - before).abs().mean(1)


def smoothed(difference: Tensor) -> Tensor:
    """``difference [B, H, W]`` under a Gaussian of 1 % of the shorter side, at least one pixel; borders are continued.

    Single pixels say little: a picture that went through a VAE differs a little at every edge it shows.
    """
    sigma = max(1.0, SMOOTHING * min(difference.shape[-2:]))
    reach = round(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=difference.device)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    field = functional.pad(difference.float()[:, None], (reach,) * 4, mode="replicate")
    field = functional.conv2d(field, weights.reshape(1, 1, -1, 1))
    return functional.conv2d(field, weights.reshape(1, 1, 1, -1))[:, 0]


def changed_region(difference: Tensor) -> Tensor:
    """Which pixels count as changed, ``[B, H, W]`` bool: those whose smoothed difference exceeds a threshold.

    The threshold is :data:`VISIBLE`. Where a picture is restless all over (a VAE's loss, grain) it is the median of the
    smoothed difference plus three robust standard deviations (1.4826 times the median absolute deviation), so that only
    what stands out counts; but never over :data:`STRONG`. Where more than half of the picture changed visibly the
    median is no noise but the change itself, and the threshold stays at :data:`VISIBLE`.

    Args:
        difference: see :func:`difference_map`.
    """
    smooth = smoothed(difference)
    median = smooth.flatten(1).median(1).values[:, None, None]
    spread = SIGMA_OF_MAD * (smooth - median).abs().flatten(1).median(1).values[:, None, None]
    level = (median + RESTLESS * spread).clamp(VISIBLE, STRONG)
    return smooth > torch.where(median > VISIBLE, torch.full_like(level, VISIBLE), level)


def place(change: Tensor) -> str:
    """Where a change is, in words that follow a verb: "in the lower middle", "at the left edge", "all over".

    Args:
        change: ``[H, W]``, how much every pixel changed, 0 where it did not; not 0 everywhere.
    """
    if float((change > 0).float().mean()) >= MOST:
        return "all over the picture"
    (top, row, bottom), (left, column, right) = (_reach(change.double().sum(1 - axis)) for axis in (0, 1))
    tall, wide = bottom - top > WIDE, right - left > WIDE
    third_row, third_column = (min(int(3 * at), 2) for at in (row, column))
    if tall and wide:
        return "in many places"
    if wide:
        return f"across the {('upper part', 'middle', 'lower part')[third_row]}"
    if tall:
        return f"down the {('left side', 'middle', 'right side')[third_column]}"
    edge = " ".join(
        name
        for name, there in (
            ("upper", bottom <= EDGE),
            ("lower", top >= 1 - EDGE),
            ("left", right <= EDGE),
            ("right", left >= 1 - EDGE),
        )
        if there
    )
    if edge:
        return f"in the {edge} corner" if " " in edge else f"at the {edge} edge"
    if third_row == 1:
        return "in the middle" if third_column == 1 else f"in the {COLUMNS[third_column]} middle"
    return f"in the {ROWS[third_row]} {COLUMNS[third_column]}"


def _reach(profile: Tensor) -> tuple[float, float, float]:
    """Where 10, 50 and 90 % of ``profile [n]`` lie before, as shares of its length."""
    sums = profile.cumsum(0)
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=sums.dtype, device=sums.device)
    cells = torch.searchsorted(sums, shares * sums[-1])
    before = sums[cells] - profile[cells]
    first, middle, last = ((cells + (shares * sums[-1] - before) / profile[cells]) / len(profile)).tolist()
    return first, middle, last


def full_heat(difference: Tensor) -> float:
    """The difference that :func:`difference_picture` draws in full heat: the greatest smoothed one, at least
    :data:`FULL_HEAT`."""
    return max(FULL_HEAT, float(smoothed(difference).amax()))


def difference_picture(before: Tensor, difference: Tensor, full: float, mask: Tensor | None = None) -> Tensor:
    """The map as heat over a pale grey copy of the picture, ``[1, 3, H, W]`` in 0..1.

    Args:
        before: ``[1, 3, H, W]`` in 0..1.
        difference: its map ``[H, W]``.
        full: the difference that is drawn in full heat.
        mask: ``[H, W]``; the outline of its part above 0.5 is drawn in blue.
    """
    grey = before.detach().float().cpu().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    drawn = under_heat(0.35 + 0.6 * grey, (difference.detach().float().cpu() / full).clamp(0, 1))
    if mask is None:
        return drawn
    inside = (mask.detach().float().cpu() > 0.5).float()[None, None]
    # A pixel of the outline is inside and has a neighbour outside; beyond the border lies more of the same.
    outline = inside * functional.max_pool2d(functional.pad(1 - inside, (1,) * 4, mode="replicate"), 3, stride=1)
    return torch.where(outline > 0, torch.tensor(OUTLINE).reshape(1, 3, 1, 1) / 255, drawn)

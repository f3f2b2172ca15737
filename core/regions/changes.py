"""Where an edit acts: places and boxes found on how strongly the text pulls at the image. Ours, the paper has attention
only.

An editor that keeps the layout (along an inversion) can tell what the text asks it to change, and attention does not
know the text: "hair" and "background" are rarely what a vision model looks at. The boxes frame the change, so they need
not be square.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..denoiser import check_finite
from .proposals import DEFAULT_SIZES, Anchor, Box, Proposals, tight, unique

#: Places on the change by default, beside those on the attention.
DEFAULT_CHANGES = 2
# In cells of the map, whose shorter side has at most MAP_SIDE: found on the demo model.
MAP_SIDE = 128
BLUR = 2.0  # standard deviation
GAP = 4  # parts of a region may be so far apart
EDGE = 2  # a region that comes so near to the image's border reaches it: blurring weakens it there
APART = 16  # two places are further apart in a row or a column
HIGHEST, LOWEST = 0.8, 0.1  # range of the levels, as shares of the place's own change
FLOOR = 0.3  # share of the strongest change below which a change does not count when a box's tightness is measured


def with_changes(proposals: Proposals, change: Tensor, count: int) -> Proposals:
    """``proposals`` with further anchors where an edit changed the image most, and with that change; as they are where
    there is none.

    An anchor is a peak of the blurred change. Its M boxes are the frames of the region around it in which the change
    exceeds M falling shares of the peak, the smallest box first like those of the other anchors.

    Args:
        change: ``[h, w]``, 0 or more, of any size: how much the edit acts there.
        count: anchors to add; fewer where the change has no further peak that reaches a tenth of the first.

    Raises:
        EditingError: see :func:`~..denoiser.check_finite`.
    """
    check_finite(change, "What the edit changed")
    change = change.detach().float().cpu()[None, None]
    shown = functional.interpolate(change, proposals.image_size, mode="bilinear")[0, 0] * proposals.allowed
    if not shown.any():
        return proposals
    height, width = proposals.image_size
    scale = min(1.0, MAP_SIDE / min(height, width))
    grid = (max(1, round(height * scale)), max(1, round(width * scale)))
    strength = blurred(_on_grid(shown, grid)) * (_on_grid(proposals.allowed.float(), grid) >= 0.5)
    if not strength.any():  # all of the change lies in cells that the mask hardly touches
        return proposals
    anchors, rows = list(proposals.anchors), list(proposals.boxes)
    slots = len(rows[0])
    for row, column in _peaks(strength, count):
        frames = [_region_frame(strength, row, column, share, proposals.image_size) for share in shares(slots)]
        boxes = unique([tight(frame, proposals.allowed) for frame in frames])
        x, y = (column + 0.5) * width / grid[1], (row + 0.5) * height / grid[0]
        anchors.append(Anchor(row, column, x, y, float(strength[row, column]), "change"))
        rows.append(boxes)
    strong = (strength - FLOOR * strength.max()).clamp(min=0)
    counted = (
        functional.interpolate(strong[None, None], proposals.image_size, mode="bilinear")[0, 0] * proposals.allowed
    )
    return Proposals(proposals.image_size, tuple(anchors), tuple(rows), proposals.allowed, counted)


def located(change: Tensor, allowed: Tensor, places: int = DEFAULT_CHANGES) -> Proposals:
    """Boxes that frame where an edit acts, and how tight any box is (:meth:`~.proposals.Proposals.tightness`); no box
    where it acts nowhere.

    Args:
        change: see :func:`with_changes`.
        allowed: ``[H, W]`` bool, pixels that may change.
        places: peaks of the change to frame.

    Raises:
        EditingError: see :func:`~..denoiser.check_finite`.
    """
    size = (allowed.shape[0], allowed.shape[1])
    nowhere = Anchor(0, 0, 0.0, 0.0, 0.0)
    return with_changes(Proposals(size, (nowhere,), ((None,) * len(DEFAULT_SIZES),), allowed), change, places)


def shares(count: int) -> list[float]:
    """``count`` falling shares of a peak between :data:`HIGHEST` and :data:`LOWEST`, evenly by their logarithm."""
    return [HIGHEST * (LOWEST / HIGHEST) ** ((number + 0.5) / count) for number in range(count)]


def blurred(field: Tensor) -> Tensor:
    """``field [h, w]`` under a Gaussian of :data:`BLUR` cells; nothing lies beyond its border."""
    reach = round(3 * BLUR)
    weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * BLUR**2))
    weights = weights / weights.sum()
    field = functional.conv2d(field[None, None], weights.reshape(1, 1, -1, 1), padding=(reach, 0))
    return functional.conv2d(field, weights.reshape(1, 1, 1, -1), padding=(0, reach))[0, 0]


def _on_grid(field: Tensor, grid: tuple[int, int]) -> Tensor:
    return functional.interpolate(field[None, None], grid, mode="area")[0, 0]


def _peaks(strength: Tensor, count: int) -> list[tuple[int, int]]:
    left = strength.clone()
    found: list[tuple[int, int]] = []
    least = LOWEST * float(strength.max())
    while len(found) < count and float(left.max()) > max(least, 0.0):
        row, column = divmod(int(left.argmax()), left.shape[1])
        found.append((row, column))
        left[max(0, row - APART) : row + APART + 1, max(0, column - APART) : column + APART + 1] = 0
    return found


def _region_frame(strength: Tensor, row: int, column: int, share: float, image_size: tuple[int, int]) -> Box:
    """The frame in pixels of the cells that hold ``share`` of the peak's strength and hang together with it, gaps
    allowed."""
    strong = (strength >= share * strength[row, column]).float()[None, None]
    region = torch.zeros_like(strong)
    region[0, 0, row, column] = 1
    while True:
        grown = functional.max_pool2d(region, 2 * GAP + 1, stride=1, padding=GAP) * strong
        if torch.equal(grown, region):
            break
        region = grown
    (height, width), (high, wide) = image_size, strength.shape
    (first_row, past_row), (first_column, past_column) = (_reach(region[0, 0].any(1 - side)) for side in (0, 1))
    left, top = first_column * width // wide, first_row * height // high
    right, bottom = -(-past_column * width // wide), -(-past_row * height // high)
    return Box(left, top, right - left, bottom - top)


def _reach(taken: Tensor) -> tuple[int, int]:
    """First and past the last cell of ``taken [n]``, bool; to the border where that is near."""
    cells = taken.nonzero().flatten().tolist()
    first, past = cells[0], cells[-1] + 1
    return 0 if first <= EDGE else first, len(taken) if len(taken) - past <= EDGE else past

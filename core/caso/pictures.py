"""The pictures of a folder, as a model wants to learn from them: squares of one size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..classifiers.pictures import picture_files
from ..errors import EditingError
from ..pictures import read_picture


def square_pictures(folder: str | Path, size: int, callback: Callable[[int, int], None] | None = None) -> tuple[Tensor, list[str]]:
    """All readable pictures of a folder, ``([N, 3, size, size] in 0..1, names of the unreadable)``; aspect kept, the centre cut out.

    Args:
        size: side in pixels, a multiple of 8.
        callback: told ``(files done, files in all)``; an exception it raises ends the reading.

    Raises:
        EditingError: no such folder, not one readable picture in it, or an unusable size.
    """
    if size < 8 or size % 8:
        raise EditingError(f"The size is {size}; use a positive multiple of 8.")
    files = picture_files(folder)
    pictures, skipped = [], []
    for number, path in enumerate(files):
        try:
            picture, _ = read_picture(path, size, multiple=1)
            top, left = ((side - size) // 2 for side in picture.shape[-2:])
            pictures.append(picture[..., top : top + size, left : left + size])
        except EditingError:
            skipped.append(path.name)
        if callback is not None:
            callback(number + 1, len(files))
    if not pictures:
        raise EditingError(
            f"None of the {len(files)} pictures in the folder {Path(folder).name!r} can be read; use PNG, JPEG or WebP files."
        )
    return torch.cat(pictures), skipped

"""The pictures a trainer learns from: a folder of the host's input folder, or a wired batch."""

from __future__ import annotations

from torch import Tensor

from ...core.errors import EditingError
from ...core.images.files import square_pictures
from ..host.folders import input_folder
from ..host.progress import counting_bar


def gathered(folder: str, images: Tensor | None, image_size: int) -> tuple[Tensor, list[str]]:
    """``([N, H, W, 3], names of unreadable files)`` of the folder or the batch.

    Raises:
        EditingError: neither, both, or whatever is wrong with them.
    """
    if images is not None:
        if folder.strip():
            raise EditingError("Both a folder and images are given; empty the folder or unwire the images.")
        return images[..., :3].float(), []
    if not folder.strip():
        raise EditingError("There are no pictures to learn from; name a folder of pictures, or wire images.")
    pictures, skipped = square_pictures(input_folder(folder.strip()), image_size, counting_bar())
    return pictures.movedim(1, -1), skipped

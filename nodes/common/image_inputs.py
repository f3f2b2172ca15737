"""Pictures as the core wants them; and those a trainer learns from: a folder of the host's inputs, or a wired batch."""

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


def channels_first(images: Tensor) -> Tensor:
    """IMAGE ``[B, H, W, C]`` as ``[B, 3, H, W]``: transparency is dropped, grey becomes red, green and blue."""
    pictures = images[..., :3].movedim(-1, 1).float()
    return pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures

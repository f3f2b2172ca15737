"""Pictures at another size: squares for a network, and an edit back at the size of the photo it was made from."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..errors import EditingError

#: Sides of a latent pixel, in pixels: stock VAE Encode cuts a picture to whole ones, from the middle.
CELLS = (8, 16, 32, 64)
#: Largest difference of two shapes, width by height, that rounding to whole latent pixels explains.
ROUNDING = 0.06


def is_cut(images: Tensor, size: tuple[int, int]) -> bool:
    """Whether ``size`` is what stock VAE Encode leaves of the pictures ``[B, C, H, W]``, and less than all."""
    sides = (images.shape[-2], images.shape[-1])
    return sides != size and any(all(a // cell * cell == b for a, b in zip(sides, size, strict=True)) for cell in CELLS)


def cut(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of ``images [B, C, H, W]``, as stock VAE Encode cuts it."""
    top, left = ((side - wanted) // 2 for side, wanted in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def at_photo_size(photo: Tensor, edited: Tensor) -> Tensor:
    """``edited [B, C, h, w]`` at the height and width of ``photo [B or 1, C, H, W]``, both in 0..1.

    What stock VAE Encode cut off is put back: the photo's own margin, changed as the nearest edited pixel was changed,
    so that no frame of the old colour stays around an edit that reaches the border. A picture that was scaled is scaled
    back.

    Raises:
        EditingError: two shapes of picture, or a batch that does not match.
    """
    if len(photo) not in (1, len(edited)):
        raise EditingError(
            f"There are {len(photo)} photos for {len(edited)} edited pictures; wire one photo, or one for each."
        )
    size, own = (edited.shape[-2], edited.shape[-1]), (photo.shape[-2], photo.shape[-1])
    if size == own:
        return edited
    if is_cut(photo, size):
        top, left = ((side - inner) // 2 for side, inner in zip(own, size, strict=True))
        below, right = own[0] - size[0] - top, own[1] - size[1] - left
        change = functional.pad(edited - cut(photo, size), (left, right, top, below), mode="replicate")
        whole = (photo + change).clamp(0, 1)
        whole[..., top : top + size[0], left : left + size[1]] = edited
        return whole
    if abs((size[1] * own[0]) / (size[0] * own[1]) - 1) > ROUNDING:
        raise EditingError(
            f"The edited picture is {size[1]} x {size[0]} and the photo {own[1]} x {own[0]}, which is another shape; "
            "scale the photo without cropping before it is edited, or wire the cropped picture as the photo."
        )
    return functional.interpolate(edited, own, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def resized(pictures: Tensor, side: int, black: float = 0.0) -> Tensor:
    """``pictures [B, 3, H, W]`` in 0..1 at another side: means where whole pixels fall together, bicubic otherwise.

    Args:
        black: the lowest value; -1 for pictures in -1..1.
    """
    if pictures.shape[-1] % side == 0:
        return functional.interpolate(pictures, size=(side, side), mode="area")
    return functional.interpolate(pictures, size=(side, side), mode="bicubic", antialias=True).clamp(black, 1)

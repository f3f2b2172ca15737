"""What the nodes that look for a place share: inputs, and their values as the core takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.images.contact_sheet import to_picture
from ...core.regions.cache import RenderCache
from ...core.regions.proposals import DEFAULT_SIZES
from ..common.trajectory_edit import edit_mask
from ..host.progress import PICTURE_SIDE, StoppableBar
from ..host.schema import io, widget

CATEGORY = "semantic editing/regions"
#: Renders and painted latents of this process: a stopped or enlarged search goes on where it was.
CACHE = RenderCache()
MOST_SEED = 1 << 63


def box_inputs(only_exact: bool = True) -> list[Any]:
    """Which boxes there are around attended places."""
    told = "Only for exact: " if only_exact else ""
    return [
        widget(
            io.Int,
            "anchors",
            default=3,
            min=1,
            max=64,
            tooltip=f"{told}places to try, the patches that the vision model attends to most.",
        ),
        widget(
            io.String,
            "sizes",
            default=", ".join(f"{size:g}" for size in DEFAULT_SIZES),
            tooltip=f"{told}sides of the boxes at each place, up to 1 a fraction of the image's shorter side, above 1 "
            "pixels. Each is one more "
            "box to render.",
        ),
    ]


def numbers_in(text: str, name: str) -> tuple[float, ...]:
    """The numbers of a text such as "0.3, 0.5".

    Raises:
        EditingError: something else is in it.
    """
    try:
        return tuple(float(part) for part in text.replace(",", " ").replace(";", " ").split())
    except ValueError as error:
        raise EditingError(
            f"{name} is {text!r}; write numbers separated by commas, for example 0.3, 0.5, 0.8."
        ) from error


def pictures_of(images: Tensor) -> Tensor:
    """An IMAGE ``[B, H, W, C]`` as normal tensors ``[B, 3, H, W]`` in 0..1, without its transparency.

    Raises:
        EditingError: neither RGB nor RGBA.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise EditingError(f"The image has shape {list(images.shape)}; wire an RGB or RGBA image.")
    with torch.inference_mode(False):
        return images[..., :3].movedim(-1, 1).float().cpu().clone(memory_format=torch.contiguous_format)


def with_alpha(result: Tensor, image: Tensor) -> Tensor:
    """``result [B, H, W, 3]`` with the transparency that ``image`` has, if it has any."""
    if image.shape[-1] == 3:
        return result
    alpha = image[:1, ..., 3:] if len(image) != len(result) else image[..., 3:]
    return torch.cat([result, alpha.to(result).expand(len(result), -1, -1, -1)], -1)


def wanted_mask(mask: Tensor | None, mask_use: str) -> Tensor | None:
    """A wired MASK; None where it is empty and says what to leave out, which is then nothing.

    Raises:
        EditingError: it is empty and says where to edit.
    """
    empty = mask is not None and not bool((mask > 0).any())
    return None if empty and mask_use == "exclude" else edit_mask(mask)


def masks_of(mask: Tensor | None) -> list[Tensor | None]:
    """A MASK ``[H, W]`` or ``[B, H, W]`` as one for each picture; one None where there is none."""
    if mask is None:
        return [None]
    with torch.inference_mode(False):
        return list(mask.reshape(-1, *mask.shape[-2:]).float().cpu().clone())


def require_editor(editor: Any) -> Any:
    """``editor`` itself.

    Raises:
        EditingError: it is none.
    """
    if not hasattr(editor, "open"):
        raise EditingError(
            "There is no region editor; wire Region Inpaint Editor, Region Inversion Editor or Region Token Editor."
        )
    return editor


def show_box(bar: StoppableBar, done: int, total: int, edited: Tensor) -> None:
    """Move ``bar`` to box ``done`` of ``total`` and show its edit ``[1, 3, H, W]``, with every n-th pixel where it is
    larger than it is shown: to turn all of a large one into a picture takes longer than to make it."""
    step = max(1, max(edited.shape[-2:]) // PICTURE_SIDE)
    bar.show(done, total, to_picture(edited[0, :, ::step, ::step]))

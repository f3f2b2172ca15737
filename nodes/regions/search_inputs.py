"""Parts of Region Box Generator and Edit by Words: inputs, pictures and masks, stopping a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.images.contact_sheet import to_picture
from ...core.models.clip import ClipScorer
from ...core.models.vision_features import VisionFeatures
from ...core.regions.cache import RenderCache
from ...core.regions.proposals import DEFAULT_SIZES
from ...core.regions.search import Example, RegionSearch, SearchSettings, Watch
from ..common.sockets import ClipScorerType, VisionFeaturesType
from ..common.trajectory_edit import edit_mask
from ..host.progress import PICTURE_SIDE, StoppableBar
from ..host.schema import io, widget
from .editors import RegionEditor, RegionEditorType
from .search_settings import STOP

CATEGORY = "semantic editing/regions"
#: Renders of all searches of this process, so that the next one only adds.
CACHE = RenderCache()
MOST_SEED = 1 << 63


def model_inputs() -> list[Any]:
    """The models of a search."""
    return [
        widget(
            VisionFeaturesType,
            "vision_features",
            tooltip="Finds the places worth editing, from Load Vision Features (DINO is good).",
        ),
        widget(ClipScorerType, "clip_scorer", tooltip="Judges every edit against the texts, from Load CLIP Scorer."),
        widget(
            RegionEditorType,
            "region_editor",
            tooltip="Paints inside a box, from Region Inpaint Editor, Region Inversion Editor or Region Token "
            "Editor. Its prompt should "
            "say what the target text says.",
        ),
    ]


def box_inputs() -> list[Any]:
    """Which boxes there are."""
    return [
        widget(
            io.Int,
            "anchors",
            default=3,
            min=1,
            max=64,
            tooltip="Places to try: the patches that the vision model attends to most. The released code uses 9 side "
            "by side; with spread, "
            "3 already cover the objects at a third of the cost.",
        ),
        widget(
            io.String,
            "sizes",
            default=", ".join(f"{size:g}" for size in DEFAULT_SIZES),
            tooltip="Sides of the boxes at each place: up to 1 a fraction of the image's shorter side, above 1 "
            "pixels. Each is one more "
            "box to render.",
        ),
    ]


def pictures_of(images: Tensor) -> tuple[Tensor, str]:
    """An IMAGE ``[B, H, W, C]`` as normal tensors ``[B, 3, H, W]`` in 0..1, and a remark where something was left out.

    Raises:
        EditingError: neither RGB nor RGBA.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise EditingError(f"The image has shape {list(images.shape)}; wire an RGB or RGBA image.")
    with torch.inference_mode(False):
        pictures = images[..., :3].movedim(-1, 1).float().cpu().clone(memory_format=torch.contiguous_format)
    return pictures, "the image's transparency is not used" if images.shape[-1] == 4 else ""


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


def watching(bar: StoppableBar) -> Watch:
    """Moves ``bar`` with every box, and shows new renders."""

    def watch(done: int, total: int, render: Tensor | None) -> None:
        bar.show(done, total, None if render is None else to_picture(_shown(render)[0]))

    return watch


def _shown(render: Tensor) -> Tensor:
    """``render [1, 3, H, W]`` with every n-th pixel where it is larger than it is shown: to turn all of a large one
    into a picture takes longer than to make it."""
    step = max(1, max(render.shape[-2:]) // PICTURE_SIDE)
    return render[..., ::step, ::step]


class Stops:
    """Counts stopped runs. A node whose fingerprint this is runs again after one, though nothing that is wired to it
    changed."""

    def __init__(self) -> None:
        self.count = 0

    def settle(self, bar: StoppableBar, on_cancel: str, found: Callable[[], bool]) -> bool:
        """After a run: False when it was not stopped, True when it was and its result is to be used; else what stopped
        it is raised."""
        if bar.cancelled is None:
            return False
        if on_cancel == STOP or not found():
            bar.finish()
        self.count += 1
        return True


def searched(
    stops: Stops,
    on_cancel: str,
    example: Example,
    vision_features: VisionFeatures,
    clip_scorer: ClipScorer,
    region_editor: RegionEditor,
    settings: SearchSettings,
) -> tuple[RegionSearch, bool]:
    """The search for ``example``, and whether it was stopped and has what was found until then (:class:`Stops`)."""
    bar = StoppableBar()
    search = RegionSearch(example, vision_features, clip_scorer, region_editor.open, settings, CACHE, watching(bar))
    with bar.catching():
        search.run()
    return search, stops.settle(bar, on_cancel, lambda: bool(search.candidates()))

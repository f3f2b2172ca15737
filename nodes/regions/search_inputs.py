"""What Region Box Generator and Region Network Trainer share: inputs, their values as settings, stopping."""

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
from ...core.regions.network import RegionNetwork
from ...core.regions.proposals import DEFAULT_SIZES
from ...core.regions.rewards import LossWeights
from ...core.regions.search import Example, RegionSearch, SearchSettings, Watch
from ...core.regions.settings import LearningSettings
from ..common.sockets import ClipScorerType, VisionFeaturesType
from ..common.trajectory_edit import edit_mask
from ..host.progress import PICTURE_SIDE, StoppableBar
from ..host.schema import io, widget
from .editors import RegionEditor, RegionEditorType

CATEGORY = "semantic editing/regions"
KEEP, STOP = "use the best so far", "stop everything"
TIGHTEST = "tightest of the best"
WINNERS = {"best of each anchor": "anchors", "all": "all", TIGHTEST: "tightest"}
#: Renders of all searches of this process, so that the next one only adds.
CACHE = RenderCache()
#: Painted latents of all edits by words of this process: a stopped edit goes on where it was. 64 KiB a box of SD 1.5.
LATENTS = RenderCache(64 << 20)
MOST_SEED = 1 << 63
DEFAULTS = LearningSettings()


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


def advanced_box_inputs() -> list[Any]:
    """Rare widgets of the boxes."""
    return [
        widget(
            io.String,
            "aspect_ratios",
            default="1",
            advanced=True,
            tooltip="Width over height of the boxes: 1 is square, 2 wide, 0.5 tall. Each multiplies the number of "
            "boxes.",
        ),
        widget(
            io.Int,
            "spread",
            default=1,
            min=0,
            max=64,
            advanced=True,
            tooltip="Places are more than so many patches apart, so that they do not crowd on one spot. 0: no limit, "
            "as in the paper.",
        ),
    ]


def strategy_input(default: str, choices: tuple[str, ...]) -> Any:
    """How the boxes are searched."""
    return widget(
        io.Combo,
        "strategy",
        options=list(choices),
        default=default,
        tooltip="exact: renders every box. halving: quick renders of every box and full ones of the best, a quarter "
        "of the cost. sampled: "
        "renders what the network draws, up to budget. soft mask: learns from a one-step preview, then one render a "
        "place. "
        "policy: a trained network chooses, one render a place.",
    )


def budget_input() -> Any:
    """Limit of the strategy "sampled"."""
    return widget(
        io.Int,
        "budget",
        default=DEFAULTS.budget,
        min=1,
        max=4096,
        tooltip="Only for sampled: boxes of an image that may be rendered, at least one for each place. A second run "
        "with a larger "
        "budget renders only what it adds.",
    )


def judging_inputs() -> list[Any]:
    """Rare widgets of the judgement."""
    weights = {
        "clip_weight": "the edit looks like the target text",
        "direction_weight": "the image changes the way the texts do",
        "structure_weight": "the image keeps its structure",
    }
    return [
        *(
            widget(
                io.Float,
                name,
                default=1.0,
                min=0.0,
                max=100.0,
                step=0.1,
                advanced=True,
                tooltip=f"How much it counts that {what}. 1 is the paper's, 0 is off.",
            )
            for name, what in weights.items()
        ),
        widget(
            io.Int,
            "crops",
            default=0,
            min=0,
            max=64,
            advanced=True,
            tooltip="Random crops that are judged besides the whole image, the same before and after the edit. 0 is "
            "enough for most.",
        ),
    ]


def cancel_input() -> Any:
    """What a press of Cancel does."""
    return widget(
        io.Combo,
        "on_cancel",
        options=[KEEP, STOP],
        default=KEEP,
        advanced=True,
        tooltip="What Cancel does here. Use the best so far: the search ends and the graph goes on with what it "
        "found; press again to stop "
        "everything. Either way the next run goes on where this one was.",
    )


def search_settings(
    learning: LearningSettings,
    *,
    anchors: int,
    sizes: str,
    aspect_ratios: str,
    spread: int,
    clip_weight: float,
    direction_weight: float,
    structure_weight: float,
    crops: int,
    mask_use: str = "restrict",
    change_anchors: int = 0,
) -> SearchSettings:
    """The settings of a search by the widgets' values.

    Raises:
        EditingError: values that cannot be used.
    """
    if mask_use not in ("restrict", "exclude"):
        raise EditingError(f"There is no mask_use {mask_use!r}; use restrict or exclude.")
    return SearchSettings(
        anchors=anchors,
        sizes=numbers_in(sizes, "sizes"),
        aspects=numbers_in(aspect_ratios, "aspect_ratios"),
        spread=spread,
        mask_use="exclude" if mask_use == "exclude" else "restrict",
        weights=LossWeights(clip_weight, direction_weight, structure_weight),
        crops=crops,
        learning=learning,
        changes=change_anchors,
    )


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
    examples: list[Example],
    vision_features: VisionFeatures,
    clip_scorer: ClipScorer,
    region_editor: RegionEditor,
    settings: SearchSettings,
    region_network: RegionNetwork | None,
) -> tuple[RegionSearch, bool]:
    """The search for ``examples``, and whether it was stopped and has what was found until then (:class:`Stops`)."""
    bar = StoppableBar()
    search = RegionSearch(
        examples, vision_features, clip_scorer, region_editor.open, settings, region_network, CACHE, watching(bar)
    )
    with bar.catching():
        search.run()
    stopped = stops.settle(bar, on_cancel, lambda: any(search.candidates(number) for number in range(len(examples))))
    if stopped:
        search.learn_from_known()
    return search, stopped

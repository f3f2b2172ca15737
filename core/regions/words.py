"""An edit by words alone: where it may go, the boxes painted there, and a CLIP that may say that none helped.

Two ways: ``map``, the tightest frames of the map that tells where the two texts differ (:mod:`.changes`); ``exact``,
all of its frames and every box around what a vision model looks at (section 3.1 of Learnable Regions), compared by
CLIP. All boxes are encoded, then sampled, then decoded, then judged, so that a host swaps its models a few times an
edit and not a few times a box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..content_hash import content_hash
from ..denoiser import check_finite
from ..errors import EditingError
from ..models.clip import ClipScorer
from .cache import RenderCache
from .changes import located
from .editors import Editor, Locating, rendered
from .paste import Framing
from .proposals import DEFAULT_SIZES, Box, Proposals, propose, tight
from .rewards import ClipJudge

Strategy = Literal["map", "exact"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
#: Frames that ``map`` paints where a CLIP compares them; without one only the tightest is painted.
FRAMES = 3
ANCHORS, SPREAD = 3, 1
#: What a judge sees around a box, as a share of its longer side.
SURROUNDINGS = 0.5


@dataclass(frozen=True, eq=False)
class Painted:
    """One box after the edit; of the picture only what lies in the box is held.

    Attributes:
        image: ``[1, 3, H, W]`` in 0..1, the picture as it is.
        inside: ``[1, 3, height, width]``, what the box shows now.
        whole, crop: score S (Eq. 7) of the picture and of a crop around the box, None without a judge.
        whole_before, crop_before: the same of the unedited picture.
        tightness: how well the box frames where the texts differ, see :meth:`~.proposals.Proposals.tightness`.
    """

    image: Tensor
    box: Box
    inside: Tensor
    whole: float | None = None
    whole_before: float | None = None
    crop: float | None = None
    crop_before: float | None = None
    tightness: float = 0.0

    @property
    def edited(self) -> Tensor:
        """The whole picture ``[1, 3, H, W]``."""
        x, y, width, height = self.box
        edited = self.image.clone()
        edited[..., y : y + height, x : x + width] = self.inside
        return edited

    @property
    def gain(self) -> float:
        """Mean of what the picture and the crop gain in score; 0 without a judge."""
        if self.whole is None or self.whole_before is None or self.crop is None or self.crop_before is None:
            return 0.0
        return (self.whole - self.whole_before + self.crop - self.crop_before) / 2


@dataclass(frozen=True, eq=False)
class WordsEdit:
    """What :func:`edit_by_words` found.

    Attributes:
        image: the picture as it is.
        painted: the boxes painted, the best first; none where the texts change nothing.
        judged: whether a CLIP compared them.
        units: network evaluations (u) spent.
    """

    image: Tensor
    painted: tuple[Painted, ...]
    judged: bool
    units: float

    @property
    def helped(self) -> bool:
        """Whether a box is better than the picture as it is; with no judge, whether there is one."""
        return bool(self.painted) and (not self.judged or self.painted[0].gain > 0)

    @property
    def result(self) -> Tensor:
        """The best edit ``[1, 3, H, W]``, or the picture as it is where nothing helped."""
        return self.painted[0].edited if self.helped else self.image


def edit_by_words(
    editor: Editor,
    image: Tensor,
    *,
    strategy: Strategy = "map",
    allowed: Tensor | None = None,
    boxes: Sequence[Box] = (),
    attention: Tensor | None = None,
    anchors: int = ANCHORS,
    sizes: Sequence[float] = DEFAULT_SIZES,
    scorer: ClipScorer | None = None,
    texts: tuple[str, str] = ("", ""),
    seed: int = 0,
    kept: RenderCache | None = None,
    watch: Callable[[int, int, Tensor], None] | None = None,
) -> WordsEdit:
    """Find the place, paint it, and choose.

    Args:
        editor: holds both texts.
        image: ``[1, 3, H, W]`` in 0..1.
        allowed: ``[H, W]`` bool, pixels that may change; all by default.
        boxes: places to try in place of the found ones; all of them are painted where a CLIP compares them.
        attention: ``[heads, gh, gw]``, what a vision model looks at, for ``exact``; without it only the map counts.
        anchors, sizes: of ``exact``, see :func:`~.proposals.propose`.
        scorer: compares the boxes and says whether any helped; without one the tightest is painted and shown.
        texts: what is there and what should be, for the judge.
        seed: of the noise.
        kept: painted latents of earlier edits, so that a stopped one goes on where it was.
        watch: told of boxes decoded, of how many they will be, and of the last edit. What it raises ends the edit.

    Raises:
        EditingError: ``exact`` without a scorer, a box outside what may change, texts the judge cannot tell apart,
            or from the editor.
    """
    if strategy not in STRATEGIES:
        raise EditingError(f"There is no strategy {strategy!r}; use {' or '.join(STRATEGIES)}.")
    if strategy == "exact" and scorer is None:
        raise EditingError("The strategy exact compares its boxes by a CLIP; wire clip_scorer, or use map.")
    check_finite(image, "The image")
    allowed = torch.ones(image.shape[-2:], dtype=torch.bool) if allowed is None else allowed
    kept = RenderCache() if kept is None else kept
    shared, places = getattr(editor, "shared_evaluations", 0), None
    if boxes:
        frames = [box for box in (tight(box, allowed) for box in boxes) if box is not None]
        if not frames:
            raise EditingError("No box lies where the edit is allowed; move the boxes or enlarge the mask.")
    else:
        if isinstance(editor, Locating):
            key = content_hash("change", image, editor.identity)
            places = located(kept.map(key, lambda: editor.change(image)), allowed)
        elif strategy == "map" or attention is None:
            raise EditingError(
                "This editor cannot tell where the text pulls; wire source into Region Inpaint Editor, use Region "
                "Inversion Editor, or wire vision_features and use exact."
            )
        frames = _frames(places, allowed, strategy, attention, anchors, sizes)
    frames = list(dict.fromkeys(frames))
    if scorer is None:
        frames = frames[:1]
    masks = [_mask(box, allowed) for box in frames]
    painted, new = [], 0
    for number, (box, (edited, made)) in enumerate(
        zip(frames, rendered(editor, image, masks, frames, seed, kept), strict=True)
    ):
        check_finite(edited, "The edited image")
        x, y, width, height = box
        inside = edited[..., y : y + height, x : x + width].to(image).clone()
        painted.append(Painted(image, box, inside, tightness=0.0 if places is None else places.tightness(box)))
        new += made
        if watch is not None:
            watch(number + 1, len(frames), edited)
    units = new * editor.cost() + getattr(editor, "shared_evaluations", 0) - shared
    if scorer is not None and painted:
        judge = ClipJudge(scorer, image, *texts)
        before = judge(image).score
        painted = [_judged(made, judge, before, scorer, texts) for made in painted]
    return WordsEdit(image, tuple(_ordered(painted)), scorer is not None, units)


def _frames(
    places: Proposals | None,
    allowed: Tensor,
    strategy: Strategy,
    attention: Tensor | None,
    anchors: int,
    sizes: Sequence[float],
) -> list[Box]:
    """The boxes of a strategy, the tightest of the map first; none where the texts are known to differ nowhere."""
    frames: list[Box] = []
    if places is not None:
        found = dict.fromkeys(box for row in places.boxes for box in row if box is not None)
        frames = sorted(found, key=places.tightness, reverse=True)
        if not frames or strategy == "map":
            return frames[:FRAMES]
    if attention is None:
        return frames
    mask = None if bool(allowed.all()) else allowed.float()
    size = (allowed.shape[0], allowed.shape[1])
    around = propose(attention, size, anchors, sizes, spread=SPREAD, mask=mask)
    return frames + [box for row in around.boxes for box in row if box is not None]


def _ordered(painted: Sequence[Painted]) -> list[Painted]:
    """The best first: those that gain in score before those that do not. Among the former a box's share of the best
    gain and its tightness decide together, because CLIP hardly sees small things."""
    most = max((one.gain for one in painted), default=0.0)
    if most <= 0:
        return sorted(painted, key=lambda one: one.gain, reverse=True)  # stable: the tighter first where scores tie
    return sorted(painted, key=lambda one: (one.gain > 0, one.gain / most + one.tightness), reverse=True)


def _mask(box: Box, allowed: Tensor) -> Tensor:
    x, y, width, height = box
    mask = torch.zeros(1, *allowed.shape)
    mask[0, y : y + height, x : x + width] = allowed[y : y + height, x : x + width].float()
    return mask


def _judged(made: Painted, judge: ClipJudge, before: float, scorer: ClipScorer, texts: tuple[str, str]) -> Painted:
    """``made`` with its scores: CLIP hardly sees a small thing in a large picture, so a crop is judged beside it."""
    image, edited = made.image, made.edited
    left, top, width, height = Framing(SURROUNDINGS).crop(image.shape[-2], image.shape[-1], made.box).window
    part = (..., slice(top, top + height), slice(left, left + width))
    near = ClipJudge(scorer, image[part], *texts)
    return Painted(
        image,
        made.box,
        made.inside,
        judge(edited).score,
        before,
        near(edited[part]).score,
        near(image[part]).score,
        made.tightness,
    )

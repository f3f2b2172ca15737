"""An edit by words alone: the map says where, at most three boxes are painted, and a CLIP may say that none helped.

The pack's short way. What the long one (:mod:`.search`) adds is told in ``docs/measured.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import EditingError
from ..models.clip import ClipScorer
from .changes import change_frames
from .edit_inpaint import LocatingInpaintEditor
from .paste import Framing
from .proposals import Box, tight
from .rewards import ClipJudge

#: Boxes painted where a CLIP compares them; without one only the first is painted.
FRAMES = 3
#: What a judge sees around a box, as a share of its longer side.
SURROUNDINGS = 0.5


@dataclass(frozen=True, eq=False)
class Painted:
    """One box after the edit.

    Attributes:
        edited: ``[1, 3, H, W]`` in 0..1.
        whole, crop: score S (Eq. 7) of the picture and of a crop around the box, None without a judge.
        whole_before, crop_before: the same of the unedited picture.
    """

    box: Box
    edited: Tensor
    whole: float | None = None
    whole_before: float | None = None
    crop: float | None = None
    crop_before: float | None = None

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
    editor: LocatingInpaintEditor,
    image: Tensor,
    *,
    allowed: Tensor | None = None,
    boxes: Sequence[Box] = (),
    scorer: ClipScorer | None = None,
    texts: tuple[str, str] = ("", ""),
    seed: int = 0,
    watch: Callable[[int, int, Tensor], None] | None = None,
) -> WordsEdit:
    """Find the place, paint it, and choose.

    Args:
        editor: holds both texts.
        image: ``[1, 3, H, W]`` in 0..1.
        allowed: ``[H, W]`` bool, pixels that may change; all by default.
        boxes: places to try in place of the map's; all of them are painted where a CLIP compares them.
        scorer: compares the boxes and says whether any helped; without one the tightest is painted and shown.
        texts: what is there and what should be, for the judge.
        seed: of the noise.
        watch: told of boxes painted, of how many they will be, and of the last edit. What it raises ends the edit.

    Raises:
        EditingError: a box outside what may change, texts the judge cannot tell apart, or from the editor.
    """
    allowed = torch.ones(image.shape[-2:], dtype=torch.bool) if allowed is None else allowed
    units = 0.0
    if boxes:
        framed = [tight(box, allowed) for box in boxes]
        frames = [box for box in framed if box is not None]
        if not frames:
            raise EditingError("No box lies where the edit is allowed; move the boxes or enlarge the mask.")
    else:
        frames = change_frames(editor.change(image), allowed)[:FRAMES]
        units += editor.locating_cost
    frames = list(dict.fromkeys(frames))
    if scorer is None:
        frames = frames[:1]
    judge = None if scorer is None else ClipJudge(scorer, image, *texts)
    painted: list[Painted] = []
    for number, box in enumerate(frames):
        x, y, width, height = box
        mask = torch.zeros(1, *image.shape[-2:])
        mask[0, y : y + height, x : x + width] = allowed[y : y + height, x : x + width].float()
        edited = editor.render(image, mask, box, seed=seed)
        units += editor.cost("full")
        made = Painted(box, edited)
        if judge is not None and scorer is not None:
            made = _judged(made, judge, scorer, image, texts)
        painted.append(made)
        if watch is not None:
            watch(number + 1, len(frames), edited)
    painted.sort(key=lambda one: one.gain, reverse=True)  # stable: the tighter first where scores tie
    return WordsEdit(image, tuple(painted), judge is not None, units)


def _judged(made: Painted, judge: ClipJudge, scorer: ClipScorer, image: Tensor, texts: tuple[str, str]) -> Painted:
    """``made`` with its scores: CLIP hardly sees a small thing in a large picture, so a crop is judged beside it."""
    left, top, width, height = Framing(SURROUNDINGS).crop(image.shape[-2], image.shape[-1], made.box).window
    part = (..., slice(top, top + height), slice(left, left + width))
    near = ClipJudge(scorer, image[part], *texts)
    return Painted(
        made.box,
        made.edited,
        judge(made.edited).score,
        judge(image).score,
        near(made.edited[part]).score,
        near(image[part]).score,
    )

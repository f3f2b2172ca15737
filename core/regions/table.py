"""The table l(k, j) of what every box of every anchor is worth, filled as a strategy asks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..content_hash import content_hash
from ..denoiser import check_finite
from ..errors import EditingError
from ..images.difference import difference_map
from .cache import RenderCache
from .editors import Editor, Quality
from .proposals import Box, Proposals
from .rewards import Judge, LossWeights, Verdict


@dataclass
class RenderCount:
    """Renders done by quality, how often the cache had one or its verdict, and the network sample-evaluations (u) of
    those done."""

    screen: int = 0
    full: int = 0
    reused: int = 0
    units: float = 0.0


class RewardTable:
    """Renders boxes of one image with one editor, judges them, and remembers.

    A render is kept by what decides it (image, mask, editor, quality, seed), so equal boxes of different anchors,
    reruns and other loss weights cost nothing; its verdict is kept by the judge's identity too. Every box is rendered
    with the same noise, which takes that chance out of comparisons.

    Args:
        image: ``[1, 3, H, W]`` in 0..1.
        proposals: of this image.
        editor: fills a box.
        judge: of this image and the texts.
        weights: of Eq. 3.
        seed: of the renders.
        cache: shared between searches to make reruns cheap.

    Attributes:
        refined: boxes that were reached by moving a proposal's sides, each with that one, see :func:`~.ranking.refine`.

    Raises:
        EditingError: an image of another shape or size than the proposals', or with pixels that are no numbers.
    """

    def __init__(
        self,
        image: Tensor,
        proposals: Proposals,
        editor: Editor,
        judge: Judge,
        weights: LossWeights | None = None,
        seed: int = 0,
        cache: RenderCache | None = None,
    ):
        if image.ndim != 4 or tuple(image.shape) != (1, 3, *proposals.image_size):
            raise EditingError(
                f"The image has shape {list(image.shape)}; give one RGB image of {list(proposals.image_size)} pixels."
            )
        check_finite(image, "The image")
        self.image, self.proposals, self.editor, self.judge = image, proposals, editor, judge
        self.weights, self.seed = weights or LossWeights(), seed
        self.cache = RenderCache() if cache is None else cache
        self.count = RenderCount()
        self.refined: dict[Box, Box] = {}
        self._verdicts: dict[tuple[Box, Quality, int], Verdict] = {}
        self._aims: dict[tuple[Box, Quality], float] = {}
        self._image_hash = content_hash(image)

    def known(self, box: Box, quality: Quality = "full", draw: int = 0) -> Verdict | None:
        """The verdict on ``box`` if this table has it already."""
        return self._verdicts.get((box, quality, draw))

    def evaluate(self, box: Box, quality: Quality = "full", draw: int = 0) -> Verdict:
        """The verdict on ``box``, rendering it unless it is known; ``draw`` numbers renders with other noise.

        Raises:
            EditingError: the editor's result is no image of the source's size.
        """
        known = self.known(box, quality, draw)
        if known is not None:
            return known
        name = (self._key(box, quality, draw), self.judge.identity)
        if name in self.cache.verdicts:
            self.count.reused += 1
        else:
            self.cache.verdicts[name] = self.judge(self.render(box, quality, draw))
        self._verdicts[box, quality, draw] = self.cache.verdicts[name]
        return self._verdicts[box, quality, draw]

    def render(self, box: Box, quality: Quality = "full", draw: int = 0) -> Tensor:
        """The edited image ``[1, 3, H, W]`` in 0..1 on the CPU, from the cache if it is there.

        Raises:
            EditingError: as for :meth:`evaluate`.
        """
        key = self._key(box, quality, draw)
        kept = self.cache.get(key, self.image, box)
        if kept is not None:
            self.count.reused += 1
            return kept
        edited = (
            self.editor.render(self.image, self.proposals.mask(box), box, seed=self.seed + draw, quality=quality)
            .detach()
            .cpu()
        )
        if edited.shape != self.image.shape:
            raise EditingError(
                f"The editor made an image of shape {list(edited.shape)} from {list(self.image.shape)}; it must keep "
                "the size."
            )
        check_finite(edited, "The edited image")
        setattr(self.count, quality, getattr(self.count, quality) + 1)
        self.count.units += self.editor.cost(quality)
        self.cache.put(key, edited, self.image, box)
        return edited

    def aim(self, box: Box, quality: Quality = "full") -> float:
        """How much of what the edit of ``box`` changed lies where the text pulls: the mean pull, as a share of the
        strongest, over the changed pixels weighted by their change. 0 where the pull is not known, where the box was
        not judged, or without a change.
        """
        pull = self.proposals.change
        if pull is None or self.known(box, quality) is None:
            return 0.0
        if (box, quality) not in self._aims:
            kept = self.cache.get(self._key(box, quality, 0), self.image, box)
            edited = self.render(box, quality) if kept is None else kept
            changed = difference_map(edited, self.image.cpu())[0]
            self._aims[box, quality] = float((changed * pull).sum() / (changed.sum() * pull.max()).clamp_min(1e-12))
        return self._aims[box, quality]

    @cached_property
    def unedited_score(self) -> float:
        """S (Eq. 7) of the image as it is."""
        return self.judge(self.image).score

    def _key(self, box: Box, quality: Quality, draw: int) -> str:
        settings = f"{quality} {self.seed + draw} {tuple(box)}"
        allowed = self.proposals.allowed[box.y : box.y + box.height, box.x : box.x + box.width]
        return content_hash(self._image_hash, allowed, self.editor.identity, settings)

    @property
    def evaluated(self) -> list[Box]:
        """Boxes with a full render, in the order in which they were judged."""
        return [box for box, quality, draw in self._verdicts if quality == "full" and draw == 0]

    def losses(self) -> Tensor:
        """What is known of l(k, j), ``[K, M]``, NaN where nothing is.

        A box with a full render has that one's loss. A box that was only screened has the mean of its screening losses
        plus the mean difference of full and screening loss over the boxes that have both.
        """
        screened: dict[Box, list[float]] = {}
        full: dict[Box, float] = {}
        for (box, quality, draw), verdict in self._verdicts.items():
            if quality == "screen":
                screened.setdefault(box, []).append(verdict.loss(self.weights))
            elif draw == 0:
                full[box] = verdict.loss(self.weights)
        means = {box: sum(values) / len(values) for box, values in screened.items()}
        both = [full[box] - means[box] for box in means if box in full]
        offset = sum(both) / len(both) if both else 0.0
        known = {box: value + offset for box, value in means.items()} | full
        return torch.tensor(
            [[known[box] if box in known else float("nan") for box in row] for row in self.proposals.boxes]
        )

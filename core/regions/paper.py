"""Learnable Regions as the paper has it (Lin et al. 2024, arXiv 2311.16432, section 3): a research module.

Anchors on what a vision model attends to, M squares around each (:mod:`.proposals`), ROI features and the region
network (Eq. 1 and 2, :mod:`.network`), three CLIP losses (Eq. 3 to 6) and the ranking by Eq. 7 (:mod:`.rewards`). The
released code hands the network no gradient: its editor returns pictures without one. Here every box is rendered once,
and the network learns from the table of their losses: by the expected loss of its choice, or by the loss of the box
that straight-through Gumbel-softmax chose.

Experimental: measured on 32 unseen pictures of 8 edits, the trained network takes the largest box at 62 % of the places
(mean loss 1.185; always the largest 1.208, by chance 1.330, the best box 0.988), and the pictures that it leads to are
farther from the truth than a box by chance in 94 %, which is why the pack's own nodes do without it (:mod:`.words`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import EditingError
from ..models.clip import ClipScorer, check_texts
from ..models.vision_features import VisionFeatures
from .cache import RenderCache
from .editors import Editor, rendered
from .network import RegionNetwork, gumbel_straight_through, region_features
from .proposals import DEFAULT_ANCHORS, DEFAULT_SIZES, Box, Proposals, propose
from .rewards import ClipJudge, LossWeights, Verdict

Signal = Literal["expected loss", "gumbel"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)


@dataclass(frozen=True, eq=False)
class Example:
    """An image ``[1, 3, H, W]`` in 0..1, what it shows and what it should show."""

    image: Tensor
    source_text: str
    target_text: str


@dataclass(frozen=True)
class PaperSettings:
    """The defaults are the paper's (section 4).

    Attributes:
        anchors, sizes, spread: see :func:`~.proposals.propose`; the paper's K is 9 and M is 7.
        weights, crops: see :class:`~.rewards.ClipJudge`.
        epochs, learning_rate: of Adam, one step an image and epoch.
        signal: what the network learns from, see :func:`train`.
        seed: of the renders, the crops, a new network and the Gumbel noise.

    Raises:
        EditingError: values out of range.
    """

    anchors: int = DEFAULT_ANCHORS
    sizes: Sequence[float] = DEFAULT_SIZES
    spread: int = 0
    weights: LossWeights = field(default_factory=LossWeights)
    crops: int = 0
    epochs: int = 5
    learning_rate: float = 3e-3
    signal: Signal = "expected loss"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise EditingError(f"There is no signal {self.signal!r}; use {' or '.join(SIGNALS)}.")
        if self.epochs < 0:
            raise EditingError(f"epochs is {self.epochs}; use 0 or more.")
        if not 0 < self.learning_rate < float("inf"):
            raise EditingError(f"learning_rate is {self.learning_rate:g}; use a positive number, usually 0.003.")


@dataclass(frozen=True, eq=False)
class Studied:
    """An example with every box rendered and judged.

    Attributes:
        regions: ROI features of its boxes, ``[K, M, D, l, l]``.
        losses: L of Eq. 3, ``[K, M]``, NaN in empty slots.
        units: network evaluations (u) spent on it.
    """

    example: Example
    proposals: Proposals
    verdicts: dict[Box, Verdict]
    regions: Tensor
    losses: Tensor
    units: float

    @property
    def largest(self) -> Tensor:
        """The slot of each anchor's largest box, ``[K]``: what the network must beat."""
        areas = [[0 if box is None else box.width * box.height for box in row] for row in self.proposals.boxes]
        return torch.tensor(areas).argmax(1)


def study(
    example: Example,
    vision: VisionFeatures,
    scorer: ClipScorer,
    editor: Editor,
    settings: PaperSettings,
    kept: RenderCache | None = None,
    watch: Callable[[int, int, Tensor], None] | None = None,
) -> Studied:
    """Steps 1 to 3: anchors and boxes, a render of each, its losses.

    Args:
        kept: renders of earlier runs, by content.
        watch: told of boxes rendered, of how many they will be, and of the last edit. What it raises ends the study.

    Raises:
        EditingError: texts that are empty or mean the same, or from the editor.
    """
    check_texts([example.source_text, example.target_text])
    image = example.image
    view = vision(image)
    proposals = propose(view.attention[0], view.image_size, settings.anchors, settings.sizes, spread=settings.spread)
    judge = ClipJudge(scorer, image, example.source_text, example.target_text, crops=settings.crops, seed=settings.seed)
    boxes = list(dict.fromkeys(box for row in proposals.boxes for box in row if box is not None))
    shared, new, verdicts = getattr(editor, "shared_evaluations", 0), 0, {}
    kept = RenderCache() if kept is None else kept
    made = rendered(editor, image, [proposals.mask(box) for box in boxes], boxes, settings.seed, kept)
    for number, (box, (edited, is_new)) in enumerate(zip(boxes, made, strict=True)):
        verdicts[box] = judge(edited)
        new += is_new
        if watch is not None:
            watch(number + 1, len(boxes), edited)
    losses = [
        [float("nan") if box is None else verdicts[box].loss(settings.weights) for box in row]
        for row in proposals.boxes
    ]
    units = new * editor.cost() + getattr(editor, "shared_evaluations", 0) - shared
    regions = region_features(view.features[0], proposals)
    return Studied(example, proposals, verdicts, regions, torch.tensor(losses), units)


def new_network(studied: Studied, vision: VisionFeatures, seed: int = 0) -> RegionNetwork:
    """An untrained network for the boxes of ``studied``."""
    return RegionNetwork(studied.regions.shape[2], studied.regions.shape[1], seed=seed, vision=vision.identity)


def train(
    network: RegionNetwork,
    studied: Sequence[Studied],
    settings: PaperSettings,
    watch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Step 4: learn in place; the mean loss of each epoch.

    With the signal "expected loss" an anchor's loss is ``sum_j p_j l_j``, whose gradient on logit j is
    ``p_j (l_j - mean l)``; with "gumbel" it is that of the box that Gumbel-softmax chose, backward through the soft
    choice (section 3.1).

    Args:
        watch: told of epochs done and the last loss. What it raises ends the training.

    Raises:
        EditingError: no example, or boxes of another number than the network's.
    """
    if not studied:
        raise EditingError("There is no image to learn from; give at least one.")
    generator = torch.Generator().manual_seed(settings.seed)
    history: list[float] = []
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        for epoch in range(settings.epochs):
            total = 0.0
            for one in studied:
                logits = network(one.regions, one.proposals.valid)
                if settings.signal == "gumbel":
                    chances = gumbel_straight_through(logits, generator)
                else:
                    chances = logits.softmax(1)
                loss = (chances * one.losses.nan_to_num(0.0)).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
            history.append(total / len(studied))
            if watch is not None:
                watch(epoch + 1, history[-1])
    return history


@torch.no_grad()
def choices(network: RegionNetwork, studied: Studied) -> Tensor:
    """The slot that the network prefers at each anchor, ``[K]``."""
    return network(studied.regions, studied.proposals.valid).argmax(1)


def best(network: RegionNetwork, studied: Studied) -> Box:
    """Step 5: of the network's choice at every anchor the box of highest score (Eq. 7)."""
    boxes = [studied.proposals.box(anchor, int(slot)) for anchor, slot in enumerate(choices(network, studied))]
    return max(boxes, key=lambda box: studied.verdicts[box].score)


def comparison(network: RegionNetwork, studied: Sequence[Studied]) -> str:
    """A line: mean loss at an anchor of the network's choice, of the largest box, of chance and of the best box."""
    rows = []
    for one in studied:
        by_choice = one.losses.gather(1, choices(network, one)[:, None])
        by_size = one.losses.gather(1, one.largest[:, None])
        least = one.losses.nan_to_num(float("inf")).amin(1, keepdim=True)
        rows.append(torch.cat([by_choice, by_size, one.losses.nanmean(1, keepdim=True), least], 1))
    chosen, size, chance, least = torch.cat(rows).mean(0).tolist()
    return (
        f"mean loss at an anchor: {chosen:.3f} the network's choice, {size:.3f} the largest box, {chance:.3f} a box by "
        f"chance, {least:.3f} the best box"
    )

"""The paper's method (Lin et al. 2024, arXiv 2311.16432), whole: a network that learns which box of a place suits an
edit. Research: what it adds on pictures that it was not trained on was measured to be nothing, so no node uses it.

Anchors and boxes are :mod:`.proposals`, the losses of Eq. 3 to 6 and the score of Eq. 7 :mod:`.rewards`, and both
engines that fill a box :mod:`.edit_inpaint` and :mod:`.edit_tokens`. Here are the ROI features and the network (section
3.1, Eq. 1 and 2), its Gumbel choice, and its training: 5 epochs of Adam at 0.003 (section 4). The released code has no
training signal: its editor returns pictures without gradient and its network never changes. The signal here is the
expected loss of the network's choice, exactly where all boxes are rendered, or from samples.

ROI features come from ROIAlign (He et al., arXiv 1703.06870, section 3), which needs no rounding to patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from .proposals import Box, Proposals
from .table import RewardTable

BINS = 7  # the paper's l
CONVOLUTION = 32  # channels
HIDDEN = 64  # units
SAMPLES = 2  # bilinear samples along each side of a bin, as torchvision's and detectron's usual setting
EPOCHS, LEARNING_RATE = 5, 3e-3  # section 4
DRAWS = 2  # boxes drawn for each anchor and step


def roi_align(
    features: Tensor, boxes: Sequence[Box], image_size: tuple[int, int], bins: int = 7, samples: int = SAMPLES
) -> Tensor:
    """Mean of ``samples`` x ``samples`` bilinear samples in each of ``bins`` x ``bins`` cells of every box.

    It equals ``torchvision.ops.roi_align(..., sampling_ratio=samples, aligned=True)`` for boxes inside the image, and
    needs no compiled operator. ROIAlign is the pooling of Eq. 1 without rounding boxes to patches.

    Args:
        features: ``[D, gh, gw]``, the centre of cell (r, c) at image pixel ((c + 0.5) W / gw, (r + 0.5) H / gh).
        boxes: N boxes in image pixels.
        image_size: ``(H, W)`` in pixels.

    Returns:
        ``[N, D, bins, bins]``.
    """
    rows, columns = features.shape[-2:]
    frame = torch.tensor(
        [[box.x, box.y, box.width, box.height] for box in boxes], dtype=features.dtype, device=features.device
    )
    scale = torch.tensor([columns / image_size[1], rows / image_size[0]], dtype=features.dtype, device=features.device)
    start, extent = frame[:, :2] * scale - 0.5, frame[:, 2:] * scale
    step = (torch.arange(bins * samples, dtype=features.dtype, device=features.device) + 0.5) / (bins * samples)
    x = start[:, :1] + extent[:, :1] * step
    y = start[:, 1:] + extent[:, 1:] * step
    grid = torch.stack(
        [_unit(x, columns)[:, None, :].expand(-1, len(step), -1), _unit(y, rows)[:, :, None].expand(-1, -1, len(step))],
        -1,
    )
    sampled = [
        functional.grid_sample(features[None], one[None], padding_mode="border", align_corners=True) for one in grid
    ]
    return functional.avg_pool2d(torch.cat(sampled), samples)


def _unit(position: Tensor, count: int) -> Tensor:
    """Index of a cell (0 is the first one's centre) -> grid_sample's -1..1, where -1 and 1 are the outermost centres.

    Along a single cell every position means that cell.
    """
    return position * (2 / (count - 1)) - 1 if count > 1 else torch.zeros_like(position)


def _layers(channels: int, slots: int, bins: int) -> nn.Sequential:
    """The layers of :class:`RegionNetwork`, without memory."""
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(slots * channels, CONVOLUTION, 3, padding=1), nn.ReLU(),
            nn.Conv2d(CONVOLUTION, CONVOLUTION, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(CONVOLUTION * bins * bins, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, slots),
        )  # fmt: skip


class RegionNetwork(nn.Module):
    """Two convolutions and two linear layers with ReLU between them: features of an anchor's M boxes -> M logits.

    Args:
        channels: of the vision features (D).
        slots: boxes of an anchor (M).
        bins: side of the ROI grid (l).
        seed: of the weights.
    """

    def __init__(self, channels: int, slots: int, bins: int = BINS, seed: int = 0):
        super().__init__()
        self.channels, self.slots, self.bins = channels, slots, bins
        with torch.inference_mode(False):
            self.layers = _layers(channels, slots, bins)
            self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    assert layer.bias is not None
                    bound = layer.weight[0].numel() ** -0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, regions: Tensor, valid: Tensor) -> Tensor:
        """Logits pi_j of Eq. 2.

        Args:
            regions: ``[K, M, D, l, l]``, see :func:`region_features`.
            valid: ``[K, M]`` bool: slots with a box.

        Returns:
            ``[K, M]``, minus infinity in empty slots.

        Raises:
            EditingError: regions of another shape than the network's.
        """
        expected = (self.slots, self.channels, self.bins, self.bins)
        if tuple(regions.shape[1:]) != expected:
            raise EditingError(
                f"The region network takes {self.slots} boxes for each anchor and {self.channels} features, and got "
                f"{regions.shape[1]} and {regions.shape[2]}; use the sizes and vision model it was trained with."
            )
        return self.layers(regions.flatten(1, 2)).masked_fill(~valid.to(regions.device), float("-inf"))


def region_features(features: Tensor, proposals: Proposals, bins: int = BINS) -> Tensor:
    """ROI features f_j of every box (Eq. 1), divided by the root mean square of the image's features.

    The division makes one learning rate fit every vision model.

    Args:
        features: ``[D, gh, gw]`` of the whole image.

    Returns:
        ``[K, M, D, l, l]``, zero in empty slots, without gradient.
    """
    with torch.inference_mode(False), torch.no_grad():
        values = features.detach().clone().float()
        values = values / values.square().mean().sqrt().clamp_min(1e-12)
        regions = values.new_zeros(*proposals.valid.shape, len(values), bins, bins)
        filled = proposals.valid.to(values.device)
        boxes = [box for row in proposals.boxes for box in row if box is not None]
        regions[filled] = roi_align(values, boxes, proposals.image_size, bins)
    return regions


def gumbel_argmax(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of each row's softmax, by the Gumbel-max trick (section 3.1): ``logits [K, M]`` -> indices ``[K]``."""
    return (logits.detach().cpu() + _gumbel(logits.shape, generator)).argmax(1)


def _gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    return -(-uniform.log()).log().float()


def expected_loss(logits: Tensor, losses: Tensor) -> Tensor:
    """Mean over anchors of sum_j p_kj l_kj with ``p_k = softmax(logits_k)``; its gradient on logit j is ``p_j (l_j -
    mean l) / K``.

    Args:
        logits: ``[K, M]``, minus infinity in empty slots.
        losses: ``[K, M]``, NaN where unknown; the softmax is over what is known, and anchors without any are left out.

    Returns:
        A scalar.
    """
    known = torch.isfinite(losses).to(logits.device) & torch.isfinite(logits)
    rows = known.any(1)
    chances = logits.masked_fill(~known, float("-inf"))[rows].softmax(1)
    values = losses.to(chances).masked_fill(~known, 0.0)[rows]
    return (chances * values).sum(1).mean()


def reinforce_loss(logits: Tensor, choices: Tensor, losses: Tensor) -> Tensor:
    """A scalar whose gradient is an unbiased estimate of that of :func:`expected_loss`, from n draws of each anchor.

    REINFORCE with the leave-one-out baseline (Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019):
    ``mean_i (l_i - mean of the other l) log p(choice_i)``.

    Args:
        logits: ``[K, M]``.
        choices: ``[n, K]`` slots, drawn independently from ``softmax(logits)``.
        losses: ``[n, K]`` of the choices.

    Raises:
        EditingError: fewer than two draws, which have no baseline.
    """
    draws = len(choices)
    if draws < 2:
        raise EditingError(f"draws is {draws}; use 2 or more.")
    values = losses.to(logits)
    others = (values.sum(0) - values) / (draws - 1)
    chosen = logits.log_softmax(1).expand(draws, -1, -1).gather(2, choices.to(logits.device)[..., None])[..., 0]
    return ((values - others) * chosen).mean()


class RegionPolicy:
    """One network for the tables of several images of one edit, trained in place.

    Args:
        tables: of the images; with one number of boxes at each anchor.
        features: vision features of each image, ``[D, gh, gw]``.
        learning_rate: of Adam.
        seed: of the weights and the draws.

    Attributes:
        history: mean loss of each epoch.

    Raises:
        EditingError: no tables.
    """

    def __init__(
        self,
        tables: Sequence[RewardTable],
        features: Sequence[Tensor],
        *,
        learning_rate: float = LEARNING_RATE,
        seed: int = 0,
    ):
        if not tables:
            raise EditingError("There is no image to learn from; give at least one.")
        self.tables, self.history = list(tables), list[float]()
        self._generator = torch.Generator().manual_seed(seed)
        pairs = zip(features, tables, strict=True)
        self._regions = [region_features(one, table.proposals) for one, table in pairs]
        self.network = RegionNetwork(features[0].shape[0], len(tables[0].proposals.boxes[0]), seed=seed)
        with torch.inference_mode(False):
            self._optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)

    def fit(self, epochs: int = EPOCHS) -> None:
        """Minimise the expected loss over what the tables know; unknown boxes are left out."""
        known = {number: table.losses() for number, table in enumerate(self.tables)}
        known = {number: losses for number, losses in known.items() if losses.isfinite().any()}
        for _ in range(epochs if known else 0):
            means = [self._update(number, partial(expected_loss, losses=losses)) for number, losses in known.items()]
            self.history.append(sum(means) / len(means))

    def sample(self, epochs: int = EPOCHS, draws: int = DRAWS) -> None:
        """The paper's way: draw a box of each anchor, render what is new, take a step.

        Raises:
            EditingError: from the editor or the judge.
        """
        for _ in range(epochs):
            means = []
            for number, table in enumerate(self.tables):
                logits = self.logits(number)
                choices = torch.stack([gumbel_argmax(logits, self._generator) for _ in range(draws)])
                boxes = [[table.proposals.box(anchor, int(slot)) for anchor, slot in enumerate(row)] for row in choices]
                losses = torch.tensor([[table.evaluate(box).loss(table.weights) for box in row] for row in boxes])
                self._update(number, partial(reinforce_loss, choices=choices, losses=losses))
                means.append(float(losses.mean()))
            self.history.append(sum(means) / len(means))

    @torch.no_grad()
    def logits(self, number: int) -> Tensor:
        """The network's logits on one image's boxes, ``[K, M]``; their softmax is the policy."""
        return self.network(self._regions[number], self.tables[number].proposals.valid)

    @torch.no_grad()
    def slots(self, features: Tensor, proposals: Proposals) -> list[int]:
        """The most probable slot of each anchor of an image, also of one that nothing was learned from.

        Args:
            features: ``[D, gh, gw]``.
        """
        return self.network(region_features(features, proposals), proposals.valid).argmax(1).tolist()

    def choice(self, number: int) -> Box:
        """The box shown in the end (section 3.3): of each anchor's most probable one, the one of highest score S (Eq.
        7)."""
        table, slots = self.tables[number], self.logits(number).argmax(1).tolist()
        chosen = [table.proposals.box(anchor, slot) for anchor, slot in enumerate(slots)]
        return max(chosen, key=lambda box: table.evaluate(box).score)

    def _update(self, number: int, objective: Callable[[Tensor], Tensor]) -> float:
        with torch.inference_mode(False), torch.enable_grad():
            loss = objective(self.network(self._regions[number], self.tables[number].proposals.valid))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return float(loss.detach())

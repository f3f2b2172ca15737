"""The region network: which box of a place suits an edit, by the vision features inside it (section 3.1, Eq. 1 and 2).

Features of a box of any size come from ROIAlign (He et al., arXiv 1703.06870, section 3), random choices from Gumbel
noise. A trained network is saved as one safetensors file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from .proposals import Box, Proposals

FILE_FORMAT = "semantic_editing.region_network"
#: How files were marked before; they load too.
OLD_FORMAT = "semantic-editing region network"
FILE_VERSION = "1"
BINS = 7  # the paper's l
CONVOLUTION = 32  # channels
HIDDEN = 64  # units
SAMPLES = 2  # bilinear samples along each side of a bin, as torchvision's and detectron's usual setting


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
        vision: identity of the vision model whose features it reads, see :meth:`check_vision`.
    """

    def __init__(self, channels: int, slots: int, bins: int = BINS, seed: int = 0, vision: str = ""):
        super().__init__()
        self.channels, self.slots, self.bins, self.vision = channels, slots, bins, vision
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

    def copy(self) -> RegionNetwork:
        """Another network of the same weights, to learn on without changing this one."""
        network = RegionNetwork(self.channels, self.slots, self.bins, vision=self.vision)
        network.load_state_dict(self.state_dict())
        return network

    def check_vision(self, identity: str) -> None:
        """Raise :class:`EditingError` when the network was made for features of another vision model than ``identity``
        names."""
        if self.vision and self.vision != identity:
            raise EditingError(
                "The region network was trained with another vision model; load that one, or train a new network."
            )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write weights and shape to a safetensors file.

        Raises:
            EditingError: see :func:`~..files.save_tensors`.
        """
        shape = {"channels": self.channels, "slots": self.slots, "bins": self.bins, "vision": self.vision}
        metadata = {
            FORMAT_KEY: FILE_FORMAT,
            "version": FILE_VERSION,
            "method": "learnable regions",
            "shape": json.dumps(shape),
        }
        return save_tensors(path, self.state_dict(), metadata, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> RegionNetwork:
        """Read what :meth:`save` wrote.

        Raises:
            EditingError: missing, damaged, or another kind of file.
        """
        name = Path(path).name
        tensors, metadata = load_tensors(path, FILE_FORMAT, OLD_FORMAT, kind="region network")
        shape = metadata_json(metadata, "shape", name, "region network")
        sizes = {key: shape[key] for key in ("channels", "slots", "bins")}
        # The description is compared with the weights before anything of its size is made.
        wanted = {f"layers.{key}": tuple(part.shape) for key, part in _layers(**sizes).state_dict().items()}
        if wanted != {key: tuple(part.shape) for key, part in tensors.items()}:
            raise EditingError(f"{name} is damaged: its weights do not fit its description; train and save it again.")
        network = cls(**sizes, vision=shape["vision"])
        network.load_state_dict(tensors)
        return network


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


def gumbel_straight_through(logits: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Straight-through Gumbel-softmax (Jang et al., arXiv 1611.01144): one-hot forward, softmax backward.

    Args:
        logits: ``[K, M]``, minus infinity where nothing may be chosen.
        generator: a CPU generator.

    Returns:
        ``[K, M]``, one-hot; its gradient is that of ``softmax((logits + g) / temperature)``.
    """
    noisy = (logits + _gumbel(logits.shape, generator).to(logits.device)) / temperature
    soft = noisy.softmax(1)
    hard = functional.one_hot(noisy.argmax(1), logits.shape[1]).to(soft.dtype)
    return hard - soft.detach() + soft


def _gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    return -(-uniform.log()).log().float()

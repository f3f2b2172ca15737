"""The face recognition network that editing papers measure identity with: ArcFace (Deng et al., CVPR 2019, arXiv
1801.07698) on a residual network of 50 layers with squeeze and excitation.

The file is known as ``model_ir_se50.pth``: pixel2style2pixel, e4e, StyleCLIP and DeltaEdit take it for their identity
loss, and the encoders of the first two have its trunk. Blocks are the paper's improved residual units (section 3.2.1:
BN, conv, BN or PReLU, conv, BN) with squeeze and excitation (Hu et al., arXiv 1709.01507) by 16; the names of the
layers are that file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError

#: Channels and units of the four stages; the first unit of each halves height and width.
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))
REDUCTION = 16
FACE_SIDE = 112  # pixels
FEATURES = 512


class SqueezeExcitation(nn.Module):
    """Weighs channels by what the whole map shows."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, h, w]`` -> the same shape."""
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Unit(nn.Module):
    """An improved residual unit with squeeze and excitation."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            SqueezeExcitation(width),
        )
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)  # of one pixel: every stride-th is taken
            if channels == width
            else nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, h, w]`` -> ``[B, width, h / stride, w / stride]``."""
        added: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return added


def ir_se_layers(stages: Sequence[tuple[int, int]] = STAGES) -> tuple[nn.Sequential, nn.Sequential]:
    """The first layer ``[B, 3, H, W] -> [B, C, H, W]`` and the units of a network of 50 layers, as one sequence.

    Args:
        stages: channels and units of each; see :data:`STAGES`.
    """
    channels = stages[0][0]
    first = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.PReLU(channels)
    )
    units: list[Unit] = []
    for width, count in stages:
        units += [Unit(channels, width, 2), *(Unit(width, width, 1) for _ in range(count - 1))]
        channels = width
    return first, nn.Sequential(*units)


class IdentityNetwork(nn.Module):
    """Who a face is, as 512 numbers.

    Args:
        weights: names and tensors of ``model_ir_se50.pth``.

    Raises:
        EditingError: a layer is missing, left over or of another shape.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self._build()
        # Counters of batches, which older files lack and which nothing here reads.
        counters = {name: torch.zeros((), dtype=torch.long) for name in self.state_dict() if _is_counter(name)}
        given = {name: tensor.float() for name, tensor in weights.items() if not _is_counter(name)}
        try:
            self.load_state_dict(given | counters, assign=True)
        except RuntimeError as error:
            raise EditingError(
                "It does not hold the layers of ArcFace's IR-SE50; use model_ir_se50.pth as pixel2style2pixel, e4e or "
                "DeltaEdit publish it."
            ) from error
        self.eval().requires_grad_(False)

    def _build(self) -> None:
        """The layers, without weights."""
        with torch.device("meta"):  # the weights are given; making and throwing away 44 million takes seconds
            self.input_layer, self.body = ir_se_layers()
            channels = STAGES[-1][0]
            side = FACE_SIDE // 2 ** len(STAGES)
            self.output_layer = nn.Sequential(
                nn.BatchNorm2d(channels),
                nn.Dropout(),
                nn.Flatten(),
                nn.Linear(channels * side * side, FEATURES),
                nn.BatchNorm1d(FEATURES),
            )

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        """Unit features ``[B, 512]`` of ``faces [B, 3, 112, 112]`` in -1..1; their dot product is the similarity."""
        return functional.normalize(self.output_layer(self.body(self.input_layer(faces))), dim=1)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")

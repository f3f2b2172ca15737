"""One protocol for everything that reads or replaces attention: capture, guidance losses, map replacement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Block = Literal["down", "mid", "up"]
Kind = Literal["self", "cross"]
#: ``q [B, heads, N, d]``, ``k, v [B, heads, M, d]`` -> output ``[B, heads, N, d]``, for any B.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's own attention, which builds no maps: differentiable, in the dtype of ``v`` also under autocast."""
    with torch.autocast(q.device.type, enabled=False):
        return scaled_dot_product_attention(q, k, v)


@dataclass(frozen=True)
class Site:
    """One attention call inside one network evaluation.

    Attributes:
        block: part of the U-Net.
        index: running number of this call among the calls of the same kind in network order (0..15 for the
            cross-attention of SD1), equal in every backend.
        resolution: height and width of the query grid, in latent pixels at that depth.
        heads: number of heads.
        kind: "self" or "cross".
        branches: for each equal chunk of batch rows, which conditioning of the call it belongs to (its position in
            the list given to ``Denoiser.batch``; ``(0,)`` for a single conditioning). Chunk order is the backend's.
        attend: the attention function this call would have gone to, for a control that only changes what goes in.
    """

    block: Block
    index: int
    resolution: tuple[int, int]
    heads: int
    kind: Kind
    branches: tuple[int, ...] = (0,)
    attend: Attend = field(default=fused_attention, compare=False, repr=False)


@dataclass(frozen=True)
class FeatureSite:
    """The last convolution of one residual block inside one network evaluation, before the skip is added.

    Attributes:
        block: part of the U-Net.
        index: running number of the residual block in that part, in network order, equal in every backend.
        attends: whether a transformer reads what comes out of the block.
        branches: see :class:`Site`.
    """

    block: Block
    index: int
    attends: bool
    branches: tuple[int, ...] = (0,)


class AttentionControl(Protocol):
    """Sees the attention of one network evaluation. A backend calls it only where ``wants`` says so;
    every other layer keeps the host's fused attention."""

    def wants(self, site: Site) -> bool:
        """Whether this site is to be handed over."""
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """``q [B, heads, N, d]``, ``k, v [B, heads, M, d]`` -> output ``[B, heads, N, d]``."""
        ...


@runtime_checkable
class FeatureControl(Protocol):
    """Sees, and may replace, what residual blocks put out; a control may be this beside an attention control."""

    def wants_feature(self, site: FeatureSite) -> bool:
        """Whether this residual block is to be handed over."""
        ...

    def feature(self, output: Tensor, site: FeatureSite) -> Tensor:
        """``output [B, C, h, w]`` -> what stands in for it."""
        ...

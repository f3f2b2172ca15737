"""One protocol for everything that reads or replaces attention: capture, guidance losses, map replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


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
    """

    block: Literal["down", "mid", "up"]
    index: int
    resolution: tuple[int, int]
    heads: int
    kind: Literal["self", "cross"]
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

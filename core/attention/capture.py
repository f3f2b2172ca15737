"""Controls that read cross-attention maps: storing those of one evaluation, and the loss against stored ones.

A control lives for one network evaluation, so maps of one step exist at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import EditingError
from .site import Site

#: Cross-attention layer (:attr:`Site.index`), branch, and which chunk of that branch (a host may split it by areas).
MapKey = tuple[int, int, int]


def attention_maps(q: Tensor, k: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d))``: ``[B, heads, N, d]`` and ``[B, heads, M, d]`` -> ``[B, heads, N, M]``.

    In fp32 at least, autocast or not: squared differences of maps underflow in fp16.
    """
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.promote_types(q.dtype, torch.float32)
        return (q.to(dtype) @ k.to(dtype).transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def apply_maps(maps: Tensor, v: Tensor) -> Tensor:
    """``maps [B, heads, N, M]`` times ``v [B, heads, M, d]``, in the dtype of ``v``."""
    with torch.autocast(v.device.type, enabled=False):
        return maps.to(v.dtype) @ v


class _Chunks:
    """Names the chunks of batch rows that one evaluation shows, also when a host shows them in several calls."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[int, int]] = Counter()

    def split(self, maps: Tensor, site: Site) -> Iterator[tuple[MapKey, Tensor]]:
        for branch, chunk in zip(site.branches, maps.chunk(len(site.branches)), strict=True):
            yield (site.index, branch, self._seen[site.index, branch]), chunk
            self._seen[site.index, branch] += 1


class CaptureMaps:
    """Stores the cross-attention maps of one evaluation; the output is the layer's own.

    Args:
        max_resolution: only layers whose query grid is at most this high and wide (latent pixels); None is all.

    Attributes:
        maps: ``[B, heads, N, M]`` fp32 by :data:`MapKey`.
        shown: whether the network had any cross-attention to look at, of whatever resolution.
    """

    def __init__(self, max_resolution: int | None = None):
        self.max_resolution = max_resolution
        self.maps: dict[MapKey, Tensor] = {}
        self.shown = False
        self._chunks = _Chunks()

    def wants(self, site: Site) -> bool:
        """Cross-attention up to the resolution."""
        self.shown |= site.kind == "cross"
        return site.kind == "cross" and (self.max_resolution is None or max(site.resolution) <= self.max_resolution)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """Store the maps and attend with them; shapes as in :class:`~.site.AttentionControl`."""
        maps = attention_maps(q, k)
        self.maps.update(self._chunks.split(maps.detach(), site))
        return apply_maps(maps, v)


class MapLoss:
    """Squared distance of one evaluation's cross-attention maps to ``reference``, summed inside the forward.

    pix2pix-zero (arXiv 2302.03027) Eq. 5 as its code computes it: the sum over layers of the mean over heads of the sum
    over pixels and tokens of ``(M_edit - M_ref)^2``, for every image apart.

    Args:
        reference: :attr:`CaptureMaps.maps` of the source at the same step; only the layers in it are looked at.
    """

    def __init__(self, reference: Mapping[MapKey, Tensor]):
        self.reference = reference
        self._layers = {index for index, _, _ in reference}
        self._chunks = _Chunks()
        self._total: Tensor | None = None

    @property
    def losses(self) -> Tensor:
        """Loss of each image, ``[B]`` fp32, differentiable.

        Raises:
            EditingError: no layer was seen.
        """
        if self._total is None:
            raise EditingError(
                "No cross-attention layer lies within the chosen resolution; choose a larger one or all."
            )
        return self._total

    def wants(self, site: Site) -> bool:
        """Exactly the layers with a reference."""
        return site.kind == "cross" and site.index in self._layers

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """Add this layer's loss and attend as usual.

        Raises:
            EditingError: the maps do not correspond to those of the reference.
        """
        maps = attention_maps(q, k)
        for key, chunk in self._chunks.split(maps, site):
            loss = (chunk - self._matching(key, chunk)).square().sum((-1, -2)).mean(1)
            self._total = loss if self._total is None else self._total + loss
        return apply_maps(maps, v)

    def _matching(self, key: MapKey, maps: Tensor) -> Tensor:
        reference = self.reference.get(key)
        if reference is None:
            raise EditingError(
                "The target conditioning has more parts than the source's; give both the same areas and combinations."
            )
        if reference.shape[-1] != maps.shape[-1]:
            raise EditingError(
                f"The source text is {reference.shape[-1]} tokens long and the target text {maps.shape[-1]}; "
                "use prompts that both fit into one chunk of 77 tokens, or both into as many."
            )
        if reference.shape != maps.shape:
            raise EditingError(
                "The source and target conditionings cover different areas or batches; give both the same."
            )
        return reference.to(maps.device)

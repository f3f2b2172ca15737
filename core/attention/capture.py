"""Controls that read cross-attention maps: keeping what those of one evaluation come from, and the loss against it.

A control lives for one network evaluation, so that what it keeps is of one step at most. What it keeps are the queries
and keys, in the network's own type; maps are built where they are compared, a layer at a time, because they are the
larger thing by far (77 numbers in fp32 for every pixel and head, where a query has 40 to 160 in fp16). They attend by
torch's own function and not by :attr:`~.site.Site.attend`, because a host's may have no gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..denoiser import Denoiser
from ..errors import EditingError
from .site import Site, fused_attention

#: Cross-attention layer (:attr:`Site.index`), branch, and which chunk of that branch (a host may split it by areas).
MapKey = tuple[int, int, int]
#: Queries ``[B, heads, N, d]`` and keys ``[B, heads, M, d]`` of one layer, of which a map is built.
Projections = tuple[Tensor, Tensor]
#: Cross-attention layers of Stable Diffusion 1, the network for which pix2pix-zero's figures were chosen.
PUBLISHED_LAYERS = 16


class LastLayerSeen(Exception):
    """Raised by a control out of a network that has shown it all it wants; see :func:`show`."""


def show(denoiser: Denoiser, x: Tensor, sigma: float, cond: Any, control: Any) -> Tensor | None:
    """Evaluate ``denoiser`` at ``x [B, C, H, W]`` for what ``control`` sees of it.

    A control may end the evaluation by :class:`LastLayerSeen`; then there is no prediction and None comes back. The
    part of the network that ran counts as a whole forward.
    """
    own = x.view_as(x)  # an alias of this call alone, by which its backward pass is counted
    try:
        return denoiser(own, sigma, cond, control=control)
    except LastLayerSeen:
        denoiser.evaluations.track(own)
        return None


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

    def split(self, q: Tensor, k: Tensor, site: Site) -> Iterator[tuple[MapKey, Projections]]:
        count = len(site.branches)
        for branch, *chunk in zip(site.branches, q.chunk(count), k.chunk(count), strict=True):
            yield (site.index, branch, self._seen[site.index, branch]), (chunk[0], chunk[1])
            self._seen[site.index, branch] += 1


class CaptureMaps:
    """Keeps what the cross-attention maps of one evaluation come from; the output is the layer's own.

    Args:
        largest: only layers whose query grid is at most so high and wide; None is all.
        until: ends the evaluation (:class:`LastLayerSeen`) once it has seen these, where nobody needs the prediction.

    Attributes:
        seen: by :data:`MapKey`, in the network's own type.
        grids: the query grids of all cross-attention that there was to look at, kept or not.
    """

    def __init__(self, largest: tuple[int, int] | None = None, until: Collection[MapKey] = ()):
        self.largest = largest
        self.seen: dict[MapKey, Projections] = {}
        self.grids: set[tuple[int, int]] = set()
        self._until = frozenset(until)
        self._chunks = _Chunks()

    @property
    def maps(self) -> dict[MapKey, Tensor]:
        """The maps themselves, ``[B, heads, N, M]`` fp32."""
        return {key: attention_maps(*projections) for key, projections in self.seen.items()}

    def wants(self, site: Site) -> bool:
        """Cross-attention up to the size."""
        if site.kind != "cross":
            return False
        self.grids.add(site.resolution)
        return self.largest is None or all(
            side <= limit for side, limit in zip(site.resolution, self.largest, strict=True)
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """Keep queries and keys, and attend; shapes as in :class:`~.site.AttentionControl`."""
        self.seen.update(self._chunks.split(q.detach(), k.detach(), site))
        if self._until and self._until == self.seen.keys():
            raise LastLayerSeen
        return fused_attention(q, k, v)


class MapLoss:
    """Squared distance of one evaluation's cross-attention maps to those of ``reference``, summed inside the forward.

    pix2pix-zero (arXiv 2302.03027) Eq. 5 as its code computes it for every image apart: of each layer the mean over
    heads of the sum over pixels and tokens of ``(M_edit - M_ref)^2``. The code adds up the 16 layers of Stable
    Diffusion 1; here it is 16 times the mean over the layers that are looked at, so that a step size means the same
    for every network and choice of layers, and the published figures what they meant.

    Args:
        reference: :attr:`CaptureMaps.seen` of the source at the same step; only the layers in it are looked at.
        to_the_end: run the network to its end; else it ends (:class:`LastLayerSeen`) after the last of those layers.
    """

    def __init__(self, reference: Mapping[MapKey, Projections], to_the_end: bool = True):
        self.reference = reference
        self._layers = {index for index, _, _ in reference}
        self._awaited = None if to_the_end else set(reference)
        self._chunks = _Chunks()
        self._total: Tensor | None = None

    @property
    def losses(self) -> Tensor:
        """Loss of each image, ``[B]`` fp32, differentiable.

        Raises:
            EditingError: no layer was seen.
        """
        if self._total is None:
            raise EditingError("The network showed no cross-attention layer that could be guided; choose all layers.")
        return self._total * (PUBLISHED_LAYERS / len(self._layers))

    def wants(self, site: Site) -> bool:
        """Exactly the layers with a reference."""
        return site.kind == "cross" and site.index in self._layers

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """Add this layer's loss and attend as usual.

        Raises:
            EditingError: the maps do not correspond to those of the reference.
        """
        for key, (query, keys) in self._chunks.split(q, k, site):
            # Only what goes in is kept for the backward pass, which builds the maps again.
            loss = checkpoint(
                partial(_layer_loss, self._matching(key, query, keys)),
                query,
                keys,
                use_reentrant=False,
                preserve_rng_state=False,
                determinism_check="none",
            )
            self._total = loss if self._total is None else self._total + loss
            if self._awaited is not None:
                self._awaited.discard(key)
        if self._awaited is not None and not self._awaited:
            raise LastLayerSeen
        return fused_attention(q, k, v)

    def _matching(self, key: MapKey, q: Tensor, k: Tensor) -> Projections:
        reference = self.reference.get(key)
        if reference is None:
            raise EditingError(
                "The target conditioning has more parts than the source's; give both the same areas and combinations."
            )
        own_q, own_k = reference
        if own_k.shape[-2] != k.shape[-2]:
            raise EditingError(
                f"The source text is {own_k.shape[-2]} tokens long and the target text {k.shape[-2]}; "
                "use prompts that both fit into one chunk of 77 tokens, or both into as many."
            )
        if own_q.shape != q.shape or own_k.shape != k.shape:
            raise EditingError(
                "The source and target conditionings cover different areas or batches; give both the same."
            )
        return own_q.to(q.device), own_k.to(q.device)


def _layer_loss(reference: Projections, q: Tensor, k: Tensor) -> Tensor:
    """``[B]``: mean over heads of the sum over pixels and tokens of the squared difference to the reference's map."""
    return (attention_maps(q, k) - attention_maps(*reference)).square().sum((-1, -2)).mean(1)

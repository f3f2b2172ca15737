"""Controls that keep attention and put it in place elsewhere: maps, or queries, keys and values, of self- and
cross-attention, by layer, branch and chunk.

A control lives for one network evaluation, as those of :mod:`.capture` do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import EditingError
from .capture import apply_maps, attention_maps
from .site import Kind, Site

#: Kind of attention, layer (:attr:`Site.index`), branch, and which chunk of that branch (a host may split it by areas).
PartKey = tuple[Kind, int, int, int]
OTHER_PARTS = (
    "The conditionings of source, target and negative have different parts at a step; give all the same areas, "
    "combinations and ranges, or plain prompts."
)
OTHER_AREAS = "The source and target conditionings cover different areas or batches; give both the same."


class SourceMissing(EditingError):
    """A branch was shown before the one it takes from: evaluate that one first, by itself."""


class Projections(NamedTuple):
    """``q [B, heads, N, d]``, ``k, v [B, heads, M, d]`` of one branch at one site."""

    q: Tensor
    k: Tensor
    v: Tensor


class Parts:
    """Names the chunks of batch rows that one evaluation shows, also when a host shows them in several calls."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[Kind, int, int]] = Counter()

    def split(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Iterator[tuple[PartKey, Projections]]:
        """Each chunk of a call with its name, in the order of the batch."""
        count = len(site.branches)
        for branch, *chunk in zip(site.branches, q.chunk(count), k.chunk(count), v.chunk(count), strict=True):
            place = (site.kind, site.index, branch)
            yield (*place, self._seen[place]), Projections(*chunk)
            self._seen[place] += 1


class StoreAttention:
    """Keeps the maps, or the queries, keys and values, of one evaluation; the output is the layer's own.

    Args:
        keep: "maps" builds them; "qkv" leaves the attention to the host's own function.
        kinds: of attention to keep.
        wants: which sites of those kinds; None is all.

    Attributes:
        kept: ``[B, heads, N, M]`` maps in fp32, or :class:`Projections`, by :data:`PartKey`.
    """

    def __init__(
        self,
        keep: Literal["maps", "qkv"] = "qkv",
        kinds: Sequence[Kind] = ("self", "cross"),
        wants: Callable[[Site], bool] | None = None,
    ):
        self.keep, self.kinds = keep, tuple(kinds)
        self.kept: dict[PartKey, Tensor | Projections] = {}
        self._wants = wants
        self._parts = Parts()

    def wants(self, site: Site) -> bool:
        """Sites of the kinds."""
        return site.kind in self.kinds and (self._wants is None or self._wants(site))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """Keep and attend; shapes as in :class:`~.site.AttentionControl`."""
        if self.keep == "qkv":
            self.kept.update(self._parts.split(q.detach(), k.detach(), v.detach(), site))
            return site.attend(q, k, v)
        made = []
        for key, part in self._parts.split(q, k, v, site):
            maps = attention_maps(part.q, part.k)
            self.kept[key] = maps.detach()
            made.append(apply_maps(maps, part.v))
        return torch.cat(made)


class InjectAttention:
    """Lets the attention of some branches take from that of another, at the same layer and in the same evaluation.

    Args:
        source: the branch that is taken from; it attends as it is.
        branches: how many branches the evaluation has.
        rule: ``(own, source's, site, key of the part)`` -> its output ``[B, heads, N, d]``, or None for its own.
        kinds: of attention it looks at.
        wants: which sites of those kinds; None is all.
        kept: the source's projections from an evaluation of its own (:class:`StoreAttention`), where this one does not
            show it.

    Attributes:
        shown: kinds of attention it was handed.
    """

    def __init__(
        self,
        source: int,
        branches: int,
        rule: Callable[[Projections, Projections, Site, PartKey], Tensor | None],
        kinds: Sequence[Kind] = ("self", "cross"),
        wants: Callable[[Site], bool] | None = None,
        kept: Mapping[PartKey, Tensor | Projections] | None = None,
    ):
        self.source, self.branches, self.rule, self.kinds = source, branches, rule, tuple(kinds)
        self.from_other = kept is not None
        self.shown: set[Kind] = set()
        self._found: dict[PartKey, Tensor | Projections] = dict(kept or {})
        self._wants = wants
        self._parts = Parts()

    def wants(self, site: Site) -> bool:
        """Sites of the kinds."""
        return site.kind in self.kinds and (self._wants is None or self._wants(site))

    def storing(self) -> StoreAttention:
        """A control that keeps of the source what this one looks at."""
        return StoreAttention("qkv", self.kinds, self._wants)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """The output with what the rule makes of each branch; shapes as in :class:`~.site.AttentionControl`.

        Raises:
            SourceMissing: the source comes later.
            EditingError: its conditioning has other parts or areas.
        """
        self.shown.add(site.kind)
        parts = list(self._parts.split(q, k, v, site))
        for key, part in parts:
            if key[2] == self.source:
                self._found[key] = part
        made, changed = [], False
        for key, part in parts:
            out = None if key[2] == self.source else self.rule(part, self._of_source(key, part), site, key)
            changed |= out is not None
            made.append(out)
        counts = Counter(site.branches)
        if len(counts) == self.branches and len(set(counts.values())) == 1:  # nobody comes later: keep nothing
            self._found = {key: part for key, part in self._found.items() if self.from_other or key[1] != site.index}
        if not changed:
            return site.attend(q, k, v)
        outs = [site.attend(*part) if out is None else out for (_, part), out in zip(parts, made, strict=True)]
        return torch.cat([out.to(q.dtype) for out in outs])

    def _of_source(self, key: PartKey, mine: Projections) -> Projections:
        kind, index, _, chunk = key
        found = self._found.get((kind, index, self.source, chunk))
        if not isinstance(found, Projections):
            raise EditingError(OTHER_PARTS) if self.from_other else SourceMissing(OTHER_PARTS)
        if found.q.shape != mine.q.shape:
            raise EditingError(OTHER_AREAS)
        return found

"""Showing controls what residual blocks put out, and controls that keep it and put it in place elsewhere: :mod:`.store`
of features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import EditingError
from .site import Block, FeatureControl, FeatureSite, Kind, Site
from .store import OTHER_AREAS, OTHER_PARTS, SourceMissing

#: Part of the U-Net, residual block (:attr:`FeatureSite.index`), branch, and which chunk of that branch.
FeatureKey = tuple[Block, int, int, int]


@contextmanager
def features_shown(sites: Iterable[tuple[nn.Module, FeatureSite]], control: object | None) -> Iterator[None]:
    """Show what the layers at ``sites`` put out inside the ``with`` block to ``control``, where it is a
    :class:`~.site.FeatureControl` and wants it; its hooks are gone at the end, whatever happens.
    """
    if not isinstance(control, FeatureControl):
        yield
        return
    feature = control.feature
    handles = []
    try:
        for layer, site in sites:
            if control.wants_feature(site):
                handles.append(layer.register_forward_hook(lambda _, __, out, site=site: feature(out, site)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class StoreFeatures:
    """Keeps what the wanted residual blocks put out; a control that looks at no attention.

    Attributes:
        kept: ``[B, C, h, w]`` by :data:`FeatureKey`.
    """

    kinds: tuple[Kind, ...] = ()

    def __init__(self, wants: Callable[[FeatureSite], bool]):
        self.kept: dict[FeatureKey, Tensor] = {}
        self._wants = wants
        self._seen: Counter[tuple[Block, int, int]] = Counter()

    def wants(self, site: Site) -> bool:
        """No attention."""
        return False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """The layer's own attention."""
        return site.attend(q, k, v)

    def wants_feature(self, site: FeatureSite) -> bool:
        """See :class:`~.site.FeatureControl`."""
        return self._wants(site)

    def feature(self, output: Tensor, site: FeatureSite) -> Tensor:
        """Keep each branch's part."""
        for key, part in self._split(output, site):
            self.kept[key] = part.detach()
        return output

    def _split(self, output: Tensor, site: FeatureSite) -> list[tuple[FeatureKey, Tensor]]:
        parts = []
        for branch, part in zip(site.branches, output.chunk(len(site.branches)), strict=True):
            place = (site.block, site.index, branch)
            parts.append(((*place, self._seen[place]), part))
            self._seen[place] += 1
        return parts


class InjectFeatures(StoreFeatures):
    """Puts the source's output of the wanted residual blocks in the place of all other branches'.

    Args:
        source: the branch that is taken from.
        wants: which residual blocks.
        kept: the source's outputs from an evaluation of its own, where this one does not show it.
    """

    def __init__(
        self, source: int, wants: Callable[[FeatureSite], bool], kept: Mapping[FeatureKey, Tensor] | None = None
    ):
        super().__init__(wants)
        self.source, self.from_other = source, kept is not None
        self.kept = dict(kept or {})

    def feature(self, output: Tensor, site: FeatureSite) -> Tensor:
        """The output with the source's in every branch.

        Raises:
            SourceMissing: the source comes later.
            EditingError: its conditioning has other parts or areas.
        """
        parts = self._split(output, site)
        self.kept |= {key: part for key, part in parts if key[2] == self.source}
        made = []
        for key, part in parts:
            taken = self.kept.get((*key[:2], self.source, key[3]))
            if taken is None:
                raise EditingError(OTHER_PARTS) if self.from_other else SourceMissing(OTHER_PARTS)
            if taken.shape != part.shape:
                raise EditingError(OTHER_AREAS)
            made.append(taken)
        return torch.cat(made)

"""What a REGION_EDITOR socket carries: an editor of boxes that loads its models only when a region search asks for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from ..core.denoiser import Callback
from ..core.regions.editors import Editor
from .host import ClipScorerType, RegionEditorType, RegionNetworkType, VisionFeaturesType

__all__ = ["ClipScorerType", "RegionEditor", "RegionEditorType", "RegionNetworkType", "VisionFeaturesType"]


@dataclass(frozen=True, eq=False)
class RegionEditor:
    """An editor to be opened for one image.

    Attributes:
        opener: does what :meth:`open` says.
        title: what :meth:`describe` says.
    """

    opener: Callable[[Tensor, Callback], AbstractContextManager[Editor]]
    title: str

    def open(self, image: Tensor, progress: Callback) -> AbstractContextManager[Editor]:
        """The editor, for as long as the ``with`` block lasts; nothing of it stays loaded or patched on its account afterwards.

        Its renders are normal tensors (no inference tensors) without gradients, whatever the caller's mode.

        Args:
            image: ``[1, 3, H, W]`` in 0..1, a normal tensor; the one to be edited.
            progress: told after every step of every render. The host's Cancel is looked at before; both may raise.

        Raises:
            EditingError: the image, or what the editor holds, cannot be used.
        """
        return self.opener(image, progress)

    def describe(self) -> str:
        """One line for the report."""
        return self.title

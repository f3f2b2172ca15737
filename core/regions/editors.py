"""What the region search asks of an editor, and what an editor asks of the program it runs in.

An editor is anything that fills a masked region of an image. The search never differentiates through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from ..denoiser import Denoiser
from .proposals import Box

if TYPE_CHECKING:
    from .paste import Cut

#: "screen" is a cheap render of few steps that ranks boxes, "full" the one that is shown.
Quality = Literal["screen", "full"]

#: ``[1, 3, h, w]`` in 0..1 to a scaled latent ``[1, C, h / 8, w / 8]``, or back: one half of a VAE.
ImageMap = Callable[[Tensor], Tensor]

#: Conditionings by what they are for: "positive", "negative", "source".
Conds = Mapping[str, Any]

#: The mathematics of an edit: a denoiser, the latent and the conditionings that the denoiser reads -> the edited
#: latent.
Work = Callable[[Denoiser, Tensor, Conds], Tensor]


class Sampling(Protocol):
    """How an editor gets its network: for each run of ``work`` a host loads it and prepares what it reads."""

    def __call__(self, latent: Tensor, conds: Conds, work: Work) -> Tensor:
        """What ``work`` returns.

        Args:
            latent: scaled, ``[1, C, h, w]``; ``work`` gets it on the network's device.
            conds: as the editor was given them; ``work`` gets them as the denoiser reads them.
        """
        ...


def sampling_with(denoiser: Denoiser) -> Sampling:
    """Without a host: ``denoiser`` is ready, and so are the conditionings."""

    def sampling(latent: Tensor, conds: Conds, work: Work) -> Tensor:
        return work(denoiser, latent, conds)

    return sampling


class Editor(Protocol):
    """Edits an image inside a mask, towards a text that it holds."""

    @property
    def identity(self) -> str:
        """Names everything that decides the result besides the arguments of :meth:`render`: model, texts, steps, cfg,
        feather."""
        ...

    def cost(self, quality: Quality) -> float:
        """Network sample-evaluations (u) of one render."""
        ...

    def render(self, image: Tensor, mask: Tensor, box: Box, *, seed: int, quality: Quality) -> Tensor:
        """The edited image.

        Args:
            image: ``[1, 3, H, W]`` in 0..1.
            mask: ``[1, H, W]``, 1 where the image may change; inside ``box``.
            box: the tight bounding box of ``mask`` in pixels.
            seed: of all noise; the same arguments give the same result.

        Returns:
            ``[1, 3, H, W]`` in 0..1.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sampled:
    """A box that is painted but not decoded yet.

    Attributes:
        cut: where it was cut out of the image.
        latent: scaled, ``[1, C, h, w]``.
        new: it was not kept from an earlier run.
    """

    cut: Cut
    latent: Tensor
    new: bool


@runtime_checkable
class Previewing(Protocol):
    """An editor that can also guess its edit of a whole image at once, which learning through the mask needs."""

    @property
    def preview_cost(self) -> float:
        """Network sample-evaluations (u) of one preview."""
        ...

    def preview(self, image: Tensor, *, seed: int) -> Tensor:
        """A guess of ``image [1, 3, H, W]`` edited everywhere, of the same shape, in 0..1."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """An editor whose renders of an image share work (its inversion, a whole edit to screen from) that
    :meth:`Editor.cost` leaves out.

    Attributes:
        shared_evaluations: u of that so far.
    """

    shared_evaluations: int

    @property
    def screening_cost(self) -> float:
        """u that screening any number of boxes of an image costs once, besides each box's own."""
        ...


@runtime_checkable
class Locating(Protocol):
    """An editor that can show where it would change a whole image, because it keeps the layout."""

    def change(self, image: Tensor) -> Tensor:
        """How much an edit of all of ``image [1, 3, H, W]`` acts at each place, ``[h, w]`` of any size, 0 or more."""
        ...

"""What the region search asks of an editor, and what an editor asks of the program it runs in.

An editor is anything that fills a masked region of an image. The search never differentiates through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from ..content_hash import content_hash
from ..denoiser import Denoiser, Progress
from .cache import RenderCache
from .proposals import Box

if TYPE_CHECKING:
    from .paste import Cut

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

    def cost(self) -> float:
        """Network sample-evaluations (u) of one render."""
        ...

    def render(self, image: Tensor, mask: Tensor, box: Box, *, seed: int) -> Tensor:
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
class Batching(Protocol):
    """An editor that paints many boxes at once and decodes them afterwards."""

    def sample_all(
        self, image: Tensor, masks: Sequence[Tensor], boxes: Sequence[Box], *, seed: int, kept: RenderCache | None
    ) -> list[Sampled]:
        """Every box as a latent; what is sampled joins ``kept``, by content."""
        ...

    def finish(self, image: Tensor, sampled: Sampled) -> Tensor:
        """The picture ``[1, 3, H, W]`` of one painted box."""
        ...


#: Makes an editor ready for an image ``[1, 3, H, W]`` in 0..1; the function is told of every step of its renders.
OpenEditor = Callable[[Tensor, Callable[[Progress], None]], AbstractContextManager[Editor]]


@runtime_checkable
class Locating(Protocol):
    """An editor that can show where it would change a whole image, because it keeps the layout."""

    def change(self, image: Tensor) -> Tensor:
        """How much an edit of all of ``image [1, 3, H, W]`` acts at each place, ``[h, w]`` of any size, 0 or more."""
        ...


def rendered(
    editor: Editor, image: Tensor, masks: Sequence[Tensor], boxes: Sequence[Box], seed: int, kept: RenderCache
) -> Iterator[tuple[Tensor, bool]]:
    """Each box's edit ``[1, 3, H, W]``, and whether it had to be made; what is made is kept as soon as it is there."""
    if isinstance(editor, Batching):
        for sampled in editor.sample_all(image, masks, boxes, seed=seed, kept=kept):
            yield editor.finish(image, sampled), sampled.new
        return
    picture = content_hash(image)
    for mask, box in zip(masks, boxes, strict=True):
        key = content_hash(picture, mask, f"{editor.identity} {seed}")
        found = kept.get(key, image, box)
        if found is not None:
            yield found, False
            continue
        edited = editor.render(image, mask, box, seed=seed).detach().cpu()
        kept.put(key, edited, image, box)
        yield edited, True

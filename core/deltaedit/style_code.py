"""A face as StyleGAN2's style space S sees it: one vector for each convolution, one for each layer that makes colour.

S (Wu et al., CVPR 2021, arXiv 2011.12799) is what a generator's affine layers make of W+: the factors by which each
convolution's input channels are multiplied. DeltaEdit (section 3.3) splits it by the resolution of the layers into
coarse (4 and 8 pixels), medium (16 and 32) and fine (all above).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import EditingError

LEVELS = ("coarse", "medium", "fine")
#: The largest resolution of the first two levels, in pixels.
COARSE, MEDIUM = 8, 32


def level_of(resolution: int) -> int:
    """Index in :data:`LEVELS` of a layer that works at ``resolution`` pixels."""
    return 0 if resolution <= COARSE else 1 if resolution <= MEDIUM else 2


@dataclass(frozen=True)
class StyleLayout:
    """How a generator's style space is laid out.

    Attributes:
        convs: ``(resolution, channels)`` of each modulated convolution, in the order in which they run; 17 for
            1024-pixel FFHQ, with 6,048 channels together.
        rgbs: the same of each layer that makes colour (toRGB); 9 with 3,040 channels there.
    """

    convs: tuple[tuple[int, int], ...]
    rgbs: tuple[tuple[int, int], ...]

    @property
    def conv_widths(self) -> list[int]:
        """Channels of each convolution."""
        return [channels for _, channels in self.convs]

    @property
    def rgb_widths(self) -> list[int]:
        """Channels of each colour layer."""
        return [channels for _, channels in self.rgbs]

    @property
    def levels(self) -> list[list[int]]:
        """Channels of the convolutions of each level, e.g. ``[[512] * 3, [512] * 4, [512, 512, 512, 256, ...]]``."""
        split: list[list[int]] = [[], [], []]
        for resolution, channels in self.convs:
            split[level_of(resolution)].append(channels)
        return split

    @property
    def level_widths(self) -> list[int]:
        """Channels of each level; FFHQ: 1536, 2048, 2464."""
        return [sum(level) for level in self.levels]

    @property
    def width(self) -> int:
        """Channels of all convolutions."""
        return sum(self.conv_widths)

    @property
    def rows(self) -> int:
        """Rows of W+: one a convolution, and the last colour layer's."""
        return len(self.convs) + 1


@dataclass(frozen=True)
class StyleCode:
    """Faces in a generator's style space.

    Attributes:
        layout: of the generator that they belong to.
        convs: what the convolutions are multiplied with, flat ``[B, layout.width]``; coarse, medium and fine follow
            each other, as in DeltaEdit.
        rgbs: what the colour layers are multiplied with, flat.
        generator: identity of that generator.
        w_plus: the W+ rows ``[B, layout.rows, style_dim]`` that the code was made of; None once S was edited.
        facts: what a report about it should say, e.g. how well it rebuilds its picture.
    """

    layout: StyleLayout
    convs: Tensor
    rgbs: Tensor
    generator: str
    w_plus: Tensor | None = None
    facts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.convs)

    def conv_styles(self) -> Sequence[Tensor]:
        """One ``[B, channels]`` for each convolution."""
        return self.convs.split(self.layout.conv_widths, 1)

    def rgb_styles(self) -> Sequence[Tensor]:
        """One ``[B, channels]`` for each colour layer."""
        return self.rgbs.split(self.layout.rgb_widths, 1)

    def level_styles(self) -> Sequence[Tensor]:
        """Coarse, medium and fine, ``[B, channels]`` each."""
        return self.convs.split(self.layout.level_widths, 1)

    def with_convs(self, convs: Tensor) -> StyleCode:
        """The same faces with other factors for the convolutions; colours' factors stay (DeltaEdit, section 3.3)."""
        return replace(self, convs=convs, w_plus=None)

    def select(self, rows: slice | Tensor) -> StyleCode:
        """Some of the faces."""
        w_plus = None if self.w_plus is None else self.w_plus[rows]
        return replace(self, convs=self.convs[rows], rgbs=self.rgbs[rows], w_plus=w_plus)

    def to(self, device: torch.device | str) -> StyleCode:
        """The same code elsewhere."""
        w_plus = None if self.w_plus is None else self.w_plus.to(device)
        return replace(self, convs=self.convs.to(device), rgbs=self.rgbs.to(device), w_plus=w_plus)


def check_partner(first: StyleCode, second: StyleCode) -> None:
    """Raise :class:`EditingError` unless two codes belong to one generator and their batches fit each other."""
    if first.generator != second.generator or first.layout != second.layout:
        raise EditingError(
            "The two style codes come from different generators, whose channels mean different things; make both with "
            "the same StyleGAN2 Loader."
        )
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise EditingError(
            f"One style code holds {len(first)} faces and the other {len(second)}; use equally many, or one."
        )


def blend(first: StyleCode, second: StyleCode, amounts: Sequence[float], colours: bool = True) -> StyleCode:
    """Part of the way from one code to another, level by level.

    With one amount for all levels this is the paper's attribute interpolation (Eq. 16 for S); with 0 for some levels
    and 1 for others its style mixing.

    Args:
        amounts: of coarse, medium and fine; 0 is ``first``, 1 is ``second``.
        colours: the colour layers' factors go along.
    """
    check_partner(first, second)
    if len(amounts) != len(LEVELS):
        raise EditingError(f"{len(amounts)} amounts were given; blending needs one each for coarse, medium and fine.")

    def mixed(a: Tensor, b: Tensor, resolutions: Sequence[tuple[int, int]]) -> Tensor:
        weights = [torch.full((channels,), float(amounts[level_of(size)])) for size, channels in resolutions]
        return a.lerp(b.to(a), torch.cat(weights).to(a))  # exactly a where the weight is 0, exactly b where it is 1

    layout = first.layout
    rgbs = mixed(first.rgbs, second.rgbs, layout.rgbs) if colours else first.rgbs
    convs = mixed(first.convs, second.convs, layout.convs)
    return StyleCode(layout, convs, rgbs.expand(len(convs), -1), first.generator)


def interpolate(
    first: StyleCode, second: StyleCode, amounts: Sequence[float], steps: int, colours: bool = True
) -> StyleCode:
    """Several codes on the way of :func:`blend`, ``first`` and the blend included; of a batch pair after pair.

    Args:
        steps: codes for each pair; 1 gives the blend alone.
    """
    parts = [1.0] if steps == 1 else [step / (steps - 1) for step in range(steps)]
    made = [blend(first, second, [part * amount for amount in amounts], colours) for part in parts]
    convs, rgbs = (torch.stack([getattr(code, name) for code in made], 1).flatten(0, 1) for name in ("convs", "rgbs"))
    return replace(made[0], convs=convs, rgbs=rgbs)


def summary(code: StyleCode) -> dict[str, Any]:
    """Facts for a report: faces, layers, channels of each level."""
    return {
        "faces": len(code),
        "layers": len(code.layout.convs),
        "channels": dict(zip(LEVELS, code.layout.level_widths, strict=True)),
    }

"""The Delta Mapper: from a style code and a difference of CLIP features to a direction in style space.

Section 4.1, Eq. 3 to 5: each level (coarse, medium, fine) has a style module for s, a condition module for the image's
CLIP features beside the difference, and a fusion module for both. Trained on differences of images, used with
differences of texts.

Two architectures. ``released`` is that of the published weights: four equalised layers a module, and coarse and medium
layers share one module, which never learns which layer it works on. ``flat`` sees a level whole, with ordinary layers
and a linear last one; it learns several times faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError
from ..models.clip import OWN
from .relevance import Relevance
from .style_code import LEVELS, StyleCode, StyleLayout
from .stylegan2 import MAPPING_RATE, EqualLinear, PixelNorm, leaky

RELEASED, FLAT = "released", "flat"
#: Layers of a module, in both architectures.
LAYERS = 4


def condition(image_features: Tensor, difference: Tensor) -> Tensor:
    """What the condition modules see: ``[B, 2P]`` from unit features and a difference, made unit length (Eq. 3).

    A difference of zero stays zero.
    """
    return torch.cat([image_features, functional.normalize(difference, dim=1)], 1)


class ReleasedModule(nn.Module):
    """Four equalised layers with leaky ReLU, the last one included; pixel norm first, where ``normalise``."""

    def __init__(self, inputs: int, outputs: int, normalise: bool, dim: int):
        super().__init__()
        widths = [inputs, *[outputs] * LAYERS]
        layers: list[nn.Module] = [PixelNorm(dim)] if normalise else []
        for a, b in itertools.pairwise(widths):
            layers.append(EqualLinear(a, b, rate=MAPPING_RATE, activate=True))
        self.mapping = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` -> ``[..., outputs]``."""
        made: Tensor = self.mapping(x)
        return made


class Leaky(nn.Module):
    """Leaky ReLU that keeps the variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return leaky(x)


def flat_module(inputs: int, hidden: int, outputs: int, dropout: float, linear: bool) -> nn.Sequential:
    """Four ordinary layers; dropout after the first two, which see single channels."""
    widths = [inputs, *[hidden] * (LAYERS - 1), outputs]
    parts: list[nn.Module] = []
    for index, (a, b) in enumerate(itertools.pairwise(widths)):
        parts.append(nn.Linear(a, b))
        if index < 2:
            parts.append(nn.Dropout(dropout))
        if index < LAYERS - 1 or not linear:
            parts.append(Leaky())
    return nn.Sequential(*parts)


class DeltaMapper(nn.Module):
    """A mapper for one generator's style space and one CLIP.

    Args:
        levels: channels of the layers of each level, see :attr:`~.style_code.StyleLayout.levels`.
        clip_width: P of the CLIP.
        architecture: :data:`RELEASED` or :data:`FLAT`.
        hidden: width of the flat architecture's modules.
        dropout: of the flat architecture, in training.
        across_channels: of the released architecture: pixel norm over channels, as StyleGAN means it; False: over
            layers, as the published program computed it, for its weights.

    Attributes:
        mean, deviation: of each channel ``[S]`` over the codes it was trained on; styles are standardised by them
            (0 and 1 for the published weights).
        layout: of the generator, where known.
        generator, clip: identities of the generator and CLIP that it was trained for, "" where unknown.
        preprocessing: how the pictures that it was trained on were made ready for CLIP, one of
            :data:`~..models.clip.PREPROCESSINGS`; those that it edits must be, too.
        relevance: matrix that was found in training, where one was.
        facts: about its training, for a report.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        levels: Sequence[Sequence[int]],
        clip_width: int,
        architecture: str = FLAT,
        hidden: int = 256,
        dropout: float = 0.1,
        across_channels: bool = True,
    ):
        super().__init__()
        if len(levels) != len(LEVELS) or not all(levels):
            raise EditingError(
                "A Delta Mapper needs a generator with coarse, medium and fine layers: 64 pixels or more."
            )
        self.levels = [list(level) for level in levels]
        self.widths = [sum(level) for level in self.levels]
        self.clip_width, self.architecture, self.hidden, self.dropout = clip_width, architecture, hidden, dropout
        self.across_channels = across_channels
        self.layout: StyleLayout | None = None
        self.generator = self.clip = ""
        self.preprocessing = OWN
        self.relevance: Relevance | None = None
        self.facts: dict[str, str] = {}
        for name, level in zip(LEVELS, self.levels, strict=True):
            shared = architecture == RELEASED and name != LEVELS[-1]
            if shared and len(set(level)) > 1:
                raise EditingError(
                    f"The released architecture shares one module among the {name} layers, which here have "
                    f"{sorted(set(level))} channels; choose the flat architecture for this generator."
                )
            width = level[0] if shared else sum(level)
            for kind, module in self._modules_of(width).items():
                self.add_module(f"{kind}_{name}", module)
        self.register_buffer("mean", torch.zeros(sum(self.widths)))
        self.register_buffer("deviation", torch.ones(sum(self.widths)))

    def _modules_of(self, width: int) -> Mapping[str, nn.Module]:
        given = 2 * self.clip_width
        if self.architecture == RELEASED:
            # [B, layers, channels] for shared modules, [B, channels] for the others and for the condition
            dim = -1 if self.across_channels else 1
            return {
                "sm": ReleasedModule(width, width, True, dim),
                "cm": ReleasedModule(given, width, True, dim),
                "fm": ReleasedModule(2 * width, width, False, dim),
            }
        fusion = flat_module(2 * self.hidden, self.hidden, width, 0, True)
        last = fusion[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():  # begins near no change
            last.weight.mul_(0.3)
            last.bias.zero_()
        return {
            "sm": flat_module(width, self.hidden, self.hidden, 0, False),
            "cm": flat_module(given, self.hidden, self.hidden, self.dropout, False),
            "fm": fusion,
        }

    def forward(self, styles: Tensor, given: Tensor) -> Tensor:
        """Standardised change ``[B, S]`` of standardised ``styles [B, S]`` under :func:`condition` ``[B, 2P]``."""
        changes = []
        for name, level, part in zip(LEVELS, self.levels, styles.split(self.widths, 1), strict=True):
            style, conditions, fusion = (getattr(self, f"{kind}_{name}") for kind in ("sm", "cm", "fm"))
            seen = conditions(given)
            if self.architecture == RELEASED and name != LEVELS[-1]:
                part = part.unflatten(1, (len(level), level[0]))
                seen = seen[:, None].expand(-1, len(level), -1)
            changes.append(fusion(torch.cat([style(part), seen], -1)).flatten(1))
        return torch.cat(changes, 1)

    def standardised(self, convs: Tensor) -> Tensor:
        """Styles ``[B, S]`` in units of their deviation over the training codes."""
        return (convs - self.mean) / self.deviation

    def check(self, code: StyleCode, clip: str, clip_width: int) -> None:
        """Raise :class:`EditingError` where a code or a CLIP is not the one that this mapper was trained for."""
        if code.layout.levels != self.levels:
            raise EditingError(
                f"This mapper was trained for another generator ({sum(self.widths)} style channels; the code has "
                f"{code.layout.width}); use the generator it names, or train a mapper for yours with DeltaEdit Mapper "
                "Trainer."
            )
        if self.generator and code.generator != self.generator:
            raise EditingError(
                "This mapper was trained for other weights of this generator, where the channels mean something else; "
                "load those, or train a mapper for yours with DeltaEdit Mapper Trainer."
            )
        if clip_width != self.clip_width:
            raise EditingError(
                f"This mapper was trained with another CLIP ({self.clip_width} features; the wired one gives "
                f"{clip_width}); wire that one."
            )
        if self.clip and clip != self.clip:
            raise EditingError("This mapper was trained with another CLIP, of as many features; wire that one.")

    @torch.no_grad()
    def change(self, convs: Tensor, image_features: Tensor, difference: Tensor, subtract_idle: bool = False) -> Tensor:
        """Raw change of the convolutions' styles ``[B, S]`` (Eq. 3, or Eq. 4 with texts).

        Args:
            convs: ``[B, S]``.
            image_features: unit ``[B, P]``.
            difference: ``[B, P]`` of any length; rows of zero change nothing.
            subtract_idle: without what the mapper answers to no difference at all, which is not zero: it pulls towards
                the average face.
        """
        styles, given = self.standardised(convs), condition(image_features, difference)
        if subtract_idle:  # both in one pass: for few faces it is the reading of the weights that takes time
            idle = condition(image_features, torch.zeros_like(difference))
            asked, unasked = self(styles.repeat(2, 1), torch.cat([given, idle])).chunk(2)
            made = asked - unasked
        else:
            made = self(styles, given)
        moved = difference.abs().sum(1, keepdim=True) > 0
        return torch.where(moved, made * self.deviation, torch.zeros_like(convs))

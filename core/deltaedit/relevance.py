"""Which style channels an edit may move: the relevance matrix R_s (section 4.1, after StyleCLIP's global directions).

Row c holds the unit CLIP direction that channel c shows when it moves. A channel takes part in an edit when that
direction agrees with the text's difference: |R_s . dt| >= tau as printed, or among the share of channels that agree
most, which means the same whatever CLIP's scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from .style_code import StyleCode

PERTURBATION, COVARIANCE, BOTH, RELEASED = "perturbation", "covariance", "both", "released"


@dataclass(frozen=True)
class Relevance:
    """A relevance matrix.

    Attributes:
        matrix: ``[S, P]``; rows of unit length, or of zero where nothing was seen.
        kind: how it was found, :data:`PERTURBATION` (the paper's), :data:`COVARIANCE`, :data:`BOTH`, or
            :data:`RELEASED` (a file of the paper's authors).
        generator, clip: identities; "" where unknown.
    """

    matrix: Tensor
    kind: str
    generator: str = ""
    clip: str = ""

    def check(self, code: StyleCode, clip: str, clip_width: int) -> None:
        """Raise :class:`EditingError` where a code or a CLIP is not the one that this matrix was found for."""
        channels, width = self.matrix.shape
        if channels != code.layout.width or (self.generator and code.generator != self.generator):
            raise EditingError(
                f"The relevance matrix was made for another generator ({channels} style channels; the code has "
                f"{code.layout.width}); use that one's, or make one with Relevance Matrix."
            )
        if width != clip_width or (self.clip and clip != self.clip):
            raise EditingError(
                f"The relevance matrix was made with another CLIP ({width} features; the wired one gives "
                f"{clip_width}); wire that one, or make a matrix with Relevance Matrix."
            )

    def agreement(self, difference: Tensor) -> Tensor:
        """``|R_s . difference|``, ``[B, S]`` from ``[B, P]``."""
        if difference.shape[1] != self.matrix.shape[1]:
            raise EditingError(
                f"The relevance matrix is of a CLIP with {self.matrix.shape[1]} features and the texts' have "
                f"{difference.shape[1]}; use the one that was made with this CLIP."
            )
        return (difference @ self.matrix.T.to(difference)).abs()

    def above(self, difference: Tensor, threshold: float) -> Tensor:
        """Which channels take part ``[B, S]``: agreement of at least ``threshold`` (tau, .03 in the paper).

        Args:
            difference: of unit features, not itself made unit length, as the published program has it.
        """
        return self.agreement(difference) >= threshold

    def most(self, difference: Tensor, share: float) -> Tensor:
        """Which channels take part ``[B, S]``: the ``share`` of them (0..1) that agree most; ties all take part."""
        agreement = self.agreement(difference)
        keep = round(share * agreement.shape[1])
        if keep == 0:
            return torch.zeros_like(agreement, dtype=torch.bool)
        least = agreement.kthvalue(agreement.shape[1] - keep + 1, dim=1, keepdim=True).values
        return agreement >= least


def from_covariance(styles: Tensor, image_features: Tensor, generator: str = "", clip: str = "") -> Relevance:
    """What the training codes themselves show: cross-covariance of styles and CLIP features, rows made unit length.

    Args:
        styles: standardised ``[N, S]``.
        image_features: ``[N, P]``, rows matching.
    """
    if len(styles) != len(image_features) or len(styles) < 2:
        raise EditingError("Relevance by covariance needs as many CLIP features as style codes, and at least two.")
    centred = image_features - image_features.mean(0)
    matrix = (styles - styles.mean(0)).T @ centred / (len(styles) - 1)
    length = matrix.norm(dim=1, keepdim=True)
    return Relevance(torch.where(length > 0, matrix / length.clamp_min(1e-12), matrix), COVARIANCE, generator, clip)


def both(covariance: Relevance, perturbation: Relevance) -> Relevance:
    """The direction halfway between those that two kinds of looking found, channel by channel.

    Faces tell what a channel goes along with, probing what it draws; a channel that is relevant must do both.

    Raises:
        EditingError: matrices of different generators or CLIPs.
    """
    first, second = covariance, perturbation
    same = (first.generator, first.clip) == (second.generator, second.clip)
    if first.matrix.shape != second.matrix.shape or not same:
        raise EditingError("The two relevance matrices are of different generators or CLIPs; make both of the same.")
    rows = functional.normalize(first.matrix, dim=1) + functional.normalize(second.matrix, dim=1)
    return Relevance(functional.normalize(rows, dim=1), BOTH, first.generator, first.clip)

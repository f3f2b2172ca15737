"""Frechet distance between two sets of pictures as a network sees them (Heusel et al., arXiv 1706.08500, Eq. 6)."""

from __future__ import annotations

from torch import Tensor, nn

from ..denoiser import check_finite
from ..errors import EditingError
from .checks import torchmetrics_part


def feature_fid(features: Tensor, reference: Tensor) -> float:
    """Frechet distance of two sets of features ``[N, D]`` and ``[M, D]``, at least 2 of each; 0 for equal sets.

    ``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`` with means m and covariances C, computed by torchmetrics in fp64. The
    features are those of any network, a classifier's or a vision model's: name it beside the figure. It is "FID" only
    with the Inception network of the papers, and it falls with more pictures, so compare sets of equal size.

    Raises:
        EditingError: fewer than 2 pictures on a side, features of different networks, not a number, or torchmetrics is
            not installed.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise EditingError(
            f"The features have shapes {list(features.shape)} and {list(reference.shape)}; compute both with one "
            "network, [pictures, features]."
        )
    if min(len(features), len(reference)) < 2:
        raise EditingError(
            f"There are {len(features)} and {len(reference)} pictures; a Frechet distance needs at least 2 on each "
            "side, and says little below some hundreds."
        )
    for side in (features, reference):
        check_finite(side, "A feature")
    package = torchmetrics_part("image.fid", "A Frechet distance")
    given = nn.Identity()
    given.num_features = features.shape[1]  # type: ignore[assignment]
    distance = package.FrechetInceptionDistance(feature=given)
    # The distance does not change with a common shift, and torchmetrics' sums of squares lose fewer digits near 0.
    middle = reference.cpu().double().mean(0)
    distance.update(reference.cpu().double() - middle, real=True)
    distance.update(features.cpu().double() - middle, real=False)
    return max(0.0, float(distance.compute()))

"""The learning signal: the expected loss of the policy, exactly or from samples.

The released code has none: its editor returns pictures without gradient and its network never changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import EditingError


def expected_loss(logits: Tensor, losses: Tensor) -> Tensor:
    """Mean over anchors of sum_j p_kj l_kj with ``p_k = softmax(logits_k)``; its gradient on logit j is ``p_j (l_j - mean l) / K``.

    Args:
        logits: ``[K, M]``, minus infinity in empty slots.
        losses: ``[K, M]``, NaN where unknown; the softmax is over what is known, and anchors without any are left out.

    Returns:
        A scalar.
    """
    known = torch.isfinite(losses).to(logits.device) & torch.isfinite(logits)
    rows = known.any(1)
    chances = logits.masked_fill(~known, float("-inf"))[rows].softmax(1)
    values = losses.to(chances).masked_fill(~known, 0.0)[rows]
    return (chances * values).sum(1).mean()


def reinforce_loss(logits: Tensor, choices: Tensor, losses: Tensor) -> Tensor:
    """A scalar whose gradient is an unbiased estimate of that of :func:`expected_loss`, from n draws of each anchor.

    REINFORCE with the leave-one-out baseline (Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019):
    ``mean_i (l_i - mean of the other l) log p(choice_i)``.

    Args:
        logits: ``[K, M]``.
        choices: ``[n, K]`` slots, drawn independently from ``softmax(logits)``.
        losses: ``[n, K]`` of the choices.

    Raises:
        EditingError: fewer than two draws, which have no baseline.
    """
    draws = len(choices)
    if draws < 2:
        raise EditingError(f"draws is {draws}; use 2 or more.")
    values = losses.to(logits)
    others = (values.sum(0) - values) / (draws - 1)
    chosen = logits.log_softmax(1).expand(draws, -1, -1).gather(2, choices.to(logits.device)[..., None])[..., 0]
    return ((values - others) * chosen).mean()

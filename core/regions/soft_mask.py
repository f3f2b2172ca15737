"""Gradients through the mask itself (section 3.1 as it was meant): a differentiable guess of the edit is blended in by
a soft mask.

The guess is one prediction of the clean image under the target text. A plain model's does not depend on the mask, so a
single one serves every box and every step, and after it learning costs only CLIP.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import EditingError
from ..inversion import check_latent
from ..sampling import guided, require_negative
from .network import gumbel_straight_through
from .table import RewardTable

PREVIEW_STEPS = 50  # grid on which the level of a preview is counted


@runtime_checkable
class DifferentiableJudge(Protocol):
    """A judge whose losses have gradients, as :class:`~.rewards.ClipJudge`."""

    def terms(self, edited: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(L_Clip, L_Dir, L_Str)`` of ``edited [1, 3, H, W]`` in 0..1."""
        ...


@torch.no_grad()
def one_step_guess(
    denoiser: Denoiser,
    latent: Tensor,
    cond: Any,
    uncond: Any | None = None,
    *,
    cfg: float = 5.0,
    level: float = 0.6,
    seed: int = 0,
) -> Tensor:
    """What a scaled latent ``[1, C, h, w]`` would become, from one guided prediction at one noise level; 2 u, 1 at cfg
    1.

    Args:
        cond, uncond: of the target text, and the negative one (needed unless cfg is 1).
        level: noise level as a fraction of the model's steps.
        seed: of the noise.

    Raises:
        EditingError: a level out of range, or cfg without ``uncond``.
    """
    if not 0 < level <= 1:
        raise EditingError(
            f"The preview's level is {level:g}; use a fraction of the steps above 0 and at most 1, usually 0.6."
        )
    require_negative(cfg, uncond)
    latent = check_latent(latent, denoiser.identity)
    sigma = float(denoiser.sigma_grid(PREVIEW_STEPS)[max(1, round(level * PREVIEW_STEPS))])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(latent)
    clean = latent * (1 - sigma) if denoiser.identity.prediction == "flow" else latent
    return guided(denoiser, clean + sigma * noise, sigma, cond, uncond, cfg)


def box_masks(table: RewardTable) -> Tensor:
    """The mask of every slot, ``[K, M, H, W]``, zero in empty ones."""
    proposals = table.proposals
    empty = torch.zeros(proposals.image_size)
    return torch.stack(
        [torch.stack([empty if box is None else proposals.mask(box)[0] for box in row]) for row in proposals.boxes]
    )


def soft_mask_loss(
    logits: Tensor, table: RewardTable, preview: Tensor, masks: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean over anchors of L (Eq. 3) where each blends ``preview`` in by a mask that Gumbel-softmax chose, a scalar.

    Forward the mask is one box; backward every slot's logit is told how its box would move the loss.

    Args:
        logits: ``[K, M]``.
        preview: ``[1, 3, H, W]`` in 0..1, see :class:`~.editors.Previewing`.
        masks: ``[K, M, H, W]``, see :func:`box_masks`.
        generator: of the choices; on the CPU.

    Raises:
        EditingError: a judge without gradients, or a preview of another size than the image.
    """
    judge, weights = table.judge, table.weights
    if not isinstance(judge, DifferentiableJudge):
        raise EditingError("Learning through the mask needs a judge with gradients; use CLIP, or another strategy.")
    if preview.shape != table.image.shape:
        raise EditingError(
            f"The preview is {list(preview.shape)} and the image {list(table.image.shape)}; make them of one size."
        )
    chosen = gumbel_straight_through(logits, generator).cpu()
    image, guess, masks = (
        part.detach().cpu().clone() for part in (table.image, preview, masks)
    )  # no inference tensors
    losses = []
    for row, shapes in zip(chosen, masks, strict=True):
        mask = (row[:, None, None] * shapes).sum(0)
        clip, direction, structure = judge.terms(image + mask * (guess - image))
        losses.append(weights.clip * clip + weights.direction * direction + weights.structure * structure)
    return torch.stack([loss.cpu() for loss in losses]).mean()

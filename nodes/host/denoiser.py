"""A ComfyUI MODEL as the first seam, ``core.denoiser.Denoiser``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...core.attention.site import AttentionControl
from ...core.denoiser import Evaluations, ModelIdentity


def identity(model: Any) -> ModelIdentity:
    """The identity of a MODEL, equal to that of the same weights in diffusers; LoRA and other patches do not change it."""
    raise NotImplementedError


class ComfyDenoiser:
    """``core.denoiser.Denoiser`` on a loaded MODEL. ``cond`` is an entry of :attr:`Session.conds`."""

    evaluations: Evaluations
    identity: ModelIdentity

    def __call__(self, x: Tensor, sigma: float | Tensor, cond: Any, *, control: AttentionControl | None = None) -> Tensor:
        """See ``core.denoiser.Denoiser``; every call looks whether the person pressed Cancel."""
        raise NotImplementedError

    def batch(self, x: Tensor, sigma: float | Tensor, conds: Sequence[Any], *, control: AttentionControl | None = None) -> list[Tensor]:
        """All conditionings in one host call, in the host's order, so that CFG of [cond, uncond] is bit-equal to stock."""
        raise NotImplementedError

    def select(self, cond: Any, rows: Tensor) -> Any:
        """The processed conditioning restricted to batch rows ``rows`` (long, [b])."""
        raise NotImplementedError

    def sigma_grid(self, steps: int) -> Tensor:
        """Ascending ``[steps + 1]``: the DDIM grid of eps and v models, the model's own shifted grid (from 0) of flow models."""
        raise NotImplementedError

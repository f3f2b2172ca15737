"""Running an algorithm on a MODEL inside the host's own sampling machinery.

A ``CFGGuider`` does the loading, LoRA hooks, ControlNet, areas and model wrappers; instead of a k-diffusion sampler it is
handed a function of a :class:`Session`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from ...core.denoiser import Callback
from .denoiser import ComfyDenoiser

T = TypeVar("T")


@dataclass
class Session:
    """What an algorithm works with while the model is loaded. Valid only inside ``work``.

    Attributes:
        denoiser: the loaded MODEL as ``core.denoiser.Denoiser``.
        latent: the LATENT in model space ``[B, C, H, W]``, fp32, on the model's device.
        conds: processed conditionings by the names given to :func:`run`, to be handed to ``denoiser``.
    """

    denoiser: ComfyDenoiser
    latent: Tensor
    conds: dict[str, Any]

    def callback(self, total: int | None = None) -> Callback:
        """A core callback that moves the node's progress bar over real inner iterations, shows the latent preview once
        a step and raises when the person pressed Cancel.

        Args:
            total: length of the bar; ``steps * max_iterations`` of the first report when None.
        """
        raise NotImplementedError


def run(
    model: Any,
    latent: dict[str, Any],
    conds: dict[str, list[Any]],
    work: Callable[[Session], T],
    *,
    gradients: bool = False,
    seed: int = 0,
    sigmas: Tensor | None = None,
    advice: str = "",
) -> T:
    """Load ``model``, prepare ``conds`` for ``latent`` and return ``work(session)``; everything is undone afterwards.

    Args:
        latent: a LATENT; its ``noise_mask`` reaches inpainting models as usual.
        conds: CONDITIONING by name. Call them "positive" and "negative" where both exist: ControlNet's and areas' rules
            of the host go by those names; more names may be added freely.
        work: the algorithm. Tensors it returns should be detached; they may live on any device.
        gradients: make gradients with respect to inputs possible (weights stay frozen). Without it, runs under no_grad.
        sigmas: the descending levels about to be visited, for model patches that look at them; the model's range when None.
        advice: which widget to lower when memory runs out, e.g. "lower batch_size".

    Raises:
        EditingError: unusable latent, or whatever ``work`` refuses.
        InterruptProcessingException: the person pressed Cancel (always passes through).
        OOM_EXCEPTION: out of memory, with ``advice`` in the message and still recognised by the host.
    """
    raise NotImplementedError


class DenoiserGuider:
    """A GUIDER for SamplerCustomAdvanced whose prediction is made by a core algorithm.

    ``prepare(session)`` is called once at the start of every sampling run and returns ``step(x, sigma) -> denoised``
    with ``x [B, C, H, W]`` in sigma space and ``sigma`` a float; state of one run lives in what it returns, so that a
    cached GUIDER gives the same picture twice.
    """

    def __init__(
        self,
        model: Any,
        conds: dict[str, list[Any]],
        prepare: Callable[[Session], Callable[[Tensor, float], Tensor]],
        *,
        gradients: bool = False,
        advice: str = "",
    ):
        raise NotImplementedError

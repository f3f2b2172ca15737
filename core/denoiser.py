"""What every algorithm asks of a model: a network seen as a denoiser in sigma space.

Every algorithm of the pack talks to a :class:`Denoiser` and never asks whether the network predicts noise,
velocity or flow. In sigma space ``x = x0 + sigma * noise`` (flow models keep their own
``x = (1 - sigma) * x0 + sigma * noise``) and one ordinary differential equation holds for all of them:
``dx/dsigma = (x - x0_hat) / sigma``. A DDIM step (eta = 0) is an Euler step of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from .errors import EditingError
from .prints.weights import ABSOLUTE, RELATIVE, WeightPrint

if TYPE_CHECKING:
    from .attention.site import AttentionControl

Prediction = Literal["eps", "v", "flow"]


@dataclass
class Evaluations:
    """Cost in **u**, network sample-evaluations (one batch row through the network once).

    ``forward`` and ``backward`` are counted apart, because a backward costs about twice a forward.
    """

    forward: int = 0
    backward: int = 0

    def track(self, denoised: Tensor, *inputs: Tensor) -> Tensor:
        """Count ``denoised [B, ...]`` as B forwards, and as B backwards each time a backward pass reaches this call.

        A loss on attention maps never flows through ``denoised``, so a backend also names the call's own ``inputs``
        (tensors no other call shares: an alias made by ``view_as``, or the scaled input of the network).
        """
        rows = denoised.shape[0]
        self.forward += rows
        watched = [tensor for tensor in (denoised, *inputs) if tensor.requires_grad]
        if watched:

            def count(_: Tensor) -> None:
                self.backward += rows

            register_multi_grad_hook(watched, count, mode="any")
        return denoised


@dataclass(frozen=True)
class ModelIdentity:
    """What makes two networks "the same model" for an inversion, and what else is known of a model.

    Attributes:
        signature: a few weights of the first and last layer (fp32 values). They stand for the whole model only where
            one of two has no ``weights``: those of files that older versions wrote.
        weights: print of all weights, without what patches put on them.
        patches: content hash of what the host puts on the model (LoRAs, guidance and attention patches, options), ""
            where there is nothing. It does not make another model.
        patch_names: the same for people, e.g. "LoRA or the like on 128 weights", "RescaleCFG".
        latent_format: scaling of the latents, where a host has a name for it.
        file: name of the checkpoint, where known.
    """

    family: str
    latent_channels: int
    prediction: Prediction
    signature: tuple[float, ...] = field(default=())
    weights: WeightPrint | None = field(default=None, compare=False)
    patches: str = ""
    patch_names: tuple[str, ...] = ()
    latent_format: str = ""
    file: str = field(default="", compare=False)

    def mismatch(self, other: ModelIdentity) -> str | None:
        """Say in half a sentence how ``other`` differs, or None when both are the same model."""
        if self.latent_channels != other.latent_channels:
            return f"{self.latent_channels} latent channels against {other.latent_channels}"
        if self.prediction != other.prediction:
            return f"{self.prediction} prediction against {other.prediction}"
        if self.family != other.family:
            return f"a {self.family} model against a {other.family} model"
        if self.latent_format and other.latent_format and self.latent_format != other.latent_format:
            return f"latents scaled as {self.latent_format} against {other.latent_format}"
        if self.weights is not None and other.weights is not None:
            difference = self.weights.mismatch(other.weights)
            return None if difference is None else f"{difference}: {self.label} against {other.label}"
        if len(self.signature) != len(other.signature):
            return "differently shaped networks"
        close = all(
            abs(a - b) <= ABSOLUTE + RELATIVE * max(abs(a), abs(b))
            for a, b in zip(self.signature, other.signature, strict=True)
        )
        return None if close else "other weights"

    @property
    def label(self) -> str:
        """The model's file and print for people."""
        code = "unknown" if self.weights is None else self.weights.code
        return f"{self.file} ({code})" if self.file else code


def weight_signature(first: Tensor, last: Tensor, count: int = 16) -> tuple[float, ...]:
    """``2 * count`` values for :attr:`ModelIdentity.signature`: evenly spaced weights of two layers of any shape."""
    picked = []
    for weight in (first, last):
        flat = weight.detach().flatten()
        index = torch.linspace(0, flat.numel() - 1, count).long()
        picked += flat[index.to(flat.device)].float().cpu().tolist()
    return tuple(picked)


class Denoiser(Protocol):
    """A network as ``(x, sigma, cond) -> x0_hat`` in sigma space, differentiable in ``x`` and ``cond``.

    ``x [B, C, H, W]``; ``sigma`` is a float or a tensor ``[B]``; ``cond`` belongs to the backend (a tensor
    ``[B or 1, L, D]`` for diffusers, a processed conditioning for ComfyUI) and is opaque to algorithms.
    """

    evaluations: Evaluations
    identity: ModelIdentity

    def __call__(
        self, x: Tensor, sigma: float | Tensor, cond: Any, *, control: AttentionControl | None = None
    ) -> Tensor:
        """Return the prediction of the clean latent ``[B, C, H, W]``; ``control`` sees this call's attention."""
        ...

    def batch(
        self,
        x: Tensor | Sequence[Tensor],
        sigma: float | Tensor,
        conds: Sequence[Any],
        *,
        control: AttentionControl | None = None,
    ) -> list[Tensor]:
        """Evaluate ``x [B, C, H, W]`` under several conditionings, or one ``x`` each, all of one shape; in one network
        call where the backend can: one prediction ``[B, C, H, W]`` each.

        A ``control`` may see the conditionings in several calls and in any order.
        """
        ...

    def select(self, cond: Any, rows: Tensor) -> Any:
        """The conditioning of batch rows ``rows`` (long, [b]); one that all rows share is returned as it is."""
        ...

    def sigma_grid(self, steps: int) -> Tensor:
        """The model's ascending grid ``[steps + 1]``, from the level at which a clean latent is declared to be."""
        ...


@dataclass(frozen=True, eq=False)
class PerLevel:
    """A conditioning that is another one at each noise level, as the negatives of null-text inversion are.

    Attributes:
        sigmas: ``[T]`` levels.
        conds: the conditioning of each, as the backend takes it.
    """

    sigmas: Tensor
    conds: Sequence[Any]

    def at(self, sigma: float | Tensor) -> Any:
        """The conditioning of the level nearest to ``sigma``, in log sigma; rows share one level."""
        level = float(torch.as_tensor(sigma).flatten()[0])
        return self.conds[int((self.sigmas.log() - math.log(level)).abs().argmin())]


@runtime_checkable
class Combining(Protocol):
    """A denoiser whose model combines predictions in its own way, as a host's guidance patches do (rescaled CFG)."""

    @property
    def patched(self) -> bool:
        """Whether it does; otherwise :meth:`combine` is the plain formula."""
        ...

    def guide(self, x: Tensor, sigma: float | Tensor, cond: Any, uncond: Any | None, cfg: float) -> Tensor:
        """Evaluate and combine, as the host does at this ``cfg``; without ``uncond`` it is that of ``cfg`` 1."""
        ...

    def combine(
        self, x: Tensor, sigma: float | Tensor, predictions: list[Tensor], conds: Sequence[Any], cfg: float
    ) -> Tensor:
        """The guided prediction from those under ``conds``, [positive, negative], at scale ``cfg``."""
        ...


@runtime_checkable
class Precise(Protocol):
    """A denoiser that knows the precision its network computes in; one that does not is taken to compute in fp32."""

    @property
    def precision(self) -> torch.dtype:
        """The floating point type of the network's output before it was widened."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a callback is told: the step (0-based), how many there are, the inner iteration and the current x0."""

    step: int
    steps: int
    iteration: int
    max_iterations: int
    denoised: Tensor


#: Called once per network evaluation or step. Raising from it cancels the run; nothing is left patched.
Callback = Callable[[Progress], None]


def unit_scale(identity: ModelIdentity, sigma: float | Tensor) -> Any:
    """Factor that takes a sigma-space latent to unit variance: ``1/sqrt(1 + sigma^2)`` (the VP latent), 1 for flow."""
    if identity.prediction == "flow":
        return torch.ones_like(sigma) if isinstance(sigma, Tensor) else 1.0
    return (1.0 + sigma**2) ** -0.5


def ddim_grid(sigmas: Tensor, steps: int) -> Tensor:
    """Ascending DDIM levels ``[steps + 1]`` from a model's discrete table ``sigmas [N]`` (ascending).

    The levels are table entry 0 (where diffusers declares a clean latent to be, ``set_alpha_to_one=False``) and then
    entries 1, 1 + N//steps, ... (``steps_offset=1``): the consistent grid of Stable Diffusion's DDIM.

    Raises:
        EditingError: ``steps`` outside 1..N-1.
    """
    count = len(sigmas)
    if not 1 <= steps <= count - 1:
        raise EditingError(f"steps is {steps}; use a number from 1 to {count - 1}.")
    stride = count // steps
    if 1 + (steps - 1) * stride >= count:  # only when steps divides N - 1 shy of a full stride, e.g. 1000 // 999
        stride = (count - 1) // steps
    index = 1 + torch.arange(steps) * stride
    return torch.cat([sigmas[:1], sigmas[index]]).float().cpu()


def euler_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One Euler step of the probability-flow ODE from ``x [B, C, H, W]`` at ``sigma`` to ``sigma_next``.

    In sigma space it is one DDIM step with eta = 0 (Song et al., arXiv 2010.02502, Eq. 13): k-diffusion's
    ``sample_euler``.
    """
    return x + (x - denoised) / sigma * (sigma_next - sigma)


def check_finite(x: Tensor, what: str) -> None:
    """Raise :class:`EditingError` when ``x`` has a NaN or an infinity; ``what`` names it, e.g. "The latent"."""
    # A sum of finite numbers may overflow, but one with a NaN or an infinity is never finite; it takes a tenth of the
    # time.
    if not torch.isfinite(x.sum(dtype=torch.float32)) and not torch.isfinite(x).all():
        raise EditingError(
            f"{what} is not a number; run the model in fp32 or bf16 and check its weights and the input image."
        )

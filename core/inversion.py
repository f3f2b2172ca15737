"""An inversion: an image's trajectory to noise with its levels, cost and model, in memory and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser, ModelIdentity, check_finite, unit_scale
from .errors import EditingError
from .files import load_tensors, metadata_json, save_tensors

FILE_FORMAT = "semantic_editing.inversion"
FILE_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Inversion:
    """A latent's trajectory from clean to noise under one model and one conditioning.

    Attributes:
        latents: ``[T+1, B, C, H, W]`` in sigma space, ascending noise; ``latents[0]`` is the clean latent as given.
        sigmas: ``[T+1]`` ascending, fp32.
        residuals: ``[T, B]`` mean-square fixed-point residual of each step in unit-variance latent units, i.e. how far
            the backward Euler step misses the level it started from (SPDInv Eq. 4); NaN where it was not measured.
        forward_evaluations: ``[T, B]`` network evaluations (u) spent on each step of each image.
        backward_evaluations: ``[T, B]`` likewise, backward passes.
        identity: the model the trajectory belongs to.
        method: which inversion made it, e.g. "spdinv/auto".
        cond: the conditioning used, as plain tensors (``embeds [B or 1, L, D]``, optionally ``pooled``), or None when
            the host's conditioning has parts that are not tensors.
        info: figures of the method for people, e.g. autocorrelation before and after; JSON-able.
    """

    latents: Tensor
    sigmas: Tensor
    residuals: Tensor
    forward_evaluations: Tensor
    backward_evaluations: Tensor
    identity: ModelIdentity
    method: str
    cond: Mapping[str, Tensor] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.sigmas) - 1

    @property
    def noise(self) -> Tensor:
        """The latent at the last level in unit-variance units, ``[B, C, H, W]`` (the papers' ``z_T``)."""
        return self.latents[-1] * unit_scale(self.identity, float(self.sigmas[-1]))

    @property
    def evaluations(self) -> float:
        """Forward network evaluations (u) per image."""
        return float(self.forward_evaluations.float().sum(0).mean())

    @property
    def backward_passes(self) -> float:
        """Backward network evaluations per image."""
        return float(self.backward_evaluations.float().sum(0).mean())

    def require_model(self, identity: ModelIdentity) -> None:
        """Raise :class:`EditingError` unless this inversion was made by the model of ``identity``."""
        difference = self.identity.mismatch(identity)
        if difference is not None:
            raise EditingError(
                f"This inversion was made by another model ({difference}); invert the image again with this model."
            )

    def level_of(self, sigma: float) -> int:
        """Index of the level at ``sigma``.

        Raises:
            EditingError: the grid has no such level (another scheduler or step count, or a stochastic sampler).
        """
        distance = (self.sigmas - sigma).abs()
        level = int(distance.argmin())
        if float(distance[level]) > 1e-3 * max(sigma, float(self.sigmas[1])):
            raise EditingError(
                f"The sampler asked for sigma {sigma:.4g}, which this inversion's grid does not have; "
                "wire the inversion's own SIGMAS and a deterministic first-order sampler such as euler."
            )
        return level

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a safetensors file (latents in fp32, metadata: format, version, method, base model).

        Raises:
            EditingError: the file exists and ``overwrite`` is False, or the folder cannot be written.
        """
        tensors = {
            "latents": self.latents.float(),
            "sigmas": self.sigmas,
            "residuals": self.residuals,
            "forward_evaluations": self.forward_evaluations,
            "backward_evaluations": self.backward_evaluations,
        }
        tensors |= {f"cond.{key}": value for key, value in (self.cond or {}).items()}
        metadata = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "method": self.method,
            "base_model": self.identity.family,
            "identity": json.dumps(asdict(self.identity)),
            "info": json.dumps(dict(self.info)),
        }
        return save_tensors(path, tensors, metadata, overwrite=overwrite)

    @staticmethod
    def load(path: str | Path) -> Inversion:
        """Read a file written by :meth:`save`.

        Raises:
            EditingError: missing, damaged or foreign file, or parts that do not fit together.
        """
        tensors, metadata = load_tensors(path, FILE_FORMAT, kind="inversion")
        name = Path(path).name
        fields = metadata_json(metadata, "identity", name, "inversion")
        info = metadata_json(metadata, "info", name, "inversion")
        identity = ModelIdentity(
            fields["family"], fields["latent_channels"], fields["prediction"], tuple(map(float, fields["signature"]))
        )
        parts = ("latents", "sigmas", "residuals", "forward_evaluations", "backward_evaluations")
        if not set(parts) <= set(tensors):
            raise EditingError(f"{name} is incomplete; invert the image again.")
        latents, sigmas, residuals, *counts = (tensors[key] for key in parts)
        cond = {key.removeprefix("cond."): value for key, value in tensors.items() if key.startswith("cond.")}
        _check_parts(name, latents, sigmas, residuals, counts, cond, identity)
        forward, backward = counts
        return Inversion(
            latents,
            sigmas,
            residuals,
            forward,
            backward,
            identity,
            metadata.get("method", ""),
            cond or None,
            info,
        )


def _check_parts(
    name: str,
    latents: Tensor,
    sigmas: Tensor,
    residuals: Tensor,
    counts: Sequence[Tensor],
    cond: Mapping[str, Tensor],
    identity: ModelIdentity,
) -> None:
    """Raise :class:`EditingError` unless the parts of a file fit together and can be edited from; ``name`` is its."""
    steps, batch = sigmas.numel() - 1, latents.shape[1] if latents.ndim == 5 else -1
    per_step = all(tuple(part.shape) == (steps, batch) for part in (residuals, *counts))
    if (
        latents.ndim != 5
        or sigmas.ndim != 1
        or len(latents) != steps + 1
        or not per_step
        or latents.shape[2] != identity.latent_channels
        or not latents.numel()
        or not all(part.is_floating_point() for part in (latents, sigmas, residuals))
    ):
        raise EditingError(f"{name} has parts that do not fit together; invert the image again.")
    rising = bool((sigmas[1:] > sigmas[:-1]).all()) and bool(sigmas.isfinite().all())
    if steps < 1 or not rising or float(sigmas[0]) < 0:
        raise EditingError(
            f"{name} has noise levels that are missing, not numbers, negative or out of order; invert the image again."
        )
    check_finite(latents, f"{name}'s latents")
    for key, part in cond.items():
        check_finite(part, f"{name}'s conditioning ({key})")
    if any((part < 0).any() or not part.isfinite().all() for part in counts):
        raise EditingError(f"{name} counts its evaluations in a damaged way; invert the image again.")


def check_latent(latent: Tensor, identity: ModelIdentity) -> Tensor:
    """``latent [B, C, H, W]`` as a detached tensor of at least fp32, or an :class:`EditingError` that says what is
    wrong with it.
    """
    if latent.ndim != 4 or latent.shape[1] != identity.latent_channels:
        raise EditingError(
            f"The latent has shape {list(latent.shape)}, this model wants [batch, {identity.latent_channels}, height, "
            "width]; encode the image with this model's own VAE."
        )
    check_finite(latent, "The latent")
    return latent.detach().to(torch.promote_types(latent.dtype, torch.float32))


def inversion_grid(denoiser: Denoiser, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """The ascending levels of an inversion, ``[T+1]`` fp32 on the CPU.

    Args:
        steps: number of steps of the model's own grid, at least 1; not used when ``sigmas`` is given.
        sigmas: another grid, ascending or descending (a sampler's SIGMAS); its lowest level may be 0.

    Raises:
        EditingError: fewer than two levels, NaN, negative or repeated levels, or levels out of order.
    """
    if sigmas is None:
        if steps < 1:
            raise EditingError(f"steps is {steps}; use 1 or more.")
        return denoiser.sigma_grid(steps)
    grid = sigmas.detach().flatten().float().cpu()
    if len(grid) < 2:
        raise EditingError(f"The sigmas have {len(grid)} level(s); an inversion needs at least 2.")
    if not torch.isfinite(grid).all() or (grid < 0).any():
        raise EditingError(
            "The sigmas have a negative or non-finite level; wire them from a scheduler node of this model."
        )
    if grid[0] > grid[-1]:
        grid = grid.flip(0)
    if (grid.diff() <= 0).any():
        raise EditingError("The sigmas repeat a level or are out of order; use levels that only rise or only fall.")
    return grid

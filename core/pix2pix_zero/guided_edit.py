"""Editing with cross-attention guidance: pix2pix-zero (Parmar et al. 2023, arXiv 2302.03027), Algorithm 1.

The edit is sampled with the target conditioning; before each step the latent is moved so that the cross-attention maps
stay near those of the source, whose trajectory the inversion holds. Source and edit advance together, step by step, so
maps of one step only ever exist (the published code stores those of all steps first).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..attention.capture import CaptureMaps, MapLoss
from ..denoiser import Callback, Denoiser, check_finite, unit_scale
from ..errors import EditingError
from ..inversion import Inversion
from ..sampling import TrajectoryEdit, guided

Preset = Literal["lockstep", "carried", "released"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class CrossAttentionSettings:
    """How an edit is sampled and how its layout is kept.

    The defaults are those that the demo world's twelve edits are measured at (``docs/measured.md``). The paper's are
    cfg 5, guidance 0.1, ``"lockstep"``; where the negative conditioning is the source's, cfg multiplies the whole edit.

    Attributes:
        cfg: classifier-free guidance scale of the edit.
        guidance: step size on the map loss in unit-variance latent units, 0 or more (the paper's lambda_xa); 0 is plain
            sampling.
        guided_fraction: share of the steps, 0 to 1, from the noisy end, that are guided.
        max_resolution: guide only layers whose query grid is at most so high and wide (latent pixels); None is all.
        preset: ``"lockstep"`` is the paper's Algorithm 1: the noise prediction eps is taken at the moved latent, the
            step from the latent that was not moved. A move the network does not react to then comes back with the
            opposite sign (``x - sigma * eps`` is the prediction *plus* the move), so a strong guidance can raise the
            loss of later steps. ``"carried"`` goes on from the moved latent, which is plain descent on the loss.
            ``"released"`` does what the published code does: both branches of classifier-free guidance get their own
            moved copy of the latent (half the gradient each), and the *negative* branch's moved copy is carried on.

    Raises:
        EditingError: a value out of range.
    """

    cfg: float = 2.0
    guidance: float = 0.3
    guided_fraction: float = 1.0
    max_resolution: int | None = None
    preset: Preset = "carried"

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < float("inf"):
            raise EditingError(f"guidance is {self.guidance:g}; use 0 (off) or a positive number, usually 0.05 to 0.3.")
        if not 0 <= self.guided_fraction <= 1:
            raise EditingError(f"guided_fraction is {self.guided_fraction:g}; use a share from 0 to 1.")
        if self.max_resolution is not None and self.max_resolution < 1:
            raise EditingError(
                f"max_resolution is {self.max_resolution}; "
                "use a positive number of latent pixels, or None for all layers."
            )
        if self.preset not in PRESETS:
            raise EditingError(f"There is no preset {self.preset!r}; use one of {', '.join(PRESETS)}.")


@dataclass
class CrossAttentionGuidance(TrajectoryEdit):
    """The edit, step by step: what it predicts is such that an Euler step from ``x`` lands where Algorithm 1 does.

    Where a step is not guided it is plain classifier-free guidance, bit for bit. Where it is, the source is evaluated
    for its maps, so what the inversion left over of that step is known and added back (not under ``"released"``).

    Attributes:
        inversion: the source's trajectory; it gives the grid, the reference latents and what lies outside the mask.
        source_cond: conditioning of the source, the one the image was inverted with.
        target_cond: conditioning of the edit, as many tokens as the source's.
        uncond: negative conditioning; None means the one that the inversion was made with at another cfg than 1, where
            it is a plain text, else ``source_cond``, the paper's choice for real images.
        mask: ``[B or 1, H, W]`` of any size, 1 where to edit; outside it the source's trajectory is kept exactly.
        losses: map loss ``[B]`` before each guided step's move, by level.

    Raises:
        EditingError: an inversion of another model, a mask of another rank or batch; while stepping a prediction that
            is not a number, texts of different lengths, a network without cross-attention.
    """

    denoiser: Denoiser
    inversion: Inversion
    source_cond: Any
    target_cond: Any
    uncond: Any | None = None
    settings: CrossAttentionSettings = field(default_factory=CrossAttentionSettings)
    mask: Tensor | None = None
    losses: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uncond is None:
            own = self.inversion.uncond or {}
            plain = self.inversion.cfg != 1.0 and set(own) == {"embeds"} and isinstance(self.source_cond, Tensor)
            self.uncond = own["embeds"].to(self.source_cond) if plain else self.source_cond

    def is_guided(self, level: int) -> bool:
        """Whether the step from ``level`` to ``level - 1`` is guided."""
        from_noisy_end = self.inversion.steps - level
        return self.settings.guidance > 0 and from_noisy_end < round(
            self.settings.guided_fraction * self.inversion.steps
        )

    def _edited(self, x: Tensor, level: int) -> Tensor:
        with torch.no_grad():
            if not self.is_guided(level):
                denoised = guided(
                    self.denoiser, x, self._levels(level)[0], self.target_cond, self.uncond, self.settings.cfg
                )
            else:
                denoised = (
                    self._released(x, level) if self.settings.preset == "released" else self._algorithm_1(x, level)
                )
        check_finite(denoised, f"The prediction at step {self.inversion.steps - level + 1}")
        return denoised

    def _algorithm_1(self, x: Tensor, level: int) -> Tensor:
        sigma = self._levels(level)[0]
        moved, self.losses[level], source = self._moved(x, level, self.source_cond, self.target_cond, 1.0)
        slope = (moved - guided(self.denoiser, moved, sigma, self.target_cond, self.uncond, self.settings.cfg)) / sigma
        landing = self._landing(x, moved if self.settings.preset == "carried" else x, level, slope)
        return landing + self._stored_shift(source, level)

    def _released(self, x: Tensor, level: int) -> Tensor:
        sigma = self._levels(level)[0]
        share = 1.0 if self.settings.cfg == 1.0 else 0.5  # the code's mean over heads runs over both branches
        kept, losses, _ = self._moved(x, level, self.source_cond, self.target_cond, share)
        slope = (kept - self.denoiser(kept, sigma, self.target_cond)) / sigma
        if self.settings.cfg != 1.0:
            kept, negative_losses, _ = self._moved(x, level, self.uncond, self.uncond, share)
            negative = (kept - self.denoiser(kept, sigma, self.uncond)) / sigma
            slope, losses = negative + self.settings.cfg * (slope - negative), losses + negative_losses
        self.losses[level] = losses
        return self._landing(x, kept, level, slope)

    def _moved(
        self, x: Tensor, level: int, reference_cond: Any, cond: Any, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` after a step down ``share`` of the map loss (``x_t - lambda_xa * grad``), that loss ``[B]``, and what
        ``reference_cond`` predicts at the source's latent."""
        sigma = self._levels(level)[0]
        capture = CaptureMaps(self.settings.max_resolution)
        reference = self.denoiser(self._source(x, level), sigma, reference_cond, control=capture)
        if not capture.maps and not capture.shown:
            raise EditingError(
                "The network showed no attention at this step: a node before (a step cache, or one that replaces the "
                "network) answers for it; wire the model from before that node."
            )
        control = MapLoss(capture.maps)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            self.denoiser(leaf, sigma, cond, control=control)
            losses = share * control.losses
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        # The paper's latent is x * unit: a step of lambda there is one of lambda / unit^2 here.
        moved = x - self.settings.guidance * unit_scale(self.inversion.identity, sigma) ** -2 * gradient
        return moved, losses.detach(), reference.detach()


def cross_attention_guided_edit(
    denoiser: Denoiser,
    inversion: Inversion,
    source_cond: Any,
    target_cond: Any,
    uncond: Any | None = None,
    *,
    cfg: float = CrossAttentionSettings.cfg,
    guidance: float = CrossAttentionSettings.guidance,
    guided_fraction: float = CrossAttentionSettings.guided_fraction,
    max_resolution: int | None = CrossAttentionSettings.max_resolution,
    preset: Preset = CrossAttentionSettings.preset,
    mask: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Edit an inverted image from source to target, keeping its layout: the clean latent ``[B, C, H, W]``.

    Costs, a step and image at cfg other than 1: 4 forwards and 1 backward guided, 2 forwards unguided.

    Args:
        callback: told after each step; an exception it raises ends the run.
        others: see :class:`CrossAttentionGuidance` and :class:`CrossAttentionSettings`.

    Raises:
        EditingError: see :class:`CrossAttentionGuidance` and :class:`CrossAttentionSettings`.
    """
    settings = CrossAttentionSettings(cfg, guidance, guided_fraction, max_resolution, preset)
    step = CrossAttentionGuidance(denoiser, inversion, source_cond, target_cond, uncond, settings, mask)
    return step.run(inversion.steps, callback)

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

from ..attention.capture import CaptureMaps, MapKey, MapLoss, show
from ..denoiser import Callback, Denoiser, check_finite, euler_step, unit_scale
from ..errors import EditingError
from ..inversion import Inversion
from ..sampling import GENERATED, TrajectoryEdit, edited_places, guided, plain_negative
from .kept_source import KeptSource, Seen

Preset = Literal["lockstep", "carried", "released"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
Reference = Literal["inversion", "reconstruction"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
Resolution = Literal["all", "half", "quarter"]
#: By how much the query grid of a layer must be smaller than the latent at least.
RESOLUTIONS: dict[Resolution, int] = {"all": 1, "half": 2, "quarter": 4}


@dataclass(frozen=True)
class CrossAttentionSettings:
    """How an edit is sampled and how its layout is kept.

    The defaults are those that the demo world's twelve edits are measured at (``docs/measured.md``). The paper's are
    cfg 5, guidance 0.1, ``"lockstep"``; where the negative conditioning is the source's, cfg multiplies the whole edit.

    Attributes:
        cfg: classifier-free guidance scale of the edit.
        guidance: step size on the map loss in unit-variance latent units, 0 or more (the paper's lambda_xa); 0 is plain
            sampling. It means for every network and ``resolution`` what it means for Stable Diffusion 1 with all its
            layers (:class:`~..attention.capture.MapLoss`).
        guided_fraction: share of the steps, 0 to 1, from the noisy end, that are guided.
        resolution: guide only layers whose query grid is at most "half" or a "quarter" as high and wide as the latent
            (32 and 16 for Stable Diffusion 1 at 512, 64 and 32 for SDXL at 1024); where a network has none so small,
            its smallest. "all" is the paper's.
        preset: ``"lockstep"`` is the paper's Algorithm 1: the noise prediction eps is taken at the moved latent, the
            step from the latent that was not moved. A move the network does not react to then comes back with the
            opposite sign (``x - sigma * eps`` is the prediction *plus* the move), so a strong guidance can raise the
            loss of later steps. ``"carried"`` goes on from the moved latent, which is plain descent on the loss.
            ``"released"`` does what the published code does: both branches of classifier-free guidance get their own
            moved copy of the latent (half the gradient each), and the *negative* branch's moved copy is carried on.
        reference: where the source's maps come from. "inversion": from the trajectory that the inversion stored.
            "reconstruction": from a second sampling run beside the edit, from the same noise, with the source's
            conditioning and the edit's cfg and negative, which is what the paper's Algorithm 1 and its code do. It
            differs by what the inversion left over, and where cfg multiplies a difference of source and negative.
            None: what belongs to the preset, "reconstruction" for "released" and "inversion" for the others.
        local_fraction: share of the steps, 0 to 1, at the clean end, in which the places that the edit leaves nearly
            alone are the source's (:func:`~..sampling.edited_places`); 0, the paper's, is none, and so is ``guidance``
            0. The steps before may change the whole layout, as a hat or another hair colour does; what they changed
            beside that goes back to the source.
        cfg_fraction: share of the steps, 0 to 1, from the noisy end, that use ``cfg``; the others use 1, for one
            evaluation less (guidance in an interval: Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Raises:
        EditingError: a value out of range.
    """

    cfg: float = 2.0
    guidance: float = 0.05
    guided_fraction: float = 1.0
    resolution: Resolution = "all"
    preset: Preset = "carried"
    reference: Reference | None = None
    local_fraction: float = 0.6
    cfg_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < float("inf"):
            raise EditingError(f"guidance is {self.guidance:g}; use 0 (off) or a positive number, usually 0.02 to 0.2.")
        for name in ("guided_fraction", "local_fraction", "cfg_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise EditingError(f"{name} is {getattr(self, name):g}; use a share from 0 to 1.")
        if self.resolution not in RESOLUTIONS:
            raise EditingError(f"There is no resolution {self.resolution!r}; use one of {', '.join(RESOLUTIONS)}.")
        if self.preset not in PRESETS:
            raise EditingError(f"There is no preset {self.preset!r}; use one of {', '.join(PRESETS)}.")
        if self.reference not in (None, *REFERENCES):
            raise EditingError(f"There is no reference {self.reference!r}; use one of {', '.join(REFERENCES)}.")

    @property
    def reconstructs(self) -> bool:
        """Whether the reference is a reconstruction."""
        return (self.reference or ("reconstruction" if self.preset == "released" else "inversion")) == "reconstruction"

    @property
    def rebuilds(self) -> bool:
        """Whether an edit to the source's own conditioning gives the image itself, whatever cfg it was made at."""
        guides = self.guidance > 0 and self.guided_fraction == 1
        return guides and not self.reconstructs and self.preset != "released"


@dataclass
class CrossAttentionGuidance(TrajectoryEdit):
    """The edit, step by step: what it predicts is such that an Euler step from ``x`` lands where Algorithm 1 does.

    Where a step is neither guided nor local it is plain classifier-free guidance, bit for bit. Where it is guided, the
    source is evaluated for its maps, so what the inversion left over of that step is known and added back (not under
    ``"released"``, and not where the reference is a reconstruction, which left nothing over); so is what another cfg
    than that of an inversion under guidance, or of a made-up image, would lose. Evaluations that only
    serve maps end after the last layer that is looked at. A reconstruction advances with the steps, so those are taken
    in order.

    Attributes:
        inversion: the source's trajectory; it gives the grid, the reference latents and what lies outside the mask.
        source_cond: conditioning of the source, the one the image was inverted with.
        target_cond: conditioning of the edit, as many tokens as the source's.
        uncond: negative conditioning; None means the one that the inversion was made with at another cfg than 1, where
            it is a plain text, else ``source_cond``, the paper's choice for real images.
        mask: ``[B or 1, H, W]`` of any size, 1 where to edit; outside it the source's trajectory is kept exactly.
        kept: what an earlier edit saw of the same source, with the same model and ``resolution``, is taken from here
            and the rest put there; not for a reconstruction, which is another for each cfg.
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
    kept: KeptSource | None = None
    losses: dict[int, Tensor] = field(default_factory=dict, init=False)
    _rebuilt: dict[int, Tensor] = field(default_factory=dict, init=False)  # the reconstruction, where it is now
    _layers: dict[int, frozenset[MapKey]] = field(default_factory=dict, init=False)  # of each conditioning
    _smallest: tuple[int, int] | None = field(default=None, init=False)  # grid, where ``resolution`` asks for smaller

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uncond is None:
            own = plain_negative(self.inversion, self.source_cond)
            self.uncond = self.source_cond if own is None else own

    def is_guided(self, level: int) -> bool:
        """Whether the step from ``level`` to ``level - 1`` is guided."""
        return self.settings.guidance > 0 and self._is_noisy(level, self.settings.guided_fraction)

    def cfg_at(self, level: int) -> float:
        """The guidance scale of the step from ``level`` to ``level - 1``."""
        return self.settings.cfg if self._is_noisy(level, self.settings.cfg_fraction) else 1.0

    def _is_noisy(self, level: int, fraction: float) -> bool:
        """Whether a level is among that share of the steps from the noisy end."""
        return self.inversion.steps - level < round(fraction * self.inversion.steps)

    def _edited(self, x: Tensor, level: int) -> Tensor:
        settings = self.settings
        with torch.no_grad():
            if not self.is_guided(level):
                landing = prediction = guided(
                    self.denoiser, x, self._levels(level)[0], self.target_cond, self.uncond, self.cfg_at(level)
                )
            elif settings.preset == "released":
                landing, prediction = self._released(x, level)
            else:
                landing, prediction = self._algorithm_1(x, level)
            check_finite(landing, f"The prediction at step {self.inversion.steps - level + 1}")
            if not self.is_local(level):
                return landing
            here, below = self._source(x, level), self._source(x, level - 1)
            places = edited_places(prediction, self._landing(here, below, level))
            return places * landing + (1 - places) * self._landing(x, below, level)

    def is_local(self, level: int) -> bool:
        """Whether the step from ``level`` to ``level - 1`` keeps the source where the edit leaves it nearly alone."""
        settings = self.settings
        return settings.guidance > 0 and level <= round(settings.local_fraction * self.inversion.steps)

    def _algorithm_1(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        sigma = self._levels(level)[0]
        source, _, shift = self._look(x, level)
        moved, self.losses[level] = self._moved(x, level, self.target_cond, source, 1.0)
        denoised = guided(self.denoiser, moved, sigma, self.target_cond, self.uncond, self.cfg_at(level))
        kept = moved if self.settings.preset == "carried" else x
        return self._landing(x, kept, level, (moved - denoised) / sigma) + shift, denoised + shift

    def _released(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        sigma, cfg = self._levels(level)[0], self.cfg_at(level)
        share = 1.0 if cfg == 1.0 else 0.5  # the code's mean over heads runs over both branches
        source, negative, _ = self._look(x, level)
        kept, losses = self._moved(x, level, self.target_cond, source, share)
        slope = (kept - self.denoiser(kept, sigma, self.target_cond)) / sigma
        if cfg != 1.0:
            kept, negative_losses = self._moved(x, level, self.uncond, negative, share)
            away = (kept - self.denoiser(kept, sigma, self.uncond)) / sigma
            slope, losses = away + cfg * (slope - away), losses + negative_losses
        self.losses[level] = losses
        return self._landing(x, kept, level, slope), kept - sigma * slope

    def _look(self, x: Tensor, level: int) -> tuple[Seen, Seen, Tensor | float]:
        """The reference of the source and of the negative, and what the inversion left over of the step.

        The negative's is the source's where they are one conditioning, or where nobody asks.
        """
        settings, cfg, (sigma, sigma_next) = self.settings, self.cfg_at(level), self._levels(level)
        released = settings.preset == "released"
        latent = self._rebuilt.get(level, self._source(x, level)) if settings.reconstructs else self._source(x, level)
        sampled = self.inversion.method == GENERATED and cfg == self.inversion.cfg  # by this very rule: nothing is left
        left_over = not (settings.reconstructs or released or sampled)
        whole = settings.reconstructs or left_over
        kept = None if settings.reconstructs else self.kept
        known = None if kept is None else kept.get(level, whole, latent.device)
        source, predicted = self._capture(latent, sigma, self.source_cond, whole) if known is None else known
        if kept is not None and known is None:
            kept.put(level, source, predicted)
        negative, away = source, predicted
        apart = cfg != 1.0 and self.uncond is not self.source_cond
        if apart and (released or settings.reconstructs):
            negative, away = self._capture(latent, sigma, self.uncond, whole)
        if settings.reconstructs:
            assert predicted is not None
            assert away is not None
            denoised = predicted if cfg == 1.0 else away + cfg * (predicted - away)
            self._rebuilt = {level - 1: euler_step(latent, denoised, sigma, sigma_next)}
        if not left_over:
            return source, negative, 0.0
        assert predicted is not None
        if cfg != 1.0 and self.inversion.cfg != 1.0:  # the negative is part of the source's own path
            away = self.denoiser(latent, sigma, self.uncond)
            predicted = away + cfg * (predicted - away)
        return source, negative, self._to_source(predicted, level)

    def _capture(self, latent: Tensor, sigma: float, cond: Any, whole: bool) -> tuple[Seen, Tensor | None]:
        """What the layers see of ``latent`` under ``cond``, and, where the evaluation is ``whole``, its prediction."""
        capture = CaptureMaps(self._largest(latent), () if whole else self._layers.get(id(cond), ()))
        predicted = show(self.denoiser, latent, sigma, cond, capture)
        if not capture.seen and capture.grids:
            self._smallest = min(capture.grids)
            return self._capture(latent, sigma, cond, whole)
        if not capture.seen:
            raise EditingError(
                "The network showed no attention at this step: a node before (a step cache, or one that replaces the "
                "network) answers for it; wire the model from before that node."
            )
        self._layers[id(cond)] = frozenset(capture.seen)
        return capture.seen, predicted

    def _largest(self, latent: Tensor) -> tuple[int, int] | None:
        """The largest query grid that is guided."""
        times = RESOLUTIONS[self.settings.resolution]
        if times == 1 or self._smallest is not None:
            return self._smallest
        return -(-latent.shape[-2] // times), -(-latent.shape[-1] // times)

    def _moved(self, x: Tensor, level: int, cond: Any, reference: Seen, share: float) -> tuple[Tensor, Tensor]:
        """``x`` after a step down ``share`` of the map loss (``x_t - lambda_xa * grad``), and that loss ``[B]``."""
        sigma = self._levels(level)[0]
        control = MapLoss(reference, to_the_end=False)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            show(self.denoiser, leaf, sigma, cond, control)
            losses = share * control.losses
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        # The paper's latent is x * unit: a step of lambda there is one of lambda / unit^2 here.
        moved = x - self.settings.guidance * unit_scale(self.inversion.identity, sigma) ** -2 * gradient
        return moved, losses.detach()


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
    resolution: Resolution = CrossAttentionSettings.resolution,
    preset: Preset = CrossAttentionSettings.preset,
    reference: Reference | None = CrossAttentionSettings.reference,
    local_fraction: float = CrossAttentionSettings.local_fraction,
    cfg_fraction: float = CrossAttentionSettings.cfg_fraction,
    mask: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Edit an inverted image from source to target, keeping its layout: the clean latent ``[B, C, H, W]``.

    Costs, a step and image at cfg other than 1: 4 forwards and 1 backward guided (2 of the 4 may end early), 2 forwards
    unguided. A reconstruction with another negative than the source takes 1 more. "released" takes 6 and 2, one forward
    less where the negative is the source. A second edit by :attr:`CrossAttentionGuidance.kept` takes 1 forward less a
    guided step.

    Args:
        callback: told after each step; an exception it raises ends the run.
        others: see :class:`CrossAttentionGuidance` and :class:`CrossAttentionSettings`.

    Raises:
        EditingError: see :class:`CrossAttentionGuidance` and :class:`CrossAttentionSettings`.
    """
    settings = CrossAttentionSettings(
        cfg, guidance, guided_fraction, resolution, preset, reference, local_fraction, cfg_fraction
    )
    step = CrossAttentionGuidance(denoiser, inversion, source_cond, target_cond, uncond, settings, mask)
    return step.run(inversion.steps, callback)

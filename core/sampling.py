"""Sampling: the one loop that steps a latent, and what is made with it.

:func:`sample` takes Euler (= DDIM) steps down a list of noise levels. Every algorithm of the pack that samples is a
prediction handed to it: :class:`TrajectoryEdit`, an edit beside the trajectory of an inverted image;
:func:`reconstruct`, the replay of an inversion; :func:`reference_from_noise`, a made-up image with its trajectory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .denoiser import Callback, Combining, Denoiser, PerLevel, Progress, check_finite, euler_step, unit_scale
from .errors import EditingError
from .inversion import Inversion, MadeFrom, check_latent, inversion_grid

#: :attr:`~.inversion.Inversion.method` of an image that was made up, not inverted.
GENERATED = "generated"
#: Of :func:`edited_places`: which quantile over the places of a latent is the strongest change, and the share of it at
#: which a place counts as half left alone.
STRONGEST, NEARLY = 0.95, 0.3
TINY = 1e-12
#: ``(x [B, C, H, W], sigma, step)`` -> the prediction of the clean latent, ``[B, C, H, W]``; steps are counted from 0.
Predict = Callable[[Tensor, float, int], Tensor]
#: ``(x [B, C, H, W], step)`` -> the latent to go on from, after step number ``step``.
AfterStep = Callable[[Tensor, int], Tensor]


@torch.no_grad()
def sample(
    predict: Predict,
    x: Tensor,
    levels: Sequence[float],
    callback: Callback | None = None,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Take ``x [B, C, H, W]`` from the first of the descending ``levels`` to the last, one Euler step between each two.

    Args:
        predict: the network, with whatever guidance. It is called under ``torch.no_grad``; what needs gradients inside
            turns them on itself.
        callback: told after each step; an exception it raises ends the run.
        after_step: may change the latent after each step, as putting back the source outside a mask does.

    Raises:
        EditingError: a prediction that is not a number.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = predict(x, sigma, step)
        check_finite(denoised, f"The prediction at step {step + 1}")
        x = euler_step(x, denoised, sigma, sigma_next)
        if after_step is not None:
            x = after_step(x, step)
        if callback is not None:
            callback(Progress(step, len(levels) - 1, 0, 1, denoised))
    return x


def guided(denoiser: Denoiser, x: Tensor, sigma: float | Tensor, cond: Any, uncond: Any | None, cfg: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) of ``x [B, C, H, W]``: a prediction of the same shape.

    ``D_u + cfg * (D_c - D_u)``, or what a :class:`~.denoiser.Combining` denoiser has instead. When ``cfg`` is 1 or
    ``uncond`` is None it is the plain prediction, for one evaluation.
    """
    return guidance_of(denoiser)(x, sigma, cond, uncond, cfg)


def guidance_of(denoiser: Denoiser) -> Callable[[Tensor, float | Tensor, Any, Any | None, float], Tensor]:
    """:func:`guided` of one denoiser: its own way where it has one, so that a reader need not pass through here."""
    return denoiser.guide if isinstance(denoiser, Combining) else partial(_plainly_guided, denoiser)


def _plainly_guided(
    denoiser: Denoiser, x: Tensor, sigma: float | Tensor, cond: Any, uncond: Any | None, cfg: float
) -> Tensor:
    if uncond is None or cfg == 1.0:
        return denoiser(x, sigma, cond)
    conditional, unconditional = denoiser.batch(x, sigma, [cond, uncond])
    return unconditional + (conditional - unconditional) * cfg


def require_negative(cfg: float, uncond: Any | None) -> None:
    """Raise :class:`EditingError` when ``cfg`` needs a negative conditioning and ``uncond`` is None."""
    if cfg != 1.0 and uncond is None:
        raise EditingError(f"cfg is {cfg:g} but no negative conditioning is given; pass one or use cfg 1.")


def plain_negative(inversion: Inversion, source_cond: Any) -> Any | None:
    """The negative conditioning that an inversion was made with, one for each level where it has null-text negatives.

    None at cfg 1, or where it or ``source_cond`` is more than the embeddings of a text.
    """
    own = inversion.uncond or {}
    if inversion.cfg == 1.0 or set(own) != {"embeds"} or not isinstance(source_cond, Tensor):
        return None
    if inversion.null_text is None:
        return own["embeds"].to(source_cond)
    return PerLevel(inversion.sigmas[1:], list(inversion.null_text.to(source_cond)))


class TrajectoryEdit(ABC):
    """An edit beside the trajectory of an inverted image; a subclass predicts each step in :meth:`_edited`.

    :meth:`run` samples it whole. A host's own first-order sampler asks :meth:`denoised` for one step after another.

    Attributes:
        inversion: the source's trajectory; it gives the grid, the starting latent and what lies outside the mask.
        mask: ``[B or 1, H, W]`` of any size, 1 where to edit; outside it the source's trajectory is kept exactly.

    Raises:
        EditingError: an inversion of another model, a mask of another rank or batch.
    """

    denoiser: Denoiser
    inversion: Inversion
    mask: Tensor | None

    def __post_init__(self) -> None:
        #: ``[B]`` mean square, in sigma space, that the shifts added back so far would have missed the source by.
        self.taken_off: Tensor | None = None
        self.inversion.require_model(self.denoiser.identity)
        self.inversion.require_sampler()
        if self.mask is not None:
            self.mask = latent_mask(self.mask, self.inversion.latents[0])

    @abstractmethod
    def _edited(self, x: Tensor, level: int) -> Tensor:
        """The edit's prediction of the clean latent at ``x [B, C, H, W]``, mask or not."""

    def on_source(self, level: int) -> bool:
        """Whether the step from ``level`` to ``level - 1`` is the source's own."""
        return False

    def mask_at(self, level: int) -> Tensor | None:
        """Where the step from ``level`` may leave the source, ``[B or 1, 1, h, w]`` in 0..1; None is everywhere.

        It is asked for after the step's prediction, so that an edit may find its place while it predicts.
        """
        return self.mask

    def denoised(self, x: Tensor, level: int) -> Tensor:
        """The denoised latent by which an Euler step takes ``x [B, C, H, W]`` from ``level`` to ``level - 1``.

        Where the source is kept it is the one that makes the step land on the source's trajectory.

        Raises:
            EditingError: a prediction that is not a number, or whatever the edit refuses.
        """
        if self.on_source(level):
            return self._landing(x, self._source(x, level - 1), level)
        edited = self._edited(x, level)
        mask = self.mask_at(level)
        if mask is None:
            return edited
        mask = mask.to(x.device, x.dtype)
        return mask * edited + (1 - mask) * self._landing(x, self._source(x, level - 1), level)

    def run(self, first: int, callback: Callback | None = None) -> Tensor:
        """All steps from the source's latent of level ``first`` down to the clean latent ``[B, C, H, W]``.

        Outside the mask the latent is exactly the source's after every step.

        Args:
            first: level at which the edit leaves the source's trajectory.
            callback: told after each step; an exception it raises ends the run.
        """

        def put_back_source(x: Tensor, step: int) -> Tensor:
            mask = self.mask_at(first - step)
            if mask is None:
                return x
            mask = mask.to(x.device, x.dtype)
            return mask * x + (1 - mask) * self._source(x, first - step - 1)

        levels = self.inversion.sigmas[: first + 1].flip(0).tolist()
        return sample(
            lambda x, sigma, step: self._edited(x, first - step),
            self.inversion.latents[first],
            levels,
            callback,
            put_back_source,
        )

    def _landing(self, x: Tensor, kept: Tensor, level: int, slope: Tensor | float = 0.0) -> Tensor:
        """The denoised latent that takes ``x`` where an Euler step along ``slope`` (eps) takes ``kept``."""
        sigma, sigma_next = self._levels(level)
        return x - sigma * (slope + (kept - x) / (sigma_next - sigma))

    def _stored_shift(self, predicted: Tensor, level: int) -> Tensor:
        """What the source's own prediction ``predicted [B, C, H, W]`` at ``level`` lacks to land on its trajectory.

        Added to an edit's prediction it takes off what the inversion left over (direct inversion: Ju et al., PnP
        Inversion, arXiv 2310.01506). A made-up image was never inverted: nothing is left over of it, and its guidance
        is not to be added twice.
        """
        return torch.zeros_like(predicted) if self.inversion.method == GENERATED else self._to_source(predicted, level)

    def _to_source(self, predicted: Tensor, level: int) -> Tensor:
        """What ``predicted [B, C, H, W]``, made at the source's latent of ``level``, lacks to land on its next one."""
        here, below = self._source(predicted, level), self._source(predicted, level - 1)
        shift = self._landing(here, below, level) - predicted
        sigma, sigma_next = self._levels(level)
        missed = (shift * (1 - sigma_next / sigma)).square().flatten(1).mean(1)
        self.taken_off = missed if self.taken_off is None else self.taken_off + missed
        return shift

    def _levels(self, level: int) -> tuple[float, float]:
        return float(self.inversion.sigmas[level]), float(self.inversion.sigmas[level - 1])

    def _source(self, x: Tensor, level: int) -> Tensor:
        return self.inversion.latents[level].to(x.device, x.dtype)


def latent_mask(mask: Tensor, latent: Tensor) -> Tensor:
    """A pixel mask ``[B or 1, H, W]`` averaged to the grid of ``latent [B, C, h, w]``: ``[B or 1, 1, h, w]``.

    Raises:
        EditingError: another rank, another batch, or values that are not numbers.
    """
    if mask.ndim != 3:
        raise EditingError(f"The mask has shape {list(mask.shape)}; use [batch or 1, height, width].")
    if len(mask) not in (1, len(latent)):
        raise EditingError(f"There are {len(mask)} masks for {len(latent)} images; use one mask or one for each image.")
    check_finite(mask, "The mask")
    return functional.interpolate(mask[:, None].float(), latent.shape[-2:], mode="area").clamp(0, 1)


def edited_places(edited: Tensor, source: Tensor) -> Tensor:
    """Where an edit acts, ``[B, 1, H, W]`` in 0..1, from two denoised latents ``[B, C, H, W]`` of one step.

    Their difference, a mean over the channels and 3 x 3 places, tells it: at :data:`NEARLY` of its
    :data:`STRONGEST` the value is half, below it falls with the fourth power. Where nothing differs all is 0.
    """
    change = functional.avg_pool2d((edited - source).abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    strongest = torch.quantile(change.flatten(1), STRONGEST, dim=1).view(-1, 1, 1, 1)
    return 1 - 1 / (1 + (change / (NEARLY * strongest).clamp_min(TINY)) ** 4)


def reconstruct(
    denoiser: Denoiser,
    inversion: Inversion,
    cond: Any,
    cfg: float = 1.0,
    uncond: Any | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Replay the trajectory from its noise with Euler (= DDIM) steps; returns the clean latent ``[B, C, H, W]``.

    Args:
        cond: conditioning to replay with; the one inverted with rebuilds the image at ``cfg`` 1.
        uncond: negative conditioning, needed when ``cfg`` is not 1.

    Raises:
        EditingError: other model, missing ``uncond``, NaN prediction.
    """
    inversion.require_model(denoiser.identity)
    inversion.require_sampler()
    require_negative(cfg, uncond)
    levels = inversion.sigmas.flip(0).tolist()
    return sample(
        lambda x, sigma, step: guided(denoiser, x, sigma, cond, uncond, cfg), inversion.latents[-1], levels, callback
    )


def reference_from_noise(
    denoiser: Denoiser,
    noise: Tensor,
    cond: Any,
    cfg: float = 5.0,
    uncond: Any | None = None,
    steps: int = 50,
    *,
    sigmas: Tensor | None = None,
    callback: Callback | None = None,
) -> Inversion:
    """Sample an image from noise and record its trajectory, so that a synthetic image can be edited like a real one.

    Args:
        noise: ``[B, C, H, W]``, unit variance.
        cond: conditioning of the image.
        cfg: classifier-free guidance scale; without ``uncond`` only 1 is possible.
        sigmas: levels to use instead of the model's grid of ``steps`` steps.
        callback: told after each step; an exception it raises ends the run.

    Returns:
        An inversion of method "generated"; its residuals are 0, because the sampler itself made each level.

    Raises:
        EditingError: wrong shape, bad grid, cfg without ``uncond``, a prediction that is not a number.
    """
    require_negative(cfg, uncond)
    grid = inversion_grid(denoiser, steps, sigmas)
    x = check_latent(noise, denoiser.identity) / unit_scale(denoiser.identity, float(grid[-1]))
    trajectory: list[Tensor] = []  # of every level but the last, from the noise on
    spent: list[int] = []  # network evaluations of each step and image
    count = len(grid) - 1

    def predict(x: Tensor, sigma: float, step: int) -> Tensor:
        before = denoiser.evaluations.forward
        denoised = guided(denoiser, x, sigma, cond, uncond, cfg)
        trajectory.append(x)
        spent.append((denoiser.evaluations.forward - before) // len(x))
        return denoised

    trajectory.append(sample(predict, x, grid.flip(0).tolist(), callback))
    forward = torch.tensor(spent[::-1])[:, None].expand(count, len(x)).clone()
    return Inversion(
        latents=torch.stack(trajectory[::-1]),
        sigmas=grid,
        residuals=torch.zeros(count, len(x)),
        forward_evaluations=forward,
        backward_evaluations=torch.zeros_like(forward),
        identity=denoiser.identity,
        method=GENERATED,
        cond={"embeds": cond} if isinstance(cond, Tensor) else None,
        info={"cfg": cfg},
        made_from=MadeFrom(cfg),
        uncond={"embeds": uncond} if isinstance(uncond, Tensor) and cfg != 1.0 else None,
    )

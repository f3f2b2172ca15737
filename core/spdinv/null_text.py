"""Null-text inversion (Mokady et al. 2022, arXiv 2211.09794): a negative for each step, under which guided sampling
comes back to the image.

An inversion's trajectory is the pivot. From its noise on, at every step the embedding of the negative is moved until
the step under classifier-free guidance lands on the pivot; the next step starts where that one landed and from its
embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Callback, Combining, Denoiser, Progress, check_finite, euler_step, unit_scale
from ..errors import EditingError
from ..inversion import Inversion, MadeFrom


@dataclass(frozen=True)
class NullTextSettings:
    """How the negatives are found.

    Attributes:
        cfg: classifier-free guidance scale under which the image is to be rebuilt (the paper's 7.5).
        max_iterations: most evaluations of the negative a step, 1 or more (the paper's 10).
        learning_rate: Adam's at the noisiest step; it falls to half at the clean end, as in the published code.
        tolerance: mean square, in unit-variance latent units, at which a step counts as landed.

    Raises:
        EditingError: a value out of range.
    """

    cfg: float = 2.0
    max_iterations: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.cfg < float("inf") or self.cfg == 1.0:
            raise EditingError(
                f"cfg is {self.cfg:g}; use the edit's, usually 1.5 to 7.5 (at 1 a negative has no effect)."
            )
        if self.max_iterations < 1 or not self.tolerance >= 0:
            raise EditingError(
                f"max_iterations is {self.max_iterations} and tolerance {self.tolerance}; use 1 or more and 0 or more."
            )
        if not 0 < self.learning_rate < float("inf"):
            raise EditingError(f"learning_rate is {self.learning_rate:g}; use a positive number, usually 0.01.")


def null_text(
    denoiser: Denoiser,
    inversion: Inversion,
    cond: Any,
    uncond: Mapping[str, Tensor],
    settings: NullTextSettings,
    *,
    as_cond: Callable[[Tensor], Any] = lambda embeds: embeds,
    callback: Callback | None = None,
) -> Inversion:
    """``inversion`` with a negative for each of its steps; its trajectory stays as it is.

    Unlike the published code the best embedding visited is kept, not the last, and images of a batch have their own.

    Args:
        cond: conditioning of the image.
        uncond: ``embeds [B or 1, L, D]`` of the negative to start from (an empty prompt is the paper's), and what else
            belongs to it.
        as_cond: makes the backend's negative conditioning of ``embeds [B, L, D]``, differentiable in them.
        callback: told after every evaluation of a negative; an exception it raises ends the run.

    Raises:
        EditingError: an inversion of another model or one that was made under guidance, a prediction that is not a
            number.
    """
    inversion.require_model(denoiser.identity)
    inversion.require_sampler()
    if inversion.cfg != 1.0:
        raise EditingError(
            f"This inversion was made at cfg {inversion.cfg:g}, so that guidance rebuilds its image already; wire one "
            "that was made at cfg 1."
        )
    batch = inversion.latents.shape[1]
    x = inversion.latents[-1].float()
    embeds = uncond["embeds"].detach().to(x).expand(batch, -1, -1).clone()
    levels = inversion.sigmas.tolist()
    found: list[Tensor] = []
    spent: list[tuple[int, int]] = []
    missed: list[Tensor] = []
    for level in range(inversion.steps, 0, -1):
        before = denoiser.evaluations.forward, denoiser.evaluations.backward
        index = inversion.steps - level
        rate = settings.learning_rate * (1 - index / (2 * inversion.steps))

        def report(iteration: int, denoised: Tensor, index: int = index) -> None:
            if callback is not None:
                callback(Progress(index, inversion.steps, iteration, settings.max_iterations, denoised))

        goal = inversion.latents[level - 1].to(x)
        step = _Step(denoiser, cond, as_cond, x, goal, levels[level], levels[level - 1], settings.cfg)
        x, embeds, loss = _solved(step, embeds, settings, rate, report)
        found.append(embeds.cpu())
        missed.append(loss)
        after = denoiser.evaluations.forward, denoiser.evaluations.backward
        spent.append(((after[0] - before[0]) // batch, (after[1] - before[1]) // batch))
    forward, backward = (
        torch.tensor(column[::-1])[:, None].expand(-1, batch).to(old) + old
        for column, old in zip(
            zip(*spent, strict=True), (inversion.forward_evaluations, inversion.backward_evaluations), strict=True
        )
    )
    left = (x - inversion.latents[0].to(x)).square().flatten(1).mean(1)
    return replace(
        inversion,
        forward_evaluations=forward,
        backward_evaluations=backward,
        method=f"{inversion.method} + null-text",
        uncond={key: part.detach().float().cpu() for key, part in uncond.items()},
        null_text=torch.stack(found[::-1]),
        made_from=replace(inversion.made_from or MadeFrom(), cfg=settings.cfg),
        info={
            **inversion.info,
            "cfg": settings.cfg,
            "rebuild_error": left.tolist(),
            "null_text_loss": torch.stack(missed[::-1]).tolist(),
        },
    )


@dataclass
class _Step:
    """One step under guidance, as a function of its negative's embedding."""

    denoiser: Denoiser
    cond: Any
    as_cond: Callable[[Tensor], Any]
    x: Tensor
    goal: Tensor
    sigma: float
    lower: float
    cfg: float

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.conditional = self.denoiser.batch(self.x, self.sigma, [self.cond])[0]
        check_finite(self.conditional, f"The prediction at sigma {self.sigma:.3g}")

    def __call__(self, embeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the step lands and what it predicts, ``[B, C, H, W]``, and its loss ``[B]``."""
        negative = self.as_cond(embeds)
        away = self.denoiser.batch(self.x, self.sigma, [negative])[0]
        if isinstance(self.denoiser, Combining) and self.denoiser.patched:
            pair = [self.conditional, away]
            denoised = self.denoiser.combine(self.x, self.sigma, pair, [self.cond, negative], self.cfg)
        else:
            denoised = away + (self.conditional - away) * self.cfg
        check_finite(denoised, f"The prediction at sigma {self.sigma:.3g}")
        landed = euler_step(self.x, denoised, self.sigma, self.lower)
        scale = unit_scale(self.denoiser.identity, self.lower)
        return landed, denoised, ((landed - self.goal) * scale).square().flatten(1).mean(1)


def _solved(
    step: _Step, embeds: Tensor, settings: NullTextSettings, rate: float, report: Callable[[int, Tensor], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the step lands under the best embedding visited, that embedding, and its loss ``[B]``."""
    leaf = embeds.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=rate)
    best, landing, least = embeds, step.x, torch.full_like(step.x[:, 0, 0, 0], float("inf"))
    for iteration in range(settings.max_iterations):
        with torch.enable_grad():
            landed, denoised, loss = step(leaf)
            rows = (loss < least).view(-1, 1, 1)
            best = torch.where(rows, leaf.detach(), best)
            landing = torch.where(rows[..., None], landed.detach(), landing)
            least = torch.minimum(least, loss.detach())
            report(iteration, denoised.detach())
            if bool((least <= settings.tolerance).all()) or iteration + 1 == settings.max_iterations:
                break
            (leaf.grad,) = torch.autograd.grad(loss.sum(), leaf)
        optimizer.step()
    return landing, best, least.cpu()

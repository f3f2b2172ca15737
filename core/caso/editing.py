"""Editing with semantic embeddings (CASO, sections 3.3 and 4.2): guidance in a window of the inverted trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Callback, Combining, Denoiser, Progress, check_finite, unit_scale
from ..errors import EditingError
from ..inversion import Inversion, check_latent, inversion_grid
from ..sampling import TrajectoryEdit, sample
from ..spdinv.invert import invert
from ..token_vectors import TokenVectorEncoder
from .embedding import GuidanceTerm, SemanticEmbedding, concatenate, scaled_terms


@dataclass(frozen=True)
class Window:
    """Which steps are guided, as fractions of the trajectory: 1 is pure noise, 0 the clean image.

    Attributes:
        start: guidance begins here; until then the source's trajectory is followed exactly, without evaluating the
            network.
        end: guidance ends here; the steps below are unconditional.
        single_step: guide the first step of the window only (section 4.2, "Single-Step Edit").

    Raises:
        EditingError: not ``0 <= end < start <= 1``.
    """

    start: float = 0.3
    end: float = 0.0
    single_step: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.end < self.start <= 1:
            raise EditingError(
                f"The window goes from {self.start:g} to {self.end:g}; use fractions with 1 >= start > end >= 0."
            )

    def levels(self, steps: int) -> tuple[int, int]:
        """``(first, last)``: the levels of 0..steps from which a guided step goes down; there is at least one."""
        last = min(round(self.end * steps), steps - 1) + 1
        first = max(round(self.start * steps), last)
        return first, first if self.single_step else last


FINE, WHOLE = Window(0.3), Window(1.0)
#: Where guidance begins; it then goes on to the end. The paper gives 0.1 to 0.3 for fine attributes and 0.8 to 0.9 for
#: species (section 4.1); "middle" is for what lies between, such as hair or a background.
PRESETS = {"fine": FINE, "middle": Window(0.6), "species": Window(0.9)}


@dataclass(frozen=True)
class EditSettings:
    """How embeddings guide an edit or a new image.

    Attributes:
        strength: lambda, which the strengths of the embeddings are multiplied by. 0 is off, 3 to 10 usual, below 0
            leads the other way.
        window: which steps are guided.
        joined: embeddings of equal strength share one prompt, in the order given (the paper's concatenation), and cost
            one network evaluation together. Others, and all when False, get an evaluation each, because a prompt has
            one strength.
        focus: see :class:`~.embedding.GuidanceTerm`.
    """

    strength: float = 5.0
    window: Window = FINE
    joined: bool = True
    focus: float = 1.0


def guidance_terms(
    vector_encoder: TokenVectorEncoder,
    chosen: Sequence[tuple[SemanticEmbedding, float]],
    settings: EditSettings,
    against: Sequence[SemanticEmbedding] = (),
) -> list[GuidanceTerm]:
    """Embeddings with relative strengths as guidance terms; those whose strength is 0 are left out and cost nothing.

    Args:
        against: what every term leads away from in place of the empty prompt, each an evaluation; see
            :class:`~.embedding.GuidanceTerm`.

    Raises:
        EditingError: another text encoder, a strength or focus out of range, too many tokens.
    """
    groups: dict[Any, list[SemanticEmbedding]] = {}
    opposite = tuple(embedding.condition(vector_encoder) for embedding in against)
    for number, (embedding, relative) in enumerate(chosen):
        embedding.require_encoder(vector_encoder)
        strength = relative * settings.strength
        if strength != 0:
            groups.setdefault(strength if settings.joined else (strength, number), []).append(embedding)
    terms = []
    for key, members in groups.items():
        together = concatenate(members)
        strength = key if settings.joined else key[0]
        condition = together.condition(vector_encoder)
        terms.append(GuidanceTerm(condition, strength, together.target, settings.focus, opposite))
    return terms


def invert_to_window(
    denoiser: Denoiser, latent: Tensor, uncond: Any, steps: int, window: Window, callback: Callback | None = None
) -> tuple[Inversion, Window]:
    """Invert only as far as an edit in ``window`` needs: the inversion, and the window on that shorter trajectory.

    :func:`semantic_edit` gives the same as with the whole inversion, at ``window.start`` of its cost.

    Args:
        latent: ``[B, C, h, w]`` clean.
        steps: of the whole trajectory, as in :func:`~..spdinv.invert.invert`.

    Raises:
        EditingError: see :func:`~..spdinv.invert.invert`.
    """
    first, last = window.levels(steps)
    inversion = invert(denoiser, latent, uncond, sigmas=inversion_grid(denoiser, steps)[: first + 1], callback=callback)
    return inversion, Window(1.0, (last - 1) / first, window.single_step)


def steered(
    denoiser: Denoiser, x: Tensor, sigma: float, uncond: Any, terms: Sequence[GuidanceTerm], mask: Tensor | None = None
) -> Tensor:
    """``D_u + sum_i strength_i * (D_i - D_u)`` at ``x [B, C, H, W]``, in one network call of ``(1 + terms) * B`` rows
    (Eq. 2), and ``B`` more for each conditioning that a term leads away from.

    A term with a focus below 1 counts only where its difference is largest: inside ``mask [B or 1, 1, H, W]``, where
        one is given.

    Where the model combines predictions in its own way (see :class:`~..denoiser.Combining`), each term is a guidance of
    its own: what the model makes of ``[D_i, D_u]`` at the term's strength takes the place of the plain formula.
    """
    if not terms:
        return denoiser(x, sigma, uncond)
    opposite = {id(cond): cond for term in terms for cond in term.against}  # terms usually share them
    base, *rest = denoiser.batch(x, sigma, [uncond, *(term.cond for term in terms), *opposite.values()])
    conditional, known = rest[: len(terms)], dict(zip(opposite, rest[len(terms) :], strict=True))
    origins = [
        torch.stack([known[id(cond)] for cond in term.against]).mean(0) if term.against else base for term in terms
    ]
    if isinstance(denoiser, Combining) and denoiser.patched:
        combined = [
            denoiser.combine(x, sigma, [made, origin], [term.cond, (*term.against, uncond)[0]], term.strength)
            for made, origin, term in zip(conditional, origins, terms, strict=True)
        ]
        if len(terms) == 1 and terms[0].focus == 1 and not terms[0].against:
            return combined[0]  # the host's classifier-free guidance, bit for bit
        shifts = [
            focused(made - origin, term.focus, mask)
            for made, origin, term in zip(combined, origins, terms, strict=True)
        ]
        return base + torch.stack(shifts).sum(0)
    shift = torch.zeros_like(base)
    for made, origin, term in zip(conditional, origins, terms, strict=True):
        shift = shift + focused(made - origin, term.focus, mask) * term.strength
    return base + shift


def focused(shift: Tensor, share: float, mask: Tensor | None = None) -> Tensor:
    """``shift [B, C, H, W]`` with all but the largest ``share`` of each image's elements (by magnitude, at least one)
    set to 0.

    Args:
        mask: ``[B or 1, 1, H, W]``; only elements where it is above 0 are ranked, and ``share`` is of them. None ranks
            all.
    """
    if share == 1:
        return shift
    inside = (torch.ones_like(shift) if mask is None else mask.to(shift.device).expand_as(shift)).flatten(1) > 0
    sizes = shift.abs().flatten(1).float().masked_fill(~inside, -1.0)
    kept = (share * inside.sum(1, keepdim=True).double()).round().long().clamp(min=1)
    least = sizes.sort(dim=1, descending=True).values.gather(1, kept - 1)
    return shift * ((sizes >= least) & inside).reshape(shift.shape)


@dataclass
class SemanticStep(TrajectoryEdit):
    """The edit as a rule for each step of the trajectory.

    Attributes:
        inversion: of the source under ``uncond``; it gives grid, starting latent and what lies outside the mask.
        uncond: conditioning of the empty prompt.
        terms: what guides and how strongly; none gives the reconstruction.
        window: which steps are guided.
        mask: ``[B or 1, H, W]`` of any size, 1 where to edit; outside it the source's trajectory is kept exactly.
        exact: take off what the inversion left over (or another prompt than ``uncond`` in it), at one more evaluation a
            step: without terms the picture itself comes out.

    Raises:
        EditingError: an inversion of another model, a mask of another rank or batch.
    """

    denoiser: Denoiser
    inversion: Inversion
    uncond: Any
    terms: Sequence[GuidanceTerm]
    window: Window = FINE
    mask: Tensor | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.terms = scaled_terms(self.terms, 1.0)
        #: The level at which the edit leaves the source's trajectory.
        self.first_level, self.last_level = self.window.levels(self.inversion.steps)

    def is_guided(self, level: int) -> bool:
        """Whether the step from ``level`` to ``level - 1`` is guided."""
        return self.last_level <= level <= self.first_level

    def on_source(self, level: int) -> bool:
        """Before the window the source's trajectory is followed exactly."""
        return level > self.first_level

    def _edited(self, x: Tensor, level: int) -> Tensor:
        with torch.no_grad():
            terms = self.terms if self.is_guided(level) else ()
            sigma = self._levels(level)[0]
            denoised = steered(self.denoiser, x, sigma, self.uncond, terms, self.mask)
            if self.exact:
                predicted = self.denoiser(self._source(x, level), sigma, self.uncond)
                denoised = denoised + self._to_source(predicted, level)
        check_finite(denoised, f"The prediction at step {self.inversion.steps - level + 1}")
        return denoised


def semantic_edit(
    denoiser: Denoiser,
    inversion: Inversion,
    uncond: Any,
    terms: Sequence[GuidanceTerm],
    window: Window = FINE,
    *,
    mask: Tensor | None = None,
    exact: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Edit inverted images: the clean latent ``[B, C, H, W]``.

    Costs, an image: nothing before the window, 1 + terms forwards a guided step (1 more for each conditioning that they
    lead away from), 1 forward a step below the window, and 1 more each where it is to be ``exact``. A strength of 0 (no
    terms) is the reconstruction.

    Args:
        callback: told after each step of the edit; an exception it raises ends the run.
        others: see :class:`SemanticStep`.

    Raises:
        EditingError: see :class:`SemanticStep`.
    """
    step = SemanticStep(denoiser, inversion, uncond, terms, window, mask, exact)
    return step.run(step.first_level, callback)


def interpolate(
    denoiser: Denoiser,
    inversion: Inversion,
    uncond: Any,
    terms: Sequence[GuidanceTerm],
    factors: Sequence[float],
    window: Window = FINE,
    *,
    mask: Tensor | None = None,
    exact: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """A strip of edits, all strengths times each of ``factors`` (Fig. 4): clean latents ``[factors, B, C, H, W]``.

    Args:
        factors: e.g. -2, -1, 0, 1, 2; 0 is the reconstruction.
        others: see :func:`semantic_edit`; the callback counts the steps of all edits together.

    Raises:
        EditingError: no factors, or see :class:`SemanticStep`.
    """
    if not factors:
        raise EditingError("There are no strengths to interpolate over; give at least one.")
    strip: list[Tensor] = []

    def report(progress: Progress) -> None:
        if callback is not None:
            total = progress.steps * len(factors)
            callback(Progress(len(strip) * progress.steps + progress.step, total, 0, 1, progress.denoised))

    for factor in factors:
        scaled = scaled_terms(terms, factor)
        strip.append(
            semantic_edit(denoiser, inversion, uncond, scaled, window, mask=mask, exact=exact, callback=report)
        )
    return torch.stack(strip)


def generate(
    denoiser: Denoiser,
    noise: Tensor,
    uncond: Any,
    terms: Sequence[GuidanceTerm],
    steps: int = 50,
    window: Window = WHOLE,
    *,
    sigmas: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample new images guided by embeddings (section 4.3): the clean latent ``[B, C, H, W]``.

    Args:
        noise: ``[B, C, H, W]``, unit variance.
        uncond: what to be guided away from: the empty prompt, or any prompt of which the embeddings then are
            variations.
        steps: of the model's own grid; not used when ``sigmas`` is given.
        window: guided steps; the others are unconditional.
        callback: told after each step; an exception it raises ends the run.

    Raises:
        EditingError: wrong shape, bad grid, a prediction that is not a number.
    """
    grid = inversion_grid(denoiser, steps, sigmas)
    total = len(grid) - 1
    x = check_latent(noise, denoiser.identity) / unit_scale(denoiser.identity, float(grid[-1]))
    first, last = window.levels(total)
    active = scaled_terms(terms, 1.0)

    def predict(x: Tensor, sigma: float, step: int) -> Tensor:
        return steered(denoiser, x, sigma, uncond, active if last <= total - step <= first else ())

    return sample(predict, x, grid.flip(0).tolist(), callback)

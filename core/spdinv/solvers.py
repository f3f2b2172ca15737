"""Solvers for the implicit Euler step of an inversion, :class:`~.implicit_step.ImplicitStep`.

All rows of a batch are independent problems: a row that has converged is no longer evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import EditingError
from .implicit_step import ImplicitStep
from .way_back import WayBack

Solver = Literal["auto", "fixed_point", "anderson", "gradient", "ddim", "one_evaluation"]
Optimizer = Literal["adamw", "gradient_descent"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
#: Solvers that judge a step by what the rebuilt latent will show of it.
FOR_THE_IMAGE = ("auto", "one_evaluation")
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

#: Rounds without a fall of the residual after which ``auto`` hands a row on to its next rule.
PATIENCE = 4
ANDERSON_WINDOW = 3  # latents before the last one that an Anderson step combines
#: The shrinking of a miss by one move at which ``auto`` takes the tolerance as it is (Stable Diffusion in 20 steps);
#: where a move shrinks it more, the last move leaves less and the step may stop earlier.
USUAL_CONTRACTION = 0.25


@dataclass(frozen=True)
class SPDInvSettings:
    """How every step of an inversion is solved.

    Attributes:
        solver: ``"auto"`` (extrapolated start, accelerated fixed point, judged by what the rebuilt latent will show),
            ``"one_evaluation"`` (the same, stopped after one evaluation a step), ``"fixed_point"`` (Picard, damped
            where the residual grows), ``"anderson"``, ``"gradient"`` (SPDInv Algorithm 1) or ``"ddim"`` (plain DDIM
            inversion, one explicit evaluation a step: the baseline).
        tolerance: residual to reach, 0 or more: mean square in unit-variance latent units (the paper's delta).
            ``"auto"`` takes it in sigma space, where it is ``1 + sigma^2`` times stricter (eps and v models), for what
            a move of a step's usual contraction leaves, and divides it by the measured growth of errors on the way
            back.
        max_iterations: most residual measurements a step, 1 or more (the paper's K); the explicit guess of
            ``"gradient"`` is extra.
        optimizer: of ``"gradient"``: ``"adamw"`` as released, ``"gradient_descent"`` as printed.
        learning_rate: of that optimizer (the paper's eta).
        check_residual: ``"ddim"`` does not need its residuals and reports NaN; True spends one more evaluation a step
            (counted) to measure them.

    Raises:
        EditingError: a solver or an optimizer that does not exist, a tolerance or iterations out of range.
    """

    solver: Solver = "auto"
    tolerance: float = 5e-6
    max_iterations: int = 25
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    check_residual: bool = False

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise EditingError(f"There is no solver {self.solver!r}; use one of {', '.join(SOLVERS)}.")
        if self.optimizer not in OPTIMIZERS:
            raise EditingError(f"There is no optimizer {self.optimizer!r}; use one of {', '.join(OPTIMIZERS)}.")
        if self.max_iterations < 1 or not self.tolerance >= 0:
            raise EditingError(
                f"max_iterations is {self.max_iterations} and tolerance {self.tolerance}; use 1 or more and 0 or more."
            )

    @property
    def may_descend(self) -> bool:
        """Whether gradients through the network may be needed."""
        return self.solver == "gradient"


class _Picard:
    """``y <- y + damping * (f(y) - y)`` from the best latent; a row's damping halves when its residual did not fall.

    An undamped iteration diverges where ``f`` has an eigenvalue below -1; damped by d it converges for every
    eigenvalue in ``(1 - 2/d, 1)``.
    """

    moved: Tensor | None = None  # only Anderson remembers its moves

    def __init__(self, step: ImplicitStep) -> None:
        self.step = step
        self.damping = torch.ones_like(step.residual)
        self.measured = torch.full_like(step.residual, float("nan"))  # [B] residual of the latent last evaluated

    def evaluate(self, y: Tensor, rows: Tensor) -> None:
        with torch.no_grad():
            slope = self.step.network(y[rows], rows)
        residual = self.step.squared_miss(y[rows], slope, rows)
        self.measured[rows] = residual
        self.damping[rows] *= torch.where(residual < self.step.residual[rows], 1.0, 0.5)
        self.step.keep_best(y[rows], slope, residual, rows)

    def propose(self, y: Tensor, rows: Tensor) -> None:
        best = self.step.best[rows]
        move = self.step.image(self.step.slope[rows], rows) - best
        y[rows] = best + self.damping[rows].view(-1, 1, 1, 1) * move


class _Anderson:
    """Anderson acceleration: the affine combination of the last latents whose misses cancel best, moved by that miss.

    With one latent known it is a Picard step, with two a secant step along their difference.
    """

    def __init__(self, step: ImplicitStep) -> None:
        self.step = step
        self.visited: list[Tensor] = []
        self.misses: list[Tensor] = []
        self.measured = torch.full_like(step.residual, float("nan"))  # [B] residual of the latent last evaluated
        self.moved: Tensor | None = None  # [b, C, H, W] from the latent before the one last evaluated
        self.bent: Tensor | None = None  # [b, C, H, W] how the slope changed along it

    def evaluate(self, y: Tensor, rows: Tensor) -> None:
        with torch.no_grad():
            slope = self.step.network(y[rows], rows)
        self.measured[rows] = self.step.squared_miss(y[rows], slope, rows)
        self.step.keep_best(y[rows], slope, self.measured[rows], rows)
        miss = torch.zeros_like(y)
        miss[rows] = self.step.image(slope, rows) - y[rows]
        if self.visited:
            self.moved = y[rows] - self.visited[-1][rows]
            change = miss[rows] - self.misses[-1][rows] + self.moved
            self.bent = change / (self.step.sigma_next - self.step.sigma)
        self.visited = [*self.visited, y.clone()][-ANDERSON_WINDOW - 1 :]
        self.misses = [*self.misses, miss][-ANDERSON_WINDOW - 1 :]

    def propose(self, y: Tensor, rows: Tensor) -> None:
        latest, miss = self.visited[-1][rows], self.misses[-1][rows]
        if len(self.visited) == 1:
            y[rows] = latest + miss
            return
        moved = torch.stack([v[rows] - latest for v in self.visited[:-1]], 1)
        changed = torch.stack([m[rows] - miss for m in self.misses[:-1]], 1)
        flat = changed.flatten(2)
        # The small systems are solved on the CPU in fp64, which some accelerators lack; the ridge is above the rounding
        # of `gram`.
        gram, right = (flat @ flat.mT).cpu().double(), -(flat @ miss.flatten(1).unsqueeze(2)).cpu().double()
        ridge = max(1e-10, torch.finfo(y.dtype).eps) * gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)
        gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype)
        mix = torch.linalg.solve(gram, right).to(y)[:, :, :, None, None]
        y[rows] = latest + miss + (mix * (moved + changed)).sum(1)


class _Descent:
    """Descent on the residual by backpropagation through the network (SPDInv Algorithm 1), weights frozen.

    ``adamw`` is the released code: AdamW with PyTorch's defaults on the mean-square residual. ``gradient_descent`` is
    Algorithm 1 as printed: plain descent on the L2 norm. Unlike the released code the best iterate is kept.
    """

    def __init__(self, step: ImplicitStep, settings: SPDInvSettings) -> None:
        self.step = step
        self.norm = settings.optimizer == "gradient_descent"
        self.latent = torch.zeros_like(step.start)  # unit-variance units, in which the paper's learning rate is meant
        self.gradient = torch.zeros_like(step.start)
        kind = torch.optim.SGD if self.norm else torch.optim.AdamW
        self.optimizer = kind([self.latent], lr=settings.learning_rate)
        self.tolerance = settings.tolerance

    def evaluate(self, y: Tensor, rows: Tensor) -> None:
        scale = self.step.scale
        with torch.enable_grad():
            latent = (y[rows] * scale).detach().requires_grad_()
            slope = self.step.network(latent / scale, rows)
            residual = self.step.squared_miss(latent / scale, slope, rows)
            measured = residual.detach()
            self.step.keep_best(y[rows], slope.detach(), measured, rows)
            self.gradient = torch.zeros_like(self.step.start)
            if (measured > self.tolerance).any():
                count = latent[0].numel()
                loss = (residual * count).sqrt() if self.norm else residual
                (self.gradient[rows],) = torch.autograd.grad(loss.sum(), latent)
                self.step.backward[rows.cpu()] += 1

    def propose(self, y: Tensor, rows: Tensor) -> None:
        scale = self.step.scale
        self.latent.copy_(y * scale)
        self.latent.grad = self.gradient
        self.optimizer.step()
        y[rows] = self.latent[rows] / scale


def solve(step: ImplicitStep, guess: Tensor, settings: SPDInvSettings, way: WayBack | None = None) -> None:
    """Improve ``step.best`` from ``guess [B, C, H, W]`` until every row is solved to the tolerance.

    At most ``max_iterations`` residuals are measured per row. On return ``step.best``, ``step.slope`` and
    ``step.residual`` belong together: the residual is the smallest visited and was measured at that latent.
    ``step.result`` is where to go on from: the best latent or, under ``auto``, one move further. A step of zero length
    is left as it is, exactly and at no cost.

    Args:
        way: what ``auto`` knows of the way back, and learns on.
    """
    if step.sigma_next == step.sigma:
        step.residual = torch.zeros_like(step.residual)
        return
    if settings.solver in FOR_THE_IMAGE:
        _solve_for_the_image(step, guess, settings, way or WayBack(step.start))
        return
    rules: dict[str, Any] = {"fixed_point": _Picard, "anderson": _Anderson}
    rule = rules[settings.solver](step) if settings.solver in rules else _Descent(step, settings)
    y = guess.clone()
    for spent in range(settings.max_iterations):
        rows = step.unconverged(settings.tolerance)
        if not len(rows):
            break
        if spent:
            rule.propose(y, rows)
        rule.evaluate(y, rows)
    step.result = step.best


def _solve_for_the_image(step: ImplicitStep, guess: Tensor, settings: SPDInvSettings, way: WayBack) -> None:
    """Solve each row until the miss that is left, *as the clean latent will show it*, is small enough.

    The slope at the last latent is known, so one more move costs nothing; what it leaves is estimated from how much the
    moves before it shrank the miss, and how it grows on the way back from ``way``. Anderson first; a row that stalls
    under it is handed to damped Picard, and keeps its best latent when that does not help either.
    """
    step.result = guess.clone()
    left = torch.full_like(step.residual, float("inf"))  # [B] mean square in sigma space, of step.result
    allowed = way.allowed(settings.tolerance * USUAL_CONTRACTION**2, step)
    budget = 1 if settings.solver == "one_evaluation" else settings.max_iterations
    rows, y = step.rows, guess.clone()
    for make in (_Anderson, _Picard):
        rule: Any = make(step)
        last = torch.full_like(left, float("nan"))  # [B] squared miss one round before
        stalled = torch.zeros_like(step.residual, dtype=torch.long)
        given_up = rows[:0]
        if make is _Picard:
            y = step.best.clone()
            rule.propose(y, rows)
        for _ in range(budget):
            if not len(rows):
                break
            before = step.residual[rows]
            rule.evaluate(y, rows)
            budget -= 1
            measured = rule.measured[rows] / step.scale**2
            if rule.moved is not None:
                way.watch(step, rule.moved, rule.bent, rows)
            shrinking = torch.where(last[rows].isnan(), way.contraction(step)[rows], (measured / last[rows]).sqrt())
            last[rows] = measured
            rule.propose(y, rows)
            leaves = torch.where(shrinking < 1, measured * shrinking**2, float("inf"))
            better = leaves < left[rows]
            step.result[rows[better]], left[rows[better]] = y[rows[better]], leaves[better]
            stalled[rows] = torch.where(step.residual[rows] < 0.9 * before, 0, stalled[rows] + 1)
            rows = rows[left[rows] > allowed[rows]]
            waiting = stalled[rows] < PATIENCE
            given_up, rows = torch.cat([given_up, rows[~waiting]]), rows[waiting]
        rows = torch.cat([given_up, rows])
    lost = left.isinf()
    step.result[lost], left[lost] = step.best[lost], step.residual[lost] / step.scale**2
    way.passed(step, left)

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

Solver = Literal["auto", "fixed_point", "anderson", "gradient", "ddim"]
Optimizer = Literal["adamw", "gradient_descent"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

#: Rounds without a fall of the residual after which ``auto`` hands a row on to its next rule.
PATIENCE = 4
ANDERSON_WINDOW = 3  # latents before the last one that an Anderson step combines


@dataclass(frozen=True)
class SPDInvSettings:
    """How every step of an inversion is solved.

    Attributes:
        solver: ``"auto"`` (extrapolated start, accelerated fixed point, descent only as a last resort),
            ``"fixed_point"`` (Picard, damped where the residual grows), ``"anderson"``, ``"gradient"`` (SPDInv
            Algorithm 1) or ``"ddim"`` (plain DDIM inversion, one explicit evaluation a step: the baseline).
        tolerance: residual to reach, 0 or more: mean square in unit-variance latent units (the paper's delta).
        max_iterations: most residual measurements a step, 1 or more (the paper's K); the explicit guess of
            ``"gradient"`` is extra.
        optimizer: of ``"gradient"``, and of ``"auto"`` where it descends: ``"adamw"`` as released,
            ``"gradient_descent"`` as printed.
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
        return self.solver in ("auto", "gradient")


class _Picard:
    """``y <- y + damping * (f(y) - y)`` from the best latent; a row's damping halves when its residual did not fall.

    An undamped iteration diverges where ``f`` has an eigenvalue below -1; damped by d it converges for every
    eigenvalue in ``(1 - 2/d, 1)``.
    """

    def __init__(self, step: ImplicitStep) -> None:
        self.step = step
        self.ready = bool(torch.isfinite(step.residual).all())
        self.damping = torch.ones_like(step.residual)

    def evaluate(self, y: Tensor, rows: Tensor) -> None:
        with torch.no_grad():
            slope = self.step.network(y[rows], rows)
        residual = self.step.squared_miss(y[rows], slope, rows)
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

    ready = False

    def __init__(self, step: ImplicitStep) -> None:
        self.step = step
        self.visited: list[Tensor] = []
        self.misses: list[Tensor] = []

    def evaluate(self, y: Tensor, rows: Tensor) -> None:
        with torch.no_grad():
            slope = self.step.network(y[rows], rows)
        self.step.keep_best(y[rows], slope, self.step.squared_miss(y[rows], slope, rows), rows)
        miss = torch.zeros_like(y)
        miss[rows] = self.step.image(slope, rows) - y[rows]
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

    ready = False

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


def solve(step: ImplicitStep, guess: Tensor, settings: SPDInvSettings) -> None:
    """Improve ``step.best`` from ``guess [B, C, H, W]`` until every row's residual is within the tolerance.

    At most ``max_iterations`` residuals are measured per row. On return ``step.best``, ``step.slope`` and
    ``step.residual`` belong together: the residual is the smallest visited and was measured at that latent.
    ``auto`` accelerates Picard by Anderson and hands a row on, to damped Picard and then to AdamW descent, only when
    its residual refuses to fall. A step of zero length is left as it is, exactly and at no cost.
    """
    if step.sigma_next == step.sigma:
        step.residual = torch.zeros_like(step.residual)
        return

    def descent(step: ImplicitStep) -> _Descent:
        return _Descent(step, settings)

    rules: dict[str, list[Any]] = {
        "fixed_point": [_Picard],
        "anderson": [_Anderson],
        "gradient": [descent],
        "auto": [_Anderson, _Picard, descent],
    }
    chain = rules[settings.solver]
    budget, current = settings.max_iterations, guess
    for make in chain:
        patience = budget if make is chain[-1] else PATIENCE
        budget -= _iterate(step, current.clone(), make(step), settings.tolerance, budget, patience)
        current = step.best


def _iterate(step: ImplicitStep, y: Tensor, rule: Any, tolerance: float, budget: int, patience: int) -> int:
    """Apply one rule, in place on ``y``; returns the rounds used.

    A row stops when it has converged, or when its residual has not fallen for ``patience`` rounds.

    A rule that is ``ready`` can propose from the step's best latent without evaluating it again.
    """
    stalled = torch.zeros_like(step.residual, dtype=torch.long)
    for spent in range(budget):
        rows = step.unconverged(tolerance)
        rows = rows[stalled[rows] < patience]
        if not len(rows):
            return spent
        if spent or rule.ready:
            rule.propose(y, rows)
        before = step.residual[rows]
        rule.evaluate(y, rows)
        stalled[rows] = torch.where(step.residual[rows] < 0.9 * before, 0, stalled[rows] + 1)
    return budget

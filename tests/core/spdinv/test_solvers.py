"""Solver contracts on maps whose fixed point and eigenvalues are known."""

import pytest
import torch

from semantic_editing.core.denoiser import unit_scale
from semantic_editing.core.errors import EditingError
from semantic_editing.core.spdinv.implicit_step import ImplicitStep, ddim_guess, extrapolate
from semantic_editing.core.spdinv.solvers import SPDInvSettings, solve
from semantic_editing.core.spdinv.way_back import WayBack
from semantic_editing.tests.core.oracles import AffineMapDenoiser, GaussianDenoiser
from semantic_editing.tests.pairs import pairs

SIGMA, SIGMA_NEXT = 0.5, 0.8
SHAPE = (3, 4, 8, 8)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Visits:
    """A step whose every visited latent and residual are measured independently of the solver."""

    def __init__(self, eigenvalues, seed=0):
        start, fixed = randn(*SHAPE, seed=seed), randn(*SHAPE, seed=seed + 1)
        self.fixed = fixed
        self.rows = torch.arange(SHAPE[0]).double().view(-1, 1, 1)
        self.denoiser = AffineMapDenoiser(
            start, fixed, torch.as_tensor(eigenvalues, dtype=torch.float64), SIGMA, SIGMA_NEXT
        )
        self.visited = [[] for _ in range(SHAPE[0])]
        evaluate = self.denoiser.x0

        def spy(x, sigma, cond):
            result = evaluate(x, sigma, cond)
            for row, y, d in zip(cond.flatten().long().tolist(), x.detach(), result.detach(), strict=True):
                self.visited[row].append(self.residual(row, y, d))
            return result

        self.denoiser.x0 = spy
        self.step = ImplicitStep(self.denoiser, self.rows, start, SIGMA, SIGMA_NEXT, lambda iteration, denoised: None)

    def residual(self, row, y, denoised):
        image = self.denoiser.start[row] + (SIGMA_NEXT - SIGMA) * (y - denoised) / SIGMA_NEXT
        return float(((image - y) ** 2).mean() / (1 + SIGMA_NEXT**2))

    def fresh(self):
        """Residual of each returned latent, by a new evaluation."""
        denoiser = AffineMapDenoiser(self.denoiser.start, self.fixed, self.denoiser.eigenvalues, SIGMA, SIGMA_NEXT)
        denoised = denoiser(self.step.best, SIGMA_NEXT, self.rows)
        return [self.residual(row, self.step.best[row], denoised[row]) for row in range(SHAPE[0])]


def spread(low, high):
    """Eigenvalues from low to high over the elements of an image."""
    return torch.linspace(low, high, SHAPE[1] * SHAPE[2] * SHAPE[3], dtype=torch.float64).reshape(1, *SHAPE[1:])


@pytest.mark.parametrize(
    ("solver", "eigenvalues", "iterations"),
    pairs(["auto", "fixed_point", "anderson", "gradient"], [0.5, -3.0, 0.95, "spread"], [1, 4, 12]),
)
def test_returned_latent_is_the_best_visited_and_its_residual_is_fresh(solver, eigenvalues, iterations):
    visits = Visits(spread(-2.5, 0.7) if eigenvalues == "spread" else eigenvalues)
    solve(visits.step, visits.step.start, SPDInvSettings(solver, 1e-12, iterations))
    for row in range(SHAPE[0]):
        assert float(visits.step.residual[row]) == pytest.approx(min(visits.visited[row]), rel=1e-9, abs=1e-20)
        assert len(visits.visited[row]) == int(visits.step.forward[row]) <= iterations
    assert visits.step.residual.tolist() == pytest.approx(visits.fresh(), rel=1e-9, abs=1e-20)


def test_plain_picard_diverges_where_damping_anderson_and_auto_converge():
    """Eigenvalue -3: the undamped error grows threefold a round."""
    visits = Visits(-3.0)
    y = visits.step.start
    for _ in range(5):
        denoised = visits.denoiser(y, SIGMA_NEXT, visits.rows)
        y = visits.step.start + (SIGMA_NEXT - SIGMA) * (y - denoised) / SIGMA_NEXT
    assert (y - visits.fixed).norm() > 100 * (visits.step.start - visits.fixed).norm()
    for solver in ("fixed_point", "anderson", "auto"):
        visits = Visits(-3.0)
        solve(visits.step, visits.step.start, SPDInvSettings(solver, 1e-12, 25))
        torch.testing.assert_close(visits.step.best, visits.fixed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "auto"])
def test_many_eigenvalues_converge(solver):
    visits = Visits(spread(-2.0, 0.7))
    solve(visits.step, visits.step.start, SPDInvSettings(solver, 1e-10, 60))
    torch.testing.assert_close(visits.step.best, visits.fixed, atol=1e-3, rtol=0)


def test_auto_reaches_where_picard_cannot():
    """Eigenvalue 1.5: no damping helps (the map expands away from its fixed point), a secant does."""
    picard, auto = Visits(1.5), Visits(1.5)
    solve(picard.step, picard.step.start, SPDInvSettings("fixed_point", 1e-10, 25))
    solve(auto.step, auto.step.start, SPDInvSettings("auto", 1e-10, 25))
    assert (picard.step.residual > 1e-3).all() and (auto.step.residual <= 1e-10).all()


def test_auto_takes_no_gradients_and_keeps_its_best_where_every_rule_stalls():
    """Eigenvalues from -60 to 60: more than four directions expand, which neither a short window nor damping tames."""
    visits = Visits(spread(-60.0, 60.0))
    solve(visits.step, visits.step.start, SPDInvSettings("auto", 1e-12, 40))
    assert not visits.step.backward.any() and not SPDInvSettings("auto").may_descend
    assert visits.step.residual.tolist() == pytest.approx(visits.fresh(), rel=1e-9)
    assert [min(row) for row in visits.visited] == pytest.approx(visits.step.residual.tolist(), rel=1e-9)


@pytest.mark.parametrize("eigenvalue", [0.2, -0.4])
def test_the_last_move_is_free_and_nearer(eigenvalue):
    """One evaluation of an affine map: a Picard move shrinks the error by the eigenvalue, and is not evaluated."""
    visits = Visits(eigenvalue)
    solve(visits.step, visits.step.start, SPDInvSettings("one_evaluation", 1e-12))
    assert visits.step.forward.tolist() == [1, 1, 1] and torch.equal(visits.step.best, visits.step.start)
    torch.testing.assert_close(
        visits.step.result - visits.fixed, eigenvalue * (visits.step.start - visits.fixed), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("eigenvalue", [0.5, -0.3, -3.0])
def test_the_way_back_is_measured_along_the_misses(eigenvalue):
    """The step back is ``1 - f'``, or ``r + (1 - r) J``; what grows on it makes the tolerance above it smaller."""
    visits = Visits(eigenvalue)
    way = WayBack(visits.step.start)
    before = way.allowed(1.0, visits.step)
    solve(visits.step, visits.step.start, SPDInvSettings("auto", 1e-12, 25), way)
    ratio = SIGMA / SIGMA_NEXT
    expected = torch.full((3,), (1 - eigenvalue - ratio) / (1 - ratio), dtype=torch.float64)
    torch.testing.assert_close(way.gain, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(way.expansion(visits.step), torch.full_like(expected, 1 - eigenvalue))
    torch.testing.assert_close(way.growth, torch.full_like(expected, max(1.0, 1 - eigenvalue) ** 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(way.allowed(1.0, visits.step), before / way.growth**2)
    error = (visits.step.result - visits.fixed).square().mean((1, 2, 3)) * (1 - eigenvalue) ** 2
    assert (way.missed <= 1e-12).all() and (error <= 1e-11).all()


def test_a_coarse_network_is_not_asked_for_more_than_it_can_tell():
    """An error of 2^-7 in place of 2^-23 is 2^16 times as large, its square 2^32 times."""
    visits = Visits(0.5)
    way, floors = WayBack(visits.step.start), {}
    for precision in (torch.float32, torch.bfloat16):
        visits.denoiser.precision = precision
        floors[precision] = way.floor(visits.step)
        assert torch.equal(way.allowed(0.0, visits.step), floors[precision])
    torch.testing.assert_close(floors[torch.bfloat16] / floors[torch.float32], torch.full((3,), 2.0**32).double())


def test_converged_rows_stop_costing():
    visits = Visits(torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64).view(3, 1, 1, 1))
    solve(visits.step, visits.step.start, SPDInvSettings("fixed_point", 1e-6, 60))
    cost = visits.step.forward.tolist()
    assert cost[0] == 2 and cost[0] < cost[1] < cost[2]
    assert sum(cost) == visits.denoiser.evaluations.forward == sum(visits.denoiser.calls)
    assert (visits.step.residual <= 1e-6).all()


def test_rows_are_independent():
    eigenvalues = torch.tensor([-3.0, 0.3, 0.8], dtype=torch.float64).view(3, 1, 1, 1)
    for solver in ("fixed_point", "anderson", "auto", "gradient"):
        together = Visits(eigenvalues)
        solve(together.step, together.step.start, SPDInvSettings(solver, 1e-9, 10))
        alone = Visits(eigenvalues)
        denoiser = AffineMapDenoiser(alone.denoiser.start[1:2], alone.fixed[1:2], eigenvalues[1:2], SIGMA, SIGMA_NEXT)
        step = ImplicitStep(denoiser, None, alone.step.start[1:2], SIGMA, SIGMA_NEXT, lambda iteration, denoised: None)
        solve(step, step.start, SPDInvSettings(solver, 1e-9, 10))
        torch.testing.assert_close(step.best, together.step.best[1:2])
        assert int(step.forward) == int(together.step.forward[1])


def test_zero_length_step_is_exact_and_free():
    denoiser, start = GaussianDenoiser(1.0), randn(*SHAPE)
    for solver in ("auto", "fixed_point", "anderson", "gradient"):
        step = ImplicitStep(denoiser, None, start, 0.5, 0.5, lambda iteration, denoised: None)
        solve(step, start, SPDInvSettings(solver, 1e-6, 5))
        assert torch.equal(step.best, start) and not step.residual.any() and not step.forward.any()
    assert denoiser.evaluations.forward == 0


@pytest.mark.parametrize("optimizer", ["adamw", "gradient_descent"])
def test_descent_follows_the_optimizer_it_names(optimizer):
    """Two descent steps by hand, from the gradient of the affine map: J = (eigenvalue - 1)."""
    eigenvalue, rate = 0.4, 1e-2
    visits = Visits(eigenvalue)
    scale = unit_scale(visits.denoiser.identity, SIGMA_NEXT)
    z, target = visits.step.start * scale, visits.fixed * scale
    moment, square = torch.zeros_like(z), torch.zeros_like(z)
    for t in (1, 2):
        miss = (eigenvalue - 1) * (z - target)
        if optimizer == "gradient_descent":
            norm = miss.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            z = z - rate * (eigenvalue - 1) * miss / norm
            continue
        gradient = 2 * (eigenvalue - 1) * miss / z[0].numel()
        moment, square = 0.9 * moment + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        z = z - rate * 0.01 * z
        z = z - rate * (moment / (1 - 0.9**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
    solve(visits.step, visits.step.start, SPDInvSettings("gradient", 0.0, 3, optimizer, rate))
    torch.testing.assert_close(visits.step.best, z / scale)
    assert visits.step.forward.tolist() == [3, 3, 3]


def test_backward_passes_are_counted_as_the_network_ran_them():
    visits = Visits(0.4)
    solve(visits.step, visits.step.start, SPDInvSettings("gradient", 0.0, 4))
    assert int(visits.step.backward.sum()) == visits.denoiser.evaluations.backward > 0


def test_ddim_guess_shows_the_network_the_lower_latent_at_the_higher_level():
    denoiser, start = GaussianDenoiser(0.3), randn(*SHAPE)
    step = ImplicitStep(denoiser, None, start, SIGMA, SIGMA_NEXT, lambda iteration, denoised: None)
    # VP formula: eps of z at the higher alpha, then z moved from the lower alpha to the higher one.
    a, b = 1 / (1 + SIGMA**2), 1 / (1 + SIGMA_NEXT**2)
    z = start * a**0.5
    eps = (1 - b) ** 0.5 * z / (b * 0.3**2 + 1 - b)
    expected = (b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps) / b**0.5
    torch.testing.assert_close(ddim_guess(step), expected)
    assert step.forward.tolist() == [1, 1, 1]


@pytest.mark.parametrize("known", [1, 2, 3])
def test_extrapolation_is_exact_for_polynomials_in_log_sigma(known):
    levels = torch.tensor([0.5, 0.9, 2.0, 3.5], dtype=torch.float64)
    powers = torch.stack([levels.log() ** p for p in range(known)], 1) @ randn(known, 4 * 8 * 8)
    slopes = [(float(s), p.view(1, 4, 8, 8)) for s, p in zip(levels, powers, strict=True)]
    torch.testing.assert_close(extrapolate(slopes[3 - known : 3], float(levels[3])), slopes[3][1])


def test_nan_names_the_step():
    visits = Visits(0.5)
    visits.step.name = "step 7"
    visits.step.denoiser = GaussianDenoiser(float("nan"))
    visits.step.cond = None
    with pytest.raises(EditingError, match="step 7"):
        solve(visits.step, visits.step.start, SPDInvSettings("auto", 1e-6, 5))

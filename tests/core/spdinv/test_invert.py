"""`invert` end to end on denoisers with a closed form: round trips, costs, grids, files, refusals."""

import math
from itertools import pairwise

import pytest
import torch

from semantic_editing.core.denoiser import Progress
from semantic_editing.core.errors import EditingError
from semantic_editing.core.inversion import Inversion, inversion_grid
from semantic_editing.core.sampling import reconstruct
from semantic_editing.core.spdinv.invert import invert, spdinv
from semantic_editing.core.spdinv.solvers import SOLVERS, SPDInvSettings
from semantic_editing.tests.core.oracles import ClosedFormDenoiser, GaussianDenoiser
from semantic_editing.tests.core.tiny_models import FAMILIES, tiny_cond, tiny_denoiser, tiny_latent

FIXED_POINT = ("auto", "fixed_point", "anderson")


def latent(batch=2, seed=0, dtype=torch.float64):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class CurvedDenoiser(ClosedFormDenoiser):
    """The exact denoiser of data at +-1 in every element: ``tanh(x / sigma^2)``, strongly nonlinear."""

    def x0(self, x, sigma, cond):
        shift = 0 if cond is None else cond.view(-1, 1, 1, 1)
        return torch.tanh(x / (0.3 + sigma**2)) + shift * x / (1 + sigma**2)


def fresh_residuals(denoiser, inversion, cond=None):
    """``[T, B]`` from the stored latents alone, SPDInv Eq. 4 in unit-variance units."""
    rows = []
    for index, (low, high) in enumerate(pairwise(inversion.sigmas.double().tolist())):
        x, y = inversion.latents[index], inversion.latents[index + 1]
        miss = x + (high - low) * (y - denoiser(y, high, cond)) / high - y
        rows.append(miss.square().mean((1, 2, 3)) / (1 + high**2))
    return torch.stack(rows)


@pytest.mark.parametrize("std", [1, 0.3, 0.1])
@pytest.mark.parametrize("solver", FIXED_POINT)
def test_fixed_point_round_trip_is_exact(std, solver):
    denoiser = GaussianDenoiser(std)
    x = std * latent()
    inversion = invert(denoiser, x, None, solver=solver, tolerance=1e-18, max_iterations=60)
    back = reconstruct(denoiser, inversion, None)
    assert float((back * x).sum() / x.square().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("std", "amplitude"), [(1, 0.9992), (0.3, 0.9103), (0.1, 0.6363)])
def test_plain_ddim_has_its_closed_form_round_trip(std, amplitude):
    denoiser, x = GaussianDenoiser(std), std * latent()
    inversion = invert(denoiser, x, None, solver="ddim")
    back = reconstruct(denoiser, inversion, None)
    assert float((back * x).sum() / x.square().sum()) == pytest.approx(amplitude, abs=5e-5)
    assert inversion.evaluations == 50 and inversion.method == "ddim" and torch.isnan(inversion.residuals).all()


def test_ddim_residuals_are_measured_only_when_asked_and_counted():
    denoiser = GaussianDenoiser(0.3)
    inversion = spdinv(denoiser, 0.3 * latent(), None, 10, SPDInvSettings("ddim", check_residual=True))
    torch.testing.assert_close(inversion.residuals, fresh_residuals(GaussianDenoiser(0.3), inversion).float())
    assert inversion.evaluations == 20 and denoiser.evaluations.forward == 40


def test_noise_of_the_exact_inversion_is_the_known_noise():
    """Euler on Gaussian data is linear, so the latent that sampling started from is known."""
    denoiser = GaussianDenoiser(0.5)
    levels = denoiser.sigma_grid(20).double().tolist()[::-1]
    start = x = latent() * levels[0]
    for high, low in pairwise(levels):
        x = x + (x - x * 0.25 / (0.25 + high**2)) / high * (low - high)
    inversion = invert(denoiser, x, None, steps=20, tolerance=1e-20, max_iterations=60)
    torch.testing.assert_close(inversion.latents[-1], start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inversion.noise, start / math.sqrt(1 + levels[0] ** 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [*FIXED_POINT, "gradient"])
@pytest.mark.parametrize("batch", [1, 3])
def test_contract_on_a_nonlinear_denoiser(solver, batch):
    """Tolerance met, residuals equal a fresh evaluation of the stored latents, u exact per row and step.

    ``auto`` goes one move beyond the latent it measured: a fresh evaluation finds less than that.
    """
    denoiser, cond = CurvedDenoiser(), 0.2 * torch.arange(batch).double().view(-1, 1, 1)
    x = latent(batch).sign() + 0.05 * latent(batch, seed=1)
    inversion = spdinv(denoiser, x, cond, 10, SPDInvSettings(solver, 1e-5, 60, learning_rate=1e-2))
    fresh = fresh_residuals(CurvedDenoiser(), inversion, cond)
    if solver == "auto":
        assert (fresh <= inversion.residuals + 1e-12).all() and (fresh <= 1e-5).all()
        back = reconstruct(CurvedDenoiser(), inversion, cond)
        missed = (back - x).square().mean((1, 2, 3))
        assert (missed <= 10 * torch.tensor(inversion.info["rebuild_error"])).all()
    else:
        torch.testing.assert_close(inversion.residuals, fresh.float(), rtol=1e-4, atol=1e-12)
    if solver in ("fixed_point", "anderson"):
        assert (inversion.residuals <= 1e-5).all()
    assert int(inversion.forward_evaluations.sum()) == denoiser.evaluations.forward == sum(denoiser.calls)
    assert int(inversion.backward_evaluations.sum()) == denoiser.evaluations.backward
    assert torch.equal(inversion.latents[0], x) and inversion.latents.shape == (11, batch, 4, 8, 8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_batch_equals_singles(solver):
    cond = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64).view(3, 1, 1)
    x = latent(3).sign() + 0.05 * latent(3, seed=1)
    options = {"steps": 6, "solver": solver, "max_iterations": 8}
    together = invert(CurvedDenoiser(), x, cond, **options)
    for row in range(3):
        alone = invert(CurvedDenoiser(), x[row : row + 1], cond[row : row + 1], **options)
        torch.testing.assert_close(
            alone.latents[:, 0], together.latents[:, row], rtol=1e-4, atol=1e-4
        )  # Anderson amplifies rounding
        assert torch.equal(alone.forward_evaluations[:, 0], together.forward_evaluations[:, row])


@pytest.mark.parametrize(("std", "times"), [(0.3, 2), (0.1, 3)])
def test_auto_costs_least_and_descent_several_times_as_much(std, times):
    """Forward and backward evaluations together. The narrower the data, the more iterations descent needs: on wide data
    its explicit guess is nearly solved, on the narrowest it costs three times as much and still misses the
    tolerance."""
    x = std * latent()
    cost, residual = {}, {}
    for solver in ("auto", "fixed_point", "gradient"):
        inversion = invert(GaussianDenoiser(std), x, None, solver=solver)
        cost[solver] = inversion.evaluations + inversion.backward_passes
        residual[solver] = float(fresh_residuals(GaussianDenoiser(std), inversion).max())
    assert 50 <= cost["auto"] <= 62 and cost["auto"] <= cost["fixed_point"]
    assert times * cost["auto"] <= cost["gradient"]
    assert max(residual["auto"], residual["fixed_point"]) <= 5e-6


def test_one_evaluation_a_step_costs_that_and_is_nearer_than_ddim():
    x, missed = 0.3 * latent(), {}
    for solver in ("one_evaluation", "ddim"):
        inversion = invert(GaussianDenoiser(0.3), x, None, solver=solver)
        assert inversion.evaluations == 50
        missed[solver] = float((reconstruct(GaussianDenoiser(0.3), inversion, None) - x).square().mean())
    assert missed["one_evaluation"] < 0.1 * missed["ddim"]


class PromptedDenoiser(CurvedDenoiser):
    """Data at +-1 under the prompt (``cond`` 1), at 0 with standard deviation 0.5 without (``cond`` 0)."""

    def x0(self, x, sigma, cond):
        wide = x * 0.25 / (0.25 + sigma**2)
        return wide + cond.view(-1, 1, 1, 1) * (super().x0(x, sigma, None) - wide)


@pytest.mark.parametrize("cfg", [2.0, 3.0])
def test_inversion_under_guidance_rebuilds_under_that_guidance(cfg):
    x, prompt, empty = latent().sign() * 0.9, torch.ones(1, 1, 1).double(), torch.zeros(1, 1, 1).double()
    denoiser = PromptedDenoiser()
    inversion = spdinv(denoiser, x, prompt, 50, SPDInvSettings(), cfg=cfg, uncond=empty)
    assert inversion.info["cfg"] == cfg and inversion.evaluations == denoiser.evaluations.forward / len(x) >= 100
    back = reconstruct(PromptedDenoiser(), inversion, prompt, cfg, empty)
    assert float((back - x).square().mean()) < 1e-4
    with pytest.raises(EditingError, match="negative conditioning"):
        spdinv(denoiser, x, prompt, 5, SPDInvSettings(), cfg=cfg)


def test_guidance_under_which_no_step_settles_is_refused():
    class Torn(ClosedFormDenoiser):
        """A prediction that jumps with the sign of its input: above a scale there is no fixed point to find."""

        def x0(self, x, sigma, cond):
            return torch.sin(40 * x) * cond.view(-1, 1, 1, 1)

    prompt, empty = torch.ones(1, 1, 1).double(), torch.zeros(1, 1, 1).double()
    with pytest.raises(EditingError, match=r"cfg 12 .* do not settle"):
        spdinv(Torn(), latent(), prompt, 5, SPDInvSettings(), cfg=12.0, uncond=empty)


def test_callback_hears_every_network_call():
    denoiser, heard = CurvedDenoiser(), []
    invert(denoiser, latent().sign(), None, steps=5, callback=heard.append, max_iterations=9)
    assert len(heard) == len(denoiser.calls)
    assert all(isinstance(p, Progress) and p.steps == 5 and p.denoised.shape == (2, 4, 8, 8) for p in heard)
    assert [p.step for p in heard] == sorted(p.step for p in heard) and {p.step for p in heard} == set(range(5))
    assert [p.iteration for p in heard if p.step == 2] == list(range(sum(p.step == 2 for p in heard)))


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("solver", SOLVERS)
def test_cancelling_leaves_the_network_as_it_was(solver):
    denoiser = tiny_denoiser("sd1")
    before = [(p.requires_grad, p.clone()) for p in denoiser.unet.parameters()]

    def cancel(progress):
        if progress.step == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        invert(denoiser, tiny_latent(1), tiny_cond("sd1", 1), steps=3, solver=solver, callback=cancel, max_iterations=3)
    assert torch.is_grad_enabled()
    for p, (flag, value) in zip(denoiser.unet.parameters(), before, strict=True):
        assert p.requires_grad == flag and p.grad is None and torch.equal(p, value)


def test_descent_gives_no_weight_a_gradient():
    denoiser = tiny_denoiser("sd1")
    flags = [p.requires_grad for p in denoiser.unet.parameters()]
    inversion = invert(
        denoiser, tiny_latent(2), tiny_cond("sd1", 2), steps=2, solver="gradient", tolerance=0.0, max_iterations=3
    )
    assert inversion.backward_passes > 0 and int(inversion.backward_evaluations.sum()) == denoiser.evaluations.backward
    assert [p.requires_grad for p in denoiser.unet.parameters()] == flags
    assert all(p.grad is None for p in denoiser.unet.parameters())
    assert not inversion.latents.requires_grad


@pytest.mark.parametrize(
    ("shape", "manner"), [((1, 8, 8), "weights"), ((1, 8, 8), "autocast"), ((3, 4, 6), "autocast")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_network_keeps_an_fp32_trajectory(family, shape, manner):
    """The noise and the rebuilt latent are those of fp32 as far as 8 bits of mantissa go, and nobody asks for more: it
    costs no more than fp32."""
    denoiser, cond, x = tiny_denoiser(family), tiny_cond(family), tiny_latent(*shape)
    denoiser.unet.conv_out.weight.data.mul_(
        0.5
    )  # as drawn, "sdxl" bends so much that the noise of bf16 exceeds the tolerance
    exact = invert(denoiser, x, cond, steps=3)
    if manner == "weights":
        denoiser.unet.to(torch.bfloat16)
        x = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=manner == "autocast"):
        inversion = invert(denoiser, x, cond, steps=3)
        rebuilt = reconstruct(denoiser, inversion, cond)
    assert inversion.latents.dtype == rebuilt.dtype == torch.float32
    assert 0 < (inversion.noise - exact.noise).norm() < 0.02 * exact.noise.norm()
    assert (rebuilt - x).norm() < 0.02 * x.norm()
    assert inversion.evaluations <= exact.evaluations


def test_given_sigmas_may_fall_rise_or_start_at_zero():
    x = latent()
    rising = torch.tensor([0.0, 0.1, 0.5, 2.0, 6.0])
    runs = [
        invert(GaussianDenoiser(1.0), x, None, sigmas=s, tolerance=1e-16, max_iterations=80)
        for s in (rising, rising.flip(0))
    ]
    assert torch.equal(runs[0].latents, runs[1].latents) and torch.equal(runs[1].sigmas, rising)
    denoiser = GaussianDenoiser(1.0)
    torch.testing.assert_close(reconstruct(denoiser, runs[0], None), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([1.0], "1 level"),
        ([], "0 level"),
        ([0.1, 0.1, 1.0], "repeat"),
        ([0.1, 2.0, 1.0], "out of order"),
        ([0.1, float("nan")], "non-finite"),
        ([-0.1, 1.0], "negative"),
        ([0.1, float("inf")], "non-finite"),
    ],
)
def test_bad_grids_are_refused(sigmas, words):
    with pytest.raises(EditingError, match=words):
        inversion_grid(GaussianDenoiser(1.0), 10, torch.tensor(sigmas))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 5000}, "steps is 5000"),
        ({"solver": "newton"}, "solver 'newton'"),
        ({"solver": "gradient", "optimizer": "lbfgs"}, "optimizer 'lbfgs'"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"tolerance": float("nan")}, "tolerance nan"),
        ({"tolerance": -1.0}, "tolerance -1"),
    ],
)
def test_bad_options_are_refused(options, words):
    run = {name: value for name, value in options.items() if name in ("steps", "sigmas")}
    with pytest.raises(EditingError, match=words):
        settings = SPDInvSettings(**{name: value for name, value in options.items() if name not in run})
        spdinv(GaussianDenoiser(1.0), latent(), None, **({"steps": 50, "settings": settings} | run))


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (4, 8, 8)])
def test_wrong_latents_are_refused(shape):
    with pytest.raises(EditingError, match="VAE"):
        invert(GaussianDenoiser(1.0), torch.zeros(shape), None)


def test_nan_latent_and_nan_prediction_are_named():
    with pytest.raises(EditingError, match="latent"):
        invert(GaussianDenoiser(1.0), latent() * float("nan"), None)

    class Breaks(GaussianDenoiser):
        def x0(self, x, sigma, cond):
            return super().x0(x, sigma, cond) * (float("nan") if float(sigma) > 1 else 1)

    broken = Breaks(1.0)
    first_bad = int((broken.sigma_grid(10) > 1).nonzero()[0])
    with pytest.raises(EditingError, match=f"step {first_bad} "):
        invert(broken, latent(), None, steps=10)


def test_conditioning_is_stored_as_tensors():
    x, cond = latent(), torch.ones(1, 1, 1, dtype=torch.float64)
    assert set(invert(GaussianDenoiser(1.0), x, cond, steps=2).cond) == {"embeds"}
    given = spdinv(
        GaussianDenoiser(1.0), x, None, 2, SPDInvSettings(), cond_tensors={"embeds": cond, "pooled": cond[0]}
    ).cond
    assert set(given) == {"embeds", "pooled"}
    assert invert(GaussianDenoiser(1.0), x, None, steps=2).cond is None


@pytest.mark.parametrize("solver", ["auto", "ddim"])
def test_saved_inversion_comes_back_equal(tmp_path, solver):
    inversion = invert(GaussianDenoiser(1.0), latent(dtype=torch.float32), None, steps=4, solver=solver)
    loaded = Inversion.load(inversion.save(tmp_path / "x.safetensors"))
    for name in ("latents", "sigmas", "residuals", "forward_evaluations", "backward_evaluations"):
        torch.testing.assert_close(getattr(loaded, name), getattr(inversion, name), rtol=0, atol=0, equal_nan=True)
    assert loaded.identity == inversion.identity and loaded.method == inversion.method
    torch.testing.assert_close(
        reconstruct(GaussianDenoiser(1.0), loaded, None), reconstruct(GaussianDenoiser(1.0), inversion, None)
    )


def test_reconstruct_needs_the_same_model_and_a_negative_for_cfg():
    inversion = invert(GaussianDenoiser(1.0), latent(), None, steps=3)
    other = GaussianDenoiser(1.0)
    other.identity = type(other.identity)("other", 4, "eps")
    with pytest.raises(EditingError, match="another model"):
        reconstruct(other, inversion, None)
    with pytest.raises(EditingError, match="negative conditioning"):
        reconstruct(GaussianDenoiser(1.0), inversion, None, cfg=3.0)


def test_level_of_refuses_a_level_that_is_not_on_the_grid():
    inversion = invert(GaussianDenoiser(1.0), latent(), None, steps=3)
    assert [inversion.level_of(float(s)) for s in inversion.sigmas] == [0, 1, 2, 3]
    with pytest.raises(EditingError, match="deterministic"):
        inversion.level_of(float(inversion.sigmas[2]) * 1.1)

"""CASO edits: nothing outside the window, reconstruction at strength 0, antisymmetry, masks, batches, cost."""

import pytest
import torch

from semantic_editing.core.caso.editing import (
    SemanticStep,
    Window,
    focused,
    generate,
    interpolate,
    invert_to_window,
    semantic_edit,
    steered,
)
from semantic_editing.core.caso.embedding import GuidanceTerm
from semantic_editing.core.denoiser import euler_step
from semantic_editing.core.errors import EditingError
from semantic_editing.core.sampling import reconstruct
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.tests.core.oracles import GaussianDenoiser
from semantic_editing.tests.core.tiny_models import tiny_cond, tiny_denoiser, tiny_latent

STEPS = 10


@pytest.fixture(scope="module", params=["sd2", "sdxl"])  # v-prediction with plain states, eps with pooled ones
def case(request):
    family = request.param
    denoiser = tiny_denoiser(family)
    uncond, cond = tiny_cond(family, seed=1), tiny_cond(family, seed=2)
    return denoiser, invert(denoiser, tiny_latent(2), uncond, STEPS, tolerance=1e-9), uncond, cond


def test_no_terms_or_strength_zero_is_the_reconstruction_over_the_whole_trajectory(case):
    denoiser, inversion, uncond, cond = case
    expected = reconstruct(denoiser, inversion, uncond)
    for terms in ([], [GuidanceTerm(cond, 0.0)]):
        torch.testing.assert_close(
            semantic_edit(denoiser, inversion, uncond, terms, Window(1.0)), expected, rtol=0, atol=1e-6
        )
    torch.testing.assert_close(
        semantic_edit(denoiser, inversion, uncond, [], Window(0.3)), inversion.latents[0], rtol=0, atol=2e-3
    )


def test_opposite_strengths_are_antisymmetric_to_first_order(case):
    denoiser, inversion, uncond, cond = case
    base = semantic_edit(denoiser, inversion, uncond, [], Window(0.5))

    def change(strength):
        return semantic_edit(denoiser, inversion, uncond, [GuidanceTerm(cond, strength)], Window(0.5)) - base

    def asymmetry(strength):
        return float((change(strength) + change(-strength)).norm() / change(strength).norm())

    assert asymmetry(0.04) < 0.1
    assert asymmetry(0.04) < 0.6 * asymmetry(0.16)  # what is left is of second order


def test_each_step_is_the_papers_guidance_inside_the_window_and_unconditional_below(case):
    denoiser, inversion, uncond, cond = case
    x = inversion.latents[6]
    for level in range(6, 0, -1):
        sigma, sigma_next = (float(s) for s in inversion.sigmas[[level, level - 1]])
        with torch.no_grad():
            unconditional = denoiser(x, sigma, uncond)
            eps, eps_cond = ((x - d) / sigma for d in (unconditional, denoiser(x, sigma, cond)))
        guided = eps + 3.0 * (eps_cond - eps) if level > 2 else eps
        x = euler_step(x, x - sigma * guided, sigma, sigma_next)
    got = semantic_edit(denoiser, inversion, uncond, [GuidanceTerm(cond, 3.0)], Window(0.6, 0.2))
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


def test_single_step_guides_one_step_only(case):
    denoiser, inversion, uncond, cond = case
    step = SemanticStep(denoiser, inversion, uncond, [GuidanceTerm(cond, 3.0)], Window(0.5, 0.1, single_step=True))
    assert [level for level in range(STEPS + 1) if step.is_guided(level)] == [5]


@pytest.mark.parametrize(
    ("window", "levels"),
    [
        (Window(0.3), [1, 2, 3]),
        (Window(0.9, 0.8), [9]),
        (Window(1.0), list(range(1, 11))),
        (Window(0.02, 0.01), [1]),
        (Window(1.0, 0.99), [10]),
    ],
)
def test_windows_name_the_steps_between_their_fractions_and_never_none(case, window, levels):
    first, last = window.levels(STEPS)
    assert list(range(last, first + 1)) == levels


@pytest.mark.parametrize("window", [Window(0.3), Window(0.7, 0.4), Window(0.5, 0.1, single_step=True), Window(0.02)])
def test_inverting_only_to_the_window_gives_the_same_edit(case, window):
    denoiser, _, uncond, cond = case
    latent, terms = tiny_latent(1), [GuidanceTerm(cond, 3.0)]
    short, same = invert_to_window(denoiser, latent, uncond, STEPS, window)
    assert short.steps == window.levels(STEPS)[0]
    whole = invert(denoiser, latent, uncond, STEPS)
    expected = semantic_edit(denoiser, whole, uncond, terms, window)
    torch.testing.assert_close(semantic_edit(denoiser, short, uncond, terms, same), expected, rtol=0, atol=1e-6)


def test_cost_is_nothing_before_the_window_terms_plus_one_inside_and_one_below(case):
    denoiser, inversion, uncond, cond = case
    before = denoiser.evaluations.forward
    semantic_edit(denoiser, inversion, uncond, [GuidanceTerm(cond, 2.0), GuidanceTerm(uncond, -1.0)], Window(0.7, 0.3))
    assert denoiser.evaluations.forward - before == 2 * (4 * 3 + 3 * 1)
    assert denoiser.evaluations.backward == 0


def test_in_a_hosts_sampler_the_source_is_followed_exactly_until_the_window(case):
    denoiser, inversion, uncond, cond = case
    step = SemanticStep(denoiser, inversion, uncond, [GuidanceTerm(cond, 3.0)], Window(0.4))
    x = inversion.latents[-1]
    for level in range(STEPS, 0, -1):
        sigma, sigma_next = (float(s) for s in inversion.sigmas[[level, level - 1]])
        x = euler_step(x, step.denoised(x, level), sigma, sigma_next)
        if level > 4:
            scale = float(inversion.latents[level - 1].abs().max())
            torch.testing.assert_close(x, inversion.latents[level - 1], rtol=0, atol=1e-6 * scale)
    expected = semantic_edit(denoiser, inversion, uncond, [GuidanceTerm(cond, 3.0)], Window(0.4))
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_outside_the_mask_nothing_changes_and_inside_something_does(case):
    denoiser, inversion, uncond, cond = case
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    edited = semantic_edit(denoiser, inversion, uncond, [GuidanceTerm(cond, 5.0)], Window(0.6), mask=mask)
    torch.testing.assert_close(edited[..., :4], inversion.latents[0][..., :4], rtol=0, atol=0)
    assert float((edited - inversion.latents[0])[..., 4:].abs().max()) > 1e-2


def test_a_batch_is_its_images_one_by_one(case):
    denoiser, _, uncond, cond = case
    terms = [GuidanceTerm(cond, 3.0)]
    latents = tiny_latent(2)
    # The explicit solver, so that rows cannot differ in where they stop.
    both = semantic_edit(denoiser, invert(denoiser, latents, uncond, 4, "ddim"), uncond, terms, Window(0.5))
    for row in range(2):
        alone = semantic_edit(
            denoiser, invert(denoiser, latents[row : row + 1], uncond, 4, "ddim"), uncond, terms, Window(0.5)
        )
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-3, atol=1e-3)


def test_interpolation_is_the_edits_at_each_factor_and_reports_all_steps(case):
    denoiser, inversion, uncond, cond = case
    terms, seen = [GuidanceTerm(cond, 4.0)], []
    strip = interpolate(
        denoiser, inversion, uncond, terms, [-1, 0, 0.5], Window(0.3), callback=lambda p: seen.append((p.step, p.steps))
    )
    assert seen == [(number, 9) for number in range(9)]
    for image, strength in zip(strip, (-4.0, 0.0, 2.0), strict=True):
        single = semantic_edit(denoiser, inversion, uncond, [GuidanceTerm(cond, strength)], Window(0.3))
        torch.testing.assert_close(image, single, rtol=0, atol=1e-6)


def test_generation_from_a_gaussian_has_the_closed_forms_spread():
    # The denoiser of N(0, s^2), conditioned: s' = s * cond. At strength 1 the conditional distribution is sampled, at 0
    # the other.
    denoiser = GaussianDenoiser(1.0)
    noise = tiny_latent(4)
    uncond, cond = torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.5)
    for strength, std in ((0.0, 1.0), (1.0, 0.5)):
        made = generate(denoiser, noise, uncond, [GuidanceTerm(cond, strength)], steps=500)
        sigma_0, sigma_t = (float(s) for s in denoiser.sigma_grid(500)[[0, -1]])
        start = noise * (1 + sigma_t**2) ** 0.5
        exact = start * ((std**2 + sigma_0**2) / (std**2 + sigma_t**2)) ** 0.5
        torch.testing.assert_close(made, exact, rtol=0.03, atol=1e-3)


def test_generation_guides_only_inside_its_window():
    denoiser = GaussianDenoiser(1.0)
    uncond, cond = torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.5)
    generate(denoiser, tiny_latent(1), uncond, [GuidanceTerm(cond, 2.0)], steps=10, window=Window(0.8, 0.5))
    assert denoiser.evaluations.forward == 10 + 3


def test_steered_sums_the_terms():
    denoiser = GaussianDenoiser(1.0)
    x = tiny_latent(2)
    conds = [torch.full((1, 1, 1), value) for value in (1.0, 0.5, 2.0)]
    base, one, two = (denoiser(x, 1.5, cond) for cond in conds)
    terms = [GuidanceTerm(conds[1], 3.0), GuidanceTerm(conds[2], -2.0)]
    torch.testing.assert_close(steered(denoiser, x, 1.5, conds[0], terms), base + 3 * (one - base) - 2 * (two - base))


def test_a_term_against_others_leads_away_from_their_mean_in_place_of_the_empty_prompt():
    denoiser = GaussianDenoiser(1.0)
    x = tiny_latent(2)
    uncond, cond, other, third = (torch.full((1, 1, 1), value) for value in (1.0, 0.5, 2.0, -1.0))
    base, made, one, two = (denoiser(x, 1.5, given) for given in (uncond, cond, other, third))
    terms = [GuidanceTerm(cond, 3.0, against=[other, third]), GuidanceTerm(other, -1.0)]
    expected = base + 3 * (made - (one + two) / 2) - (one - base)
    torch.testing.assert_close(steered(denoiser, x, 1.5, uncond, terms), expected)
    same = steered(denoiser, x, 1.5, uncond, [GuidanceTerm(cond, 50.0, against=[cond])])
    torch.testing.assert_close(same, base)  # nothing to tell apart


def test_against_is_focused_where_the_two_differ_most_and_costs_one_evaluation_a_guided_step(case):
    denoiser, inversion, uncond, cond = case
    other = tiny_cond("sdxl" if getattr(cond, "pooled", None) is not None else "sd2", seed=9)
    x, sigma = inversion.latents[5], float(inversion.sigmas[5])
    with torch.no_grad():
        base, shift = denoiser(x, sigma, uncond), denoiser(x, sigma, cond) - denoiser(x, sigma, other)
        got = steered(denoiser, x, sigma, uncond, [GuidanceTerm(cond, 2.0, focus=0.1, against=[other])])
    torch.testing.assert_close(got, base + 2.0 * focused(shift, 0.1), rtol=1e-4, atol=1e-4)
    assert int((got != base).flatten(1).sum(1).max()) <= round(0.1 * shift[0].numel())
    before = denoiser.evaluations.forward
    terms = [GuidanceTerm(cond, 2.0, against=[other]), GuidanceTerm(uncond, -1.0, against=[other])]
    semantic_edit(denoiser, inversion, uncond, terms, Window(0.7, 0.3))
    assert denoiser.evaluations.forward - before == 2 * (4 * 4 + 3 * 1)  # both terms share the one they lead away from


def test_bad_windows_models_and_masks_are_refused(case):
    denoiser, inversion, uncond, cond = case
    for start, end in ((0.3, 0.3), (1.1, 0.0), (0.5, -0.1), (float("nan"), 0.0)):
        with pytest.raises(EditingError, match="window"):
            Window(start, end)
    with pytest.raises(EditingError, match="another model"):
        semantic_edit(tiny_denoiser("sd1", seed=5), inversion, uncond, [], Window(0.3))
    with pytest.raises(EditingError, match="masks"):
        semantic_edit(denoiser, inversion, uncond, [], Window(0.3), mask=torch.zeros(3, 8, 8))
    with pytest.raises(EditingError, match="no strengths"):
        interpolate(denoiser, inversion, uncond, [GuidanceTerm(cond, 1.0)], [])


def test_focus_guides_only_where_the_difference_is_largest_in_each_image(case):
    denoiser, inversion, uncond, cond = case
    x, sigma = inversion.latents[5], float(inversion.sigmas[5])
    with torch.no_grad():
        base = denoiser(x, sigma, uncond)
        shift = denoiser(x, sigma, cond) - base
        got = steered(denoiser, x, sigma, uncond, [GuidanceTerm(cond, 2.0, focus=0.1), GuidanceTerm(cond, -0.5)])
    kept = round(0.1 * shift[0].numel())
    expected = base - 0.5 * shift
    for image, change in zip(expected, shift, strict=True):
        largest = sorted(range(change.numel()), key=lambda index: -abs(float(change.flatten()[index])))[:kept]
        image.view(-1)[largest] += 2.0 * change.flatten()[largest]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_focus_of_all_is_the_papers_edit_and_the_least_is_one_element():
    shift = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    assert focused(shift, 1.0) is shift
    assert ((focused(shift, 0.001) != 0).flatten(1).sum(1) == 1).all() and focused(
        shift, 0.001
    ).abs().max() == shift.abs().max()
    assert torch.equal(focused(shift, 0.999999), shift)


def test_inside_a_mask_focus_ranks_and_counts_only_what_is_inside():
    shift = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 1, 4, 5)
    mask[0, :, 1:3, 2:] = 1.0  # 18 elements over three channels
    mask[1, :, 0, 0] = 0.25  # 3: a border that counts in part is inside
    outside = (mask == 0).expand_as(shift)
    loud = torch.where(outside, shift * 100, shift)  # the largest elements are all where nothing may change
    kept = focused(loud, 0.5, mask)
    for image, (change, count) in enumerate(zip(shift, (9, 2), strict=True)):
        inside = [index for index in range(change.numel()) if not outside[image].flatten()[index]]
        largest = sorted(inside, key=lambda index: -abs(float(change.flatten()[index])))[:count]
        expected = torch.zeros_like(change).flatten()
        expected[largest] = change.flatten()[largest]
        assert torch.equal(kept[image].flatten(), expected)
    assert torch.equal(focused(shift, 0.3, torch.ones(1, 1, 4, 5)), focused(shift, 0.3))
    assert not focused(shift, 0.3, torch.zeros(1, 1, 4, 5)).any() and focused(shift, 1.0, mask) is shift


def test_a_small_mask_does_not_swallow_a_focused_edit(case):
    denoiser, inversion, uncond, cond = case
    mask, terms, window = torch.zeros(1, 8, 8), [GuidanceTerm(cond, 8.0, focus=0.05)], Window(0.5, single_step=True)
    mask[:, 3:5, 3:5] = 1  # 16 elements of 256, fewer of which are among the largest 13 of all than among their own
    plain = semantic_edit(denoiser, inversion, uncond, [], window, mask=mask)
    edited = semantic_edit(denoiser, inversion, uncond, terms, window, mask=mask)
    x, sigma = inversion.latents[5], float(inversion.sigmas[5])
    step = SemanticStep(denoiser, inversion, uncond, terms, window, mask)
    with torch.no_grad():
        shift = denoiser(x, sigma, cond) - denoiser(x, sigma, uncond)
        change = step._edited(x, 5) - denoiser(x, sigma, uncond)
    top = (shift * mask).abs().flatten(1).argmax(1)  # 5 % of 16 is one element, the largest inside
    for image, place in enumerate(top.tolist()):
        assert (change[image].abs() > 1e-3 * change.abs().max()).nonzero().shape[0] == 1
        torch.testing.assert_close(
            change[image].flatten()[place], 8.0 * shift[image].flatten()[place], rtol=1e-3, atol=1e-4
        )
        assert float((edited - plain)[image].abs().max()) > 1e-3


@pytest.mark.parametrize("focus", [0.0, -0.1, 1.1, float("nan")])
def test_a_focus_out_of_range_is_refused(focus):
    with pytest.raises(EditingError, match="focus is"):
        GuidanceTerm(None, 1.0, focus=focus)


@pytest.mark.parametrize("solver", ["ddim", "auto"])
def test_exact_takes_off_what_the_inversion_left_over_and_another_prompt_in_it(solver):
    denoiser, latents = tiny_denoiser("sd2"), tiny_latent(2)
    uncond, cond, prompt = (tiny_cond("sd2", seed=seed) for seed in (1, 2, 3))
    inversion = invert(denoiser, latents, prompt, 6, solver)
    loose = semantic_edit(denoiser, inversion, uncond, [], Window(0.7))
    before = denoiser.evaluations.forward
    exact = semantic_edit(denoiser, inversion, uncond, [], Window(0.7), exact=True)
    assert denoiser.evaluations.forward - before == 2 * 2 * 4  # two images, four steps, the source's prediction beside
    assert (loose - latents).abs().max() > 1e-3
    torch.testing.assert_close(exact, latents, rtol=0, atol=1e-5)

    # Guided, every step differs from the plain one by the same shift: what the source's own step missed.
    step = SemanticStep(denoiser, inversion, uncond, [GuidanceTerm(cond, 3.0)], Window(0.7), exact=True)
    plain = SemanticStep(denoiser, inversion, uncond, [GuidanceTerm(cond, 3.0)], Window(0.7))
    missed = torch.zeros(2)
    for level in (4, 3, 2, 1):
        x = inversion.latents[level] + 0.1
        sigma, sigma_next = (float(s) for s in inversion.sigmas[[level, level - 1]])
        with torch.no_grad():
            landed = euler_step(
                inversion.latents[level], denoiser(inversion.latents[level], sigma, uncond), sigma, sigma_next
            )
        miss = inversion.latents[level - 1] - landed
        missed += miss.square().flatten(1).mean(1)
        ours, theirs = (euler_step(x, each.denoised(x, level), sigma, sigma_next) for each in (step, plain))
        torch.testing.assert_close(ours - theirs, miss, rtol=0, atol=1e-5)
    torch.testing.assert_close(step.taken_off, missed, rtol=1e-4, atol=1e-9)

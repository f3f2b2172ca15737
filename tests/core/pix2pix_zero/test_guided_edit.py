"""The cross-attention guided edit against a naive two-pass version, its neutral settings, cost, mask and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from semantic_editing.core.attention.capture import CaptureMaps, MapLoss
from semantic_editing.core.attention.site import Site
from semantic_editing.core.denoiser import euler_step
from semantic_editing.core.pix2pix_zero.guided_edit import (
    PRESETS,
    RESOLUTIONS,
    CrossAttentionGuidance,
    CrossAttentionSettings,
    cross_attention_guided_edit,
)
from semantic_editing.core.sampling import NEARLY, edited_places, reconstruct
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.tests.core.pix2pix_zero.two_pass import TwoPass
from semantic_editing.tests.core.tiny_models import (
    FAMILIES,
    tiny_cond,
    tiny_conds,
    tiny_denoiser,
    tiny_latent,
    tiny_scheduler,
    tiny_source,
)
from semantic_editing.tests.pairs import pairs

STEPS = 3
SHAPES = [(1, 8, 8), (3, 6, 10)]


def edit(*arguments, **options):
    """The edit without local steps, which are looked at apart."""
    return cross_attention_guided_edit(*arguments, **({"local_fraction": 0.0} | options))


def everywhere(*arguments, **options):
    """Settings without local steps."""
    return CrossAttentionSettings(*arguments, **({"local_fraction": 0.0} | options))


class Recorder:
    """Passes everything on to a denoiser and keeps the latents it was asked about."""

    def __init__(self, denoiser):
        self.denoiser, self.seen = denoiser, []
        self.identity, self.evaluations = denoiser.identity, denoiser.evaluations

    def __call__(self, x, sigma, cond, *, control=None):
        self.seen.append(x.detach())
        return self.denoiser(x, sigma, cond, control=control)

    def batch(self, x, sigma, conds, *, control=None):
        self.seen.append(x.detach())
        return self.denoiser.batch(x, sigma, conds, control=control)


def two_pass(denoiser, family, inversion):
    """The oracle and the source's latents in its units; the grid's levels as table entries."""
    table = [int(denoiser.timestep(s[None])) for s in inversion.sigmas]
    scheduler = tiny_scheduler(family)
    alphas = scheduler.alphas_cumprod.double()[torch.tensor(table)]
    sources = inversion.latents.double() * alphas.sqrt().view(-1, 1, 1, 1, 1)
    return TwoPass(denoiser.unet, scheduler, table[::-1]), sources.flip(0), float(alphas[0]) ** 0.5


@pytest.mark.parametrize(("family", "shape", "preset"), pairs(list(FAMILIES), SHAPES, ["lockstep", "carried", "local"]))
def test_lockstep_equals_algorithm_1_in_two_passes(family, shape, preset):
    local = 2 if preset == "local" else 0
    preset = "lockstep" if preset == "lockstep" else "carried"
    denoiser = tiny_denoiser(family, dtype=torch.float64)
    source, target, uncond = tiny_conds(family)
    inversion = tiny_source(denoiser, family, shape, cfg=3.0)  # at another cfg the difference is added back
    inversion = replace(inversion, latents=inversion.latents.double())
    step = CrossAttentionGuidance(
        denoiser,
        inversion,
        source,
        target,
        uncond,
        everywhere(3.0, 0.3, preset=preset, local_fraction=local / STEPS),
    )
    x = step.run(STEPS)
    oracle, sources, scale = two_pass(denoiser, family, inversion)
    expected, losses = oracle.algorithm_1(sources, source, target, uncond, 3.0, 0.3, preset == "carried", local)
    torch.testing.assert_close(x * scale, expected, atol=2e-4, rtol=2e-4)
    for level, loss in zip(range(STEPS, 0, -1), losses, strict=True):
        torch.testing.assert_close(step.losses[level], loss, rtol=1e-4, atol=1e-4)
    unguided = edit(denoiser, inversion, source, target, uncond, cfg=3.0, guidance=0.0)
    assert float((unguided * scale - expected).abs().max()) > 5e-3  # the guidance itself is what was compared


def decibels(got, wanted):
    """PSNR of a latent to another, over the other's range."""
    span = float(wanted.max() - wanted.min())
    return 10 * math.log10(span**2 / max(float((got - wanted).square().mean()), 1e-30))


@pytest.mark.parametrize(("family", "negative", "method"), pairs(["sd1", "sd2"], ["source", "other"], ["ddim", "auto"]))
def test_released_preset_replays_the_published_code_in_two_passes_from_the_same_noise(family, negative, method):
    """A reconstruction whose maps are all kept, then the edit: the trajectory of the inversion is used by neither."""
    denoiser = tiny_denoiser(family, dtype=torch.float64)
    source, target, uncond = tiny_conds(family)
    uncond = source if negative == "source" else uncond
    inversion = invert(denoiser, tiny_latent(1, 8, 8).double(), source, steps=STEPS, solver=method)
    inversion = replace(inversion, latents=inversion.latents.double())
    options = {"cfg": 3.0, "guidance": 0.3}
    oracle, sources, scale = two_pass(denoiser, family, inversion)
    rebuilt = oracle.reconstruction(sources[0], source, uncond, 3.0)
    expected = oracle.released(rebuilt, source, target, uncond, 3.0, 0.3)
    before = denoiser.evaluations.forward, denoiser.evaluations.backward
    got = edit(denoiser, inversion, source, target, uncond, preset="released", **options)
    spent = denoiser.evaluations.forward - before[0], denoiser.evaluations.backward - before[1]
    assert decibels(got * scale, expected) > 60
    assert spent == ((5 if negative == "source" else 6) * STEPS, 2 * STEPS)
    step = CrossAttentionGuidance(denoiser, inversion, source, target, uncond, everywhere(preset="released", **options))
    x = inversion.latents[-1]
    for level in range(STEPS, 0, -1):  # a host's Euler loop lands on the same latents
        x = euler_step(x, step.denoised(x, level), *(float(inversion.sigmas[i]) for i in (level, level - 1)))
    assert decibels(x * scale, expected) > 60
    for other in ({}, {"preset": "released", "reference": "inversion"}):
        got = edit(denoiser, inversion, source, target, uncond, **options, **other)
        if negative == "other" or method == "ddim" or not other:
            assert decibels(got * scale, expected) < 60


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_released_on_the_stored_trajectory_equals_the_code_with_maps_of_that(family):
    denoiser = tiny_denoiser(family, dtype=torch.float64)
    source, target, uncond = tiny_conds(family)
    inversion = tiny_source(denoiser, family, (1, 8, 8))
    inversion = replace(inversion, latents=inversion.latents.double())
    oracle, sources, scale = two_pass(denoiser, family, inversion)
    expected = oracle.released(sources, source, target, uncond, 3.0, 0.3)
    options = {"cfg": 3.0, "guidance": 0.3, "preset": "released", "reference": "inversion"}
    got = edit(denoiser, inversion, source, target, uncond, **options)
    torch.testing.assert_close(got * scale, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("preset", ["lockstep", "carried"])
def test_a_reconstruction_is_the_reference_of_any_preset(preset):
    denoiser = tiny_denoiser(dtype=torch.float64)
    source, target, uncond = tiny_conds()
    inversion = invert(denoiser, tiny_latent(1, 8, 8).double(), source, steps=STEPS, solver="ddim")
    inversion = replace(inversion, latents=inversion.latents.double())
    oracle, sources, scale = two_pass(denoiser, "sd1", inversion)
    rebuilt = oracle.reconstruction(sources[0], source, uncond, 3.0)
    expected, _ = oracle.algorithm_1(rebuilt, source, target, uncond, 3.0, 0.3, preset == "carried")
    options = {"cfg": 3.0, "guidance": 0.3, "preset": preset}
    before = denoiser.evaluations.forward
    got = edit(denoiser, inversion, source, target, uncond, reference="reconstruction", **options)
    assert denoiser.evaluations.forward - before == 5 * STEPS
    assert decibels(got * scale, expected) > 60
    stored = edit(denoiser, inversion, source, target, uncond, **options)
    assert decibels(stored * scale, expected) < 60


@pytest.mark.parametrize(
    ("family", "cfg", "off"), pairs(list(FAMILIES), [1.0, 5.0], [{"guidance": 0.0}, {"guided_fraction": 0.0}])
)
def test_without_guidance_it_is_plain_cfg_sampling_bit_for_bit(family, cfg, off):
    denoiser, (source, target, uncond) = tiny_denoiser(family), tiny_conds(family)
    inversion = tiny_source(denoiser, family)
    before = denoiser.evaluations.forward
    edited = edit(denoiser, inversion, source, target, uncond, cfg=cfg, **off)
    assert denoiser.evaluations.forward - before == STEPS * 2 * (1 if cfg == 1.0 else 2)
    assert denoiser.evaluations.backward == 0
    x = inversion.latents[-1]
    with torch.no_grad():
        for sigma, sigma_next in pairwise(inversion.sigmas.flip(0).tolist()):
            if cfg == 1.0:
                denoised = denoiser(x, sigma, target)
            else:
                conditional, negative = denoiser.batch(x, sigma, [target, uncond])
                denoised = negative + (conditional - negative) * cfg
            x = x + (x - denoised) / sigma * (sigma_next - sigma)
    assert torch.equal(edited, x)


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({"cfg": 5.0}, 4 * 5, 5),
        ({"cfg": 5.0, "guided_fraction": 0.6}, 4 * 3 + 2 * 2, 3),
        ({"cfg": 1.0, "guided_fraction": 0.6}, 3 * 3 + 1 * 2, 3),
        ({"cfg": 5.0, "preset": "carried"}, 4 * 5, 5),
        ({"cfg": 5.0, "preset": "lockstep"}, 4 * 5, 5),
        ({"cfg": 5.0, "preset": "released"}, 6 * 5, 2 * 5),
        ({"cfg": 5.0, "guided_fraction": 0.2, "cfg_fraction": 0.4, "local_fraction": 1.0}, 4 + 2 + 3, 1),
        ({"cfg": 5.0, "guided_fraction": 0.4, "cfg_fraction": 0.2}, 4 + 3 + 3, 2),
    ],
)
def test_u_of_an_edit_is_exact(options, forward, backward):
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion = tiny_source(denoiser, shape=(3, 8, 8), steps=5, cfg=options.get("cfg", 2.0))
    denoiser.evaluations.forward = 0
    edit(denoiser, inversion, source, target, uncond, **options)
    assert (denoiser.evaluations.forward, denoiser.evaluations.backward) == (3 * forward, 3 * backward)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("preset", "near"), [("lockstep", 1e-4), ("carried", 1e-3)])  # carried sums rounding up
def test_zero_direction_of_an_inverted_image_gives_the_reconstruction(family, shape, preset, near):
    denoiser, (source, _, _) = tiny_denoiser(family), tiny_conds(family)
    if family == "sdxl":  # as drawn, this network bends so much that the last step's residual stays above the tolerance
        denoiser.unet.conv_out.weight.data.mul_(0.5)
    inversion = invert(denoiser, tiny_latent(*shape), source, steps=STEPS, tolerance=1e-11, max_iterations=60)
    assert float(inversion.residuals.max()) < 1e-9
    edited = edit(denoiser, inversion, source, source, cfg=5.0, guidance=0.1, preset=preset)
    torch.testing.assert_close(edited, reconstruct(denoiser, inversion, source), atol=near, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_direction_of_a_generated_image_gives_it_back_at_any_cfg(family):
    denoiser, (source, _, uncond) = tiny_denoiser(family), tiny_conds(family)
    inversion = tiny_source(denoiser, family, cfg=3.0)
    for cfg, forward in ((3.0, 4), (5.0, 5)):  # at another cfg the negative's part of the source is evaluated too
        before = denoiser.evaluations.forward
        edited = edit(denoiser, inversion, source, source, uncond, cfg=cfg, guidance=0.1)
        assert denoiser.evaluations.forward - before == forward * STEPS * len(edited)
        torch.testing.assert_close(edited, inversion.latents[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_move_lowers_the_loss_as_its_gradient_predicts(family):
    denoiser, (source, target, _) = tiny_denoiser(family, dtype=torch.float64), tiny_conds(family)
    inversion = tiny_source(denoiser, family, (3, 8, 8))
    inversion = replace(inversion, latents=inversion.latents.double())
    for level in range(STEPS, 0, -1):
        sigma, x = (
            float(inversion.sigmas[level]),
            inversion.latents[level] + 0.1 * tiny_latent(3, 8, 8, seed=level).double(),
        )
        recorder = Recorder(denoiser)
        settings = everywhere(1.0, 1e-4)
        CrossAttentionGuidance(recorder, inversion, source, target, settings=settings).denoised(x, level)
        reference_latent, start, moved = recorder.seen
        assert torch.equal(reference_latent, inversion.latents[level])
        assert torch.equal(start, x)
        capture = CaptureMaps()
        with torch.no_grad():
            denoiser(inversion.latents[level], sigma, source, control=capture)
            losses = []
            for latent in (x, moved):
                control = MapLoss(capture.seen)
                denoiser(latent, sigma, target, control=control)
                losses.append(control.losses)
        drop = losses[0] - losses[1]
        # The move is -weight * (1 + sigma^2) * gradient, so the loss falls by |move|^2 / (weight * (1 + sigma^2)).
        predicted = (moved - x).square().sum((1, 2, 3)) / (1e-4 * (1 + sigma**2))
        assert bool((drop > 0).all())
        torch.testing.assert_close(drop, predicted, rtol=0.05, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["lockstep", "released"])
def test_a_batch_equals_single_images(family, preset):
    denoiser, (source, _, uncond) = tiny_denoiser(family), tiny_conds(family)
    inversion, target = tiny_source(denoiser, family, (3, 6, 10)), tiny_cond(family, 3, seed=3)
    masks = torch.rand(3, 48, 80, generator=torch.Generator().manual_seed(1))
    options = {"cfg": 3.0, "guidance": 0.3, "preset": preset}
    together = edit(denoiser, inversion, source, target, uncond, mask=masks, **options)
    for row in range(3):
        single = replace(inversion, latents=inversion.latents[:, row : row + 1])
        alone = edit(
            denoiser,
            single,
            source,
            denoiser.select(target, torch.tensor([row])),
            uncond,
            mask=masks[row : row + 1],
            **options,
        )
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast_stays_near_fp32(family, shape):
    denoiser, (source, target, uncond) = tiny_denoiser(family), tiny_conds(family)
    inversion = tiny_source(denoiser, family, shape)
    options = {"cfg": 2.0, "guidance": 0.1}
    exact = edit(denoiser, inversion, source, target, uncond, **options)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = edit(denoiser, inversion, source, target, uncond, **options)
    assert mixed.dtype == torch.float32
    assert 1e-5 < float((mixed - exact).norm() / exact.norm()) < 0.1


def test_local_steps_cost_nothing_and_give_the_source_where_nothing_changes():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion = tiny_source(denoiser, shape=(1, 8, 8))
    made = {}
    for fraction in (0.0, 2 / 3, 1.0):
        before = denoiser.evaluations.forward
        made[fraction] = edit(denoiser, inversion, source, target, uncond, guidance=1e-6, local_fraction=fraction)
        assert denoiser.evaluations.forward - before == 4 * STEPS
    apart = [float((made[fraction] - inversion.latents[0]).square().mean()) for fraction in sorted(made)]
    assert apart[0] > apart[1] > apart[2] > 0
    plain = [
        edit(denoiser, inversion, source, target, uncond, guidance=0.0, local_fraction=each) for each in (0.0, 1.0)
    ]
    assert torch.equal(*plain)  # guidance 0 is plain sampling


@pytest.mark.parametrize("preset", PRESETS)
def test_beyond_its_share_of_the_steps_cfg_is_1(preset):
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion, options = tiny_source(denoiser), {"guidance": 0.1, "preset": preset}
    none = edit(denoiser, inversion, source, target, uncond, cfg=4.0, cfg_fraction=0.0, **options)
    assert torch.equal(none, edit(denoiser, inversion, source, target, uncond, cfg=1.0, **options))
    some = edit(denoiser, inversion, source, target, uncond, cfg=4.0, cfg_fraction=1 / STEPS, **options)
    always = edit(denoiser, inversion, source, target, uncond, cfg=4.0, **options)
    assert not torch.allclose(some, none, atol=1e-3)
    assert not torch.allclose(some, always, atol=1e-3)


def test_it_works_under_inference_mode_and_gives_the_same():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion = tiny_source(denoiser)
    expected = edit(denoiser, inversion, source, target, uncond)
    with torch.inference_mode():
        assert torch.equal(edit(denoiser, inversion, source, target * 1, uncond), expected)


@pytest.mark.parametrize(("size", "grid"), [((8, 8), (4, 4)), ((6, 10), (3, 5)), ((9, 7), (5, 4))])
def test_resolution_limits_the_layers_that_count_at_any_size(size, grid):
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion, shown = tiny_source(denoiser, shape=(1, *size)), {}
    for resolution in RESOLUTIONS:
        settings = everywhere(resolution=resolution)
        step = CrossAttentionGuidance(denoiser, inversion, source, target, uncond, settings)
        before = denoiser.evaluations.forward
        step.denoised(inversion.latents[-1], STEPS)
        # This network attends at full and half size only: a quarter is its smallest, found by one more evaluation.
        assert denoiser.evaluations.forward - before == (5 if resolution == "quarter" else 4)
        capture = CaptureMaps(step._largest(inversion.latents[-1]))
        with torch.no_grad():
            denoiser(inversion.latents[-1], 1.0, source, control=capture)
        shown[resolution] = {q.shape[-2] for q, _ in capture.seen.values()}
    whole, half = size[0] * size[1], grid[0] * grid[1]
    assert shown == {"all": {whole, half}, "half": {half}, "quarter": {half}}


def test_an_edit_acts_where_it_changes_most_and_an_identity_nowhere():
    source = torch.zeros(2, 4, 40, 40)
    edited = source.clone()
    edited[0, :, :10, :20] = 1.0  # an eighth of the places: more than the quantile leaves out
    edited[0, :, 20:30, 20:30] = NEARLY
    places = edited_places(edited, source)
    assert places.shape == (2, 1, 40, 40)
    assert places[0, 0, :9, :19].unique().tolist() == pytest.approx([1 - 1 / (1 + NEARLY**-4)])
    assert places[0, 0, 21:29, 21:29].unique().tolist() == pytest.approx([0.5])
    assert places[0, 0, 31:].unique().tolist() == places[1].unique().tolist() == [0.0]


def test_guidance_means_the_same_however_many_layers_there_are():
    """Every layer twice, the second time without effect: twice the sum, and the same loss and move."""
    generator = torch.Generator().manual_seed(0)
    q, own, k, v = (torch.randn(2, 2, count, 3, generator=generator) for count in (9, 9, 7, 7))
    losses = []
    for layers in (1, 2, 70):
        control = MapLoss({(index, 0, 0): (own, k) for index in range(layers)})
        for index in range(layers):
            control(q, k, v, Site("mid", index, (3, 3), 2, "cross"))
        losses.append(control.losses)
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0])


def test_what_the_inversion_left_over_is_added_back_but_not_under_released():
    """Plain DDIM's trajectory is not the source's own way back; an edit to the source itself lands on it anyway."""
    denoiser, (source, _, _) = tiny_denoiser(), tiny_conds()
    inversion = invert(denoiser, tiny_latent(1, 8, 8), source, steps=STEPS, solver="ddim")
    settings = {"cfg": 1.0, "guidance": 0.1}
    missed = {
        preset: (edit(denoiser, inversion, source, source, preset=preset, **settings) - inversion.latents[0]).abs()
        for preset in ("lockstep", "released")
    }
    plain = (reconstruct(denoiser, inversion, source) - inversion.latents[0]).abs()
    assert missed["lockstep"].max() < 1e-3 * plain.max()
    assert missed["released"].max() > 0.5 * plain.max()

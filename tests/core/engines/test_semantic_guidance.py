"""Several edits at once against the formula written out, their places, and what must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semantic_editing.core.engines.semantic_guidance import (
    SemanticEdit,
    SemanticGuidance,
    SemanticSettings,
    _above,
    edit_words,
    in_context,
    parse_edits,
)
from semantic_editing.core.errors import EditingError
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.tests.core.engines.test_words import read
from semantic_editing.tests.core.engines.two_calls import evaluated, softmax_maps
from semantic_editing.tests.core.tiny_models import tiny_cond, tiny_conds, tiny_denoiser, tiny_latent

STEPS = 3


def setting(family="sd1", shape=(2, 8, 8)):
    denoiser = tiny_denoiser(family)
    source, empty, _ = tiny_conds(family)
    inversion = invert(denoiser, tiny_latent(*shape), source, steps=STEPS, solver="ddim")
    return denoiser, inversion, source, empty, [tiny_cond(family, seed=seed) for seed in (6, 7)]


def edit(denoiser, inversion, source, empty, conds, scales=(2.0, -1.0), shares=(None, None), **settings):
    edits = [
        SemanticEdit(f"edit {n}", scale, share) for n, (scale, share) in enumerate(zip(scales, shares, strict=True))
    ]
    options = SemanticSettings(**({"threshold": 0.0, "start": 0.0, "attention": False} | settings))
    return SemanticGuidance(denoiser, inversion, source, None, empty, options, None, edits, conds, [(1, 2), (3,)])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("attention", [False, True])
def test_it_equals_the_formula(family, attention):
    """Thresholds of the edits' own: quantiles sorted by hand, per picture; maps of explicit attention."""
    denoiser, inversion, source, empty, conds = setting(family)
    shares, scales, tokens = (0.5, 0.75), (2.0, -1.0), ([1, 2], [3])
    got = edit(denoiser, inversion, source, empty, conds, scales, shares, attention=attention, stored_shift=False).run(
        STEPS
    )
    levels, x = inversion.sigmas.tolist(), inversion.latents[-1]
    sums = [torch.zeros(2, 1, 4, 4) for _ in conds]
    for level in range(STEPS, 0, -1):
        sigma, lower = levels[level], levels[level - 1]
        made = evaluated(denoiser, x, sigma, source)
        nothing = evaluated(denoiser, x, sigma, empty)
        for number, cond in enumerate(conds):

            def rule(name, q, k, v, number=number):
                maps = softmax_maps(q, k)
                if "attn2" in name and "mid" not in name and q.shape[-2] == 16:
                    sums[number] += maps[..., tokens[number]].sum(-1).mean(1).view(2, 1, 4, 4)
                return maps @ v

            difference = evaluated(denoiser, x, sigma, cond, rule) - nothing
            strength = difference.abs().sum(1, keepdim=True)
            if attention:
                wide = torch.nn.functional.max_pool2d(sums[number], 3, 1, 1)
                wide = torch.nn.functional.interpolate(wide, (8, 8), mode="bilinear", align_corners=False)
                strength = strength * at_least(wide, shares[number])
            made = made + scales[number] * at_least(strength, shares[number]) * difference
        x = x + (x - made) * (lower - sigma) / sigma
    assert float(((got - x).abs() < 1e-3).float().mean()) > 0.99
    other = edit(
        denoiser, inversion, source, empty, conds, scales, shares, attention=not attention, stored_shift=False
    ).run(STEPS)
    assert float(((other - x).abs() < 1e-3).float().mean()) < 0.8


def at_least(values, share):
    where = torch.zeros_like(values)
    for row, picture in enumerate(values):
        ordered = picture.flatten().sort().values
        place = share * (len(ordered) - 1)
        low = int(place)
        level = ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
        # Attended places are widened to plateaus of one value, whose last bits fall on either side of the level.
        where[row] = ((picture >= level * (1 - 1e-5)) & (picture > 0)).float()
    return where


def test_a_plateau_is_taken_whole():
    """Half of a picture at one value up to its last bits: at a quantile inside it all of it is edited."""
    values = torch.zeros(1, 1, 8, 8)
    values[..., 4:] = 0.7 * (1 + 1e-7 * torch.randn(1, 1, 8, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(_above(values, 0.75) > 0, values > 0)


def test_without_strength_it_is_the_picture_itself_and_a_late_start_costs_nothing():
    denoiser, inversion, source, empty, conds = setting()
    still = edit(denoiser, inversion, source, empty, conds, (0.0, 0.0)).run(STEPS)
    torch.testing.assert_close(still, inversion.latents[0], rtol=1e-4, atol=1e-4)
    before = denoiser.evaluations.forward
    late = edit(denoiser, inversion, source, empty, conds, start=0.67)
    x = inversion.latents[-1]
    for level in (3, 2):
        denoised = late.denoised(x, level)
        sigma, lower = late._levels(level)
        x = x + (x - denoised) / sigma * (lower - sigma)
    assert denoiser.evaluations.forward == before
    torch.testing.assert_close(x, inversion.latents[1], rtol=1e-4, atol=1e-4)
    assert late.denoised(x, 1).shape == x.shape and denoiser.evaluations.forward == before + 2 * 5
    none = SemanticGuidance(denoiser, inversion, source, None, empty)
    torch.testing.assert_close(none.run(STEPS), inversion.latents[0], rtol=1e-4, atol=1e-4)


def test_edits_add_up_in_any_order_and_signs_take_away():
    denoiser, inversion, source, empty, conds = setting()
    x, level = inversion.latents[2], 2
    base = edit(denoiser, inversion, source, empty, conds, (0.0, 0.0))._edited(x, level)
    one = edit(denoiser, inversion, source, empty, conds, (2.0, 0.0))._edited(x, level) - base
    other = edit(denoiser, inversion, source, empty, conds, (0.0, -1.0))._edited(x, level) - base
    both = edit(denoiser, inversion, source, empty, conds, (2.0, -1.0))._edited(x, level) - base
    torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-4)
    away = edit(denoiser, inversion, source, empty, conds, (-2.0, 0.0))._edited(x, level) - base
    torch.testing.assert_close(away, -one, rtol=1e-4, atol=1e-4)
    assert float(one.abs().max()) > 1e-2


def test_a_threshold_leaves_that_share_alone():
    values = torch.rand(3, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.5, 0.9):
        assert [int(row.sum()) for row in _above(values, share)] == [round(100 * (1 - share))] * 3
    assert _above(torch.zeros(1, 1, 4, 4), 0.5).sum() == 0  # nothing to find


def test_lines_are_read():
    edits = parse_edits("wearing glasses\n red hair: 4 \n\n-beard\n- hat : 6 @ 0.9\nsmile @ 0.5", 3.0)
    assert edits == [
        SemanticEdit("wearing glasses", 3.0),
        SemanticEdit("red hair", 4.0),
        SemanticEdit("beard", -3.0),
        SemanticEdit("hat", -6.0, 0.9),
        SemanticEdit("smile", 3.0, 0.5),
    ]
    assert edit_words(edits[:2], read) == [(1, 2, 3, 4, 5, 6), (1, 2, 3)]
    assert in_context(edits[:2], "a cat, ") == ["a cat, wearing glasses", "a cat, red hair"]
    assert edit_words(edits[:2], read, "a cat") == [(4, 5, 6, 7, 8, 9), (4, 5, 6)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "There are no edits; write one a line"),
        (" \n ", "There are no edits"),
        ("red hair: strong", "The line 'red hair: strong' is no edit"),
        (": 4", "is no edit"),
        ("-", "is no edit"),
        ("hat @ 1.5", "threshold of 'hat' is 1.5; use a share"),
        ("hat: inf", "scale of 'hat' is inf"),
    ],
)
def test_lines_that_are_no_edit_are_refused(text, sentence):
    with pytest.raises(EditingError, match=sentence):
        parse_edits(text)


def test_settings_and_parts_that_do_not_fit_are_refused():
    for name in ("threshold", "start"):
        with pytest.raises(EditingError, match=f"{name} is 1.5"):
            SemanticSettings(**{name: 1.5})
    denoiser, inversion, source, empty, conds = setting()
    with pytest.raises(EditingError, match="Give each edit"):
        replace(edit(denoiser, inversion, source, empty, conds), tokens=[(1,)])

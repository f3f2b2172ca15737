"""A second edit of one inversion: a first one bit for bit, for one forward less a guided step; and its bound."""

from __future__ import annotations

import pytest
import torch

from semantic_editing.core.pix2pix_zero.guided_edit import CrossAttentionGuidance, CrossAttentionSettings
from semantic_editing.core.pix2pix_zero.kept_source import KeptSource
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.tests.core.tiny_models import FAMILIES, tiny_conds, tiny_denoiser, tiny_latent, tiny_source
from semantic_editing.tests.pairs import pairs

STEPS = 3
PLENTY = 1 << 30
CPU = torch.device("cpu")


def edit(denoiser, inversion, conds, kept=None, **settings):
    """The edit, and its forwards and backwards an image."""
    before = denoiser.evaluations.forward, denoiser.evaluations.backward
    step = CrossAttentionGuidance(denoiser, inversion, *conds, CrossAttentionSettings(**settings), kept=kept)
    edited, count = step.run(inversion.steps), inversion.latents.shape[1]
    spent = denoiser.evaluations.forward - before[0], denoiser.evaluations.backward - before[1]
    return edited, (spent[0] / count, spent[1] / count)


@pytest.mark.parametrize(
    ("family", "shape", "preset", "resolution"),
    pairs(list(FAMILIES), [(1, 8, 8), (3, 6, 10)], ["carried", "lockstep"], ["all", "quarter"]),
)
def test_a_second_edit_takes_three_forwards_a_step_and_is_that_of_a_first(family, shape, preset, resolution):
    denoiser, (source, target, uncond) = tiny_denoiser(family), tiny_conds(family)
    inversion, kept = tiny_source(denoiser, family, shape), KeptSource(PLENTY)
    same = {"preset": preset, "resolution": resolution}
    edit(denoiser, inversion, (source, source, uncond), kept, cfg=5.0, **same)  # another text and cfg
    assert kept.used == 0
    fresh, _ = edit(denoiser, inversion, (source, target, uncond), **same)
    again, spent = edit(denoiser, inversion, (source, target, uncond), kept, **same)
    assert spent == (3 * STEPS, STEPS)
    assert kept.used == STEPS
    assert torch.equal(again, fresh)


def test_steps_that_an_earlier_edit_did_not_guide_are_evaluated_and_kept():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion, kept = tiny_source(denoiser), KeptSource(PLENTY)
    conds = source, target, uncond
    _, first = edit(denoiser, inversion, conds, kept, guided_fraction=1 / STEPS)
    assert first == (4 + 2 * (STEPS - 1), 1)
    assert edit(denoiser, inversion, conds, kept)[1] == (3 + 4 * (STEPS - 1), STEPS)
    assert edit(denoiser, inversion, conds, kept)[1] == (3 * STEPS, STEPS)


def test_what_was_seen_without_a_prediction_does_not_serve_an_edit_that_needs_one():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion, kept = tiny_source(denoiser, cfg=3.0), KeptSource(PLENTY)  # a made-up image: nothing is left over at 3
    conds = source, target, uncond
    edit(denoiser, inversion, conds, kept, cfg=3.0)
    fresh, _ = edit(denoiser, inversion, conds, cfg=5.0)
    assert torch.equal(edit(denoiser, inversion, conds, kept, cfg=5.0)[0], fresh)
    assert kept.used == 1  # the first step is evaluated to its end, to know the layers
    assert torch.equal(edit(denoiser, inversion, conds, kept, cfg=5.0)[0], fresh)
    assert kept.used == 1 + STEPS


def test_a_reconstruction_is_another_for_each_cfg_and_is_not_kept():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion, kept = tiny_source(denoiser), KeptSource(PLENTY)
    conds = source, target, uncond
    for cfg in (5.0, 2.0):
        fresh, spent = edit(denoiser, inversion, conds, cfg=cfg, reference="reconstruction")
        with_kept = edit(denoiser, inversion, conds, kept, cfg=cfg, reference="reconstruction")
        assert torch.equal(with_kept[0], fresh)
        assert with_kept[1] == spent
    assert (kept.bytes, kept.used) == (0, 0)


def test_it_holds_copies_and_no_more_than_it_may():
    large = torch.arange(4000.0)
    seen = {(layer, 0, 0): (large[:100].view(1, 1, 10, 10), large[100:200].view(1, 1, 10, 10)) for layer in range(2)}
    kept = KeptSource(2 * 1800)
    for level in (3, 2, 1):
        kept.put(level, seen, torch.ones(1, 1, 5, 10))
    assert kept.bytes == 2 * 1800
    assert kept.get(1, False, CPU) is None
    own, predicted = kept.get(3, True, CPU)
    assert torch.equal(predicted, torch.ones(1, 1, 5, 10))
    assert own[1, 0, 0][1].untyped_storage().nbytes() == 400
    large.zero_()
    assert float(own[1, 0, 0][1].sum()) > 0
    kept.put(2, seen, None)  # takes its own place, and leaves room
    assert kept.bytes == 2 * 1800 - 200
    assert kept.get(2, True, CPU) is None
    assert kept.get(2, False, CPU)[1] is None
    assert kept.used == 2


def test_half_of_the_room_keeps_half_of_the_steps():
    denoiser, (source, target, uncond) = tiny_denoiser(), tiny_conds()
    inversion, kept = invert(denoiser, tiny_latent(1, 8, 8), source, steps=4, solver="ddim"), KeptSource(PLENTY)
    conds = source, target, uncond
    edit(denoiser, inversion, conds, kept)
    small = KeptSource(kept.bytes // 2)
    edit(denoiser, inversion, conds, small)
    assert small.bytes == kept.bytes // 2
    fresh, _ = edit(denoiser, inversion, conds)
    again, spent = edit(denoiser, inversion, conds, small)
    assert spent == (2 * 3 + 2 * 4, 4)
    assert torch.equal(again, fresh)

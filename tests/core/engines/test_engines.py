"""Prompt-to-Prompt, MasaCtrl and Plug-and-Play against naive versions, and what must hold of every engine."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from semantic_editing.core.attention.store import SourceMissing
from semantic_editing.core.denoiser import euler_step
from semantic_editing.core.engines.masactrl import MasaCtrl, MasaCtrlSettings
from semantic_editing.core.engines.plug_and_play import PlugAndPlay, PlugAndPlaySettings
from semantic_editing.core.engines.prompt_to_prompt import PromptToPrompt, PromptToPromptSettings, WordMap
from semantic_editing.core.engines.words import Alignment, Swap
from semantic_editing.core.errors import EditingError
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.tests.core.engines.two_calls import edited, softmax_maps
from semantic_editing.tests.core.tiny_models import (
    FAMILIES,
    TOKENS,
    tiny_cond,
    tiny_conds,
    tiny_denoiser,
    tiny_latent,
    tiny_source,
)

STEPS = 3
SAME = WordMap(Alignment(torch.arange(TOKENS)))
FEATURE = "up_blocks.0.resnets.1.conv2"


def real_source(denoiser, family, shape=(2, 8, 8)):
    """A real latent's inversion, not an exact one: something is left over of each step."""
    return invert(denoiser, tiny_latent(*shape), tiny_conds(family)[0], steps=STEPS, solver="ddim")


def engines(start_layer=0):
    """Each engine with what it takes from the source on all steps, and with nothing taken."""
    return {
        "p2p": (PromptToPrompt, PromptToPromptSettings, {"cross_fraction": 1.0, "self_fraction": 1.0}, {"words": SAME}),
        "masactrl": (MasaCtrl, MasaCtrlSettings, {"start_step": 0.0, "start_layer": start_layer}, {}),
        "pnp": (PlugAndPlay, PlugAndPlaySettings, {"feature_fraction": 1.0, "attention_fraction": 1.0}, {}),
    }


OFF = {
    "p2p": {"cross_fraction": 0.0, "self_fraction": 0.0},
    "masactrl": {"start_step": 1.0},
    "pnp": {"feature_fraction": 0.0, "attention_fraction": 0.0},
}


def engine(name, denoiser, inversion, conds, mask=None, **settings):
    kind, kind_settings, on, more = engines()[name]
    return kind(denoiser, inversion, *conds, settings=kind_settings(**{**on, **settings}), mask=mask, **more)


def up(name):
    return name.startswith("up_blocks")


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_to_prompt_equals_two_calls(family):
    """Refined, swapped and own tokens, factors, cross for 2 of 3 steps and self for 1."""
    denoiser, conds = tiny_denoiser(family), tiny_conds(family)
    inversion = real_source(denoiser, family)
    taken, factors = torch.tensor([0, 2, -1, -1, -1, 4, 6]), torch.tensor([1.0, 1, 2, 1, 1, 0.5, 1])
    share = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]])
    words = WordMap(Alignment(taken, (Swap((1, 3, 5), (3, 4), share),)), factors)

    def rules(step):
        def for_target(seen):
            def rule(name, q, k, v):
                theirs_q, theirs_k, _ = seen[name]
                if "attn1" in name:
                    return softmax_maps(theirs_q, theirs_k) @ v if step < 1 else softmax_maps(q, k) @ v
                own, theirs = softmax_maps(q, k), softmax_maps(theirs_q, theirs_k)
                maps = own.clone()
                for token in range(TOKENS) if step < 2 else ():
                    if int(taken[token]) >= 0:
                        maps[..., token] = theirs[..., int(taken[token])]
                    if token in (3, 4):
                        column = token - 3
                        maps[..., token] = sum(theirs[..., row] * share[n, column] for n, row in enumerate((1, 3, 5)))
                    maps[..., token] *= factors[token]
                return maps @ v

            return rule

        return for_target, None, False

    settings = PromptToPromptSettings(3.0, False, 0.67, 0.34)
    got = PromptToPrompt(denoiser, inversion, *conds, settings=settings, words=words).run(STEPS)
    want = edited(denoiser, inversion, *conds, 3.0, rules)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    off = replace(settings, cross_fraction=0.0, self_fraction=0.0)
    plain = PromptToPrompt(denoiser, inversion, *conds, settings=off, words=words).run(STEPS)
    assert float((plain - got).abs().max()) > 5e-3


@pytest.mark.parametrize(("family", "start_layer"), [("sd1", -1), ("sd2", -1), ("sdxl", 3)])
def test_masactrl_equals_two_calls(family, start_layer):
    denoiser, conds = tiny_denoiser(family), tiny_conds(family)
    inversion = real_source(denoiser, family)
    # The tiny U-Net's decoder has a coarse level (up_blocks.0) and a fine one; SDXL's is one level of six layers, the
    # third of which lies in the middle.
    selves = [name for name in denoiser.unet.attn_processors if "attn1" in name]
    order = sorted(selves, key=lambda name: ("down", "mid", "up").index(name.split("_")[0]))
    looking = [n.removesuffix(".processor") for n in (order[3:] if start_layer == 3 else order)]
    if start_layer == -1:
        looking = [name for name in looking if name.startswith("up_blocks.1")]

    def rules(step):
        def look(seen):
            def rule(name, q, k, v):
                if name in looking:
                    k, v = seen[name][1:]
                return softmax_maps(q, k) @ v

            return rule

        return (look, look, False) if step >= 1 else (None, None, False)

    settings = MasaCtrlSettings(3.0, True, 0.34, start_layer)
    got = MasaCtrl(denoiser, inversion, *conds, settings=settings).run(STEPS)
    torch.testing.assert_close(got, edited(denoiser, inversion, *conds, 3.0, rules, True), rtol=1e-4, atol=1e-4)
    plain = MasaCtrl(denoiser, inversion, *conds, settings=replace(settings, start_layer=0, start_step=1.0)).run(STEPS)
    assert looking and float((plain - got).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_plug_and_play_equals_two_calls(family):
    denoiser, conds = tiny_denoiser(family), tiny_conds(family)
    inversion = real_source(denoiser, family)
    decoder = [n.removesuffix(".processor") for n in denoiser.unet.attn_processors if up(n) and "attn1" in n]

    def rules(step):
        def plug(seen):
            def rule(name, q, k, v):
                if name in decoder[1:]:
                    q, k = seen[name][:2]
                return softmax_maps(q, k) @ v

            return rule

        return (plug, plug, step < 2) if step < 1 else (None, None, step < 2)

    settings = PlugAndPlaySettings(3.0, False, 0.67, 0.34)
    got = PlugAndPlay(denoiser, inversion, *conds, settings=settings).run(STEPS)
    want = edited(denoiser, inversion, *conds, 3.0, rules, feature=FEATURE)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    off = replace(settings, feature_fraction=0.0)
    assert float((PlugAndPlay(denoiser, inversion, *conds, settings=off).run(STEPS) - got).abs().max()) > 1e-3


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize(("family", "cfg"), [("sd1", 1.0), ("sd1", 4.0), ("sdxl", 4.0)])
def test_with_nothing_taken_it_is_plain_sampling_bit_for_bit(name, family, cfg):
    denoiser, (source, target, uncond) = tiny_denoiser(family), tiny_conds(family)
    inversion = real_source(denoiser, family)
    before = denoiser.evaluations.forward
    got = engine(name, denoiser, inversion, (source, target, uncond), cfg=cfg, **OFF[name]).run(STEPS)
    assert denoiser.evaluations.forward - before == 2 * STEPS * (1 if cfg == 1.0 else 2)
    x = inversion.latents[-1]
    with torch.no_grad():
        for sigma, lower in pairwise(inversion.sigmas.flip(0).tolist()):
            denoised, *more = denoiser.batch(x, sigma, [target, uncond][: 1 if cfg == 1.0 else 2])
            for negative in more:
                denoised = negative + (denoised - negative) * cfg
            x = euler_step(x, denoised, sigma, lower)
    assert torch.equal(got, x)


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_that_is_the_source_gives_the_picture_itself(name, family):
    """At cfg 1 whatever the inversion left over, at any cfg with the source as negative; the model is as it was."""
    denoiser, (source, _, uncond) = tiny_denoiser(family), tiny_conds(family)
    inversion = real_source(denoiser, family)
    with torch.no_grad():
        before = denoiser(inversion.latents[1], 1.0, source)
    for cfg, negative in ((1.0, uncond), (7.5, None)):
        got = engine(name, denoiser, inversion, (source, source, negative), cfg=cfg)
        torch.testing.assert_close(got.run(STEPS), inversion.latents[0], rtol=1e-4, atol=1e-4)
    left = engine(name, denoiser, inversion, (source, source, uncond), cfg=1.0, stored_shift=False).run(STEPS)
    assert float((left - inversion.latents[0]).abs().max()) > 1e-2
    with torch.no_grad():
        assert torch.equal(denoiser(inversion.latents[1], 1.0, source), before)


@pytest.mark.parametrize("name", OFF)
def test_at_any_cfg_the_target_of_equal_text_is_the_source_row_in_lockstep(name):
    denoiser, (source, _, uncond) = tiny_denoiser(), tiny_conds()
    inversion = real_source(denoiser, "sd1")
    level = STEPS
    control = engine(name, denoiser, inversion, (source, source, uncond)).controls(level)(2, 3, None)
    z, sigma = inversion.latents[level], float(inversion.sigmas[level])
    with torch.no_grad():
        target, _, same = denoiser.batch([z, z, z], sigma, [source, uncond, source], control=control)
        plain = denoiser.batch([z, z, z], sigma, [source, uncond, source])
    torch.testing.assert_close(target, same, rtol=1e-5, atol=1e-5)
    assert torch.equal(same, plain[2])


class Backwards:
    """Shows the source last and alone, as a host does that lacks memory."""

    def __init__(self, denoiser):
        self.denoiser, self.identity, self.evaluations = denoiser, denoiser.identity, denoiser.evaluations
        self.refused = 0

    def __call__(self, x, sigma, cond, *, control=None):
        return self.denoiser(x, sigma, cond, control=control)

    def batch(self, x, sigma, conds, *, control=None):
        if control is not None and not isinstance(x, torch.Tensor) and len(conds) == 3:
            self.refused += 1
            raise SourceMissing("later")
        return self.denoiser.batch(x, sigma, conds, control=control)


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_backend_that_shows_the_source_last_gives_the_same(name, family):
    denoiser, conds = tiny_denoiser(family), tiny_conds(family)
    inversion = real_source(denoiser, family)
    apart = Backwards(denoiser)
    want = engine(name, denoiser, inversion, conds).run(STEPS)
    torch.testing.assert_close(engine(name, apart, inversion, conds).run(STEPS), want, rtol=1e-4, atol=1e-4)
    assert apart.refused == 1


@pytest.mark.parametrize("name", OFF)
def test_rows_of_a_batch_are_edited_like_single_pictures(name):
    denoiser, conds = tiny_denoiser(), tiny_conds()
    inversion = real_source(denoiser, "sd1")
    together = engine(name, denoiser, inversion, conds).run(STEPS)
    for row in range(2):
        alone = replace(inversion, latents=inversion.latents[:, row : row + 1], residuals=inversion.residuals[:, :1])
        torch.testing.assert_close(
            together[row : row + 1], engine(name, denoiser, alone, conds).run(STEPS), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", OFF)
def test_outside_the_mask_the_source_is_exact(name):
    denoiser, conds = tiny_denoiser(), tiny_conds()
    inversion = real_source(denoiser, "sd1")
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    got = engine(name, denoiser, inversion, conds, mask).run(STEPS)
    assert torch.equal(got[..., 4:], inversion.latents[0][..., 4:])
    assert float((got[..., :4] - inversion.latents[0][..., :4]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", OFF)
def test_a_made_up_or_guided_source_is_not_shifted(name):
    denoiser, conds = tiny_denoiser(), tiny_conds()
    for inversion in (tiny_source(denoiser), replace(real_source(denoiser, "sd1"), made_from=None, info={"cfg": 2.0})):
        on, off = (engine(name, denoiser, inversion, conds, stored_shift=shift).run(STEPS) for shift in (True, False))
        assert torch.equal(on, off)


def test_local_blend_keeps_the_source_where_no_word_is_looked_at():
    """A word looked at in one corner alone, by planted maps: the mask is that corner and what touches it."""
    denoiser, conds = tiny_denoiser(), tiny_conds()
    inversion = real_source(denoiser, "sd1", (1, 16, 16))
    words = replace(SAME, blend=((2,), (2,)))
    edit = PromptToPrompt(denoiser, inversion, *conds, settings=PromptToPromptSettings(blend_start=0.34), words=words)
    assert edit.mask_at(STEPS) is None and edit.mask_at(STEPS - 1) is None  # too early, nothing gathered
    edit.run(STEPS)
    mask = edit.mask_at(1)
    assert mask.shape == (1, 1, 16, 16) and set(mask.unique().tolist()) <= {0.0, 1.0}
    planted = PromptToPrompt(denoiser, inversion, *conds, settings=PromptToPromptSettings(blend_start=0.0), words=words)
    site = type("S", (), {"block": "up", "resolution": (4, 4)})
    maps = torch.zeros(1, 2, 16, TOKENS)
    maps[:, :, 0, 2] = 1.0
    for target in (False, True):
        planted._places.add(maps, site, target)
    where = planted.mask_at(1)[0, 0]
    assert where[0, 0] == 1 and where[12:, 12:].sum() == 0 and 0 < where.mean() < 0.4
    planted._places.add = lambda maps, site, target: None
    got = planted.run(STEPS)
    kept = where == 0
    assert torch.equal(got[0, :, kept], inversion.latents[0][0, :, kept])
    assert not torch.equal(got[0], inversion.latents[0][0])


def test_masked_masactrl_looks_at_its_own_ground_only():
    """With a foreground of one half, what the front attends to is the source's front: checked at one site by hand."""
    denoiser, conds = tiny_denoiser(), tiny_conds()
    inversion = real_source(denoiser, "sd1", (1, 8, 8))
    edit = MasaCtrl(denoiser, inversion, *conds, settings=MasaCtrlSettings(), foreground=((1,), (3,)))
    edit.run(STEPS)
    from semantic_editing.core.attention.site import Site
    from semantic_editing.core.attention.store import Projections

    site = Site("up", 3, (2, 2), 1, "self")
    front, ground = torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])
    edit._masks = lambda _: (front, ground)
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (Projections(*(torch.randn(1, 1, 4, 3, generator=generator) for _ in range(3))) for _ in range(2))
    got = edit._attend(mine, theirs, site, ("self", 3, 0, 0))
    for pixel, places in enumerate(([0, 1], [2, 3], [0, 1], [2, 3])):
        maps = softmax_maps(mine.q[:, :, pixel : pixel + 1], theirs.k[:, :, places])
        torch.testing.assert_close(got[:, :, pixel : pixel + 1], maps @ theirs.v[:, :, places])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PromptToPromptSettings(cross_fraction=1.2), "cross_fraction is 1.2; use a share"),
        (lambda: PromptToPromptSettings(self_fraction=float("nan")), "self_fraction is nan"),
        (lambda: PromptToPromptSettings(mode="swap"), "There is no mode 'swap'"),
        (lambda: PromptToPromptSettings(cfg=-1.0), "cfg is -1"),
        (lambda: MasaCtrlSettings(start_step=-0.1), "start_step is -0.1"),
        (lambda: MasaCtrlSettings(start_layer=-2), "start_layer is -2"),
        (lambda: PlugAndPlaySettings(feature_fraction=2.0), "feature_fraction is 2"),
        (lambda: PlugAndPlaySettings(attention_fraction=2.0), "attention_fraction is 2"),
        (lambda: PlugAndPlaySettings(feature_block=-3), "feature_block is -3"),
    ],
)
def test_settings_out_of_range_are_refused(make, sentence):
    with pytest.raises(EditingError, match=sentence):
        make()


def test_what_does_not_fit_is_refused_in_a_sentence():
    denoiser, (source, target, _) = tiny_denoiser(), tiny_conds()
    inversion = real_source(denoiser, "sd1")
    with pytest.raises(EditingError, match="no self-attention at or behind start_layer 40"):
        MasaCtrl(denoiser, inversion, source, target, settings=MasaCtrlSettings(start_layer=40)).run(STEPS)
    with pytest.raises(EditingError, match="no self-attention at or behind start_layer -1"):
        sdxl, conds = tiny_denoiser("sdxl"), tiny_conds("sdxl")
        MasaCtrl(sdxl, real_source(sdxl, "sdxl"), *conds).run(STEPS)
    longer = WordMap(Alignment(torch.arange(77)))
    with pytest.raises(EditingError, match="7 tokens long, the target's 7 and the texts 77"):
        PromptToPrompt(denoiser, inversion, source, target, words=longer).run(STEPS)
    with pytest.raises(EditingError, match="no cross-attention"):
        plain = tiny_denoiser("plain")
        other = invert(plain, tiny_latent(), tiny_cond(), steps=2, solver="ddim")
        PlugAndPlay(plain, other, source, target).run(2)
    with pytest.raises(EditingError, match="needs both texts"):
        PromptToPrompt(denoiser, inversion, source, target)

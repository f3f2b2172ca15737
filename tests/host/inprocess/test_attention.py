"""Attention control: the same layers, in the same order, with the same queries and keys as in diffusers on the same
weights.
"""

import comfy.model_patcher
import pytest
import torch
from conftest import conditioning, noise


class Capture:
    """Plain softmax attention written out, remembering what it saw."""

    def __init__(self, want=lambda site: True):
        self.want = want
        self.seen = []

    def wants(self, site):
        return self.want(site)

    def __call__(self, q, k, v, site):
        self.seen.append((site, q, k))
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


def evaluate(pack, model, x, conds, control):
    names = dict(zip(("positive", "negative"), conds, strict=False))
    return pack("nodes.host.sampling").run(
        model, {"samples": x}, names, lambda s: s.denoiser.batch(x, 2.0, [s.conds[n] for n in names], control=control)
    )


@pytest.mark.parametrize(
    ("family", "height", "width", "batch", "tokens"),
    [
        ("sd1", 8, 8, 1, 7),
        ("sd2", 8, 12, 3, 7),
        ("sdxl", 8, 12, 1, 7),
        ("sd1", 14, 22, 1, 77),
    ],  # the last: 77 tokens on 7x11 pixels
)
def test_sites_and_maps_equal_diffusers(pack, models, family, height, width, batch, tokens):
    backend = pack("core.diffusers.denoiser")
    from diffusers import DDIMScheduler

    pair = models(family)
    kind = "v_prediction" if family == "sd2" else "epsilon"
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    embeds, options = conditioning(family, tokens=tokens)[0]
    x = noise(batch, 4, height, width) * 2
    ours, theirs = Capture(), Capture()
    evaluate(pack, pair.model, x, [[[embeds, options]]], ours)
    cond = backend.TextCond(embeds, options.get("pooled_output"))
    with torch.no_grad():
        backend.DiffusersDenoiser(pair.unet, scheduler)(x, 2.0, cond, control=theirs)
    assert [site for site, *_ in ours.seen] == [site for site, *_ in theirs.seen]
    assert [site.index for site, *_ in ours.seen if site.kind == "cross"] == list(range(len(ours.seen) // 2))
    for (_, q, k), (_, q_reference, k_reference) in zip(ours.seen, theirs.seen, strict=True):
        torch.testing.assert_close(q, q_reference, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(k, k_reference, rtol=1e-3, atol=1e-4)


def test_control_that_computes_attention_changes_nothing(pack, models):
    model = models("sd1").model
    x, conds = noise(2, 4, 8, 12), [conditioning("sd1"), conditioning("sd1", 9, tokens=14)]
    plain = evaluate(pack, model, x, conds, None)
    control = Capture(lambda site: site.kind == "cross" and site.block == "up")
    guided = evaluate(pack, model, x, conds, control)
    assert {site.block for site, *_ in control.seen} == {"up"}
    for a, b in zip(plain, guided, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_branches_say_which_rows_are_whose(pack, models):
    """The host chooses the order of the chunks; the keys of a chunk must come from the conditioning its branch
    names.
    """
    model = models("sd1").model
    x, conds = noise(2, 4, 8, 8), [conditioning("sd1"), conditioning("sd1", 9)]
    control = Capture(lambda site: site.kind == "cross" and site.index == 0)
    evaluate(pack, model, x, conds, control)
    alone = [Capture(control.want) for _ in conds]
    for cond, capture in zip(conds, alone, strict=True):
        evaluate(pack, model, x, [cond], capture)
    (site, _, keys), *_ = control.seen
    assert sorted(site.branches) == [0, 1]
    for branch, chunk in zip(site.branches, keys.chunk(2), strict=True):
        torch.testing.assert_close(chunk, alone[branch].seen[0][2], rtol=1e-4, atol=1e-5)


def test_existing_override_still_runs_elsewhere(pack, models):
    """Another pack's override is chained: it serves the layers that the control does not want."""
    calls = []

    def override(function, *arguments, **options):
        calls.append(options["transformer_options"]["block"])
        return function(*arguments, **options)

    model = models("sd1").model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    x = noise(1, 4, 8, 8)
    control = Capture(lambda site: site.kind == "cross")
    evaluate(pack, model, x, [conditioning("sd1")], control)
    assert len(calls) == len(control.seen) == 7  # one self- and one cross-attention in each of 2 + 1 + 4 blocks
    assert model.model_options["transformer_options"] == {"optimized_attention_override": override}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_an_evaluation_that_ends_after_the_last_wanted_layer_leaves_the_host_as_it_was(pack, models, family):
    """Maps, loss and gradient are those of a whole evaluation, u counts it as one, and the next one is bit-equal."""
    capture, model = pack("core.attention.capture"), models(family).model
    x, conds = noise(2, 4, 8, 8), {"positive": conditioning(family)}
    blocks = model.model.diffusion_model.output_blocks
    entered = []
    handle = blocks[len(blocks) - 1].register_forward_pre_hook(lambda *_: entered.append(1))

    def work(session):
        cond, denoiser = session.conds["positive"], session.denoiser
        before = denoiser(x, 2.0, cond).detach()
        whole = capture.CaptureMaps((4, 4))
        capture.show(denoiser, x, 2.0, cond, whole)
        entered.clear()
        early = capture.CaptureMaps((4, 4), until=whole.seen)
        assert capture.show(denoiser, x, 2.0, cond, early) is None
        ran_on = len(entered)
        results = []
        for to_the_end in (True, False):
            control, leaf = capture.MapLoss(whole.seen, to_the_end), (x * 1.1).requires_grad_()
            capture.show(denoiser, leaf, 2.0, cond, control)
            results.append((control.losses.detach(), *torch.autograd.grad(control.losses.sum(), leaf)))
        counted = denoiser.evaluations.forward, denoiser.evaluations.backward
        after = denoiser(x, 2.0, cond).detach()
        return before, after, whole.maps, early.maps, results, counted, ran_on

    options = repr(model.model_options)
    try:
        before, after, whole, early, results, counted, ran_on = pack("nodes.host.sampling").run(
            model, {"samples": x}, conds, work, gradients=True
        )
    finally:
        handle.remove()
    assert torch.equal(before, after)
    assert whole.keys() == early.keys() and all(torch.equal(whole[key], early[key]) for key in whole)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert float(results[1][1].abs().max()) > 0
    assert counted == (2 * 5, 2 * 2) and ran_on == 0
    assert repr(model.model_options) == options


def test_control_of_a_flow_model_is_refused_in_a_sentence(pack, flow):
    x = noise(1, 16, 8, 8)
    with pytest.raises(ValueError, match="no cross-attention layers"):
        pack("nodes.host.sampling").run(
            flow,
            {"samples": x},
            {"positive": conditioning("flow")},
            lambda s: s.denoiser(x, 0.5, s.conds["positive"], control=Capture()),
        )


def test_replaced_cross_attention_is_refused_in_a_sentence(pack, models):
    model = models("sd1").model.clone()
    model.set_model_attn2_replace(lambda q, k, v, options: q, "middle", 0)
    with pytest.raises(ValueError, match="replaced the model's cross-attention"):
        evaluate(pack, model, noise(1, 4, 8, 8), [conditioning("sd1")], Capture())
    assert isinstance(model, comfy.model_patcher.ModelPatcher)

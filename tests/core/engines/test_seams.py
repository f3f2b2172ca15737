"""The seams of the engines in the diffusers backend: one latent each, stored and injected attention and features."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from semantic_editing.core.attention.capture import CaptureMaps
from semantic_editing.core.attention.features import InjectFeatures, StoreFeatures
from semantic_editing.core.attention.site import FeatureSite, Site
from semantic_editing.core.attention.store import InjectAttention, SourceMissing, StoreAttention
from semantic_editing.core.diffusers.attention import attention_sites
from semantic_editing.core.diffusers.features import feature_sites
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.tiny_models import FAMILIES, tiny_cond, tiny_conds, tiny_denoiser, tiny_latent

SIGMA = 3.0


def latents(count=3, batch=2, shape=(6, 10)):
    return [tiny_latent(batch, *shape, seed=number) * SIGMA for number in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_with_one_latent_each_equals_single_evaluations(family):
    denoiser, conds, x = tiny_denoiser(family), tiny_conds(family), latents()
    with torch.no_grad():
        together = denoiser.batch(x, SIGMA, conds)
        for made, latent, cond in zip(together, x, conds, strict=True):
            torch.testing.assert_close(made, denoiser(latent, SIGMA, cond), rtol=1e-5, atol=1e-5)
        assert all(
            torch.equal(a, b)
            for a, b in zip(denoiser.batch([x[0]] * 3, SIGMA, conds), denoiser.batch(x[0], SIGMA, conds), strict=True)
        )
    assert denoiser.evaluations.forward == 2 * (3 + 3 + 3 + 3)


def test_latents_of_texts_of_different_lengths_stay_their_own():
    denoiser, x = tiny_denoiser(), latents(2)
    conds = [tiny_cond(), tiny_cond(tokens=9, seed=2)]
    with torch.no_grad():
        for made, latent, cond in zip(denoiser.batch(x, SIGMA, conds), x, conds, strict=True):
            assert torch.equal(made, denoiser(latent, SIGMA, cond))


def test_latents_of_another_number_or_shape_are_refused():
    denoiser = tiny_denoiser()
    with pytest.raises(EditingError, match="2 latents of 1 shapes for 3"):
        denoiser.batch(latents(2), SIGMA, tiny_conds())
    with pytest.raises(EditingError, match="2 shapes"):
        denoiser.batch([tiny_latent(1, 8, 8), tiny_latent(1, 6, 8)], SIGMA, tiny_conds()[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_maps_are_those_of_kept_queries_and_keys_and_the_capture(family):
    denoiser, x, cond = tiny_denoiser(family), latents(1)[0], tiny_cond(family)
    maps, projections, capture = StoreAttention("maps"), StoreAttention("qkv"), CaptureMaps()
    with torch.no_grad():
        plain = denoiser(x, SIGMA, cond)
        torch.testing.assert_close(denoiser(x, SIGMA, cond, control=maps), plain, rtol=1e-5, atol=1e-5)
        assert torch.equal(denoiser(x, SIGMA, cond, control=projections), plain)
        denoiser(x, SIGMA, cond, control=capture)
    sites = {(site.kind, site.index, 0, 0) for _, site in attention_sites(denoiser.unet, (6, 10))}
    assert set(maps.kept) == set(projections.kept) == sites
    for key, (q, k, _) in projections.kept.items():
        heads = [
            torch.stack([(a @ b.T / a.shape[-1] ** 0.5).softmax(-1) for a, b in zip(*r, strict=True)])
            for r in zip(q, k, strict=True)
        ]
        torch.testing.assert_close(maps.kept[key], torch.stack(heads), rtol=1e-5, atol=1e-6)
        if key[0] == "cross":
            torch.testing.assert_close(maps.kept[key], capture.maps[key[1], 0, 0], rtol=1e-5, atol=1e-6)
    only = StoreAttention("qkv", ["self"], lambda site: site.block == "up")
    with torch.no_grad():
        denoiser(x, SIGMA, cond, control=only)
    assert {key[0] for key in only.kept} == {"self"} and 0 < len(only.kept) < len(sites) / 2


def chunks(*branches):
    return Site("down", 0, (1, 5), 2, "self", branches)


def made(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, 5, 4, generator=generator) for _ in range(3)]


def test_injection_finds_the_source_whatever_the_order_and_the_calls():
    rule = lambda mine, source, site, key: site.attend(mine.q, source.k, source.v) if key[2] == 0 else None  # noqa: E731
    q, k, v = made(6, 0)  # two rows a branch, shown as branches 1, 2, 0
    one, two, three = (slice(2 * n, 2 * n + 2) for n in range(3))
    want = {
        0: scaled_dot_product_attention(q[three], k[two], v[two]),
        1: scaled_dot_product_attention(q[one], k[one], v[one]),
        2: scaled_dot_product_attention(q[two], k[two], v[two]),
    }
    out = InjectAttention(2, 3, rule)(q, k, v, chunks(1, 2, 0))
    for branch, rows in ((1, one), (2, two), (0, three)):
        torch.testing.assert_close(out[rows], want[branch])
    apart = InjectAttention(2, 3, rule)
    apart(q[two], k[two], v[two], chunks(2))
    torch.testing.assert_close(apart(q[three], k[three], v[three], chunks(0)), want[0])
    with pytest.raises(SourceMissing):
        InjectAttention(2, 3, rule)(q[three], k[three], v[three], chunks(0))
    store = apart.storing()
    store(q[two], k[two], v[two], chunks(0))
    kept = {("self", 0, 2, 0): store.kept["self", 0, 0, 0]}
    torch.testing.assert_close(InjectAttention(2, 3, rule, kept=kept)(q[three], k[three], v[three], chunks(0)), want[0])


def test_injection_refuses_parts_and_areas_that_do_not_correspond():
    rule = lambda mine, source, site, key: site.attend(source.q, source.k, mine.v)  # noqa: E731
    q, k, v = made(1, 0)
    with pytest.raises(EditingError, match="different parts"):
        InjectAttention(1, 2, rule, kept={})(q, k, v, chunks(0))
    kept = StoreAttention()
    kept(q[:, :, :3], k, v, Site("down", 0, (1, 3), 2, "self", (1,)))
    with pytest.raises(EditingError, match="different areas"):
        InjectAttention(1, 2, rule, kept=kept.kept)(q, k, v, chunks(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_areas_of_a_branch_take_from_the_same_areas(family):
    rule = lambda mine, source, site, key: site.attend(source.q, source.k, mine.v)  # noqa: E731
    q, k, v = made(4, 3)
    out = InjectAttention(1, 2, rule)(q, k, v, chunks(0, 0, 1, 1))
    torch.testing.assert_close(out[:2], scaled_dot_product_attention(q[2:], k[2:], v[:2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_injecting_everything_everywhere_makes_the_target_the_source(family):
    """Keys, values and queries of all self-attention and the features of all residual blocks, at one latent and text:
    what is left of a target is its own text."""
    denoiser, x = tiny_denoiser(family), latents(2)
    source, target, _ = tiny_conds(family)
    take = lambda mine, source, site, key: site.attend(*source)  # noqa: E731
    with torch.no_grad():
        plain = denoiser.batch(x, SIGMA, [target, source])
        swapped = denoiser.batch(x, SIGMA, [target, source], control=InjectAttention(1, 2, take))
        assert torch.equal(swapped[1], plain[1]) and float((swapped[0] - plain[0]).abs().max()) > 1e-3
        same = denoiser.batch([x[1], x[1]], SIGMA, [source, source], control=InjectAttention(1, 2, take))
        torch.testing.assert_close(same[0], same[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "plain"])
def test_features_are_numbered_by_part_and_replaced_and_the_model_is_left_alone(family):
    denoiser, x = tiny_denoiser(family), latents(2)
    sites = [site for _, site in feature_sites(denoiser.unet)]
    for block in ("down", "mid", "up"):
        numbers = [site.index for site in sites if site.block == block]
        assert numbers == list(range(len(numbers))) and numbers
    source, target = tiny_conds(family)[:2]
    seen = []
    handle = denoiser.unet.up_blocks[0].resnets[1].conv2.register_forward_hook(lambda _, __, out: seen.append(out))
    wants = lambda site: site.block == "up" and site.index == 1  # noqa: E731
    store = StoreFeatures(wants)
    hooks = lambda: sum(len(module._forward_hooks) for module in denoiser.unet.modules())  # noqa: E731
    if family == "plain":
        handle.remove()
        return
    with torch.no_grad():
        plain = denoiser.batch(x, SIGMA, [target, source])
        denoiser(x[1], SIGMA, source, control=store)
        before = hooks()
        denoiser.batch(x, SIGMA, [target, source], control=InjectFeatures(1, wants))
        after, again = hooks(), denoiser.batch(x, SIGMA, [target, source])
    handle.remove()
    (key,) = store.kept
    assert key == ("up", 1, 0, 0)
    own = seen[0].chunk(2)
    torch.testing.assert_close(store.kept[key], own[1], rtol=1e-5, atol=1e-5)
    assert before == after and all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_features_of_the_source_stand_in_every_branch():
    wants = lambda site: True  # noqa: E731
    output = torch.arange(12.0).view(6, 2, 1, 1)
    control = InjectFeatures(2, wants)
    made = control.feature(output, FeatureSite("up", 0, False, (2, 0, 1)))
    assert torch.equal(made, output[:2].repeat(3, 1, 1, 1))
    with pytest.raises(SourceMissing):
        InjectFeatures(2, wants).feature(output[:2], FeatureSite("up", 0, False, (0,)))
    kept = {("up", 0, 2, 0): output[:2]}
    assert torch.equal(
        InjectFeatures(2, wants, kept).feature(output[2:4], FeatureSite("up", 0, False, (0,))), output[:2]
    )

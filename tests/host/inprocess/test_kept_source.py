"""A second edit of one INVERSION takes the source's attention from the first, and only while nothing else changed."""

import gc
import weakref

import comfy.samplers
import pytest
import torch
from conftest import comfy_model, conditioning, diffusers_unet, node, noise

SOURCE, TARGET, OTHER = (conditioning("sd1", seed) for seed in (1, 2, 3))
STEPS = 4


@pytest.fixture
def model(pack):
    with torch.inference_mode():
        return comfy_model(pack, "sd1", diffusers_unet("sd1"))


@pytest.fixture(autouse=True)
def as_in_a_prompt():
    with torch.inference_mode():
        yield


def invert(pack, model, seed=1):
    latent = {"samples": noise(2, 4, 8, 8, seed=seed)}
    return node(pack, "inversion.spdinv", "SPDInvInversion", model=model, positive=SOURCE, latent=latent, steps=STEPS)[
        0
    ]


def edit(pack, model, inversion, target=TARGET, **given):
    """Latent, and evaluations that the report says were spared."""
    latent, report = node(
        pack, "pix2pix_zero.guided_edit", "CrossAttnGuidedSampler", model=model, inversion=inversion, target=target,
        **given,
    )  # fmt: skip
    line = [each for each in report.splitlines() if each.endswith("evaluations per image spared")]
    forward = int(report.split(" forward")[0].split()[-1])
    return latent["samples"], int(line[0].split()[-5]) if line else 0, forward


def fresh(pack, *arguments, **given):
    """The same without what was kept."""
    pack("nodes.pix2pix_zero.kept_source").forget()
    return edit(pack, *arguments, **given)


def test_the_second_edit_spares_a_forward_a_step_and_is_the_same(pack, model):
    inversion = invert(pack, model)
    first, spared, forward = fresh(pack, model, inversion, OTHER)
    assert (spared, forward) == (0, 4 * STEPS)
    second, spared, forward = edit(pack, model, inversion)
    assert (spared, forward) == (STEPS, 3 * STEPS)
    assert torch.equal(second, fresh(pack, model, inversion)[0])
    assert not torch.allclose(second, first, atol=1e-3)
    assert edit(pack, model, inversion, OTHER, cfg=5.0, guidance=0.02, preset="lockstep")[1] == STEPS


def test_another_model_prompt_patch_choice_of_layers_or_inversion_begins_anew(pack, model):
    inversion, another = invert(pack, model), invert(pack, model, seed=2)
    for change in (
        {"source": OTHER},
        {"resolution": "quarter"},
        {"model": model.clone()},
        {"inversion": another},
        {"guidance": 0.0},
        {"reference": "reconstruction"},
    ):
        fresh(pack, model, inversion)
        values = {"model": model, "inversion": inversion} | change
        changed = edit(pack, **values)
        assert changed[1] == 0, change
        assert torch.equal(changed[0], fresh(pack, **values)[0]), change
    fresh(pack, model, inversion)
    name, weight = next(
        (n, w) for n, w in model.model.diffusion_model.named_parameters() if n.endswith("attn2.to_k.weight")
    )
    model.add_patches({f"diffusion_model.{name}": ("diff", (noise(*weight.shape, seed=5),))}, 0.5)  # on the same MODEL
    assert edit(pack, model, inversion)[1] == 0


def test_the_guider_takes_it_too_and_gives_it_to_the_sampler(pack, model):
    inversion = invert(pack, model)
    expected = fresh(pack, model, inversion, guidance=0.1)[0]
    latents = pack("nodes.host.latents")
    start = latents.latent_from_model(model, inversion.latents[-1])["samples"]

    def by_guider():
        guider = node(
            pack, "pix2pix_zero.guided_edit", "CrossAttnGuider", model=model, inversion=inversion, target=TARGET,
            guidance=0.1,
        )[0]  # fmt: skip
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(torch.zeros_like(start), start, euler, latents.sigmas_out(inversion.sigmas), seed=0)

    pack("nodes.pix2pix_zero.kept_source").forget()
    own = by_guider()
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3)
    assert edit(pack, model, inversion, guidance=0.1)[1] == STEPS
    assert torch.equal(by_guider(), own)


def test_it_goes_when_the_host_forgets_the_inversion_or_another_is_edited(pack, model):
    kept_source = pack("nodes.pix2pix_zero.kept_source")
    settings = pack("core.pix2pix_zero.guided_edit").CrossAttentionSettings()
    inversion, another = invert(pack, model), invert(pack, model, seed=2)
    fresh(pack, model, inversion)
    kept = weakref.ref(kept_source.kept_source(inversion, model, None, settings))
    assert kept().bytes > 0
    edit(pack, model, another)
    gc.collect()
    assert kept() is None
    kept = weakref.ref(kept_source.kept_source(another, model, None, settings))
    assert kept().bytes > 0
    del another
    gc.collect()
    assert kept() is None


def test_without_free_memory_nothing_is_kept_and_nothing_fails(pack, model, monkeypatch):
    monkeypatch.setattr(pack("nodes.pix2pix_zero.kept_source"), "free_main_memory", lambda: 1000)
    inversion = invert(pack, model)
    first = fresh(pack, model, inversion)
    again = edit(pack, model, inversion)
    assert again[1:] == (0, 4 * STEPS)
    assert torch.equal(first[0], again[0])

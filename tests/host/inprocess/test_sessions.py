"""What a run leaves behind: after success, an error, Cancel and a lack of memory; progress; latents in and out."""

import gc
import weakref
from itertools import pairwise

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import pytest
import torch
from conftest import comfy_model, conditioning, diffusers_unet, noise

OUT_OF_MEMORY = mm.OOM_EXCEPTION


@pytest.fixture
def model(pack):
    with torch.inference_mode():
        return comfy_model(pack, "sd1", diffusers_unet("sd1"))


def traces(model):
    """Everything a run could leave on the shared model."""
    patcher = model.model.current_patcher
    return {
        "options": repr(model.model_options),
        "wrappers": repr(model.wrappers),
        "patches": len(model.patches),
        "hook_mode": model.hook_mode,
        "injected": model.is_injected,
        "inference": torch.is_inference_mode_enabled(),
        "training": vars(mm).get("in_training"),
        "grad": torch.is_grad_enabled(),
        "hooks": None if patcher is None else repr(patcher.current_hooks),
        "thawed": sum(p.requires_grad for p in model.model.parameters()),
        "grads": sum(p.grad is not None for p in model.model.parameters()),
    }


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("how", ["error", "cancel", "memory"])
def test_a_failed_run_leaves_nothing(pack, model, how, gradients):
    """Same traces as before, no latent kept alive, and the same run works afterwards, as does a stock sampler, bit by
    bit.
    """
    x, cond = noise(2, 4, 8, 8), conditioning("sd1")
    watched = []

    def evaluate(session):
        start = session.latent.clone()
        if gradients:
            start.requires_grad_()
        return session.denoiser(start, 2.0, session.conds["positive"])

    def fail(session):
        denoised = evaluate(session)
        watched.extend((weakref.ref(denoised), weakref.ref(session), weakref.ref(session.latent)))
        if how == "cancel":
            mm.interrupt_current_processing(True)
            evaluate(session)
        raise OUT_OF_MEMORY("tried to allocate 3 GiB") if how == "memory" else RuntimeError("broken")

    kind = {"error": RuntimeError, "cancel": mm.InterruptProcessingException, "memory": OUT_OF_MEMORY}[how]
    with torch.inference_mode():
        stock = [comfy.sample.sample(model, x, 2, 3.0, "euler", "normal", cond, cond, torch.zeros_like(x), seed=1)]
        first = pack("nodes.host.sampling").run(
            model, {"samples": x}, {"positive": cond}, lambda s: evaluate(s).detach(), gradients=gradients
        )
        before = traces(model)
        with pytest.raises(kind):
            pack("nodes.host.sampling").run(model, {"samples": x}, {"positive": cond}, fail, gradients=gradients)
        gc.collect()
        assert traces(model) == before
        assert [reference() for reference in watched] == [None, None, None]
        assert torch.equal(
            first,
            pack("nodes.host.sampling").run(
                model, {"samples": x}, {"positive": cond}, lambda s: evaluate(s).detach(), gradients=gradients
            ),
        )
        stock.append(comfy.sample.sample(model, x, 2, 3.0, "euler", "normal", cond, cond, torch.zeros_like(x), seed=1))
    assert torch.equal(*stock)


def edit(pack, model, steps, press=0):
    """A whole edit: an inverted picture, guided; Cancel is pressed at the progress report number ``press``."""
    reports = []

    def work(session):
        report = session.callback()

        def told(progress):
            reports.append(progress)
            if len(reports) == press:
                mm.interrupt_current_processing(True)
            report(progress)

        source, target = session.conds["source"], session.conds["target"]
        inversion = pack("core.sampling").reference_from_noise(
            session.denoiser, session.latent, source, 1.0, None, steps, callback=told
        )
        return pack("core.pix2pix_zero.guided_edit").cross_attention_guided_edit(
            session.denoiser, inversion, source, target, cfg=1.0, callback=told
        )

    conds = {"source": conditioning("sd1"), "target": conditioning("sd1", seed=3)}
    latent = {"samples": noise(1, 4, 8, 8, seed=5)}
    with torch.inference_mode():
        return pack("nodes.host.sampling").run(model, latent, conds, work, gradients=True), len(reports)


def test_cancel_at_every_report_of_an_edit_leaves_the_next_one_as_it_was(pack, model):
    edited, reports = edit(pack, model, 3)
    before = traces(model)
    assert reports >= 6
    for press in range(1, reports + 1):
        with pytest.raises(mm.InterruptProcessingException):
            edit(pack, model, 3, press)
        gc.collect()
        assert traces(model) == before, press
    assert torch.equal(edit(pack, model, 3)[0], edited)


def test_edit_after_edit_keeps_nothing(pack, model):
    """After the first few, which fill caches, not one tensor and less than one object an edit stays alive."""

    def alive():
        gc.collect()
        objects = gc.get_objects()
        return sum(issubclass(type(value), torch.Tensor) for value in objects), len(objects)

    for _ in range(3):
        edit(pack, model, 1)
    tensors, objects = alive()
    for _ in range(12):
        edit(pack, model, 1)
    assert alive()[0] == tensors and alive()[1] < objects + 12


def test_lack_of_memory_names_the_widget_and_stays_recognised(pack, model):
    def fail(session):
        raise OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 3 GiB\nmore lines")

    with pytest.raises(
        OUT_OF_MEMORY, match=r"^Out of memory; lower batch_size\. \(CUDA out of memory\. Tried to allocate 3 GiB\)$"
    ):
        pack("nodes.host.sampling").run(
            model, {"samples": noise(1, 4, 8, 8)}, {"positive": conditioning("sd1")}, fail, advice="lower batch_size"
        )
    for error in (
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ):
        recognised = isinstance(error, RuntimeError)
        assert pack("nodes.host.memory").is_out_of_memory(error) == recognised
    assert not pack("nodes.host.memory").is_out_of_memory(RuntimeError("shapes do not match"))


def test_cancel_is_seen_by_the_progress_callback_too(pack, model):
    progress = pack("core.denoiser").Progress

    def work(session):
        report = session.callback()
        mm.interrupt_current_processing(True)
        report(progress(0, 2, 0, 1, session.latent))

    with pytest.raises(mm.InterruptProcessingException):
        pack("nodes.host.sampling").run(model, {"samples": noise(1, 4, 8, 8)}, {"positive": conditioning("sd1")}, work)


@pytest.mark.parametrize("method", ["Latent2RGB", "NoPreviews"])
def test_progress_runs_over_inner_iterations_and_never_goes_back(pack, model, monkeypatch, method):
    """3 steps of at most 4 iterations, two of them ending early: the bar is 12 long and rises; one preview a step, also
    where the host's default is none."""
    progress = pack("core.denoiser").Progress
    seen = []

    class Bar:
        def __init__(self, total):
            seen.append((0, total, None))

        def update_absolute(self, value, total, preview):
            seen.append((value, total, preview))

    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod[method])

    def work(session):
        report = session.callback()
        for step in range(3):
            for iteration in range(4 - step):
                report(progress(step, 3, iteration, 4, session.latent))
        report(progress(0, 3, 0, 4, session.latent))

    pack("nodes.host.sampling").run(
        model, {"samples": noise(1, 4, 8, 8)}, {"positive": conditioning("sd1")}, work, gradients=True
    )
    assert [value for value, *_ in seen] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 10]
    assert {total for _, total, _ in seen} == {12}
    previews = [(value, preview) for value, _, preview in seen if preview is not None]
    assert [value for value, _ in previews] == [1, 5, 9, 10]
    assert previews[0][1][0] == "JPEG" and previews[0][1][1].size == (8, 8)


def test_inputs_are_not_changed(pack, model):
    latent = {"samples": noise(2, 4, 8, 8), "noise_mask": torch.ones(1, 64, 64), "batch_index": [0, 1]}
    cond = conditioning("sd1")
    kept = (latent["samples"].clone(), latent["noise_mask"].clone(), cond[0][0].clone())
    pack("nodes.host.sampling").run(model, latent, {"positive": cond}, lambda s: s.latent.add_(1), gradients=True)
    assert all(
        torch.equal(a, b) for a, b in zip(kept, (latent["samples"], latent["noise_mask"], cond[0][0]), strict=True)
    )
    assert set(latent) == {"samples", "noise_mask", "batch_index"} and set(cond[0][1]) == set()


def test_latents_go_in_and_out_in_the_models_units(pack, model):
    x = noise(2, 4, 8, 12)
    inside = pack("nodes.host.latents").latent_to_model(model, {"samples": x})
    torch.testing.assert_close(inside, x * 0.18215)
    torch.testing.assert_close(pack("nodes.host.latents").latent_from_model(model, inside)["samples"], x)
    assert torch.equal(
        pack("nodes.host.sampling").run(model, {"samples": x}, {"positive": conditioning("sd1")}, lambda s: s.latent),
        inside,
    )


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 16, 8, 8), "16 channels and the model works on 4"),
        ((1, 4, 5, 8, 8), "video"),
        ((0, 4, 8, 8), "batch of no pictures"),
        ((1, 4, 1, 8), "only 8 x 1 latent pixels"),
    ],
)
def test_unusable_latents_are_refused_in_a_sentence(pack, model, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        pack("nodes.host.sampling").run(
            model, {"samples": torch.ones(shape)}, {"positive": conditioning("sd1")}, lambda s: None
        )


def test_stock_euler_from_our_latent_equals_our_euler(pack, model):
    """process_out(x) + DisableNoise + euler: the stock sampler starts exactly at x and takes the same steps."""
    core = pack("core.denoiser")
    cond, latent = conditioning("sd1"), noise(2, 4, 8, 12)

    def work(session):
        grid = session.denoiser.sigma_grid(5)
        start = noise(2, 4, 8, 12, seed=3) * float(grid[-1])
        x = start
        levels = [*grid.flip(0).tolist()]
        for sigma, following in pairwise(levels):
            x = core.euler_step(x, session.denoiser(x, sigma, session.conds["positive"]), sigma, following)
        return start, grid, x

    start, grid, ours = pack("nodes.host.sampling").run(model, {"samples": latent}, {"positive": cond}, work)
    out = pack("nodes.host.latents").latent_from_model(model, start)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond, cond)
    sampler = comfy.samplers.sampler_object("euler")
    theirs = guider.sample(
        torch.zeros_like(start), out["samples"], sampler, pack("nodes.host.latents").sigmas_out(grid), seed=0
    )
    torch.testing.assert_close(
        theirs, pack("nodes.host.latents").latent_from_model(model, ours)["samples"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("last", [1.0, 0.6])
def test_flow_noise_makes_the_stock_sampler_start_where_we_ended(pack, flow, last):
    """Also at a level below 1, where the wired latent has a share in the start; and sigma 0 at the clean end."""
    core = pack("core.denoiser")
    cond, latent = conditioning("flow"), {"samples": noise(2, 16, 8, 12)}

    def work(session):
        grid = session.denoiser.sigma_grid(6)
        assert grid[0] == 0 and grid[-1] == 1 and bool((grid.diff() > 0).all())
        levels = [last, *(s for s in grid.flip(0).tolist() if s < last - 1e-6)]
        start = x = noise(2, 16, 8, 12, seed=3)
        for sigma, following in pairwise(levels):
            x = core.euler_step(x, session.denoiser(x, sigma, session.conds["positive"]), sigma, following)
        return levels, start, x

    levels, start, ours = pack("nodes.host.sampling").run(flow, latent, {"positive": cond}, work)
    guider = comfy.samplers.CFGGuider(flow)
    guider.set_conds(cond, cond)
    generated = pack("nodes.host.latents").noise_object(start, last, flow).generate_noise(latent)
    theirs = guider.sample(
        generated, latent["samples"], comfy.samplers.sampler_object("euler"), torch.tensor(levels), seed=0
    )
    torch.testing.assert_close(
        theirs, pack("nodes.host.latents").latent_from_model(flow, ours)["samples"], rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="wire the latent that was inverted"):
        pack("nodes.host.latents").noise_object(start, last, flow).generate_noise({"samples": torch.zeros(1, 16, 8, 8)})


def test_flow_identity(pack, flow):
    found = pack("nodes.host.identity").identity(flow)
    assert (found.prediction, found.latent_channels, found.family) == ("flow", 16, "sd3")
    assert len(found.signature) == 32 and found.mismatch(pack("nodes.host.identity").identity(flow)) is None

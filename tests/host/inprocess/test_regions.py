"""Region editors inside the host: nine-channel models, plain ones, bits outside the mask, gradients, Cancel, what stays
behind."""

import gc
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import comfy.model_base
import comfy.model_management as mm
import pytest
import torch
from conftest import PACK, comfy_model, conditioning, diffusers_unet

import nodes

BOX = (16, 8, 24, 16)
INPAINT = {"steps": 3, "cfg": 3.0}
#: Random networks invert badly: plain DDIM, which always ends.
INVERT = {"steps": 3, "cfg": 3.0, "guidance": 0.3, "feather": 2, "solver": "ddim"}


pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")


@pytest.fixture(scope="module")
def demo(pack):
    """MODEL, CLIP and VAE as a prompt makes them: of inference tensors."""
    with torch.inference_mode():
        return pack("nodes.demo.comfy_model").load_demo_model()


@pytest.fixture(scope="module")
def plain(pack):
    with torch.inference_mode():
        return comfy_model(pack, "sd1", diffusers_unet("sd1"))


@pytest.fixture(scope="module")
def nine(pack):
    """A tiny random inpainting model of nine channels in diffusers, and a MODEL of the same weights."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = (
            UNet2DConditionModel.from_config({**diffusers_unet("sd1").config, "in_channels": 9})
            .eval()
            .requires_grad_(False)
        )
    with torch.inference_mode():
        model = comfy_model(pack, "sd1", unet)
    model.model.set_inpaint()
    return unet, model


def picture(height=48, width=64, seed=7):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def box_mask(image, box=BOX):
    mask = torch.zeros(1, *image.shape[-2:])
    mask[:, box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    return mask


def inpaint_editor(pack, model, vae, context=0.5, working_size=None, positive=None, **options):
    framing = pack("core.regions.paste").Framing(context, working_size=working_size, feather=2)
    settings = pack("core.regions.edit_inpaint").InpaintSettings(**(INPAINT | options), framing=framing)
    with torch.inference_mode():  # a node's execute
        conds = (positive or conditioning("sd1", 1), conditioning("sd1", 2))
        return pack("nodes.regions.host_editors").inpaint_opener(model, vae, *conds, settings)


def inversion_editor(pack, model, vae, inversion=None, **options):
    settings = pack("core.regions.edit_invert").InversionEditSettings(**(INVERT | options))
    with torch.inference_mode():
        conds = [conditioning("sd1", seed) for seed in (1, 2, 3)]
        return pack("nodes.regions.host_editors").inversion_opener(model, vae, *conds, inversion, settings)


def render(opener, image=None, box=BOX, seed=5, progress=lambda told: None):
    image = picture() if image is None else image
    with opener(image, progress) as editor:
        return editor.render(image, box_mask(image, box), box, seed=seed)


def assert_only_the_box_changed(result, image, box=BOX):
    inside = box_mask(image, box)[0] > 0
    assert torch.equal(result[..., ~inside], image[..., ~inside])
    assert (result != image).any(1)[0][inside].float().mean() > 0.5
    assert not result.is_inference() and not result.requires_grad


@contextmanager
def seen_by(network):
    """Inputs of a network's forward: latent and channels beside it."""
    heard = []
    hook = network.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0].detach().clone()))
    try:
        yield heard
    finally:
        hook.remove()


@pytest.mark.parametrize("inference", [True, False])
def test_nine_channels_see_mask_and_masked_picture_and_agree_with_diffusers(pack, demo, nine, inference):
    from diffusers import DDIMScheduler

    unet, model = nine
    image, vae = picture(), demo[2]
    with torch.inference_mode(inference), seen_by(model.model.diffusion_model) as heard:
        result = render(inpaint_editor(pack, model, vae, context=float("inf")), image)
    assert_only_the_box_changed(result, image)
    grey = torch.where(box_mask(image) > 0, 0.5, image)
    with torch.inference_mode():
        masked = vae.encode(grey.movedim(1, -1)).float() * 0.18215
    cells = torch.zeros(1, 1, 6, 8)
    cells[..., 1:3, 2:5] = 1
    assert len(heard) == 3 and {tuple(x.shape) for x in heard} == {(2, 9, 6, 8)}
    for x in heard:
        assert torch.equal(x[:, 4:5], cells.expand(2, -1, -1, -1)) and torch.equal(
            x[:, 5:], masked.expand(2, -1, -1, -1)
        )

    inpainting, core = pack("tests.core.regions.inpainting_denoiser"), pack("core.regions.edit_inpaint")
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    framing = pack("core.regions.paste").Framing(float("inf"), 8, None, 2)

    def encode(pixels):
        return vae.encode(pixels.movedim(1, -1)).float() * 0.18215

    theirs = core.InpaintEditor(
        inpainting.InpaintingDenoiser(unet, scheduler),
        encode,
        lambda latent: vae.decode(latent / 0.18215)[..., :3].movedim(-1, 1),
        conditioning("sd1", 1)[0][0],
        conditioning("sd1", 2)[0][0],
        core.InpaintSettings(3.0, 3, framing=framing),
        show_known=inpainting.show_known(encode),
    )
    with torch.inference_mode():
        expected = theirs.render(image, box_mask(image), BOX, seed=5)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("box", [BOX, (0, 0, 5, 48), (61, 40, 3, 8)])
def test_a_plain_model_paints_the_box_and_no_other_pixel(pack, demo, plain, box):
    image = picture()
    opener = inpaint_editor(pack, plain, demo[2], working_size=40)
    results = [render(opener, image, box) for _ in range(2)]
    assert_only_the_box_changed(results[0], image, box)
    assert torch.equal(*results) and not torch.equal(results[0], render(opener, image, box, seed=6))


def test_open_tells_progress_costs_and_names(pack, demo, plain):
    heard = []
    opener, image = inpaint_editor(pack, plain, demo[2]), picture()
    with opener(image, heard.append) as editor:
        assert editor.cost() == 6
        editor.render(image, box_mask(image), BOX, seed=1)
        assert [told.step for told in heard] == [0, 1, 2]
        assert editor.denoiser.evaluations.forward == 6
        same = editor.identity

    def name(model=plain, **options):
        with inpaint_editor(pack, model, demo[2], **options)(image, heard.append) as other:
            return other.identity

    patched, hooked = plain.clone(), plain.clone()
    patched.add_patches({"diffusion_model.input_blocks.0.0.weight": ("diff", (torch.ones(32, 4, 3, 3),))})
    hooked.set_model_sampler_cfg_function(lambda given: given["cond"])
    assert name() == same and name(plain.clone()) == same
    others = [
        name(patched),
        name(hooked),
        name(hooked),
        name(cfg=2.0),
        name(positive=conditioning("sd1", 9)),
        name(context=1.0),
    ]
    assert len({same, *others}) == 6 and others[1] == others[2]  # the same function, read by what it does
    hooked.set_model_sampler_cfg_function(lambda given: given["uncond"])
    assert name(hooked) not in (same, *others)


@contextmanager
def files_above(network, edges):
    """Of each forward of ``network``: the pack's own files on the stack, from the function named in ``edges`` down."""
    counted = []

    def look(module, inputs):
        frame, files = sys._getframe(), []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACK) and not path.is_relative_to(PACK / "tests"):
                files.append(path.relative_to(PACK).as_posix())
                if frame.f_code.co_name in edges:
                    counted.append(sorted(set(files)))
                    return
            frame = frame.f_back
        raise AssertionError(f"the network was called from outside: {files}")

    hook = network.register_forward_pre_hook(look)
    try:
        yield counted
    finally:
        hook.remove()


def test_a_render_crosses_six_files_of_ours(pack, demo, plain, nine):
    """A reader follows a render from the editor to the network through at most six files, whatever it does there."""
    image, network = picture(), plain.model.diffusion_model
    openers = [
        (network, inpaint_editor(pack, plain, demo[2])),
        (nine[1].model.diffusion_model, inpaint_editor(pack, nine[1], demo[2])),
        *((network, inversion_editor(pack, plain, demo[2], solver=solver)) for solver in ("auto", "ddim", "gradient")),
    ]
    for used, opener in openers:
        with files_above(used, {"render", "change"}) as seen, opener(image, lambda told: None) as editor:
            editor.render(image, box_mask(image), BOX, seed=0)
            if hasattr(editor, "change"):
                assert editor.change(image).isfinite().all()
        assert len(seen) >= 2
        assert max(len(files) for files in seen) <= 6, " ".join(map(str, max(seen, key=len)))


@pytest.mark.parametrize("inference", [True, False])
def test_the_inversion_editor_takes_gradients_and_inverts_once(pack, demo, plain, inference):
    image = picture()
    opener = inversion_editor(pack, plain, demo[2])
    with torch.inference_mode(inference), opener(image, lambda told: None) as editor:
        result = editor.render(image, box_mask(image), BOX, seed=0)
        once = editor.shared_evaluations
        assert once > 0 and editor.denoiser.evaluations.backward >= 3  # a guided step each
        other = editor.render(image, box_mask(image, (0, 0, 16, 16)), (0, 0, 16, 16), seed=0)
        assert editor.shared_evaluations == once
    for made, box in ((result, BOX), (other, (0, 0, 16, 16))):
        assert_only_the_box_changed(made, image, box)
    unguided = render(inversion_editor(pack, plain, demo[2], guidance=0.0), image)
    assert not torch.allclose(result, unguided, atol=1e-3)
    assert not any(p.requires_grad or p.grad is not None for p in plain.model.parameters())


def test_a_ready_inversion_is_used(pack, demo, plain):
    image = picture()
    with torch.inference_mode():
        latent = nodes.VAEEncode().encode(demo[2], image.movedim(1, -1))[0]

        def work(session):
            return pack("core.spdinv.invert").invert(
                session.denoiser, session.latent, session.conds["source"], 3, "ddim"
            )

        ready = pack("nodes.host.sampling").run(plain, latent, {"source": conditioning("sd1", 1)}, work, gradients=True)
    with inversion_editor(pack, plain, demo[2], ready, steps=9)(image, lambda told: None) as editor:
        result = editor.render(image, box_mask(image), BOX, seed=0)
        assert editor.shared_evaluations == 0 and editor.settings.steps == 3
    torch.testing.assert_close(result, render(inversion_editor(pack, plain, demo[2]), image), rtol=0, atol=1e-3)
    foreign = replace(ready, identity=replace(ready.identity, family="sd2"))
    with pytest.raises(ValueError, match=r"a sd. model against a sd. model"):
        inversion_editor(pack, plain, demo[2], foreign)


@pytest.mark.parametrize("make", [inpaint_editor, inversion_editor])
def test_cancel_and_errors_leave_nothing(pack, demo, plain, make):
    """Cancel at a step: the same render works afterwards, bit by bit; nothing of the render lives on; modes are as
    before."""
    opener, image = make(pack, plain, demo[2]), picture()
    first, watched = render(opener, image), []
    before = (repr(plain.model_options), torch.is_grad_enabled(), vars(mm).get("in_training"))

    def press(told):
        watched.append(weakref.ref(told.denoised))
        mm.interrupt_current_processing(True)

    with torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        render(opener, image, progress=press)
    assert 1 <= len(watched) <= 2
    with pytest.raises(ZeroDivisionError):
        render(opener, image, progress=lambda told: 1 / 0)
    gc.collect()
    assert [reference() for reference in watched] == [None] * len(watched)
    assert before == (repr(plain.model_options), torch.is_grad_enabled(), vars(mm).get("in_training"))
    assert torch.equal(first, render(opener, image))


def test_what_cannot_be_used_is_said_at_once(pack, demo, plain, nine, flow, monkeypatch):
    vae = demo[2]
    with pytest.raises(ValueError, match=r"4 channels and the model works on 16; wire the model's own VAE\.$"):
        inpaint_editor(pack, flow, vae)
    with monkeypatch.context() as patch:
        patch.setattr(plain.model.latent_format, "latent_dimensions", 3, raising=False)
        with pytest.raises(ValueError, match=r"video or sound; wire an image model"):
            inpaint_editor(pack, plain, vae)
    for make in (inpaint_editor, inversion_editor):
        with pytest.raises(
            ValueError, match="768 wide and this model reads 256; encode the prompt with the model's own CLIP"
        ):
            make(pack, demo[0], vae)
    with pytest.raises(ValueError, match=r"strength is 0; use"):
        inpaint_editor(pack, plain, vae, strength=0.0)
    with pytest.raises(ValueError, match=r"inpainting model.*Region Inpaint Editor\.$"):
        inversion_editor(pack, nine[1], vae)
    with monkeypatch.context() as patch:
        patch.setattr(vae, "latent_channels", 16)
        with pytest.raises(ValueError, match=r"no cross-attention"):
            inversion_editor(pack, flow, vae)
        assert inversion_editor(pack, flow, vae, guidance=0.0)
    for kind in (comfy.model_base.SD15_instructpix2pix, comfy.model_base.Lotus):
        with monkeypatch.context() as patch:  # eight channels: latent and picture
            config = {**plain.model.model_config.unet_config, "in_channels": 8}
            patch.setattr(plain.model, "__class__", kind)
            patch.setattr(plain.model, "process_ip2p_image_in", lambda image: image, raising=False)
            patch.setattr(plain.model.model_config, "unet_config", config)
            with pytest.raises(
                ValueError, match=r"reads another picture besides the latent.*wire a plain or an inpainting model\.$"
            ):
                inpaint_editor(pack, plain, vae)
    with pytest.raises(ValueError, match=r"outside the image"):
        render(inpaint_editor(pack, plain, vae), box=(60, 0, 10, 10))


def test_the_other_editor_nodes(pack, demo, plain):
    editors = pack("nodes.regions.editors")
    conds = [conditioning("sd1", seed) for seed in (1, 2)]
    shared = {"steps": 2, "cfg": 3.0, "working_size": 0, "feather": 2}
    with torch.inference_mode():
        (inpaint,) = editors.RegionInpaintEditor.execute(
            plain, demo[2], *conds, strength=1.0, context=100.0, **shared
        ).result
        (invert,) = editors.RegionInversionEditor.execute(plain, demo[2], *conds, guidance=0.0, **shared).result
    assert_only_the_box_changed(render(inpaint.open, picture()), picture())
    assert inpaint.title == "inpainting: 2 steps, cfg 3"
    assert invert.title == "along the inversion: 2 steps, cfg 3, guidance 0"

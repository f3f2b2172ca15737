"""Box inpainting: the known part's trajectory and the painted part's closed form, 9-channel models, cost, seeds,
refusals."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.denoiser import ModelIdentity
from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.edit_inpaint import InpaintEditor, InpaintSettings, inpaint
from semantic_editing.core.regions.paste import Framing
from semantic_editing.tests.core.oracles import GaussianDenoiser
from semantic_editing.tests.core.regions.inpainting_denoiser import InpaintingDenoiser, Known, show_known
from semantic_editing.tests.core.tiny_models import tiny_cond, tiny_denoiser, tiny_scheduler

STD = 0.5
BOX = (13, 8, 17, 11)


class Recording(GaussianDenoiser):
    """Keeps the latents and levels it was asked about; ``prediction`` "flow" keeps ComfyUI's flow convention."""

    def __init__(self, std=STD, prediction="eps"):
        super().__init__(std)
        self.identity, self.seen = ModelIdentity("toy", 4, prediction), []

    def x0(self, x, sigma, cond):
        self.seen.append((x, float(sigma.flatten()[0])))
        if self.identity.prediction == "flow":
            scale = 1 - sigma  # x = (1 - sigma) x0 + sigma noise
            return x * scale * self.std**2 / (scale**2 * self.std**2 + sigma**2)
        return super().x0(x, sigma, cond)

    def sigma_grid(self, steps):
        return torch.linspace(0.01, 1, steps + 1) if self.identity.prediction == "flow" else super().sigma_grid(steps)


def noise(height=8, width=8, seed=0):
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(seed))


def encode(image):
    """A linear stand-in for a VAE: 8 x 8 pixels to one latent pixel of four channels."""
    means = functional.avg_pool2d(image, 8) * 2 - 1
    return torch.cat([means, means.mean(1, keepdim=True)], 1)


def decode(latent):
    """Soft, so that the large latents of random networks still differ in the picture."""
    return torch.sigmoid(functional.interpolate(latent[:, :3], scale_factor=8) / 10)


def picture(height=40, width=56):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(7))


def editor(denoiser=None, **options):
    """``options`` are the editor's fields and those of its settings."""
    conds = {"cond": torch.ones(1, 1, 1), "uncond": torch.full((1, 1, 1), 0.8)}
    chosen = conds | {"cfg": 2.0, "steps": 5} | options
    own = {field.name for field in fields(InpaintSettings)}
    settings = InpaintSettings(**{name: value for name, value in chosen.items() if name in own})
    others = {name: value for name, value in chosen.items() if name not in own}
    return InpaintEditor(denoiser or GaussianDenoiser(STD), encode, decode, settings=settings, **others)


def render(edit, image=None, box=BOX, **options):
    image = picture() if image is None else image
    return edit.render(image, torch.ones(1, *image.shape[-2:]), box, **({"seed": 3} | options))


@pytest.mark.parametrize("prediction", ["eps", "flow"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_known_part_keeps_its_trajectory_and_the_painted_part_its_closed_form(prediction, strength):
    """Gaussian data has independent elements, so both parts are known exactly at every level."""
    denoiser = Recording(prediction=prediction)
    source, start = noise(seed=1), noise(seed=2)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    painted = mask.bool().expand(1, 4, 8, 8)
    result = inpaint(denoiser, source, mask, start, None, cfg=1.0, steps=6, strength=strength)

    levels = denoiser.sigma_grid(6)[: round(6 * strength) + 1].flip(0).double().tolist()
    assert len(denoiser.seen) == len(levels) - 1

    def at(sigma):
        share = 1 - sigma if prediction == "flow" else 1
        return source * share + sigma * start

    unit = (1 + levels[0] ** 2) ** 0.5 if prediction == "eps" else 1.0
    expected = start * unit if strength == 1 else at(levels[0])
    for (seen, sigma), (high, low) in zip(denoiser.seen, pairwise(levels), strict=True):
        assert sigma == pytest.approx(high)
        torch.testing.assert_close(seen[~painted], at(high)[~painted], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen[painted], expected[painted], rtol=1e-4, atol=1e-5)
        scale = 1 - high if prediction == "flow" else 1.0
        share = scale * STD**2 / (scale**2 * STD**2 + high**2)
        expected = expected * (1 + (1 - share) / high * (low - high))
    torch.testing.assert_close(result[painted], expected[painted], rtol=1e-4, atol=1e-5)
    assert torch.equal(result[~painted], source[~painted])


def test_painting_everything_is_plain_sampling_and_nothing_is_the_source():
    source, start = noise(seed=1), noise(seed=2)
    everything = inpaint(GaussianDenoiser(STD), source, torch.ones(1, 1, 8, 8), start, None, cfg=1.0, steps=4)
    other_source = inpaint(GaussianDenoiser(STD), source + 1, torch.ones(1, 1, 8, 8), start, None, cfg=1.0, steps=4)
    assert torch.equal(everything, other_source)
    assert torch.equal(
        inpaint(GaussianDenoiser(STD), source, torch.zeros(1, 1, 8, 8), start, None, cfg=1.0, steps=4), source
    )


@pytest.mark.parametrize("options", [{}, {"cfg": 1.0}, {"strength": 0.5}, {"uncond": None, "cfg": 1.0}])
def test_cost_is_what_is_spent(options):
    denoiser, heard = GaussianDenoiser(STD), []
    edit = editor(denoiser, callback=heard.append, **options)
    render(edit)
    assert denoiser.evaluations.forward == edit.cost() and denoiser.evaluations.backward == 0
    assert [p.step for p in heard] == list(range(heard[0].steps)) and set(denoiser.calls) == {1}
    assert edit.cost() == 5 * (1 if edit.settings.cfg == 1 else 2) or edit.settings.strength == 0.5


@pytest.mark.parametrize("box", [BOX, (0, 0, 5, 40), (54, 38, 2, 2), (20, 9, 3, 2), (0, 0, 56, 40)])
def test_only_the_box_changes(box):
    image = picture()
    for framing in (Framing(), Framing(float("inf"), working_size=64)):
        result = render(editor(framing=framing), image, box)
        x, y, width, height = box
        changed = (result != image).any(1)[0]
        assert changed[y : y + height, x : x + width].any()
        changed[y : y + height, x : x + width] = False
        assert not changed.any()


def test_same_seed_same_picture_and_the_global_generator_is_left_alone():
    edit = editor()
    before = torch.get_rng_state()
    first = render(edit)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(render(edit), first) and torch.equal(render(editor()), first)
    assert not torch.equal(render(edit, seed=4), first)


def test_identity_names_what_decides_the_picture():
    same = editor().identity
    assert same == editor().identity and same.startswith("inpaint/")
    others = [
        editor(GaussianDenoiser(STD), cond=torch.zeros(1, 1, 1)),
        editor(cfg=3.0),
        editor(steps=6),
        editor(strength=0.9),
        editor(framing=Framing(1.0)),
        editor(label="another VAE"),
        editor(Recording(prediction="flow")),
    ]
    assert len({same, *(other.identity for other in others)}) == 8


def tiny_inpainting(seed=0):
    plain = tiny_denoiser("sd1").unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config({**plain.config, "in_channels": 9})
    return unet.eval()


def test_nine_channels_see_latent_mask_and_masked_picture():
    unet = tiny_inpainting()
    denoiser = InpaintingDenoiser(unet, tiny_scheduler())
    cells, masked, x = (noise(6, 10, seed=s) for s in (1, 2, 3))
    cells = (cells[:, :1] > 0).float()
    conds, sigma = [tiny_cond(), tiny_cond(seed=5)], 3.0
    known = [Known(cond, cells, masked) for cond in conds]
    for got, cond in zip(denoiser.batch(x, sigma, known), conds, strict=True):
        timestep = denoiser.timestep(torch.tensor([sigma]))
        with torch.no_grad():
            eps = unet(torch.cat([x / (1 + sigma**2) ** 0.5, cells, masked], 1), timestep, cond).sample
        torch.testing.assert_close(got, x - sigma * eps, rtol=1e-4, atol=1e-4)
    assert denoiser.evaluations.forward == 2 and denoiser.identity.latent_channels == 4
    with pytest.raises(EditingError, match="mask and the masked image"):
        denoiser(x, sigma, conds[0])
    with pytest.raises(EditingError, match="one size"):
        denoiser(noise(8, 8), sigma, known[0])
    with pytest.raises(EditingError, match="takes 4 channels, an inpainting one takes 9"):
        InpaintingDenoiser(tiny_denoiser("sd1").unet, tiny_scheduler())


def test_inpainting_model_in_the_editor_never_sees_what_it_paints():
    """At full strength the masked pixels reach an inpainting model only as grey, so other ones give the same
    picture."""
    cond, uncond = tiny_cond(), tiny_cond(seed=5)
    denoiser = InpaintingDenoiser(tiny_inpainting(), tiny_scheduler())
    edit = editor(denoiser, cond=cond, uncond=uncond, framing=Framing(feather=0), show_known=show_known(encode))
    image, aligned = picture(), (16, 8, 16, 16)  # on the latent grid
    other = image.clone()
    other[..., 8:24, 16:32] = 0.9
    known = other.clone()
    known[..., :8, 8:16] = 0  # inside the window
    first = render(edit, image, aligned)
    assert denoiser.evaluations.forward == edit.cost() == 10
    assert torch.equal(first, render(edit, other, aligned))
    changed = render(edit, known, aligned)[..., 8:24, 16:32]
    assert not torch.equal(changed, first[..., 8:24, 16:32])  # what it knows, it does see


def test_bad_settings_are_refused():
    with pytest.raises(EditingError, match="negative conditioning"):
        editor(uncond=None)
    with pytest.raises(EditingError, match="steps is 0"):
        editor(steps=0)
    for strength in (0.0, 1.5, float("nan")):
        with pytest.raises(EditingError, match="strength"):
            editor(strength=strength)
    with pytest.raises(EditingError, match="negative conditioning"):
        inpaint(GaussianDenoiser(STD), noise(), torch.ones(1, 1, 8, 8), noise(), None)
    with pytest.raises(EditingError, match="own VAE"):
        inpaint(GaussianDenoiser(STD), noise()[:, :3], torch.ones(1, 1, 8, 8), noise(), None, cfg=1.0)
    with pytest.raises(EditingError, match="outside the image"):
        render(editor(), box=(50, 0, 10, 10))


def test_the_demo_model_paints_the_box_of_a_portrait_of_any_size():
    demo = load_demo_model()
    cond, uncond = (demo.encode_text([words]).detach() for words in ("a person wearing glasses", ""))
    # The whole picture at 128 pixels: the demo model knows whole portraits only.
    framing = Framing(context=float("inf"), working_size=128)
    edit = InpaintEditor(
        demo.denoiser(), demo.encode_image, demo.decode, cond, uncond, InpaintSettings(2.0, 20, 1, framing=framing)
    )
    image = functional.interpolate(demo.images[:1], (150, 180), mode="bilinear")
    result = render(edit, image, (60, 40, 70, 30))
    changed = (result != image).any(1)[0]
    assert changed[40:70, 60:130].float().mean() > 0.9 and int(changed.sum()) == int(changed[40:70, 60:130].sum())
    assert edit.denoiser.evaluations.forward == edit.cost()


class Cancelled(Exception):
    pass


def test_cancelling_ends_the_render():
    def cancel(progress):
        raise Cancelled

    denoiser = GaussianDenoiser(STD)
    with pytest.raises(Cancelled):
        render(editor(denoiser, callback=cancel))
    assert denoiser.evaluations.forward == 2 and torch.is_grad_enabled()

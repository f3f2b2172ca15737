"""Box editing along an inversion: one inversion for all boxes, cost, the mask, ready inversions, refusals."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.pix2pix_zero.guided_edit import cross_attention_guided_edit
from semantic_editing.core.regions.edit_invert import InversionEditor, InversionEditSettings
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.tests.core.regions.test_edit_inpaint import decode, encode, picture
from semantic_editing.tests.core.tiny_models import tiny_conds, tiny_denoiser

BOX = (16, 8, 24, 16)


def editor(denoiser=None, **options):
    source, target, uncond = tiny_conds()
    given = {"uncond": uncond, "cfg": 3.0, "steps": 3, "solver": "ddim", "guidance": 0.3}
    chosen = given | options
    own = {field.name for field in fields(InversionEditSettings)}
    settings = InversionEditSettings(**{name: value for name, value in chosen.items() if name in own})
    others = {name: value for name, value in chosen.items() if name not in own}
    denoiser = denoiser or tiny_denoiser()
    return InversionEditor(denoiser, encode, decode, source, target, settings=settings, **others)


def render(edit, image=None, box=BOX, **options):
    image = picture() if image is None else image
    return edit.render(image, torch.ones(1, *image.shape[-2:]), box, **options)


def test_is_the_guided_edit_with_the_box_as_its_mask():
    """Boxes on the latent grid and no feather: the same pixels as the edit itself, put together by hand."""
    image, denoiser = picture(), tiny_denoiser()
    source, target, uncond = tiny_conds()
    result = render(editor(denoiser, feather=0))
    inversion = invert(denoiser, encode(image), source, 3, "ddim")
    cells = torch.zeros(1, 5, 7)
    cells[:, 1:3, 2:5] = 1
    latent = cross_attention_guided_edit(
        denoiser, inversion, source, target, uncond, cfg=3.0, guidance=0.3, local_fraction=0.0, mask=cells
    )
    expected = image.clone()
    expected[..., 8:24, 16:40] = decode(latent)[..., 8:24, 16:40]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    outside = torch.ones(40, 56, dtype=torch.bool)
    outside[8:24, 16:40] = False
    assert torch.equal(result[..., outside], image[..., outside]) and not torch.equal(result, image)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cfg": 1.0},
        {"guidance": 0.0},
        {"guidance": 0.0, "cfg": 1.0},
    ],
)
def test_cost_is_what_is_spent_beside_the_inversion(options):
    denoiser = tiny_denoiser()
    edit = editor(denoiser, **options)
    render(edit)
    spent = denoiser.evaluations.forward + denoiser.evaluations.backward
    assert spent - edit.shared_evaluations == edit.cost()
    assert edit.shared_evaluations == 3  # plain DDIM: one evaluation a step


def test_one_inversion_for_all_boxes_until_another_picture_comes():
    edit = editor()
    for box in (BOX, (0, 0, 8, 8), (50, 30, 6, 10)):
        render(edit, box=box)
    assert edit.shared_evaluations == 3
    render(edit, 1 - picture())
    render(edit)
    assert edit.shared_evaluations == 9 and len(edit._kept) == 1


def test_a_ready_inversion_is_used():
    denoiser, image = tiny_denoiser(), picture()
    source = tiny_conds()[0]
    given = invert(denoiser, encode(image), source, 3, "ddim")
    edit = editor(denoiser, given=given, steps=50)
    assert (
        edit.settings.steps == 3
        and torch.equal(render(edit), render(editor(denoiser)))
        and edit.shared_evaluations == 0
    )
    with pytest.raises(EditingError, match="own size"):
        render(edit, picture(48, 48))
    with pytest.raises(EditingError, match="another model"):
        editor(tiny_denoiser(seed=1), given=given)
    pair = invert(denoiser, encode(image).repeat(2, 1, 1, 1), source, 2, "ddim")
    with pytest.raises(EditingError, match="2 pictures"):
        editor(denoiser, given=pair)


def test_sides_that_the_latent_grid_does_not_divide_and_tiny_boxes():
    image = torch.rand(1, 3, 37, 51, generator=torch.Generator().manual_seed(1))
    for box in ((50, 36, 1, 1), (9, 9, 3, 2), (0, 0, 51, 37)):
        result = render(editor(), image, box)
        x, y, width, height = box
        changed = (result != image).any(1)[0]
        assert changed[y : y + height, x : x + width].any()
        changed[y : y + height, x : x + width] = False
        assert not changed.any()


def test_identity_and_determinism():
    first = editor()
    assert first.identity == editor().identity and torch.equal(render(first, seed=1), render(editor(), seed=2))
    others = [
        editor(guidance=0.1),
        editor(steps=4),
        editor(solver="auto"),
        editor(label="vae"),
        editor(tiny_denoiser(seed=1)),
    ]
    assert len({first.identity, *(other.identity for other in others)}) == 6


def test_bad_settings_are_refused():
    with pytest.raises(EditingError, match="steps is 0"):
        editor(steps=0)
    with pytest.raises(EditingError, match="guidance is -1"):
        render(editor(guidance=-1.0))
    with pytest.raises(EditingError, match="box is empty"):
        render(editor(), box=(5, 5, 0, 5))


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"working_size": 48}])
def test_the_change_is_what_the_target_text_pulls_at_along_the_inversion_seen_through_the_decoder(options):
    edit = editor(**options)
    change = edit.change(picture())
    steps = options.get("steps", 3)
    levels = [steps, *([1] if steps == 3 else [])]  # every second one
    assert edit.denoiser.evaluations.forward == edit.shared_evaluations == steps + 2 * len(levels)
    assert edit.located == 2 * len(levels) and bool((change >= 0).all()) and float(change.max()) > 0
    if "working_size" not in options:
        latent = encode(picture())
        trajectory = invert(edit.denoiser, latent, edit.source_cond, steps, edit.settings.solver)
        seen = []
        for level in levels:
            x, sigma = trajectory.latents[level], float(trajectory.sigmas[level])
            pull = edit.denoiser(x, sigma, edit.target_cond) - edit.denoiser(x, sigma, edit.source_cond)
            seen.append((decode(latent + pull) - decode(latent)).abs().mean(1)[0])
        torch.testing.assert_close(change, sum(seen) / len(seen), rtol=1e-4, atol=1e-6)


def test_looking_where_the_edit_acts_shares_the_inversion_with_renders_and_counts_with_it():
    edit = editor()
    edit.change(picture())
    looked = edit.shared_evaluations
    render(edit)
    spent = edit.denoiser.evaluations.forward + edit.denoiser.evaluations.backward
    assert edit.shared_evaluations == looked and spent == looked + edit.cost()


def test_no_text_pulls_anywhere_where_both_say_the_same():
    edit, different = editor(), editor().change(picture())
    edit.target_cond = edit.source_cond
    assert float(edit.change(picture()).max()) < 1e-4 * float(
        different.max()
    )  # rows of one batch may round differently

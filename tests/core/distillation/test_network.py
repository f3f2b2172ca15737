"""The network of a distilled edit: what it leaves alone, sizes, batches, and pictures of another size."""

import pytest
import torch
from torch.nn import functional

from semantic_editing.core.distillation.network import (
    SHAPES,
    TOLERANCE,
    DistilledEditor,
    EditorShape,
    gate,
    weight_bytes,
)
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.distillation.tiny_edit import TINY, seeded


def editor_of(seed=0, shape=TINY):
    """A network whose last layer is random, so that it changes something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        editor = DistilledEditor(shape).eval().requires_grad_(False)
        torch.nn.init.normal_(editor.unet.conv_out.weight, std=0.05)
    return editor


def pictures(*size):
    return torch.rand(*size, generator=seeded(1))


def test_the_mask_reaches_0_and_1_and_is_a_stretched_sigmoid_between():
    logits = torch.linspace(-6, 6, 49, dtype=torch.float64)
    by_hand = [min(max(1.2 / (1 + 2.718281828459045 ** -float(x)) - 0.1, 0.0), 1.0) for x in logits]
    torch.testing.assert_close(gate(logits), torch.tensor(by_hand, dtype=torch.float64))
    assert float(gate(logits).min()) == 0 and float(gate(logits).max()) == 1


def test_a_new_network_changes_nothing_and_strength_0_neither():
    images = pictures(2, 3, 32, 40)
    assert torch.equal(DistilledEditor(TINY).eval()(images), images)
    assert torch.equal(editor_of()(images, strength=0.0), images)
    assert not torch.equal(editor_of()(images), images)


def test_the_edit_is_the_picture_plus_mask_times_change():
    editor, images = editor_of(), pictures(1, 3, 32, 32)
    change, logits = editor.look(images)
    for strength in (0.5, 1.0, 2.0):
        expected = (images + strength * gate(logits) * change).clamp(0, 1)
        torch.testing.assert_close(editor(images, strength), expected)


def test_where_the_mask_is_0_the_picture_stays_to_the_bit():
    editor, images = editor_of(), pictures(1, 3, 32, 32)
    with torch.no_grad():
        editor.unet.conv_out.bias[3 * TINY.fold**2 :] = -100.0  # the mask's channels
    assert torch.equal(editor(images), images)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 9), (1, 1)])
def test_any_size_is_padded_and_cut(size):
    editor, images = editor_of(), pictures(2, 3, *size)
    made = editor(images)
    assert made.shape == images.shape and 0 <= float(made.min()) <= float(made.max()) <= 1
    bottom, right = (-side % TINY.multiple for side in size)
    padded = functional.pad(images, (0, right, 0, bottom), mode="replicate")
    torch.testing.assert_close(made, editor(padded)[..., : size[0], : size[1]])


def test_a_batch_is_its_pictures_one_by_one():
    editor, images = editor_of(), pictures(3, 3, 24, 24)
    singly = torch.cat([editor(picture[None]) for picture in images])
    torch.testing.assert_close(editor(images), singly, rtol=1e-4, atol=1e-5)


def test_pictures_of_quite_another_size_are_looked_at_at_the_learned_one():
    editor, images = editor_of(), pictures(1, 3, 64, 96)
    editor.side = 16
    seen = functional.interpolate(images, (16, 24), mode="bicubic", antialias=True).clamp(0, 1)
    change, logits = editor.look(seen)
    moved = functional.interpolate(change * gate(logits), (64, 96), mode="bicubic")
    torch.testing.assert_close(editor(images), (images + moved).clamp(0, 1))
    assert not torch.allclose(editor(images, fit=False), editor(images))
    near = pictures(1, 3, int(16 * TOLERANCE), 40)
    assert torch.equal(editor(near, fit=False), editor(near)), "sizes near the learned one are not resampled"


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_named_networks_compute(name):
    shape = SHAPES[name]
    with torch.device("meta"):
        editor = DistilledEditor(shape)
    assert editor.unet.config.block_out_channels == shape.widths
    if name == "small":
        assert weight_bytes(shape) == sum(value.nbytes for value in DistilledEditor(shape).state_dict().values())
        made = DistilledEditor(shape)(pictures(1, 3, shape.multiple, shape.multiple))
        assert made.shape == (1, 3, shape.multiple, shape.multiple)


def test_what_is_refused():
    for widths, fold, blocks in (((), 2, 1), ((12,), 2, 1), ((8,), 0, 1), ((8,), 2, 0)):
        with pytest.raises(EditingError):
            EditorShape(fold, widths, blocks)
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(EditingError, match="give"):
            editor_of()(wrong)
    with pytest.raises(EditingError):
        editor_of()(torch.full((1, 3, 8, 8), torch.nan))

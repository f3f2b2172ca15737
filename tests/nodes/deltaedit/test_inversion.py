"""Invert to Style Code and Paste Face Back under the stand-in host: choices, what is kept, and refusals."""

import pytest
import torch

from semantic_editing.tests.refusals import refusal
from semantic_editing.tools import host_stand_in

PACK = host_stand_in.load_pack()
ROOM = host_stand_in.module("nodes.deltaedit.inversion")
EditingError = host_stand_in.module("core.errors").EditingError
alignment = host_stand_in.module("core.deltaedit.alignment")
Encoder = host_stand_in.module("core.deltaedit.encoder").CompactEncoder
Generator = host_stand_in.module("core.deltaedit.stylegan2").StyleGAN2
save_encoder = host_stand_in.module("core.deltaedit.encoder_files").save_encoder


def paste(photo, crop, before, after, feather=0.1):
    return ROOM.PasteFaceBack.execute(photo, crop, before, after, feather).args


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_person_meets_few_widgets():
    for node in ROOM.NODES:
        plain = [slot for slot in node.define_schema().inputs if not slot.options.get("advanced")]
        assert len(plain) <= 8


def test_paste_takes_and_gives_images():
    photo, face = random(1, 12, 16, 4), random(1, 8, 8, 3, seed=1)
    crop = alignment.FaceCrop((alignment.Place(8, 6, 8),), 12, 16)
    image, mask = paste(photo, crop, face, face)
    assert torch.equal(image, photo[..., :3]) and mask.shape == (1, 12, 16)
    after = random(2, 8, 8, 3, seed=2)
    image, mask = paste(photo, crop, face, after, 0.0)
    assert image.shape == (2, 12, 16, 3) and torch.equal(mask[0, 2:10, 4:12], torch.ones(8, 8)) and mask[0].sum() == 64
    expected = (photo[0, 2:10, 4:12, :3] + after[1] - face[0]).clamp(0, 1)
    torch.testing.assert_close(image[1, 2:10, 4:12], expected)
    grey = paste(photo[..., :1], crop, face, face)[0]
    assert grey.shape == (1, 12, 16, 3) and torch.equal(grey[..., 2], photo[..., 0])
    assert "wire the photo that" in refusal(paste, photo[:, :10], crop, face, face)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The person's encoders, and the networks where they are."""
    monkeypatch.setattr(ROOM, "resolve_file", lambda kind, name: tmp_path / name)
    monkeypatch.setattr(
        host_stand_in.module("nodes.common.reports"), "resolve_file", lambda kind, name: tmp_path / name
    )
    monkeypatch.setattr(ROOM.Managed, "make", staticmethod(lambda make: make()))
    ROOM._KEPT.clear()
    yield tmp_path
    ROOM._KEPT.clear()


def test_the_encoder_is_kept_until_its_file_or_the_generator_changes(folder):
    generator = Generator(8, {4: 8, 8: 8}, 8, 1)
    path = save_encoder(folder / "a.safetensors", Encoder(4, 8, 16, (8, 8), 12))
    first = ROOM.encoder_named("a.safetensors", generator)
    assert ROOM.encoder_named("a.safetensors", generator) is first
    before = ROOM.InvertToStyleCode.fingerprint_inputs("a.safetensors", refine_steps=3)
    save_encoder(path, Encoder(4, 8, 16, (8, 16), 12), overwrite=True)
    assert ROOM.InvertToStyleCode.fingerprint_inputs("a.safetensors") != before
    assert ROOM.encoder_named("a.safetensors", generator).widths == (8, 16)
    assert len(ROOM._KEPT) == 1
    other = Generator(16, {4: 8, 8: 8, 16: 8}, 8, 1)
    assert "for 8 pixels, and the generator wants 6 rows of 8, for 16" in refusal(
        ROOM.encoder_named, "a.safetensors", other
    )


def test_landmarks_that_nobody_reads_are_named():
    assert "not used: alignment is centre" in ROOM.unused("centre", "1 2")
    assert ROOM.unused("auto", "1 2") == ROOM.unused("none", " \n") == ""

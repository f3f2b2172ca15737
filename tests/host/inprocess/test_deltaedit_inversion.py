"""From a photo to a style code and back inside the host: gradients under inference mode, Cancel, eviction."""

import comfy.model_management as mm
import folder_paths
import pytest
import torch

SIZE, WIDTHS = 16, {4: 8, 8: 8, 16: 8}
WIDGETS = {"alignment": "centre", "refine_steps": 4, "passes": 2, "prior": 0.01, "landmarks": ""}


@pytest.fixture
def room(pack):
    return pack("nodes.deltaedit.inversion")


@pytest.fixture
def stylegan2(pack):
    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = pack("core.deltaedit.stylegan2").StyleGAN2(SIZE, WIDTHS, 8, 2)
        made.identity = "tiny"
        return made

    with torch.inference_mode():
        return pack("nodes.deltaedit.sockets").Managed.make(make)


@pytest.fixture
def encoder_file(pack, room, tmp_path, monkeypatch):
    """A random encoder in models/style_encoders."""
    files, network = pack("core.deltaedit.encoder_files"), pack("core.deltaedit.encoder").CompactEncoder
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = network(6, 8, 16, (8, 8), 12).eval()
    files.save_encoder(tmp_path / "a.safetensors", made)
    paths = dict(folder_paths.folder_names_and_paths) | {"style_encoders": ([str(tmp_path)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    room._KEPT.clear()
    yield "a.safetensors"
    room._KEPT.clear()


def photos(count=2):
    return torch.rand(count, 20, 28, 3, generator=torch.Generator().manual_seed(2))


def test_invert_edit_and_paste(pack, room, stylegan2, encoder_file):
    given = photos()
    with torch.inference_mode():
        results = room.InvertToStyleCode.execute(given.clone(), stylegan2, encoder_file, **WIDGETS).result
        code, rebuilt, aligned, crop, report = results
        assert torch.is_inference_mode_enabled()
        generator = stylegan2.loaded()
        expected = (generator.synthesize(code) + 1) / 2
        torch.testing.assert_close(rebuilt, expected.clamp(0, 1).movedim(1, -1), rtol=0, atol=1e-5)
        assert rebuilt.shape == aligned.shape == (2, SIZE, SIZE, 3) and code.generator == "tiny"
        first, *lines = report.splitlines()
        assert (
            first.startswith("The generator draws 2 face(s)")
            and len(lines) == 2
            and lines[1].startswith("photo 2: the middle square of 20 pixels, not aligned; rebuilt at ")
        )
        assert "after 4 steps of refinement" in lines[0]
        image, mask = room.PasteFaceBack.execute(given, crop, rebuilt, rebuilt, 0.1).result
        assert torch.equal(image, given) and mask.shape == (2, 20, 28)
        image, _ = room.PasteFaceBack.execute(given, crop, rebuilt, 1 - rebuilt, 0.1).result
        assert torch.equal(image[:, :, :4], given[:, :, :4]) and not torch.equal(image, given)  # beside the square
    assert not code.convs.requires_grad and not any(p.requires_grad for p in generator.parameters())
    plain = pack("core.deltaedit.invert").invert(
        generator, room._KEPT[next(iter(room._KEPT))].network, aligned.clone().movedim(-1, 1), passes=2, steps=4
    )
    torch.testing.assert_close(code.convs, plain.convs, rtol=0, atol=1e-4)


def test_the_host_may_evict_both_networks(room, stylegan2, encoder_file):
    with torch.inference_mode():
        first = room.InvertToStyleCode.execute(photos(1), stylegan2, encoder_file, **WIDGETS).result[1]
        mm.unload_all_models()
        again = room.InvertToStyleCode.execute(photos(1), stylegan2, encoder_file, **WIDGETS).result[1]
        assert torch.equal(first, again)
        kept = room.encoder_named(encoder_file, stylegan2.network)
        loaded = [known.model for known in mm.current_loaded_models]
        assert kept.patcher in loaded and stylegan2.patcher in loaded


def test_cancel_ends_it(room, stylegan2, encoder_file):
    mm.interrupt_current_processing(True)
    with torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        room.InvertToStyleCode.execute(photos(1), stylegan2, encoder_file, **WIDGETS)
    mm.interrupt_current_processing(False)


def test_what_a_person_may_get_wrong(room, stylegan2, encoder_file):
    def refused(**changed):
        values = {"encoder_file": encoder_file, "image": photos(1), **WIDGETS, **changed}
        with torch.inference_mode(), pytest.raises(ValueError) as caught:
            room.InvertToStyleCode.execute(stylegan2=stylegan2, **values)
        sentence = str(caught.value)
        assert sentence.endswith(".") and "\n" not in sentence
        return sentence

    assert "models/style_encoders folder" in refused(encoder_file="../a.safetensors")
    assert "use one of: auto" in refused(alignment="x")
    assert "not a number" in refused(image=photos(1) * float("nan"))
    line = "8 8 16 8 12 12 9 15 15 15"
    with torch.inference_mode():
        result = room.InvertToStyleCode.execute(
            photos(1), stylegan2, encoder_file, **WIDGETS | {"alignment": "auto", "landmarks": line, "refine_steps": 0}
        ).result
        assert "5 given landmarks" in result[4]
        result = room.InvertToStyleCode.execute(
            photos(1), stylegan2, encoder_file, **WIDGETS | {"landmarks": line, "refine_steps": 0}
        ).result
        assert "not used" in result[4]

"""The style diffusion nodes inside the host: under inference mode, evictable, trained with gradients, stopped by
Cancel."""

from types import SimpleNamespace

import comfy.model_management as mm
import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import pytest
import torch
from conftest import on_settings
from PIL import Image


@pytest.fixture
def world(pack, tmp_path, monkeypatch):
    """Small networks, pictures and the host's folders below ``tmp_path``."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    for kind in ("style_diffusion", "style_diffusion_trainings"):
        folder_paths.folder_names_and_paths.pop(kind, None)
        folder_paths.filename_list_cache.pop(kind, None)
        (tmp_path / "models" / kind).mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    (tmp_path / "input" / "faces").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 100, 50)).save(tmp_path / "input" / "faces" / f"{number}.png")
    unet, codes, training = (
        pack(f"core.deltaedit.{name}") for name in ("style_unet", "style_code", "style_diffusion_training")
    )
    shape = unet.UNetShape(
        size=8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.1, embedding=8, coarse=4, medium=8
    )
    layout = codes.StyleLayout(((4, 3), (16, 4), (64, 2)), ((4, 3),))
    convs = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    trainer = pack("nodes.deltaedit.diffusion_trainer")
    monkeypatch.setitem(trainer.PRESETS, trainer.SMALL, (shape, training.DiffusionSettings(rise=2)))
    latents = SimpleNamespace(
        names=tuple(f"{number}.png" for number in range(6)),
        layout=layout,
        origin=SimpleNamespace(generator="tiny", truncation=0.7),
        styles=lambda rows: convs[rows],
    )
    code = codes.StyleCode(layout, convs[:1], torch.ones(1, 3), "tiny")
    return SimpleNamespace(
        nodes=pack("nodes.deltaedit.diffusion"), trainer=trainer, latents=latents, code=code, folder=tmp_path
    )


def train(world, steps, **changed):
    given = {
        "folder": "faces", "filename": "a", "overwrite": False, "preset": world.trainer.SMALL, "steps": steps,
        "batch_size": 2, "resume": True, "seed": 0, "minutes": 0.0, "learning_rate": 0.0, "check_every": 2,
    }  # fmt: skip
    given = on_settings(world.trainer.TrainingChoices, given | changed)
    with torch.inference_mode():
        return world.trainer.StyleDiffusionTrainer.execute(world.latents, **given).args


def test_a_network_trained_inside_a_prompt_is_loaded_encodes_decodes_and_can_be_evicted(world):
    trained, plot, report, file = train(world, 4)
    assert file == "a.safetensors" and "4 steps on 5 pictures" in report and plot.shape[0] == 1
    with torch.inference_mode():
        managed, _ = world.nodes.StyleDiffusionLoader.execute("a.safetensors").args
        picture = torch.full((1, 8, 8, 3), 0.4)
        noise, _ = world.nodes.StyleDiffusionEncode.execute(managed, picture, world.code, 20, True).args
        mm.unload_all_models()
        images, _ = world.nodes.StyleDiffusionDecode.execute(managed, world.code, 0, 0, 6, noise).args
    torch.testing.assert_close(images, picture, rtol=0, atol=0.02)
    assert images.device.type == noise.noise.device.type == "cpu"
    kept = dict(trained.network.named_parameters())
    for name, value in managed.loaded().named_parameters():
        torch.testing.assert_close(value.cpu(), kept[name].half().float(), rtol=0, atol=0)
    assert world.nodes.StyleDiffusionLoader.fingerprint_inputs("a.safetensors") != "a.safetensors"


def test_cancel_keeps_what_was_learned_and_the_next_run_goes_on(world, monkeypatch):
    bar, shown = world.trainer.StoppableBar, []
    original = bar.show

    def press(self, done, total, picture=None, text=""):
        shown.append(done)
        if shown == [1, 2, 3]:
            mm.interrupt_current_processing(True)
        original(self, done, total, picture, text)

    monkeypatch.setattr(bar, "show", press)
    with pytest.raises(mm.InterruptProcessingException):
        train(world, 6)
    mm.interrupt_current_processing(False)
    assert {path.parent.name for path in world.folder.rglob("a.safetensors")} == {
        "style_diffusion",
        "style_diffusion_trainings",
    }
    assert "6 steps" in train(world, 6)[2] and shown == [1, 2, 3, 4, 5, 6]


def test_decoding_shows_the_picture_as_it_comes(world, monkeypatch):
    """Once a step, also where the host's default is no previews; the last is what comes out."""
    shown = []

    class Bar(comfy.utils.ProgressBar):
        def update_absolute(self, value, total=None, preview=None):
            shown.append((value, preview))

    with torch.inference_mode():
        train(world, 2)
        managed, _ = world.nodes.StyleDiffusionLoader.execute("a.safetensors").args
        monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
        monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.NoPreviews)
        images, _ = world.nodes.StyleDiffusionDecode.execute(managed, world.code, 5, 0, 6).args
    assert [value for value, preview in shown if preview is not None] == [1, 2, 3, 4, 5]
    form, last, side = shown[-1][1]
    assert form == "JPEG" and side >= 512
    np.testing.assert_allclose(np.array(last) / 255, images[0].numpy(), atol=1 / 255)


def test_cancel_ends_encoding_and_decoding_at_once(world):
    with torch.inference_mode():
        train(world, 2)
        managed, _ = world.nodes.StyleDiffusionLoader.execute("a.safetensors").args
        for run in (
            lambda: world.nodes.StyleDiffusionEncode.execute(managed, torch.zeros(1, 8, 8, 3), world.code, 20, False),
            lambda: world.nodes.StyleDiffusionDecode.execute(managed, world.code, 20, 0, 6),
        ):
            mm.interrupt_current_processing(True)
            with pytest.raises(mm.InterruptProcessingException):
                run()
            mm.interrupt_current_processing(False)

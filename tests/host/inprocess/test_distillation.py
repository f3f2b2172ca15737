"""Distil Edit Trainer and Distilled Edit in the host: under its inference mode, with its Cancel, folders and files."""

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from conftest import on_settings
from PIL import Image

WIDGETS = {
    "filename": "green_to_red", "overwrite": False, "source_text": "", "target_text": "", "steps": 4, "batch_size": 2,
    "seed": 0, "resume": False, "network": "tiny", "before_folder": "", "after_folder": "", "image_size": 32,
    "clip_gain": 0.0, "overlap": 0.0, "keep_outside": True, "flip": True, "augmentation": 1.0, "learning_rate": 0.002,
    "check_every": 2,
}  # fmt: skip
SIDE = 32


@pytest.fixture
def nodes(pack, tmp_path, monkeypatch):
    """(trainer, edit) over the host's folders, which lie in a temporary one."""
    trainer, edit = pack("nodes.distillation.trainer"), pack("nodes.distillation.edit")
    monkeypatch.setitem(
        pack("nodes.distillation.trainer_settings").SHAPES,
        "tiny",
        pack("core.distillation.network").EditorShape(2, (8, 8), 1),
    )
    for kind in ("distilled_edits", "distillation_trainings"):
        (tmp_path / kind).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"}))
        folder_paths.filename_list_cache.pop(kind, None)
    pack("nodes.host.folders").register_folders()
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda *_: str(tmp_path))
    return trainer, edit


def pairs(count=6):
    """IMAGEs of a green square on grey, and of the same square red."""
    before = torch.full((count, SIDE, SIDE, 3), 0.4)
    after = before.clone()
    for number in range(count):
        rows = slice(4 + 2 * number, 16 + 2 * number)
        before[number, rows, 8:20] = torch.tensor([0.1, 0.8, 0.1])
        after[number, rows, 8:20] = torch.tensor([0.8, 0.1, 0.1])
    return before, after


def train(trainer, before, after, **options):
    given = on_settings(trainer.TrainingChoices, WIDGETS | options)
    with torch.inference_mode():
        return trainer.DistilEditTrainer.execute(before=before, after=after, **given).args


def test_trained_saved_listed_and_used(nodes):
    trainer, edit = nodes
    before, after = pairs()
    made, samples, plot, report = train(trainer, before, after)
    assert "Saved green_to_red.safetensors" in report and samples.ndim == plot.ndim == 4
    assert not samples.is_inference() or samples.device.type == "cpu"
    options = edit.DistilledEdit.define_schema().inputs
    (files,) = [slot for slot in options if slot.id == "edit_file"]
    assert "green_to_red.safetensors" in files.options
    with torch.inference_mode():
        by_wire = edit.DistilledEdit.execute(before, "none", 1.0, True, distilled_edit=made).args[0]
        by_file = edit.DistilledEdit.execute(before, "green_to_red.safetensors", 1.0, True).args[0]
        nothing = edit.DistilledEdit.execute(before, "green_to_red.safetensors", 0.0, True).args[0]
    assert torch.equal(by_wire, by_file) and torch.equal(nothing, before)
    assert by_wire.device.type == "cpu" and by_wire.dtype == torch.float32


def test_cancel_keeps_the_edit_and_ends_the_run(nodes, tmp_path, monkeypatch):
    trainer, _ = nodes
    before, after = pairs()
    whole = train(trainer, before, after, filename="whole")[0].network.state_dict()
    advance = trainer.DistillationTrainer.advance

    def pressing(self):
        advance(self)
        if self.step == 2:
            mm.interrupt_current_processing()

    with monkeypatch.context() as patched:
        patched.setattr(trainer.DistillationTrainer, "advance", pressing)
        with pytest.raises(mm.InterruptProcessingException):
            train(trainer, before, after)
    assert (tmp_path / "distilled_edits" / "green_to_red.safetensors").exists()
    assert (tmp_path / "distillation_trainings" / "green_to_red.safetensors").exists()
    resumed = train(trainer, before, after, resume=True)[0].network.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_pairs_of_the_input_folder(nodes, tmp_path):
    trainer, _ = nodes
    before, after = pairs()
    for folder, part in (("a", before), ("b", after)):
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(part):
            pixels = (picture * 255).round().byte().numpy()
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    by_folders = train(trainer, None, None, before_folder="a", after_folder="b")[0].network.state_dict()
    rounded = [(part * 255).round() / 255 for part in (before, after)]
    by_wires = train(trainer, *rounded, filename="wired")[0].network.state_dict()
    assert all(torch.equal(by_wires[name], value) for name, value in by_folders.items())


def test_the_bundled_edit_puts_something_on_a_face_and_leaves_the_rest(nodes, pack):
    _, edit = nodes
    photo = pack("nodes.demo.load").demo_pictures("glasses: none to glasses", 5)[0]
    with torch.inference_mode():
        edited, report = edit.DistilledEdit.execute(photo, "demo: glasses", 1.0, True).args
    changed = (edited - photo).abs().amax(-1)[0]
    middle = changed[len(changed) // 4 : 3 * len(changed) // 4]
    assert float(middle.sum()) > 0.8 * float(changed.sum()) > 0, "it happens in the face"
    assert float((changed == 0).float().mean()) > 0.3, "and much of the photo is the photo's own to the bit"
    assert "without glasses to " in report and "wearing glasses" in report

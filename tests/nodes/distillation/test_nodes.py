"""Distil Edit Trainer and Distilled Edit under the stand-in host: what they keep, tell and refuse."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from semantic_editing.tests.nodes.stand_ins import Cancelled, Held, on_settings, same, stand_in
from semantic_editing.tests.refusals import refusal
from semantic_editing.tools import host_stand_in

TRAINER, SETTINGS, EDIT, TRAINING = (
    host_stand_in.module(f"nodes.{name}")
    for name in ("distillation.trainer", "distillation.trainer_settings", "distillation.edit", "common.training")
)
network = host_stand_in.module("core.distillation.network")
files = host_stand_in.module("core.distillation.files")
save_picture = host_stand_in.module("core.images.files").save_picture
to_picture = host_stand_in.module("core.images.contact_sheet").to_picture
tiny = importlib.import_module("semantic_editing.tests.core.distillation.tiny_edit")
PAIRS = tiny.green_to_red(12)
BEFORE, AFTER = ((part.float() / 255).movedim(1, -1) for part in (PAIRS.before, PAIRS.after))
WIDGETS = {
    "filename": "mine", "overwrite": False, "source_text": "green", "target_text": "red", "steps": 6, "batch_size": 2,
    "seed": 0, "resume": False, "network": "tiny", "before_folder": "", "after_folder": "", "image_size": 32,
    "clip_gain": 0.0, "overlap": 0.0, "keep_outside": True, "flip": True, "augmentation": 1.0, "learning_rate": 0.002,
    "check_every": 2,
}  # fmt: skip


class Colours:
    """A CLIP that sees a picture's mean colour."""

    identity = "colours"

    def image_features(self, images, preprocessing="own"):
        return torch.nn.functional.normalize(images.double().mean((2, 3)), dim=1)

    def text_features(self, texts):
        words = {"green": (0.0, 1.0, 0.0), "red": (1.0, 0.0, 0.0)}
        return torch.tensor([words[text] for text in texts], dtype=torch.float64)


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The host's folders and functions, over a temporary folder; ``host.bar.press_at`` presses Cancel."""
    monkeypatch.setitem(SETTINGS.SHAPES, "tiny", network.EditorShape(2, (8, 8), 1))
    bar = stand_in(monkeypatch, tmp_path, TRAINER, TRAINING, EDIT)
    monkeypatch.setattr(EDIT, "file_fingerprint", lambda kind, name: str((tmp_path / kind / name).stat().st_mtime_ns))
    return SimpleNamespace(bar=bar, path=tmp_path)


def train(before=BEFORE, after=AFTER, **options):
    given = on_settings(SETTINGS.TrainingChoices, WIDGETS | options)
    with torch.inference_mode():
        made, *others = TRAINER.DistilEditTrainer.execute(before=before, after=after, **given).args
    return made.network, *others


def edit(image, made, strength=1.0, edit_file="none"):
    wires = {} if made is None else {"distilled_edit": Held(made)}
    with torch.inference_mode():
        return EDIT.DistilledEdit.execute(image, edit_file, strength, True, **wires).args


def test_a_trained_edit_is_saved_told_and_edits(host):
    made, samples, plot, report = train(clip_scorer=Colours())
    saved = files.load_editor(host.path / "distilled_edits" / "mine.safetensors")
    assert same(made, saved) and (saved.source, saved.target) == ("green", "red")
    for part in ("Saved mine.safetensors", "12 of 12 pairs are learned from", "CLIP: nearer", "nothing done: "):
        assert part in report
    assert samples.shape == (1, 3 * 32, 32, 3) and plot.ndim == 4  # one pair of twelve is held out
    by_wire, told = edit(BEFORE, made)
    by_file, _ = edit(BEFORE, None, edit_file="mine.safetensors")
    assert torch.equal(by_wire, by_file) and by_wire.shape == BEFORE.shape
    assert "12 image(s)" in told and "green to red" in told
    assert torch.equal(edit(BEFORE, made, strength=0.0)[0], BEFORE)
    assert "choose an edit_file" in refusal(edit, BEFORE, None)


def test_pictures_of_odd_sizes_transparent_or_grey_are_edited(host):
    made = train()[0]
    image = torch.rand(1, 21, 35, 4)
    assert torch.equal(edit(image, made)[0], edit(image[..., :3], made)[0])
    assert edit(image[..., :1], made)[0].shape == (1, 21, 35, 3)


def test_the_same_from_folders(host):
    for folder, part in (("a", BEFORE), ("b", AFTER)):
        (host.path / folder).mkdir()
        for number, picture in enumerate(part):
            save_picture(host.path / folder / f"{folder}{number:02d}.png", to_picture(picture.movedim(-1, 0)))
    by_folders = train(None, None, before_folder="a", after_folder="b")[0]
    assert same(by_folders, train(filename="wired")[0])
    assert "empty the folders" in refusal(train, before_folder="a", filename="c")


def test_a_stopped_training_goes_on_to_the_same_edit(host, monkeypatch):
    monkeypatch.setattr(TRAINING, "SHOW_EVERY", 1)
    whole = train(filename="whole")[0]
    host.bar.press_at = 3
    with pytest.raises(Cancelled):
        train()
    assert (host.path / "distilled_edits" / "mine.safetensors").exists(), "the best so far is kept"
    assert (host.path / "distillation_trainings" / "mine.safetensors").exists()
    assert "exists already" in refusal(train)
    assert "another value of seed" in refusal(train, resume=True, seed=1, overwrite=True)
    assert same(train(resume=True)[0], whole)
    files.save_editor(
        host.path / "distilled_edits" / "mine.safetensors", train(filename="b", seed=7)[0], overwrite=True
    )
    assert "not from the training" in refusal(train, resume=True)


def test_a_full_disk_loses_no_edit(host, disk):
    disk |= {"distilled_edits", "distillation_trainings"}
    made, _, _, report = train()
    assert "It is kept as mine.safetensors in the output folder" in report
    assert "The progress to go on from could not be saved" in report and str(host.path) not in report
    assert same(files.load_editor(host.path / "output" / "mine.safetensors"), made)
    host.bar.press_at = 4
    assert "It is kept as mine_2.safetensors" in train()[-1]  # Cancel is not obeyed: it would lose this


def test_what_is_refused_before_training(host):
    assert "wire before and after" in refusal(train, None, None)
    assert "Wire both" in refusal(train, BEFORE, None)
    assert "12 pictures before and 11 after" in refusal(train, BEFORE, AFTER[1:])
    assert "no network 'huge'" in refusal(train, network="huge")
    assert "only 2 pairs" in refusal(train, BEFORE[:2], AFTER[:2])
    assert "no target text" in refusal(train, target_text="", clip_scorer=Colours())
    assert "Not one of the 12 pairs" in refusal(train, AFTER, BEFORE, clip_scorer=Colours())
    assert not list((host.path / "distilled_edits").iterdir())

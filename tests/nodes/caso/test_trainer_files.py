"""What CASO Embedding Trainer may replace: with overwrite off nothing that another training or a person made."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from semantic_editing.tools import host_stand_in

host_stand_in.load_pack()
FILES = host_stand_in.module("nodes.caso.trainer_files")
EditingError = host_stand_in.module("core.errors").EditingError
SemanticEmbedding = host_stand_in.module("core.caso.embedding").SemanticEmbedding
TrainingSettings = host_stand_in.module("core.caso.settings").TrainingSettings
SETTINGS = TrainingSettings("eyes", ("glasses",), steps=4)
NAMES = ["mine.safetensors", "mine.preview.png", "mine.training.png", "state"]


class Classifier:
    fingerprint = "abc"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Embeddings and pictures here, states below."""

    def output_path(kind, name, ending=".safetensors"):
        return (tmp_path if kind == FILES.FOLDER else tmp_path / "states") / f"{name.removesuffix(ending)}{ending}"

    monkeypatch.setattr(FILES, "output_path", output_path)
    (tmp_path / "states").mkdir()
    return tmp_path


def files_of(targets=("glasses",), name="mine"):
    return FILES.TrainingFiles.named(name, targets)


def path_of(folder, name):
    return folder / "states" / "mine.safetensors" if name == "state" else folder / name


def embedding(settings=SETTINGS, classifier="abc", level=0.5):
    facts = {"settings": settings.stored(), "classifier": classifier}
    return SemanticEmbedding({"clip_l": torch.full((1, 8), level)}, "", "eyes", "glasses", "caso", facts)


def grey(level=0.5):
    return torch.full((8, 8, 3), level)


def claim(files, overwrite=False, resumed=False):
    files.claim(overwrite, files.ownership(SETTINGS, Classifier) if resumed else None)
    return files


def refusal(*args, **kwargs):
    with pytest.raises(EditingError) as caught:
        claim(*args, **kwargs)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def finish(folder):
    """The files of a finished training."""
    files = claim(files_of())
    saved = files.save([embedding()], {files.plot: grey(), files.samples: grey()})
    assert [part.line for part in saved] == ["Saved mine.safetensors."]
    files.state.write_bytes(b"progress")
    return files


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resume", [False, True])
def test_overwrite_off_protects_every_file(folder, name, resume):
    """Without a state there is nothing to resume, so that resume protects as much."""
    path_of(folder, name).write_bytes(b"precious")
    said = refusal(files_of())
    assert ("progress of another training" if name == "state" else f"{name} exists already") in said
    assert path_of(folder, name).read_bytes() == b"precious"
    assert claim(files_of(), overwrite=True).replaceable >= {path_of(folder, name)}


def test_nothing_there_nothing_to_replace(folder):
    assert claim(files_of()).replaceable == set() and os.listdir(folder) == ["states"]


def test_a_resumed_training_replaces_its_own_files(folder):
    files = finish(folder)
    resumed = claim(files_of(), resumed=True)
    assert resumed.replaceable == {*files.embeddings, files.samples, files.plot, files.state}
    saved = resumed.save([embedding(level=0.75)], {files.plot: grey(1), files.samples: grey(1)})
    assert [part.file for part in saved] == ["mine.safetensors"]
    assert float(SemanticEmbedding.load(files.embeddings[0]).vectors["clip_l"][0, 0]) == 0.75
    assert Image.open(files.plot).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", NAMES[1:3])
def test_a_resumed_training_leaves_a_person_s_picture(folder, name):
    finish(folder)
    Image.new("RGB", (4, 4)).save(folder / name)
    before = (folder / name).read_bytes()
    assert f"{name} exists already and is not from the training" in refusal(files_of(), resumed=True)
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        lambda path: embedding(TrainingSettings("eyes", ("glasses",), steps=4, seed=9)).save(path, overwrite=True),
        lambda path: embedding(classifier="another").save(path, overwrite=True),
        lambda path: path.write_bytes(b"no embedding"),
    ],
    ids=["other settings", "another classifier", "no embedding"],
)
def test_a_resumed_training_leaves_another_s_embedding(folder, other):
    finish(folder)
    other(folder / "mine.safetensors")
    before = (folder / "mine.safetensors").read_bytes()
    assert "is not made with these settings" in refusal(files_of(), resumed=True)
    assert (folder / "mine.safetensors").read_bytes() == before


def test_a_longer_training_is_the_same(folder):
    finish(folder)
    files = files_of()
    files.claim(False, files.ownership(TrainingSettings("eyes", ("glasses",), steps=400, check_every=9), Classifier))
    assert len(files.replaceable) == 4


def test_a_file_that_appears_meanwhile_is_kept(folder, monkeypatch):
    monkeypatch.setattr(
        host_stand_in.module("nodes.common.saving"), "rescue_folders", lambda: [("output", folder / "output")]
    )
    files = claim(files_of())
    for path in (*files.embeddings, files.plot):
        path.write_bytes(b"precious")
    first, picture = files.save([embedding()], {files.plot: grey(), files.samples: grey()})
    assert first.file == "" and "kept as mine.safetensors in output" in first.line
    assert picture.line.startswith("mine.training.png exists already") and "this node's output" in picture.line
    assert all(path.read_bytes() == b"precious" for path in (*files.embeddings, files.plot))
    assert SemanticEmbedding.load(folder / "output" / "mine.safetensors").target == "glasses"


def test_a_state_that_cannot_be_saved_ends_no_training(folder, monkeypatch):
    files = claim(files_of())
    heard = []

    def full(trainer, path, overwrite):
        heard.append(overwrite)
        raise EditingError("mine.safetensors could not be written (No space left on device); free some.")

    monkeypatch.setattr(FILES, "save_training", full)
    files.save_state(None)
    assert files.trouble.startswith("The progress to go on from could not be saved: mine.safetensors could not")
    monkeypatch.setattr(FILES, "save_training", lambda trainer, path, overwrite: heard.append(overwrite))
    files.save_state(None)
    files.save_state(None)
    assert files.trouble == "" and heard == [False, False, True]


def test_classes_get_names_of_their_own(folder):
    files = files_of(("red hair", "black"))
    assert [path.name for path in files.embeddings] == ["mine_red_hair.safetensors", "mine_black.safetensors"]
    for targets in (("red hair", "red_hair"), ("Yes", "yes")):
        with pytest.raises(EditingError, match="would be saved under one name"):
            files_of(targets)


def test_the_name_leaves_room_for_every_ending(monkeypatch):
    monkeypatch.setattr(FILES, "output_path", lambda kind, name, ending=".safetensors": Path(f"{name}{ending}"))
    assert files_of(name="x" * 242).plot.name == "x" * 242 + ".training.png"
    with pytest.raises(EditingError, match="too long"):
        files_of(name="x" * 243)

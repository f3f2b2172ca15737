"""DeltaSpace Analysis under the stand-in host: the demo's pictures and a person's folder, and what is refused."""

import json

import pytest
import torch
from PIL import Image

from semantic_editing.tools import host_stand_in

PACK = host_stand_in.load_pack()
NODE = host_stand_in.module("nodes.deltaedit.analysis")
host_stand_in.module("nodes.demo.load")  # enters the demo's pictures
EditingError = host_stand_in.module("core.errors").EditingError
COLOURS = {
    "red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "yellow": (200, 200, 20),
    "cyan": (0, 200, 200), "white": (230, 230, 230),
}  # fmt: skip


class Colours:
    """Sees the mean colour of a picture, and knows what colour a text names; texts lie far from all pictures."""

    identity = "colours"

    def image_features(self, images, preprocessing="own"):
        return torch.cat([images.mean((2, 3)), torch.full((len(images), 1), 2.0)], 1)

    def text_features(self, texts):
        rows = [torch.tensor(COLOURS[text.split()[-1]]).float() / 255 for text in texts]
        return torch.cat([torch.stack(rows), torch.full((len(texts), 1), -2.0)], 1)


class Bar:
    """Stands in for the host's progress bar."""

    def show(self, done, total):
        self.told = (done, total)


@pytest.fixture(autouse=True)
def host(monkeypatch, tmp_path):
    monkeypatch.setattr(NODE, "StoppableBar", Bar)
    monkeypatch.setattr(NODE, "input_folder", lambda name: tmp_path / name)
    return tmp_path


@pytest.fixture
def folder(host):
    place = host / "faces"
    place.mkdir()
    for number, (name, colour) in enumerate(COLOURS.items()):
        for copy in range(2):
            size = (20 + 8 * copy, 16)
            Image.new("RGB", size, tuple(max(value - 6 * copy, 0) for value in colour)).save(
                place / f"{number}{copy}.png"
            )
            (place / f"{number}{copy}.txt").write_text(f"a {'pale ' * copy}{name}\n", "utf-8")
    return place


def run(picture_folder="faces", scorer=None, max_pictures=200, seed=0):
    return NODE.DeltaSpaceAnalysis.execute(scorer or Colours(), picture_folder, max_pictures, seed).args


def refusal(**inputs):
    with pytest.raises(EditingError) as caught:
        run(**inputs)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence, sentence
    return sentence


def test_a_folder_with_captions(folder):
    plot, report = run()
    assert report.startswith("Texts and pictures agree in their differences")
    assert "12 pictures with captions from 'faces'" in report and "left out" not in report.splitlines()[-1]
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[3] == 3 and plot.dtype == torch.float32
    assert run(seed=3)[1] != report and torch.equal(run()[0], plot)


def test_what_could_not_be_used_is_named(folder):
    (folder / "00.txt").unlink()
    (folder / "10.txt").unlink()
    (folder / "captions.json").write_text(json.dumps({"10.png": "a green"}), "utf-8")
    (folder / "20.png").write_bytes(b"no picture")
    report = run()[1]
    assert "10 pictures with captions" in report
    assert "left out 1 without a caption: 00.png" in report and "skipped 1 unreadable: 20.png" in report


def test_of_many_a_random_choice_is_taken(folder):
    report = run(max_pictures=8)[1]
    assert "8 pictures with captions from 'faces', chosen from 12" in report
    chosen = NODE.choice(12, 8, 0)
    assert len(set(chosen)) == 8 and chosen == sorted(chosen) == NODE.choice(12, 8, 0) != NODE.choice(12, 8, 1)
    assert NODE.choice(3, 8, 2**64 - 1) == [0, 1, 2]


def test_texts_that_say_nothing_of_the_pictures(folder):
    class Deaf(Colours):
        def text_features(self, texts):
            return torch.randn(len(texts), 4, generator=torch.Generator().manual_seed(5))

    assert run(scorer=Deaf())[1].startswith("Texts and pictures do not agree in their differences")


def test_folders_that_cannot_be_used(folder, host):
    for path in sorted(folder.glob("*.txt"))[:9]:
        path.unlink()
    assert "There are 3 pictures with captions; use 4 or more" in refusal()
    for path in folder.glob("*.txt"):
        path.unlink()
    assert "None of the 12 pictures in 'faces' has a caption" in refusal()
    (host / "empty").mkdir()
    assert "holds no pictures" in refusal(picture_folder="empty")
    assert "was not found" in refusal(picture_folder="absent")


def test_the_demos_own_pictures():
    clip = host_stand_in.module("nodes.common.bundled").bundled("clip_scorer", "demo model")()
    report = run("demo pictures", clip, max_pictures=24)[1]
    assert report.startswith("Texts and pictures agree in their differences") and "chosen from 600" in report
    options = NODE.DeltaSpaceAnalysis.define_schema().inputs[1].options
    assert options["default"] == "demo pictures"


def test_a_caption_written_anew_is_read_anew(folder):
    before = NODE.DeltaSpaceAnalysis.fingerprint_inputs("faces", clip_scorer=None, seed=0)
    assert NODE.DeltaSpaceAnalysis.fingerprint_inputs("faces", clip_scorer=None, seed=0) == before
    (folder / "00.txt").write_text("a dark red", "utf-8")
    assert NODE.DeltaSpaceAnalysis.fingerprint_inputs("faces", clip_scorer=None, seed=0) != before
    assert NODE.DeltaSpaceAnalysis.fingerprint_inputs("demo pictures") == "demo pictures"

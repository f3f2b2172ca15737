"""The classifier nodes on a live server: folders of the input folder, files, a backbone, and what is refused."""

from pathlib import Path

import pytest
from PIL import Image

from semantic_editing.tools.comfy_server import PromptFailed

IMAGES = sorted((Path(__file__).resolve().parents[2] / "assets" / "demo" / "images").glob("*.png"))
SETTINGS = {
    "folders": "tones", "attribute": "tone", "filename": "tone", "overwrite": True,
    "epochs": 2, "seed": 1, "train_trunk": True, "labels": "",
}  # fmt: skip
OPTIONS = {
    "batch_size": 4, "validation": 0.25, "augmentation": 1.0, "flip": True, "learning_rate": 0.0, "patience": 0,
    "input_size": 32,
}  # fmt: skip


def trainer(**changed):
    return {"class_type": "SemEdit_AttributeClassifierTrainer", "inputs": SETTINGS | changed}


@pytest.fixture(scope="module")
def folders(server):
    """input/tones/dark and input/tones/light, with one file that is no picture."""
    for tone in ("dark", "light"):
        folder = server.base / "input" / "tones" / tone
        folder.mkdir(parents=True, exist_ok=True)
        for path in IMAGES[:5]:
            with Image.open(path) as picture:
                picture.convert("RGB").point(
                    lambda value, tone=tone: value // 3 + (160 if tone == "light" else 0)
                ).save(folder / path.name)
    (server.base / "input" / "tones" / "dark" / "broken.png").write_bytes(b"no picture")
    return server


def test_train_load_and_train_on(folders):
    options = {"class_type": "SemEdit_AttributeClassifierTrainingSettings", "inputs": OPTIONS}
    said = folders.queue({"train": trainer(settings=["options", 0]), "options": options})["outputs"]["train"]
    report = said["text"][0]
    assert "dark 5, light 5" in report and "skipped 1 unreadable: dark/broken.png" in report and said["images"]
    assert (folders.base / "models" / "attribute_classifiers" / "tone.safetensors").is_file()
    loader = {
        "classifier_file": "tone.safetensors",
        "attribute": "",
        "class_names": "",
        "input_size": 0,
        "normalisation": "auto",
    }
    batch = {"image": ["picture", 0], "amount": 4}
    prompt = {
        "load": {"class_type": "SemEdit_AttributeClassifierLoader", "inputs": loader},
        "picture": {"class_type": "SemEdit_LoadDemoImage", "inputs": {"pictures": "portraits", "number": 0}},
        "repeat": {"class_type": "RepeatImageBatch", "inputs": batch},
        "train": trainer(
            folders="",
            images=["repeat", 0],
            labels="a, a, b, b",
            backbone=["load", 0],
            filename="tuned",
            attribute="half",
        ),
    }
    report = folders.queue(prompt)["outputs"]["train"]["text"][0]
    assert "half: a, b" in report and "32 x 32 pixels" in report


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"folders": "../models"}, "leads to another folder"),
        ({"folders": "tones/dark"}, "at least two classes"),
        ({"filename": "../escape"}, "file name"),
        ({"folders": ""}, "nothing to learn from"),
    ],
)
def test_refused(folders, changed, said):
    with pytest.raises(PromptFailed, match=said):
        folders.queue({"train": trainer(**changed)})


def test_cancel(folders):
    with folders.cancelled({"train": trainer(epochs=1000, filename="long")}) as (entry, _):
        assert "execution_interrupted" in dict(entry["status"]["messages"])

"""The classifier nodes under the stand-in host: what they pass on, keep on Cancel, and refuse."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from semantic_editing.tools import host_stand_in

host_stand_in.load_pack()
EditingError = host_stand_in.module("core.errors").EditingError
LOADER = {"attribute": "", "class_names": "", "input_size": 0, "normalisation": "auto"}
TRAINER = {
    "folders": "", "attribute": "tone", "filename": "tone", "overwrite": False,
    "epochs": 2, "seed": 3, "train_trunk": True, "labels": "",
}  # fmt: skip
OPTIONS = {
    "batch_size": 4, "validation": 0.25, "augmentation": 0.0, "flip": False, "learning_rate": 0.0, "patience": 0,
    "input_size": 16,
}  # fmt: skip


class Cancelled(Exception):
    pass


class Bar:
    """Presses Cancel at a step when told to."""

    press_at = None

    def __init__(self):
        self.cancelled = False

    def __call__(self, done, total):
        self.cancelled = self.cancelled or done == self.press_at
        return self.cancelled

    def finish(self):
        if self.cancelled:
            raise Cancelled


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The host's functions that the nodes use, over a temporary folder."""

    @contextmanager
    def training_scope(weights):
        yield torch.device("cpu")

    def hold(make):
        return SimpleNamespace(classifier=make())

    bar = type("Pressed", (Bar,), {})
    for name in ("classifier_loader", "classifier_trainer"):
        monkeypatch.setattr(host_stand_in.module(f"nodes.caso.{name}"), "manage_classifier", hold)
    trainer = host_stand_in.module("nodes.caso.classifier_trainer")
    monkeypatch.setattr(trainer, "training_scope", training_scope)
    monkeypatch.setattr(trainer, "StoppableBar", bar)
    monkeypatch.setattr(trainer, "counting_bar", lambda: None)
    monkeypatch.setattr(trainer, "output_path", lambda folder, name: tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(trainer, "input_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(
        host_stand_in.module("nodes.caso.classifier_loader"), "resolve_file", lambda folder, name: tmp_path / name
    )
    return SimpleNamespace(folder=tmp_path, bar=bar)


def images():
    """IMAGE: four dark pictures, four light ones."""
    return torch.cat([torch.full((4, 20, 24, 3), 0.2), torch.full((4, 20, 24, 3), 0.8)]) + torch.rand(
        8, 20, 24, 3, generator=torch.Generator().manual_seed(0)
    ) * 0.1  # fmt: skip


LABELS = "dark, dark, dark, dark\nlight, light, light, light"


def train(**changed):
    options = OPTIONS | {name: value for name, value in changed.items() if name in OPTIONS}
    node = host_stand_in.module("nodes.caso.classifier_settings").AttributeClassifierTrainingSettings
    given = {name: value for name, value in changed.items() if name not in OPTIONS}
    return host_stand_in.module("nodes.caso.classifier_trainer").AttributeClassifierTrainer.execute(
        **(TRAINER | given), settings=node.execute(**options).args[0]
    )


def load(**changed):
    return host_stand_in.module("nodes.caso.classifier_loader").AttributeClassifierLoader.execute(**(LOADER | changed))


def refusal(function, **inputs):
    with pytest.raises(EditingError) as caught:
        function(**inputs)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_a_batch_is_trained_on_saved_and_loaded(host):
    managed, accuracy, plot, report, file = train(images=images(), labels=LABELS).args
    assert managed.classifier.heads == {"tone": ["dark", "light"]} and managed.classifier.size == (16, 16)
    assert 0 <= accuracy <= 1 and plot.ndim == 4 and plot.shape[-1] == 3 and "dark 4, light 4" in report
    assert file == "tone.safetensors" and (host.folder / file).is_file()
    again, report = load(classifier_file=file).args
    assert again.classifier.fingerprint == managed.classifier.fingerprint and "tone: dark, light" in report
    renamed, _ = load(classifier_file=file, attribute="light", class_names="night, day", input_size=32).args
    assert renamed.classifier.heads == {"light": ["night", "day"]} and renamed.classifier.size == (32, 32)


def test_the_settings_nodes_defaults_are_those_of_a_trainer_without_it(host):
    settings = host_stand_in.module("nodes.caso.classifier_settings")
    schema = settings.AttributeClassifierTrainingSettings.define_schema()
    defaults = {slot.id: slot.options["default"] for slot in schema.inputs}
    assert settings.TrainingOptions(**defaults) == settings.TrainingOptions()
    trainer = host_stand_in.module("nodes.caso.classifier_trainer").AttributeClassifierTrainer
    widgets = [slot for slot in trainer.define_schema().inputs if "default" in slot.options]
    assert len(widgets) <= 8 and len(defaults) <= 8


def test_a_backbone_brings_its_size(host):
    managed = train(images=images(), labels=LABELS).args[0]
    tuned = train(
        images=images(), labels=LABELS, backbone=managed, filename="tuned", attribute="lamp", input_size=64
    ).args[0]
    assert tuned.classifier.size == (16, 16) and tuned.classifier.heads == {"lamp": ["dark", "light"]}


def test_cancel_saves_the_best_so_far_and_still_cancels(host):
    host.bar.press_at = 2  # the first epoch's last step
    with pytest.raises(Cancelled):
        train(images=images(), labels=LABELS)
    assert load(classifier_file="tone.safetensors").args[0].classifier.heads == {"tone": ["dark", "light"]}


def test_an_existing_file_is_refused_before_training(host, monkeypatch):
    (host.folder / "tone.safetensors").write_bytes(b"precious")
    monkeypatch.setattr(host_stand_in.module("nodes.caso.classifier_trainer"), "train_classifier", None)
    assert "exists already" in refusal(train, images=images(), labels=LABELS)


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("room", ["output", "temp", None])
def test_a_full_disk_loses_no_training(host, monkeypatch, room, cancel):
    trainer, saving = (host_stand_in.module(f"nodes.{name}") for name in ("caso.classifier_trainer", "common.saving"))
    save = trainer.save_image_classifier

    def full(classifier, path, info, overwrite):
        if path.parent.name != room:
            raise EditingError(f"{path.name} could not be written (No space left on device); free some.")
        return save(classifier, path, info, overwrite=overwrite)

    monkeypatch.setattr(trainer, "save_image_classifier", full)
    monkeypatch.setattr(saving, "rescue_folders", lambda: [(name, host.folder / name) for name in ("output", "temp")])
    host.bar.press_at = 2 if cancel else None
    managed, *_, report, file = train(images=images(), labels=LABELS).args  # Cancel is not obeyed: it would lose this
    assert file == "" and managed.classifier.heads == {"tone": ["dark", "light"]}
    assert report.startswith("tone.safetensors could not be written (No space left on device)")
    if room:
        assert f"kept as tone.safetensors in {room}" in report
        monkeypatch.undo()
        kept = host_stand_in.module("core.classifiers.loaders").load_image_classifier(
            host.folder / room / "tone.safetensors"
        )
        assert kept.fingerprint == managed.classifier.fingerprint
    else:
        assert "in this node's output alone" in report


def test_what_cannot_be_learned_from(host):
    (host.folder / "empty").mkdir()
    assert "nothing to learn from" in refusal(train)
    assert "Both folders and images" in refusal(train, folders="a\nb", images=images(), labels=LABELS)
    assert "8 images but 2 labels" in refusal(train, images=images(), labels="dark, light")
    assert "at least two classes" in refusal(train, folders="empty")
    assert "validation is 0" in refusal(train, images=images(), labels=LABELS, validation=0.0)
    assert "16 or more" in refusal(train, images=images(), labels=LABELS, input_size=4)


def test_the_demo_classifiers_are_always_there(host):
    first, second = (load(classifier_file=name).args[0].classifier for name in ("demo", "demo (second, for judging)"))
    assert first.heads.keys() == second.heads.keys() and first.fingerprint != second.fingerprint


def test_the_loader_refuses(host):
    (host.folder / "bad.safetensors").write_bytes(b"x" * 40)
    assert "bad.safetensors" in refusal(load, classifier_file="bad.safetensors")
    assert "zzz" in refusal(load, classifier_file="demo", normalisation="zzz")
    assert "10 attributes" in refusal(load, classifier_file="demo", class_names="a, b")


def test_fingerprint_follows_the_file(host, monkeypatch):
    path = host.folder / "a.safetensors"
    monkeypatch.setattr(host_stand_in.module("nodes.common.reports"), "resolve_file", lambda folder, name: path)
    node = host_stand_in.module("nodes.caso.classifier_loader").AttributeClassifierLoader
    path.write_bytes(b"1")
    first = node.fingerprint_inputs("a.safetensors", **LOADER)
    path.write_bytes(b"22")
    assert node.fingerprint_inputs("a.safetensors", **LOADER) != first
    assert node.fingerprint_inputs("demo", **LOADER) == node.fingerprint_inputs("demo", **LOADER)

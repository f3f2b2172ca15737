"""Training classifiers on pictures whose classes are obvious, and what cannot be trained on."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing.core.classifiers.augment import augmented
from semantic_editing.core.classifiers.loaders import load_image_classifier, save_image_classifier
from semantic_editing.core.classifiers.pictures import pictures_from_batch, pictures_from_folders, split
from semantic_editing.core.classifiers.training import TrainingSettings, confusion, train_classifier, training_size
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors
from semantic_editing.core.images.curves import curves_plot
from semantic_editing.core.images.files import skipped_report

SIDE = 16
QUICK = TrainingSettings("shape", epochs=4, batch_size=8, seed=1)


def pictures_of(label, count, seed=0, side=SIDE):
    """``[count, 3, side, side]``: noise with a bright square on the left ("square") or bright stripes ("stripes")."""
    generator = torch.Generator().manual_seed(seed + sum(map(ord, label)))
    images = torch.rand(count, 3, side, side, generator=generator) * 0.4
    if label == "square":
        images[:, :, 4:12, 4:12] += 0.5
    else:
        images[:, :, ::4] += 0.5
    return images


@pytest.fixture(scope="module")
def batch():
    images = torch.cat([pictures_of("square", 20), pictures_of("stripes", 12)])
    return pictures_from_batch(images, ["square"] * 20 + ["stripes"] * 12, (SIDE, SIDE))


@pytest.fixture(scope="module")
def trained(batch):
    return train_classifier(batch, QUICK)


def test_it_learns_what_is_obvious(trained):
    unseen = torch.cat([pictures_of("square", 10, seed=9), pictures_of("stripes", 10, seed=9)])
    answers = trained.classifier.logits(unseen)["shape"].argmax(1).tolist()
    assert trained.classifier.heads == {"shape": ["square", "stripes"]}
    assert sum(answers[:10]) <= 1 and sum(answers[10:]) >= 9


def test_what_it_reports_is_true(trained, batch):
    _, test = split(batch.labels, QUICK.validation, torch.Generator().manual_seed(QUICK.seed))
    answers = trained.classifier.logits(batch.pixels[test].float() / 255)["shape"].argmax(1)
    right = int((answers == batch.labels[test]).sum())
    assert trained.accuracy == pytest.approx(right / len(test))
    assert int(trained.confusion.sum()) == len(test) == 6 and int(trained.confusion.diagonal().sum()) == right
    best = max(trained.history["validation accuracy"])
    assert trained.accuracy == best and trained.history["validation accuracy"][trained.best_epoch - 1] == best
    text = trained.report()
    assert (
        f"{right / len(test):.1%}" in text
        and "square 20, stripes 12" in text
        and trained.classifier.fingerprint in text
    )
    assert trained.plot().shape[-1] == 3


def test_the_same_seed_gives_the_same_classifier_and_the_global_generator_is_left_alone(batch, trained):
    before = torch.get_rng_state()
    again = train_classifier(batch, QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.classifier.fingerprint == trained.classifier.fingerprint and again.history == trained.history
    other = train_classifier(batch, TrainingSettings("shape", epochs=1, batch_size=8, seed=2))
    assert other.classifier.fingerprint != trained.classifier.fingerprint


def test_it_is_saved_and_loaded(trained, tmp_path):
    path = save_image_classifier(trained.classifier, tmp_path / "shape.safetensors", trained.facts())
    net, images = load_image_classifier(path), pictures_of("square", 2, side=24)
    assert net.heads == trained.classifier.heads and net.fingerprint == trained.classifier.fingerprint
    torch.testing.assert_close(net.logits(images)["shape"], trained.classifier.logits(images)["shape"])
    facts = json.loads(load_tensors(path)[1]["info"])
    assert facts["validation_accuracy"] == trained.accuracy and facts["settings"]["seed"] == 1


def test_a_given_trunk_is_trained_on_and_left_as_it_is(trained, batch):
    before = trained.classifier.fingerprint
    weights = {key: value.clone() for key, value in trained.classifier.state_dict().items()}
    settings = TrainingSettings("form", epochs=2, batch_size=8, augmentation=0, flip=False)
    tuned = train_classifier(batch, settings, trained.classifier)
    assert all(torch.equal(value, weights[key]) for key, value in trained.classifier.state_dict().items())
    assert tuned.classifier.heads == {"form": ["square", "stripes"]} and tuned.classifier.fingerprint != before
    assert all(not parameter.requires_grad for parameter in tuned.classifier.parameters())


def test_the_last_layer_can_be_trained_alone(trained, batch):
    settings = TrainingSettings("form", epochs=3, batch_size=8, train_trunk=False)
    tuned = train_classifier(batch, settings, trained.classifier)
    for key, value in trained.classifier.trunk.state_dict().items():
        assert torch.equal(tuned.classifier.trunk.state_dict()[key], value), key
    assert not torch.equal(tuned.classifier.class_weights("form"), trained.classifier.class_weights("shape"))
    assert tuned.accuracy >= 0.8


def test_cancel_keeps_the_best_so_far(batch, trained):
    """Ended in its third epoch, it is the straight run's better epoch of the first two."""
    steps = math.ceil(26 / QUICK.batch_size)
    told = []

    def stop(progress):
        told.append(progress)
        return progress.step == 2 * steps + 1

    ended = train_classifier(batch, QUICK, callback=stop)
    accuracies = trained.history["validation accuracy"][:2]
    assert ended.stopped and ended.history["validation accuracy"] == accuracies and ended.accuracy == max(accuracies)
    assert [progress.step for progress in told] == list(range(1, 2 * steps + 2)) and told[-1].steps == 4 * steps
    assert told[-1].epoch == 3 and told[-1].accuracy == max(accuracies)


def test_ended_inside_the_first_epoch_it_keeps_what_it_has(batch):
    ended = train_classifier(batch, QUICK, callback=lambda progress: True)
    assert ended.stopped and ended.best_epoch == 1 and 0 <= ended.accuracy <= 1


def test_an_exception_of_the_callback_passes_through(batch):
    def fail(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(batch, QUICK, callback=fail)


def test_patience_ends_a_training_that_gets_no_better(batch):
    settings = TrainingSettings(
        "shape", epochs=30, patience=1, batch_size=32, learning_rate=1e-12, augmentation=0, flip=False
    )
    trained = train_classifier(batch, settings)
    assert len(trained.history["train loss"]) < 30 and not trained.stopped


@pytest.mark.parametrize(("count", "batch_size"), [(2, 1), (3, 2), (2, 100)])
def test_very_few_pictures_and_very_small_batches(count, batch_size):
    images = torch.cat([pictures_of("square", count), pictures_of("stripes", count)])
    few = pictures_from_batch(images, ["square"] * count + ["stripes"] * count, (SIDE, SIDE))
    trained = train_classifier(few, TrainingSettings("shape", epochs=1, batch_size=batch_size))
    assert int(trained.confusion.sum()) == 2 and math.isfinite(trained.history["train loss"][0])


def test_a_training_that_breaks_down_says_so(batch):
    with pytest.raises(EditingError, match=r"broke down in epoch .*lower the learning rate"):
        train_classifier(batch, TrainingSettings("shape", epochs=3, batch_size=8, learning_rate=1e30))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"augmentation": float("nan")}, "augmentation is nan"),
        ({"attribute": " "}, "has no name"),
    ],
)
def test_settings_out_of_range(batch, wrong, said):
    with pytest.raises(EditingError, match=said):
        train_classifier(batch, TrainingSettings(**wrong))


def test_pictures_of_another_size_than_the_trunks(trained, batch):
    images = torch.cat([pictures_of("square", 2), pictures_of("stripes", 2)])
    larger = pictures_from_batch(images, ["a", "a", "b", "b"], (20, 20))
    with pytest.raises(EditingError, match=r"20 x 20 pixels but shape sees 16 x 16"):
        train_classifier(larger, QUICK, trained.classifier)
    assert training_size(trained.classifier) == (16, 16) and training_size(None, 40) == (40, 40)
    with pytest.raises(EditingError, match="16 or more"):
        training_size(None, 8)


def test_a_confusion_table_by_hand(trained):
    table = confusion(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 2]), 3)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    lines = trained.confusion_text().splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("part", [0.01, 0.2, 0.99])
def test_every_class_is_on_both_sides_of_the_split(part):
    labels = torch.tensor([0] * 2 + [1] * 30 + [2] * 5)
    train, test = split(labels, part, torch.Generator().manual_seed(0))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(37))
    assert set(labels[train].tolist()) == set(labels[test].tolist()) == {0, 1, 2}
    if part == 0.2:
        assert torch.bincount(labels[test]).tolist() == [1, 6, 1]


# Pictures -------------------------------------------------------------------------------------------------------------


def write(folder, label, count, side=20):
    folder.mkdir(parents=True)
    for number, image in enumerate(pictures_of(label, count, side=side)):
        array = (image.clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
        Image.fromarray(array).save(folder / f"{number}.png")
    return folder


def test_folders_become_classes_and_the_unreadable_is_named(tmp_path):
    square, stripes = write(tmp_path / "square", "square", 3), write(tmp_path / "stripes", "stripes", 4)
    (square / "broken.png").write_bytes(b"\x89PNG not a picture")
    (square / "notes.txt").write_text("a caption file")
    (square / ".hidden.png").write_bytes(b"x")
    told = []
    made = pictures_from_folders([stripes, square], (8, 12), lambda done, total: told.append((done, total)))
    assert made.classes == ["stripes", "square"] and made.counts() == [4, 3] and made.pixels.shape == (7, 3, 8, 12)
    assert made.labels.tolist() == [0] * 4 + [1] * 3 and made.pixels.dtype == torch.uint8
    assert made.skipped == ["square/broken.png"] and "skipped 1 unreadable: square/broken.png" in made.describe()
    assert told == [(n, 8) for n in range(1, 9)]
    with Image.open(square / "0.png") as picture:
        whole = torch.from_numpy(np.asarray(picture).copy()).float().mean()
    assert abs(float(made.pixels[4].float().mean() - whole)) < 4  # the whole picture, merely resized


def test_one_folder_of_folders(tmp_path):
    write(tmp_path / "all" / "b", "square", 2)
    write(tmp_path / "all" / "a", "stripes", 2)
    (tmp_path / "all" / ".thumbnails").mkdir()
    assert pictures_from_folders([tmp_path / "all"], (8, 8)).classes == ["a", "b"]


def test_folders_that_are_refused(tmp_path):
    good, other = write(tmp_path / "good", "square", 2), write(tmp_path / "x" / "good", "stripes", 2)
    empty, single, broken = tmp_path / "empty", write(tmp_path / "single", "square", 1), tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.png").write_bytes(b"x")
    for folders, said in (
        ([good], "at least two classes"),
        ([good, tmp_path / "a\udcff"], r"folder name 'a\\udcff' holds half of a surrogate pair"),
        ([good, other], "same name"),
        ([good, empty], "'empty' holds no pictures"),
        ([good, single], "'single' has 1 readable"),
        ([good, broken], "None of the 1 pictures in the folder 'broken'"),
        ([good, tmp_path / "absent"], "'absent' was not found"),
        ([tmp_path / "absent"], "'absent' was not found"),
    ):
        with pytest.raises(EditingError, match=said):
            pictures_from_folders(folders, (8, 8))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b"], "4 images but 2 labels"),
        (["a", "b", " ", "b"], "Label 3 is empty"),
        (["a"] * 4, "All images have the label 'a'"),
        (["a", "a", "a", "b"], "'b' has 1 readable"),
    ],
)
def test_labels_that_do_not_match(labels, said):
    with pytest.raises(EditingError, match=said):
        pictures_from_batch(pictures_of("square", 4), labels, (8, 8))


def test_batches_that_are_refused():
    images = pictures_of("square", 4)
    images[1, 0, 3, 3] = float("nan")
    with pytest.raises(EditingError, match="not numbers"):
        pictures_from_batch(images, list("aabb"), (8, 8))
    with pytest.raises(EditingError, match="needs \\[batch, 3, height, width\\]"):
        pictures_from_batch(images[0], list("aabb"), (8, 8))
    with pytest.raises(EditingError, match="no images"):
        pictures_from_batch(images[:0], [], (8, 8))


def test_a_long_list_of_unreadable_files_is_cut():
    assert skipped_report([]) == ""
    assert (
        skipped_report([f"{i}.png" for i in range(7)])
        == "skipped 7 unreadable: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more"
    )


# Random changes and the plot ------------------------------------------------------------------------------------------


def test_changes_are_seeded_mild_and_differentiable():
    images = pictures_of("square", 6, side=32)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    first, second = (augmented(images, 1.0, True, generator) for generator in generators)
    assert torch.equal(first, second) and first.shape == images.shape and not torch.equal(first, images)
    assert augmented(images, 0.0, False, generators[0]) is images
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(augmented(pixels, 1.0, True, torch.Generator().manual_seed(5)).sum(), [pixels])
    assert (gradient != 0).double().mean() > 0.5


def test_flipping_alone_mirrors_about_half():
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    flipped = augmented(images, 0.0, True, torch.Generator().manual_seed(0))
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 16 < sum(mirrored) < 48


def test_the_plot_draws_its_curves():
    plot = curves_plot(
        {"loss": {"train": [3.0, 2.0, 1.0], "validation": [float("nan"), 2.5, 2.0]}, "accuracy": {"a": [0.1]}}, mark=1
    )
    colours = {tuple(colour) for colour in (plot.reshape(-1, 3) * 255).round().long().tolist()}
    assert {(30, 100, 200), (200, 70, 40)} <= colours
    assert curves_plot({"empty": {}}).shape == plot.shape

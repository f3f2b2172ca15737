"""Classifiers from files: the demo's, this pack's own, transformers folders, torchvision's; what is refused."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing.core.classifiers.convnet import AttributeClassifier, load_classifier
from semantic_editing.core.classifiers.loaders import load_image_classifier, save_image_classifier
from semantic_editing.core.classifiers.transformers_folder import unique
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.models.transformers_files import input_of

DEMO = Path(__file__).resolve().parents[3] / "assets" / "demo"
CLASSES = {"glasses": ["none", "glasses"], "hair": ["red", "black", "blond"]}


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def demo_file(tmp_path):
    """A tiny network in the demo classifiers' file format, with running statistics that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = AttributeClassifier([4, 6], 5, CLASSES, 16)
        net.train()(torch.rand(8, 3, 16, 16))
    path = tmp_path / "demo.safetensors"
    save_tensors(path, net.state_dict(), {"classes": json.dumps(CLASSES), "size": "16"})
    return path


def test_a_demo_file_says_what_the_demos_own_loader_says(demo_file):
    net, reference, images = load_image_classifier(demo_file), load_classifier(demo_file), random(3, 3, 40, 32)
    assert net.heads == CLASSES and net.size == (16, 16) and net.name == "demo.safetensors"
    for attribute, expected in reference(images).items():
        torch.testing.assert_close(net.logits(images)[attribute], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(net.class_weights(attribute), reference.heads[attribute].weight)


@pytest.mark.parametrize("name", ["classifier", "classifier_judge"])
def test_the_shipped_classifiers_load(name):
    net = load_image_classifier(DEMO / f"{name}.safetensors")
    reference = load_classifier(DEMO / f"{name}.safetensors")
    images = random(2, 3, 128, 128)
    assert net.heads == reference.classes
    torch.testing.assert_close(net.logits(images)["glasses"], reference(images)["glasses"], rtol=1e-3, atol=1e-4)


def test_an_own_file_keeps_everything(demo_file, tmp_path):
    net = load_image_classifier(demo_file)
    path = save_image_classifier(net, tmp_path / "own.safetensors", {"note": 1})
    again, images = load_image_classifier(path), random(2, 3, 20, 20)
    assert (again.heads, again.size, again.mean, again.std, again.fingerprint) == (
        net.heads,
        net.size,
        net.mean,
        net.std,
        net.fingerprint,
    )
    for attribute in CLASSES:
        assert torch.equal(again.logits(images)[attribute], net.logits(images)[attribute])
    assert again.name == "own.safetensors" and json.loads(load_tensors(path)[1]["info"]) == {"note": 1}
    with pytest.raises(EditingError, match="exists already"):
        save_image_classifier(net, path, {})


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext"])
def test_a_transformers_folder_says_what_transformers_says(tmp_path, kind):
    folder, model = transformers_folder(tmp_path / "pets", kind)
    net, images = load_image_classifier(folder), random(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=(images - mean) / std).logits
    torch.testing.assert_close(net.logits(images)["pets"], expected, rtol=1e-3, atol=1e-4)
    assert net.heads == {"pets": ["cat", "dog", "hen"]} and net.size == (32, 32)
    again = net.features(images) @ net.class_weights("pets").T + net.last[0].bias
    torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-4)
    pixels = images.clone().requires_grad_()
    assert torch.autograd.grad(net.logits(pixels)["pets"][:, 0].sum(), [pixels])[0].abs().sum() > 0


def transformers_folder(folder, kind="vit", head=True, settings=None, **extra):
    """A tiny random classifier saved by transformers, with a preprocessor."""
    import transformers

    labels = {
        "id2label": {0: "cat", 1: "dog", 2: "hen"},
        "label2id": {"cat": 0, "dog": 1, "hen": 2},
        "num_labels": 3,
    } | extra
    configs = {
        "vit": lambda: transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
            **labels,
        ),
        "resnet": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", **labels
        ),
        "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, **labels),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classes = transformers.AutoModelForImageClassification if head else transformers.AutoModel
        model = classes.from_config(configs[kind]()).eval()
    model.save_pretrained(folder)
    written = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings or written | {"resample": 2}))
    return folder, model


def test_a_file_inside_a_transformers_folder_means_the_folder(tmp_path):
    folder, _ = transformers_folder(tmp_path / "pets")
    assert load_image_classifier(folder / "model.safetensors").fingerprint == load_image_classifier(folder).fingerprint


def test_a_transformers_classifier_survives_saving(tmp_path):
    folder, _ = transformers_folder(tmp_path / "pets", "resnet")
    net, images = load_image_classifier(folder), random(2, 3, 24, 24)
    again = load_image_classifier(save_image_classifier(net, tmp_path / "kept.safetensors", {}))
    assert again.fingerprint == net.fingerprint
    torch.testing.assert_close(again.logits(images)["pets"], net.logits(images)["pets"])


def test_a_folder_of_a_thousand_comma_names_is_asked_by_parts_of_them(tmp_path):
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", *(f"thing {at}, Res {at}" for at in range(2, 1000))]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
    folder, model = transformers_folder(tmp_path / "imagenet", "resnet", num_labels=1000, **labels)
    net, images = load_image_classifier(folder), random(1, 3, 32, 32)
    assert net.class_index("imagenet", "goldfish") == 1 and net.class_index("imagenet", "Res 999") == 999
    assert net.classes_in("imagenet", "tench, thing 5, Res 5, 7") == [names[0], names[5], names[7]]
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=(images - mean) / std).logits
    torch.testing.assert_close(net.logits(images)["imagenet"], expected, rtol=1e-3, atol=1e-4)


def test_independent_labels_become_attributes(tmp_path):
    folder, model = transformers_folder(tmp_path / "faces", problem_type="multi_label_classification")
    net, images = load_image_classifier(folder, normalisation="0..1"), random(2, 3, 32, 32)
    assert net.heads == {name: ["no", "yes"] for name in ("cat", "dog", "hen")}
    with torch.no_grad():
        expected = model(pixel_values=images).logits.sigmoid()
    for column, name in enumerate(net.heads):
        torch.testing.assert_close(net.logits(images)[name].softmax(1)[:, 1], expected[:, column], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("do_rescale", [True, False])
@pytest.mark.parametrize("resample", [2, 3])
def test_preparation_equals_the_processors(resample, do_rescale):
    """Mean, std, size and interpolation against transformers' own processor on a picture of bytes."""
    import transformers

    scale = 1.0 if do_rescale else 255.0
    processor = transformers.ViTImageProcessor(
        size={"height": 12, "width": 20},
        resample=resample,
        do_rescale=do_rescale,
        image_mean=[0.1 * scale, 0.2 * scale, 0.3 * scale],
        image_std=[0.5 * scale, 0.6 * scale, 0.7 * scale],
    )
    smooth = torch.nn.functional.interpolate(random(1, 3, 4, 4), size=(33, 47), mode="bicubic")[0]
    smooth = 0.3 + 0.4 * (smooth - smooth.min()) / (smooth.max() - smooth.min())  # bytes clip what overshoots
    picture = Image.fromarray((smooth * 255).round().byte().movedim(0, -1).numpy())
    expected = torch.as_tensor(np.asarray(processor(picture)["pixel_values"][0]))
    size, mean, std, interpolation = input_of(processor.to_dict(), {}, "x")
    pixels = torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)[None].float() / 255
    resized = torch.nn.functional.interpolate(pixels, size=size, mode=interpolation, antialias=True)
    ours = (resized[0] - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert size == (12, 20)
    assert (ours - expected).abs().max() < 1.5 / 255 / 0.5  # the processor rounds to bytes after resizing


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": 18}, (18, 18)),
        ({"size": {"shortest_edge": 20}}, (20, 20)),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 14, "width": 16}}, (14, 16)),
        ({"size": [10, 12]}, (10, 12)),
        ({}, (9, 9)),
    ],
)
def test_the_size_a_processor_declares(settings, size):
    found, mean, std, interpolation = input_of(settings | {"do_normalize": False}, {"image_size": 9}, "x")
    assert (found, interpolation) == (size, "bilinear")
    assert mean == [0.0] * 3 and std == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"image_mean": [0.5], "image_std": ["x"], "size": 3}, {"size": {"max_height": 3}, "do_normalize": False}],
)
def test_processors_of_another_kind_are_refused(settings, tmp_path):
    folder, _ = transformers_folder(tmp_path / "odd", settings=settings | {"marker": 1})
    with pytest.raises(EditingError, match="odd has a preprocessor of an unknown kind"):
        load_image_classifier(folder)


def test_transformers_folders_that_are_refused(tmp_path):
    folder, _ = transformers_folder(tmp_path / "trunk", head=False)
    with pytest.raises(EditingError, match="ForImageClassification"):
        load_image_classifier(folder)
    folder, _ = transformers_folder(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EditingError, match=r"no \.safetensors weights"):
        load_image_classifier(folder)
    folder, _ = transformers_folder(tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(EditingError, match="preprocessor_config"):
        load_image_classifier(folder)
    folder, _ = transformers_folder(tmp_path / "headless")
    tensors, _ = load_tensors(folder / "model.safetensors")
    save_tensors(
        folder / "model.safetensors",
        {k: v for k, v in tensors.items() if "classifier" not in k},
        {"format": "pt"},
        overwrite=True,
    )
    with pytest.raises(EditingError, match=r"lacks weights that its config\.json promises"):
        load_image_classifier(folder)
    with pytest.raises(EditingError, match=r"no readable config\.json"):
        load_image_classifier(tmp_path)


def test_repeated_names_are_numbered():
    assert unique(["crane", "maillot", "crane", "crane"]) == ["crane", "maillot", "crane (2)", "crane (3)"]


def test_names_and_preparation_of_ones_own(tmp_path):
    folder, _ = transformers_folder(tmp_path / "pets")
    net = load_image_classifier(folder, classes=["a", "b", "c"], attribute="animal", size=48, normalisation="-1..1")
    assert (net.heads, net.size, net.mean) == ({"animal": ["a", "b", "c"]}, (48, 48), (0.5, 0.5, 0.5))
    with pytest.raises(EditingError, match="3 classes but 2 names"):
        load_image_classifier(folder, classes=["a", "b"])
    with pytest.raises(EditingError, match="normalisation 'zzz' is unknown; use one of: auto"):
        load_image_classifier(folder, normalisation="zzz")
    with pytest.raises(EditingError, match="input size is -1"):
        load_image_classifier(folder, size=-1)


def test_a_classifier_of_many_attributes_keeps_its_names(demo_file):
    with pytest.raises(EditingError, match="2 attributes"):
        load_image_classifier(demo_file, classes=["a", "b"])


def test_files_that_are_no_classifiers(tmp_path, demo_file):
    with pytest.raises(EditingError, match="was not found"):
        load_image_classifier(tmp_path / "absent.safetensors")
    lora = save_tensors(tmp_path / "lora.safetensors", {"lora_up.weight": torch.ones(2, 2)}, {})
    with pytest.raises(EditingError, match="not a classifier that can be read"):
        load_image_classifier(lora)
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"\x10" * 100)
    with pytest.raises(EditingError, match="damaged or not a safetensors file"):
        load_image_classifier(noise)
    old = tmp_path / "old.pt"
    for zipped in (False, True):
        torch.save(OrderedDict(a=torch.ones(2)), old, _use_new_zipfile_serialization=zipped)
        with pytest.raises(EditingError, match="not a classifier that can be read"):
            load_image_classifier(old)
    tensors, metadata = load_tensors(demo_file)
    tensors["fc.2.bias"][0] = float("nan")
    save_tensors(demo_file, tensors, metadata, overwrite=True)
    with pytest.raises(EditingError, match="not numbers"):
        load_image_classifier(demo_file)


@pytest.mark.parametrize("change", ["heads", "architecture", "missing", "kind"])
def test_damaged_own_files(demo_file, tmp_path, change):
    path = save_image_classifier(load_image_classifier(demo_file), tmp_path / "own.safetensors", {})
    tensors, metadata = load_tensors(path)
    if change == "missing":
        del tensors["last.1.weight"]
    elif change == "kind":
        metadata["architecture"] = '{"kind": "hologram"}'
    else:
        metadata[change] = '{"kind": "convolutional"}' if change == "architecture" else "{"
    save_tensors(path, tensors, metadata, overwrite=True)
    with pytest.raises(EditingError, match=r"own\.safetensors"):
        load_image_classifier(path)

"""Classifiers inside the host: gradients under inference mode, eviction, Cancel, and torchvision's networks."""

import json
from contextlib import contextmanager

import comfy.model_management as mm
import folder_paths
import pytest
import torch

NAMES = {"tone": ["dark", "light"]}


def tiny(pack, seed=0):
    base = pack("core.classifiers.base")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Tanh(), torch.nn.Flatten()
        )
        return base.ImageClassifier(trunk, [torch.nn.Linear(4 * 36, 2)], NAMES, (8, 8), (0.5,) * 3, (0.5,) * 3, "tiny")


def gradient(classifier, images):
    pixels = images.detach().clone().requires_grad_()
    logits = classifier.logits(pixels)["tone"]
    return torch.autograd.grad(logits[:, 1].sum(), [pixels])[0]


@contextmanager
def loaded(pack, managed):
    """The classifier on the host's device, frozen, as a run with it among its additional models has it."""
    gradients = pack("nodes.host.gradients")
    with gradients.gradient_scope(True):
        pack("nodes.host.managed_models").load_to_device(managed.patcher)
        with gradients.frozen([managed.patcher.model]):
            yield managed.classifier


def images():
    return torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def test_gradients_inside_a_prompt_equal_those_outside(pack):
    expected = gradient(tiny(pack), images())
    with torch.inference_mode():
        managed = pack("nodes.host.managed_models").manage_classifier(lambda: tiny(pack))
        given = images()
        with loaded(pack, managed) as classifier:
            found = gradient(classifier, given)
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found, expected)
    assert not found.is_inference() and all(not p.requires_grad and p.grad is None for p in classifier.parameters())


def test_weights_made_inference_tensors_by_a_host_are_mended(pack):
    """What moving a network to a device inside a prompt does to its weights."""
    with torch.inference_mode():
        managed = pack("nodes.host.managed_models").manage_classifier(lambda: tiny(pack))
        for module in managed.patcher.model.modules():
            for table in (module._parameters, module._buffers):
                for name, value in table.items():
                    moved = value.clone()
                    table[name] = (
                        torch.nn.Parameter(moved, requires_grad=False) if table is module._parameters else moved
                    )
        assert next(managed.classifier.parameters()).is_inference()
        with loaded(pack, managed) as classifier:
            found = gradient(classifier, images())
    torch.testing.assert_close(found, gradient(tiny(pack), images()))


def test_the_host_knows_and_can_evict_it(pack):
    managed = pack("nodes.host.managed_models").manage_classifier(lambda: tiny(pack))
    fingerprint = managed.classifier.fingerprint
    with loaded(pack, managed):
        assert any(known.model is managed.patcher for known in mm.current_loaded_models)
    mm.unload_all_models()
    assert not any(known.model is managed.patcher for known in mm.current_loaded_models)
    with loaded(pack, managed) as classifier:
        assert classifier.fingerprint == fingerprint
    mm.unload_all_models()


@torch.inference_mode()
def test_training_inside_a_prompt(pack):
    """On a batch that a node made (inference tensors), with a loaded classifier as backbone."""
    pictures, training = (pack(f"core.classifiers.{name}") for name in ("pictures", "training"))
    batch = torch.cat([torch.rand(6, 3, 16, 16) * 0.3, 0.6 + torch.rand(6, 3, 16, 16) * 0.3])
    made = pictures.pictures_from_batch(batch, ["dark"] * 6 + ["light"] * 6, (16, 16))
    settings = training.TrainingSettings("tone", epochs=2, batch_size=4)
    with pack("nodes.host.managed_models").training_scope(0) as device:
        first = training.train_classifier(made, settings, device=device)
    managed = pack("nodes.host.managed_models").manage_classifier(lambda: first.classifier)
    with pack("nodes.host.managed_models").training_scope(10**6) as device:
        second = training.train_classifier(made, settings, managed.classifier, device=device)
    assert not next(second.classifier.parameters()).is_inference() and second.classifier.heads == NAMES


def test_cancel_is_remembered_and_raised_at_the_end(pack):
    bar = pack("nodes.host.progress").StoppableBar()
    assert bar(1, 4) is False
    mm.interrupt_current_processing(True)
    assert bar(2, 4) is True and bar(3, 4) is True
    with pytest.raises(mm.InterruptProcessingException):
        bar.finish()
    quiet = pack("nodes.host.progress").StoppableBar()
    assert quiet(4, 4) is False
    quiet.finish()


@pytest.mark.parametrize("name", ["../up", "/etc", "a/../../b", "", "absent", "C:x", "nul\0", ".."])
def test_folders_outside_input_are_refused(pack, tmp_path, monkeypatch, name):
    (tmp_path / "input" / "faces" / "smile").mkdir(parents=True)
    (tmp_path / "up").mkdir()
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    assert (
        pack("nodes.host.folders").input_folder(" faces/smile ")
        == pack("nodes.host.folders").input_folder("faces\\smile")
        == tmp_path / "input" / "faces" / "smile"
    )
    with pytest.raises(ValueError, match=r"is no folder inside ComfyUI's input folder|The folder name") as caught:
        pack("nodes.host.folders").input_folder(name)
    assert str(tmp_path) not in str(caught.value)


# torchvision comes with every ComfyUI --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg():
    """torchvision's VGG16 with a head of one output and cheap weights that are not constant."""
    return cheap(pytest.importorskip("torchvision").models.vgg16, lambda net: net.classifier, "6", 4096)


@pytest.fixture(scope="module")
def resnet():
    return cheap(pytest.importorskip("torchvision").models.resnet50, lambda net: net, "fc", 2048)


def cheap(build, parent, name, features):
    with torch.device("meta"):
        net = build(weights=None)
        setattr(parent(net), name, torch.nn.Linear(features, 1))
    net.to_empty(device="cpu")
    for index, value in enumerate(net.state_dict().values()):
        if value.is_floating_point():
            length = value.numel()
            wave = torch.arange(min(length, 9973)).float().mul_(0.37 + 0.01 * index).sin_()
            flat = value.view(-1)
            for start in range(0, length, len(wave)):
                part = flat[start : start + len(wave)]
                part.copy_(wave[: len(part)])
            if value.ndim == 1:
                value.abs_().add_(0.5)
            else:
                value.mul_((2 / value[0].numel()) ** 0.5)
        else:
            value.zero_()
    return net.eval()


class BinaryClassifier(torch.nn.Module):
    """As CASO publishes them."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.sigmoid = torch.nn.Sigmoid()

    def forward(self, x):
        return self.sigmoid(self.model(x))


@torch.no_grad()
def test_a_published_pickle_says_what_its_network_says(pack, resnet, tmp_path):
    """A ResNet50 whole, pickled as the released script does; VGG16 has the same way in and is five times as large."""
    published = BinaryClassifier(resnet).eval()
    torch.save(published, tmp_path / "Mustache.pt")
    loaded = pack("core.classifiers.loaders").load_image_classifier(tmp_path / "Mustache.pt", size=64)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    expected = published(pictures * 2 - 1)[:, 0]
    assert loaded.heads == {"Mustache": ["no", "yes"]} and loaded.mean == (0.5, 0.5, 0.5)
    torch.testing.assert_close(loaded.logits(pictures)["Mustache"].softmax(1)[:, 1], expected, rtol=1e-3, atol=1e-4)
    assert float(expected.min()) > 0.001 and float(expected.max()) < 0.999, (
        "a sigmoid at its end would hide differences"
    )


@pytest.mark.parametrize("prefix", ["", "model."])
@torch.no_grad()
def test_vgg16_from_tensors(pack, vgg, prefix):
    loaders = pack("core.classifiers.loaders")
    state = {f"{prefix}{key}": value for key, value in vgg.state_dict().items()}
    loaded = loaders.torchvision_classifier(state, "beard.safetensors")
    assert loaded.size == (512, 512)
    loaded.size = (32, 32)
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    logit = vgg(pictures * 2 - 1)[:, 0]
    logits = loaded.logits(pictures)["beard"]
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], logit, rtol=1e-3, atol=1e-4)
    assert loaded.features(pictures).shape == (1, 4096) and loaded.class_weights("beard").shape == (2, 4096)


def test_resnet50_files_and_what_is_refused(pack, resnet, tmp_path):
    loaders = pack("core.classifiers.loaders")
    state = {key: value for key, value in resnet.state_dict().items() if not key.startswith("fc.")}
    state["fc.weight"], state["fc.bias"] = torch.ones(3, 2048), torch.zeros(3)
    path = pack("core.files").save_tensors(tmp_path / "r.safetensors", state, {"classes": '["a", "b", "c"]'})
    loaded = loaders.load_image_classifier(path)
    assert loaded.heads == {"r": ["a", "b", "c"]} and loaded.size == (224, 224) and loaded.std == (0.229, 0.224, 0.225)
    again = loaders.load_image_classifier(loaders.save_image_classifier(loaded, tmp_path / "own.safetensors", {}))
    assert again.fingerprint == loaded.fingerprint
    thousand = state | {"fc.weight": torch.ones(1000, 2048), "fc.bias": torch.zeros(1000)}
    assert "goldfish" in loaders.torchvision_classifier(thousand, "r").heads["r"]
    with pytest.raises(ValueError, match="3 classes of r but 2 names"):
        loaders.torchvision_classifier(state, "r", ["a", "b"])
    with pytest.raises(ValueError, match="holds other tensors"):
        loaders.torchvision_classifier(
            {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"}, "r"
        )


def smooth(shape, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_network(build, **options):
    """A network of a library with its own random weights and running figures that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = build(**options)
        for name, value in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.copy_(torch.rand(value.shape) * 0.2 + (name.endswith("var")))
        for name, value in net.named_parameters():
            if name.endswith(("layer_scale", "gamma")):  # 1e-6 at first, which would hide what lies behind it
                torch.nn.init.uniform_(value, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("kind", ["resnet18", "resnet50", "convnext_tiny"])
@pytest.mark.parametrize("legacy", [True, False])
@torch.no_grad()
def test_torchvisions_own_files_say_what_torchvision_says(pack, tmp_path, kind, legacy):
    """A state dict of 1000 classes, in the layout of torch before 1.6 as well, prepared as for ImageNet."""
    models = pytest.importorskip("torchvision").models
    net = random_network(getattr(models, kind), weights=None)
    path = tmp_path / f"{kind}-5c106cde.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    loaded = pack("core.classifiers.loaders").load_image_classifier(path, size=64)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (loaded.mean, loaded.std))
    pictures = smooth((2, 3, 64, 64))
    assert (loaded.mean[0], loaded.std[0]) == (0.485, 0.229)
    (attribute,) = loaded.heads
    expected = net((pictures - mean) / std)
    torch.testing.assert_close(loaded.logits(pictures)[attribute], expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 1e-2, "constant logits would hide differences"
    assert loaded.heads[attribute][1] == "goldfish" and loaded.class_index(attribute, "Goldfish") == 1
    own = pack("core.classifiers.loaders").save_image_classifier(loaded, tmp_path / "own.safetensors", {})
    again = pack("core.classifiers.loaders").load_image_classifier(own)
    torch.testing.assert_close(again.logits(pictures)[attribute], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_official_vgg16_is_a_file_of_the_old_layout(pack, vgg, tmp_path):
    torch.save(vgg.state_dict(), tmp_path / "vgg16-397923af.pth", _use_new_zipfile_serialization=False)
    loaded = pack("core.classifiers.loaders").load_image_classifier(tmp_path / "vgg16-397923af.pth", size=32)
    pictures = smooth((1, 3, 32, 32))
    logits = loaded.logits(pictures)["vgg16-397923af"]
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], vgg(pictures * 2 - 1)[:, 0], rtol=1e-3, atol=1e-4)
    assert loaded.architecture == {"kind": "vgg16"}


def test_a_training_keeps_its_network_beside_facts_and_old_files_lack_counters(pack, tmp_path):
    models = pytest.importorskip("torchvision").models
    net = random_network(models.resnet18, weights=None, num_classes=2)
    state = {f"module.{key}": value for key, value in net.state_dict().items() if "num_batches" not in key}
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": state, "best": 0.5}, tmp_path / "best.pth")
    loaded = pack("core.classifiers.loaders").load_image_classifier(tmp_path / "best.pth", size=64)
    assert loaded.architecture == {"kind": "resnet18"} and loaded.heads == {"best": ["class 0", "class 1"]}
    pixels = smooth((1, 3, 80, 48)).requires_grad_()
    gradient = torch.autograd.grad(loaded.logits(pixels)["best"][0, 0], [pixels])[0]
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        slope = sum(sign * loaded.logits(pixels + sign * step)["best"][0, 0] for sign in (1, -1)) / 2e-2
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize("names", ["timm", "authors"])
@torch.no_grad()
def test_convnext_by_timms_and_by_its_authors_names(pack, tmp_path, names):
    timm = pytest.importorskip("timm")
    net = random_network(timm.create_model, model_name="convnext_tiny", num_classes=3)
    state = net.state_dict()
    if names == "authors":
        changes = [
            (".blocks.", "."), ("conv_dw", "dwconv"), ("mlp.fc", "pwconv"), ("head.norm", "norm"), ("head.fc", "head"),
            ("stem.", "downsample_layers.0."),
        ]  # fmt: skip
        for old, new in changes:
            state = {key.replace(old, new): value for key, value in state.items()}
        for stage in (1, 2, 3):
            old, new = f"stages.{stage}.downsample.", f"downsample_layers.{stage}."
            state = {key.replace(old, new): value for key, value in state.items()}
    if names == "timm":
        path = pack("core.files").save_tensors(tmp_path / "c.safetensors", state, {})
    else:
        path = tmp_path / "c.pth"
        torch.save({"model": state}, path)
    loaded = pack("core.classifiers.loaders").load_image_classifier(path, size=64, normalisation="0..1")
    pictures = smooth((2, 3, 64, 64))
    torch.testing.assert_close(loaded.logits(pictures)["c"], net(pictures), rtol=1e-4, atol=1e-4)
    assert loaded.architecture == {"kind": "convnext_tiny"}


def timm_folder(folder, architecture, size, classes=4, /, **changed):
    timm = pytest.importorskip("timm")
    net = random_network(timm.create_model, model_name=architecture, num_classes=classes)
    folder.mkdir()
    import safetensors.torch

    safetensors.torch.save_file(net.state_dict(), folder / "model.safetensors", {"format": "pt"})
    prepared = {
        "input_size": [3, size, size], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic",
        "crop_pct": 0.9, "tag": "a1_in1k", "num_classes": classes,
    }  # fmt: skip
    config = {"architecture": architecture, "num_classes": classes, "num_features": 1, "pretrained_cfg": prepared}
    (folder / "config.json").write_text(json.dumps(config | changed))
    return net


@pytest.mark.parametrize(("architecture", "size"), [("vit_tiny_patch16_224", 224), ("mobilenetv3_small_050", 96)])
def test_a_timm_folder_says_what_timm_says(pack, tmp_path, architecture, size):
    names = ["cat", "dog", "hen", "cat"]
    with torch.no_grad():
        net = timm_folder(tmp_path / "pets", architecture, size, label_names=names)
        loaded = pack("core.classifiers.loaders").load_image_classifier(tmp_path / "pets" / "model.safetensors")
        pictures = smooth((2, 3, size, size))
        mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
        expected = net((pictures - mean) / std)
        torch.testing.assert_close(loaded.logits(pictures)["pets"], expected, rtol=1e-3, atol=1e-4)
        assert loaded.heads == {"pets": ["cat", "dog", "hen", "cat (2)"]} and loaded.size == (size, size)
        assert loaded.interpolation == "bicubic" and loaded.features(pictures).shape[1] == loaded.trunk.width
        loaders = pack("core.classifiers.loaders")
        again = loaders.load_image_classifier(loaders.save_image_classifier(loaded, tmp_path / "o.safetensors", {}))
        torch.testing.assert_close(again.logits(pictures)["pets"], expected, rtol=1e-3, atol=1e-4)
    pixels = pictures.clone().requires_grad_()
    assert float(torch.autograd.grad(loaded.logits(pixels)["pets"][:, 0].sum(), [pixels])[0].abs().sum()) > 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architecture": "hf-hub:somebody/model"}, "does not know"),
        ({"architecture": 7}, "timm did not write"),
        ({"architecture": "test_vit"}, "other tensors"),
        ({"architecture": "vit_huge_patch14_224"}, "lacks a part of its weights"),
        ({"label_names": ["a", "b"]}, "4 classes but 2 names"),
        ({"pretrained_cfg": {"input_size": [1, 32, 32]}}, "1 colours"),
        ({"pretrained_cfg": {"mean": "x"}}, "timm did not write"),
    ],
)
def test_timm_folders_that_are_refused(pack, tmp_path, changed, said):
    timm_folder(tmp_path / "pets", "mobilenetv3_small_050", 64, **changed)
    with pytest.raises(ValueError, match=said) as caught:
        pack("core.classifiers.loaders").load_image_classifier(tmp_path / "pets")
    assert len(str(caught.value)) <= 300

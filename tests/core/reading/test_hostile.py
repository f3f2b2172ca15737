"""Files that would have more done than to be read: code, hubs, kernels, memory and time out of all proportion.

Every one of these once ran code, looked something up, asked on the terminal, or took gigabytes or minutes.
"""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from semantic_editing.benchmarks.fuzz_mutations import BOMBS, EVIL, HOSTILE, NASTY
from semantic_editing.benchmarks.fuzz_samples import OLD, SAMPLES
from semantic_editing.core.classifiers.loaders import load_image_classifier
from semantic_editing.core.diffusers.checkpoint import load_checkpoint
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_legacy_tensor, load_tensors, load_weights, save_tensors
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.models import model_folder, model_settings
from semantic_editing.core.models.clip import load_open_clip, load_transformers_clip
from semantic_editing.core.models.vision_features import load_vision_features
from semantic_editing.core.reading import libraries
from semantic_editing.core.reading.kinds import KINDS
from semantic_editing.core.reading.pickles import MAX_OPCODES, read_network_pickle
from semantic_editing.core.regions.network import RegionNetwork

FOLDERS = [
    "classifier folder", "classifier folder, ResNet", "vision folder", "vision folder of two files", "CLIP folder",
    "diffusers folder", "aMUSEd folder", "demo model",
]  # fmt: skip


@pytest.fixture
def little_memory():
    """A quarter of a gigabyte more than now; what asks for more gets a MemoryError, which is no EditingError."""
    resource = pytest.importorskip("resource")
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").is_file() else []
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize")]
    if not sizes:
        pytest.skip("how much this process has is read from /proc")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (sizes[0] + 2**28, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Samples by name, made once: ``(folder, what a loader is given in it)``."""
    home, known = tmp_path_factory.mktemp("samples"), {}

    def find(name):
        if name not in known:
            folder = home / str(len(known))
            folder.mkdir()
            known[name] = folder, SAMPLES[name].make(folder).relative_to(folder)
        return known[name]

    return find


@pytest.fixture
def made(originals):
    """A sample's own copy in a folder, and its path there."""

    def copy(name, folder):
        source, path = originals(name)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return folder / path

    return copy


def changed(file, **settings):
    """A JSON file with other settings."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), encoding="utf-8")


# Code and network
# ----------------------------------------------------------------------------------------------------------------

AUDIT = """
import json, sys, traceback
from pathlib import Path
from semantic_editing.benchmarks.fuzz import Watch
from semantic_editing.benchmarks.fuzz_mutations import EVIL, HOSTILE
from semantic_editing.benchmarks.fuzz_samples import SAMPLES
from semantic_editing.core.errors import EditingError
from semantic_editing.core.reading import kinds

#: These do not end the loading by themselves.
QUIET = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "tokenizer_class")
watch, home, found, reached, original = Watch(), Path(sys.argv[1]), {}, set(), kinds.check_size

def noted(source, kind):
    reached.add(kind)
    return original(source, kind)

for module in list(sys.modules.values()):
    if getattr(module, "check_size", None) is original:
        module.check_size = noted

def seen(name, path, folder):
    watch.seen, watch.folder = [], str(folder)
    try:
        said = "" if SAMPLES[name].load(path) is not None or name == "training" else "nothing was loaded"
    except EditingError as error:
        said = str(error)
    watch.folder = ""
    return [said, watch.seen, [file.name for file in folder.rglob("*.ran")]]

for number, (name, sample) in enumerate(SAMPLES.items()):
    if sample.missing():
        continue
    folder = home / str(number)
    folder.mkdir()
    path = sample.make(folder)
    found[name] = [seen(name, path, folder)]
    if path.is_dir():
        texts = {file: file.read_text() for file in folder.rglob("*.json")}
        for keys in (QUIET, HOSTILE):
            for file, text in texts.items():
                value = json.loads(text)
                if isinstance(value, dict) and "mapping" not in file.name:
                    file.write_text(json.dumps(value | {key: HOSTILE[key] for key in keys}))
            found[name].append(seen(name, path, folder))
        for file, text in texts.items():
            file.write_text(text)
        (path / "adapter_config.json").write_text(json.dumps(HOSTILE))
        found[name].append(seen(name, path, folder))
        for code in ("None.py", "evil.py", "unet/evil.py"):
            if (path / code).parent.is_dir():
                (path / code).write_text(EVIL)
        found[name].append(seen(name, path, folder))
print(json.dumps({"found": found, "kinds": sorted(reached)}))
"""


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """What every loader said and did, undamaged and in hostile folders, and the kinds of file that were read."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {key: value for key, value in environment.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, str(tmp_path_factory.mktemp("audit"))],
        capture_output=True, text=True, timeout=550, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_fuzzers_undamaged_samples_load_and_are_of_every_kind(audited):
    needed = {"perceptual network"} if SAMPLES["network of LPIPS"].missing() else set()
    assert set(audited["kinds"]) | needed == set(KINDS)
    assert all(tries[0][0] == "" for tries in audited["found"].values())


def test_no_loader_goes_online_starts_a_process_or_imports_from_a_folder(audited):
    """An audit hook watches every loader on its undamaged sample, and in folders on hostile settings and code."""
    found = audited["found"]
    assert set(found) == {name for name, sample in SAMPLES.items() if not sample.missing()}
    for name, tries in found.items():
        assert tries[0] == ["", [], []], f"{name}, undamaged: {tries[0]}"
        for said, events, ran in tries:
            assert events == [] and ran == [], f"{name}: {said}"
    for name in FOLDERS:
        expected = "incomplete or damaged" if name == "demo model" else "holds program code"
        assert expected in found[name][-1][0], name


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("code", ["None.py", "deeper/evil.PY", "a.pyc", "b.so"])
def test_a_model_folder_with_code_is_refused_before_a_library_sees_it(made, tmp_path, monkeypatch, name, code):
    path = made(name, tmp_path)
    (path / code).parent.mkdir(exist_ok=True)
    (path / code).write_text(EVIL)
    monkeypatch.setattr(model_folder, "library", lambda *_: pytest.fail("a library was asked for"))
    expected = "incomplete or damaged" if name == "demo model" else rf"holds program code \({Path(code).name}\)"
    with pytest.raises(EditingError, match=expected):
        SAMPLES[name].load(path)


@pytest.mark.parametrize("kind", ["timm_wrapper", "auto", "../vit", 5, None, ["vit"], "hf-hub:timm/vit", "bert"])
def test_only_listed_kinds_of_network_are_passed_on(made, tmp_path, kind):
    path = made("classifier folder", tmp_path)
    changed(path / "config.json", model_type=kind, architecture="hf-hub:timm/vit_base_patch16_224")
    with pytest.raises(EditingError, match=r"use one of .*vit"):
        load_image_classifier(path)
    for name, load in (("vision folder", load_vision_features), ("CLIP folder", load_transformers_clip)):
        path = made(name, tmp_path / name)
        changed(path / "config.json", model_type=kind)
        with pytest.raises(EditingError, match="holds a "):
            load(path)


@pytest.mark.parametrize("name", FOLDERS[:5])
def test_settings_that_are_not_known_change_nothing(made, tmp_path, name):
    """Attention from a hub, code, quantisation and whatever else: the network is what it was."""
    path = made(name, tmp_path)
    before = SAMPLES[name].load(path)
    keys = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "torch_dtype")
    changed(path / "config.json", **{key: HOSTILE[key] for key in keys}, trust_remote_code=True)
    for file in ("adapter_config.json", "generation_config.json", "added_tokens.json"):
        (path / file).write_text(json.dumps(HOSTILE))
    again = SAMPLES[name].load(path)
    for attribute in ("fingerprint", "identity"):
        assert getattr(again, attribute, None) == getattr(before, attribute, None)


def test_a_tokenizer_asks_nothing_and_takes_nothing_but_byte_pairs(made, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on the terminal"))
    path = made("CLIP folder", tmp_path)
    expected = load_transformers_clip(path).text_features(["a cat"])
    changed(path / "tokenizer_config.json", auto_map=HOSTILE["auto_map"], tokenizer_class="Evil", model_max_length=1e30)
    torch.testing.assert_close(load_transformers_clip(path).text_features(["a cat"]), expected)
    for file in path.glob("*okenizer*"):
        file.unlink()
    for file in ("vocab.json", "merges.txt"):
        (path / file).unlink(missing_ok=True)
    with pytest.raises(EditingError, match="no tokenizer; download the model again with its tokenizer files"):
        load_transformers_clip(path)


def test_a_class_that_model_index_names_is_compared_and_never_looked_up(made, tmp_path):
    path = made("diffusers folder", tmp_path)
    before = (path / "model_index.json").read_text()
    for part, entry in (
        ("unet", ["None", "Evil"]),
        ("scheduler", ["evil", "Evil"]),
        ("text_encoder", "x"),
        ("vae", None),
    ):
        (path / "model_index.json").write_text(before)
        changed(path / "model_index.json", **{part: entry})
        with pytest.raises(EditingError, match=f"has an unknown {part}"):
            load_checkpoint(path)


def test_the_environment_is_offline_for_the_call_and_as_it_was_afterwards(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), model_folder.offline():
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1" and constants.HF_HUB_OFFLINE
        raise KeyError
    assert os.environ["HF_HUB_OFFLINE"] == "0" and "TRANSFORMERS_OFFLINE" not in os.environ
    assert constants.HF_HUB_OFFLINE is False


def test_two_threads_that_load_at_once_leave_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with model_folder.offline():
            inside.set()
            leave.wait(60)
            seen.append(os.environ.get("HF_HUB_OFFLINE"))

    thread = threading.Thread(target=other)
    with model_folder.offline():
        thread.start()
        inside.wait(0.3)  # it gets in here only where nothing keeps it out
        with model_folder.offline():  # inside itself it is free
            pass
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert inside.wait(60)
    leave.set()
    thread.join()
    assert seen == ["1"] and "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    "name", [*FOLDERS, "own classifier of transformers", "single file", "OpenCLIP file", "torchvision classifier"]
)
def test_no_library_builds_a_network_online(made, tmp_path, monkeypatch, name):
    """A configuration that made one look something up would find the hub closed."""
    if SAMPLES[name].missing():
        pytest.skip(f"{SAMPLES[name].missing()} is not installed")
    path = made(name, tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    original, built = torch.nn.Module.__init__, []

    def noted(self, *arguments, **options):
        if type(self).__module__.split(".")[0] in ("transformers", "diffusers", "open_clip"):
            built.append(os.environ.get("HF_HUB_OFFLINE"))
        original(self, *arguments, **options)

    monkeypatch.setattr(torch.nn.Module, "__init__", noted)
    SAMPLES[name].load(path)
    assert set(built) == (set() if name == "torchvision classifier" else {"1"})


@pytest.mark.parametrize("name", ["OpenCLIP file", "CLIP folder", "vision folder", "single file"])
def test_loading_draws_no_random_numbers(made, tmp_path, name):
    """The networks are filled with random numbers first; the person's next ones stay what they were."""
    if SAMPLES[name].missing():
        pytest.skip(f"{SAMPLES[name].missing()} is not installed")
    path = made(name, tmp_path)
    before = torch.get_rng_state()
    SAMPLES[name].load(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_index_that_points_elsewhere_is_refused(made, tmp_path):
    path = made("vision folder of two files", tmp_path)
    index = path / "model.safetensors.index.json"
    before = json.loads(index.read_text())
    (tmp_path / "other.safetensors").write_bytes(next(path.glob("*.safetensors")).read_bytes())
    for file in ("../other.safetensors", str(tmp_path / "other.safetensors"), "gone.safetensors", "config.json", 5, ""):
        index.write_text(json.dumps(before | {"weight_map": before["weight_map"] | {"x": file}}))
        with pytest.raises(EditingError, match=r"damaged model\.safetensors\.index\.json or lacks"):
            load_vision_features(path)


# Memory and time
# ----------------------------------------------------------------------------------------------------------------


def test_a_region_network_that_claims_to_be_large(tmp_path, little_memory):
    shape = {"channels": 65_536, "slots": 1000, "bins": 7, "vision": ""}
    metadata = {"format": "semantic_editing.region_network", "shape": json.dumps(shape)}
    path = save_tensors(tmp_path / "a.safetensors", {}, metadata)
    with pytest.raises(EditingError, match="do not fit its description"):
        RegionNetwork.load(path)


@pytest.mark.parametrize(
    "setting", ["hidden_size", "num_hidden_layers", "num_labels", "image_size", "intermediate_size"]
)
@pytest.mark.parametrize("value", [60_000, 2**31, 10**12, -1, 0, 1e9, "60000", [60_000] * 4])
def test_a_configuration_that_claims_a_large_network(made, tmp_path, little_memory, setting, value):
    path = made("classifier folder", tmp_path)
    changed(path / "config.json", id2label=None, label2id=None)
    changed(path / "config.json", **{setting: value})
    with pytest.raises(EditingError):
        load_image_classifier(path)


@pytest.mark.parametrize("setting", model_settings.SETTINGS)
def test_every_setting_is_used_as_its_form_promises(setting):
    """What its form lets through can be counted; all else is a sentence, no other error."""
    passed = 0
    for value in (*NASTY, [0], [0.5] * 3, [2, 3], 16, 2.5, "gelu", "basic", "mean", {"0": "cat"}):
        for config in ({setting: value}, {"vision_config": {setting: value}}):
            try:
                settings = model_settings.transformers_settings(config, "model")
            except EditingError:
                continue
            layers = [model_settings.layers_of(part) for part in (settings, settings.get("vision_config", {}))]
            assert all(0 <= count <= 256 * 64 * 100 for count in layers)
            passed += settings not in ({}, {"vision_config": {}})
    assert passed >= 2, "no value was of its form"


@pytest.mark.parametrize("setting", [{"hidden_size": 60_000, "intermediate_size": 60_000}, {"num_hidden_layers": 200}])
def test_a_saved_classifier_that_claims_a_large_network(made, tmp_path, little_memory, setting):
    path = made("own classifier of transformers", tmp_path)
    tensors, metadata = load_tensors(path)
    architecture = json.loads(metadata["architecture"])
    architecture["config"] |= setting
    save_tensors(path, tensors, metadata | {"architecture": json.dumps(architecture)}, overwrite=True)
    with pytest.raises(EditingError, match="lacks a part of its weights"):
        load_image_classifier(path)


def test_an_architecture_larger_than_the_file_is_not_built(tmp_path, little_memory):
    """A workflow names it; ViT-bigG-14 is 10 GB."""
    pytest.importorskip("open_clip")
    path = save_tensors(tmp_path / "a.safetensors", {"visual.proj": torch.zeros(4, 4)}, {})
    with pytest.raises(EditingError, match=r"a\.safetensors does not fit ViT-bigG-14"):
        load_open_clip(path, "ViT-bigG-14")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_diffusers_part_that_claims_to_be_large(made, tmp_path, little_memory, part):
    path = made("diffusers folder", tmp_path)
    before = (path / part / "config.json").read_text()
    for settings in (
        {"block_out_channels": [60_000, 60_000], "hidden_size": 60_000},
        {"layers_per_block": 250, "num_hidden_layers": 250},
        {"layers_per_block": 10**6, "num_hidden_layers": 10**6},
        {"block_out_channels": [32] * 10**5, "hidden_act": "x" * 10**6},
    ):
        (path / part / "config.json").write_text(before)
        changed(path / part / "config.json", **settings)
        with pytest.raises(EditingError):
            load_checkpoint(path)


def header_of(path, change):
    """A safetensors file with another description."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("shape", [[20_000_000, 0], [0, 2**40], [2**62, 0, 4]])
@pytest.mark.parametrize("name", ["training", "vision file", "demo classifier", "inversion"])
def test_tensors_of_nothing_may_not_claim_rows(made, tmp_path, little_memory, name, shape):
    path = made(name, tmp_path)
    header_of(path, lambda header: header.update(rows={"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}))
    with pytest.raises(EditingError, match=r"a tensor of an unknown kind|damaged or not a safetensors"):
        SAMPLES[name].load(path)


def test_a_training_that_claims_steps_it_has_no_rows_of(made, tmp_path, little_memory):
    path = made("training", tmp_path)
    tensors, metadata = load_tensors(path)
    progress = json.loads(metadata["progress"])
    for steps in (2, 999_999, 20_000_000, 2**62, -1, 1.5, "3"):
        changed_metadata = metadata | {"progress": json.dumps(progress | {"step": steps})}
        save_tensors(path, {k: v for k, v in tensors.items() if k != "held"}, changed_metadata, overwrite=True)
        with pytest.raises(EditingError):
            SAMPLES["training"].load(path)


def test_more_tensors_than_any_file_has(tmp_path):
    path = save_tensors(tmp_path / "a.safetensors", {f"{i}": torch.zeros(1) for i in range(65)}, {})
    with pytest.raises(EditingError, match="holds 65 tensors, and a region network at most 64"):
        load_tensors(path, kind="region network")


def test_a_header_longer_than_any(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as stream:
        stream.write((100 * 2**20).to_bytes(8, "little"))
        stream.truncate(101 * 2**20)
    with pytest.raises(EditingError, match="describes itself at a length that no network has"):
        load_tensors(path)


def zipped(data, blocks=(b"\0" * 32,), compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        for number, block in enumerate(blocks):
            with archive.open(f"a/data/{number}", "w") as entry:
                for part in block if isinstance(block, list) else [block]:
                    entry.write(part)
    return stream.getvalue()


LOADERS = [load_legacy_tensor, load_weights, read_network_pickle]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("bomb", range(len(BOMBS)))
def test_pickles_that_take_more_than_they_weigh(tmp_path, monkeypatch, little_memory, load, bomb):
    monkeypatch.chdir(tmp_path)
    for data in (BOMBS[bomb], zipped(BOMBS[bomb])):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(EditingError):
            load(tmp_path / "a.pt")
    assert sorted(os.listdir(tmp_path)) == ["a.pt"]


@pytest.fixture(scope="module")
def compressed():
    """A pickle whose one tensor is compressed: 600 MiB in less than one."""
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(8)}, plain)
    with zipfile.ZipFile(plain) as archive:
        data = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    return zipped(data, [[b"\0" * 2**20] * 600], zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("load", LOADERS)
def test_compressed_files_are_refused_everywhere(compressed, tmp_path, little_memory, load):
    (tmp_path / "a.pt").write_bytes(compressed)
    assert (tmp_path / "a.pt").stat().st_size < 2**20
    with pytest.raises(EditingError, match=r"a\.pt is compressed"):
        load(tmp_path / "a.pt")


def test_a_zip_with_parts_without_end(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(110_000):
            archive.writestr(f"part/{number}", b"")
    (tmp_path / "a.pt").write_bytes(stream.getvalue())
    with pytest.raises(EditingError, match="has too many parts"):
        load_legacy_tensor(tmp_path / "a.pt")


@pytest.mark.parametrize("old", [False, True])
def test_a_network_inside_itself_again_and_again(tmp_path, old):
    """Two by two forty deep: a short file that says 2^40 networks."""
    part = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for _ in range(40):
        part = torch.nn.Sequential(part, part)
    torch.save(part, tmp_path / "a.pt", **(OLD if old else {}))
    with pytest.raises(EditingError, match="repeats its networks without end"):
        read_network_pickle(tmp_path / "a.pt")


def test_the_same_block_as_many_tensors(tmp_path, little_memory):
    block = torch.zeros(2**20)
    torch.save(OrderedDict((str(number), block) for number in range(2000)), tmp_path / "a.pt")
    with pytest.raises(EditingError, match="unfolds to more than it holds"):
        load_weights(tmp_path / "a.pt")
    torch.save({"a": block, "b": block.reshape(2, -1)}, tmp_path / "a.pt")  # tied weights are honest
    assert load_weights(tmp_path / "a.pt")["b"].shape == (2, 2**19)


def test_one_number_stretched_to_many(tmp_path, little_memory):
    torch.save({"a": torch.zeros(1).expand(2**18, 2**18)}, tmp_path / "a.pt")
    with pytest.raises(EditingError, match=r"a\.pt (unfolds|is damaged)"):
        load_weights(tmp_path / "a.pt")


def test_a_pickle_longer_than_any(tmp_path):
    (tmp_path / "a.pt").write_bytes(zipped(b"\x80\x02" + b"N0" * MAX_OPCODES + b"N."))
    with pytest.raises(EditingError, match="damaged"):
        load_legacy_tensor(tmp_path / "a.pt")


def test_the_old_layout_may_not_claim_more_than_the_file_has(tmp_path, little_memory):
    path = tmp_path / "a.pth"
    torch.save(OrderedDict(a=torch.arange(8.0)), path, **OLD)
    torch.testing.assert_close(load_weights(path)["a"], torch.arange(8.0), rtol=0, atol=0)
    data = path.read_bytes()
    place = data.index(struct.pack("<q", 8), len(data) - 8 - 32 - 8)
    for count in (9, 2**40, -1):
        path.write_bytes(data[:place] + struct.pack("<q", count) + data[place + 8 :])
        with pytest.raises(EditingError, match="damaged"):
            load_weights(path)


def test_the_old_layout_says_what_torch_says(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(turned=base.t(), part=base[1:3, ::2], half=base.half(), flag=base > 3, one=base.sum())
    torch.save(state, tmp_path / "a.pth", **OLD)
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    found = load_weights(tmp_path / "a.pth")
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


# Inversions
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "levels",
    [
        [0.0, float("nan"), 3.0], [float("nan"), 1.0, 3.0], [0.0, 1.0, float("inf")], [0.0, 3.0, 1.0], [3.0, 1.0, 0.0],
        [0.0, 0.0, 3.0], [1.0, 1.0, 3.0], [-1.0, 1.0, 3.0], [0.0, 0.0, 0.0],
    ],
    ids=str,
)  # fmt: skip
def test_levels_that_are_no_numbers_negative_or_out_of_order(made, tmp_path, levels):
    path = made("inversion", tmp_path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors | {"sigmas": torch.tensor(levels)}, metadata, overwrite=True)
    with pytest.raises(EditingError, match="noise levels that are missing, not numbers, negative or out of order"):
        Inversion.load(path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("sigmas", torch.zeros(0)),
        ("sigmas", torch.tensor([1.0])),
        ("sigmas", torch.tensor([0, 1, 3])),
        ("latents", torch.zeros(3, 0, 4, 4, 4)),
        ("latents", torch.zeros(3, 1, 5, 4, 4)),
        ("latents", torch.full((3, 1, 4, 4, 4), float("nan"))),
        ("latents", torch.zeros(3, 1, 4, 4, 4, dtype=torch.int32)),
        ("forward_evaluations", -torch.ones(2, 1)),
        ("backward_evaluations", torch.full((2, 1), float("nan"))),
        ("residuals", torch.zeros(2, 2)),
        ("cond.embeds", torch.full((1, 7, 8), float("inf"))),
    ],
)
def test_parts_of_an_inversion_that_cannot_be_used(made, tmp_path, part, value):
    path = made("inversion", tmp_path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors | {part: value}, metadata, overwrite=True)
    with pytest.raises(EditingError):
        Inversion.load(path)


@pytest.mark.parametrize(
    "identity",
    [
        {}, [], "sd1", {"family": "sd1"}, {"family": 1, "latent_channels": 4, "prediction": "eps", "signature": []},
        {"family": "sd1", "latent_channels": 4, "prediction": "magic", "signature": []},
        {"family": "sd1", "latent_channels": 4, "prediction": "eps", "signature": ["a"]},
        {"family": "sd1", "latent_channels": 1e400, "prediction": "eps", "signature": []},
        {"family": "sd1", "latent_channels": 4, "prediction": "eps", "signature": [float("nan")]},
    ],
)  # fmt: skip
def test_a_model_that_no_model_is(made, tmp_path, identity):
    path = made("inversion", tmp_path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | {"identity": json.dumps(identity)}, overwrite=True)
    with pytest.raises(EditingError, match=r"a\.safetensors \(identity\) is damaged"):
        Inversion.load(path)


@pytest.mark.parametrize(
    "words",
    [
        {}, [], "a cat", {"text": "a cat"}, {"text": 3, "tokens": {"l": [[1] * 7]}}, {"text": "a", "tokens": {}},
        {"text": "a", "tokens": {"l": []}}, {"text": "a", "tokens": {"l": [[]]}}, {"text": "a", "tokens": {"l": [7]}},
        {"text": "a", "tokens": {"l": [[1.5] * 7]}}, {"text": "a", "tokens": {"l": [[2**60] * 7]}},
        {"text": "a", "tokens": {"l": [[1] * 8]}}, {"text": "a", "tokens": {"l": [[1] * 7], "g": [[1] * 7] * 2}},
        {"text": "a" * 100_001, "tokens": {"l": [[1] * 7]}}, {"text": "\ud800", "tokens": {"l": [[1] * 7]}},
        {"text": "a", "tokens": {"l": [[1] * 1025]}},
    ],
    ids=lambda words: str(words)[:60],
)  # fmt: skip
def test_words_that_no_prompt_has(made, tmp_path, words):
    path = made("inversion", tmp_path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | {"words": json.dumps(words)}, overwrite=True)
    with pytest.raises(EditingError, match=r"a\.safetensors (\(words\) is damaged|has words that do not fit)"):
        Inversion.load(path)


# Libraries
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package that is imported from now on under the name of another."""

    written = []

    def write(name, code):
        written.append(name)
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "packages")
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)

    yield write
    for module in [module for module in sys.modules if module.split(".")[0] in written]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
        ("import no_such_part", "ModuleNotFoundError: No module named 'no_such_part'"),
        ("from json import no_such_name", "ImportError: cannot import name"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "def __getattr__(name): raise RuntimeError('Failed to import ' + name)",
            "RuntimeError: Failed to import models",
        ),
    ],
)
def test_a_broken_library_is_called_that(package, code, reason):
    package("torchvision", code)
    with pytest.raises(EditingError, match=rf"^torchvision is installed but broken in this Python \({reason}"):
        libraries.library("torchvision", "LPIPS", "models")


def test_a_missing_library_is_called_that():
    with pytest.raises(
        EditingError, match=r"^LPIPS needs no_such_thing, which this Python lacks; install it with: pip"
    ):
        libraries.library("no_such_thing.inner", "LPIPS")


def test_a_folder_is_not_blamed_for_a_broken_library(made, tmp_path, monkeypatch):
    path = made("classifier folder", tmp_path)

    def fails(*_args, **_options):
        raise RuntimeError("Failed to import") from ModuleNotFoundError("No module named 'torchvision'")

    import transformers

    monkeypatch.setattr(transformers.ViTForImageClassification, "from_pretrained", fails)
    with pytest.raises(EditingError, match="transformers is installed but broken in this Python"):
        load_image_classifier(path)


def test_a_machine_without_memory_is_not_blamed_on_a_file(made, tmp_path, monkeypatch):
    path = made("vision folder", tmp_path)
    import transformers

    def fails(*_args, **_options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", fails)
    with pytest.raises(RuntimeError, match="not enough memory"):
        load_vision_features(path)


def test_an_error_that_only_speaks_of_memory_is_not_lack_of_it(made, tmp_path):
    """torch answers a wrong size with a text about memory formats."""
    path = made("aMUSEd folder", tmp_path)
    changed(path / "transformer" / "config.json", intermediate_size=0.5)
    with pytest.raises(EditingError, match="damaged or unknown to the installed diffusers"):
        SAMPLES["aMUSEd folder"].load(path)
    assert libraries.is_out_of_memory(MemoryError()) and not libraries.is_out_of_memory(TypeError("memory_format"))


def test_the_bombs_are_live():
    """The first of them calls os.system when it is unpickled the ordinary way; the reader has seen all of them."""
    assert b"system" in BOMBS[0] and isinstance(pickle.dumps(1), bytes)

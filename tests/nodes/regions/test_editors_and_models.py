"""The region search's loaders and editor nodes under the stand-in host: what they read, pass on, and refuse."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from semantic_editing.tests.refusals import refusal
from semantic_editing.tools import host_stand_in

PACK = host_stand_in.load_pack()
MODELS, EDITORS = host_stand_in.module("nodes.regions.models"), host_stand_in.module("nodes.regions.editors")
host_stand_in.module("nodes.demo.load")  # enters the demo's models into the loaders' lists
EditingError = host_stand_in.module("core.errors").EditingError
save_tensors = host_stand_in.module("core.files").save_tensors
RegionNetwork = host_stand_in.module("core.regions.network").RegionNetwork


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The host's functions that the nodes use, over a temporary folder."""
    for name in ("manage_vision", "manage_scorer"):
        monkeypatch.setattr(MODELS, name, lambda make: make())
    for module in (MODELS, EDITORS, host_stand_in.module("nodes.common.reports")):
        monkeypatch.setattr(module, "resolve_model", lambda kind, name, mark="": tmp_path / name)
    for module in (MODELS, host_stand_in.module("nodes.common.reports")):
        monkeypatch.setattr(module, "resolve_file", lambda kind, name: tmp_path / name)
    monkeypatch.setattr(MODELS, "output_path", lambda kind, name: tmp_path / f"{name}.safetensors")
    return tmp_path


def vision(name, heads=0):
    return MODELS.LoadVisionFeatures.execute(name, heads)


def scorer(name, architecture="ViT-B-16"):
    return MODELS.LoadCLIPScorer.execute(name, architecture)


def test_all_nodes_load_and_start_with_the_demo():
    nodes = {
        node.define_schema().node_id: node.define_schema()
        for node in PACK.load_nodes(("regions.models", "regions.editors"))
    }
    assert len(nodes) == 7 and all(name.startswith("SemEdit_") for name in nodes)
    for name in ("LoadVisionFeatures", "LoadCLIPScorer"):
        assert nodes[f"SemEdit_{name}"].inputs[0].options["default"] == "demo model"


def test_the_demo_models_are_always_there(folder, monkeypatch):
    room = host_stand_in.module("nodes.demo.comfy_model")
    demo = room.load_demo_networks()
    monkeypatch.setattr(room, "load_demo_networks", lambda: demo)  # once for both
    found, report = vision("demo model").args
    image = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    assert found(image).attention.shape[1:] == (4, 12, 8) and "demo model: patches of 16 pixels" in report
    judge = scorer("demo model").args[0]
    assert judge.text_features(["a face"]).shape[1] == judge.embed_images(image).features.shape[1]


def test_a_vit_file_and_what_is_none(folder):
    width, generator = 16, torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 5, width), "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
        "blocks.0.norm1.weight": (width,), "blocks.0.norm1.bias": (width,),
        "blocks.0.attn.qkv.weight": (3 * width, width), "blocks.0.attn.qkv.bias": (3 * width,),
        "blocks.0.attn.proj.weight": (width, width),
        "blocks.0.attn.proj.bias": (width,), "blocks.0.norm2.weight": (width,), "blocks.0.norm2.bias": (width,),
        "blocks.0.mlp.fc1.weight": (32, width), "blocks.0.mlp.fc1.bias": (32,), "blocks.0.mlp.fc2.weight": (width, 32),
        "blocks.0.mlp.fc2.bias": (width,),
    }  # fmt: skip
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_tensors(folder / "vit.safetensors", weights, {})
    found, report = vision("vit.safetensors", heads=2).args
    assert (
        found(torch.rand(1, 3, 12, 8)).attention.shape == (1, 2, 3, 2)
        and "patches of 4 pixels, images of about 8" in report
    )
    assert "vit.safetensors cannot be used: Its 16 channels" in refusal(vision, name="vit.safetensors", heads=3)
    save_tensors(folder / "unet.safetensors", {"input_blocks.0.0.weight": torch.ones(2, 4, 3, 3)}, {})
    assert "unet.safetensors" in refusal(vision, name="unet.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    assert "broken.safetensors is damaged" in refusal(vision, name="broken.safetensors")


def test_folders_of_other_models(folder):
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "another kind (bert)" in refusal(vision, name="bert")
    assert "holds a bert model" in refusal(scorer, name="bert")
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert "no .safetensors weights" in refusal(scorer, name="bert")
    (folder / "bert" / "model.safetensors").write_bytes(b"weights")
    assert "model.safetensors is damaged" in refusal(scorer, name="bert")


def test_clip_folders_and_files_go_their_own_ways(folder, monkeypatch):
    heard, clip = [], host_stand_in.module("core.models.clip")
    monkeypatch.setattr(clip, "load_transformers_clip", lambda path: heard.append(path.name))
    monkeypatch.setattr(clip, "load_open_clip", lambda path, architecture: heard.append((path.name, architecture)))
    (folder / "clip").mkdir()
    save_tensors(folder / "open.safetensors", {"visual.proj": torch.ones(1)}, {})
    key = "vision_model.embeddings.class_embedding"
    save_tensors(folder / "transformers.safetensors", {key: torch.ones(1)}, {})
    scorer("clip", "ViT-L-14")
    scorer("open.safetensors", " ViT-L-14 ")
    scorer("transformers.safetensors", "ViT-L-14")
    assert heard == ["clip", ("open.safetensors", "ViT-L-14"), "transformers.safetensors"]


def test_one_side_of_a_clip_is_no_judge(folder):
    key = "vision_model.embeddings.class_embedding"
    save_tensors(folder / "clip_vision.safetensors", {key: torch.ones(1)}, {})
    assert "clip_vision.safetensors is no whole CLIP (no text side)" in refusal(scorer, name="clip_vision.safetensors")


def test_an_absent_model_is_named_with_the_folders_for_it(monkeypatch, tmp_path):
    node, folders = MODELS.LoadCLIPScorer, host_stand_in.module("nodes.host.folders")
    (tmp_path / "clip_scorer" / "whole").mkdir(parents=True)
    (tmp_path / "clip_scorer" / "whole" / "config.json").write_bytes(b"{}")
    files = ["sub\\clip.safetensors", "old.pt"]
    stand_in = SimpleNamespace(
        get_folder_paths=lambda kind: [str(tmp_path / kind)],
        get_filename_list=lambda kind: files if kind == "clip_vision" else [],
        get_full_path=lambda kind, name: str(tmp_path / kind / name) if name in files else None,
    )
    monkeypatch.setattr(folders, "folder_paths", stand_in)
    for name in ("demo model", "whole", "sub/clip.safetensors", None):
        assert node.validate_inputs(name) is True
    for name in ("clip-vit-base-patch32.safetensors", "old.pt", "../up.safetensors"):
        assert node.validate_inputs(name) == (
            f"'{name}' is not in ComfyUI's models/clip_scorer folder nor, as a .safetensors file, in "
            "models/clip_vision; put the file into one of them and refresh the node."
        )
    told = MODELS.LoadVisionFeatures.validate_inputs("dino.safetensors")
    assert told.startswith("'dino.safetensors' is not in ComfyUI's models/vision_features folder nor")


def test_a_network_comes_back_and_can_be_trained_on(folder):
    network = RegionNetwork(5, 3, seed=1, vision="eye")
    saved = {"region_network": network, "filename": "net", "overwrite": False}
    with torch.inference_mode():
        assert MODELS.SaveRegionNetwork.execute(**saved).args == ("net.safetensors",)
        again, report = MODELS.LoadRegionNetwork.execute("net.safetensors").args
    regions, valid = torch.rand(2, 3, 5, 7, 7), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(again(regions, valid), network(regions, valid)) and again.vision == "eye"
    again(regions, valid).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
    assert "3 boxes at each anchor and 5 vision features" in report
    assert "exists already" in refusal(MODELS.SaveRegionNetwork.execute, **saved)
    assert MODELS.SaveRegionNetwork.execute(**(saved | {"overwrite": True})).args == ("net.safetensors",)


def test_a_trained_network_that_the_disk_refuses_is_rescued(folder, monkeypatch):
    saving, save = host_stand_in.module("nodes.common.saving"), RegionNetwork.save

    def full(network, path, **options):
        if path.parent.name != "output":
            raise EditingError(f"{path.name} could not be written (No space left on device); free some.")
        return save(network, path, **options)

    monkeypatch.setattr(RegionNetwork, "save", full)
    monkeypatch.setattr(saving, "rescue_folders", lambda: [("the output folder", folder / "output")])
    network = RegionNetwork(5, 3, seed=1, vision="eye")
    result = MODELS.SaveRegionNetwork.execute(network, "net", False)
    assert result.args == ("",) and "kept as net.safetensors in the output folder" in str(result.ui)
    kept = RegionNetwork.load(folder / "output" / "net.safetensors").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_other_files_are_no_networks(folder):
    save_tensors(folder / "other.safetensors", {"x": torch.ones(1)}, {"format": "something"})
    assert "not a semantic_editing.region_network file" in refusal(
        MODELS.LoadRegionNetwork.execute, network_file="other.safetensors"
    )
    assert "was not found" in refusal(MODELS.LoadRegionNetwork.execute, network_file="absent.safetensors")


def test_a_model_put_in_anew_is_read_anew(folder):
    (folder / "dino" / "deep").mkdir(parents=True)
    (folder / "dino" / "config.json").write_bytes(b"1")
    (folder / "net.safetensors").write_bytes(b"1")

    def fingerprints():
        return [
            MODELS.LoadVisionFeatures.fingerprint_inputs("dino", 0),
            MODELS.LoadCLIPScorer.fingerprint_inputs("dino", "ViT-B-16"),
            EDITORS.RegionTokenEditor.fingerprint_inputs("dino", text="a face", steps=3),
            MODELS.LoadRegionNetwork.fingerprint_inputs("net.safetensors"),
        ]

    before = fingerprints()
    assert before == fingerprints()
    (folder / "dino" / "deep" / "model.safetensors").write_bytes(b"22")
    (folder / "net.safetensors").write_bytes(b"22")
    assert all(new != old for new, old in zip(fingerprints(), before, strict=True))
    assert MODELS.LoadVisionFeatures.fingerprint_inputs("demo model") == MODELS.LoadVisionFeatures.fingerprint_inputs(
        "demo model"
    )


@pytest.fixture
def openers(monkeypatch, folder):
    """What the host was asked to open, by the opener's name."""
    asked = {}

    def recorder(name):
        @contextmanager
        def opened(image, progress):
            yield name

        def opener(*inputs):
            asked[name] = inputs
            return opened

        return opener

    for name in ("inpaint_opener", "inversion_opener", "token_opener"):
        monkeypatch.setattr(EDITORS, name, recorder(name))
    return asked


def test_editors_pass_on_what_is_wired_and_open_when_asked(openers, folder):
    steps = {"steps": 9, "cfg": 3.5, "feather": 1}
    made = [
        EDITORS.RegionInpaintEditor.execute(
            "m", "v", "p", "n", strength=0.5, context=1.0, working_size=64, source="now", **steps
        ),
        EDITORS.RegionInversionEditor.execute("m", "v", "s", "t", negative="n", guidance=0.2, working_size=64, **steps),
        EDITORS.RegionTokenEditor.execute("amused", "a cat", "blurred", context=1.0, **steps),
    ]
    room = host_stand_in.module
    framing = room("core.regions.paste").Framing(1.0, working_size=64, feather=1)
    paint = room("core.regions.edit_inpaint").InpaintSettings(3.5, 9, strength=0.5, framing=framing)
    edit = room("core.regions.edit_invert").InversionEditSettings(3.5, 0.2, 9, working_size=64, feather=1)
    tokens = room("core.regions.edit_tokens").TokenEditSettings(3.5, 9)
    assert openers == {
        "inpaint_opener": ("m", "v", "p", "n", paint, "now", None, None),
        "inversion_opener": ("m", "v", "s", "t", "n", None, edit),
        "token_opener": (folder / "amused", "a cat", "blurred", tokens, 1.0, 1),
    }
    editors = [output.args[0] for output in made]
    for editor, name in zip(editors, openers, strict=True):
        with editor.open(torch.zeros(1, 3, 8, 8), lambda progress: None) as opened:
            assert opened == name
        line = editor.title
        assert "9 " in line and "cfg 3.5" in line and "\n" not in line


def test_a_ready_inversion_brings_its_steps_and_what_changed_since(openers, monkeypatch):
    Inversion, identity = (
        host_stand_in.module("core.inversion").Inversion,
        host_stand_in.module("core.denoiser").ModelIdentity("sd1", 4, "eps"),
    )
    ones = torch.ones(3, 1, dtype=torch.long)
    ready = Inversion(
        torch.zeros(4, 1, 4, 8, 8), torch.arange(4.0), torch.zeros(3, 1), ones, ones * 0, identity, "ddim"
    )
    inputs = {"steps": 20, "cfg": 3.0, "guidance": 0.1, "working_size": 64, "feather": 1}
    monkeypatch.setattr(EDITORS, "identity", lambda model: identity)
    monkeypatch.setattr(EDITORS, "changed_remarks", lambda *given: [f"asked {given[0] is ready} {given[2:]}"])
    (editor,) = EDITORS.RegionInversionEditor.execute("m", "v", "s", "t", inversion=ready, **inputs).args
    assert "3 steps" in editor.title and openers["inversion_opener"][5] is ready
    assert editor.title.endswith("; asked True ('s', None, 3.0)")

"""CASO training on a live server: its embedding works in any prompt; Cancel keeps the best and spares the model."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from semantic_editing.tools.comfy_server import PromptFailed

PORTRAITS = sorted((Path(__file__).resolve().parents[2] / "assets" / "demo" / "images").glob("*.png"))[:4]
SAMPLER = {"seed": 5, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}


def training(**changed):
    """Demo model, classifier and four portraits into the trainer; ``changed`` are inputs of it or of its settings."""
    widgets = {
        "having_folder": "none", "without_folder": "none", "lookalikes_folder": "none", "kind": "large",
        "start_words": "", "filename": "live", "overwrite": True, "resume": False,
    }  # fmt: skip
    settings = {
        "loss": "classifier", "steps": 3, "batch_size": 1, "seed": 1, "tokens": 1, "learning_rate": 0.05, "cfg": 10.0,
        "noise_level": 0.3, "band": 0.0, "attribute": "glasses", "reconstruction": 5.0, "keep_others": 1.0, "bank": 1,
        "augmentation": 1.0, "flip": True, "held_out": 1, "check_every": 2, "look_strength": 0.0, "look_steps": 4,
        "checkpointing": True, "targets": "glasses", "image_size": 0,
    }  # fmt: skip
    settings |= {name: changed.pop(name) for name in list(changed) if name in settings}
    loader = {"classifier_file": "demo", "attribute": "", "class_names": "", "input_size": 0, "normalisation": "auto"}
    sockets = {"model": ["demo", 0], "clip": ["demo", 1], "vae": ["demo", 2], "attribute_classifier": ["classifier", 0]}
    return {
        "demo": {"class_type": "SemEdit_LoadDemoModel", "inputs": {}},
        "classifier": {"class_type": "SemEdit_AttributeClassifierLoader", "inputs": loader},
        "pictures": {
            "class_type": "SemEdit_LoadDemoImage",
            "inputs": {"pictures": "portraits", "number": 0, "count": 4},
        },
        "settings": {"class_type": "SemEdit_CASOTrainingSettings", "inputs": settings},
        "train": {
            "class_type": "SemEdit_CASOEmbeddingTrainer",
            "inputs": widgets | sockets | {"without": ["pictures", 0], "settings": ["settings", 0]} | changed,
        },
    }


def painting(name, positive, denoise=1.0):
    """A stock KSampler on the demo model under ``positive``, whose latent is saved as ``name``."""
    inputs = SAMPLER | {
        "model": ["demo", 0],
        "positive": positive,
        "negative": ["none", 0],
        "latent_image": ["empty", 0],
    }
    return {
        "demo": {"class_type": "SemEdit_LoadDemoModel", "inputs": {}},
        "none": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": ""}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        name: {"class_type": "KSampler", "inputs": inputs | {"denoise": denoise}},
        f"save {name}": {"class_type": "SaveLatent", "inputs": {"samples": [name, 0], "filename_prefix": name}},
    }


def saved(server, name):
    return load_file(str(sorted((server.base / "output").glob(f"{name}_*.latent"))[-1]))["latent_tensor"]


def test_an_embedding_trained_from_a_folder_works_in_stock_clip_text_encode(server):
    start, folder = len(server.log()), server.base / "input" / "faces"
    folder.mkdir()
    for path in PORTRAITS:
        shutil.copy(path, folder)
    (folder / "broken.png").write_bytes(b"no picture")
    prompt = training(without_folder="faces")
    del prompt["pictures"], prompt["train"]["inputs"]["without"]
    said = server.queue(prompt)["outputs"]["train"]
    report = said["text"][0]
    assert (
        "3 steps on 3 pictures, 1 held out" in report
        and "skipped 1 unreadable: faces/broken.png" in report
        and said["images"]
    )
    loader = {"clip": ["demo", 1], "embedding_file": "live.safetensors"}
    prompt = (
        painting("by name", ["text", 0])
        | painting("by loader", ["loader", 1])
        | painting("by nothing", ["none", 0])
        | {
            "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": "embedding:live"}},
            "loader": {"class_type": "SemEdit_CASOEmbeddingLoader", "inputs": loader},
        }
    )
    server.queue(prompt)
    stock, ours, nothing = (saved(server, f"by {way}") for way in ("name", "loader", "nothing"))
    torch.testing.assert_close(stock, ours, rtol=0, atol=1e-4)
    assert float((stock - nothing).abs().max()) > 1e-3
    assert "does not exist" not in server.log()[start:], "the host warns of an embedding it cannot find"


def test_cancel_in_mid_training_keeps_the_best_and_leaves_the_model_as_it_was(server):
    server.queue(painting("before", ["none", 0]))
    kept = server.base / "models" / "embedding_trainings" / "long.safetensors"
    prompt = training(filename="long", steps=10_000, check_every=1)
    with server.cancelled(prompt, after=lambda _: kept.is_file()) as (entry, seconds):
        kinds = [kind for kind, _ in entry["status"]["messages"]]
        assert "execution_interrupted" in kinds and "execution_error" not in kinds
        assert seconds < 30  # 10,000 steps take hours
    with safe_open(str(server.base / "models" / "embeddings" / "long.safetensors"), "pt") as stream:
        assert bool(stream.get_tensor("emb_params").isfinite().all()) and stream.metadata()["target"] == "glasses"
    server.queue(painting("after", ["none", 0], denoise=0.99995))
    assert torch.equal(saved(server, "before"), saved(server, "after"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attribute": "hairs"}, "hairs"),
        ({"targets": "spectacles"}, "has no class 'spectacles'"),
        ({"filename": "../escape"}, "file name"),
        # newer hosts refuse what no list has, the floor leaves it to the node
        ({"without_folder": "nowhere", "without": None}, "Value not in list|is no folder inside"),
        ({"without_folder": "../models", "without": None}, "Value not in list|leads to another folder"),
    ],
)
def test_refused_before_anything_is_learned(server, changed, said):
    prompt = training(**changed)
    if prompt["train"]["inputs"]["without"] is None:
        del prompt["train"]["inputs"]["without"]
    with pytest.raises(PromptFailed, match=said):
        server.queue(prompt)

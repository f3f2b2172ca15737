"""The Python API that README.md shows: names and arguments stay, and the example runs as it stands (with fewer
steps)."""

import inspect
import re
import runpy
from pathlib import Path

import pytest
import torch

from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.diffusers.denoiser import DiffusersDenoiser
from semantic_editing.core.pix2pix_zero.guided_edit import cross_attention_guided_edit
from semantic_editing.core.sampling import reconstruct
from semantic_editing.core.spdinv.invert import invert

README = Path(__file__).parents[1] / "README.md"
EMPTY = inspect.Parameter.empty
#: Positional arguments with their defaults.
SIGNATURES = [
    (DiffusersDenoiser, {"unet": EMPTY, "scheduler": EMPTY}),
    (
        invert,
        {
            "denoiser": EMPTY,
            "latent": EMPTY,
            "cond": EMPTY,
            "steps": 50,
            "solver": "auto",
            "tolerance": 5e-6,
            "max_iterations": 25,
        },
    ),
    (reconstruct, {"denoiser": EMPTY, "inversion": EMPTY, "cond": EMPTY, "cfg": 1.0, "uncond": None}),
    (
        cross_attention_guided_edit,
        {"denoiser": EMPTY, "inversion": EMPTY, "source_cond": EMPTY, "target_cond": EMPTY, "uncond": None},
    ),
]


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda value: getattr(value, "__name__", ""))
def test_arguments_stay(function, expected):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in list(parameters)[: len(expected)]} == expected
    assert list(parameters)[: len(expected)] == list(expected)
    if function is cross_attention_guided_edit:
        assert (parameters["cfg"].default, parameters["guidance"].default) == (2.0, 0.05)


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)
    shorter = example.replace("steps=50", "steps=2").replace("pair.words, 256", "pair.words, 4")
    assert shorter.count("steps=2") == 1 and shorter.count("words, 4") == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(shorter, "utf-8")
    with torch.no_grad():
        names = runpy.run_path(str(tmp_path / "example.py"))
    inversion, latent = names["inversion"], names["latent"]
    assert inversion.latents.shape == (3, 1, 4, 16, 16) and inversion.sigmas.diff().min() > 0
    assert inversion.noise.shape == latent.shape and inversion.residuals.shape == (2, 1) and inversion.evaluations >= 2
    assert float((names["again"] - latent).square().mean()) < 0.01 * float(latent.square().mean())
    assert names["edited"].shape == (1, 3, 128, 128) and 0 <= names["edited"].min() <= names["edited"].max() <= 1
    loaded = names["Inversion"].load(tmp_path / "portrait.safetensors")
    assert torch.equal(loaded.latents, inversion.latents)
    moved, _ = names["EditDirection"].load(tmp_path / "smile.safetensors").apply(names["source"], strength=1.0)
    assert torch.equal(moved, names["moved"]) and not torch.equal(moved, names["source"])


def test_what_the_demo_model_hands_out():
    demo = load_demo_model()
    assert type(demo.unet).__name__ == "UNet2DConditionModel" and type(demo.vae).__name__ == "AutoencoderKL"
    assert (
        demo.images.shape[1:] == (3, 128, 128) and len(demo.images) == len(demo.captions) == len(demo.attributes) >= 24
    )
    assert demo.pairs[0].source.shape == demo.pairs[0].target.shape == (3, 128, 128) and demo.pairs[0].edit
    logits = demo.classify(demo.images[:2])
    assert set(logits) == set(demo.attributes[0]) and all(len(values) == 2 for values in logits.values())

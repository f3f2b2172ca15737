"""From a generator to a mapper inside the host: latents of samples and of a folder, training, Cancel, relevance."""

from types import SimpleNamespace

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from conftest import PACK, on_settings
from PIL import Image

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")
LATENTS = {
    "filename": "faces", "overwrite": False, "folder": "", "style_encoder": "none", "samples": 40, "truncation": 1.0,
    "seed": 3, "batch_size": 20,
}  # fmt: skip
TRAINER = {
    "filename": "mine", "overwrite": False, "preset": "fast", "steps": 6, "batch_size": 8, "seed": 0, "resume": False,
    "learning_rate": 0.0, "hidden": 8, "check_every": 2,
}  # fmt: skip
RELEVANCE = {
    "filename": "matrix", "overwrite": False, "method": "perturbation", "faces": 1, "amount": 2.0, "seed": 0,
    "batch_size": 72,
}  # fmt: skip


@pytest.fixture
def nodes(pack, tmp_path, monkeypatch):
    """The three nodes, over folders of their own; networks may be evicted between calls."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    for kind in ("delta_latents", "delta_mappers", "mapper_trainings", "style_encoders"):
        folder_paths.folder_names_and_paths.pop(kind, None)
    (tmp_path / "input" / "faces").mkdir(parents=True)
    found = [pack(f"nodes.deltaedit.{name}").NODES[0] for name in ("latents", "mapper_trainer", "relevance")]
    return SimpleNamespace(**{node.__name__: node for node in found})


@pytest.fixture
def wires(pack):
    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = pack("core.deltaedit.stylegan2").StyleGAN2(64, dict.fromkeys((4, 8, 16, 32, 64), 4), 6, 2)
        made.identity = "tiny"
        return made

    with torch.inference_mode():
        generator = pack("nodes.deltaedit.sockets").Managed.make(make)
        scorer = pack("nodes.regions.models").LoadCLIPScorer.execute("demo model", "ViT-B-16").args[0]
    return {"stylegan2": generator, "clip_scorer": scorer}


def run(node, **inputs):
    """As the host runs a node."""
    with torch.inference_mode():
        return node.execute(**inputs).args


@pytest.fixture
def latents(nodes, wires):
    return run(nodes.DeltaEditLatents, **wires, **LATENTS)[0]


def test_samples_and_a_folder_become_latents(pack, nodes, wires, tmp_path):
    encoder = pack("core.deltaedit.encoder").CompactEncoder(wires["stylegan2"].network.layout.rows, 6, 16, (8, 8), 16)
    (tmp_path / "style_encoders").mkdir()
    pack("core.deltaedit.encoder_files").save_encoder(tmp_path / "style_encoders" / "e.safetensors", encoder)
    for number in range(3):
        Image.new("RGB", (24, 24), (80 * number, 10, 90)).save(tmp_path / "input" / "faces" / f"{number}.png")
    options = LATENTS | {"folder": "faces", "style_encoder": "e.safetensors", "samples": 2}
    latents, report = run(nodes.DeltaEditLatents, **wires, **options)
    assert latents.names == ("0.png", "1.png", "2.png", "seed 3", "seed 4") and "Saved faces.safetensors" in report
    mm.unload_all_models()
    again, report = run(nodes.DeltaEditLatents, **wires, **options)
    assert "holds them already" in report and torch.equal(again.convs, latents.convs)
    picture = wires["stylegan2"].network.synthesize(latents.code(slice(3, 4)))
    assert picture.shape == (1, 3, 64, 64) and picture.isfinite().all()


def trainer(pack, **changed):
    return on_settings(pack("nodes.deltaedit.training_settings").TrainingChoices, TRAINER | changed)


def test_a_mapper_is_trained_and_stopped_and_gone_on_with(pack, nodes, latents, tmp_path, monkeypatch):
    whole, plot, report = run(nodes.DeltaEditMapperTrainer, delta_latents=latents, **trainer(pack, filename="whole"))
    assert plot.ndim == 4 and "cosine" in report and "Saved whole.safetensors" in report
    state = pack("nodes.host.progress").StoppableBar
    show = state.show

    def pressing(self, done, total, *args, **kwargs):
        if done == 4:
            mm.interrupt_current_processing()
        show(self, done, total, *args, **kwargs)

    monkeypatch.setattr(state, "show", pressing)
    with pytest.raises(mm.InterruptProcessingException):
        run(nodes.DeltaEditMapperTrainer, delta_latents=latents, **trainer(pack))
    monkeypatch.setattr(state, "show", show)
    assert (tmp_path / "delta_mappers" / "mine.safetensors").exists()
    made = run(nodes.DeltaEditMapperTrainer, delta_latents=latents, **trainer(pack, resume=True))[0].network
    assert all(torch.equal(value, whole.network.state_dict()[name]) for name, value in made.state_dict().items())
    assert not any(value.is_inference() or value.requires_grad for value in made.state_dict().values())


def test_relevance_by_moving_channels(nodes, wires, latents):
    relevance, report = run(nodes.RelevanceMatrix, delta_latents=latents, **wires, **RELEVANCE)
    assert relevance.matrix.shape == (36, 256) and "72 pictures drawn" in report
    lengths = relevance.matrix.norm(dim=1)
    assert ((lengths - 1).abs() < 1e-4).logical_or(lengths == 0).all() and lengths.sum() > 10

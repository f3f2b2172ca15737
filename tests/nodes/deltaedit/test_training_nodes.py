"""DeltaEdit Latents, Mapper Trainer and Relevance Matrix under the stand-in host: what they keep and refuse."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from semantic_editing.tests.nodes.stand_ins import Cancelled, EditingError, Held, on_settings, same, stand_in
from semantic_editing.tests.refusals import refusal
from semantic_editing.tools import host_stand_in

GATHER, TRAIN, RELATE, TRAINING = (
    host_stand_in.module(f"nodes.{name}")
    for name in ("deltaedit.latents", "deltaedit.mapper_trainer", "deltaedit.relevance", "common.training")
)
StyleGAN2 = host_stand_in.module("core.deltaedit.stylegan2").StyleGAN2
CompactEncoder = host_stand_in.module("core.deltaedit.encoder").CompactEncoder
files = host_stand_in.module("core.deltaedit.mapper_files")
load_latents = host_stand_in.module("core.deltaedit.latents").load_latents
save_encoder = host_stand_in.module("core.deltaedit.encoder_files").save_encoder
both = host_stand_in.module("core.deltaedit.relevance").both
#: Sample faces, tiny networks: made of the stand-in's own classes.
tiny = importlib.import_module("semantic_editing.tests.core.deltaedit.tiny_latents")
LATENTS = {
    "filename": "faces", "overwrite": False, "folder": "", "style_encoder": "none", "samples": 40, "truncation": 1.0,
    "seed": 3, "batch_size": 8,
}  # fmt: skip
TRAINER = {
    "filename": "mine", "overwrite": False, "preset": "fast", "steps": 6, "batch_size": 8, "seed": 0, "resume": False,
    "learning_rate": 0.0, "hidden": 8, "check_every": 2,
}  # fmt: skip
RELEVANCE = {
    "filename": "matrix", "overwrite": False, "method": "covariance", "faces": 2, "amount": 2.0, "seed": 0,
    "batch_size": 16,
}  # fmt: skip


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The host's folders and functions, over a temporary folder; ``host.bar.press_at`` presses Cancel."""
    bar = stand_in(monkeypatch, tmp_path, GATHER, TRAIN, RELATE, TRAINING)
    monkeypatch.setattr(GATHER, "encoder_file", lambda name: tmp_path / name)
    return SimpleNamespace(bar=bar, path=tmp_path)


@pytest.fixture(scope="module")
def generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = StyleGAN2(64, dict.fromkeys((4, 8, 16, 32, 64), 4), style_dim=6, mapping_layers=2)
    made.identity = "generator"
    return Held(made.eval().requires_grad_(False))


CLIP = tiny.LinearClip()


def make_latents(generator, clip=CLIP, **options):
    with torch.inference_mode():
        return GATHER.DeltaEditLatents.execute(stylegan2=generator, clip_scorer=clip, **(LATENTS | options)).args


def train(latents, **options):
    given = on_settings(TRAIN.TrainingChoices, TRAINER | options)
    with torch.inference_mode():
        mapper, *others = TRAIN.DeltaEditMapperTrainer.execute(delta_latents=latents, **given).args
    return mapper.network, *others


def relate(latents, **options):
    with torch.inference_mode():
        return RELATE.RelevanceMatrix.execute(delta_latents=latents, **(RELEVANCE | options)).args


@pytest.fixture
def latents(host, generator):
    return make_latents(generator)[0]


def test_latents_are_saved_and_loaded_when_asked_for_again(host, generator):
    latents, report = make_latents(generator)
    path = host.path / "delta_latents" / "faces.safetensors"
    assert len(latents) == 40 and latents.names[0] == "seed 3" and "Saved faces.safetensors" in report
    before = path.stat().st_mtime_ns
    again, report = make_latents(generator)
    assert path.stat().st_mtime_ns == before and "holds them already" in report
    assert torch.equal(again.convs, latents.convs)
    more, report = make_latents(generator, samples=43)
    assert len(more) == 43 and "3 added to 40" in report and torch.equal(more.convs[:40], latents.convs)
    assert "not asked for" in refusal(make_latents, generator, seed=9)
    fewer, _ = make_latents(generator, samples=5, seed=9, overwrite=True)
    assert fewer.names[0] == "seed 9" and len(load_latents(path)) == 5


def test_latents_stopped_go_on(host, generator):
    whole, _ = make_latents(generator, filename="whole")
    host.bar.press_at = 16
    with pytest.raises(Cancelled):
        make_latents(generator)
    assert len(load_latents(host.path / "delta_latents" / "faces.safetensors")) == 16
    latents, report = make_latents(generator)
    assert "24 added to 16" in report and torch.equal(latents.convs, whole.convs)
    folder = host.path / "delta_latents"
    assert (folder / "faces.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()


def test_latents_of_a_folder_need_an_encoder(host, generator):
    from PIL import Image

    (host.path / "faces").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 16), (number * 60, 20, 90)).save(host.path / "faces" / f"{number}.png")
    (host.path / "faces" / "x.png").write_bytes(b"nothing")
    assert "style encoder" in refusal(make_latents, generator, folder="faces")
    encoder = CompactEncoder(generator.network.layout.rows, 6, 16, (8, 8), 16)
    save_encoder(host.path / "encoder.safetensors", encoder)
    latents, report = make_latents(generator, folder="faces", style_encoder="encoder.safetensors", samples=1)
    assert latents.names == ("0.png", "1.png", "2.png", "seed 3")
    assert "skipped 1 unreadable: x.png" in report and "3 pictures, 1 generated" in report
    wrong = CompactEncoder(3, 6, 16, (8, 8), 16)
    save_encoder(host.path / "wrong.safetensors", wrong)
    refusal(make_latents, generator, folder="faces", style_encoder="wrong.safetensors", filename="others")
    first = GATHER.DeltaEditLatents.fingerprint_inputs(folder="faces")
    Image.new("RGB", (16, 16)).save(host.path / "faces" / "new.png")
    assert GATHER.DeltaEditLatents.fingerprint_inputs(folder="faces") != first


def test_latents_that_the_disk_refuses_are_rescued(host, generator, monkeypatch):
    latents_module = host_stand_in.module("core.deltaedit.latents")
    write = latents_module.save_tensor_parts

    def full(path, *args, **kwargs):
        if path.parent.name == "delta_latents":
            raise EditingError("The disk is full; make room.")
        return write(path, *args, **kwargs)

    (host.path / "output").mkdir()
    monkeypatch.setattr(latents_module, "save_tensor_parts", full)
    latents, report = make_latents(generator)
    assert len(latents) == 40 and "kept as faces.safetensors in the output folder" in report
    assert len(load_latents(host.path / "output" / "faces.safetensors")) == 40


def test_a_mapper_is_trained_saved_and_protected(host, latents):
    mapper, plot, report = train(latents)
    saved = files.load_mapper(host.path / "delta_mappers" / "mine.safetensors")
    assert same(saved, mapper)
    assert saved.relevance.matrix.shape == (latents.layout.width, 10)
    torch.testing.assert_close(saved.relevance.matrix, mapper.relevance.matrix)
    assert plot.ndim == 4 and "Saved mine.safetensors" in report and "cosine" in report
    assert not any(value.is_inference() for value in mapper.state_dict().values())
    assert "mine.safetensors exists already" in refusal(train, latents)
    (host.path / "delta_mappers" / "mine.safetensors").unlink()
    assert "switch resume on" in refusal(train, latents), "progress is protected, too"
    other = train(latents, overwrite=True, seed=5)[0]
    assert other.facts["training"] != mapper.facts["training"]


def test_a_stopped_training_goes_on_to_the_same_mapper(host, latents):
    whole = train(latents, filename="whole")[0]
    host.bar.press_at = 4
    with pytest.raises(Cancelled):
        train(latents)
    state = host.path / "mapper_trainings" / "mine.safetensors"
    assert state.exists() and (host.path / "delta_mappers" / "mine.safetensors").exists(), "the best so far is kept"
    assert "exists already" in refusal(train, latents)
    assert "another seed" in refusal(train, latents, resume=True, seed=1, overwrite=True)
    made = train(latents, resume=True)[0]
    assert same(made, whole)
    files.save_mapper(
        host.path / "delta_mappers" / "mine.safetensors", train(latents, filename="b", seed=7)[0], None, True
    )
    assert "not from the training" in refusal(train, latents, resume=True)
    assert "fast, released" in refusal(train, latents, filename="c", preset="slow")


def test_resume_begins_a_training_where_there_is_none(host, latents):
    assert torch.equal(
        train(latents, resume=True)[0].fm_fine[0].weight, train(latents, filename="b")[0].fm_fine[0].weight
    )


def test_cancel_before_a_look_keeps_what_there_is(host, latents, monkeypatch):
    monkeypatch.setattr(TRAINING, "SHOW_EVERY", 1)
    host.bar.press_at = 1
    with pytest.raises(Cancelled):
        train(latents, check_every=100)
    assert files.load_mapper(host.path / "delta_mappers" / "mine.safetensors").facts["steps"] == "1 of 1"


def test_a_full_disk_loses_no_mapper(host, latents, disk):
    disk |= {"delta_mappers", "mapper_trainings"}
    mapper, _, report = train(latents)
    assert "It is kept as mine.safetensors in the output folder" in report
    assert "The progress to go on from could not be saved: mine.safetensors could not be written" in report
    kept = files.load_mapper(host.path / "output" / "mine.safetensors")
    assert same(mapper, kept)
    host.bar.press_at = 4
    _, _, report = train(latents)  # Cancel is not obeyed: it would lose this
    assert "It is kept as mine_2.safetensors" in report
    assert not list(host.path.rglob("*.part")) and str(host.path) not in report


def test_progress_that_could_not_be_saved_is_told_though_cancelled(host, latents, disk):
    disk |= {"mapper_trainings"}
    host.bar.press_at = 4
    _, _, report = train(latents)
    assert "Saved mine.safetensors" in report and "The progress to go on from could not be saved" in report


def test_a_full_disk_loses_no_relevance_matrix(host, latents, generator, disk):
    wires = {"method": "perturbation", "stylegan2": generator, "clip_scorer": CLIP}
    disk |= {"delta_mappers", "mapper_trainings"}
    for options in ({}, wires):
        relevance, report = relate(latents, filename=f"m{len(options)}", **options)
        assert f"It is kept as m{len(options)}.safetensors in the output folder" in report
        kept = files.load_relevance(host.path / "output" / f"m{len(options)}.safetensors")
        assert torch.equal(kept.matrix, relevance.matrix)
    host.bar.press_at = 12
    sentence = refusal(relate, latents, **wires)
    assert sentence.startswith(f"Cancelled when 12 of {latents.layout.width} channels were known. The progress to go")


def test_progress_of_another_is_never_replaced_unasked(host, latents, generator):
    """Under the names of both kinds of progress, whoever's they are."""
    wires = {"method": "perturbation", "stylegan2": generator, "clip_scorer": CLIP}
    folder = host.path / "mapper_trainings"
    folder.mkdir()
    for name in ("mine", "matrix.probing"):
        (folder / f"{name}.safetensors").write_bytes(b"precious")
    assert "switch resume on" in refusal(train, latents)
    assert "damaged or not a safetensors file" in refusal(train, latents, resume=True)
    assert "damaged or not a safetensors file" in refusal(relate, latents, **wires)
    assert all(path.read_bytes() == b"precious" for path in folder.iterdir()) and len(list(folder.iterdir())) == 2
    assert not (host.path / "delta_mappers").exists() or not list((host.path / "delta_mappers").iterdir())


def test_0_leaves_a_presets_values():
    fast = TRAIN.trainer_settings("fast", steps=7, batch=0, learning_rate=0.0, seed=0)
    assert (fast.steps, fast.batch, fast.learning_rate) == (7, 256, 3e-3)
    released = TRAIN.trainer_settings("released", steps=7, batch=0, learning_rate=0.1, seed=4)
    assert (released.batch, released.learning_rate, released.seed, released.standardise) == (64, 0.1, 4, False)


def test_relevance_by_covariance_is_saved(host, latents):
    relevance, report = relate(latents)
    saved = files.load_relevance(host.path / "delta_mappers" / "matrix.safetensors")
    assert torch.equal(saved.matrix, relevance.matrix) and relevance.kind == "covariance"
    assert "Saved matrix.safetensors" in report and "covariance" in report
    assert "exists already" in refusal(relate, latents)
    relate(latents, overwrite=True)


def test_relevance_by_perturbation_goes_on_and_tells_its_cost(host, latents, generator):
    wires = {"method": "perturbation", "stylegan2": generator, "clip_scorer": CLIP}
    assert "wire stylegan2" in refusal(relate, latents, method="perturbation")
    whole, report = relate(latents, filename="whole", **wires)
    channels = latents.layout.width
    assert f"{channels * 2 * 2} pictures drawn" in report and whole.kind == "perturbation"
    assert not list((host.path / "mapper_trainings").iterdir()), "the progress goes when all is there"
    host.bar.press_at = 12
    with pytest.raises(Cancelled):
        relate(latents, **wires)
    (state,) = (host.path / "mapper_trainings").iterdir()
    assert state.name == "matrix.probing.safetensors"
    assert "another amount" in refusal(relate, latents, amount=1.0, **wires)
    made, _ = relate(latents, **wires)
    assert host.bar.shown[0][0] == 16 and torch.equal(made.matrix, whole.matrix) and not state.exists()
    host.bar.press_at = 12
    with pytest.raises(Cancelled):
        relate(latents, filename="c", **wires)
    anew, _ = relate(latents, filename="c", overwrite=True, amount=1.0, **wires)
    assert host.bar.shown[0][0] == 4 and not torch.equal(anew.matrix, whole.matrix)
    other = tiny.LinearClip(seed=4)
    assert "another CLIP" in refusal(relate, latents, filename="d", **(wires | {"clip_scorer": other}))
    assert "covariance, perturbation" in refusal(relate, latents, filename="d", method="guessing")
    halfway, _ = relate(latents, filename="halfway", **(wires | {"method": "both"}))
    wanted = both(relate(latents, filename="e")[0], whole)
    assert halfway.kind == "both" and torch.equal(halfway.matrix, wanted.matrix)

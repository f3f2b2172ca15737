"""The pack's nodes without a ComfyUI: every shipped demo workflow runs, nothing runs twice, what is not known is named.

That the pictures and u are ComfyUI's own is tested with one, in tests/host/test_demo_host.py.
"""

import copy
import dataclasses
import json
import shutil

import pytest
import torch

from semantic_editing.benchmarks import demo as bench
from semantic_editing.core.demo.bench import aimed_at
from semantic_editing.core.demo.data import FOLDER, DemoData, embedding_files
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.image import psnr
from semantic_editing.core.sampling import plain_negative, reconstruct
from semantic_editing.core.spdinv.invert import spdinv
from semantic_editing.core.spdinv.null_text import NullTextSettings, null_text
from semantic_editing.core.spdinv.solvers import SPDInvSettings
from semantic_editing.tools import demo_host, host_stand_in

GLASSES, STEPS = "glasses: none to glasses", 3
SHIPPED = {path.stem for path in bench.WORKFLOWS[0].glob("*.json")}
SHORT = {"steps": STEPS, "budget": 4, "held_out": 2, "check_every": 0, "interpolate": 2, "refine_steps": 2}
WORKFLOWS = sorted(
    path.stem
    for path in (*bench.WORKFLOWS[0].glob("demo_*.json"), *bench.WORKFLOWS[1].glob("*.json"))
    if path.stem
    not in (
        "demo_caso_train",
        "demo_caso_texts",
        "demo_distil_train",
        "demo_synthetic_edit",
    )  # none edits a given picture
)


@pytest.fixture(scope="module")
def pair():
    return DemoData(FOLDER / "unseen").pairs_of(GLASSES)[0]


@pytest.fixture(scope="module")
def runner():
    with bench.running(None) as alone:
        yield alone


def short(name):
    """A workflow with few steps."""
    workflow = copy.deepcopy(bench.method(name).workflow)
    for node in workflow.values():
        if node["class_type"] != "SemEdit_StyleCodeMix":  # whose steps are pictures
            node["inputs"] |= {key: value for key, value in SHORT.items() if node["inputs"].get(key)}
        if node["class_type"] == "SemEdit_SentenceEditDirection":
            node["inputs"]["count"] = 8
    return workflow


def aimed(name, pair, runner):
    return aimed_at(short(name), pair, runner.picture_file(pair.source), runner.picture_file(pair.target))


def node_of(workflow, kind):
    return next(node["inputs"] for node in workflow.values() if node["class_type"] == kind)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_demo_workflow_runs_to_a_picture(name, pair, runner):
    outcome = runner.run(aimed(name, pair, runner))
    drawn = bench.method(name).drawn_by is not None
    uncounted = drawn or name == "demo_distil_edit"  # by networks of their own, which u does not count
    assert outcome.forward == 0 if uncounted else outcome.forward >= STEPS
    size = 64 if drawn and name not in SHIPPED else pair.source.shape[-1]  # the baselines show what was drawn
    assert outcome.picture.shape == (3, size, size) and outcome.seconds > 0
    if size == 64:
        return
    assert 12 < psnr(outcome.picture[None], pair.source[None]) < 40  # still the face, and not the file itself


def test_a_made_up_picture_is_itself_without_the_direction(runner):
    workflow = short("demo_synthetic_edit")
    applied = node_of(workflow, "SemEdit_ApplyEditDirection")
    (drawn,) = [key for key, node in workflow.items() if node["_meta"]["title"] == "Original"]
    pictures = {}
    for strength in (0.0, 1.0):
        applied["strength"] = strength
        outputs = runner.execute(workflow)
        pictures[strength] = bench.saved(workflow, outputs)[0], outputs[drawn][0]
    same, other = (psnr(*(picture.movedim(-1, 1) for picture in pictures[strength])) for strength in (0.0, 1.0))
    assert float(same) > 60 > float(other)


def test_stock_sampling_is_the_cores(pair, runner):
    """word_swap by the core's functions, no node and no executor between."""
    picture = runner.run(aimed("word_swap", pair, runner)).picture
    demo = load_demo_model()
    with torch.no_grad():
        source = (pair.source * 255).round() / 255
        target, own = demo.encode_text([pair.target_caption]), demo.encode_text([pair.source_caption])
        settings = SPDInvSettings(solver="ddim")
        inversion = spdinv(demo.denoiser(), demo.encode_image(source[None]), own, STEPS, settings)
        edited = demo.decode(reconstruct(demo.denoiser(), inversion, target, 2.0, own))
    assert psnr(picture[None], edited) > 50  # PNGs cut fractions off


def test_null_text_negatives_are_the_cores(pair, runner):
    """Through the node and the stock guider at its cfg, each negative at its own level: as by the core's functions."""
    workflow = aimed("word_swap", pair, runner)
    (inverting,) = (key for key, node in workflow.items() if node["class_type"] == "SemEdit_SPDInvInversion")
    guider = node_of(workflow, "CFGGuider")
    guider["positive"] = node_of(workflow, "SemEdit_SPDInvInversion")["positive"]
    empty = {"clip": node_of(workflow, "CLIPTextEncode")["clip"], "text": ""}
    workflow["empty"] = {"class_type": "CLIPTextEncode", "inputs": empty}
    widgets = {"cfg": guider["cfg"], "max_iterations": 3, "learning_rate": 0.05, "tolerance": 0.0}
    wired = {"model": guider["model"], "inversion": [inverting, 0], "negative": ["empty", 0]}
    workflow["null"] = {"class_type": "SemEdit_NullTextInversion", "inputs": wired | widgets}
    guider["negative"] = ["null", 1]
    outcome = runner.run(workflow)
    demo = load_demo_model()
    source, own = (pair.source * 255).round() / 255, demo.encode_text([pair.source_caption])
    with torch.no_grad():
        inversion = spdinv(demo.denoiser(), demo.encode_image(source[None]), own, STEPS, SPDInvSettings(solver="ddim"))
        negative = {"embeds": demo.encode_text([""])}
    made = null_text(demo.denoiser(), inversion, own, negative, NullTextSettings(**widgets))
    with torch.no_grad():
        rebuilt = reconstruct(demo.denoiser(), made, own, guider["cfg"], plain_negative(made, own))
        plain = reconstruct(demo.denoiser(), inversion, own, guider["cfg"], negative["embeds"])
    assert psnr(outcome.picture[None], demo.decode(rebuilt)) > 50 > psnr(demo.decode(plain), demo.decode(rebuilt))
    assert outcome.backward == 2 * STEPS


def test_what_did_not_change_is_not_run_again(pair, runner):
    workflow = aimed("word_swap", pair, runner)
    node_of(workflow, "SemEdit_SPDInvInversion")["steps"] = STEPS + 1  # not what another test has run
    first, again = runner.run(workflow), runner.run(workflow)
    assert first.forward > 0 and again.forward == 0 and torch.equal(first.picture, again.picture)
    model = runner.execute(workflow)["1"]
    node_of(workflow, "CFGGuider")["cfg"] = 3.0
    other = runner.run(workflow)
    assert other.forward == 2 * (STEPS + 1) and not torch.equal(other.picture, first.picture)  # not the inversion's
    assert runner.execute(workflow)["1"] is model


def test_what_was_not_made_is_not_shown(pair, runner):
    workflow = short("demo_caso_edit@SemEdit_CASOEditSampler.interpolate=0")
    (strip,) = (key for key, node in workflow.items() if node["_meta"]["title"] == "From minus to plus")
    made = runner.execute(workflow)
    assert strip not in made and len(made) == len(workflow) - 1


def test_a_training_leaves_a_file_which_is_read_anew_when_it_changes(pair, runner):
    training = short("demo_caso_train")
    for node in training.values():
        if node["class_type"] == "SemEdit_LoadDemoImage":
            node["inputs"]["count"] = 8
    few = host_stand_in.module("nodes.caso.trainer_settings").TrainingChoices(steps=STEPS, held_out=2)
    training["few"] = {"class_type": "SemEdit_CASOTrainingSettings", "inputs": dataclasses.asdict(few)}
    node_of(training, "SemEdit_CASOEmbeddingTrainer")["settings"] = ["few", 0]
    before = dict(runner.counts)
    made = runner.execute(training)
    assert "embedding:demo_glasses" in [value for (value, *_) in made.values() if isinstance(value, str)]
    assert runner.counts["backward"] - before["backward"] == STEPS * 8  # batches of four of each kind
    workflow = aimed("demo_caso_edit@SemEdit_CASOEditSampler.interpolate=0", pair, runner)
    loader = node_of(workflow, "SemEdit_CASOEmbeddingLoader")
    loader["embedding_file"] = "demo_glasses.safetensors"
    trained = runner.run(workflow)
    shutil.copy(embedding_files()["beard"], runner.base / "models" / "embeddings" / loader["embedding_file"])
    changed = runner.run(workflow).picture
    assert trained.forward > 0 and psnr(trained.picture[None], changed[None]) < 40
    loader["embedding_file"] = "demo: beard"
    assert torch.equal(runner.run(workflow).picture, changed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"99": {"class_type": "ControlNetLoader", "inputs": {}}}, "there is no ControlNetLoader; use a real ComfyUI"),
        ({"8": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "heun"}}}, "sampler 'heun' is not known"),
        ({"3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (face:1.2)", "clip": ["1", 1]}}}, "has brackets"),
        ({"3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a " * 80, "clip": ["1", 1]}}}, "longer than 75"),
        ({"5": {"class_type": "VAEEncode", "inputs": {"vae": ["1", 2]}}}, "VAEEncode: TypeError: .* 'pixels'"),
        ({"11": {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}}}, "saves no picture"),
    ],
)
def test_what_is_not_known_or_fails_is_named(change, told, pair, runner):
    with pytest.raises(EditingError, match=told):
        runner.run(aimed("word_swap", pair, runner) | change)


def test_only_the_shipped_demo_workflows_nodes_are_needed():
    used = {node["class_type"] for name in (*WORKFLOWS, "demo_synthetic_edit") for node in short(name).values()}
    assert set(demo_host.STOCK) - used == {"LoadImage"}  # which takes Load Demo Image's place in the bench


def test_a_picture_is_laid_on_another_by_hand():
    below, above = torch.zeros(1, 4, 4, 3), torch.ones(1, 3, 3, 3)
    mask = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.5, 1.0], [0.0, 0.0, 0.0]]])
    (made,) = demo_host.composite(below, above, 2, 1, False, mask)
    expected = torch.zeros(4, 4)
    expected[1, 2:], expected[2, 2], expected[2, 3] = 1.0, 1.0, 0.5
    assert torch.equal(made[0, ..., 0], expected) and not below.any()
    (made,) = demo_host.composite(below, torch.full((1, 2, 2, 3), 0.25), 0, 0, True)
    assert torch.equal(made, torch.full_like(below, 0.25))


def test_the_bench_runs_where_there_is_no_comfyui(tmp_path, monkeypatch, capsys):
    method = f"word_swap@SemEdit_SPDInvInversion.steps={STEPS}"
    settings = bench.options([method, "--pairs", "2", "--out", str(tmp_path)])
    monkeypatch.setattr(bench, "options", lambda: settings)
    monkeypatch.setattr(bench, "find_hosts", list)
    assert bench.main() == 0
    told = capsys.readouterr()
    assert "No ComfyUI was found" in told.err and "| word_swap@" in told.out
    ((*_, row),) = [entry["rows"] for entry in json.loads((tmp_path / "results.json").read_text())]
    assert (row["forward"], row["backward"]) == (4 * STEPS, 0) and len(row["figures"]["psnr"]) == 2

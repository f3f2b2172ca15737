"""``semantic-editing bench --demo`` but for what runs the workflows: its methods, tables, store and refusals."""

import json
import shutil

import pytest
import torch

from semantic_editing.benchmarks import demo as bench
from semantic_editing.core.demo.bench import Outcome
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.errors import EditingError

TRAINED = (
    "demo_caso_train+demo_caso_edit@SemEdit_CASOEmbeddingLoader.embedding_file=demo_glasses.safetensors"
    "@SemEdit_CASOEditSampler.window=learned@SemEdit_CASOEditSampler.strength=5"
)
GLASSES, BEARD = "glasses: none to glasses", "facial hair: none to beard"


@pytest.fixture(scope="module")
def unseen():
    return DemoData(FOLDER / "unseen")


def planned(data, *names, edits=(), most=None):
    return [
        (title, also, len(pairs), [one.name for one in alike])
        for title, also, pairs, alike in bench.groups([bench.method(name) for name in names], data, edits, most)
    ]


def test_every_shipped_method_is_in_a_table_of_its_own_edit(unseen):
    tables = planned(unseen, *bench.METHODS)
    assert [(title, count) for title, _, count, _ in tables] == [
        (GLASSES, 40),
        ("hair color: black to red", 40),
        (BEARD, 40),
        (f"{GLASSES} and facial hair: beard", sum(p.source_attributes["facial_hair"] != "beard" for p in
                                                  unseen.pairs_of(GLASSES))),
        (bench.REBUILT, 24),
        *((f"{edit} (DeltaEdit, StyleGAN2)", len(unseen.pairs_of(edit))) for edit in bench.TEXT_EDITS),
        *((f"{edit} (DeltaEdit, style diffusion)", 40) for edit in bench.EDITS["demo_deltaedit_diffusion"]),
    ]  # fmt: skip
    assert [names for *_, names in tables] == [
        ["word_swap", "demo_word_edit", "demo_distil_edit", "demo_prompt_to_prompt", "demo_caso_edit", TRAINED,
         "demo_region_mask_to_inpaint"],
        ["word_swap", "demo_distil_edit"],
        ["word_swap", bench.LARGEST_BOX, "demo_region_edit"],
        ["demo_caso_multi"],
        ["demo_invert_reconstruct@SemEdit_SPDInvInversion.solver=ddim", "demo_invert_reconstruct",
         "demo_noise_regularised"],
        *[["demo_deltaedit_text", bench.DRAWN, "demo_deltaedit_images"]] * 5,
        *[["demo_deltaedit_diffusion", bench.DRAWN_BY_DIFFUSION]] * 2,
    ]  # fmt: skip


def test_edits_and_pairs_are_chosen(unseen):
    assert planned(unseen, "word_swap", "demo_word_edit", edits=[BEARD, GLASSES], most=3) == [
        (BEARD, {}, 3, ["word_swap", "demo_word_edit"]),
        (GLASSES, {}, 3, ["word_swap", "demo_word_edit"]),
    ]
    assert planned(unseen, "word_swap") == [(GLASSES, {}, 40, ["word_swap"])]
    with pytest.raises(EditingError, match="no pairs for 'ears'"):
        planned(unseen, "demo_word_edit", edits=["ears"])


def test_rebuilt_pictures_are_their_own_truth(unseen):
    ((_, _, pairs, _),) = bench.groups([bench.method("demo_invert_reconstruct")], unseen, [], None)
    assert all(torch.equal(pair.source, pair.target) for pair in pairs)
    assert len({pair.source_caption for pair in pairs}) > len(pairs) / 2


def test_a_method_is_a_workflow_with_widgets_set_otherwise(tmp_path):
    set_otherwise = bench.method(
        "demo_word_edit@SemEdit_SPDInvInversion.steps=7@SemEdit_SentenceEditDirection.source=bare eyes"
    ).workflow
    own = bench.method("demo_word_edit").workflow
    differing = {
        (key, name): value
        for key, node in set_otherwise.items()
        for name, value in node["inputs"].items()
        if own[key]["inputs"][name] != value
    }
    assert sorted(differing.values(), key=str) == [7, "bare eyes"]
    (tmp_path / "mine.json").write_text(json.dumps(own))
    assert bench.method(str(tmp_path / "mine.json")).workflow == own


@pytest.mark.parametrize("text", ["nothing", "{}", "[1]", '{"nodes": []}', '{"1": {"inputs": {}}}', "{"])
def test_what_is_no_workflow_is_refused(tmp_path, text):
    path = tmp_path / "w.json"
    if text != "nothing":
        path.write_text(text)
    with pytest.raises(EditingError, match=r"is no workflow in the API format|no Load Demo Image"):
        _ = bench.method(str(path)).edit
    with pytest.raises(EditingError, match="sets nothing"):
        bench.method("demo_word_edit@steps")


def test_a_run_goes_on_where_it_ended(tmp_path, unseen):
    picture = unseen.pairs[0].source
    store = bench.Store(tmp_path, resume=False)
    assert store.get("a") is None
    store.put("a", Outcome(picture, 100, 5, 2.5))
    again = bench.Store(tmp_path, resume=True).get("a")
    assert (again.forward, again.backward, again.seconds) == (100, 5, 2.5)
    assert torch.equal(again.picture, picture)
    assert bench.Store(tmp_path, resume=False).get("a") is None


class Canned:
    """A runner that answers with the truth, and counts what it is asked."""

    mark = ""

    def __init__(self, data):
        self.files, self.asked, self.truth = {}, [], data

    def picture_file(self, picture):
        name = f"{len(self.files)}.png"
        self.files[name] = picture
        return name

    def execute(self, workflow):
        self.asked.append(workflow)

    def run(self, workflow):
        self.asked.append(workflow)
        names = [node["inputs"]["image"] for node in workflow.values() if node["class_type"] == "LoadImage"]
        return Outcome(self.files[max(names, key=lambda name: int(name.partition(".")[0]))], 10, 0, 1.0)


def test_outcomes_are_one_a_pair_and_each_is_made_once(tmp_path, unseen):
    runner, method, pairs = Canned(unseen), bench.method("demo_word_edit"), unseen.pairs_of(GLASSES)[:2]
    made = bench.outcomes(method, pairs, runner, bench.Store(tmp_path, False))
    assert len(runner.asked) == 2 and all(
        torch.equal(outcome.picture, pair.target) for outcome, pair in zip(made, pairs, strict=True)
    )
    runner.files.clear()
    again = bench.outcomes(method, pairs, runner, bench.Store(tmp_path, True))
    assert len(runner.asked) == 2 and torch.equal(again[1].picture, made[1].picture)


def ends_at(workflow):
    """What the one picture that is saved comes out of: class and number of the output."""
    ((key, number),) = (node["inputs"]["images"] for node in workflow.values() if node["class_type"] == "SaveImage")
    return workflow[key]["class_type"], number


def test_rows_of_what_is_drawn_end_where_their_names_say():
    copy, true = (bench.method(name).workflow for name in bench.BOUNDS["SemEdit_InvertToStyleCode"])
    assert ends_at(copy) == ("SemEdit_InvertToStyleCode", 1) and ends_at(true) == ("SemEdit_DecodeStyleCode", 0)
    assert ends_at(bench.method(bench.DRAWN).workflow) == ("SemEdit_DeltaEditMapper", 1)
    copy, true = (bench.method(name).workflow for name in bench.BOUNDS["SemEdit_StyleDiffusionDecode"])
    for workflow, styles in (
        (copy, "SemEdit_InvertToStyleCode"),
        (true, "SemEdit_StyleCodeMix"),
        (bench.method(bench.DRAWN_BY_DIFFUSION).workflow, "SemEdit_DeltaEditMapper"),
    ):
        (decode,) = (node for node in workflow.values() if node["class_type"] == "SemEdit_StyleDiffusionDecode")
        assert ends_at(workflow) == ("SemEdit_StyleDiffusionDecode", 0)
        assert workflow[decode["inputs"]["style_code"][0]]["class_type"] == styles


@pytest.mark.parametrize("name", ["deltaedit_true_styles", "deltaedit_diffusion_true_styles"])
def test_the_true_pictures_styles_are_made_with_the_shipped_settings(name):
    shipped = bench.method("demo_deltaedit_diffusion").workflow
    inputs = {node["class_type"]: node["inputs"] for node in shipped.values()}
    workflow = bench.method(name).workflow
    for node in workflow.values():
        for widget, value in inputs.get(node["class_type"], {}).items():
            if not isinstance(value, list) and widget not in ("filename_prefix", "pictures", "number"):
                assert node["inputs"][widget] == value
    (mix,) = (node["inputs"] for node in workflow.values() if node["class_type"] == "SemEdit_StyleCodeMix")
    assert (mix["amount"], mix["coarse"], mix["medium"], mix["fine"], mix["colour_layers"]) == (1, 1, 1, 1, False)
    from_source, from_truth = (workflow[mix[way][0]]["inputs"]["image"][1] for way in ("first", "second"))
    assert (from_source, from_truth) == (0, 2)  # Load Demo Image's picture and its true edit


def test_what_is_drawn_is_made_pair_by_pair(tmp_path, unseen):
    runner, pairs = Canned(unseen), unseen.pairs_of(GLASSES)[:2]
    methods = [bench.method(name) for name in ("demo_deltaedit_text", bench.DRAWN)]
    made = bench.together(methods, pairs, runner, bench.Store(tmp_path, False))
    assert [ends_at(asked)[0] for asked in runner.asked] == ["SemEdit_PasteFaceBack", "SemEdit_DeltaEditMapper"] * 2
    for of in made:
        assert all(torch.equal(outcome.picture, pair.target) for outcome, pair in zip(of, pairs, strict=True))
    bench.together(methods, pairs, Canned(unseen), bench.Store(tmp_path, True))
    assert len(runner.asked) == 4


def test_a_training_runs_once_before_the_first_picture(tmp_path, unseen):
    runner, method, pairs = Canned(unseen), bench.method(TRAINED), unseen.pairs_of(GLASSES)[:2]
    bench.outcomes(method, pairs, runner, bench.Store(tmp_path, False))
    trainers = ["SemEdit_CASOEmbeddingTrainer" in {n["class_type"] for n in asked.values()} for asked in runner.asked]
    assert trainers == [True, False, False]
    runner.files.clear()
    bench.outcomes(method, pairs, runner, bench.Store(tmp_path, True))
    assert len(runner.asked) == 3


def test_folders_without_pairs_and_hosts_that_are_none_are_refused(tmp_path, monkeypatch, capsys):
    settings = bench.options(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(bench, "options", lambda: settings)
    assert bench.main() == 2 and "demo.json" in capsys.readouterr().err
    (tmp_path / "demo.json").write_text('{"images": [], "pairs": []}')
    shutil.copy(FOLDER / "unseen" / "pairs.npz", tmp_path)
    assert bench.main() == 2 and "holds no pairs; render some" in capsys.readouterr().err
    with pytest.raises(EditingError, match="is no ComfyUI"):
        bench.chosen_host(tmp_path)
    monkeypatch.setattr(bench, "find_hosts", list)
    assert bench.chosen_host(None) is None and "COMFYUI_PATH" in capsys.readouterr().err

"""The demo bench: a workflow aimed at a pair, the judge's figures, intervals and the table."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from semantic_editing.core.demo.bench import (
    NOTHING,
    NOTHING_DECODED,
    TRUE_DECODED,
    Judgement,
    Outcome,
    Row,
    aimed_at,
    edit_of,
    interval,
    table,
    with_settings,
)
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError

ROOT = Path(__file__).resolve().parents[3]
GLASSES, SMILE = "glasses: none to glasses", "mouth: sad to smile"


def workflow(name, folder="workflows/api"):
    return json.loads((ROOT / folder / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


@pytest.fixture(scope="module")
def unseen():
    return DemoData(FOLDER / "unseen")


@pytest.fixture(scope="module")
def pairs(unseen):
    return unseen.pairs_of(GLASSES)[:3]


@pytest.fixture(scope="module")
def judgement(demo, pairs):
    return Judgement(demo, pairs)


def inputs(prompt, kind):
    (found,) = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    return found


def texts(prompt):
    return [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, str)]


# A workflow aimed at a pair ------------------------------------------------------------------------------------------


def test_the_persons_picture_and_captions_take_the_place_of_the_loader(pairs):
    original = workflow("demo_word_edit")
    before = json.dumps(original)
    aimed = aimed_at(original, pairs[0], "source.png", "truth.png")
    assert json.dumps(original) == before
    assert not any(node["class_type"] == "SemEdit_LoadDemoImage" for node in aimed.values())
    assert inputs(aimed, "CLIPTextEncode")["text"] == pairs[0].source_caption
    loaded = aimed[inputs(aimed, "VAEEncode")["pixels"][0]]
    assert (loaded["class_type"], loaded["inputs"]) == ("LoadImage", {"image": "source.png"})
    for node in aimed.values():  # every link leads to a node that has that output
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in aimed and (aimed[value[0]]["class_type"] != "LoadImage" or value[1] == 0)
    assert [node["class_type"] for node in aimed.values() if node["class_type"] == "LoadImage"] == ["LoadImage"] * 2


def test_the_edited_caption_is_typed_where_the_workflow_uses_it(pairs):
    aimed = aimed_at(workflow("word_swap", "benchmarks/baselines"), pairs[0], "a.png", "b.png")
    prompts = [node["inputs"]["text"] for node in aimed.values() if node["class_type"] == "CLIPTextEncode"]
    assert prompts == [pairs[0].source_caption, pairs[0].target_caption]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("demo_word_edit", "SemEdit_SentenceEditDirection", {"source": "sad", "target": "smiling"}),
        ("demo_caso_edit", "SemEdit_CASOEmbeddingLoader", {"embedding_file": "demo: smile"}),
        (
            "demo_region_edit",
            "SemEdit_RegionBoxGenerator",
            {"source_text": "a portrait of a person, sad", "target_text": "a portrait of a person, smiling"},
        ),
    ],
)
def test_another_edit_brings_its_own_words_and_embedding(unseen, name, kind, expected):
    aimed = aimed_at(workflow(name), unseen.pairs_of(SMILE)[0], "a.png", "b.png")
    given = inputs(aimed, kind)
    assert {key: given[key] for key in expected} == expected
    assert not any("glasses" in text or "beard" in text for text in texts(aimed) if "portrait" in text)


def test_the_own_edit_changes_no_widget(unseen):
    original = workflow("demo_caso_edit")
    aimed = aimed_at(original, unseen.pairs_of(GLASSES)[0], "a.png", "b.png")
    for kind in ("SemEdit_CASOEditSampler", "SemEdit_CASOEmbeddingLoader"):
        links = {key: value for key, value in inputs(original, kind).items() if not isinstance(value, list)}
        assert {key: inputs(aimed, kind)[key] for key in links} == links


def test_what_is_to_go_gets_the_negative_strength(unseen):
    original = workflow("demo_caso_edit")
    aimed = aimed_at(original, unseen.pairs_of("glasses: glasses to none")[0], "a.png", "b.png")
    assert inputs(aimed, "SemEdit_CASOEmbeddingLoader")["embedding_file"] == "demo: glasses"
    strength = inputs(original, "SemEdit_CASOEditSampler")["strength"]
    assert inputs(aimed, "SemEdit_CASOEditSampler")["strength"] == -strength != 0


def test_an_edit_without_an_embedding_and_a_workflow_without_pictures_are_refused(unseen):
    with pytest.raises(EditingError, match="No embedding of the demo turns 'background: blue to green'"):
        aimed_at(workflow("demo_caso_edit"), unseen.pairs_of("background: blue to green")[0], "a.png", "b.png")
    with pytest.raises(EditingError, match="no Load Demo Image node"):
        edit_of({"1": {"class_type": "LoadImage", "inputs": {}}})


def test_an_example_of_the_edit_is_not_the_pair_itself(unseen):
    original = workflow("demo_deltaedit_images")
    aimed = aimed_at(original, unseen.pairs_of(GLASSES)[0], "a.png", "b.png")
    edit = inputs(aimed, "SemEdit_DeltaEditMapper")
    for side, output in (("condition_from", 0), ("condition_to", 2)):
        shown = aimed[edit[side][0]]
        assert (shown["class_type"], edit[side][1]) == ("SemEdit_LoadDemoImage", output)
        assert shown["inputs"]["pictures"] == GLASSES and shown["inputs"]["number"] == 1
    assert aimed[edit["image"][0]]["inputs"] == {"image": "a.png"}
    assert inputs(original, "SemEdit_DeltaEditMapper") == {**edit, "image": ["2", 0]}


def test_texts_move_the_code_as_the_edit_is_worded(unseen):
    for name in ("demo_deltaedit_text", "demo_deltaedit_diffusion"):
        aimed = aimed_at(workflow(name), unseen.pairs_of("facial hair: none to beard")[0], "a.png", "b.png")
        edit = inputs(aimed, "SemEdit_DeltaEditMapper")
        assert edit["source_text"] == "a portrait of a person, clean shaven"
        assert edit["target_text"] == "a portrait of a person, with a beard"


def test_edit_of_tells_edits_from_rebuilding():
    assert edit_of(workflow("demo_word_edit")) == GLASSES
    assert edit_of(workflow("demo_invert_reconstruct")) is None


def test_widgets_set_otherwise():
    original = workflow("demo_word_edit")
    changed = with_settings(original, {"SemEdit_CrossAttnGuidedSampler.guidance": 0})
    assert inputs(changed, "SemEdit_CrossAttnGuidedSampler")["guidance"] == 0
    assert inputs(original, "SemEdit_CrossAttnGuidedSampler")["guidance"] != 0
    for name in ("SemEdit_CrossAttnGuidedSampler.guidence", "KSampler.cfg", "guidance"):
        with pytest.raises(EditingError, match="has no widget"):
            with_settings(original, {name: 1})


# Figures -------------------------------------------------------------------------------------------------------------


def test_the_true_picture_is_a_success_and_the_source_is_none(judgement, pairs):
    truths, sources = (torch.stack([getattr(pair, side) for pair in pairs]) for side in ("target", "source"))
    true, nothing = judgement.measure(truths), judgement.measure(sources)
    assert true["success"].tolist() == [1, 1, 1] and nothing["success"].tolist() == [0, 0, 0]
    assert torch.isinf(true["psnr"]).all() and torch.isinf(nothing["outside"]).all()
    torch.testing.assert_close(true["ssim"], torch.ones(3, dtype=torch.float64))
    for number, pair in enumerate(pairs):
        wanted = peak_signal_noise_ratio(pair.target.numpy(), pair.source.numpy(), data_range=1)
        assert float(nothing["psnr"][number]) == pytest.approx(wanted, abs=1e-4)


def test_outside_the_edit_only_what_should_stay_counts(judgement, pairs):
    images = torch.stack([pair.source for pair in pairs])
    changes = torch.stack([(pair.source != pair.target).any(0) for pair in pairs])
    inside = torch.where(changes[:, None], 1 - images, images)
    assert torch.isinf(judgement.measure(inside)["outside"]).all()
    outside = torch.where(changes[:, None], images, (images + 0.1).clamp(max=1))
    errors = [
        float(np.mean((outside[i] - images[i]).numpy()[:, ~changes[i].numpy()].astype(np.float64) ** 2))
        for i in range(len(pairs))
    ]
    measured = judgement.measure(outside)["outside"].tolist()
    assert measured == pytest.approx([-10 * math.log10(error) for error in errors], abs=1e-3)


def test_kept_leaves_the_edit_out_and_counts_the_nine_others(judgement, pairs, demo, monkeypatch):
    labels = [dict(pair.target_attributes) for pair in pairs]
    labels[0]["glasses"] = "sunglasses"  # the edit itself: no matter
    labels[1]["mouth"] = "another"
    labels[2]["mouth"], labels[2]["skin"] = "another", "another"
    monkeypatch.setattr(demo.judge, "labels", lambda _: labels)
    figures = judgement.measure(judgement.sources)
    assert figures["kept"].tolist() == pytest.approx([1, 8 / 9, 7 / 9])
    assert figures["success"].tolist() == [0, 1, 1]


def test_more_labels_asked_for(demo, unseen):
    pairs = [p for p in unseen.pairs_of(GLASSES) if p.source_attributes["facial_hair"] == "none"][:2]
    both = Judgement(demo, pairs, {"facial_hair": "beard"})
    figures = both.measure(torch.stack([pair.target for pair in pairs]))
    assert figures["success"].tolist() == [0, 0]  # glasses alone are not enough
    assert "psnr" not in figures  # nobody drew the true picture
    assert [row.name for row in both.bounds()] == [NOTHING, NOTHING_DECODED]


def test_rebuilding_asks_for_nothing_and_compares_with_the_source(demo, pairs):
    same = [replace(pair, target=pair.source) for pair in pairs]
    figures = Judgement(demo, same, rebuild=True).measure(torch.stack([pair.source for pair in pairs]))
    assert "success" not in figures and torch.isinf(figures["psnr"]).all()


def test_the_bounding_rows_say_what_the_autoencoder_alone_loses(judgement):
    nothing, decoded, true = judgement.bounds()
    assert [nothing.name, decoded.name, true.name] == [NOTHING, NOTHING_DECODED, TRUE_DECODED]
    assert bool((decoded.figures["kept_rebuilt"] == 1).all())
    assert float(true.figures["psnr"].mean()) > float(nothing.figures["psnr"].mean())
    assert torch.isinf(nothing.figures["outside"]).all() and torch.isfinite(decoded.figures["outside"]).all()


def test_bad_pictures_and_no_pairs_are_refused(demo, judgement):
    with pytest.raises(EditingError, match="one edited picture of the same size for each pair"):
        judgement.measure(torch.zeros(2, 3, 128, 128))
    with pytest.raises(EditingError, match="no pairs to measure"):
        Judgement(demo, [])


# Rows, intervals, table ----------------------------------------------------------------------------------------------


def test_a_row_holds_mean_costs_and_the_worst_picture(judgement, pairs):
    made = [
        Outcome(pair.target if number != 1 else pair.source, forward=100 + number, backward=number, seconds=number + 1)
        for number, pair in enumerate(pairs)
    ]
    row = judgement.row("ours", made)
    assert (row.forward, row.backward, row.seconds, row.worst) == (101, 1, 2, 1)
    uncounted = judgement.row("ours", [replace(outcome, forward=None, seconds=None) for outcome in made])
    assert uncounted.forward is None and uncounted.seconds is None


def test_wilsons_interval():
    # Newcombe 1998, table I: 81 of 263, and 15 of 148
    low, high = interval(torch.tensor([1.0] * 81 + [0.0] * 182))
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = interval(torch.tensor([1.0] * 15 + [0.0] * 133))
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    low, high = interval(torch.zeros(20))
    assert low == 0 and high == pytest.approx(0.1611, abs=1e-4)  # the same table: 0 of 20


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(200):
        low, high = interval(torch.randn(40, generator=generator, dtype=torch.float64))
        hits += low <= 0 <= high
    assert 176 <= hits <= 198  # 95 % of 200 within three and a half standard errors


def test_the_table_has_every_row_and_says_what_is_unknown():
    figures = {
        "success": torch.tensor([1.0, 0.0, 1.0, 1.0]),
        "kept": torch.tensor([1.0, 0.5, 1.0, 0.5]),
        "kept_rebuilt": torch.ones(4),
        "psnr": torch.tensor([20.0, 30.0, 25.0, 25.0]),
        "ssim": torch.full((4,), 0.9),
        "outside": torch.full((4,), math.inf),
    }
    first, second = Row("first", figures, 150, 0, 2.0), Row("second", figures, 200.4, 50, 5.0)
    nothing = Row("nothing", {key: figures[key] for key in ("kept", "kept_rebuilt", "outside")})
    head, _, *rows = table([first, second, nothing], first).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]
    assert {len(line) for line in cells} == {11}
    assert cells[1][:3] == ["first", "75.0 % (30 to 95)", "75.0 % (50 to 100)"]
    assert cells[1][4].startswith("25.0 (") and cells[1][5:] == ["20.0", "0.900", "equal", "150", "1.00", "4"]
    assert cells[2][8:] == ["200 + 50 backward", "2.50", "4"]
    assert cells[3][1] == cells[3][4] == cells[3][8] == cells[3][9] == ""

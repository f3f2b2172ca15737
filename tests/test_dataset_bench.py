"""``bench --dataset``: a folder in PIE-Bench's layout, made from two pairs of the demo, edited by the demo model."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from semantic_editing.benchmarks import dataset
from semantic_editing.benchmarks.model_edits import ENGINES, INVERSIONS, EditModel, method, semantic_edits
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.contact_sheet import to_picture
from semantic_editing.core.images.files import read_picture, save_picture

SIDE, SCALED = 128, 64


def runs_of(mask):
    """Start, length, ... of the ones in ``mask [side, side]``, one run a pixel."""
    return [number for pixel in mask.flatten().nonzero().flatten().tolist() for number in (pixel, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench")
    entries = {}
    for number, edit in enumerate(("glasses: none to glasses", "background: blue to green")):
        pair = DemoData(FOLDER / "unseen").pairs_of(edit)[0]
        name = f"{number}_set/{number}.png"
        save_picture(place / "annotation_images" / name, to_picture(pair.source))
        entries[str(number)] = {
            "image_path": name, "original_prompt": pair.source_caption, "editing_prompt": pair.target_caption,
            "editing_type_id": str(number), "blended_word": "",
            "mask": runs_of((pair.source != pair.target).any(0)),
        }  # fmt: skip
    (place / "mapping_file.json").write_text(json.dumps(entries))
    return place


def arguments(folder, out, *more, methods=("ddim+masactrl", "direct+word_swap")):
    return [
        "pie-bench", str(folder), "--model", "demo", "--side", str(SIDE), "--size", str(SCALED), "--steps", "2",
        "--device", "cpu", "--method", *methods, "--out", str(out), *more,
    ]  # fmt: skip


def test_a_run_edits_judges_and_goes_on_where_it_was_interrupted(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    edit_case, done = dataset.edit_case, []

    def interrupted(*given):
        if done:
            raise KeyboardInterrupt
        done.append(edit_case(*given))
        return done[-1]

    monkeypatch.setattr(dataset, "edit_case", interrupted)
    assert dataset.main(arguments(folder, out)) == 130
    assert "goes on" in capsys.readouterr().err
    first = out / "ddim+masactrl" / "0_set" / "0.png"
    assert first.is_file() and not (out / "ddim+masactrl" / "1_set").exists() and not (out / "figures.csv").exists()
    before = first.stat().st_mtime_ns

    monkeypatch.setattr(dataset, "edit_case", edit_case)
    assert dataset.main(arguments(folder, out)) == 0
    assert first.stat().st_mtime_ns == before  # not edited again
    assert tuple(read_picture(first)[0].shape[-2:]) == (SIDE, SIDE)
    rows = list(csv.DictReader((out / "figures.csv").open()))
    # Two variants of nothing done and two methods, of two pictures.
    assert len(rows) == 2 * 3 * 2
    assert {row["method"] for row in rows} == {"nothing done", "ddim+masactrl", "direct+word_swap"}
    # A word swap at cfg 2 takes two evaluations a step, the inversion one: 2 steps.
    assert {float(row["u"]) for row in rows if row["method"] == "direct+word_swap"} == {2 * 2 + 2}
    summary = {
        (row["variant"], row["method"], row["figure"]): row for row in csv.DictReader((out / "summary.csv").open())
    }
    own = [float(row["psnr"]) for row in rows if (row["variant"], row["method"]) == ("corrected", "ddim+masactrl")]
    told = summary["corrected", "ddim+masactrl", "PSNR, dB"]
    assert float(told["mean"]) == pytest.approx(sum(own) / 2, rel=1e-5) and told["n"] == "2"
    assert float(told["worst"]) == pytest.approx(min(own), rel=1e-5)
    nothing = summary["corrected", "nothing done", "MSE x 10000"]
    assert [float(nothing[name]) for name in ("mean", "low", "high")] == [0, 0, 0]
    assert read_picture(out / "plot.png", multiple=1)[0].std() > 0

    assert dataset.main([*arguments(folder, out), "--steps", "3"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_workers_share_the_pictures(folder, tmp_path, capfd):
    out = tmp_path / "out"
    assert dataset.main(arguments(folder, out, "--workers", "2", methods=("ddim+word_swap",))) == 0
    said = capfd.readouterr().err
    assert "worker 0: 1 of 1" in said and "worker 1: 1 of 1" in said
    assert all((out / "ddim+word_swap" / f"{number}_set" / f"{number}.png").is_file() for number in range(2))
    assert len(list(csv.DictReader((out / "figures.csv").open()))) == 2 * 2 * 2


def test_accelerate_is_asked_for_in_one_sentence_where_it_is_missing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "find_spec", lambda name: None)
    assert dataset.main(arguments(folder, tmp_path / "out", "--accelerate")) == 2
    assert "pip install accelerate" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["auto", "auto+painting", "newton+masactrl", ""])
def test_an_unknown_method_is_refused_with_those_that_there_are(text, folder, tmp_path, capsys):
    assert dataset.main(arguments(folder, tmp_path / "out", methods=(text,))) == 2
    said = capsys.readouterr().err
    assert "auto+prompt_to_prompt" in said and len(said.splitlines()) == 1


class Letters:
    """A tokenizer whose words are letters."""

    eos_token_id = 1

    def get_vocab(self):
        return {f"{chr(97 + number)}</w>": 2 + number for number in range(26)}

    def __call__(self, text, **_):
        ids = [0, *(2 + ord(letter) - 97 for letter in text.split()), 1]
        return type("Ids", (), {"input_ids": ids + [1] * (77 - len(ids))})


def test_semantic_guidance_gets_what_the_target_has_and_else_takes_away_what_it_lacks():
    model = EditModel.__new__(EditModel)
    model.tokenizer = Letters()
    model._pieces = {number: piece for piece, number in Letters().get_vocab().items()}
    (edit,) = semantic_edits("a b c", "a x c y", model.read)
    assert edit.text == "x y" and edit.scale > 0
    (edit,) = semantic_edits("a b c", "a c", model.read)
    assert edit.text == "b" and edit.scale < 0
    with pytest.raises(EditingError, match="same words"):
        semantic_edits("a b", "a b", model.read)


def test_every_engine_runs_over_every_inversion_in_name():
    names = [method(f"{inversion}+{engine}").name for inversion in INVERSIONS for engine in ENGINES]
    assert len(set(names)) == len(INVERSIONS) * len(ENGINES)


def test_every_engine_edits(folder, tmp_path, capfd):
    methods = [f"ddim+{engine}" for engine in ENGINES]
    assert dataset.main(arguments(folder, tmp_path, "--limit", "1", "--variant", "corrected", methods=methods)) == 0
    assert "failed" not in capfd.readouterr().err
    pictures = [read_picture(tmp_path / name / "0_set" / "0.png")[0] for name in methods]
    assert all(not torch.equal(pictures[0], other) for other in pictures[1:])


def test_the_processes_of_accelerate_share_the_pictures(folder, tmp_path):
    pytest.importorskip("accelerate")
    out = tmp_path / "out"
    command = [sys.executable, dataset.__file__, *arguments(folder, out, "--accelerate", methods=("ddim+word_swap",))]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    assert len(list(csv.DictReader((out / "figures.csv").open()))) == 2 * 2 * 2

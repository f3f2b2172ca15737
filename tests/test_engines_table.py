"""Engines over inversions, on the demo world and with a person's own model: what is run, charged and told."""

import json

import pytest
import torch

from semantic_editing.benchmarks import engines_table, model_edits, real_models
from semantic_editing.benchmarks.demo import Runner, Store, workflow_called
from semantic_editing.core.demo.bench import Outcome
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.images.files import read_picture

EDITS = ("glasses: none to glasses",)


class Host(Runner):
    """Charges 7 u for an inversion that it has not just made, 3 for what follows; its pictures are gray."""

    def __init__(self, base):
        self.base, self.ran, self.inversion = base, [], None

    def execute(self, workflow):
        raise AssertionError("nothing is trained here")

    def run(self, workflow):
        key, inverting = engines_table.one(workflow, engines_table.INVERTS)
        image = workflow[engines_table.one(workflow, "VAEEncode")[1]["pixels"][0]]["inputs"]["image"]
        kinds = {node["class_type"] for node in workflow.values()}
        alone = [key, 1] == engines_table.one(workflow, "VAEDecode")[1]["samples"] or "SemEdit_RebuildGuider" in kinds
        now = (image, inverting["solver"], "SemEdit_NullTextInversion" in kinds)
        u = (0 if now == self.inversion else 7) + (0 if alone else 3)
        self.inversion = now
        self.ran.append((now, alone))
        return Outcome(torch.full((3, 128, 128), 0.5), u, 0, 1.0)


def settings(tmp_path, *more):
    return engines_table.options(["--steps", "20", "--pairs", "1", "--edits", *EDITS, "--out", str(tmp_path), *more])


def test_every_cell_is_charged_its_inversion_once_also_after_an_interruption(tmp_path):
    asked = settings(tmp_path, "--engines", "guidance", "MasaCtrl")
    # Inversions that differ (DDIM's is direct's and the empty negative's), guidance over each but direct, MasaCtrl.
    made = 5 + 6 + 7
    pairs = list(engines_table.in_turn(DemoData(FOLDER / "unseen"), EDITS, 1))
    host = Host(tmp_path)
    engines_table.run(asked, pairs, host, Store(tmp_path, False))
    assert len(host.ran) == len(pairs) * (made + 2)  # DDIM's inversion twice more
    lines = (tmp_path / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == len(pairs) * made

    kept = [line for number, line in enumerate(lines) if number % 3]  # as if it had ended in the middle
    (tmp_path / "outcomes.jsonl").write_text("\n".join(kept) + "\n")
    host.inversion = None
    engines_table.run(asked, pairs, host, Store(tmp_path, True))
    found = engines_table.collect(asked, pairs, Store(tmp_path, True), host)
    cells = {key: parts for key, parts in found.items() if key[1]}
    assert len(cells) == 6 + 7 and all(len(parts) == len(pairs) for parts in cells.values())
    assert {float(part["u forward"]) for parts in cells.values() for _, part in parts} == {7 + 3}
    told = engines_table.table(found, asked)
    assert "| MasaCtrl | SPDInv auto | " in told and " | 10 | 1 |" in told
    ran = len(host.ran)
    engines_table.run(asked, pairs, host, Store(tmp_path, True))
    assert len(host.ran) == ran  # nothing is made twice


def inputs(workflow, kind):
    return engines_table.one(workflow, kind)[1]


def test_a_cell_differs_from_the_shipped_workflow_in_what_it_says():
    shipped = inputs(workflow_called("demo_prompt_to_prompt"), "SemEdit_PromptToPromptGuider")
    for row, shift in (("DDIM", False), ("direct (DDIM + stored shift)", True), ("SPDInv gradient", True)):
        cell = engines_table.cell(row, "Prompt-to-Prompt", 20).workflow
        assert inputs(cell, "SemEdit_PromptToPromptGuider") == {**shipped, "settings": ["settings", 0]}
        assert inputs(cell, "SemEdit_GuiderSettings") == {**engines_table.SETTINGS, "stored_shift": shift}
        solver = "gradient" if "gradient" in row else "ddim"
        assert inputs(cell, engines_table.INVERTS)["solver"] == solver
        assert inputs(cell, engines_table.INVERTS)["steps"] == 20
    empty = engines_table.cell(engines_table.EMPTY, "MasaCtrl", 20).workflow
    assert (
        inputs(empty, "SemEdit_MasaCtrlGuider")["negative"] == ["empty", 0] and empty["empty"]["inputs"]["text"] == ""
    )
    optimised = engines_table.cell(engines_table.NULL_TEXT, "guidance", 20).workflow
    key, inverting = engines_table.one(optimised, engines_table.INVERTS)
    assert inputs(optimised, engines_table.SAMPLES)["inversion"] == ["null-text", 0] and inverting["solver"] == "ddim"
    null_text = inputs(optimised, "SemEdit_NullTextInversion")
    assert null_text["inversion"] == [key, 0] and null_text["cfg"] == inputs(optimised, engines_table.SAMPLES)["cfg"]
    assert engines_table.cell(engines_table.NULL_TEXT, "semantic guidance", 20) is None
    swapped = engines_table.cell("SPDInv auto", "word swap", 20).workflow
    assert inputs(swapped, engines_table.SAMPLES)["guidance"] == 0
    assert not any(node["class_type"] == "SemEdit_ApplyEditDirection" for node in swapped.values())
    guided = engines_table.cell("SPDInv auto", "guidance", 20).workflow
    assert inputs(guided, engines_table.SAMPLES) == inputs(workflow_called("demo_word_edit"), engines_table.SAMPLES)
    assert engines_table.cell("direct (DDIM + stored shift)", "guidance", 20) is None
    edits = inputs(engines_table.cell("DDIM", "semantic guidance", 20).workflow, "SemEdit_SemanticGuidanceGuider")
    assert edits["edits"] == "wearing glasses"


def test_real_models_prints_both_tables_and_goes_on(tmp_path, capsys):
    words = ["--model", "demo", "--size", "64", "--count", "1", "--steps", "1", "2", "--out", str(tmp_path)]
    words += ["--inversions", "ddim", "direct", "--engines", "word_swap", "masactrl", "--device", "cpu"]
    assert real_models.main(words) == 0
    said = capsys.readouterr().out
    # DDIM takes one evaluation a step; the edits, at the most steps, two (word swap) or three (MasaCtrl).
    assert "| ddim | 1 | " in said and " | 2.0 (2) | " in said
    assert "| word_swap | ddim | " in said and "| word_swap | direct | " not in said
    rows = {tuple(line.split(" | ")[:2]): line for line in said.splitlines()}
    assert " | 6.0 | " in rows["| word_swap", "ddim"] and " | 8.0 | " in rows["| masactrl", "direct"]
    assert "| nothing done |  | inf (inf)" in said and "Not measured without a CLIP model" in said
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["000-ddim+masactrl.png", "000-ddim+word_swap.png", "000-direct+masactrl.png"]
    assert read_picture(tmp_path / "pictures" / pictures[0], multiple=1)[0].std() > 0
    kept = (tmp_path / "real_models.jsonl").read_text()
    assert all("psnr" in json.loads(line)["figures"] for line in kept.splitlines())
    assert real_models.main(words) == 0
    assert (tmp_path / "real_models.jsonl").read_text() == kept


@pytest.mark.parametrize("words", [["--photos", "absent"], ["--size", "63"], ["--model", "absent.safetensors"]])
def test_real_models_says_in_one_sentence_why_not(words, tmp_path, capsys):
    assert real_models.main(["--model", "demo", "--device", "cpu", "--out", str(tmp_path), *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("semantic-editing bench: ")]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("random-sd15", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        (
            "random-sdxl",
            {
                "unet": 2_567_463_684,
                "vae": 83_653_863,
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
            },
        ),
    ],
)
def test_random_models_have_as_many_weights_as_the_published_ones(name, counts):
    """Nothing is allocated: a network on "meta" has shapes only."""
    with torch.device("meta"):
        networks = model_edits.random_networks(name)
    assert {part: sum(map(torch.Tensor.numel, net.parameters())) for part, net in networks.items()} == counts


def test_random_sdxl_goes_through_every_engine(tmp_path, capsys, monkeypatch):
    """Its command on narrow networks: both encoders, the pooled text, all of both tables, in 16 bits."""
    narrow = {
        "unet": {
            "block_out_channels": (32, 64, 64), "transformer_layers_per_block": [1, 1, 2], "cross_attention_dim": 80,
            "attention_head_dim": [1, 2, 2], "layers_per_block": 1, "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 48 + 6 * 8,
        },
        "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "text_encoder_2": {
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "projection_dim": 48,
        },
    }  # fmt: skip
    sizes = model_edits.RANDOM["random-sdxl"]
    monkeypatch.setitem(model_edits.RANDOM, "random-sdxl", {part: sizes[part] | narrow.get(part, {}) for part in sizes})
    monkeypatch.setitem(model_edits.VAE, "block_out_channels", (32, 32, 32, 32))
    words = ["--model", "random-sdxl", "--size", "64", "--count", "1", "--steps", "2", "--out", str(tmp_path)]
    assert real_models.main([*words, "--inversions", "auto", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert "random-sdxl at 64 pixels" in said and torch.get_default_dtype() == torch.float32
    assert all(f"| {engine} | auto | " in said for engine in model_edits.ENGINES)

"""The command line on tiny models: what it writes, what it refuses, and that nothing is half-written."""

import json
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing import cli
from semantic_editing.benchmarks.fuzz_samples import SAMPLES
from semantic_editing.core.demo import model as demo_model
from semantic_editing.core.demo import showcase
from semantic_editing.core.demo import showcase_caso as caso_showcase
from semantic_editing.core.demo import showcase_deltaedit as style_showcase
from semantic_editing.core.demo import showcase_regions as region_showcase
from semantic_editing.core.demo.data import FOLDER, TOKENIZER
from semantic_editing.core.diffusers.checkpoint import load_checkpoint
from semantic_editing.core.errors import CutTextWarning, EditingError
from semantic_editing.core.pix2pix_zero.edit_direction import EditDirection
from semantic_editing.tests.core.tiny_models import tiny_scheduler, tiny_unet

WIDTH = 12  # of tiny_unet's text
FAST = ["--steps", "2", "--sentences", "3", "--size", "32"]


def text_encoder(kind, seed):
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=6 if kind.__name__.endswith("Projection") else WIDTH,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=6,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def save_pipeline(folder, family):
    """A tiny random model of a family as a diffusers folder."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4),
            norm_num_groups=2,
            sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    parts = {"unet": tiny_unet(family), "vae": vae, "scheduler": tiny_scheduler(family), "tokenizer": tokenizer}
    if family == "sdxl":
        from diffusers import UNet2DConditionModel

        config = dict(parts["unet"].config) | {"cross_attention_dim": WIDTH + 6}
        parts["unet"] = UNet2DConditionModel.from_config(config)
        first, second = text_encoder(CLIPTextModel, 1), text_encoder(CLIPTextModelWithProjection, 2)
        StableDiffusionXLPipeline(
            text_encoder=first, text_encoder_2=second, tokenizer_2=tokenizer, **parts
        ).save_pretrained(folder)
    else:
        StableDiffusionPipeline(
            text_encoder=text_encoder(CLIPTextModel, 1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("sd1"), "sd1")


@pytest.fixture
def image(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def edit(model, image, out, *more):
    words = ["--source", "cat", "--target", "dog"]
    return cli.main(["edit", "--model", str(model), "--image", str(image), "--out", str(out), *words, *FAST, *more])


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_edit_writes_a_picture_for_every_family(tmp_path, sd1, image, family, capsys):
    model = sd1 if family == "sd1" else save_pipeline(tmp_path / "model", family)
    out = tmp_path / "new" / "out.png"
    assert edit(model, image, out) == 0
    assert Image.open(out).size == (70, 40)  # edited at 56 x 32, given back at the photo's own size
    said = capsys.readouterr().out
    assert "70 x 40, resized to 56 x 32" in said and f"wrote {out}" in said
    assert os.listdir(out.parent) == ["out.png"]


def test_a_photo_of_any_size_comes_back_at_its_own(tmp_path, sd1):
    """37 x 51: edited at 32 x 44, padded to 32 x 48."""
    values = np.random.default_rng(1).integers(0, 255, (51, 37, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "odd.png")
    assert edit(sd1, tmp_path / "odd.png", tmp_path / "out.png") == 0
    assert Image.open(tmp_path / "out.png").size == (37, 51)


@pytest.mark.slow
def test_the_same_call_gives_the_same_picture_and_the_knobs_matter(tmp_path, sd1, image):
    def pixels(name, *more):
        assert edit(sd1, image, tmp_path / name, *more) == 0
        return np.asarray(Image.open(tmp_path / name)).astype(int)

    first = pixels("a.png")
    assert (first == pixels("b.png")).all()
    assert (first != pixels("c.png", "--strength", "3")).any()
    assert (first != pixels("d.png", "--caption", "an owl at night")).any()


def test_a_captioner_describes_the_picture_unless_the_caption_is_given(tmp_path, sd1, image, capsys):
    folder = SAMPLES["captioner"].make(tmp_path)
    assert edit(sd1, image, tmp_path / "out.png", "--captioner", str(folder), "--caption", "an owl") == 0
    assert 'with the caption "an owl"' in capsys.readouterr().out
    assert edit(sd1, image, tmp_path / "two.png", "--captioner", str(folder)) == 0
    assert 'with the caption "a photo of a cat"' not in capsys.readouterr().out
    (folder / "vocab.txt").unlink()
    assert edit(sd1, image, tmp_path / "three.png", "--captioner", str(folder)) == 2
    assert "has no tokenizer" in capsys.readouterr().err


def test_without_a_source_the_target_is_added_to_the_caption(tmp_path, sd1, image, capsys):
    def run(out, *more):
        paths = ["--model", str(sd1), "--image", str(image), "--out", str(tmp_path / out)]
        return cli.main(["edit", *paths, *FAST, *more])

    assert run("no.png", "--target", "wearing a hat") == 2
    assert "Nothing says what the picture shows; give the word that changes (--source)" in capsys.readouterr().err
    folder = SAMPLES["captioner"].make(tmp_path)
    assert run("one.png", "--target", "wearing a hat", "--captioner", str(folder)) == 0
    assert "adding 'wearing a hat' to the caption" in capsys.readouterr().out
    assert run("two.png", "--target", " ", "--caption", "an owl") == 2
    assert "The target is empty" in capsys.readouterr().err
    with warnings.catch_warnings(record=True) as doubled:
        warnings.simplefilter("always", CutTextWarning)
        assert run("three.png", "--target", "at night", "--caption", "an owl " * 40) == 0
    assert not [warning for warning in doubled if warning.category is CutTextWarning]
    said = capsys.readouterr().out
    assert "the caption fills all 77 tokens" in said and "the caption with the target fills all 77 tokens" in said


def test_whoever_else_encodes_a_text_that_is_cut_is_warned(sd1):
    model = load_checkpoint(sd1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CutTextWarning)
        model.encode_text(["", "an owl"])
    with pytest.warns(CutTextWarning, match=r"^The text 'an owl .* fills all 77 tokens .*\.$"):
        model.encode_text(["an owl", "an owl " * 40])


def test_a_direction_file_replaces_the_words_direction(tmp_path, sd1, image, capsys):
    shift = torch.zeros(1, 77, WIDTH)
    shift[:, 3] = 1.0
    file = EditDirection(shift, None, f"clip_l {WIDTH}", "nothing", "something", 7).save(tmp_path / "d.safetensors")
    assert edit(sd1, image, tmp_path / "out.png", "--direction", str(file)) == 0
    said = capsys.readouterr().out
    assert "'nothing' to 'something'" in said and "sentences a side" not in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", "0"], "steps"),
        (["--strength", "5"], "from -3 to 3"),
        (["--guidance", "-1"], "guidance is -1"),
        (["--source", " "], "empty"),
        (["--sentences", "0"], "number of sentences is 0"),
        (["--size", "33"], "multiple of 8"),
        (["--direction", "nothing.safetensors"], "nothing.safetensors was not found"),
        (["--device", "warp9"], "device 'warp9'"),
        (["--image", "nothing.png"], "nothing.png was not found"),
        (["--model", "nothing"], "nothing was not found"),
        (["--out", "out.doc"], "use .png"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_writes_nothing(tmp_path, sd1, image, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    assert edit(sd1, image, tmp_path / "out.png", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("semantic-editing: ")
    assert os.listdir(tmp_path) == ["in.png"]


def test_an_existing_output_is_kept_unless_allowed(tmp_path, sd1, image, capsys):
    (tmp_path / "out.png").write_bytes(b"mine")
    assert edit(sd1, image, tmp_path / "out.png") == 2
    assert (tmp_path / "out.png").read_bytes() == b"mine"
    assert "exists already" in capsys.readouterr().err
    assert edit(sd1, image, tmp_path / "out.png", "--overwrite") == 0
    assert Image.open(tmp_path / "out.png").format == "PNG"


@pytest.mark.parametrize(
    ("encoder", "shape", "said"),
    [("clip_g 1280", (1, 77, WIDTH), "clip_g 1280, but the model uses clip_l 12"), ("", (1, 77, WIDTH + 1), "13 wide")],
)
def test_a_direction_of_another_encoder_is_refused(tmp_path, sd1, image, capsys, encoder, shape, said):
    shift = torch.zeros(shape)
    shift[:, 1] = 1
    file = EditDirection(shift, None, encoder, "a", "b", 1).save(tmp_path / "d.safetensors")
    assert edit(sd1, image, tmp_path / "out.png", "--direction", str(file)) == 2
    assert said in capsys.readouterr().err


def test_one_mean_embedding_is_no_direction(tmp_path, sd1, image, capsys):
    torch.save(torch.ones(1, 77, WIDTH), tmp_path / "dog.pt")
    assert edit(sd1, image, tmp_path / "out.png", "--direction", str(tmp_path / "dog.pt")) == 2
    assert "give two files" in capsys.readouterr().err


def test_a_cancelled_run_leaves_nothing(tmp_path, sd1, image, monkeypatch, capsys):
    def cancel(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("semantic_editing.core.pix2pix_zero.word_edit.CrossAttentionGuidance", cancel)
    assert edit(sd1, image, tmp_path / "out.png") == 130
    assert os.listdir(tmp_path) == ["in.png"]


def test_out_of_memory_is_a_sentence(tmp_path, sd1, image, monkeypatch, capsys):
    def explode(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("semantic_editing.core.pix2pix_zero.word_edit.spdinv", explode)
    assert edit(sd1, image, tmp_path / "out.png") == 2
    assert "ran out of memory; use a smaller --size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("empty", lambda path: path.mkdir(), "no readable model_index.json"),
        (
            "flux",
            lambda path: (path.mkdir(), (path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')),
            "FluxPipeline",
        ),
        (
            "half",
            lambda path: (
                path.mkdir(),
                (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}'),
            ),
            "has an unknown unet",
        ),
        ("model.ckpt", lambda path: path.write_bytes(b"x"), "pickle"),
        ("model.safetensors", lambda path: path.write_bytes(b"x"), "damaged or not a safetensors"),
        ("model.txt", lambda path: path.write_text("x"), "no checkpoint"),
    ],
)
def test_models_that_cannot_be_used(tmp_path, name, make, said):
    make(tmp_path / name)
    with pytest.raises(EditingError, match=said):
        load_checkpoint(tmp_path / name)


def test_the_encoder_is_named_as_in_comfyui(tmp_path, sd1):
    assert load_checkpoint(sd1).encoder_name == f"clip_l {WIDTH}"
    assert load_checkpoint(save_pipeline(tmp_path / "xl", "sdxl")).encoder_name == f"clip_l {WIDTH} + clip_g 6"


def test_demo_replaces_nothing_unless_told(tmp_path, monkeypatch, capsys):
    def loaded():
        raise EditingError("The model was loaded.")

    monkeypatch.setattr(demo_model, "load_demo_model", loaded)
    (tmp_path / "measures.json").write_text("precious")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "is not empty; choose another one, or add --overwrite" in capsys.readouterr().err
    for more in (["--overwrite"], []):
        out = tmp_path if more else tmp_path / "new"
        assert cli.main(["demo", "--out", str(out), *more]) == 2 and "was loaded" in capsys.readouterr().err
    assert (tmp_path / "measures.json").read_text() == "precious"
    (tmp_path / "measures.json").write_text('{"seconds": 5}')  # an earlier demo's: it may run again
    (tmp_path / "contact_sheet.png").touch()
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2 and "was loaded" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "edit"])
def test_a_path_that_cannot_be_told_is_refused_first(tmp_path, capsys, command):
    words = ["--model", "m", "--image", "i", "--source", "a", "--target", "b"] if command == "edit" else []
    assert cli.main([command, "--out", f"{tmp_path}/a\udcff.png", *words]) == 2
    assert "holds half of a surrogate pair" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_writes_a_sheet_pictures_and_measures(tmp_path, monkeypatch, capsys):
    if not (FOLDER / "classifier.safetensors").is_file():
        pytest.skip("no classifier file yet")
    # Of each kind of edit a few, and a few steps: the others go the same way.
    monkeypatch.setattr(showcase, "EDITS", ("mouth: sad to smile", "background: blue to green"))
    monkeypatch.setattr(caso_showcase, "MOST", 2)
    monkeypatch.setattr(region_showcase, "EDITS", dict([*region_showcase.EDITS.items()][:1]))
    monkeypatch.setattr(style_showcase, "REFINE", 3)
    expand = showcase.expand_words
    monkeypatch.setattr(
        showcase, "expand_words", lambda words, count, **options: expand(words, 8, **options)
    )  # 256 take most of the time
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--steps", "2"]) == 0
    measures = json.loads((tmp_path / "out" / "measures.json").read_text())
    assert measures["settings"]["steps"] == 2
    assert set(measures["edits"]) == {"mouth: sad to smile", "background: blue to green"}
    assert set(measures["rebuild"]) == {"ddim", "spdinv", "autocorr"}
    assert measures["masked"]["largest_change_outside"] == 0
    # Guided: 4 forwards and 1 backward a step, after the inversion; word swap: DDIM inversion and 2 forwards a step.
    edited = measures["edits"]["mouth: sad to smile"]
    assert edited["word_swap"]["u_forward"] == 2 + 2 * 2
    for key in ("guided", "guided_swap"):
        assert edited[key]["u_forward"] >= 2 + 4 * 2 and edited[key]["u_backward"] == 2
    # Embeddings: one step of two is in the window; its inversion, then 2 forwards.
    embeddings = sorted(path.stem for path in (FOLDER / "embeddings").glob("*.safetensors"))[: caso_showcase.MOST]
    assert sorted(measures["embeddings"]) == embeddings
    for figures in measures["embeddings"].values():
        assert all(
            figures[way]["u_forward"] >= 1 + 2 and figures[way]["u_backward"] == 0 for way in ("added", "removed")
        )
    # Regions: an inversion, the whole edit to screen from and the finalists, 2 forwards a step; outside the box no
    # pixel changes.
    assert set(measures["regions"]) == set(region_showcase.EDITS)
    for edit, figures in measures["regions"].items():
        assert figures["u"] >= 2 + 2 * 2 + 2 * 2
        stem = "region_" + edit.replace(": ", "_").replace(" ", "_")
        source, edited = (
            np.array(Image.open(tmp_path / "out" / f"{stem}_{name}.png")) for name in ("source", "edited")
        )
        x, y, width, height = figures["box"]
        changed = (source != edited).any(2)
        assert changed[y : y + height, x : x + width].any()
        changed[y : y + height, x : x + width] = False
        assert not changed.any()
    # Style codes: what was drawn and what was pasted of each edit; the diffusion's inversion and one evaluation a step.
    assert set(measures["style_edits"]) == set(style_showcase.EDITS)
    assert all({"copy_psnr", "drawn", "texts"} <= set(entry) for entry in measures["style_edits"].values())
    assert measures["style_edits"][style_showcase.BY_DIFFUSION]["diffusion"]["u_forward"] >= 2 + 2
    assert "example" in measures["style_edits"][style_showcase.BY_EXAMPLE]
    sheet = Image.open(tmp_path / "out" / "contact_sheet.png")
    assert sheet.width > 5 * 128 and sheet.height > 4 * 128
    written = sorted(os.listdir(tmp_path / "out"))
    styles = 5 * len(style_showcase.EDITS) + 1 + 3
    assert len(written) == 2 + 5 + 5 * 2 + 3 + 6 * len(embeddings) + 4 * len(region_showcase.EDITS) + styles
    assert "wrote" in capsys.readouterr().out


def test_help_and_a_missing_command(capsys):
    for arguments, code in ((["--help"], 0), ([], 2), (["edit"], 2)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == code


def test_bench_lists_its_benchmarks_with_a_line_each(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert {"demo", "peers", "inversion_reach", "import_time"} <= set(cli.benchmarks())
    assert all(f"{name} " in said and purpose in said for name, purpose in cli.benchmarks().items())


def test_bench_passes_options_and_the_exit_code_through(tmp_path, monkeypatch, capfd):
    script = (
        '"""Says what it was told."""\nimport sys\nif __name__ == "__main__":\n    print(sys.argv[1:])\n    '
        "sys.exit(7)\n"
    )
    (tmp_path / "echo.py").write_text(script)
    (tmp_path / "part.py").write_text('"""No script."""\n')
    monkeypatch.setattr(cli, "BENCHMARKS", tmp_path)
    assert cli.main(["bench", "echo", "--steps", "3", "--help"]) == 7
    assert capfd.readouterr().out.strip() == "['--steps', '3', '--help']"
    (tmp_path / "demo.py").write_text(script)
    assert cli.main(["bench", "--demo", "a_workflow"]) == 7
    assert "['a_workflow']" in capfd.readouterr().out
    (tmp_path / "dataset.py").write_text(script)
    assert cli.main(["bench", "--dataset", "pie-bench", "FOLDER"]) == 7
    assert "['pie-bench', 'FOLDER']" in capfd.readouterr().out
    assert cli.main(["bench", "nothing"]) == 2
    assert "choose one of dataset, demo, echo." in capfd.readouterr().err
    monkeypatch.setattr(cli, "BENCHMARKS", tmp_path / "absent")
    assert cli.main(["bench", "echo"]) == 2
    assert "not part of this installation" in capfd.readouterr().err

"""PIE-Bench: figures worked out by hand and by the libraries of the published evaluation, and its format."""

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from PIL import Image

from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import save_tensors
from semantic_editing.core.metrics import pie_bench
from semantic_editing.core.metrics.pie_bench import (
    EDITED,
    NOTHING_DONE,
    Networks,
    decode_mask,
    evaluate,
    measure,
    read_pie_bench,
    table,
    with_ring,
)
from semantic_editing.core.models.clip import TowerScorer

SIDE = 12
VARIANTS = ("published", "corrected")
COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "no red": (-1.0, 0, 0)}


def clip(side=SIDE):
    """A picture's mean colour, and the colours' names: similarities that one can work out."""
    return TowerScorer(
        "colours",
        lambda images: (images.mean((2, 3)), images.flatten(2).mT),
        lambda texts: torch.tensor([COLOURS[text] for text in texts]),
        side,
        (0.0, 0, 0),
        (1.0, 1, 1),
    )


def edge_keys(images):
    """Two keys: the normalised colours of the leftmost and of the rightmost pixel of the first row."""
    return torch.stack([images[:, :, 0, 0], images[:, :, 0, -1]], 1) - 0.5


def squares(images, reference, weights):
    """A distance that is handed what LPIPS is handed."""
    weights = torch.ones_like(images[:, :1]) if weights is None else weights.expand(len(images), -1, -1, -1)
    return ((images - reference).square().mean(1, keepdim=True) * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))


ALL = Networks(edge_keys, squares, clip())


def flat(*colour, side=SIDE):
    return torch.tensor(colour).reshape(1, -1, 1, 1).expand(1, 3, side, side).clone()


def rectangle(top, bottom, left, right, side=SIDE):
    mask = torch.zeros(1, 1, side, side)
    mask[..., top:bottom, left:right] = 1
    return mask


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def figures(source, edits, mask, variant, networks=ALL, prompts=("red", "green")):
    return measure(source, edits, mask, *prompts, networks, variant)


def test_runs_are_start_and_length_row_by_row_and_the_last_one_ends_with_the_picture():
    rows = ["0110", "1000", "0000", "0011"]
    expected = torch.tensor([[float(digit) for digit in row] for row in rows])
    assert torch.equal(decode_mask([1, 2, 4, 1, 14, 100, 9, 0], 4)[0, 0], expected)
    assert decode_mask([], 4).sum() == 0


def test_the_ring_is_the_outermost_pixel_and_what_was_masked_stays():
    rows = ["1111", "1101", "1001", "1111"]
    expected = torch.tensor([[float(digit) for digit in row] for row in rows])
    assert torch.equal(with_ring(decode_mask([5, 1], 4))[0, 0], expected)


# By hand. The unedited part is 8 x 9 = 72 of 12 x 12 = 144 pixels, so half; all of the ring is masked.
HALF = 1 - rectangle(1, 9, 1, 10)


def test_published_squares_are_averaged_over_the_masked_half_as_well():
    source = flat(0.5, 0.5, 0.5)
    edits = source + 0.1 * (1 - HALF) + 0.4 * HALF
    published, corrected = (figures(source, edits, HALF, variant) for variant in VARIANTS)
    assert corrected["mse"].item() == pytest.approx(0.01, abs=1e-8)
    assert published["mse"].item() == pytest.approx(0.005, abs=1e-8)
    assert corrected["psnr"].item() == pytest.approx(20, abs=1e-5)
    assert (published["psnr"] - corrected["psnr"]).item() == pytest.approx(10 * math.log10(2), abs=1e-5)
    assert published["lpips"].item() == pytest.approx(corrected["lpips"].item() / 2, rel=1e-5)


def test_the_ring_leaves_the_published_figures_alone():
    """Only the ring was changed: 44 of 144 pixels by 0.3."""
    source = flat(0.5, 0.5, 0.5)
    ring = with_ring(torch.zeros(1, 1, SIDE, SIDE))
    mask = rectangle(4, 6, 4, 6)
    published, corrected = (figures(source, source + 0.3 * ring, mask, variant) for variant in VARIANTS)
    assert published["mse"].item() == 0 and published["psnr"].item() == math.inf
    assert corrected["mse"].item() == pytest.approx(44 * 0.09 / 140, rel=1e-5)


def test_structure_distance_by_hand_and_what_the_published_range_does_to_it():
    source = torch.cat([flat(1.0, 1, 1)[..., :6], flat(0.0, 0, 0)[..., :6]], -1)
    edits = torch.cat([flat(1.0, 1, 1)[..., :6], flat(1.0, 1, 0)[..., :6]], -1)
    published, corrected = (figures(source, edits, HALF, variant)["structure"].item() for variant in VARIANTS)
    # Keys of the source (.5, .5, .5) and (-.5, -.5, -.5), cosine -1; of the edit (.5, .5, .5) and (.5, .5, -.5), 1/3.
    # Two of the four cosines differ.
    assert corrected == pytest.approx((4 / 3) ** 2 / 2, rel=1e-5)
    # Keys of 0..255: (254.5, 254.5, 254.5) and (254.5, 254.5, -.5).
    cosine = (2 * 254.5**2 - 0.5 * 254.5) / (254.5 * math.sqrt(3) * math.sqrt(2 * 254.5**2 + 0.25))
    assert published == pytest.approx((1 + cosine) ** 2 / 2, rel=1e-5)


def test_clip_by_hand():
    """A red picture; the edit makes 4 x 5 = 20 pixels green."""
    mask = rectangle(3, 7, 3, 8)
    source = flat(1.0, 0, 0)
    edits = source * (1 - mask) + flat(0.0, 1, 0) * mask
    published, corrected = (figures(source, edits, mask, variant) for variant in VARIANTS)
    for measured in (published, corrected):
        assert measured["clip_source"].item() == pytest.approx(100, abs=1e-4)
        assert measured["clip_whole"].item() == pytest.approx(100 * 20 / math.hypot(20, 124), abs=1e-4)
    assert corrected["clip_edited"].item() == pytest.approx(100, abs=1e-4)
    assert published["clip_edited"].item() == pytest.approx(100 * 20 / math.hypot(20, 44), abs=1e-4)  # the red ring


def test_a_similarity_below_zero_is_published_as_zero():
    source = flat(1.0, 0, 0)
    published, corrected = (
        figures(source, source, HALF, variant, prompts=("no red", "no red")) for variant in VARIANTS
    )
    for name in ("clip_source", "clip_whole", "clip_edited"):
        assert published[name].item() == 0 and corrected[name].item() == pytest.approx(-100, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side, batch", [(16, 1), (33, 3)])
def test_published_figures_equal_the_libraries_of_the_published_evaluation(dtype, side, batch):
    source, edits = noise(1, 3, side, side, dtype=dtype), noise(batch, 3, side, side, seed=1, dtype=dtype)
    mask = (noise(1, 1, side, side, seed=2) > 0.6).to(dtype)
    networks = Networks(lpips=squares, clip=clip(side))
    measured = figures(source, edits, mask, "published", networks)
    keep = 1 - mask[0, 0].numpy().astype(np.float32)
    keep[0, :] = keep[-1, :] = keep[:, 0] = keep[:, -1] = 0
    for index in range(batch):
        first, second = (torch.tensor(picture.float().numpy() * keep)[None] for picture in (edits[index], source[0]))
        psnr = torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0)(first, second)
        ssim = torchmetrics.image.StructuralSimilarityIndexMeasure(data_range=1.0)(first, second)
        mse = torchmetrics.regression.MeanSquaredError()(first[0].contiguous(), second[0].contiguous())
        assert measured["psnr"][index].item() == pytest.approx(psnr.item(), abs=1e-4)
        assert measured["ssim"][index].item() == pytest.approx(ssim.item(), abs=1e-5)
        assert measured["mse"][index].item() == pytest.approx(mse.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_corrected_figures_equal_numpy_over_the_unmasked_pixels(dtype):
    source, edits = noise(1, 3, 20, 20, dtype=dtype), noise(2, 3, 20, 20, seed=1, dtype=dtype)
    mask = (noise(1, 1, 20, 20, seed=2) > 0.6).to(dtype)
    measured = figures(source, edits, mask, "corrected", Networks())
    for index in range(2):
        chosen = (edits[index] - source[0]).double().numpy()[:, mask[0, 0].numpy() == 0]
        assert measured["mse"][index].item() == pytest.approx((chosen**2).mean(), rel=1e-6)
        assert measured["psnr"][index].item() == pytest.approx(-10 * np.log10((chosen**2).mean()), rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_its_rows(variant):
    source, edits = noise(1, 3, SIDE, SIDE), noise(3, 3, SIDE, SIDE, seed=1)
    together = figures(source, edits, HALF, variant)
    assert set(together) == set(pie_bench.FIGURES)
    for index in range(3):
        alone = figures(source, edits[index : index + 1], HALF, variant)
        for name, values in together.items():
            assert values.dtype == torch.float64 and values.shape == (3,)
            assert values[index].item() == pytest.approx(alone[name].item(), rel=1e-6), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_done_changes_nothing(variant):
    source = noise(1, 3, SIDE, SIDE)
    measured = figures(source, source, rectangle(2, 5, 2, 5), variant)
    assert measured["structure"].item() == measured["lpips"].item() == measured["mse"].item() == 0
    assert measured["psnr"].item() == math.inf and measured["ssim"].item() == pytest.approx(1, abs=1e-6)


UNEDITED = {"psnr", "lpips", "mse", "ssim"}


def test_a_mask_of_everything_has_no_unedited_part_and_a_mask_of_nothing_no_edited_part():
    source, edits = noise(1, 3, SIDE, SIDE), noise(1, 3, SIDE, SIDE, seed=1)
    everything, nothing = torch.ones(1, 1, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)
    for variant in VARIANTS:
        assert set(figures(source, edits, everything, variant)) == set(pie_bench.FIGURES) - UNEDITED
    assert set(figures(source, edits, nothing, "corrected")) == set(pie_bench.FIGURES) - {"clip_edited"}
    assert set(figures(source, edits, nothing, "published")) == set(pie_bench.FIGURES)  # the ring is its edited part
    inside = rectangle(1, 11, 1, 11)  # all but the ring
    assert set(figures(source, edits, inside, "published")) == set(pie_bench.FIGURES) - UNEDITED


def test_what_lacks_a_network_is_named_and_the_rest_computed(monkeypatch):
    source = noise(1, 3, SIDE, SIDE)
    assert set(figures(source, source, HALF, "published", Networks())) == {"psnr", "mse", "ssim"}
    monkeypatch.setattr(pie_bench, "find_spec", lambda name: None)
    assert set(figures(source, source, HALF, "published", Networks())) == {"psnr", "mse"}
    assert set(Networks().missing().values()) == {
        "a vision model", "LPIPS weights", "the package torchmetrics", "a CLIP model",
    }  # fmt: skip
    assert set(Networks(*(ALL.keys, ALL.lpips, ALL.clip)).missing()) == {"ssim"}


@pytest.mark.parametrize(
    "source, edits, mask, sentence",
    [
        (flat(0.5, 0.5, 0.5), flat(0.5, 0.5, 0.5, side=13), HALF, "same size"),
        (flat(0.5, 0.5, 0.5)[:, :1], flat(0.5, 0.5, 0.5)[:, :1], HALF, "compare"),
        (noise(2, 3, SIDE, SIDE), noise(2, 3, SIDE, SIDE), HALF, "compare"),
        (flat(0.5, 0.5, 0.5), flat(0.5, 0.5, 0.5), HALF[..., 1:], "The mask has shape"),
        (flat(0.5, 0.5, 0.5), flat(0.5, math.nan, 0.5), HALF, "The edit is not a number"),
        (flat(0.5, math.inf, 0.5), flat(0.5, 0.5, 0.5), HALF, "The source is not a number"),
    ],
)
def test_pictures_that_cannot_be_compared(source, edits, mask, sentence):
    with pytest.raises(EditingError, match=sentence):
        figures(source, edits, mask, "published")


def test_a_network_that_gives_no_numbers_is_named():
    broken = Networks(lpips=lambda images, reference, weights: torch.full((len(images),), math.nan))
    with pytest.raises(EditingError, match="LPIPS"):
        figures(flat(0.5, 0.5, 0.5), flat(0.5, 0.5, 0.5), HALF, "corrected", broken)


ENTRY = {
    "image_path": "1_change_object_80/1_artificial/a.jpg",
    "original_prompt": "[red]",
    "editing_prompt": " [green]",
    "editing_instruction": "make it green",
    "editing_type_id": "1",
    "blended_word": "red green",
    "mask": [14, 2],
}


def save(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * image[0].permute(1, 2, 0)).round().byte().numpy()
    Image.fromarray(pixels).save(path, quality=100)


def made_folder(folder: Path, entries, side=SIDE):
    """A benchmark folder whose pictures are red."""
    for entry in entries.values():
        save(folder / "annotation_images" / entry["image_path"], flat(1.0, 0, 0, side=side))
    (folder / "mapping_file.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_reading_an_entry(tmp_path):
    (case,) = read_pie_bench(made_folder(tmp_path, {"000000000007": ENTRY}), SIDE)
    assert (case.key, case.source_prompt, case.target_prompt) == ("000000000007", "red", "green")
    assert (case.edit_type, case.blended_word, case.path) == (1, "red green", ENTRY["image_path"])
    assert case.picture.is_file() and torch.equal(case.mask, rectangle(1, 2, 2, 4))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"image_path": "../../secret.png"}, "not below annotation_images"),
        ({"image_path": "a/../../secret.png"}, "not below annotation_images"),
        ({"image_path": "/etc/secret.png"}, "not below annotation_images"),
        ({"image_path": "C:/secret.png"}, "not below annotation_images"),
        ({"image_path": "..\\secret.png"}, "not below annotation_images"),
        ({"image_path": ""}, "not below annotation_images"),
        ({"image_path": "absent.jpg"}, "absent.jpg of entry 7 is not in annotation_images"),
        ({"image_path": "a\0b.jpg"}, "is not in annotation_images"),
        ({"image_path": 3}, "no text image_path"),
        ({"original_prompt": None}, "no text original_prompt"),
        ({"editing_prompt": "[]"}, "empty prompt"),
        ({"editing_type_id": "10"}, "must be"),
        ({"editing_type_id": 1}, "no text editing_type_id"),
        ({"blended_word": ["red"]}, "no text blended_word"),
        ({"mask": None}, "no list of whole numbers"),
        ({"mask": ""}, "no list of whole numbers"),
        ({"mask": {"size": [12, 12]}}, "no list of whole numbers"),
        ({"mask": [14]}, "no list of whole numbers"),
        ({"mask": [14, 2.5]}, "no list of whole numbers"),
        ({"mask": [True, 2]}, "no list of whole numbers"),
        ({"mask": [144, 1]}, "outside a picture of 12 x 12"),
        ({"mask": [-1, 3]}, "outside a picture of 12 x 12"),
        ({"mask": [3, -1]}, "outside a picture of 12 x 12"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, change, sentence):
    folder = made_folder(tmp_path / "bench", {"7": ENTRY})
    (folder / "mapping_file.json").write_text(json.dumps({"7": {**ENTRY, **change}}), encoding="utf-8")
    with pytest.raises(EditingError, match=sentence) as raised:
        read_pie_bench(folder, SIDE)
    assert "ntry 7" in str(raised.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, "has no readable mapping_file.json"),
        (b"{", "damaged"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "damaged"),
        (b"{}", "0 entries"),
        (b"[1]", "damaged: it is no object"),
        (b'{"7": 1}', "Entry 7 of mapping_file.json is no object"),
    ],
)
def test_a_folder_that_is_no_benchmark(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "mapping_file.json").write_bytes(text)
    with pytest.raises(EditingError, match=sentence):
        read_pie_bench(tmp_path, SIDE)


def entry(number, edit_type, mask):
    return {**ENTRY, "image_path": f"{edit_type}/{number}.png", "editing_type_id": str(edit_type), "mask": mask}


ENTRIES = {"a": entry(0, 1, [39, 2]), "b": entry(1, 1, [39, 2]), "c": entry(2, 9, [0, 144]), "d": entry(3, 9, [39, 2])}


@pytest.fixture
def judged(tmp_path):
    """Four red pictures. Edits: a by 51/255 darker everywhere, b by 102/255, c wholly green, d not there."""
    cases = read_pie_bench(made_folder(tmp_path / "bench", ENTRIES), SIDE)
    edited = tmp_path / "edited"
    save(edited / "1/0.png", flat(0.8, 0, 0))
    save(edited / "1/1.png", flat(0.6, 0, 0))
    save(edited / "9/2.png", flat(0.0, 1, 0))
    return cases, edited


def test_a_folder_is_judged_beside_nothing_done(judged):
    told = []
    result = evaluate(*judged, ALL, "corrected", lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(row.key, row.edit_type, row.edit) for row in result.rows] == [
        (key, edit_type, edit) for key, edit_type in (("a", 1), ("b", 1), ("c", 9)) for edit in (NOTHING_DONE, EDITED)
    ]
    by = {(row.key, row.edit): row.figures for row in result.rows}
    assert by["a", EDITED]["mse"] == pytest.approx(0.2**2 / 3, rel=1e-5)  # one channel of three
    assert by["a", NOTHING_DONE]["psnr"] == math.inf
    assert by["c", EDITED]["clip_whole"] == pytest.approx(100, abs=1e-4)
    assert by["c", NOTHING_DONE]["clip_whole"] == pytest.approx(0, abs=1e-4)
    assert "mse" not in by["c", EDITED]
    assert len(result.skipped) == 1 and result.skipped[0].startswith("d: 3.png was not found")


def cells(result):
    """The table as {(type, edit): {heading: cell}}."""
    lines = [line for line in table(result).splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head[:3] == [f"{result.variant}: type of edit", "edit", "n"]
    return {(row[0], row[1]): dict(zip(head[2:], row[2:], strict=True)) for row in rows}


def test_the_table_has_mean_worst_and_n_for_all_and_for_each_type(judged):
    result = evaluate(*judged, ALL, "corrected")
    found = cells(result)
    assert list(found) == [(name, edit) for name in ("all", "1 change object", "9 change style")
                           for edit in (NOTHING_DONE, EDITED)]  # fmt: skip
    assert [row["n"] for row in found.values()] == ["3", "3", "2", "2", "1", "1"]
    # Squares .04 / 3 and .16 / 3 of the two with an unedited part: mean .1 / 3, worst .16 / 3, printed times 10000.
    assert found["1 change object", EDITED]["MSE x 10000 ↓"] == "333.33 (533.33)"
    assert found["all", EDITED]["MSE x 10000 ↓"] == "333.33 (533.33, n 2)"
    assert found["9 change style", EDITED]["MSE x 10000 ↓"] == "-"
    decibel = [10 * math.log10(3 / 0.04), 10 * math.log10(3 / 0.16)]
    assert found["1 change object", EDITED]["PSNR, dB ↑"] == f"{sum(decibel) / 2:.2f} ({decibel[1]:.2f})"
    assert found["all", NOTHING_DONE]["PSNR, dB ↑"] == "inf (inf, n 2)"
    assert found["all", EDITED]["CLIP target, whole ↑"] == "33.33 (0.00)"
    assert "Without a usable edited picture: 1." in table(result)


def test_the_table_names_what_was_not_measured(judged):
    result = evaluate(*judged, Networks(), "published")
    assert list(cells(result)["all", EDITED]) == ["n", "PSNR, dB ↑", "MSE x 10000 ↓", "SSIM x 100 ↑"]
    assert "Not measured without LPIPS weights: LPIPS x 1000." in table(result)
    assert "Not measured without a vision model: structure distance x 1000." in table(result)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_panel_of_a_strip_is_the_edit_and_png_stands_in_for_jpeg(tmp_path, variant):
    cases = read_pie_bench(made_folder(tmp_path / "bench", {"7": ENTRY}), SIDE)
    panels = [flat(0.0, 0, 1), flat(0.0, 0, 0), flat(0.0, 1, 0)]
    save((tmp_path / "edited" / ENTRY["image_path"]).with_suffix(".png"), torch.cat(panels, -1))
    result = evaluate(cases, tmp_path / "edited", ALL, variant)
    assert result.rows[1].figures["clip_whole"] == pytest.approx(100, abs=1e-3)


def test_edits_of_another_size_or_damaged_are_passed_over_and_named(judged):
    cases, edited = judged
    save(edited / "1/0.png", flat(0.8, 0, 0, side=SIDE + 1))
    (edited / "1/1.png").write_bytes(b"no picture")
    result = evaluate(cases, edited, ALL, "published")
    assert [row.key for row in result.rows] == ["c", "c"]
    assert "13 x 13" in result.skipped[0] and "damaged" in result.skipped[1]


def test_a_folder_without_one_pair(judged, tmp_path):
    with pytest.raises(EditingError, match="holds no usable edit of the 4 pictures"):
        evaluate(judged[0], tmp_path / "elsewhere", ALL, "published")


def test_a_source_of_another_size_than_its_mask(tmp_path):
    folder = made_folder(tmp_path / "bench", {"7": ENTRY}, side=SIDE + 1)
    with pytest.raises(EditingError, match="13 x 13 pixels and its mask 12 x 12"):
        evaluate(read_pie_bench(folder, SIDE), folder / "annotation_images", ALL, "published")


def script():
    """benchmarks/pie_bench.py as a module."""
    path = Path(pie_bench.__file__).parents[2] / "benchmarks" / "pie_bench.py"
    spec = importlib.util.spec_from_file_location("pie_bench_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_hands_the_vision_model_the_published_range_unclipped(tmp_path):
    """A ViT of one block, its keys worked out from the file: normalisation of 255 times the picture, patches,
    LayerNorm, middle third of the joint projection."""
    width, patch, native = 64, 56, 112
    shapes = {
        "cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
        "blocks.0.norm1.weight": (width,), "blocks.0.norm1.bias": (width,), "blocks.0.norm2.weight": (width,),
        "blocks.0.norm2.bias": (width,), "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.attn.qkv.bias": (3 * width,), "blocks.0.attn.proj.weight": (width, width),
        "blocks.0.attn.proj.bias": (width,), "blocks.0.mlp.fc1.weight": (8, width), "blocks.0.mlp.fc1.bias": (8,),
        "blocks.0.mlp.fc2.weight": (width, 8), "blocks.0.mlp.fc2.bias": (width,),
    }  # fmt: skip
    weights = {name: noise(*shape, seed=seed) - 0.5 for seed, (name, shape) in enumerate(shapes.items())}
    weights["pos_embed"] = torch.zeros(1, (native // patch) ** 2 + 1, width)
    save_tensors(tmp_path / "vit.safetensors", weights, {})
    options = (
        script().parser().parse_args(["--bench", "", "--edited", "", "--vision", str(tmp_path / "vit.safetensors")])
    )
    networks = script().load_networks(options)

    def likeness(image):
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        columns = torch.nn.functional.unfold((image - mean) / std, patch, stride=patch)[0].double().numpy()
        tokens = (weights["patch_embed.proj.weight"].flatten(1).double().numpy() @ columns).T
        tokens = np.concatenate([weights["cls_token"][0], tokens + weights["patch_embed.proj.bias"].numpy()])
        tokens = (tokens - tokens.mean(1, keepdims=True)) / np.sqrt(tokens.var(1, keepdims=True) + 1e-6)
        tokens = tokens * weights["blocks.0.norm1.weight"].numpy() + weights["blocks.0.norm1.bias"].numpy()
        keys = tokens @ weights["blocks.0.attn.qkv.weight"].numpy()[width : 2 * width].T
        keys = keys + weights["blocks.0.attn.qkv.bias"].numpy()[width : 2 * width]
        return keys @ keys.T / np.outer(*[np.linalg.norm(keys, axis=1)] * 2)

    source, edits = noise(1, 3, 224, 224), noise(1, 3, 224, 224, seed=1)
    mask = rectangle(0, 9, 0, 9, side=224)
    for variant, scale in (("published", 255), ("corrected", 1)):
        expected = ((likeness(scale * source) - likeness(scale * edits)) ** 2).mean()
        found = figures(source, edits, mask, variant, networks)["structure"].item()
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_command_prints_both_tables_and_writes_the_figures_of_every_picture(tmp_path, monkeypatch, capsys):
    """On a small picture: the double-precision SSIM of one of the benchmark's size takes most of a minute."""
    side, command = 64, script()
    folder = made_folder(tmp_path / "bench", {"7": {**ENTRY, "mask": [0, side * side // 2]}}, side=side)
    monkeypatch.setattr(command, "read_pie_bench", partial(read_pie_bench, side=side))
    save(tmp_path / "edited" / ENTRY["image_path"], flat(0.8, 0, 0, side=side))
    written = tmp_path / "out" / "figures.json"
    command.main(["--bench", str(folder), "--edited", str(tmp_path / "edited"), "--json", str(written)])
    said = capsys.readouterr().out
    assert all(f"| {variant}: type of edit |" in said for variant in VARIANTS)
    published, corrected = json.loads(written.read_text())
    assert (published["variant"], corrected["variant"]) == VARIANTS
    first, second = (result["rows"][1]["figures"]["psnr"] for result in (published, corrected))
    # The lower half is unedited: 32 x 64 pixels, of which the ring takes the last row and both outer columns.
    assert first - second == pytest.approx(10 * math.log10(64 * 64 / (31 * 62)), abs=1e-4)


def test_the_benchmarks_own_pictures_are_512_pixels_wide(tmp_path):
    folder = made_folder(tmp_path, {"7": {**ENTRY, "mask": [512 * 511, 512]}}, side=512)
    assert read_pie_bench(folder)[0].mask.shape[-2:] == (512, 512)


def test_the_command_says_in_one_sentence_why_not(tmp_path):
    with pytest.raises(SystemExit, match=r"^pie_bench: The folder 'absent' has no readable mapping_file.json"):
        script().main(["--bench", str(tmp_path / "absent"), "--edited", str(tmp_path)])

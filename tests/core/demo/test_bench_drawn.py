"""The demo bench's figures of pictures that a generator drew: its size, what counts as the picture unedited."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from semantic_editing.core.demo.bench import NOTHING, Outcome
from semantic_editing.core.demo.bench_drawn import DrawnJudgement, drawn_table
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError

SMALL = 64


def halved(pictures):
    """Means of two by two pixels, by hand."""
    return torch.stack([(p[:, ::2, ::2] + p[:, 1::2, ::2] + p[:, ::2, 1::2] + p[:, 1::2, 1::2]) / 4 for p in pictures])


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


@pytest.fixture(scope="module")
def pairs():
    return DemoData(FOLDER / "unseen").pairs_of("glasses: none to glasses")[:3]


@pytest.fixture(scope="module")
def judgement(demo, pairs):
    """The third copy has glasses already."""
    copies = halved([pairs[0].source, pairs[1].source, pairs[2].target])
    return DrawnJudgement(demo, pairs, copies)


def test_only_pictures_that_read_as_the_source_unedited_can_succeed(judgement, pairs):
    drawn = judgement.measure(halved([pairs[0].target, pairs[1].source, pairs[2].target]))
    assert drawn["success"][:2].tolist() == [1, 0] and drawn["success"][2].isnan()
    pasted = judgement.measure(torch.stack([pairs[0].target, pairs[1].source, pairs[2].target]))
    assert pasted["success"].tolist() == [1, 0, 1]  # the photo never had glasses


def test_others_are_kept_against_the_same_picture_unedited(judgement, demo, pairs):
    unlike = halved([pairs[1].source, pairs[2].source, pairs[0].source])  # other people
    seen = demo.judge.labels(torch.nn.functional.interpolate(unlike, (128, 128), mode="bicubic").clamp(0, 1))
    was = demo.judge.labels(torch.nn.functional.interpolate(judgement.copies, (128, 128), mode="bicubic").clamp(0, 1))
    expected = [
        np.mean([one[key] == other[key] for key in one if key != "glasses"])
        for one, other in zip(seen, was, strict=True)
    ]
    figures = judgement.measure(unlike)
    assert figures["kept_rebuilt"].tolist() == pytest.approx(expected) and figures["kept_rebuilt"].mean() < 0.9
    assert judgement.measure(judgement.copies)["kept_rebuilt"].tolist() == [1, 1, 1]


def test_both_sizes_are_compared_at_the_generators(judgement, pairs):
    generator = torch.Generator().manual_seed(0)
    large = torch.stack([pair.target for pair in pairs])
    large = (large + 0.1 * torch.randn(large.shape, generator=generator)).clamp(0, 1)
    pasted, drawn = judgement.measure(large), judgement.measure(halved(large))
    assert torch.allclose(pasted["psnr"], drawn["psnr"], atol=1e-4)
    truths = halved([pair.target for pair in pairs])
    expected = [
        peak_signal_noise_ratio(truth.numpy(), made.numpy(), data_range=1)
        for truth, made in zip(truths, halved(large), strict=True)
    ]
    assert drawn["psnr"].tolist() == pytest.approx(expected, abs=1e-3)
    assert "psnr_photo" not in drawn and bool(
        (pasted["psnr_photo"] < pasted["psnr"]).all()
    )  # noise that means even out


def test_outside_is_where_no_covered_pixel_changes(judgement, pairs):
    touched = [pair.source.clone() for pair in pairs]
    for picture, pair in zip(touched, pairs, strict=True):
        changes = (pair.source != pair.target).any(0)
        blocks = changes.unfold(0, 2, 2).unfold(1, 2, 2).any(-1).any(-1)
        picture += 0.2 * blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert judgement.measure(torch.stack(touched))["outside"].isinf().all()
    touched[0][:, 0, 0] += 0.5  # a corner, far from any glasses
    assert judgement.measure(torch.stack(touched))["outside"].isfinite().tolist() == [True, False, False]


def test_the_table_says_of_how_many(judgement, pairs):
    rows = [judgement.nothing(), judgement.row("drawn", [Outcome(copy) for copy in judgement.copies], 2.5)]
    assert rows[0].name == NOTHING and rows[0].figures["success"].sum() == 0
    head, _, first, second = drawn_table(rows, SMALL).splitlines()
    assert "64 px" in head and head.count("|") == first.count("|") == second.count("|") == 13
    assert first.split(" | ")[2] == "3" and second.split(" | ")[2] == "2"
    assert first.endswith("|  | 3 |") and second.endswith("|  | 2.5 | 3 |")


@pytest.mark.parametrize("size", [32, 96])
def test_other_sizes_and_numbers_are_refused(judgement, demo, pairs, size):
    with pytest.raises(EditingError, match="64 or 128 pixels"):
        judgement.measure(torch.zeros(3, 3, size, size))
    with pytest.raises(EditingError, match="for each of 3 pairs"):
        judgement.measure(judgement.copies[:2])
    with pytest.raises(EditingError, match="one copy for each pair"):
        DrawnJudgement(demo, pairs[:2], judgement.copies)
    with pytest.raises(EditingError, match="no pairs to measure"):
        DrawnJudgement(demo, [], judgement.copies[:0])

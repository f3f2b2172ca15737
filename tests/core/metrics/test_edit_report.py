"""The report on an edit: its figures against numpy and scikit-image, its sentences against pictures made by hand."""

import math
import re

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from semantic_editing.core.demo.builders import demo_scorer, demo_vision_features
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics import image
from semantic_editing.core.metrics.edit_report import edit_report
from semantic_editing.core.metrics.edit_sentence import KEPT, Finding, kept_word, sentence, summary

SIZE = (60, 80)
IN, OUT = (slice(None), slice(None), slice(38, 50), slice(35, 45)), (slice(None), slice(None), slice(0, 20))


def random(count=1, seed=0):
    return 0.2 + 0.6 * torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def mask(count=1):
    made = torch.zeros(count, 1, *SIZE)
    made[IN] = 1
    return made


def changed(before, where=IN, by=0.3):
    after = before.clone()
    after[where] = (after[where] + by) % 1
    return after


def rows(report):
    return {row.name: row for row in report.rows}


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


# Figures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 3])
def test_psnr_inside_and_outside_the_mask_are_scikit_images(dtype, count):
    before, after = (random(count, seed).to(dtype) for seed in (0, 1))
    row = rows(edit_report(before, after, mask=mask(count)))["PSNR, dB"]
    chosen = mask()[0, 0].bool().numpy()
    for number in range(count):
        a, b = (pictures[number].double().numpy() for pictures in (before, after))
        for column, part in ((row.whole, np.ones_like(chosen)), (row.outside, ~chosen), (row.inside, chosen)):
            expected = peak_signal_noise_ratio(a[:, part], b[:, part], data_range=1.0)
            assert float(column[number]) == pytest.approx(expected, abs=0.02 if dtype == torch.float16 else 1e-4)


def test_ssim_is_the_measures_own():
    before, after = random(2), random(2, 1)
    row = rows(edit_report(before, after, mask=mask()))["SSIM"]
    for column, part in ((row.whole, None), (row.outside, 1 - mask()), (row.inside, mask())):
        torch.testing.assert_close(column, image.ssim(after, before, part), atol=1e-4, rtol=0)


def test_without_a_mask_the_parts_are_those_that_were_found():
    before = random()
    report = edit_report(before, changed(before))
    row = rows(report)["PSNR, dB"]
    region = report.region[0].numpy()
    a, b = before[0].double().numpy(), changed(before)[0].double().numpy()
    assert 0.02 < region.mean() < 0.06 and report.parts == ("the rest", "changed part")
    assert float(row.inside) == pytest.approx(
        peak_signal_noise_ratio(a[:, region], b[:, region], data_range=1.0), abs=1e-4
    )
    assert math.isinf(float(row.outside)) and rows(report)["changed visibly, %"].outside is None


def test_changed_shares_are_of_the_picture_and_of_both_parts():
    before = random()
    report = edit_report(before, changed(before), mask=mask())
    row, region = rows(report)["changed visibly, %"], report.region[0].double()
    inside = mask()[0, 0].double()
    assert float(row.whole) == pytest.approx(100 * float(region.mean()))
    assert float(row.inside) == pytest.approx(100 * float((region * inside).sum() / inside.sum()))
    assert float(row.outside) == pytest.approx(100 * float((region * (1 - inside)).sum() / (1 - inside).sum()))


def test_a_batch_is_its_pictures():
    before, after, truth = random(3), random(3, 1), random(3, 2)
    after[1] = before[1]
    report = edit_report(before, after, truth=truth, mask=mask())
    for number in range(3):
        alone = edit_report(before[number, None], after[number, None], truth=truth[number, None], mask=mask())
        assert alone.sentence == report.sentences[number]
        for row, single in zip(report.rows, alone.rows, strict=True):
            for column in ("whole", "outside", "inside"):
                many, one = getattr(row, column), getattr(single, column)
                assert one is None or torch.allclose(many[number], one[0], equal_nan=True), (row.name, column)


@pytest.mark.parametrize("counts", [(1, 3), (3, 1)])
def test_one_picture_serves_all_of_the_other_side(counts):
    before, after = random(counts[0]), random(counts[1], 1)
    report = edit_report(before, after, truth=random(1, 2), mask=mask())
    assert len(report.sentences) == 3 and report.difference.shape == (3, *SIZE)
    expected = (after - before).abs().mean(1)
    torch.testing.assert_close(report.difference, expected)


def test_the_demo_judges_its_own_pairs(demo):
    pair = demo.pairs_of("hair color: black to red")[0]
    report = edit_report(
        pair.source[None],
        pair.target[None],
        truth=pair.target[None],
        source_text=pair.source_caption,
        target_text=pair.target_caption,
        scorer=demo_scorer(demo),
        vision=demo_vision_features(demo),
    )
    found = rows(report)
    assert float(found["CLIP score"].whole) > float(found["CLIP score before"].whole)
    assert float(found["directional similarity"].whole) > 0.5 and float(found["CLIP accuracy"].whole) == 1
    assert float(found["structure distance"].whole) > 0
    assert "It is the true edit in every pixel." in report.sentence
    assert "CLIP sees it nearer to the target text than before" in report.sentence and report.missing == ()
    back = edit_report(
        pair.source[None],
        pair.source[None],
        target_text=pair.target_caption,
        scorer=demo_scorer(demo),
        vision=demo_vision_features(demo),
    )
    assert float(rows(back)["structure distance"].whole) == 0
    assert "as near to the target text as before" in back.sentence
    assert [line for line in back.missing if "source text" in line]


# Sentences ----------------------------------------------------------------------------------------------------------


def test_nothing_changed():
    for more in ({}, {"mask": mask()}):
        assert edit_report(random(), random(), **more).sentence == (
            "Nothing changed: the two pictures are the same in every pixel."
        )


def test_a_change_inside_the_mask_and_none_outside():
    before = random()
    report = edit_report(before, changed(before), mask=mask())
    assert report.sentence == (
        "Outside the mask every pixel is the same. All of the visible change lies inside it, in the lower middle."
    )
    spilled = edit_report(before, changed(before, (*IN[:3], slice(30, 45))), mask=mask())
    assert re.search(r"slightly changed: 2\d dB\. [6-7]\d % of the visible change lies inside it", spilled.sentence)


def test_a_change_outside_the_mask_is_found_out():
    before = random()
    report = edit_report(before, changed(before, OUT), mask=mask())
    assert report.sentence.endswith(
        "None of the visible change lies inside it: it is across the upper part."
    ) and report.sentence.startswith("Outside the mask the picture is changed too: ")


def test_a_change_without_a_mask():
    before = random()
    assert re.fullmatch(
        r"[3-6] % of the picture changed, in the lower middle; every other pixel is the same\.",
        edit_report(before, changed(before)).sentence,
    )
    assert re.fullmatch(
        r"Most of the picture changed \(100 % of it\): 14 dB\.", edit_report(before, before + 0.2).sentence
    )


@pytest.mark.parametrize(("noise", "word"), [(0.002, KEPT[0][1]), (0.01, KEPT[1][1]), (0.025, KEPT[2][1])])
def test_faint_noise_is_kept_and_stands_out_nowhere(noise, word):
    before = random()
    after = before + noise * torch.randn(before.shape, generator=torch.Generator().manual_seed(5))
    text = edit_report(before, after).sentence
    psnr = -10 * math.log10(noise**2)
    assert text == f"The picture is {word}: {psnr:.0f} dB; no part of it stands out."


def test_a_mask_of_everything_leaves_no_outside():
    before = random()
    report = edit_report(before, changed(before), mask=torch.ones(1, 1, *SIZE))
    assert report.sentence.startswith("The mask covers the whole picture. All of the visible change lies inside it")
    assert rows(report)["PSNR, dB"].outside is None


@pytest.mark.parametrize(("share", "words"), [(0.9, "nearer to"), (-0.2, "further from")])
def test_the_true_edit_is_compared_with_doing_nothing(share, words):
    before = random()
    truth = changed(before, by=0.1)
    after = before + share * (truth - before)
    report = edit_report(before, after, truth=truth)
    near, idle = (float(rows(report)[f"{name}: PSNR, dB"].whole) for name in ("true edit", "doing nothing"))
    assert f"It is {words} the true edit than doing nothing: {near:.1f} dB against {idle:.1f}." in report.sentence
    part = {name: float(rows(report)[name].whole) for name in rows(report) if "part" in name}
    assert list(part) == ["true edit's part: PSNR, dB", "that part, doing nothing: PSNR, dB"]
    chosen = edit_report(before, truth).region[0].numpy()
    for value, picture in zip(part.values(), (after, before), strict=True):
        a, b = (one[0].double().numpy()[:, chosen] for one in (picture, truth))
        assert value == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-4)
    still = edit_report(before, before, truth=truth).sentence
    assert f"It is as near to the true edit as doing nothing: {idle:.1f} dB." in still
    assert "The true edit is the picture before itself." in edit_report(before, after, truth=before).sentence


@pytest.mark.parametrize(
    ("psnr", "word"),
    [
        (math.inf, KEPT[0][1]), (50, KEPT[0][1]), (49.4, KEPT[1][1]), (37.4, KEPT[2][1]), (29.4, KEPT[3][1]),
        (23.6, KEPT[3][1]), (23.4, "changed too"),
    ],
)  # fmt: skip
def test_words_for_decibels(psnr, word):
    assert kept_word(psnr) == word


def test_no_change_that_is_visible_inside_the_mask():
    finding = Finding(33.0, 34.0, 31.0, False, 0.0, 0.0, "")
    assert sentence(finding) == (
        "Outside the mask the picture is nearly untouched: 34 dB. Inside it no change is visible (31 dB)."
    )


def test_a_small_edit_in_a_picture_that_lost_a_little_everywhere_is_told_both_ways():
    before = random()
    truth = changed(before)
    after = truth + 0.08 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))
    text = edit_report(before, after, truth=truth).sentence
    assert re.search(
        r"picture it is further from the true edit than doing nothing \(2\d\.\d dB against 2\d\.\d\)", text
    )
    assert re.search(r", but where the true edit changes something it is nearer \(2\d\.\d dB against \d\.\d\)\.$", text)
    finding = Finding(26.0, 33.0, 17.0, False, 0.09, None, "in the middle", (26.5, 36.1), (17.2, 14.0))
    assert sentence(finding).endswith(
        "Over the whole picture it is further from the true edit than doing nothing (26.5 dB against 36.1), but where "
        "the true edit changes something it is nearer (17.2 dB against 14.0)."
    )


def test_clip_that_likes_it_less():
    finding = Finding(33.0, 34.0, 31.0, False, 0.2, None, "in the middle", clip=(20.0, 22.0))
    assert sentence(finding).endswith("CLIP sees it further from the target text than before (20.0 against 22.0).")


def test_the_summary_names_the_worst_and_counts_the_rest():
    one = Finding(20.0, 40.0, 15.0, False, 0.2, 1.0, "in the middle", (25.0, 22.0), (9.0, 8.0), (30.0, 25.0))
    two = Finding(20.0, 28.0, 15.0, False, 0.1, 0.5, "in the middle", (21.0, 22.0), (9.0, 8.0), (24.0, 25.0))
    assert summary([one, two]) == (
        "2 pictures. Outside the mask the worst of them (picture 2) is slightly changed: 28 dB, 34 dB on average. "
        "2 of 2 changed visibly, on average 15 % of the picture. 1 of 2 came nearer to the true edit than doing "
        "nothing, 2 of 2 where it changes something. CLIP sees 1 of 2 nearer to the target text than before."
    )
    same = Finding(math.inf, math.inf, math.inf, True, 0.0, 0.0, "")
    assert summary([same, same]) == "2 pictures. Outside the mask every pixel is the same. None changed visibly."
    assert "28 dB on average of those that changed at all" in summary([same, two])


# Text ---------------------------------------------------------------------------------------------------------------


def test_the_text_begins_with_the_sentence_and_lists_every_figure():
    before = random()
    report = edit_report(before, changed(before), truth=random(1, 2), mask=mask())
    lines = report.text().splitlines()
    assert lines[0] == report.sentence and lines[2].split() == ["whole", "outside", "inside", "good", "is"]
    for row in report.rows:
        (line,) = [line for line in lines if line.startswith(row.name)]
        assert f"{float(row.whole):.{row.digits}f}" in line and line.endswith(row.good)


def test_a_batch_shows_mean_worst_and_every_picture():
    before, after = random(2), random(2, 1)
    after[1] = 0.9 * before[1] + 0.1 * after[1]
    report = edit_report(before, after)
    psnr = rows(report)["PSNR, dB"].whole
    text = report.text()
    assert all(f"picture {number}: {line}" in text for number, line in enumerate(report.sentences, start=1))
    block = text[text.index("PSNR, dB: mean") :].splitlines()[:4]
    figures = [re.search(r"(?:mean|worst|^  \d)\s+(\S+)", line).group(1) for line in block]
    assert figures == [f"{value:.1f}" for value in (psnr.mean(), psnr.min(), *psnr)]
    mse = rows(report)["MSE"].whole
    worst = text[text.index("MSE: mean") :].splitlines()[1]
    assert worst.split()[1] == f"{mse.max():.5f}"


# What is missing and what is wrong ----------------------------------------------------------------------------------


def test_a_figure_that_cannot_be_computed_is_named_and_the_rest_is_there(monkeypatch):
    def without(name, what):
        raise EditingError(f"{what} needs torchmetrics, which this Python lacks; install it.")

    monkeypatch.setattr(image, "torchmetrics_part", without)
    before = random()
    report = edit_report(before, changed(before), mask=mask())
    assert report.missing == ("SSIM needs torchmetrics, which this Python lacks; install it.",)
    assert "SSIM" not in rows(report) and {"PSNR, dB", "MSE"} <= set(rows(report))
    assert report.text().endswith("not measured: SSIM needs torchmetrics, which this Python lacks; install it.")


def test_small_pictures_have_no_ssim_but_a_report():
    report = edit_report(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    assert "Most of the picture changed (100 % of it): 0 dB." in report.sentence
    assert len(report.missing) == 1 and "at least 11" in report.missing[0]


def test_texts_without_clip_and_clip_without_texts_are_named(demo):
    before = random()
    (line,) = edit_report(before, before, target_text="a face").missing
    assert "clip_scorer" in line
    (line,) = edit_report(before, before, scorer=demo_scorer(demo), source_text=" ").missing
    assert "target text" in line


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"after": torch.zeros(1, 3, 60, 90)}, "80 x 60.*90 x 60"),
        ({"truth": torch.zeros(1, 3, 30, 40)}, "true edit is 40 x 30.*80 x 60"),
        ({"mask": torch.ones(1, 1, 30, 40)}, "mask is 40 x 30.*80 x 60"),
        ({"after": torch.full((1, 3, *SIZE), math.nan)}, "picture after is not a number"),
        ({"truth": torch.full((1, 3, *SIZE), math.inf)}, "true edit is not a number"),
        ({"mask": torch.zeros(1, 1, *SIZE)}, "mask is empty"),
        ({"mask": torch.zeros(2, 1, *SIZE), "after": torch.zeros(2, 3, *SIZE)}, "mask of picture 1 is empty"),
        ({"before": torch.zeros(2, 3, *SIZE), "after": torch.zeros(3, 3, *SIZE)}, "batch of 2 .* 3 pictures"),
        ({"mask": torch.ones(4, 1, *SIZE)}, "mask is a batch of 4"),
        ({"after": torch.zeros(1, 4, *SIZE)}, r"\[1, 4, 60, 80\]"),
        ({"before": torch.zeros(0, 3, *SIZE)}, "picture before has shape"),
        ({"target_text": ["one", "two"]}, "2 texts for 1 pictures"),
    ],
)
def test_bad_input_is_one_sentence(inputs, said):
    given = {"before": random(), "after": random()} | inputs
    with pytest.raises(EditingError) as caught:
        edit_report(given.pop("before"), given.pop("after"), **given)
    text = str(caught.value)
    assert re.search(said, text) and text.endswith(".") and "\n" not in text


def test_inputs_are_left_as_they_are():
    before, after, where = random() * 2 - 0.5, random(1, 1), mask()
    kept = [tensor.clone() for tensor in (before, after, where)]
    edit_report(before, after, mask=where)
    assert all(torch.equal(a, b) for a, b in zip(kept, (before, after, where), strict=True))

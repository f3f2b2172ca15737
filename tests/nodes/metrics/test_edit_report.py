"""Edit Report with a stand-in for the host: what it outputs and shows, and what it does with sizes, masks and texts."""

import re

import pytest
import torch

from semantic_editing.tools import host_stand_in

host_stand_in.load_pack()
edit_report = host_stand_in.module("nodes.metrics.edit_report")
EditingError = host_stand_in.module("core.errors").EditingError


def pictures(count=1, size=(48, 64), channels=3, seed=0):
    """IMAGE."""
    return torch.rand(count, *size, channels, generator=torch.Generator().manual_seed(seed))


def changed(before, rows=slice(20, 30), columns=slice(30, 40)):
    after = before.clone()
    after[:, rows, columns] = 1 - after[:, rows, columns]
    return after


def run(**inputs):
    return edit_report.EditReport.execute(**inputs)


def test_the_outputs_and_what_the_node_shows():
    before = pictures()
    node = run(before=before, after=changed(before), true_edit=changed(before))
    picture, difference, report = node.args
    assert picture.ndim == 4 and picture.shape[-1] == 3 and picture.min() >= 0 and picture.max() <= 1
    torch.testing.assert_close(difference, (changed(before) - before).abs().mean(-1))
    assert re.match(r"[3-5] % of the picture changed, in the middle; every other pixel is the same\. ", report)
    assert "It is the true edit in every pixel." in report and "PSNR, dB" in report
    assert node.ui["text"] == (report,) and "images" in node.ui


def test_a_batch_has_a_row_and_a_sentence_each():
    before = pictures(2)
    one, two = (run(before=before[:count], after=changed(before[:count])).args for count in (1, 2))
    assert two[0].shape[1] > 1.8 * one[0].shape[1] and two[1].shape == (2, 48, 64)
    assert "picture 1: " in two[2] and "picture 2: " in two[2] and "picture 1: " not in one[2]


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_pictures(channels):
    before = pictures(channels=channels)
    difference = run(before=before, after=1 - before).args[1]
    torch.testing.assert_close(difference, (1 - 2 * before[..., :3]).abs().mean(-1))


def test_a_mask_of_another_size_is_scaled():
    before = pictures(size=(64, 64))
    small, large = (torch.zeros(1, side, side) for side in (8, 64))
    small[:, 2:4, 3:5], large[:, 16:32, 24:40] = 1, 1
    after = changed(before, slice(20, 28), slice(28, 36))  # well inside both, whatever scaling does to borders
    first, second = (run(before=before, after=after, mask=mask).args[2] for mask in (small, large))
    assert "Outside the mask every pixel is the same." in second
    assert "of the visible change lies inside it, in the middle" in first.splitlines()[0] and "outside" in first


@pytest.mark.parametrize(("size", "cell"), [((51, 64), 8), ((51, 70), 8), ((79, 95), 32)])
def test_what_vae_encode_cuts_off_is_cut_off(size, cell):
    before = pictures(size=size)
    height, width = (side // cell * cell for side in size)
    top, left = (size[0] % cell) // 2, (size[1] % cell) // 2  # as stock VAE Encode has it
    middle = before[:, top : top + height, left : left + width]
    mask = torch.zeros(1, *size)
    mask[:, top : top + 4] = 1
    _, difference, report = run(before=before, after=middle, true_edit=before, mask=mask).args
    assert difference.shape == (1, height, width) and not difference.any()
    assert report.startswith("Nothing changed") and f"the middle {width} x {height} of the picture before" in report


@pytest.mark.parametrize("size", [(48, 63), (40, 64), (24, 32), (64, 48), (52, 64)])
def test_other_sizes_are_refused_and_both_are_named(size):
    with pytest.raises(EditingError, match=f"64 x 48 .* {size[1]} x {size[0]}"):
        run(before=pictures(), after=pictures(size=size))


def test_an_empty_mask_is_refused_whatever_its_size():
    before = pictures()
    for size in ((48, 64), (64, 64)):
        with pytest.raises(EditingError, match="mask is empty"):
            run(before=before, after=before, mask=torch.zeros(1, *size))


class Listening:
    """A CLIP_SCORER whose features are what it is shown and told: a text says how bright."""

    identity = "listening"

    def __init__(self):
        self.told = []

    def image_features(self, images):
        bright = images.mean((1, 2, 3))
        return torch.stack([bright, 1 - bright], 1)

    def text_features(self, texts):
        self.told.append(list(texts))
        bright = torch.tensor([float(text) for text in texts])
        return torch.stack([bright, 1 - bright], 1)


def test_texts_are_one_for_all_or_a_line_for_each():
    before, after = torch.full((2, 32, 32, 3), 0.2), torch.full((2, 32, 32, 3), 0.8)
    listening = Listening()
    report = run(before=before, after=after, clip_scorer=listening, source_text="0.1", target_text="0.9\n0.1").args[2]
    assert ["0.9", "0.1"] in listening.told and not any("0.9\n0.1" in told for told in listening.told)
    assert "CLIP sees 1 of 2 nearer to the target text than before." in report
    assert re.search(r"^picture 1: .*nearer to the target", report, re.M)
    assert re.search(r"^picture 2: .*further from the target", report, re.M)
    report = run(before=before, after=after, clip_scorer=listening, target_text="0.9").args[2]
    assert "CLIP sees 2 of 2 nearer to the target text than before." in report


def test_inputs_are_not_changed_and_inference_tensors_are_welcome():
    with torch.inference_mode():
        before = pictures()
        after = changed(before)
        kept = before.clone()
        run(before=before, after=after, mask=torch.ones(1, 8, 8))
        assert torch.equal(before, kept)

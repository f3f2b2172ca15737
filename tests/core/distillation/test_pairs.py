"""Pairs: folders, the filter by CLIP and overlap, and what of a pair is the edit."""

import numpy as np
import torch
from PIL import Image

from semantic_editing.core.distillation.pairs import (
    EditPairs,
    PairFilter,
    as_bytes,
    edited_region,
    filter_pairs,
    only_edited,
    read_pairs,
)
from semantic_editing.core.images.difference import changed_region, difference_map
from semantic_editing.tests.core.distillation.tiny_edit import green_to_red, seeded
from semantic_editing.tests.refusals import refusal

PAIRS = green_to_red(6)


class Colours:
    """A CLIP that sees a picture's mean colour, and reads "green" and "red"."""

    identity = "colours"

    def image_features(self, images, preprocessing="own"):
        return torch.nn.functional.normalize(images.double().mean((2, 3)), dim=1)

    def text_features(self, texts):
        words = {"green": (0.0, 1.0, 0.0), "red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}
        return torch.tensor([words[text] for text in texts], dtype=torch.float64)


def cosines(pictures, axis):
    means = pictures.double().mean((2, 3)).numpy()
    return np.array([mean[axis] / np.sqrt((mean**2).sum()) for mean in means])


def test_gains_are_differences_of_cosines_and_overlaps_shares_that_stay():
    found = filter_pairs(PAIRS, PairFilter("green", "red"), Colours())
    expected = cosines(PAIRS.after / 255, 0) - cosines(PAIRS.before / 255, 0)
    np.testing.assert_allclose(found.gains.numpy(), expected, atol=1e-5)
    assert found.kept.all() and found.convinced.all() and len(found.pairs) == 6
    stay = [1 - float(changed_region(difference_map(b[None] / 255, a[None] / 255)).double().mean()) for b, a in
            zip(PAIRS.before, PAIRS.after, strict=True)]  # fmt: skip
    np.testing.assert_allclose(found.overlaps.numpy(), stay)
    assert "6 of 6 pairs" in found.report() and "6 of 6 look more like the target" in found.report()


def test_pairs_without_the_edit_or_with_too_much_are_left_out():
    after = PAIRS.after.clone()
    after[1] = PAIRS.before[1]  # nothing happened
    after[4] = torch.tensor([250, 0, 0], dtype=torch.uint8)[:, None, None]  # everything did
    pairs = EditPairs(PAIRS.before, after)
    asked = filter_pairs(pairs, PairFilter("green", "red", clip_gain=0.01, overlap=0.5), Colours())
    assert asked.kept.tolist() == [True, False, True, True, False, True]
    assert torch.equal(asked.pairs.after, after[asked.kept])
    unasked = filter_pairs(pairs, PairFilter("green", "red", clip_gain=0.01, overlap=0.5))
    assert unasked.kept.tolist() == [True, True, True, True, False, True] and unasked.gains.isnan().all()
    assert "CLIP" not in unasked.report()
    toward_blue = PairFilter("blue", "red")
    convinced = filter_pairs(EditPairs(PAIRS.before, PAIRS.after), toward_blue, Colours()).convinced
    assert convinced.all()


def test_what_the_filter_refuses():
    assert "lower clip_gain" in refusal(filter_pairs, PAIRS, PairFilter("green", "red", clip_gain=1.5), Colours())
    assert "no target text" in refusal(filter_pairs, PAIRS, PairFilter("green", " "), Colours())
    nothing = EditPairs(PAIRS.before, PAIRS.before)
    assert "Not one of the 6 pairs" in refusal(filter_pairs, nothing, PairFilter("green", "red", 0.1), Colours())


def test_only_the_edited_part_is_taken_from_the_edit():
    """A VAE's loss all over is not learned; the edit itself is, to the bit."""
    before, after = (part[:1].float() / 255 for part in (PAIRS.before, PAIRS.after))
    lossy = after + 0.004 * torch.randn(after.shape, generator=seeded(0))
    wanted, region = only_edited(before, lossy)
    inside = (before != after).any(1, keepdim=True)
    assert torch.equal(wanted[inside.expand_as(wanted)], lossy[inside.expand_as(lossy)])
    assert float(region[inside].min()) == 1
    far = torch.nn.functional.max_pool2d(inside.float(), 17, 1, 8) == 0
    assert far.any() and torch.equal(wanted[far.expand_as(wanted)], before[far.expand_as(before)])
    assert not edited_region(before, before).any()


def test_folders_are_paired_by_the_order_of_their_names(tmp_path):
    for number in range(3):
        for folder, part in (("a", PAIRS.before), ("b", PAIRS.after)):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = part[number].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / folder / f"{folder}_{number}.png")
    pairs, skipped = read_pairs(tmp_path / "a", tmp_path / "b", 32)
    assert torch.equal(pairs.before, PAIRS.before[:3]) and torch.equal(pairs.after, PAIRS.after[:3]) and not skipped
    (tmp_path / "b" / "b_1.png").write_bytes(b"no picture")
    pairs, skipped = read_pairs(tmp_path / "a", tmp_path / "b", 16)
    assert skipped == ["a_1.png"] and pairs.before.shape == (2, 3, 16, 16)
    (tmp_path / "b" / "b_2.png").unlink()
    assert "3 and 2 pictures" in refusal(read_pairs, tmp_path / "a", tmp_path / "b", 16)
    assert "multiple of 8" in refusal(read_pairs, tmp_path / "a", tmp_path / "b", 17)
    assert "not found" in refusal(read_pairs, tmp_path / "a", tmp_path / "c", 16)


def test_pairs_that_do_not_fit():
    assert "6 pictures before and 5 after" in refusal(EditPairs, PAIRS.before, PAIRS.after[:5])
    assert "one size" in refusal(EditPairs, PAIRS.before, PAIRS.after[..., :16])
    assert "no pairs" in refusal(EditPairs, PAIRS.before[:0], PAIRS.after[:0])


def test_bytes_are_rounded_and_cut():
    values = torch.tensor([-0.2, 0.0, 0.5, 0.999, 1.0, 1.4])
    assert as_bytes(values).tolist() == [round(255 * min(max(float(value), 0), 1)) for value in values]

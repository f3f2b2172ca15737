"""Editing by a mapper against the formula, one edit at a time, and what is said about it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from semantic_editing.core.deltaedit.edit import (
    Differences,
    EditSettings,
    delta_edit,
    differences_of_pictures,
    differences_of_texts,
    features_of,
)
from semantic_editing.core.deltaedit.edit_words import edit_sentences, readings
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.deltaedit import tiny_mappers as tiny

GEN = tiny.generator()
CODE = GEN.styles(GEN.sample_w_plus(3, 0, truncation=1))
FEATURES = tiny.unit(3)
WANTED = Differences(["smile", "glasses"], 0.4 * tiny.unit(2, seed=6))
ALL = EditSettings(share=1.0)


@pytest.mark.parametrize("architecture", ["flat", "released"])
@pytest.mark.parametrize("settings", [ALL, EditSettings(0.7, 0.3), EditSettings(-2.0, 1.0, 0.15, True)])
def test_it_is_the_formula_for_every_target_and_face(architecture, settings):
    """s + strength * mask * M(s, i, d), ordered by target, then by face; the batch is its rows."""
    mapper, matrix = tiny.mapper(architecture), tiny.relevance(GEN)
    found = delta_edit(mapper, CODE, FEATURES, WANTED, settings, matrix)
    assert found.names == [f"{name}, face {face}" for name in WANTED.names for face in (1, 2, 3)]
    assert found.code.generator == CODE.generator and found.code.layout == CODE.layout and found.code.w_plus is None
    for row in range(6):
        target, face = divmod(row, 3)
        one = Differences(WANTED.names[target : target + 1], WANTED.rows[target : target + 1])
        single = delta_edit(
            mapper, CODE.select(slice(face, face + 1)), FEATURES[face : face + 1], one, settings, matrix
        )
        assert single.names == [WANTED.names[target]]
        scale = float(single.code.convs.abs().max())  # sums of another order, twice over with subtract_idle
        torch.testing.assert_close(
            found.code.convs[row], single.code.convs[0], rtol=0, atol=(5e-6 if settings.subtract_idle else 1e-6) * scale
        )
        assert torch.equal(found.code.rgbs[row], CODE.rgbs[face]), "colours' styles stay"
        assert torch.equal(found.moved[row], single.moved[0])

        s, i, d = CODE.convs[face], FEATURES[face], one.rows[0]
        change = mapper.change(s[None], i[None], d[None], settings.subtract_idle)[0].double().numpy()
        agreement = np.abs(matrix.matrix.double().numpy() @ d.double().numpy())
        if settings.threshold is not None:
            mask = agreement >= settings.threshold
        else:
            mask = agreement >= np.sort(agreement)[::-1][round(settings.share * len(agreement)) - 1]
        expected = s.double().numpy() + settings.strength * mask * change
        torch.testing.assert_close(found.code.convs[row].double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
        per_level = [int(part.sum()) for part in np.split(mask, np.cumsum(GEN.layout.level_widths)[:-1])]
        assert found.moved[row].tolist() == per_level
        length = np.linalg.norm(settings.strength * mask * change) / np.linalg.norm(s.double().numpy())
        assert abs(float(found.length[row]) / length - 1) < 1e-4


def test_many_edits_go_through_in_parts(monkeypatch):
    whole = delta_edit(tiny.mapper(), CODE, FEATURES, WANTED, ALL)
    monkeypatch.setattr("semantic_editing.core.deltaedit.edit.CHUNK", 4)
    told = []
    parts = delta_edit(tiny.mapper(), CODE, FEATURES, WANTED, ALL, callback=lambda *at: told.append(at))
    torch.testing.assert_close(parts.code.convs, whole.code.convs, rtol=1e-6, atol=1e-6)
    assert told == [(4, 6), (6, 6)]
    with pytest.raises(KeyboardInterrupt):
        delta_edit(
            tiny.mapper(), CODE, FEATURES, WANTED, ALL, callback=lambda *at: (_ for _ in ()).throw(KeyboardInterrupt)
        )


@pytest.mark.parametrize("subtract_idle", [False, True])
def test_nothing_asked_is_nothing_changed_to_the_bit(subtract_idle):
    """Source equal to target, or strength 0, whatever the relevance."""
    nothing = Differences(["face", "smile"], torch.stack([torch.zeros(tiny.WIDTH), WANTED.rows[0]]))
    settings = EditSettings(3.0, 1.0, subtract_idle=subtract_idle)
    found = delta_edit(tiny.mapper(), CODE, FEATURES, nothing, settings)
    assert torch.equal(found.code.convs[:3], CODE.convs) and torch.equal(found.code.rgbs[:3], CODE.rgbs)
    assert not torch.equal(found.code.convs[3:], CODE.convs) and found.moved[:3].sum() == 0 and found.length[0] == 0
    found = delta_edit(tiny.mapper(), CODE, FEATURES, WANTED, replace(settings, strength=0.0))
    assert torch.equal(found.code.convs, CODE.convs.repeat(2, 1)) and torch.equal(
        found.code.rgbs, CODE.rgbs.repeat(2, 1)
    )


@pytest.mark.parametrize("settings", [EditSettings(share=0.0), EditSettings(threshold=1.1), EditSettings(share=0.01)])
def test_a_mask_that_leaves_nothing_leaves_the_picture_and_it_is_said(settings):
    found = delta_edit(tiny.mapper(), CODE, FEATURES, WANTED, settings, tiny.relevance(GEN))
    assert torch.equal(found.code.convs, CODE.convs.repeat(2, 1)) and not found.allowed.any() and found.masked
    pictures = torch.rand(6, 3, 8, 8)
    said = edit_sentences(found, FEATURES, FEATURES.repeat(2, 1), pictures, pictures).splitlines()
    assert said[0] == (
        "smile, face 1: no style channel is relevant enough, so this is the unedited picture; raise disentangle or "
        "lower the threshold."
    )
    assert len(said) == 6


def test_a_threshold_of_zero_moves_all_and_one_at_the_boundary_keeps():
    """The published program drops what is *below* tau, by the difference as it is; the mapper is told the unit one."""
    mapper, matrix = tiny.mapper(), tiny.relevance(GEN)
    free = delta_edit(mapper, CODE, FEATURES, WANTED, ALL, matrix)
    assert torch.equal(
        delta_edit(mapper, CODE, FEATURES, WANTED, EditSettings(threshold=0.0), matrix).code.convs, free.code.convs
    )
    boundary = float(matrix.agreement(WANTED.rows)[0, 5])
    kept = delta_edit(mapper, CODE, FEATURES, WANTED, EditSettings(threshold=boundary), matrix).allowed
    above = delta_edit(
        mapper,
        CODE,
        FEATURES,
        WANTED,
        EditSettings(threshold=float(np.nextafter(np.float32(boundary), np.float32(9)))),
        matrix,
    )
    assert kept[0, 5] and not above.allowed[0, 5] and kept[0].sum() == above.allowed[0].sum() + 1
    longer = Differences(WANTED.names, 2 * WANTED.rows)
    assert torch.equal(delta_edit(mapper, CODE, FEATURES, longer, ALL, matrix).code.convs, free.code.convs)
    more = delta_edit(mapper, CODE, FEATURES, longer, EditSettings(threshold=boundary), matrix).allowed
    assert more.sum() > kept.sum()


def test_the_mappers_own_relevance_counts_unless_another_is_given():
    mapper = tiny.mapper()
    without = delta_edit(mapper, CODE, FEATURES, WANTED)
    assert without.allowed.all() and not without.masked, "no matrix: all channels may move"
    mapper.relevance = tiny.relevance(GEN)
    own = delta_edit(mapper, CODE, FEATURES, WANTED)
    assert own.masked and torch.equal(own.allowed, mapper.relevance.most(WANTED.rows, EditSettings().share))
    other = delta_edit(mapper, CODE, FEATURES, WANTED, relevance=tiny.relevance(GEN, seed=11))
    assert not torch.equal(own.allowed, other.allowed)


def refusal(*arguments, **options):
    with pytest.raises(EditingError) as caught:
        delta_edit(*arguments, **options)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_what_cannot_be_edited_is_refused():
    mapper, matrix = tiny.mapper(clip="a CLIP"), tiny.relevance(GEN)
    usual = {"clip": "a CLIP"}
    foreign = tiny.generator(seed=1)
    code = foreign.styles(foreign.sample_w_plus(3, 0))
    assert "other weights of this generator" in refusal(mapper, code, FEATURES, WANTED, **usual)
    wide = Differences(["a"], torch.ones(1, 9))
    assert "another CLIP (6 features; the wired one gives 9)" in refusal(mapper, CODE, torch.ones(3, 9), wide, **usual)
    assert "another CLIP, of as many features" in refusal(mapper, CODE, FEATURES, WANTED, clip="b")
    assert "There are 2 pictures for 3 faces" in refusal(mapper, CODE, FEATURES[:2], WANTED, **usual)
    assert "needs a relevance matrix" in refusal(mapper, CODE, FEATURES, WANTED, EditSettings(threshold=0.03), **usual)
    other = replace(matrix, generator="tiny 7")
    assert "matrix was made for another generator" in refusal(mapper, CODE, FEATURES, WANTED, relevance=other, **usual)
    broken = replace(CODE, convs=CODE.convs * float("nan"))
    assert "not numbers" in refusal(mapper, broken, FEATURES, WANTED, ALL, **usual)
    assert "lower the strength" in refusal(mapper, CODE, FEATURES, WANTED, EditSettings(1e39, 1.0), **usual)
    for settings, said in (
        (EditSettings(float("nan")), "The strength is not a number"),
        (EditSettings(share=1.5), "The share of channels is 1.5"),
        (EditSettings(threshold=-1.0), "The threshold of relevance is -1"),
        (EditSettings(threshold=float("nan")), "The threshold of relevance is nan"),
    ):
        assert said in refusal(mapper, CODE, FEATURES, WANTED, settings, matrix, **usual)


def test_one_picture_may_serve_all_faces():
    one = delta_edit(tiny.mapper(), CODE, FEATURES[:1], WANTED, ALL)
    three = delta_edit(tiny.mapper(), CODE, FEATURES[:1].repeat(3, 1), WANTED, ALL)
    assert torch.equal(one.code.convs, three.code.convs)


def test_differences_of_texts_are_of_unit_features_and_not_unit():
    clip = tiny.scorer()
    found = differences_of_texts(clip, "face", "face with a smile\n\n face \n")
    a, b = clip.text_features(["face", "face with a smile"])
    assert found.names == ["face with a smile", "face"]
    torch.testing.assert_close(found.rows[0], b - a, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.rows[1], torch.zeros(tiny.WIDTH)) and abs(float(found.rows[0].norm()) - 1) > 1e-3
    with pytest.raises(EditingError, match="text is empty"):
        differences_of_texts(clip, "face", " \n ")


@pytest.mark.parametrize("preprocessing", ["own", "deltaedit"])
def test_differences_of_pictures_are_taken_pair_by_pair(preprocessing):
    clip = tiny.scorer()
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 24, 20)
    b[1, :, :16, :16] = a[1]
    pairs = differences_of_pictures(clip, a, b, preprocessing)
    assert pairs.names == ["pair 1", "pair 2"]
    expected = clip.image_features(b, preprocessing) - clip.image_features(a, preprocessing)
    torch.testing.assert_close(pairs.rows, expected, rtol=1e-5, atol=1e-6)
    same = differences_of_pictures(clip, a, a.flip(0).flip(0), preprocessing)
    assert torch.equal(same.rows, torch.zeros(2, tiny.WIDTH)), "a picture and itself: nothing, not rounding made unit"
    one = differences_of_pictures(clip, a[:1], b[:1], preprocessing)
    assert (
        one.names == ["the pair of pictures"] and len(differences_of_pictures(clip, a[:1], b, preprocessing).rows) == 2
    )
    with pytest.raises(
        EditingError, match=r"There are 2 pictures to start from and 3 to go to; wire equally many, or one\.$"
    ):
        differences_of_pictures(clip, a, torch.rand(3, 3, 16, 16), preprocessing)


def test_tiny_and_oblong_pictures_are_looked_at_whole():
    clip = tiny.scorer()
    for size in ((1, 1), (3, 40)):
        assert features_of(clip, torch.rand(1, 3, *size), "deltaedit").isfinite().all()


def test_what_is_said_is_true_for_each_picture():
    mapper = tiny.mapper()
    found = delta_edit(mapper, CODE, FEATURES, WANTED, EditSettings(share=0.5), tiny.relevance(GEN))
    before = torch.full((6, 3, 20, 20), 0.5)
    after = before.clone()
    after[1, :, :4, :4] = 1.0
    looked = torch.nn.functional.normalize(FEATURES.repeat(2, 1) + 0.3 * WANTED.rows.repeat_interleave(3, 0), dim=1)
    looked[2] = FEATURES[2]
    looked[3] = torch.nn.functional.normalize(FEATURES[0] - WANTED.rows[1], dim=0)
    was, became = readings(found, FEATURES, looked)
    for row in range(6):
        unit = WANTED.rows[row // 3] / WANTED.rows[row // 3].norm()
        assert abs(float(was[row] - FEATURES[row % 3] @ unit)) < 1e-6
        assert abs(float(became[row] - looked[row] @ unit)) < 1e-6
    lines = edit_sentences(found, FEATURES, looked, before, after).splitlines()
    for row, line in enumerate(lines):
        change = found.code.convs[row] - CODE.convs[row % 3]
        moved = int((change != 0).sum())
        share = 100 * float(change.norm() / CODE.convs[row % 3].norm())
        assert line.startswith(f"{found.names[row]}: {moved} of 35 style channels moved (")
        assert f"by {share:.2g} % of the code's length." in line
        assert f"({float(was[row]):+.3f} before, {float(became[row]):+.3f} after)" in line
    assert "nearer to the target than before" in lines[0] and "as far from the target as before" in lines[2]
    assert "farther from the target than before" in lines[3]
    assert "Nobody sees a change" in lines[0] and "% of the picture changed visibly, in the upper left" in lines[1]
    same = delta_edit(mapper, CODE, FEATURES, Differences(["a"], torch.zeros(1, tiny.WIDTH)))
    still = delta_edit(mapper, CODE, FEATURES, WANTED, EditSettings(0.0, 1.0))
    for edit, said in ((same, "the same to CLIP"), (still, "the change is zero")):
        count = len(edit.names)
        line = edit_sentences(edit, FEATURES, looked[:count], before[:count], after[:count]).splitlines()[1]
        assert line.endswith(f"{said}, so this is the unedited picture.")

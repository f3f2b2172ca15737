"""The agreement of texts and pictures: against plain loops, on planted features, and on the released arrays."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from semantic_editing.core.deltaedit import analysis
from semantic_editing.core.deltaedit.analysis import agreement, analyse, partners, principal_plane, sentences, table
from semantic_editing.core.errors import EditingError

RELEASED = Path(__file__).resolve().parents[3] / "../shared/data/deltaspace_celeba"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(count=60, width=12, noise=0.4, seed=0):
    """Pictures and texts of one meaning each, in two clouds far from each other."""
    meaning = normal(count, width, seed=seed)
    gap = 6 * normal(1, width, seed=99)
    images = meaning + noise * normal(count, width, seed=seed + 1)
    return images, meaning + noise * normal(count, width, seed=seed + 2) + gap


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("chunk", [1024, 7])
def test_agreement_by_loops(monkeypatch, chunk):
    monkeypatch.setattr(analysis, "CHUNK", chunk)
    images, texts = normal(15, 6, seed=1), normal(15, 6, seed=2)
    images += texts
    shared = torch.stack([torch.arange(15), torch.arange(15).roll(-1)], 1)
    found = agreement(images, texts, shared)
    matched, shuffled, ranks = [], [], []
    for i in range(15):
        row = [cosine(images[i], texts[j]) for j in range(15)]
        matched.append(row[i])
        shuffled.append(np.mean([row[j] for j in range(15) if not {i, (i + 1) % 15} & {j, (j + 1) % 15}]))
        ranks.append(sum(value > row[i] for value in row))
    assert found.matched.value == pytest.approx(np.mean(matched))
    assert found.matched.error == pytest.approx(np.std(matched, ddof=1) / math.sqrt(15))
    assert found.shuffled.value == pytest.approx(np.mean(shuffled))
    assert found.first.value == pytest.approx(np.mean([rank < 1 for rank in ranks]))
    assert found.fifth.value == pytest.approx(np.mean([rank < 5 for rank in ranks]))
    assert found.chance == (1 / 15, 5 / 15)


def test_ties_count_by_their_chance():
    """Three captions word for word the same: each picture's own is the nearest in a third of the cases."""
    texts = torch.eye(3).double()[[0, 0, 0, 1, 2]]
    found = agreement(texts, texts)
    assert found.first.value == pytest.approx((3 * (1 / 3) + 2) / 5) and found.fifth.value == 1


def test_partners_are_others_and_seeded():
    for count in (4, 5, 100):
        first = partners(count, 3)
        assert sorted(first.tolist()) == list(range(count)) and not (first == torch.arange(count)).any()
        assert torch.equal(first, partners(count, 3))
    assert not torch.equal(partners(100, 3), partners(100, 4)) and len(partners(9, 2**64 - 1)) == 9


def test_differences_agree_where_a_gap_hides_it_from_the_features():
    found = analyse(*planted())
    assert found.differences.certain and found.differences.margin > 2 * found.features.margin
    assert abs(found.differences.shuffled.value) < 0.1 < found.differences.matched.value
    assert found.differences.first.value > 10 * found.differences.chance[0]
    text = "\n".join(sentences(found))
    assert text.startswith("Texts and pictures agree in their differences") and "less plainly" in text
    assert "60" in table(found) and "left out" not in table(found)


def test_what_has_nothing_to_do_with_each_other_is_said_so():
    """At three standard errors chance would rarely be certain: none of these."""
    for seed in range(5):
        found = analyse(normal(40, 12, seed=10 + seed), normal(40, 12, seed=50 + seed), seed)
        assert not found.differences.certain
        assert sentences(found)[0].startswith("Texts and pictures do not agree in their differences")


def test_differences_are_those_of_unit_features():
    images, texts = planted(20)
    found, scaled = analyse(images, texts), analyse(images * torch.rand(20, 1).double().add(0.5), 3 * texts)
    assert found.differences.matched.value == pytest.approx(scaled.differences.matched.value)
    unit = [one / one.norm(dim=1, keepdim=True) for one in (images, texts)]
    partner = partners(20, 0)
    cosines = [cosine(*(one[partner[i]] - one[i] for one in unit)) for i in range(20)]
    assert found.differences.matched.value == pytest.approx(np.mean(cosines))


def test_captions_word_for_word_the_same_are_counted_and_left_out():
    images, texts = planted(30)
    partner = partners(30, 0)
    texts[3] = texts[partner[3]]
    found = analyse(images, texts)
    assert found.alike == 1 and found.differences.count == 29 and "1 differences were left out" in table(found)
    with pytest.raises(EditingError, match="the same to this CLIP"):
        analyse(images, texts[:1].expand(30, -1))


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (torch.ones(3, 4), torch.ones(3, 4), "There are 3 pictures with captions; use 4 or more"),
        (torch.ones(5, 4), torch.ones(5, 6), "of one CLIP"),
        (torch.ones(5), torch.ones(5), "of one CLIP"),
        (torch.full((5, 4), float("nan")), torch.ones(5, 4), "not numbers"),
    ],
)
def test_features_that_cannot_be_compared(images, texts, message):
    with pytest.raises(EditingError, match=message):
        analyse(images, texts)


def test_four_are_enough():
    found = analyse(*planted(4, noise=0.01))
    assert math.isfinite(found.differences.shuffled.value) and found.differences.matched.value > 0.9


def test_the_plane_holds_the_most_variance():
    points = normal(50, 6) * torch.tensor([1.0, 5.0, 0.5, 3.0, 0.1, 0.2])
    first, second = principal_plane(points[:20], points[20:])
    together = torch.cat([first, second])
    _, singular, _ = np.linalg.svd((points - points.mean(0)).numpy())
    np.testing.assert_allclose(together.square().sum(0).sqrt().numpy(), singular[:2], rtol=1e-9)
    assert len(first) == 20 and float((first[0] - first[1]).norm()) <= float((points[0] - points[1]).norm()) + 1e-9
    assert torch.equal(torch.cat(principal_plane(points[:20], points[20:])), together)


def test_the_plot_is_a_picture_of_both():
    plot = analyse(*planted(20)).plot
    assert plot.ndim == 3 and plot.shape[2] == 3 and 0 <= float(plot.min()) < float(plot.max()) <= 1
    halves = plot[:, : plot.shape[1] // 2], plot[:, plot.shape[1] // 2 :]
    assert all(int((half.amax(-1) - half.amin(-1) > 0.3).sum()) > 100 for half in halves), "coloured dots"


@pytest.fixture(scope="module")
def released():
    if not RELEASED.is_dir():
        pytest.skip("the features that DeltaEdit published for 1,500 CelebA pictures are not there")
    return {
        name: torch.from_numpy(np.load(RELEASED / f"cspace_celeba_{name}.npy", allow_pickle=False))
        for name in ("i", "t", "deltai", "deltat")
    }


def test_the_papers_space_is_found_in_its_own_arrays(released):
    """CelebA: differences .163 matched and .003 shuffled, features .255 and .224."""
    delta = agreement(released["deltai"], released["deltat"])
    plain = agreement(released["i"], released["t"])
    assert (round(delta.matched.value, 3), round(delta.shuffled.value, 3)) == (0.163, 0.003)
    assert (round(plain.matched.value, 3), round(plain.shuffled.value, 3)) == (0.255, 0.224)
    assert delta.first.value > 5 * plain.first.value > 5 * plain.chance[0]


def test_differences_of_random_partners_in_the_papers_arrays(released):
    """Their own differences are of other texts; those of the arrays' rows agree less, and still beyond the features."""
    found = analyse(released["i"], released["t"], 0)
    assert found.differences.certain and found.differences.margin > 2 * found.features.margin
    assert found.differences.first.value > found.features.first.value

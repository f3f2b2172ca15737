"""The Delta Mapper against its program's definition, and relevance against the definition of its threshold."""

from pathlib import Path

import numpy as np
import pytest
import torch

from semantic_editing.core.deltaedit.mapper import DeltaMapper, condition
from semantic_editing.core.deltaedit.mapper_files import published_layout
from semantic_editing.core.deltaedit.relevance import COVARIANCE, Relevance, from_covariance
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.deltaedit import tiny_mappers as tiny

CODES = Path(__file__).resolve().parents[3] / "../shared/data/deltaedit_codes"
GEN = tiny.generator()


def code(faces=3, gen=GEN, seed=0):
    return gen.styles(gen.sample_w_plus(faces, seed, truncation=1))


@pytest.mark.parametrize("across_channels", [True, False])
def test_the_released_architecture_is_its_programs(across_channels):
    mapper = tiny.mapper("released", across_channels)
    styles, given = tiny.seeded(3, GEN.layout.width, seed=8), tiny.seeded(3, 2 * tiny.WIDTH, seed=9)
    expected = tiny.naive_released(mapper.state_dict(), mapper.levels, styles, given, across_channels)
    torch.testing.assert_close(
        mapper(styles, given).double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())
    )
    other = tiny.naive_released(mapper.state_dict(), mapper.levels, styles, given, not across_channels)
    assert (expected - other).abs().max() > 0.01 * expected.abs().max(), (
        "the two norms must differ for this to say anything"
    )


def test_the_flat_architecture_is_four_layers_a_module():
    mapper = tiny.mapper("flat")
    weights = {name: value.double().numpy() for name, value in mapper.state_dict().items()}
    styles, given = tiny.seeded(2, GEN.layout.width, seed=8), tiny.seeded(2, 2 * tiny.WIDTH, seed=9)

    def module(name, x, linear):
        layers = sorted({int(key.split(".")[1]) for key in weights if key.startswith(f"{name}.")})
        assert len(layers) == 4
        for place, layer in enumerate(layers):
            x = x @ weights[f"{name}.{layer}.weight"].T + weights[f"{name}.{layer}.bias"]
            if place < 3 or not linear:
                x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
        return x

    parts = []
    for level, part in zip(("coarse", "medium", "fine"), styles.double().split(mapper.widths, 1), strict=True):
        both = [module(f"sm_{level}", part.numpy(), False), module(f"cm_{level}", given.double().numpy(), False)]
        parts.append(module(f"fm_{level}", np.concatenate(both, 1), True))
    torch.testing.assert_close(
        mapper(styles, given).double(), torch.from_numpy(np.concatenate(parts, 1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("subtract_idle", [False, True])
def test_a_change_is_in_raw_units_and_of_unit_differences(subtract_idle):
    mapper, convs = tiny.mapper(), code().convs
    features, difference = tiny.unit(3), 7.0 * tiny.unit(3, seed=6)
    difference[1] = 0
    found = mapper.change(convs, features, difference, subtract_idle)
    standard = (convs - mapper.mean) / mapper.deviation
    unit = difference / difference.norm(dim=1, keepdim=True).clamp_min(1e-12)
    expected = mapper(standard, torch.cat([features, unit], 1))
    if subtract_idle:
        expected = expected - mapper(standard, torch.cat([features, torch.zeros(3, tiny.WIDTH)], 1))
    torch.testing.assert_close(found[[0, 2]], (expected * mapper.deviation)[[0, 2]], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], torch.zeros_like(found[1])) and found[[0, 2]].abs().min(1).values.gt(0).all()
    assert torch.equal(condition(features, difference)[1, tiny.WIDTH :], torch.zeros(tiny.WIDTH))


def test_what_does_not_belong_together_is_refused():
    mapper, own = tiny.mapper(clip="a CLIP"), code()
    mapper.check(own, "a CLIP", tiny.WIDTH)
    wider = tiny.generator(channels=tiny.CHANNELS | {64: 5})
    with pytest.raises(EditingError, match=r"another generator \(35 style channels; the code has 37\); .*\.$"):
        mapper.check(code(gen=wider), "a CLIP", tiny.WIDTH)
    with pytest.raises(EditingError, match=r"other weights of this generator.*\.$"):
        mapper.check(code(gen=tiny.generator(seed=1)), "a CLIP", tiny.WIDTH)
    with pytest.raises(EditingError, match=r"another CLIP \(6 features; the wired one gives 8\); wire that one\.$"):
        mapper.check(own, "a CLIP", 8)
    with pytest.raises(EditingError, match=r"another CLIP, of as many features; wire that one\.$"):
        mapper.check(own, "another", tiny.WIDTH)
    with pytest.raises(EditingError, match="coarse, medium and fine layers: 64 pixels or more"):
        DeltaMapper([[4], [4], []], tiny.WIDTH)
    with pytest.raises(
        EditingError, match=r"among the medium layers, which here have \[3, 4\] channels; choose the flat"
    ):
        DeltaMapper([[4, 4], [4, 3], [2]], tiny.WIDTH, "released")


def test_relevance_keeps_what_reaches_the_threshold():
    """As the published program: channels are dropped where |R . dt| < tau, dt not made unit length."""
    matrix = torch.eye(4)[:, :3]
    matrix[3] = torch.tensor([0.0, 0.0, -1.0])
    dt = torch.tensor([[0.5, 0.25, 0.125]])
    relevance = Relevance(matrix, COVARIANCE)
    kept = {tau: relevance.above(dt, tau)[0].tolist() for tau in (0.0, 0.125, 0.2, 0.25, 0.2500001, float("inf"))}
    assert kept == {
        0.0: [True] * 4, 0.125: [True] * 4, 0.2: [True, True, False, False], 0.25: [True, True, False, False],
        0.2500001: [True, False, False, False], float("inf"): [False] * 4,
    }  # fmt: skip
    assert relevance.above(2 * dt, 0.25).sum() == 4, "a longer difference moves more channels"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 1.0])
def test_the_share_keeps_the_most_relevant(share):
    relevance, difference = tiny.relevance(GEN), tiny.seeded(5, tiny.WIDTH, seed=7)
    kept, agreement = relevance.most(difference, share), relevance.agreement(difference)
    expected = np.abs(difference.double().numpy() @ relevance.matrix.double().numpy().T)
    torch.testing.assert_close(agreement.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    assert kept.sum(1).tolist() == [round(share * GEN.layout.width)] * 5
    for row, chosen in zip(expected, kept.numpy(), strict=True):
        assert not chosen.any() or chosen.all() or row[chosen].min() > row[~chosen].max()
    assert torch.equal(relevance.most(3.7 * difference, share), kept), "CLIP's scale does not matter"
    nothing = relevance.most(torch.zeros(1, tiny.WIDTH), share)
    assert nothing.all() if kept.any() else not nothing.any(), "ties all take part, unless none is to"


def test_relevance_by_covariance_is_its_definition():
    styles, features = tiny.seeded(9, 4, seed=1), tiny.unit(9)
    styles[:, 2] = 0.5  # a channel that never moves
    found = from_covariance(styles, features).matrix
    s, i = styles.double().numpy(), features.double().numpy()
    for channel in (0, 1, 3):
        row = sum((s[n, channel] - s[:, channel].mean()) * (i[n] - i.mean(0)) for n in range(9))
        torch.testing.assert_close(
            found[channel].double(), torch.from_numpy(row / np.linalg.norm(row)), rtol=1e-4, atol=1e-5
        )
    assert torch.equal(found[2], torch.zeros(tiny.WIDTH))


def test_a_matrix_of_something_else_is_refused():
    relevance, own = tiny.relevance(GEN, clip="a CLIP"), code()
    relevance.check(own, "a CLIP", tiny.WIDTH)
    with pytest.raises(EditingError, match=r"made for another generator \(35 style channels; the code has 35\)"):
        relevance.check(code(gen=tiny.generator(seed=1)), "a CLIP", tiny.WIDTH)
    for clip, width in (("another", tiny.WIDTH), ("a CLIP", 8)):
        with pytest.raises(EditingError, match=r"made with another CLIP \(6 features; the wired one gives"):
            relevance.check(own, clip, width)


@pytest.mark.skipif(not CODES.is_dir(), reason="the codes that DeltaEdit's authors published are not there")
def test_codes_of_the_authors():
    """20 faces: their layout is ours, doing nothing costs what the notes say, and standardising needs their spread."""
    styles = torch.from_numpy(np.load(CODES / "sspace_img_feat.npy", allow_pickle=False)).float()
    features = torch.from_numpy(np.load(CODES / "cspace_img_feat.npy", allow_pickle=False)).float()
    layout = published_layout(2464, "net_face.pth")
    assert layout.width == styles.shape[1] == 6048 and layout.level_widths == [1536, 2048, 2464]
    idle = torch.cdist(styles.double(), styles.double()).square().sum() / (20 * 19 * 6048)
    assert round(float(idle), 1) == 3.9
    torch.testing.assert_close(idle, 2 * styles.double().var(0).mean(), rtol=1e-6, atol=0)
    assert float(features.norm(dim=1).mean()) > 5, "not of unit length as published"
    # Channels differ far more from each other than faces do in a channel: what standardising takes away.
    assert float(styles.std()) > 5 * float(styles.var(0).mean().sqrt())
    mapper = tiny.build(lambda: DeltaMapper(layout.levels, 2, hidden=2))
    mapper.mean.copy_(styles.mean(0))
    mapper.deviation.copy_(styles.std(0))
    standard = mapper.standardised(styles)
    assert float(standard.mean().abs()) < 1e-4 and abs(float(standard.std(0).mean()) - 1) < 1e-4

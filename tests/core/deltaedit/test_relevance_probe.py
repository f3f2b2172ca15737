"""Relevance: a planted world is found by moving its channels and by covariance; stopping, resuming and the cost."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from semantic_editing.core.deltaedit.relevance import BOTH, COVARIANCE, PERTURBATION, Relevance, both, from_covariance
from semantic_editing.core.deltaedit.relevance_probe import ProbeSettings, RelevanceProbe, by_covariance
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.deltaedit.tiny_latents import LinearClip, linear_world, seeded, tiny_generator
from semantic_editing.tests.refusals import refusal

SETTINGS = ProbeSettings(faces=3, amount=2.0, batch=12)


class Stop(Exception):
    pass


class Planted:
    """A generator that draws each channel as a pattern of 4 x 4 pixels, and a CLIP that sees pictures linearly."""

    def __init__(self, count=40):
        base, _ = linear_world(count, features=10, dtype=torch.float32)
        width = base.layout.width
        self.patterns = 1e-2 * torch.randn(width, 48, generator=seeded(11))
        self.patterns[5] = 0  # a channel that shows nothing
        self.clip = LinearClip(10, unit=False)
        # columns without any correlation: each channel varies alone
        columns = torch.linalg.qr(
            torch.cat([torch.ones(count, 1), torch.randn(count, width, generator=seeded(12))], 1)
        ).Q
        offsets = columns[:, 1:] * (0.5 + torch.rand(width, generator=seeded(13)))
        self.latents = replace(base, offsets=offsets, image_features=self.features(offsets + base.centre))
        origin = replace(base.origin, clip=self.clip.identity)
        self.latents = replace(self.latents, origin=origin)
        self.drawn = 0
        self.generator = SimpleNamespace(
            identity=origin.generator, w_mean=torch.zeros(1), synthesize=self.synthesize, layout=base.layout
        )

    def synthesize(self, code):
        self.drawn += len(code)
        return (code.convs @ self.patterns).reshape(-1, 3, 4, 4)

    def features(self, convs):
        return (((convs @ self.patterns) / 2 + 0.5) @ self.clip.weight).float()

    @property
    def rows(self):
        """The direction that each channel shows."""
        return functional.normalize(self.patterns @ self.clip.weight, dim=1)

    def probe(self, settings=SETTINGS):
        return RelevanceProbe(lambda: self.generator, self.clip, self.latents, settings)


def test_probing_finds_the_planted_directions_at_the_cost_it_tells():
    planted = Planted()
    probe = planted.probe()
    found = probe.run()
    assert found.kind == PERTURBATION and found.generator == "a generator" and found.clip == planted.clip.identity
    others = torch.arange(18) != 5
    torch.testing.assert_close(found.matrix[others], planted.rows[others], rtol=1e-3, atol=2e-3)
    assert planted.drawn == probe.evaluations == 18 * 2 * 3


def test_a_channel_that_shows_nothing_is_zero():
    assert Planted().probe().run().matrix[5].abs().max() == 0


def test_covariance_finds_the_same_up_to_sign():
    planted = Planted()
    found = by_covariance(planted.latents)
    assert found.kind == COVARIANCE
    others = torch.arange(18) != 5
    cosines = (found.matrix * planted.rows).sum(1)[others]
    torch.testing.assert_close(cosines.abs(), torch.ones(17), rtol=0, atol=1e-3)
    assert (cosines > 0).all()


def test_covariance_in_chunks_is_the_definition(monkeypatch):
    from semantic_editing.core.deltaedit import relevance_probe

    monkeypatch.setattr(relevance_probe, "CHUNK", 7)
    latents, _ = linear_world(50, seed=4)
    seen = []
    found = by_covariance(latents, lambda done, total: seen.append((done, total)))
    wanted = from_covariance(latents.convs, latents.image_features.float())
    torch.testing.assert_close(found.matrix, wanted.matrix, rtol=1e-3, atol=1e-4)
    assert seen[0] == (7, 50) and seen[-1] == (50, 50) and len(seen) == 8
    double = by_covariance(latents).matrix.double().numpy()
    styles, features = latents.convs.double().numpy(), latents.image_features.double().numpy()
    for channel in (0, 17):
        row = sum(
            (s - styles[:, channel].mean()) * (f - features.mean(0))
            for s, f in zip(styles[:, channel], features, strict=True)
        )
        assert double[channel] == pytest.approx(row / (row @ row) ** 0.5, abs=1e-4)


def test_batches_do_not_change_what_is_found():
    planted = Planted()
    one = planted.probe(replace(SETTINGS, batch=1)).run().matrix
    all_at_once = planted.probe(replace(SETTINGS, batch=1000)).run().matrix
    torch.testing.assert_close(one, all_at_once, rtol=1e-3, atol=2e-3)


def test_a_stopped_probing_goes_on_where_it_was(tmp_path):
    whole = Planted().probe().run()
    planted = Planted()
    part = planted.probe()

    def stop(done, total):
        assert total == 18
        if done >= 8:
            raise Stop

    with pytest.raises(Stop):
        part.run(stop)
    assert part.done == 8
    part.save(tmp_path / "a.safetensors")
    planted.drawn = 0
    gone_on = planted.probe()
    gone_on.resume(tmp_path / "a.safetensors")
    assert torch.equal(gone_on.run().matrix, whole.matrix) and planted.drawn == (18 - 8) * 6
    for change, word in (({"faces": 4}, "faces"), ({"amount": 1.0}, "amount"), ({"seed": 3}, "seed")):
        assert f"another {word}" in refusal(
            planted.probe(replace(SETTINGS, **change)).resume, tmp_path / "a.safetensors"
        )
    assert "another latents" in refusal(Planted(41).probe().resume, tmp_path / "a.safetensors")


def test_what_cannot_be_probed_is_refused():
    planted = Planted()
    for change in ({"faces": 0}, {"batch": 0}, {"amount": 0.0}, {"amount": float("nan")}):
        refusal(planted.probe, replace(SETTINGS, **change))
    assert "another CLIP" in refusal(
        RelevanceProbe, lambda: planted.generator, LinearClip(seed=7), planted.latents, SETTINGS
    )
    assert "another generator" in refusal(
        RelevanceProbe, lambda: tiny_generator(), planted.clip, planted.latents, SETTINGS
    )
    latents, _ = linear_world(50)
    latents.offsets[0, 0] = float("nan")
    assert "not numbers" in refusal(by_covariance, latents)
    assert "at least two" in refusal(by_covariance, linear_world(1)[0])


def test_both_is_halfway_and_keeps_what_one_alone_saw():
    first = torch.tensor([[3.0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    second = torch.tensor([[0.0, 0.5, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]])
    found = both(Relevance(first, COVARIANCE, "g", "c"), Relevance(second, PERTURBATION, "g", "c"))
    assert (found.kind, found.generator, found.clip) == (BOTH, "g", "c")
    half = 0.5**0.5
    torch.testing.assert_close(found.matrix, torch.tensor([[half, half, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]))


@pytest.mark.parametrize("change", [{"generator": "another"}, {"clip": "another"}, {"matrix": torch.zeros(3, 2)}])
def test_both_of_different_makers_is_refused(change):
    made = Relevance(torch.zeros(2, 2), COVARIANCE, "g", "c")
    with pytest.raises(EditingError, match="make both of the same"):
        both(made, replace(made, **change))

"""Latents: what their numbers are, the file they lie in, and building them in parts that give the same file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing.core.deltaedit.encoder import CompactEncoder
from semantic_editing.core.deltaedit.latents import FILE_FORMAT, LatentsBuilder, Origin, load_latents, resized
from semantic_editing.core.deltaedit.relevance_probe import ProbeSettings, RelevanceProbe
from semantic_editing.core.files import load_tensors, save_tensor_parts, save_tensors
from semantic_editing.tests.core.deltaedit.tiny_latents import LinearClip, linear_world, seeded, tiny_generator
from semantic_editing.tests.refusals import refusal

GENERATOR, CLIP = tiny_generator(), LinearClip()


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CompactEncoder(GENERATOR.layout.rows, 6, 16, (8, 8), 16).eval().requires_grad_(False)


@pytest.fixture
def pictures(tmp_path):
    """Five pictures, of which the third is none and the last is not square."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        shape = (32, 48, 3) if number == 4 else (32, 32, 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no picture")
    return sorted(folder.iterdir())


def builder(path, encoder=None, generator=GENERATOR, clip=CLIP, **options):
    origin = Origin(generator.identity, clip.identity, "an encoder" if encoder else "", 0.5)
    return LatentsBuilder(
        lambda: generator, clip, path, origin, None if encoder is None else lambda: encoder, batch=2, **options
    )


def test_samples_are_the_generators_of_their_seeds_and_are_drawn_for_clip(tmp_path):
    made = builder(tmp_path / "a.safetensors", keep_w_plus=True)
    made.run(samples=5, seed=7)
    latents = load_latents(tmp_path / "a.safetensors")
    assert latents.names == tuple(f"seed {number}" for number in range(7, 12)) and len(latents) == 5
    codes = [GENERATOR.styles(GENERATOR.sample_w_plus(1, seed, 0.5)) for seed in range(7, 12)]
    true = torch.cat([code.convs for code in codes])
    # fp16 keeps 11 bits of the distance from the centre, not of the style
    bound = (true - latents.centre).abs() * 2.0**-11 + 1e-6
    assert ((latents.convs - true).abs() <= bound).all()
    features = torch.cat([CLIP.embed_images((GENERATOR.synthesize(c) / 2 + 0.5).clamp(0, 1)).features for c in codes])
    torch.testing.assert_close(latents.image_features.float(), features, rtol=2.0**-10, atol=1e-4)
    torch.testing.assert_close(latents.rgbs, torch.cat([code.rgbs for code in codes]).mean(0))
    torch.testing.assert_close(
        latents.w_plus.float(), torch.cat([code.w_plus for code in codes]), rtol=2.0**-10, atol=1e-3
    )
    code = latents.code(slice(1, 3))
    assert code.generator == GENERATOR.identity and len(code) == 2
    GENERATOR.check(code)
    assert torch.equal(code.convs, latents.convs[1:3]) and torch.equal(code.rgbs[0], latents.rgbs)


def test_a_seed_at_the_end_of_its_range_goes_on_from_0(tmp_path):
    made = builder(tmp_path / "a.safetensors")
    made.run(samples=2, seed=2**64 - 1)
    assert made.rows.names == [f"seed {2**64 - 1}", "seed 0"]


def test_pictures_go_through_the_encoder_square_and_unreadable_ones_are_named(tmp_path, pictures, encoder):
    made = builder(tmp_path / "a.safetensors", encoder)
    made.run(pictures, samples=1)
    latents = load_latents(tmp_path / "a.safetensors")
    assert latents.names == ("0.png", "1.png", "3.png", "4.png", "seed 0") and latents.skipped == ("2.png",)
    pixels = torch.from_numpy(np.array(Image.open(pictures[4]))).permute(2, 0, 1)[None].float() / 255
    square = pixels[..., 8:40]
    halved = square.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    code = GENERATOR.styles(encoder(halved * 2 - 1))
    torch.testing.assert_close(latents.convs[3:4], code.convs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        latents.image_features[3:4].float(), CLIP.embed_images(square).features, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_building_goes_on_to_the_same_bytes(tmp_path, pictures, encoder, stop):
    whole = builder(tmp_path / "whole.safetensors", encoder)
    whole.run(pictures, samples=3, seed=4)

    def stopping(done, total):
        calls.append((done, total))
        if len(calls) == stop:
            raise Stop

    calls, path = [], tmp_path / "parts.safetensors"
    first = builder(path, encoder)
    with pytest.raises(Stop):
        first.run(pictures, samples=3, seed=4, callback=stopping)
    assert calls[-1] == (min(2 * stop, 5), 8)
    second = builder(path, encoder)
    second.resume()
    second.run(pictures, samples=3, seed=4)
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    before = path.stat().st_mtime_ns
    third = builder(path, encoder)
    third.resume()
    third.run(pictures, samples=3, seed=4)
    assert path.stat().st_mtime_ns == before and third.unsaved == 0, "nothing was missing"


def test_faces_are_saved_on_the_way(tmp_path, monkeypatch):
    from semantic_editing.core.deltaedit import latents

    monkeypatch.setattr(latents, "SAVE_EVERY", 3)
    sizes, path = [], tmp_path / "a.safetensors"
    builder(path).run(
        samples=8, callback=lambda done, total: sizes.append(len(load_latents(path)) if path.exists() else 0)
    )
    assert sizes[:2] == [0, 4] and sizes == sorted(sizes), "after the fourth face, in batches of two"
    assert len(load_latents(path)) == 8


def test_a_full_disk_ends_nothing_and_is_told(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    made = builder(tmp_path / "a.safetensors")
    made.run(samples=3)
    assert "a.safetensors exists already" in made.trouble and made.unsaved == 3
    assert (tmp_path / "a.safetensors").read_bytes() == b"precious"
    assert len(made.latents()) == 3
    made.save(tmp_path / "b.safetensors")
    assert torch.equal(load_latents(tmp_path / "b.safetensors").convs, made.latents().convs)


def test_what_was_made_otherwise_is_refused_by_name(tmp_path, encoder, pictures):
    path = tmp_path / "a.safetensors"
    builder(path, encoder).run(pictures, samples=1)
    others = {
        "generator": builder(path, encoder, generator=tiny_generator(5)),
        "CLIP": builder(path, encoder, clip=LinearClip(seed=2)),
        "W+": builder(path, encoder, keep_w_plus=True),
    }
    changed = builder(path, encoder)
    changed.origin = Origin(GENERATOR.identity, CLIP.identity, "another", 0.5)
    others["style encoder"] = changed
    changed = builder(path, encoder)
    changed.origin = Origin(GENERATOR.identity, CLIP.identity, "an encoder", 0.9)
    others["truncation"] = changed
    for word, made in others.items():
        assert word in refusal(made.resume)
    going_on = builder(path, encoder)
    going_on.resume()
    assert "3.png" in refusal(going_on.run, pictures[:2], samples=1) and len(load_latents(path)) == 5
    fresh = builder(tmp_path / "b.safetensors")
    assert "style encoder" in refusal(fresh.run, pictures)
    fresh.run()
    assert "not one face" in refusal(fresh.save, tmp_path / "b.safetensors") and "not one face" in refusal(
        fresh.latents
    )
    assert "generator" in refusal(load_latents(path).check, "another", CLIP.identity)
    assert "CLIP" in refusal(load_latents(path).check, GENERATOR.identity, "another")


def test_a_file_whose_identities_are_forged_is_refused_all_the_same(tmp_path):
    """It names the CLIP that is wired, but holds features of another length; and another layout of the generator."""
    path, wide = tmp_path / "a.safetensors", LinearClip(width=12)
    assert wide.identity == CLIP.identity
    builder(path).run(samples=2)
    before = path.read_bytes()
    going_on = builder(path, clip=wide)
    going_on.resume()
    assert "another CLIP (10 features; the wired one gives 12)" in refusal(going_on.run, samples=4)
    assert path.read_bytes() == before
    latents, settings = load_latents(path), ProbeSettings(faces=2)
    probe = RelevanceProbe(lambda: GENERATOR, wide, latents, settings)
    assert "another CLIP (10 features; the wired one gives 12)" in refusal(probe.run)
    other = replace(latents, layout=replace(latents.layout, convs=latents.layout.convs[::-1]))
    assert "another generator" in refusal(RelevanceProbe, lambda: GENERATOR, CLIP, other, settings)


@pytest.mark.parametrize(("channels", "features"), [(2**16, 2**12), (2**17, 1), (1, 2**17)])
def test_rows_longer_than_any_generators_and_clips_are_refused(tmp_path, channels, features):
    """From a file of a MB a mapper and a relevance matrix would take gigabytes."""
    tensors = {
        "image_features": torch.zeros(2, features).half(), "offsets": torch.zeros(2, channels).half(),
        "centre": torch.zeros(channels), "rgb_sum": torch.zeros(1),
    }  # fmt: skip
    convs = [[4, min(channels, 2**16)] for _ in range(max(1, channels // 2**16))]
    texts = {"layout": {"convs": convs, "rgbs": [[4, 1]]}, "names": ["a", "b"], "skipped": [], "truncation": 1}
    metadata = {"format": FILE_FORMAT} | {key: json.dumps(value) for key, value in texts.items()}
    path = save_tensors(tmp_path / "a.safetensors", tensors, metadata)
    assert path.stat().st_size < 2**21
    assert f"has {channels} style channels and {features} CLIP features" in refusal(load_latents, path)


def test_a_network_that_answers_nothing_is_told(tmp_path):
    broken = tiny_generator()
    broken.conv1.conv.modulation.bias.fill_(float("nan"))
    assert "not a number" in refusal(builder(tmp_path / "a.safetensors", generator=broken).run, samples=1)


def test_moments_are_numpys_in_chunks_and_of_rows(monkeypatch):
    from semantic_editing.core.deltaedit import latents as module

    monkeypatch.setattr(module, "CHUNK", 7)
    latents, _ = linear_world(50)
    rows = torch.randperm(50, generator=seeded(1))[:31]
    for chosen in (None, rows):
        mean, deviation = latents.moments(chosen)
        values = latents.convs.double().numpy()[slice(None) if chosen is None else chosen.numpy()]
        np.testing.assert_allclose(mean.numpy(), values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(deviation.numpy(), values.std(0, ddof=1), rtol=1e-4)
    assert "fewer than two" in refusal(latents.moments, rows[:1])
    latents.offsets[3, 2] = float("inf")
    assert "not numbers" in refusal(latents.moments)


def test_a_channel_that_never_moves_is_not_blown_up():
    latents, _ = linear_world(50)
    latents.offsets[:, 2] = 0
    _, deviation = latents.moments()
    others = deviation[torch.arange(18) != 2]
    assert 0 < deviation[2] < others.min() / 100


def test_resizing_by_whole_factors_is_the_mean():
    pictures = torch.rand(2, 3, 12, 12, generator=seeded(0))
    wanted = torch.stack([pictures[..., y::3, x::3] for y in range(3) for x in range(3)]).mean(0)
    torch.testing.assert_close(resized(pictures, 4), wanted)
    assert resized(pictures, 5).shape == (2, 3, 5, 5) and resized(pictures, 24).max() <= 1


def test_tensors_in_parts_are_the_file_of_whole_ones(tmp_path):
    half, single = torch.randn(5, 3, generator=seeded(0)).half(), torch.randn(7, generator=seeded(1))
    double = torch.randn(2, 2, generator=seeded(2)).double()
    parts = {"half": [half[:2], half[2:]], "single": [single], "double": [double[:1], double[1:]]}
    save_tensor_parts(tmp_path / "a.safetensors", parts, {"format": "x", "name": 'é"\\'})
    save_tensors(tmp_path / "b.safetensors", {"half": half, "single": single, "double": double}, {"format": "x"})
    tensors, metadata = load_tensors(tmp_path / "a.safetensors", "x")
    wanted, _ = load_tensors(tmp_path / "b.safetensors", "x")
    assert metadata["name"] == 'é"\\' and set(tensors) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    refusal(save_tensor_parts, tmp_path / "a.safetensors", parts, {})

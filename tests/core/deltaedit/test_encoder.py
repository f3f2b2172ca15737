"""e4e's encoder: the published names and shapes, the network written out with torch's functions, and its files."""

import argparse
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.benchmarks.fuzz_samples import SIDE, STAGES
from semantic_editing.core.deltaedit.encoder import CompactEncoder, E4eEncoder
from semantic_editing.core.deltaedit.encoder_files import load_encoder, save_encoder
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.reading.pickles import read_snapshot_pickle
from semantic_editing.tests.refusals import refusal

WIDTH = STAGES[-1][0]


def norm_names(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def published_shapes(rows):
    """Names and shapes under "encoder." in e4e's file for ``rows`` rows of W+, counters of batches left out."""
    found = {"input_layer.0.weight": (64, 3, 3, 3), **norm_names("input_layer.1", 64), "input_layer.2.weight": (64,)}
    widths = [64] * 3 + [128] * 4 + [256] * 14 + [512] * 3
    for number, (before, width) in enumerate(zip([64, *widths], widths, strict=False)):
        unit, layer = f"body.{number}", f"body.{number}.res_layer"
        if before != width:
            found[f"{unit}.shortcut_layer.0.weight"] = (width, before, 1, 1)
            found |= norm_names(f"{unit}.shortcut_layer.1", width)
        found |= norm_names(f"{layer}.0", before) | norm_names(f"{layer}.4", width)
        found |= {f"{layer}.1.weight": (width, before, 3, 3), f"{layer}.2.weight": (width,)}
        found |= {f"{layer}.3.weight": (width, width, 3, 3)}
        found |= {f"{layer}.5.fc{i}.weight": s for i, s in ((1, (width // 16, width)), (2, (width, width // 16)))}
    found = {name: (*shape, 1, 1) if ".fc" in name else shape for name, shape in found.items()}
    for row in range(rows):
        side = 16 if row < 3 else 32 if row < 7 else 64  # of the features: a 256 pixel picture halved 4, 3 and 2 times
        for level in range(int(math.log2(side))):  # a LeakyReLU stands between two convolutions
            found[f"styles.{row}.convs.{2 * level}.weight"] = (512, 512, 3, 3)
            found[f"styles.{row}.convs.{2 * level}.bias"] = (512,)
        found |= {f"styles.{row}.linear.weight": (512, 512), f"styles.{row}.linear.bias": (512,)}
    for name, width in (("latlayer1", 256), ("latlayer2", 128)):
        found |= {f"{name}.weight": (512, width, 1, 1), f"{name}.bias": (512,)}
    return found


@pytest.mark.parametrize("rows", [14, 18])
def test_names_and_shapes_are_the_published_ones(rows):
    with torch.device("meta"):
        state = E4eEncoder(rows).state_dict()
    assert tuple(state.pop("latent_avg").shape) == (rows, 512)
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if "num_batches" not in name}
    assert found == published_shapes(rows)
    if rows == 18:
        assert {f"body.{number}.shortcut_layer.0.weight" for number in (3, 7, 21)} <= set(found)
        assert max(int(name.split(".")[1]) for name in found if name.startswith("body.")) == 23


def random_encoder(rows=9, seed=0, **options):
    """Nine rows: two of them read the finest features."""
    generator = torch.Generator().manual_seed(seed)
    encoder = E4eEncoder(rows, WIDTH, SIDE, STAGES, **options).eval().requires_grad_(False)
    for name, tensor in encoder.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                values = values.abs() + 0.5
            elif tensor.ndim > 1 and name != "latent_avg" and "linear" not in name:
                values *= (2 / values[0].numel()) ** 0.5
            tensor.copy_(values)
    return encoder


def written_out(weights, x, rows, differences):
    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return functional.conv2d(x, weight, weights.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(x, name):
        scale = weights[f"{name}.weight"] / (weights[f"{name}.running_var"] + 1e-5).sqrt()
        shift = weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def prelu(x, name):
        return torch.where(x > 0, x, weights[f"{name}.weight"][:, None, None] * x)

    x, kept = prelu(norm(conv(x, "input_layer.0"), "input_layer.1"), "input_layer.2"), []
    for number in range(len(STAGES)):  # one unit a stage, each halves
        unit = f"body.{number}"
        y = conv(norm(x, f"{unit}.res_layer.0"), f"{unit}.res_layer.1")
        y = norm(conv(prelu(y, f"{unit}.res_layer.2"), f"{unit}.res_layer.3", 2), f"{unit}.res_layer.4")
        gate = conv(conv(y.mean((2, 3), True), f"{unit}.res_layer.5.fc1").clamp_min(0), f"{unit}.res_layer.5.fc2")
        beside = x[:, :, ::2, ::2]
        if f"{unit}.shortcut_layer.0.weight" in weights:
            beside = norm(conv(beside, f"{unit}.shortcut_layer.0"), f"{unit}.shortcut_layer.1")
        x = y / (1 + (-gate).exp()) + beside
        kept.append(x)
    _, fine, middle, deep = kept

    def enlarged(x):
        """Twice the size, linearly, corner pixels on corner pixels: as a matrix from each side."""
        before, after = x.shape[-1], 2 * x.shape[-1]
        places = torch.arange(after).to(x) * (before - 1) / (after - 1)
        matrix = (1 - (places[:, None] - torch.arange(before)).abs()).clamp_min(0)
        return matrix @ x @ matrix.T

    second = enlarged(deep) + conv(middle, "latlayer1")
    third = enlarged(second) + conv(fine, "latlayer2")
    vectors = []
    for row in range(rows):
        y, level = (deep if row < 3 else second if row < 7 else third), 0
        while y.shape[-1] > 1:
            y = conv(y, f"styles.{row}.convs.{2 * level}", 2)
            y, level = torch.where(y > 0, y, 0.01 * y), level + 1
        vectors.append(
            y[:, :, 0, 0] @ weights[f"styles.{row}.linear.weight"].T / math.sqrt(WIDTH)
            + weights[f"styles.{row}.linear.bias"]
        )
    if differences:
        vectors = [vectors[0]] + [vectors[0] + vector for vector in vectors[1:]]
    return torch.stack(vectors, 1) + weights["latent_avg"]


@pytest.mark.parametrize("differences", [True, False])
def test_it_is_the_network_written_out(differences):
    encoder = random_encoder(differences=differences).double()
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    found = encoder(pictures)
    assert found.shape == (2, 9, WIDTH)
    torch.testing.assert_close(found, written_out(encoder.state_dict(), pictures, 9, differences))
    assert (found[0] - found[1]).abs().max() > 0.01


def published(path, encoder, mean=None, opts=None, prefix="encoder.", drop=()):
    """A file laid out as e4e_ffhq_encode.pt."""
    weights = encoder.state_dict()
    kept = weights.pop("latent_avg")
    state = {f"{prefix}{name}": tensor for name, tensor in weights.items() if name not in drop}
    state |= {"decoder.input.input": torch.ones(1, 8, 4, 4)}
    opts = {"encoder_type": "Encoder4Editing", "stylegan_size": 32, "ids": [1, 2], "w": None} if opts is None else opts
    table = {"state_dict": state, "latent_avg": kept if mean is None else mean, "opts": opts, "step": 7}
    torch.save({key: value for key, value in table.items() if value is not False}, path)
    return path


def load(path, rows=9, width=WIDTH):
    return load_encoder(path, rows, width, stages=STAGES, side=SIDE)


PICTURES = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_a_published_file_loads(tmp_path):
    encoder = random_encoder()
    loaded = load(published(tmp_path / "e4e.pt", encoder))
    assert torch.equal(loaded(PICTURES), encoder(PICTURES))
    assert not loaded.training and not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    opts = argparse.Namespace(encoder_type="Encoder4Editing", device="cuda:0")
    assert torch.equal(load(published(tmp_path / "n.pt", encoder, opts=opts))(PICTURES), encoder(PICTURES))
    one = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    encoder.latent_avg.copy_(one)
    assert torch.equal(load(published(tmp_path / "m.pt", encoder, mean=one))(PICTURES), encoder(PICTURES))


def test_a_file_of_psp_loads_as_what_it_is(tmp_path):
    encoder = random_encoder(differences=False)
    loaded = load(published(tmp_path / "psp.pt", encoder, opts={"encoder_type": "GradualStyleEncoder"}))
    assert torch.equal(loaded(PICTURES), encoder(PICTURES)) and not loaded.differences


def test_only_the_encoder_is_read(tmp_path):
    path = published(tmp_path / "e4e.pt", random_encoder())
    parts = ("state_dict", "latent_avg", "opts")
    read = read_snapshot_pickle(path, "style encoder", parts)
    assert "state_dict.decoder.input.input" in read.tensors
    assert read.facts == {"opts.encoder_type": "Encoder4Editing", "opts.stylegan_size": 32}
    assert list(read_snapshot_pickle(path, "style encoder", parts, lambda name: name == "latent_avg").tensors) == [
        "latent_avg"
    ]
    with pytest.raises(EditingError, match="holds no weights of a style encoder"):
        read_snapshot_pickle(path, "style encoder", parts, lambda name: False)


@pytest.mark.parametrize("half", [False, True])
def test_files_of_this_pack(tmp_path, half):
    compact = CompactEncoder(4, 8, 16, (8, 16), 12).eval()
    compact.mean.copy_(torch.arange(8.0))
    small = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    for name, encoder, pictures in (
        ("c", compact, small),
        ("e", random_encoder(), PICTURES),
        ("p", random_encoder(differences=False), PICTURES),
    ):
        path = save_encoder(tmp_path / f"{name}.safetensors", encoder, half=half)
        loaded = load_encoder(path, encoder.rows, encoder.style_dim)
        assert type(loaded) is type(encoder) and loaded.shape() == encoder.shape()
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in loaded.state_dict().values())
        with torch.no_grad():
            expected = encoder(pictures)
            # Memory that is laid out otherwise may take another kernel.
            atol = (0.02 if half else 1e-5) * float(expected.std())
            torch.testing.assert_close(loaded(pictures), expected, rtol=0, atol=atol)
            kept = {name: tensor for name, tensor in loaded.state_dict().items() if "num_batches" not in name}
            assert half or all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in kept.items())
        with pytest.raises(EditingError, match="exists already"):
            save_encoder(path, encoder)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("never"),)


def test_unusable_files_are_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder, path = random_encoder(), tmp_path / "a.pt"
    gone = ("latlayer1.bias", "body.2.res_layer.1.weight")
    sentence = refusal(load, published(path, encoder, drop=gone))
    assert all(f"lacks {name}" in sentence for name in gone)
    assert "of shape [3, 2, 2]" in refusal(load, published(path, encoder, mean=torch.ones(3, 2, 2)))
    assert "lacks latent_avg" in refusal(load, published(path, encoder, mean=False))
    assert "no weights" in refusal(load, published(path, encoder, prefix="other."))
    assert "holds a Something" in refusal(load, published(path, encoder, opts={"encoder_type": "Something"}))
    sentence = refusal(load, published(path, encoder), rows=6)
    assert "9 rows" in sentence and "6 rows of 32, for 16 pixels" in sentence
    assert "refused" in refusal(load, published(path, encoder, opts={"x": Evil()})) and not Path("never").exists()
    assert "does not fit" in refusal(load_encoder, published(path, encoder), 9, WIDTH)  # the full size's 24 units
    assert "not found" in refusal(load, tmp_path / "absent.pt")
    path.write_bytes(b"PK\x03\x04 nothing")
    refusal(load, path)
    safe = save_encoder(tmp_path / "a.safetensors", encoder)
    tensors, metadata = load_tensors(safe)
    for shape in ("{}", metadata["shape"].replace('"side": 32', '"side": 48'), metadata["shape"].replace("e4e", "x")):
        refusal(load, save_tensors(safe, tensors, metadata | {"shape": shape}, overwrite=True))
    save_tensors(safe, tensors | {"extra": torch.ones(1)}, metadata, overwrite=True)
    assert "has extra too much" in refusal(load, safe)
    save_tensors(safe, tensors | {"latlayer1.bias": torch.ones(1)}, metadata, overwrite=True)
    assert "latlayer1.bias of shape [1] instead of [32]" in refusal(load, safe)

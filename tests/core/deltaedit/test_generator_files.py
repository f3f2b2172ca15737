"""Generators from every kind of file: the same pictures and identity, and one sentence for what is no StyleGAN2."""

import pickle
import struct

import pytest
import torch

from semantic_editing.benchmarks.nvidia_snapshot import Persistent, generator_tensors, network, write_snapshot
from semantic_editing.core.deltaedit.generator_files import (
    CLOSE,
    FILE_FORMAT,
    identity_of,
    load_generator,
    save_generator,
)
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors

WIDTHS = {4: 6, 8: 5}
STYLE_DIM = 7
OLD = {"_use_new_zipfile_serialization": False}


@pytest.fixture
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = StyleGAN2(8, WIDTHS, STYLE_DIM, 2)
    return generator.eval().requires_grad_(False)


@pytest.fixture
def nvidia():
    return generator_tensors(WIDTHS, STYLE_DIM, 2)


def drawn(generator):
    rows = torch.randn(2, generator.layout.rows, generator.style_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return generator(rows)


def refusal(path):
    with pytest.raises(EditingError) as caught:
        load_generator(path)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and str(path.parent) not in sentence, sentence
    return sentence


def saved(value, path, **options):
    torch.save(value, path, **options)
    return path


# This pack's
# ----------------------------------------------------------------------------------------------------------------


def test_a_generator_comes_back_as_it_was(tiny, tmp_path):
    path = save_generator(tmp_path / "a.safetensors", tiny)
    again = load_generator(path)
    assert torch.equal(drawn(again), drawn(tiny)) and again.layout == tiny.layout
    assert again.identity == tiny.identity == identity_of(tiny) != ""
    assert again.w_mean.isnan().all() and again.clamp is None
    assert not again.training and load_tensors(path)[1]["format"] == FILE_FORMAT
    with pytest.raises(EditingError, match="exists already"):
        save_generator(path, tiny)
    tiny.mean_w(), save_generator(path, tiny, overwrite=True)
    assert torch.equal(load_generator(path).w_mean, tiny.w_mean)


def test_half_precision_halves_the_file_and_keeps_the_identity(tiny, tmp_path):
    full, half = (
        save_generator(tmp_path / f"{precise}.safetensors", tiny, half_precision=not precise)
        for precise in (True, False)
    )
    tensors = load_tensors(half)[0]
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert sum(v.numel() * v.itemsize for v in load_tensors(full)[0].values()) == 2 * sum(
        v.numel() * v.itemsize for v in tensors.values()
    )
    again = load_generator(half)
    assert again.input.input.dtype == torch.float32 and again.identity == tiny.identity
    torch.testing.assert_close(drawn(again), drawn(tiny), rtol=0.02, atol=0.02)
    tiny.conv1.conv.weight[0, 0, 0, 0, 0] = 1e5
    with pytest.raises(EditingError, match=r"conv1\.conv\.weight .* half precision; save it in single precision"):
        save_generator(tmp_path / "large.safetensors", tiny, half_precision=True)


def test_the_identity_is_that_of_the_style_space(tiny):
    before = identity_of(tiny)
    tiny.conv1.conv.weight.add_(1)
    assert identity_of(tiny) == before
    tiny.to_rgb1.conv.modulation.bias.add_(1)
    assert identity_of(tiny) != before


def test_a_description_may_say_more_than_is_needed(tiny, tmp_path):
    path = save_generator(tmp_path / "a.safetensors", tiny)
    tensors, metadata = load_tensors(path)
    metadata["shape"] = metadata["shape"].replace("{", '{"unet": 3, ', 1)
    assert torch.equal(drawn(load_generator(save_tensors(path, tensors, metadata, overwrite=True))), drawn(tiny))


def test_a_limit_is_kept(tmp_path):
    with torch.random.fork_rng():
        generator = StyleGAN2(8, WIDTHS, STYLE_DIM, 1, clamp=0.5).eval()
    again = load_generator(save_generator(tmp_path / "a.safetensors", generator))
    assert again.clamp == 0.5 and torch.equal(drawn(again), drawn(generator))


# The port's
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, OLD], ids=["today", "before torch 1.6"])
@pytest.mark.parametrize("sides", [{4: 3, 8: 2}, {4: 5, 8: 4, 16: 4, 32: 2}])
def test_the_ports_checkpoints(tmp_path, sides, options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other, generator = (StyleGAN2(max(sides), sides, STYLE_DIM, 3).eval() for _ in range(2))
    state, mean = generator.state_dict(), torch.arange(float(STYLE_DIM))
    assert (
        "conv1.noise.weight" in state and "convs.0.conv.blur.kernel" in state and "to_rgbs.0.upsample.kernel" in state
    )
    whole = {"g": other.state_dict(), "g_ema": state, "latent_avg": mean}
    read = load_generator(saved(whole, tmp_path / "whole.pt", **options))
    assert torch.equal(drawn(read), drawn(generator)) and torch.equal(read.w_mean, mean)
    bare = load_generator(saved(state, tmp_path / "bare.pt", **options))
    assert torch.equal(drawn(bare), drawn(generator)) and bare.w_mean.isnan().all()
    plain = load_generator(save_tensors(tmp_path / "plain.safetensors", state, {}))
    assert torch.equal(drawn(plain), drawn(generator))
    assert read.identity == bare.identity == plain.identity == identity_of(generator)
    one_row = load_generator(saved(whole | {"latent_avg": mean[None]}, tmp_path / "row.pt", **options))
    assert torch.equal(one_row.w_mean, mean)


def test_missing_and_wrong_tensors_are_named(tiny, tmp_path):
    state = tiny.state_dict()

    def refused(change, remove=()):
        kept = {key: value for key, value in (state | change).items() if key not in remove}
        return refusal(saved({"g_ema": kept}, tmp_path / "a.pt"))

    assert refused({}, ("convs.1.conv.modulation.bias",)).startswith(
        "a.pt is no whole StyleGAN2 generator: it lacks convs.1.conv.modulation.bias; "
    )
    six = [key for key in state if key.startswith(("to_rgbs.0.conv", "noises"))]
    assert " and 3 more; " in refused({}, six) and len(six) == 6
    for key in ("input.input", "style.1.weight", "conv1.conv.modulation.weight", "convs.0.conv.weight"):
        assert f"lacks {key}" in refused({}, (key,))
    assert "conv1.conv.weight has the shape [1, 6, 6, 1, 1] and not [1, 6, 6, 3, 3]" in refused(
        {"conv1.conv.weight": torch.ones(1, 6, 6, 1, 1)}
    )
    assert "input.input has the shape [6]" in refused({"input.input": torch.ones(6)})
    assert "input.input has the shape [1, 0]" in refused({"input.input": torch.ones(1, 0)})
    assert "holds rgb_extra, which no StyleGAN2 of 8 pixels has" in refused({"rgb_extra": torch.ones(1)})
    assert "style.3.bias" in refused({"style.3.weight": state["style.1.weight"]})
    assert "lacks convs.2.conv.weight" in refused({"convs.999.x": torch.ones(1)})
    assert "to_rgb1.bias holds numbers that are not finite" in refused(
        {"to_rgb1.bias": torch.full((1, 3, 1, 1), torch.nan)}
    )
    assert "mean of W has the shape [8]" in refusal(
        saved({"g_ema": state, "latent_avg": torch.ones(8)}, tmp_path / "b.pt")
    )


def test_another_filter_is_refused(tiny, tmp_path):
    state = tiny.state_dict()
    other = state["convs.0.conv.blur.kernel"].clone()
    rounded = saved(state | {"convs.0.conv.blur.kernel": other * (1 + CLOSE / 10)}, tmp_path / "rounded.pt")
    assert torch.equal(drawn(load_generator(rounded)), drawn(tiny))
    other[0] *= 2
    sentence = refusal(saved(state | {"convs.0.conv.blur.kernel": other}, tmp_path / "a.pt"))
    assert "another kernel than 1, 3, 3, 1 (convs.0.conv.blur.kernel)" in sentence
    sentence = refusal(saved(state | {"convs.0.conv.blur.kernel": torch.zeros(4, 4)}, tmp_path / "a.pt"))
    assert "another kernel" in sentence


def test_what_is_no_generator(tmp_path):
    assert "lacks input.input" in refusal(saved({"conv.weight": torch.ones(1)}, tmp_path / "a.pt"))
    assert "holds no weights" in refusal(saved({"iteration": 3}, tmp_path / "a.pt"))
    assert "a.safetensors is no whole StyleGAN2" in refusal(
        save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {"format": "semantic_editing.region_network"})
    )
    (tmp_path / "b.pkl").write_bytes(b"")
    assert "b.pkl is damaged" in refusal(tmp_path / "b.pkl")
    assert "c.pkl was not found" in refusal(tmp_path / "c.pkl")


@pytest.mark.parametrize(
    "shape",
    [
        '{"size": 8, "other": 1}',
        '{"size": 8, "channels": {"4": 6, "8": -1}, "style_dim": 7, "mapping_layers": 2, "clamp": null}',
        '{"size": 12, "channels": {"4": 6, "8": 5}, "style_dim": 7, "mapping_layers": 2, "clamp": null}',
        '{"size": 4096, "channels": {"4": 6, "8": 5}, "style_dim": 7, "mapping_layers": 2, "clamp": null}',
        '{"size": 8, "channels": {"4": 65536, "8": 65536}, "style_dim": 65536, "mapping_layers": 64, "clamp": null}',
        '{"size": 8, "channels": {"4": 6, "8": 5}, "style_dim": 7, "mapping_layers": 2, "clamp": "x"}', "[",
    ],
)  # fmt: skip
def test_a_damaged_description(tiny, tmp_path, shape):
    path = save_tensors(tmp_path / "a.safetensors", tiny.state_dict(), {"format": FILE_FORMAT, "shape": shape})
    assert refusal(path)


# NVIDIA's
# ----------------------------------------------------------------------------------------------------------------


def snapshot(path, tensors, facts=None, protocol=4, **others):
    return write_snapshot(path, others | {"G_ema": network(tensors, facts)}, protocol)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_snapshot_converts_and_keeps_its_identity(nvidia, tmp_path, protocol):
    other = generator_tensors(WIDTHS, STYLE_DIM, 2, seed=9)
    facts = {"c_dim": 0, "mapping.fc0.activation": "lrelu", "synthesis.b4.conv1.conv_clamp": 256}
    path = snapshot(tmp_path / "a.pkl", nvidia, facts, protocol, G=network(other), augment_pipe=None)
    read = load_generator(path)
    assert read.clamp == 256 and torch.equal(read.w_mean, nvidia["mapping.w_avg"])
    assert torch.equal(read.convs[0].conv.weight[0], nvidia["synthesis.b8.conv0.weight"])
    assert torch.equal(read.noises.noise_2[0, 0], nvidia["synthesis.b8.conv1.noise_const"])
    for half in (False, True):
        again = load_generator(save_generator(tmp_path / "b.safetensors", read, overwrite=True, half_precision=half))
        assert again.identity == read.identity and again.clamp == 256
    alone = load_generator(write_snapshot(tmp_path / "alone.pkl", network(nvidia)))
    assert torch.equal(drawn(alone), drawn(read)) and alone.identity == read.identity and alone.clamp is None


def test_a_plain_pickle_may_hold_the_ports_tables(tiny, tmp_path):
    path = write_snapshot(tmp_path / "a.pkl", {"g_ema": dict(tiny.state_dict())})
    assert torch.equal(drawn(load_generator(path)), drawn(tiny))


def test_another_learning_rate_of_the_mapping_network(nvidia, tmp_path):
    """0.02 where 0.01 is usual: all its weights and biases count double."""
    read = load_generator(snapshot(tmp_path / "a.pkl", nvidia, {"mapping.fc0.bias_gain": 0.02}))
    assert torch.equal(read.style[1].weight, 2 * nvidia["mapping.fc0.weight"])
    assert torch.equal(read.style[2].bias, 2 * nvidia["mapping.fc1.bias"])


def test_a_network_without_noise(nvidia, tmp_path):
    silent = {key: value for key, value in nvidia.items() if ".noise_" not in key}
    read = load_generator(snapshot(tmp_path / "a.pkl", silent))
    assert float(read.conv1.noise.weight.detach()) == 0 and torch.equal(
        read.synthesize(*coded(read)), read.synthesize(*coded(read, 5))
    )
    assert "lacks synthesis.b4.conv1.noise_const" in refusal(
        snapshot(tmp_path / "a.pkl", {key: value for key, value in nvidia.items() if "b4.conv1.noise_const" not in key})
    )


def coded(generator, seed=None):
    return generator.styles(torch.ones(1, generator.layout.rows, STYLE_DIM)), generator.noise(seed)


def test_networks_of_other_kinds(nvidia, tmp_path):
    def refused(change=None, facts=None, remove=()):
        kept = {key: value for key, value in (nvidia | (change or {})).items() if not key.startswith(tuple(remove))}
        return refusal(snapshot(tmp_path / "a.pkl", kept, facts))

    three = {
        "synthesis.input.freqs": torch.ones(3, 2),
        "synthesis.L0_36_512.weight": torch.ones(1),
        "mapping.w_avg": torch.ones(1),
    }
    assert "a.pkl is a StyleGAN3" in refusal(snapshot(tmp_path / "a.pkl", three))
    assert "class labels" in refused({"mapping.embed.weight": torch.ones(7, 3)})
    assert "class labels" in refused(facts={"c_dim": 10})
    assert "of the resnet kind" in refused({"synthesis.b8.skip.weight": torch.ones(5, 6, 1, 1)})
    assert "of the orig kind" in refused(remove=["synthesis.b4.torgb"])
    assert "uses relu where a StyleGAN2 has leaky ReLU" in refused(facts={"synthesis.b8.conv0.activation": "relu"})
    grey = {"synthesis.b8.torgb.weight": torch.ones(1, 5, 1, 1)}
    assert "synthesis.b8.torgb.weight has the shape [5] and not [3, 5]" in refused(grey)
    assert "mapping.fc0.weight has the shape [7, 9]" in refused({"mapping.fc0.weight": torch.ones(7, 9)})
    assert "lacks mapping.fc0.weight" in refused(remove=["mapping"])
    assert "lacks synthesis.b8.conv1.affine.bias" in refused(remove=["synthesis.b8.conv1.affine.bias"])
    assert "another kernel" in refused({"synthesis.b8.resample_filter": torch.ones(4, 4)})
    assert "the shape [12]" in refused({"synthesis.b8.conv0.resample_filter": torch.ones(12)})
    assert "holds synthesis.b8.extra" in refused({"synthesis.b8.extra": torch.ones(1)})
    assert "lacks synthesis.b16.conv1.weight" in refused({"synthesis.b32.conv1.weight": torch.ones(1, 1, 3, 3)})


def test_the_tensorflow_version_is_named(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\n.")
    assert refusal(path).startswith("a.pkl was saved by the TensorFlow version of StyleGAN; convert it with legacy.py")


# Nothing runs, nothing grows
# ----------------------------------------------------------------------------------------------------------------


def test_the_source_in_a_snapshot_is_never_run(nvidia, tmp_path):
    target = tmp_path / "created"
    source = f"open({str(target)!r}, 'w').close()\nclass Generator: ...\n"
    compile(source, "a", "exec")
    path = write_snapshot(tmp_path / "a.pkl", {"G_ema": network(nvidia, source=source)})
    assert source.encode() in path.read_bytes()
    load_generator(path)
    assert not target.exists()


class Payload:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_foreign_names_are_refused_before_anything_runs(nvidia, tmp_path, where):
    target = tmp_path / "created"
    payload = Payload(open, str(target), "w")
    made = network(nvidia)
    value = {"G_ema": made, "hook": payload} if where == "beside" else {"G_ema": made}
    if where == "inside":
        made.state["hook"] = payload
    path = write_snapshot(tmp_path / "a.pkl", value)
    assert "was refused: it asks for 'io.open', which no StyleGAN2 generator needs" in refusal(path)
    assert not target.exists()


def test_bytes_inside_are_no_way_to_more_names(tmp_path):
    """A block is a file of torch.save; one that asks for anything else, blocks of its own included, is refused."""
    target = tmp_path / "created"
    for inner in (pickle.dumps(Payload(open, str(target), "w"), 2), pickle.dumps(torch.ones(3).untyped_storage(), 2)):
        value = {"G_ema": {"x": Payload(torch.storage._load_from_bytes, inner)}}
        assert refusal(write_snapshot(tmp_path / "a.pkl", value))
    assert not target.exists()


def test_claimed_lengths_are_not_allocated(tmp_path):
    for claim in (
        b"\x8e" + struct.pack("<Q", 2**50),
        b"\x8d" + struct.pack("<Q", 2**50),
        b"\x95" + struct.pack("<Q", 2**60),
    ):
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + claim + b"abc.")
        assert "a.pkl is damaged" in refusal(tmp_path / "a.pkl")


def test_one_block_asked_for_again_and_again_is_read_once(nvidia, tmp_path, monkeypatch):
    from semantic_editing.core.reading import pickles

    seen = []
    original = pickles._Old.__init__
    monkeypatch.setattr(pickles._Old, "__init__", lambda self, *args: (seen.append(1), original(self, *args))[1])
    bytes_ = bytes(torch.ones(3).untyped_storage().__reduce__()[1][0])
    value = {"G_ema": {str(number): Payload(torch.storage._load_from_bytes, bytes_) for number in range(50)}}
    refusal(write_snapshot(tmp_path / "a.pkl", value))
    assert len(seen) == 1


def test_networks_inside_themselves_end(tmp_path):
    made = Persistent("Generator", {"_parameters": {}, "_modules": {}})
    for _ in range(40):
        made = Persistent("Generator", {"_parameters": {}, "_modules": {"a": made, "b": made}})
    assert "repeats its networks without end" in refusal(write_snapshot(tmp_path / "a.pkl", {"G_ema": made}))
    made = Persistent("Generator", {"_parameters": {}, "_modules": {}})
    for _ in range(60):
        made = Persistent("Generator", {"_parameters": {}, "_modules": {"a" * 250: made}})
    assert refusal(write_snapshot(tmp_path / "a.pkl", {"G_ema": made}))

"""The generator's nodes under the stand-in host: what they read, draw and refuse."""

from types import SimpleNamespace

import pytest
import torch

from semantic_editing.tools import host_stand_in

PACK = host_stand_in.load_pack()
NODES = host_stand_in.module("nodes.deltaedit.generator")
BUNDLED = host_stand_in.module("nodes.common.bundled")
FILES = host_stand_in.module("core.deltaedit.generator_files")
StyleGAN2 = host_stand_in.module("core.deltaedit.stylegan2").StyleGAN2
EditingError = host_stand_in.module("core.errors").EditingError


def managed(network):
    return SimpleNamespace(network=network, loaded=lambda: network, device=torch.device("cpu"))


@pytest.fixture
def shown(monkeypatch):
    """What the progress bar is told; the host's own is not there."""
    seen = []
    monkeypatch.setattr(NODES.StoppableBar, "show", lambda self, done, total: seen.append((done, total)))
    return seen


@pytest.fixture
def stylegan2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StyleGAN2(8, {4: 6, 8: 5}, 7, 2).eval().requires_grad_(False)
    network.identity = FILES.identity_of(network)
    return managed(network)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    for module in (NODES, host_stand_in.module("nodes.common.reports")):
        monkeypatch.setattr(module, "resolve_file", lambda kind, name: tmp_path / name)
    monkeypatch.setattr(NODES, "output_path", lambda kind, name: tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(NODES.Managed, "make", staticmethod(lambda make: managed(make())))
    return tmp_path


def generate(stylegan2, seed=3, count=2, truncation=0.7):
    return NODES.StyleGAN2Generate.execute(stylegan2, seed, count, truncation).args


def decode(stylegan2, code, noise_seed=-1):
    return NODES.DecodeStyleCode.execute(stylegan2, code, noise_seed).args[0]


def mix(first, second, amount=0.5, steps=1, coarse=1.0, medium=1.0, fine=1.0, colour_layers=True):
    return NODES.StyleCodeMix.execute(first, second, amount, steps, coarse, medium, fine, colour_layers).args[0]


def test_generating_and_decoding(stylegan2, shown):
    images, code = generate(stylegan2)
    assert images.shape == (2, 8, 8, 3) and 0 <= images.min() < images.max() <= 1
    assert len(code) == 2 and code.w_plus.shape == (2, 4, 7)
    expected = stylegan2.network.synthesize(code).add(1).div(2).clamp(0, 1).movedim(1, -1)
    assert torch.equal(images, expected) and torch.equal(decode(stylegan2, code), images)
    assert torch.equal(generate(stylegan2)[0], images) and not torch.equal(generate(stylegan2, seed=4)[0], images)
    stylegan2.network.conv1.noise.weight.fill_(0.5)
    assert torch.equal(decode(stylegan2, code, 5), decode(stylegan2, code, 5))
    assert not torch.equal(decode(stylegan2, code, 5), decode(stylegan2, code))


def test_the_mean_picture(stylegan2, shown):
    images, _ = generate(stylegan2, truncation=0.0)
    torch.testing.assert_close(images[0], images[1])


def test_many_pictures_are_drawn_a_few_at_a_time(stylegan2, shown, monkeypatch):
    _, code = generate(stylegan2, count=7)
    whole = decode(stylegan2, code)
    shown.clear()
    sizes, draw = [], stylegan2.network.synthesize
    monkeypatch.setattr(NODES, "PIXELS", 3 * 64)
    stylegan2.network.synthesize = lambda code, noise: (sizes.append(len(code)), draw(code, noise))[1]
    torch.testing.assert_close(decode(stylegan2, code), whole, rtol=0, atol=1e-5)
    assert sizes == [3, 3, 1] and shown == [(0, 7), (3, 7), (6, 7), (7, 7)]
    monkeypatch.setattr(NODES, "PIXELS", 1)
    sizes.clear()
    decode(stylegan2, code)
    assert sizes == [1] * 7


def test_cancel_ends_it_between_pictures(stylegan2, shown, monkeypatch):
    _, code = generate(stylegan2, count=3)
    monkeypatch.setattr(NODES, "PIXELS", 64)

    def pressed(self, done, total):
        if done == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(NODES.StoppableBar, "show", pressed)
    with pytest.raises(KeyboardInterrupt):
        decode(stylegan2, code)


def test_mixing(stylegan2, shown):
    _, codes = generate(stylegan2)
    first, second = codes.select(slice(1)), codes.select(slice(1, 2))
    assert torch.equal(mix(first, second, 0.0).convs, first.convs)
    assert torch.equal(mix(first, second, 1.0).convs, second.convs)
    way = mix(first, second, 1.0, steps=4)
    images = decode(stylegan2, way)
    torch.testing.assert_close(images[[0, 3]], decode(stylegan2, codes), rtol=0, atol=1e-5)
    assert torch.equal(mix(first, second, 1.0, coarse=0.0).convs, first.convs), "8 pixels are all coarse"
    assert torch.equal(mix(first, second, 1.0, colour_layers=False).rgbs, first.rgbs)
    other = StyleGAN2(8, {4: 6, 8: 5}, 7, 1).requires_grad_(False)
    other.identity = "other"
    foreign = other.styles(torch.zeros(1, 4, 7))
    with pytest.raises(EditingError, match="come from different generators"):
        mix(first, foreign)
    with pytest.raises(EditingError, match="made by another generator"):
        decode(stylegan2, foreign)


def test_loading_and_saving(stylegan2, folder, shown, monkeypatch):
    stylegan2.network.mean_w()
    FILES.save_generator(folder / "a.safetensors", stylegan2.network)
    loaded, report = NODES.StyleGAN2Loader.execute("a.safetensors").args
    assert report == (
        "It is ready and draws pictures of 8 x 8 pixels.\n"
        "a.safetensors: 8 x 8 pixels, W of 7, a style space of 17 channels (coarse, medium, fine: 17, 0, 0) and 11 of "
        "colour layers"
    )  # 6, 6 and 5; 6 and 5
    assert torch.equal(generate(loaded)[0], generate(stylegan2)[0])
    loaded.network.w_mean.fill_(torch.nan)
    assert NODES.SaveStyleGAN2.execute(loaded, "b", False, True).args == ("b.safetensors",)
    again, report = NODES.StyleGAN2Loader.execute("b.safetensors").args
    assert "the mean of W is not in the file" in report and again.network.identity == stylegan2.network.identity
    with pytest.raises(EditingError, match=r"b\.safetensors exists already"):
        NODES.SaveStyleGAN2.execute(loaded, "b", False, False)
    NODES.SaveStyleGAN2.execute(loaded, "b", True, False)
    fresh = NODES.StyleGAN2Loader.fingerprint_inputs("b.safetensors")
    assert fresh != NODES.StyleGAN2Loader.fingerprint_inputs("a.safetensors")
    torch.save({"x": torch.ones(1)}, folder / "c.pt")
    with pytest.raises(EditingError, match=r"c\.pt is no whole StyleGAN2 generator"):
        NODES.StyleGAN2Loader.execute("c.pt")
    limited = StyleGAN2(8, {4: 6, 8: 5}, 7, 1, clamp=256.0)
    FILES.save_generator(folder / "d.safetensors", limited)
    assert "held within 256" in NODES.StyleGAN2Loader.execute("d.safetensors").args[1]


def test_a_generator_that_the_disk_refuses_is_rescued_and_what_cannot_be_stored_is_refused(
    stylegan2, folder, shown, monkeypatch
):
    saving, save = host_stand_in.module("nodes.common.saving"), NODES.save_generator
    room = ["output"]

    def full(path, *args, **kwargs):
        if path.parent.name not in room:
            raise EditingError(f"{path.name} could not be written (No space left on device); free some.")
        return save(path, *args, **kwargs)

    monkeypatch.setattr(NODES, "save_generator", full)
    monkeypatch.setattr(saving, "rescue_folders", lambda: [("the output folder", folder / "output")])
    result = NODES.SaveStyleGAN2.execute(stylegan2, "a", False, False)
    assert result.args == ("",) and "kept as a.safetensors in the output folder" in str(result.ui)
    kept = FILES.load_generator(folder / "output" / "a.safetensors")
    assert kept.identity == stylegan2.network.identity
    room.clear()
    with pytest.raises(EditingError, match=r"^a\.safetensors could not be written \(No space"):
        NODES.SaveStyleGAN2.execute(stylegan2, "a", False, False)
    monkeypatch.setattr(NODES, "save_generator", save)
    stylegan2.network.conv1.conv.weight.fill_(1e6)
    with pytest.raises(EditingError, match="save it in single precision"):
        NODES.SaveStyleGAN2.execute(stylegan2, "b", False, True)
    (folder / "c.safetensors").write_bytes(b"precious")
    with pytest.raises(EditingError, match="exists already"):
        NODES.SaveStyleGAN2.execute(stylegan2, "c", False, False)
    assert not list(folder.rglob("[bc]_*")) and not list((folder / "output").glob("[bc]*")), "refused, not rescued"


def test_a_bundled_generator_comes_first(stylegan2, folder, monkeypatch):
    path = FILES.save_generator(folder / "demo file.safetensors", stylegan2.network)
    monkeypatch.setattr(BUNDLED, "_ENTRIES", {})
    (slot,) = NODES.StyleGAN2Loader.define_schema().inputs
    assert slot.options["options"] == [] and slot.options["default"] is None
    BUNDLED.bundle("stylegan2", {"demo": path})
    (slot,) = NODES.StyleGAN2Loader.define_schema().inputs
    assert slot.options["options"] == ["demo"] and slot.options["default"] == "demo"
    assert "\ndemo: 8 x 8 pixels" in NODES.StyleGAN2Loader.execute("demo").args[1]
    assert NODES.StyleGAN2Loader.fingerprint_inputs("demo") == "demo"
    path.unlink()
    with pytest.raises(EditingError, match=r"demo file\.safetensors is missing; install the pack again"):
        NODES.StyleGAN2Loader.execute("demo")

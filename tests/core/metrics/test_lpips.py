"""LPIPS over local weights against the formula written out, and against torchmetrics' own; files that do not fit."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import save_tensors
from semantic_editing.core.metrics.lpips import NETWORKS, load_lpips

torchmetrics = pytest.importorskip("torchmetrics")
#: Numbers of torchvision's layers after which LPIPS looks.
LOOKS = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12), "vgg": (3, 8, 15, 22, 29)}


def torchvision_models():
    try:
        import torchvision
    except (ImportError, RuntimeError):  # the second from a build for another torch
        pytest.skip("no needs torchvision")
    return torchvision.models


def features(network, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(torchvision_models(), NETWORKS[network])(weights=None).features.eval()


@pytest.fixture(scope="module", params=list(NETWORKS))
def loaded(request, tmp_path_factory):
    """``(name, LPIPS read from a file, the layers whose weights are in it)``."""
    layers = features(request.param)
    path = tmp_path_factory.mktemp("lpips") / f"{request.param}.pth"
    torch.save({f"features.{name}": tensor for name, tensor in layers.state_dict().items()}, path)
    return request.param, load_lpips(path, request.param), layers


def images(rows=2, height=40, width=52, seed=0):
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(seed))


def layer_maps(network, layers, image, other):
    """Zhang et al., Eq. 1 before the mean: one map a layer for one pair, ``[h_l, w_l]``."""
    learned = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{network}.pth"
    learned = torch.load(learned, map_location="cpu", weights_only=True)
    shift, scale = (torch.tensor(v).reshape(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    x, y = ((2 * picture - 1 - shift) / scale for picture in (image, other))
    maps = []
    with torch.no_grad():
        for number, layer in enumerate(layers[: LOOKS[network][-1] + 1]):
            x, y = layer(x[None])[0], layer(y[None])[0]
            if number in LOOKS[network]:
                weights = learned[f"lin{len(maps)}.model.1.weight"].reshape(-1, 1, 1)
                units = [v / (v.square().sum(0, keepdim=True) + 1e-8).sqrt() for v in (x, y)]
                maps.append((weights * (units[0] - units[1]).square()).sum(0))
    assert len(maps) == len(LOOKS[network])
    return maps


def test_it_is_the_formula_written_out(loaded):
    network, lpips, layers = loaded
    x, y = images(), images(seed=1)
    got = lpips(x, y)
    assert got.shape == (2,) and got.dtype == torch.float64
    for row in range(2):
        expected = sum(float(found.mean()) for found in layer_maps(network, layers, x[row], y[row]))
        assert float(got[row]) == pytest.approx(expected, rel=1e-4) and expected > 1e-3
    assert lpips(x, x).tolist() == [0.0, 0.0]


def test_a_mask_averages_the_map(loaded):
    network, lpips, layers = loaded
    x, y = images(), images(seed=1)
    mask = torch.zeros(1, 1, 40, 52)
    mask[..., 4:20, 30:50] = 0.5
    mask[..., 10:12, 31:40] = 1.0
    for row, got in enumerate(lpips(x, y, mask)):
        spatial = sum(
            functional.interpolate(found[None, None], size=(40, 52), mode="bilinear")
            for found in layer_maps(network, layers, x[row], y[row])
        )
        assert float(got) == pytest.approx(float((spatial * mask).sum() / mask.sum()), rel=1e-4)
    changed = torch.where(torch.arange(52) < 26, x, y)  # the right half
    left, right = (torch.zeros(2, 1, 40, 52) for _ in range(2))
    left[..., :8], right[..., -8:] = 1, 1
    assert (lpips(changed, x, right) > 2 * lpips(changed, x, left)).all()
    torch.testing.assert_close(lpips(x, y), lpips(x, y))  # a mask leaves nothing behind


def test_it_is_torchmetrics_own_with_the_same_weights(loaded):
    network, lpips, layers = loaded
    import torchmetrics.functional.image.lpips as package

    own = package._NoTrainLpips(pretrained=True, net=network, pnet_rand=True)
    own.net.load_state_dict(dict(zip(own.net.state_dict(), layers.state_dict().values(), strict=True)))  # same order
    x, y = images(), images(seed=1)
    expected = own(x, y, normalize=True).flatten()
    torch.testing.assert_close(lpips(x, y), expected.double(), rtol=1e-5, atol=1e-7)


def test_dtypes_batches_and_both_kinds_of_files_agree(tmp_path):
    layers = features("squeeze")
    weights = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_tensors(tmp_path / "new.safetensors", weights | {"classifier.1.bias": torch.zeros(1000)}, {})
    old, new = (load_lpips(tmp_path / name, "squeeze") for name in ("old.pth", "new.safetensors"))
    x, y = images(3), images(3, seed=1)
    together = old(x, y)
    torch.testing.assert_close(new(x, y), together, rtol=0, atol=0)
    for row in range(3):
        torch.testing.assert_close(old(x[row : row + 1], y[row : row + 1]), together[row : row + 1], rtol=1e-5, atol=0)
    x, y = x.half(), y.half()
    torch.testing.assert_close(old(x, y), old(x.double(), y.double()), rtol=1e-6, atol=0)
    assert not any(parameter.requires_grad for parameter in old.parameters())


def test_what_it_cannot_use_is_named(tmp_path, loaded):
    network, lpips, _ = loaded
    x = images()
    for arguments, message in [
        ((x, images(width=53)), "shapes"),
        ((x[..., :31], x[..., :31]), "at least 32"),
        ((x[:, :1], x[:, :1]), "batch, 3"),
        ((x, x * float("nan")), "not a number"),
        ((x, x, torch.zeros(1, 1, 40, 52)), "mask is empty"),
    ]:
        with pytest.raises(EditingError, match=message):
            lpips(*arguments)
    other = next(name for name in NETWORKS if name != network)
    weights = {f"features.{name}": tensor for name, tensor in features(other).state_dict().items()}
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(EditingError, match=rf"other\.pth does not hold .* torchvision's {NETWORKS[network]}"):
        load_lpips(tmp_path / "other.pth", network)


def test_files_and_packages_that_are_not_there_are_named(tmp_path, monkeypatch):
    with pytest.raises(EditingError, match="use one of alex, squeeze, vgg"):
        load_lpips(tmp_path / "none.pth", "resnet")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(EditingError, match="needs torchvision"):
        load_lpips(tmp_path / "none.pth")
    for module in ("torchmetrics", "torchmetrics.functional.image.lpips"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EditingError, match="pip install torchmetrics"):
        load_lpips(tmp_path / "none.pth")


def test_a_missing_file_is_named(tmp_path):
    torchvision_models()
    with pytest.raises(EditingError, match=r"none\.pth was not found"):
        load_lpips(tmp_path / "none.pth")

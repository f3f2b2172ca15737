"""Identity on random weights: the cut and sizes by hand, sameness, and files that do not fit."""

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import save_tensors
from semantic_editing.core.metrics.identity import identity_similarity, load_identity
from semantic_editing.tests.core.models.test_arcface import random_weights


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("arcface") / "model_ir_se50.pth"
    torch.save(random_weights(), path, _use_new_zipfile_serialization=False)  # as old as the published file
    return load_identity(path)


def portraits(side, rows=2, seed=0):
    """Smooth pictures, so that a size more or less shows the same."""
    coarse = torch.rand(rows, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


def block_means(picture, side):
    """``[3, H, W]`` averaged to ``side``, whole blocks."""
    factor = picture.shape[-1] // side
    return picture.reshape(3, side, factor, side, factor).mean((2, 4))


def test_the_same_picture_is_the_same_person(network):
    x, y = portraits(256), portraits(256, seed=1)
    same, other = identity_similarity(network, x, x), identity_similarity(network, x, y)
    assert same.shape == (2,) and same.dtype == torch.float64
    torch.testing.assert_close(same, torch.ones(2).double())
    assert (other < 0.999).all() and (other >= -1).all()
    torch.testing.assert_close(identity_similarity(network, y, x), other)


def test_the_face_is_cut_from_256_pixels(network):
    x, y = portraits(512), portraits(512, seed=1)
    seen = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        identity_similarity(network, x, y)
    finally:
        handle.remove()
    spans = [(i * 188 // 112, -(-(i + 1) * 188 // 112)) for i in range(112)]
    for pictures, got in zip((x, y), seen, strict=True):
        for row in range(2):
            face = block_means(pictures[row], 256)[:, 35:223, 32:220]
            lines = torch.stack([face[:, top:bottom].mean(1) for top, bottom in spans], 1)
            expected = torch.stack([lines[..., left:right].mean(2) for left, right in spans], 2)
            torch.testing.assert_close(got[row], expected * 2 - 1, rtol=0, atol=1e-5)
    outside = x.clone()
    outside[..., :60], outside[..., 460:, :] = 0, 1  # left of column 32 and below row 223 of 256
    torch.testing.assert_close(identity_similarity(network, outside, x), torch.ones(2).double())


@pytest.mark.parametrize("side", [128, 300])
def test_other_sizes_and_dtypes_are_brought_to_it(network, side):
    x, y = portraits(side, rows=1), portraits(side, rows=1, seed=1)
    plain = identity_similarity(network, x, y)
    torch.testing.assert_close(identity_similarity(network, x.double(), y.double()), plain, rtol=0, atol=1e-3)
    way = "area" if side > 256 else "bilinear"
    x, y = (functional.interpolate(pictures, size=(256, 256), mode=way) for pictures in (x, y))
    # Random weights enlarge rounding a thousandfold, and this cosine is far from 1.
    torch.testing.assert_close(identity_similarity(network, x, y), plain, rtol=0, atol=1e-3)


def test_bad_pictures_are_refused(network):
    x = portraits(64)
    for arguments, message in [
        ((x, portraits(65)), "shapes"),
        ((x[..., :60], x[..., :60]), "square portraits"),
        ((x[:, :1], x[:, :1]), "square portraits"),
        ((x, x * float("nan")), "not a number"),
    ]:
        with pytest.raises(EditingError, match=message):
            identity_similarity(network, *arguments)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(EditingError, match=r"none\.pth was not found"):
        load_identity(tmp_path / "none.pth")
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(EditingError, match=r"other\.safetensors cannot be used: .*IR-SE50"):
        load_identity(tmp_path / "other.safetensors")

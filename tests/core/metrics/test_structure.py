"""Structure distance against loops over the keys, on the demo model's own tower and on a ViT written out by hand."""

import math

import pytest
import torch

from semantic_editing.core.demo.builders import demo_vision_features
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.structure import self_similarity, structure_distance


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


@pytest.fixture(scope="module")
def vision(demo):
    return demo_vision_features(demo)


def test_self_similarity_is_the_cosine_of_every_pair():
    keys = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = self_similarity(keys)
    for row in range(2):
        for i in range(5):
            for j in range(5):
                a, b = keys[row, i].tolist(), keys[row, j].tolist()
                dot = sum(p * q for p, q in zip(a, b, strict=True))
                expected = dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
                assert float(found[row, i, j]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_it_is_the_mean_square_over_all_pairs_of_tokens(vision, demo, dtype):
    x, y = demo.images[:3].to(dtype), demo.images[3:6].to(dtype)
    got = structure_distance(vision, x, y)
    assert got.shape == (3,) and got.dtype == torch.float64
    for row in range(3):
        first, second = (vision.keys(pictures[row : row + 1])[0].double() for pictures in (x, y))
        assert len(first) == 65  # the class token and 8 x 8 patches
        total = 0.0
        for i in range(65):
            for j in range(65):
                cosines = [float(k[i] @ k[j] / (k[i].norm() * k[j].norm())) for k in (first, second)]
                total += (cosines[0] - cosines[1]) ** 2
        assert float(got[row]) == pytest.approx(total / 65**2, rel=1e-4)


def test_equal_pictures_are_at_zero_and_colour_moves_less_than_shape(vision, demo):
    x = demo.images[:8]
    assert structure_distance(vision, x, x).tolist() == [0.0] * 8
    recoloured = (x * torch.tensor([1.0, 0.85, 0.7]).reshape(3, 1, 1)).clamp(0, 1)
    turned = x.roll(24, 3)
    assert structure_distance(vision, recoloured, x).mean() < 0.5 * structure_distance(vision, turned, x).mean()


def test_a_flat_picture_has_a_structure_too(vision, demo):
    flat = torch.full_like(demo.images[:1], 0.5)
    assert float(structure_distance(vision, flat, demo.images[:1])) > 0


def test_bad_pictures_are_refused(vision, demo):
    x = demo.images[:1]
    for arguments, message in [
        ((x, demo.images[:2]), "shapes"),
        ((x, x * float("nan")), "not a number"),
        ((x[..., :3], x[..., :3]), "smaller than a patch"),
        ((x[:, :1], x[:, :1]), "batch, 3"),
    ]:
        with pytest.raises(EditingError, match=message):
            structure_distance(vision, *arguments)

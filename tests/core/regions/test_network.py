"""ROIAlign against loops (and torchvision where it is installed), the network's shape, its choices and its file."""

import math

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.regions.network import (
    RegionNetwork,
    gumbel_straight_through,
    region_features,
    roi_align,
)
from semantic_editing.core.regions.proposals import Box
from semantic_editing.tests.core.regions.tiny_regions import SIZES, tiny_features, tiny_network, tiny_proposals

BOXES = [Box(0, 0, 40, 24), Box(3, 5, 11, 7), Box(31, 2, 9, 22), Box(0, 20, 2, 4), Box(17, 11, 1, 1)]


def bilinear(plane, y, x):
    """Value of ``plane [h][w]`` at cell coordinates, held at the border."""
    height, width = len(plane), len(plane[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    return (plane[top][left] * (1 - fx) + plane[top][right] * fx) * (1 - fy) + (
        plane[bottom][left] * (1 - fx) + plane[bottom][right] * fx
    ) * fy


@pytest.mark.parametrize(("bins", "samples"), [(3, 2), (2, 1), (7, 2)])
def test_roi_align_is_the_loop_over_bins_and_samples(bins, samples):
    features = tiny_features()[:2].double()
    got = roi_align(features, BOXES, (24, 40), bins, samples)
    assert got.shape == (5, 2, bins, bins)
    for number, box in enumerate(BOXES):
        for channel in range(2):
            plane = features[channel].tolist()
            for i in range(bins):
                for j in range(bins):
                    values = []
                    for a in range(samples):
                        for b in range(samples):
                            y_pixel = box.y + box.height * (i + (a + 0.5) / samples) / bins
                            x_pixel = box.x + box.width * (j + (b + 0.5) / samples) / bins
                            values.append(bilinear(plane, y_pixel * 6 / 24 - 0.5, x_pixel * 10 / 40 - 0.5))
                    assert float(got[number, channel, i, j]) == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_roi_align_equals_torchvisions():
    operators = pytest.importorskip("torchvision.ops")
    features = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[0.0, b.x, b.y, b.x + b.width, b.y + b.height] for b in BOXES])
    expected = operators.roi_align(features[None], corners, 7, spatial_scale=0.25, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(roi_align(features, BOXES, (24, 40)), expected, rtol=1e-5, atol=1e-5)


def test_features_of_a_ramp_tell_where_the_box_is():
    """Issue 2 of the released code: every region read the same corner. A ramp's mean over a box is its value at the
    centre."""
    ramp = (torch.arange(20) + 0.5).expand(12, 20)[None]  # value at image pixel x of 40 is x / 2
    boxes = [Box(4, 2, 8, 8), Box(20, 10, 12, 6)]
    means = roi_align(ramp, boxes, (24, 40)).mean((1, 2, 3))
    torch.testing.assert_close(means, torch.tensor([4.0, 13.0]))


def test_a_grid_of_one_patch_is_read_everywhere():
    assert torch.equal(roi_align(torch.full((1, 1, 1), 3.0), BOXES, (24, 40)), torch.full((5, 1, 7, 7), 3.0))


def test_region_features_sit_in_their_slots_and_empty_ones_are_zero():
    proposals = tiny_proposals(anchors=4)
    features = tiny_features()
    got = region_features(features, proposals, bins=3)
    scale = features.square().mean().sqrt()
    for anchor in range(4):
        for slot in range(len(SIZES)):
            if proposals.valid[anchor, slot]:
                expected = roi_align(features / scale, [proposals.box(anchor, slot)], (24, 40), 3)[0]
                torch.testing.assert_close(got[anchor, slot], expected)
            else:
                assert not got[anchor, slot].any()
    torch.testing.assert_close(region_features(features * 50, proposals, bins=3), got)


def test_permuting_anchors_permutes_logits_and_gradients_reach_every_parameter():
    """Issue 3 of the released code mixed the anchors, issue 1 left every gradient None."""
    network = tiny_network()
    regions = torch.randn(4, 4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(4, 4, dtype=torch.bool)
    order = torch.tensor([2, 0, 3, 1])
    logits = network(regions, valid)
    torch.testing.assert_close(network(regions[order], valid), logits[order])
    (logits.softmax(1) * torch.rand(4, 4)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_empty_slots_are_never_chosen():
    valid = torch.tensor([[True, False, True, False]])
    logits = tiny_network()(torch.randn(1, 4, 5, 3, 3), valid)
    assert torch.isinf(logits).tolist() == [[False, True, False, True]]
    generator = torch.Generator().manual_seed(0)
    draws = {int(gumbel_straight_through(logits, generator).argmax(1)) for _ in range(60)}
    assert draws == {0, 2}


def test_gumbel_draws_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]])
    generator = torch.Generator().manual_seed(3)
    chosen = gumbel_straight_through(logits.expand(40000, 4), generator).argmax(1)
    shares = torch.bincount(chosen, minlength=4) / 40000
    assert (shares - logits.softmax(1)[0]).abs().max() < 4 * math.sqrt(0.25 / 40000)  # four standard deviations


def test_straight_through_is_one_hot_forward_and_softmax_backward():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    hard = gumbel_straight_through(logits, torch.Generator().manual_seed(2), temperature=0.7)
    assert torch.equal(hard.detach().round(), torch.nn.functional.one_hot(hard.argmax(1), 4).float())
    torch.testing.assert_close(hard.detach(), hard.detach().round())
    (gradient,) = torch.autograd.grad((hard * weights).sum(), logits)
    uniform = torch.rand(3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    soft = ((logits.detach().double() - (-uniform.log()).log()) / 0.7).softmax(1)
    expected = soft * (weights - (soft * weights).sum(1, keepdim=True)) / 0.7
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-6)


def test_a_seed_makes_the_same_network_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    one, same, other = tiny_network(1), tiny_network(1), tiny_network(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name]) and not torch.equal(weights, other.state_dict()[name])
    with torch.inference_mode():
        assert not next(tiny_network().parameters()).is_inference()


def test_a_saved_network_comes_back(tmp_path):
    network = RegionNetwork(5, 4, 3, seed=7, vision="a tower")
    network.save(tmp_path / "region.safetensors")
    loaded = RegionNetwork.load(tmp_path / "region.safetensors")
    assert (loaded.channels, loaded.slots, loaded.bins, loaded.vision) == (5, 4, 3, "a tower")
    loaded.check_vision("a tower")
    tiny_network().check_vision("any")
    with pytest.raises(EditingError, match="another vision model"):
        loaded.check_vision("another tower")
    regions, valid = torch.randn(2, 4, 5, 3, 3), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(loaded(regions, valid), network(regions, valid))
    with pytest.raises(EditingError, match="exists already"):
        network.save(tmp_path / "region.safetensors")


def test_files_say_what_they_are_and_those_of_before_load_too(tmp_path):
    network = tiny_network(3)
    network.save(tmp_path / "new.safetensors")
    tensors, metadata = load_tensors(tmp_path / "new.safetensors")
    assert metadata["format"] == "semantic_editing.region_network"
    save_tensors(tmp_path / "old.safetensors", tensors, metadata | {"format": "semantic-editing region network"})
    for name in ("new", "old"):
        loaded = RegionNetwork.load(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(weights, loaded.state_dict()[key]) for key, weights in network.state_dict().items())


def test_wrong_files_and_regions_are_refused(tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"format": "something"})
    with pytest.raises(EditingError, match=r"not a semantic_editing\.region_network"):
        RegionNetwork.load(tmp_path / "other.safetensors")
    shape = '{"channels": 5, "slots": 3, "bins": 3, "vision": ""}'
    metadata = {"format": "semantic-editing region network", "shape": shape}
    save_tensors(tmp_path / "damaged.safetensors", tiny_network().state_dict(), metadata)
    with pytest.raises(EditingError, match="damaged"):
        RegionNetwork.load(tmp_path / "damaged.safetensors")
    with pytest.raises(EditingError, match="sizes and vision model it was trained with"):
        tiny_network()(torch.zeros(1, 3, 5, 3, 3), torch.ones(1, 3, dtype=torch.bool))

"""The paper's network: ROIAlign against loops (and torchvision where it is installed), its shape and choices, the true
gradients of its loss, and that it learns."""

import math

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.paper import (
    RegionPolicy,
    expected_loss,
    gumbel_argmax,
    region_features,
    reinforce_loss,
    roi_align,
)
from semantic_editing.core.regions.proposals import Box
from semantic_editing.tests.core.regions.tiny_regions import (
    SIZES,
    Painter,
    tiny_features,
    tiny_network,
    tiny_proposals,
    tiny_table,
)

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
    draws = {int(gumbel_argmax(logits, generator)) for _ in range(60)}
    assert draws == {0, 2}


def test_gumbel_draws_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]])
    generator = torch.Generator().manual_seed(3)
    chosen = gumbel_argmax(logits.expand(40000, 4), generator)
    shares = torch.bincount(chosen, minlength=4) / 40000
    assert (shares - logits.softmax(1)[0]).abs().max() < 4 * math.sqrt(0.25 / 40000)  # four standard deviations


def test_a_seed_makes_the_same_network_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    one, same, other = tiny_network(1), tiny_network(1), tiny_network(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name]) and not torch.equal(weights, other.state_dict()[name])
    with torch.inference_mode():
        assert not next(tiny_network().parameters()).is_inference()


def test_regions_of_another_shape_are_refused():
    with pytest.raises(EditingError, match="sizes and vision model it was trained with"):
        tiny_network()(torch.zeros(1, 3, 5, 3, 3), torch.ones(1, 3, dtype=torch.bool))


def slow_losses():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    logits[1, 2] = float("-inf")
    losses = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    losses[1, 2] = float("nan")
    return logits, losses


def test_the_exact_gradient_is_p_times_the_advantage_and_the_finite_difference():
    logits, losses = slow_losses()
    variable = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_loss(variable, losses), variable)
    chances = logits.softmax(1)
    values = losses.nan_to_num()
    closed = chances * (values - (chances * values).sum(1, keepdim=True)) / 3
    torch.testing.assert_close(gradient, closed)
    for anchor, slot in [(0, 1), (1, 3), (2, 0)]:
        moved = [logits.clone() for _ in range(2)]
        moved[0][anchor, slot] += 1e-5
        moved[1][anchor, slot] -= 1e-5
        difference = (expected_loss(moved[0], losses) - expected_loss(moved[1], losses)) / 2e-5
        assert float(gradient[anchor, slot]) == pytest.approx(float(difference), rel=1e-5, abs=1e-9)


def test_the_gradient_on_a_weight_of_the_network_is_the_finite_difference():
    table = judged(tiny_table())
    network = tiny_network().double()
    regions = region_features(tiny_features(), table.proposals, network.bins)
    losses, valid = table.losses(), table.proposals.valid

    def loss():
        return expected_loss(network(regions.double(), valid), losses.double())

    loss().backward()
    for parameter in network.parameters():
        index = int(parameter.grad.abs().argmax())
        gradient = float(parameter.grad.flatten()[index])
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[index] += step
                values.append(float(loss()))
                parameter.view(-1)[index] -= step
        assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3) and gradient != 0


@pytest.mark.parametrize("draws", [2, 3])
def test_reinforce_is_unbiased(draws):
    """The mean of many estimates is the exact gradient, to four standard errors. All repetitions are one batch of
    anchors."""
    logits, losses = slow_losses()
    repeats = 30000
    variable = logits.clone().requires_grad_()
    (exact,) = torch.autograd.grad(expected_loss(variable, losses), variable)
    many = logits.repeat(repeats, 1).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    choices = torch.stack([gumbel_argmax(many, generator) for _ in range(draws)])
    chosen = losses.repeat(repeats, 1).expand(draws, -1, -1).gather(2, choices[..., None])[..., 0]
    (gradient,) = torch.autograd.grad(reinforce_loss(many, choices, chosen), many)
    estimates = gradient.reshape(repeats, 3, 4) * repeats  # the mean runs over all anchors of all repetitions
    error = (estimates.mean(0) - exact).abs()
    assert (error <= 4.5 * estimates.std(0) / repeats**0.5 + 1e-12).all()
    assert exact.abs().max() > 20 * (estimates.std(0) / repeats**0.5).max()  # the check could fail


def test_equal_losses_give_no_gradient_and_one_draw_is_refused():
    logits = torch.randn(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        reinforce_loss(logits, torch.tensor([[0, 1], [2, 2]]), torch.full((2, 2), 0.7)), logits
    )
    assert not gradient.abs().gt(1e-7).any()
    with pytest.raises(EditingError, match="use 2 or more"):
        reinforce_loss(logits, torch.tensor([[0, 1]]), torch.ones(1, 2))


def judged(table):
    """All of its boxes."""
    for box in {box for row in table.proposals.boxes for box in row if box is not None}:
        table.evaluate(box)
    return table


@pytest.mark.parametrize("sampled", [False, True])
def test_the_network_learns_the_best_box_of_each_anchor(sampled):
    table = tiny_table((1, 1))
    policy = RegionPolicy([table if sampled else judged(table)], [tiny_features()])
    before = [parameter.clone() for parameter in policy.network.parameters()]
    if sampled:
        policy.sample(epochs=200, draws=4)
    else:
        policy.fit(epochs=200)
    assert all(not torch.equal(old, new) for old, new in zip(before, policy.network.parameters(), strict=True))
    losses, slots = judged(tiny_table((1, 1))).losses(), policy.logits(0).argmax(1)
    chosen = losses.gather(1, slots[:, None]).mean()
    assert float(chosen) < 0.5 * float(losses.nanmean(1).mean()) + 0.5 * float(
        losses.nan_to_num(9).min(1).values.mean()
    )
    assert slots.tolist() == policy.slots(tiny_features(), table.proposals) and len(policy.history) == 200
    assert policy.choice(0) == table.proposals.box(1, 1)


def test_sampling_renders_what_it_draws_and_nothing_twice():
    editor = Painter()
    table = tiny_table((1, 1), editor=editor)
    RegionPolicy([table], [tiny_features()]).sample()
    boxes = [box for box, *_ in editor.calls]
    assert len(boxes) == len(set(boxes)) <= 5 * 2 * 3, "5 epochs of 2 draws at 3 anchors"


def test_one_network_learns_several_images_and_serves_a_new_one():
    """The hidden box is always the second size around the first anchor, so what was learned carries over."""
    tables = [judged(tiny_table((0, 1), seed=seed)) for seed in range(4)]
    policy = RegionPolicy(tables, [tiny_features(seed) for seed in range(4)], seed=3)
    policy.fit(epochs=80)
    assert policy.history[-1] < policy.history[0]
    fresh = tiny_table((0, 1), seed=9)
    assert policy.slots(tiny_features(9), fresh.proposals)[0] == 1


def test_the_paper_s_schedule_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    policy = RegionPolicy([judged(tiny_table())], [tiny_features()])
    with torch.inference_mode():
        policy.fit()
    assert len(policy.history) == 5 and policy._optimizer.param_groups[0]["lr"] == 0.003
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(EditingError, match="at least one"):
        RegionPolicy([], [])

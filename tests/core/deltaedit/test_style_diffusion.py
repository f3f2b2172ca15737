"""DeltaEdit-D: the U-Net's conditioning, encoding and decoding against closed forms, interpolation, files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.deltaedit.style_code import StyleLayout
from semantic_editing.core.deltaedit.style_diffusion import (
    StyleDenoiser,
    StyleDiffusion,
    decode,
    encode,
    interpolate_noise,
    load_style_diffusion,
    noise_schedule,
    random_noise,
    spherical,
)
from semantic_editing.core.deltaedit.style_unet import DEMO_SHAPE, Stage, StyledBlock, UNetShape
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors

from .tiny_diffusion import LAYOUT, TINY, Gaussian, code, network, random

PICTURES = random(2, 3, 16, 16, seed=3).mul(0.3).clamp(-1, 1)


# The U-Net


def test_a_block_normalises_by_time_and_style_as_diffae_writes_it():
    """AdaGN = z_s (t_s GroupNorm(h) + t_b), by loops over groups."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = StyledBlock(8, 8, 4, 0.0).double()
        torch.nn.init.normal_(block.conv2.weight)
    x, time, style = (
        random(*shape, seed=seed, dtype=torch.double) for seed, shape in enumerate([(2, 8, 4, 4), (2, 4), (2, 4)])
    )
    hidden = block.conv1(functional.silu(block.norm1(x))).detach()
    normal = torch.empty_like(hidden)
    count = block.norm2.num_groups
    for row in range(2):
        for group in range(count):
            part = hidden[row, group * 8 // count : (group + 1) * 8 // count]
            normal[row, group * 8 // count : (group + 1) * 8 // count] = (part - part.mean()) / (
                part.var(unbiased=False) + 1e-5
            ).sqrt()
    normal = normal * block.norm2.weight[:, None, None] + block.norm2.bias[:, None, None]
    t_s, t_b = (time @ block.time.weight.T + block.time.bias)[:, :, None, None].split(8, 1)
    z_s = (style @ block.style.weight.T + block.style.bias)[:, :, None, None]
    wanted = x + block.conv2(functional.silu((1 + z_s) * ((1 + t_s) * normal + t_b)))
    torch.testing.assert_close(block(x, time, style), wanted)


@pytest.mark.parametrize(
    ("shape", "levels"),
    [(UNetShape(), {128: 2, 64: 2, 32: 1, 16: 1, 8: 0}), (DEMO_SHAPE, {32: 2, 16: 1, 8: 0})],
    ids=["paper", "demo"],
)
def test_every_size_of_map_has_its_level(shape, levels):
    assert {side: shape.level_at(side) for side in shape.sides} == levels


@pytest.mark.parametrize("level", range(3))
def test_a_level_of_the_style_code_reaches_the_blocks_of_its_maps_alone(level):
    net = network()
    x, times, styles = random(2, 3, 16, 16), torch.tensor([10.0, 600.0]), random(2, LAYOUT.width, seed=1)
    start = sum(LAYOUT.level_widths[:level])
    other = styles.clone()
    other[:, start : start + LAYOUT.level_widths[level]] += 1
    assert (net.unet(x, times, other) - net.unet(x, times, styles)).abs().amax() > 1e-4
    for part in net.unet.modules():
        if isinstance(part, Stage) and part.level == level:
            part.block.style.weight.zero_()
    torch.testing.assert_close(net.unet(x, times, other), net.unet(x, times, styles), rtol=0, atol=0)


def test_the_papers_network_can_be_built():
    """DiffAE's for FFHQ at 128 pixels; only its outline, without memory."""
    with torch.device("meta"):
        net = StyleDiffusion(UNetShape(), StyleLayout(((4, 512), (16, 512), (64, 512)), ((4, 512),)), "ffhq")
    assert net.unet.first.weight.shape == (128, 3, 3, 3) and net.unet.middle[0].block.conv1.weight.shape[0] == 512
    assert [len(stages) for stages in net.unet.down] == [2] * 5 and [len(stages) for stages in net.unet.up] == [3] * 5


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(
        EditingError, match="cannot be halved 2 times after folding by 2; use a size that is a multiple"
    ):
        replace(TINY, size=20)


def test_the_schedule_is_ddpms():
    kept, expected = 1.0, []
    for step in range(1000):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
        expected.append(math.sqrt((1 - kept) / kept))
    np.testing.assert_allclose(noise_schedule().numpy(), expected, rtol=1e-5)


def test_times_are_whole_at_the_schedules_levels_and_rise_between():
    net = network()
    torch.testing.assert_close(net.times(net.sigmas), torch.arange(1000.0), rtol=0, atol=2e-2)
    between = (net.sigmas[300] * net.sigmas[301]).sqrt()
    torch.testing.assert_close(net.times(between[None]), torch.tensor([300.5]), rtol=0, atol=2e-2)
    assert net.times(torch.tensor([0.0, 1e9])).tolist() == [0.0, 999.0]


def test_the_noise_follows_from_v():
    net = network()
    pictures, noise, sigma = random(2, 3, 16, 16), random(2, 3, 16, 16, seed=1), torch.tensor([0.3, 20.0])
    level = sigma[:, None, None, None]
    alpha = (1 + level**2).rsqrt()
    net.unet.forward = lambda x, times, styles: alpha * noise - level * alpha * pictures
    x = alpha * pictures + level * alpha * noise
    torch.testing.assert_close(net(x, sigma, code().convs), noise, rtol=0, atol=1e-5)


def test_styles_are_standardised_channel_by_channel():
    net = network()
    net.mean.copy_(random(LAYOUT.width, seed=4))
    net.deviation.copy_(random(LAYOUT.width, seed=5).abs())
    net.deviation[0] = 0.0  # a constant channel
    found = net.standardised(net.mean + 2 * net.deviation)
    torch.testing.assert_close(found, torch.cat([torch.zeros(1), torch.full((LAYOUT.width - 1,), 2.0)]))


# Encoding and decoding


def ddim(net, noise, convs, steps):
    """Eq. 13 with sigma_t = 0, in the paper's own variables and double precision."""
    kept = 1 / (1 + noise_schedule().double() ** 2)
    times = [round(999 * k / steps) for k in range(steps + 1)]
    x = noise.double()
    for k in range(steps, 0, -1):
        a, b = kept[times[k]], kept[times[k - 1]] if k > 1 else torch.ones(())
        sigma = ((1 - a) / a).sqrt().expand(len(x))
        e = net(x.float(), sigma.float(), convs).double()
        x = b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e
    return x


def test_decoding_is_ddim_as_printed():
    net, noise = network(), random_noise(network(), 2, 7, seed=5)
    found = decode(net, noise, code(), clip=False)
    torch.testing.assert_close(found.double(), ddim(net, noise.noise, code().convs, 7), rtol=0, atol=1e-3)
    assert found.std() > 0.1


def test_encoding_comes_to_the_closed_form_the_closer_the_finer():
    net, convs = Gaussian(), code().convs
    wanted = net.noise_of(PICTURES, convs)
    errors = [
        (encode(net, PICTURES, code(), steps, clip=False).noise.double() - wanted).abs().max()
        for steps in (15, 60, 240)
    ]
    assert errors[2] < errors[1] / 2 < errors[0] / 4 and errors[2] < 0.1


@pytest.mark.parametrize("exact", [False, True])
def test_decoding_undoes_encoding(exact):
    net = Gaussian()
    steps = 10 if exact else 200
    noise = encode(net, PICTURES, code(), steps, exact=exact, clip=False)
    error = (decode(net, noise, code(), clip=False) - PICTURES).abs().max()
    assert error < (1e-3 if exact else 0.04)


def test_exact_encoding_of_a_u_net_comes_back_where_plain_encoding_does_not():
    net = network()
    errors, costs = [], []
    for exact in (False, True):
        noise = encode(net, PICTURES, code(), 10, exact=exact)
        errors.append((decode(net, noise, code()) - PICTURES).square().mean())
        costs.append(noise.evaluations)
    assert errors[1] < errors[0] / 10 and costs[0] == 10 < costs[1] <= 10 * 13


def test_another_code_draws_another_picture_from_the_same_noise():
    """In closed form: the mean moves with the code, what deviates from it stays."""
    net, right, wrong = Gaussian(), code(seed=0), code(seed=7)
    noise = encode(net, PICTURES, right, 150, clip=False)
    moved = decode(net, noise, wrong, clip=False)
    expected = PICTURES + (wrong.convs - right.convs)[:, :1, None, None] / 10
    torch.testing.assert_close(moved, expected, rtol=0, atol=0.06)
    error = (decode(net, noise, right, clip=False) - PICTURES).abs().mean()
    assert (moved - PICTURES).abs().mean() > 5 * error


def test_the_cost_is_counted_for_each_picture():
    seen = []
    assert encode(network(), PICTURES, code(), 5, callback=seen.append).evaluations == 5 and len(seen) == 5
    denoiser = StyleDenoiser(network())
    denoiser.batch(PICTURES, 1.0, [code().convs, code(1).convs])
    assert denoiser.evaluations.forward == 4


def test_decoding_in_a_batch_is_decoding_alone():
    net, noise = network(), random_noise(network(), 2, 4, seed=5)
    both = decode(net, noise, code())
    for row in range(2):
        alone = decode(net, replace(noise, noise=noise.noise[row : row + 1]), code().select(slice(row, row + 1)))
        torch.testing.assert_close(alone, both[row : row + 1], rtol=0, atol=1e-4)


def test_one_noise_serves_many_codes_and_one_code_many_noises():
    net = network()
    one, two = random_noise(net, 1, 4, seed=5), random_noise(net, 2, 4, seed=5)
    torch.testing.assert_close(
        decode(net, one, code(2)), decode(net, replace(one, noise=one.noise.expand(2, -1, -1, -1)), code(2))
    )
    assert decode(net, two, code(1)).shape == (2, 3, 16, 16)


def test_the_same_seed_is_the_same_noise_whatever_happened_before():
    first = random_noise(network(), 2, 4, seed=5).noise
    torch.rand(3)
    assert torch.equal(random_noise(network(), 2, 4, seed=5).noise, first)
    assert not torch.equal(random_noise(network(), 2, 4, seed=6).noise, first)


@pytest.mark.parametrize("exact", [False, True])
def test_a_cancel_ends_encoding_and_decoding(exact):
    def cancel(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(network(), PICTURES, code(), 5, exact=exact, callback=cancel)
    with pytest.raises(KeyboardInterrupt):
        decode(network(), random_noise(network(), 2, 4, seed=5), code(), callback=cancel)


def test_bad_input_ends_in_a_sentence():
    net, noise = network(), random_noise(network(), 2, 4, seed=5)
    with pytest.raises(EditingError, match="another generator than the style diffusion learned from; load"):
        decode(net, noise, code(generator="other"))
    with pytest.raises(EditingError, match=r"learned from \(3 channels, not 12\); load"):
        decode(net, noise, code(layout=StyleLayout(((4, 3),), ((4, 3),))))
    with pytest.raises(EditingError, match="load the two that belong together"):
        encode(net, PICTURES, code(generator="other"), 5)
    with pytest.raises(EditingError, match=r"takes .batch, 3, 16, 16."):
        encode(net, PICTURES[..., :8], code(), 5)
    with pytest.raises(EditingError, match="2 pictures and style codes of 3"):
        encode(net, PICTURES, code(3), 5)
    with pytest.raises(EditingError, match="2 pictures of noise and style codes of 3"):
        decode(net, noise, code(3))
    with pytest.raises(EditingError, match=r"another style diffusion .other weights."):
        decode(network(seed=1), noise, code())
    with pytest.raises(EditingError, match=r"another style diffusion .of 8 pixels."):
        decode(net, replace(noise, noise=noise.noise[..., :8, :8]), code())
    for steps in (0, 1000):
        with pytest.raises(EditingError, match=f"steps is {steps}; use"):
            encode(net, PICTURES, code(), steps)
        with pytest.raises(EditingError, match=f"steps is {steps}; use a number from 1 to 999"):
            decode(net, noise, code(), steps)
    broken = code()
    broken.convs[0, 0] = math.nan
    with pytest.raises(EditingError, match="not a number"):
        decode(net, noise, broken)
    with pytest.raises(EditingError, match="not a number"):
        encode(net, PICTURES, broken, 5)
    with pytest.raises(EditingError, match="no attention to a text"):
        StyleDenoiser(net)(PICTURES, 1.0, code().convs, control=object())


# Interpolation


def test_spherical_interpolation_is_equation_16():
    first, second = random(1, 3, 4, 4), random(1, 3, 4, 4, seed=1)
    a, b = first.flatten().double().numpy(), second.flatten().double().numpy()
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for amount in (0.0, 0.2, 0.5, 1.0):
        wanted = (np.sin((1 - amount) * angle) * a + np.sin(amount * angle) * b) / np.sin(angle)
        found = spherical(first, second, amount).flatten().double().numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_spherical_interpolation_keeps_the_length_and_survives_equal_noise():
    first, second = random(4, 3, 8, 8), random(4, 3, 8, 8, seed=1)
    second = second * (first.flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1))[:, None, None, None]
    middle = spherical(first, second, 0.5)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), first.flatten(1).norm(dim=1))
    torch.testing.assert_close(spherical(first, first, 0.3), first)


def test_noises_on_the_way_from_one_picture_to_another():
    net = network()
    first, second = random_noise(net, 1, 4, seed=1), random_noise(net, 1, 4, seed=2)
    way = interpolate_noise(first, second, [0.0, 0.5, 1.0])
    assert len(way) == 3 and way.steps == 4
    torch.testing.assert_close(way.noise[[0, 2]], torch.cat([first.noise, second.noise]))
    with pytest.raises(EditingError, match="different style diffusions"):
        interpolate_noise(first, random_noise(network(seed=1), 1, 4, seed=2), [0.5])
    with pytest.raises(EditingError, match="there are 1 and 2"):
        interpolate_noise(first, random_noise(net, 2, 4, seed=2), [0.5])


# Files


def test_a_file_comes_back_at_half_precision(tmp_path):
    net = network()
    net.mean.copy_(random(LAYOUT.width, seed=4))
    net.facts = {"steps": 3}
    back = load_style_diffusion(net.save(tmp_path / "a.safetensors"))
    assert (back.shape, back.layout, back.generator, back.facts) == (net.shape, LAYOUT, "tiny", {"steps": 3})
    for name, value in net.state_dict().items():
        wanted = value.half().float() if name.startswith("unet.") else value
        assert torch.equal(back.state_dict()[name], wanted), name
    assert not any(value.requires_grad for value in back.parameters())
    noise = encode(net, PICTURES, code(), 3)
    torch.testing.assert_close(decode(back, noise, code()), decode(net, noise, code()), rtol=0, atol=0.05)


def test_noise_of_the_trained_network_is_known_to_the_one_from_the_file(tmp_path):
    net = network()
    noise = random_noise(net, 1, 3, seed=0)
    noise.require_model(load_style_diffusion(net.save(tmp_path / "a.safetensors")))


@pytest.mark.parametrize(
    ("key", "change", "sentence"),
    [
        ("shape", {"width": 16}, "its weights do not fit its description"),
        ("shape", {"size": 18}, "cannot be halved"),
        ("shape", {"blocks": 9}, "blocks is no whole number from 1 to 8"),
        ("shape", {"attention": [256]}, r"attention\[0\] is no whole number from 1 to 128"),
        ("shape", {"prediction": "flow"}, "prediction is not one of eps, v"),
        ("layout", {"convs": [[4, 3]]}, "its weights do not fit its description"),
        ("layout", {"convs": [[4]]}, "is no list of 2 values"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, key, change, sentence):
    path = network().save(tmp_path / "a.safetensors")
    tensors, metadata = load_tensors(path)
    metadata[key] = json.dumps(json.loads(metadata[key]) | change)
    save_tensors(path, tensors, metadata, overwrite=True)
    with pytest.raises(EditingError, match=sentence):
        load_style_diffusion(path)


def test_a_file_with_a_weight_that_is_not_a_number_is_refused(tmp_path):
    path = network().save(tmp_path / "a.safetensors")
    tensors, metadata = load_tensors(path)
    tensors["unet.first.weight"][0, 0, 0, 0] = math.inf
    save_tensors(path, tensors, metadata, overwrite=True)
    with pytest.raises(EditingError, match="some weights are not numbers"):
        load_style_diffusion(path)

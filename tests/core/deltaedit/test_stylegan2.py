"""StyleGAN2 against definitions: loops over pixels, one kernel a picture, the paper's formulas in double precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch.utils._python_dispatch import TorchDispatchMode

from semantic_editing.benchmarks.nvidia_snapshot import generator_tensors, network, write_snapshot
from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.style_code import (
    LEVELS,
    StyleCode,
    blend,
    check_partner,
    interpolate,
    level_of,
    summary,
)
from semantic_editing.core.deltaedit.stylegan2 import (
    FILTER,
    EqualLinear,
    ModulatedConv,
    StyledConv,
    StyleGAN2,
    ToRGB,
    low_pass,
    upfirdn2d,
)
from semantic_editing.core.errors import EditingError

WIDTHS = {4: 6, 8: 5, 16: 4}
STYLE_DIM = 7


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = StyleGAN2(16, WIDTHS, STYLE_DIM, 2)
        with torch.no_grad():
            for value in generator.parameters():
                if value.ndim < 2:  # biases and strengths of noise begin at 0, where mistakes would not show
                    value.add_(torch.randn_like(value) * 0.3)
    generator.identity = "tiny"
    return generator.eval().requires_grad_(False)


# Definitions
# ----------------------------------------------------------------------------------------------------------------


def upfirdn_by_definition(x, kernel, up, down, before, after):
    """``y[i] = sum over t of z[i down + k - 1 - t] kernel[t]``, ``z``: ``x`` with zeros between and around."""
    height, width = x.shape
    rows, columns = kernel.shape
    padded = np.zeros((height * up + before + after, width * up + before + after))
    for row in range(height):
        for column in range(width):
            place = (row * up + before, column * up + before)
            if 0 <= place[0] < padded.shape[0] and 0 <= place[1] < padded.shape[1]:
                padded[place] = x[row, column]
    made = np.zeros(((padded.shape[0] - rows) // down + 1, (padded.shape[1] - columns) // down + 1))
    for row in range(made.shape[0]):
        for column in range(made.shape[1]):
            for r in range(rows):
                for c in range(columns):
                    value = padded[row * down + rows - 1 - r, column * down + columns - 1 - c]
                    made[row, column] += value * kernel[r, c]
    return made


def correlate(x, weight, padding):
    """``x [I, H, W]``, ``weight [O, I, k, k]`` -> ``[O, H', W']`` in loops over the kernel."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    made = np.zeros((weight.shape[0], height, width))
    for row in range(size):
        for column in range(size):
            made += np.einsum(
                "oi,ihw->ohw", weight[:, :, row, column], x[:, row : row + height, column : column + width]
            )
    return made


def binomial(gain):
    line = np.array(FILTER) / sum(FILTER)
    return gain * np.outer(line, line)


def enlarged(x, around=0):
    """``[C, H, W]`` -> twice the size: a zero after every pixel, then the filter around it with a gain of 4.

    Args:
        around: pixels of the result to show beyond each edge; it does not end there.
    """
    return np.stack([upfirdn_by_definition(part, binomial(4), 2, 1, 2 + around, 1 + around) for part in x])


def leaky(x):
    return np.where(x > 0, x, 0.2 * x) * math.sqrt(2)


class PaperGenerator:
    """One picture by the formulas of the StyleGAN2 paper (section 2.2, Eq. 1 to 3; section 4.1, output skips) and of
    NVIDIA's conventions for its weights, in double precision.

    Args:
        tensors: under NVIDIA's names.
    """

    def __init__(self, tensors, layers, clamp=None):
        self.t = {key: value.double().numpy() for key, value in tensors.items()}
        self.layers, self.limit = layers, math.inf if clamp is None else clamp

    def w(self, z):
        x = z / np.sqrt(np.mean(z**2) + 1e-8)
        for index in range(self.layers):
            weight, bias = self.t[f"mapping.fc{index}.weight"], self.t[f"mapping.fc{index}.bias"]
            x = leaky(weight @ x * 0.01 / math.sqrt(len(x)) + bias * 0.01)
        return x

    def style(self, layer, w):
        return self.t[f"{layer}.affine.weight"] @ w / math.sqrt(len(w)) + self.t[f"{layer}.affine.bias"]

    def conv(self, layer, x, w, up):
        """Eq. 1 and 3: kernels of their own; where the size doubles the picture is enlarged, then *convolved* with."""
        weight = self.t[f"{layer}.weight"] * self.style(layer, w)[None, :, None, None]
        weight = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True) + 1e-8)
        x = correlate(enlarged(x, 1), weight[:, :, ::-1, ::-1], 0) if up else correlate(x, weight, 1)
        x = x + self.t[f"{layer}.noise_const"] * self.t[f"{layer}.noise_strength"]
        return np.clip(leaky(x + self.t[f"{layer}.bias"][:, None, None]), -self.limit, self.limit)

    def colour(self, block, x, w):
        weight = self.t[f"{block}.torgb.weight"]
        weight = weight * (self.style(f"{block}.torgb", w) / math.sqrt(weight.shape[1]))[None, :, None, None]
        made = correlate(x, weight, 0) + self.t[f"{block}.torgb.bias"][:, None, None]
        return np.clip(made, -self.limit, self.limit)

    def picture(self, rows):
        """``rows [L, style_dim]``: one a convolution; a colour layer takes the row after its resolution's last."""
        side, row = 4, 0
        x = self.conv("synthesis.b4.conv1", self.t["synthesis.b4.const"], rows[0], up=False)
        picture = self.colour("synthesis.b4", x, rows[1])
        while f"synthesis.b{2 * side}.conv0.weight" in self.t:
            side, row = 2 * side, row + 2
            x = self.conv(f"synthesis.b{side}.conv0", x, rows[row - 1], up=True)
            x = self.conv(f"synthesis.b{side}.conv1", x, rows[row], up=False)
            picture = enlarged(picture) + self.colour(f"synthesis.b{side}", x, rows[row + 1])
        return picture


# Layers
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down", "pad"),
    [(1, 1, (0, 0)), (2, 1, (2, 1)), (1, 2, (1, 2)), (3, 2, (0, 4)), (2, 1, (-1, 2)), (1, 1, (3, -2))],
)
def test_upfirdn_is_its_definition(up, down, pad):
    x, kernel = random(2, 3, 5, 6), random(3, 4, seed=1)  # neither square nor symmetric
    made = upfirdn2d(x, kernel, up, down, pad)
    for picture, result in zip(x.flatten(0, 1), made.flatten(0, 1), strict=True):
        expected = upfirdn_by_definition(picture.numpy(), kernel.numpy(), up, down, *pad)
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)


def test_the_filter_keeps_the_mean():
    np.testing.assert_allclose(low_pass(4.0).numpy(), binomial(4), atol=1e-7)
    flat = torch.ones(1, 1, 8, 8)
    inside = upfirdn2d(flat, low_pass(4.0), up=2, pad=(2, 1))[..., 2:-2, 2:-2]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def fused(layer, x, style):
    """A kernel for each picture, as the paper has it (Eq. 1 and 3)."""
    made = []
    for one, factors in zip(x, style, strict=True):
        weight = layer.weight[0] * layer.scale * factors[None, :, None, None]
        if layer.demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.up:
            large = torch.from_numpy(enlarged(one.numpy(), 1))
            made.append(functional.conv2d(large[None], weight.flip(2, 3)))
        else:
            made.append(functional.conv2d(one[None], weight, padding=layer.padding))
    return torch.cat(made)


@pytest.mark.parametrize(
    ("up", "size", "demodulate"), [(False, 3, True), (False, 3, False), (False, 1, False), (True, 3, True)]
)
def test_modulation_outside_the_kernel_equals_modulation_inside(up, size, demodulate):
    layer = ModulatedConv(5, 4, size, 3, up=up, demodulate=demodulate).double().requires_grad_(False)
    layer.weight.copy_(random(1, 4, 5, size, size))
    x, style = random(3, 5, 6, 6, seed=1), random(3, 5, seed=2)
    made = layer(x, style)
    assert made.shape[-1] == (12 if up else 6)
    torch.testing.assert_close(made, fused(layer, x, style), rtol=0, atol=1e-6)  # the filter is stored in fp32


def test_demodulation_makes_the_output_independent_of_the_styles_size():
    layer = ModulatedConv(5, 4, 3, 3).double().requires_grad_(False)
    x, style = random(1, 5, 6, 6), random(1, 5, seed=1)
    torch.testing.assert_close(layer(x, style), layer(x, 7 * style), rtol=1e-6, atol=0)


def test_equalised_layers_are_scaled_when_used():
    for rate in (1.0, 0.01):
        layer = EqualLinear(16, 5, bias=2.0, rate=rate)
        x = random(3, 16, dtype=torch.float32)
        expected = x @ layer.weight.T * (rate / 4) + 2.0 * rate
        torch.testing.assert_close(layer(x), expected)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stored = EqualLinear(200, 200, rate=0.01).weight
    assert abs(float(stored.detach().std()) * 0.01 - 1) < 0.02, "weights of unit variance, divided by the rate"


def test_a_layer_adds_noise_and_bias_before_it_bends():
    layer = StyledConv(3, 3, 4).requires_grad_(False)
    layer.noise.weight.fill_(2)
    layer.activate.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    x, style, noise = random(1, 3, 4, 4).float(), random(1, 3, seed=1).float(), random(1, 1, 4, 4, seed=2).float()
    summed = layer.conv(x, style) + 2 * noise + layer.activate.bias[:, None, None]
    expected = torch.where(summed > 0, summed, summed / 5) * 2**0.5
    torch.testing.assert_close(layer(x, style, noise), expected)
    layer.clamp = 0.5
    torch.testing.assert_close(layer(x, style, noise), expected.clamp(-0.5, 0.5))


def test_colour_is_added_to_the_enlarged_picture_below():
    layer = ToRGB(4, 3).double().requires_grad_(False)
    layer.bias.copy_(random(1, 3, 1, 1))
    x, style, below = random(1, 4, 8, 8), random(1, 4, seed=1), random(1, 3, 4, 4, seed=2)
    weight = layer.conv.weight[0, :, :, 0, 0] / 2 * style  # not demodulated; 4 inputs
    own = torch.einsum("oi,bihw->bohw", weight, x) + layer.bias
    torch.testing.assert_close(layer(x, style, None), own)
    expected = own + torch.from_numpy(enlarged(below[0].numpy()))
    torch.testing.assert_close(layer(x, style, below), expected, rtol=0, atol=1e-6)


# The network
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", [None, 0.8])
def test_a_picture_is_the_papers(tmp_path, clamp):
    """NVIDIA's weights, converted, against :class:`PaperGenerator`."""
    tensors = generator_tensors(WIDTHS, STYLE_DIM, 2)
    facts = {} if clamp is None else {"synthesis.b4.conv1.conv_clamp": clamp}
    generator = load_generator(write_snapshot(tmp_path / "a.pkl", {"G_ema": network(tensors, facts)}))
    paper = PaperGenerator(tensors, 2, clamp)
    z, rows = random(2, STYLE_DIM), random(2, generator.layout.rows, STYLE_DIM, seed=1)
    with torch.no_grad():
        w, pictures = generator.map(z.float()), generator(rows.float())
    for number in range(2):
        np.testing.assert_allclose(w[number].numpy(), paper.w(z[number].numpy()), rtol=1e-4, atol=1e-4)
        expected = paper.picture(rows[number].numpy())
        np.testing.assert_allclose(pictures[number].numpy(), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert generator.clamp == clamp
    unlimited = PaperGenerator(tensors, 2).picture(rows[0].numpy())
    assert np.abs(unlimited - paper.picture(rows[0].numpy())).max() > (0.1 if clamp else -1), "the limit shows"


def test_style_space_has_the_published_sizes():
    with torch.device("meta"):
        ffhq, lsun, half = StyleGAN2(1024), StyleGAN2(256), StyleGAN2(256, {side: channels(side) for side in SIDES})
    assert (ffhq.layout.width, sum(ffhq.layout.rgb_widths)) == (6048, 3040)  # DeltaEdit, section 3.3
    assert (len(ffhq.layout.convs), len(ffhq.layout.rgbs), ffhq.layout.rows) == (17, 9, 18)
    assert ffhq.layout.level_widths == [1536, 2048, 2464]
    # 4 to 64 pixels: nine layers of 512 inputs; 128: 512, 256; 256: 256, 128
    assert lsun.layout.width == 9 * 512 + 512 + 256 + 256 + 128 == 5760
    assert sum(lsun.layout.rgb_widths) == 5 * 512 + 256 + 128
    assert half.layout.width == 8 * 512 + 256 + 256 + 128 + 128 + 64
    for generator in (ffhq, lsun, half):
        convs = [layer.conv.weight.shape[2] for layer in (generator.conv1, *generator.convs)]
        assert convs == generator.layout.conv_widths
        assert sum(map(sum, generator.layout.levels)) == generator.layout.width
    assert [level_of(side) for side in (4, 8, 16, 32, 64, 1024)] == [0, 0, 1, 1, 2, 2]


SIDES = [4, 8, 16, 32, 64, 128, 256]


def channels(side):
    """The published configuration of multiplier 1."""
    return {64: 256, 128: 128, 256: 64}.get(side, 512)


def test_each_row_of_w_plus_drives_its_layers(tiny):
    """Row r: convolution r, and for odd r the colour layer of the resolution that ends before it."""
    base = random(1, tiny.layout.rows, STYLE_DIM).float()
    before = tiny.styles(base)
    for row in range(tiny.layout.rows):
        moved = base.clone()
        moved[:, row] += 1
        after = tiny.styles(moved)
        convs = [
            index
            for index, (a, b) in enumerate(zip(before.conv_styles(), after.conv_styles(), strict=True))
            if not torch.equal(a, b)
        ]
        rgbs = [
            index
            for index, (a, b) in enumerate(zip(before.rgb_styles(), after.rgb_styles(), strict=True))
            if not torch.equal(a, b)
        ]
        assert convs == ([row] if row < len(tiny.layout.convs) else [])
        assert rgbs == ([row // 2] if row % 2 else [])


def test_decoding_the_styles_of_a_code_is_the_generator(tiny):
    w_plus = random(3, tiny.layout.rows, STYLE_DIM).float()
    code = tiny.styles(w_plus)
    pictures = tiny(w_plus)
    assert pictures.shape == (3, 3, 16, 16)
    assert torch.equal(tiny.synthesize(code), pictures)
    flat = torch.cat(list(code.conv_styles()), 1)
    assert torch.equal(flat, code.convs) and torch.equal(torch.cat(list(code.level_styles()), 1), code.convs)
    assert [part.shape[1] for part in code.level_styles()] == tiny.layout.level_widths
    again = code.with_convs(code.convs + torch.zeros_like(code.convs))
    assert torch.equal(tiny.synthesize(again), pictures) and again.w_plus is None
    torch.testing.assert_close(tiny.synthesize(code.select(slice(1, 2))), pictures[1:2], rtol=0, atol=1e-5)


def test_an_edit_of_s_leaves_the_colour_layers_alone(tiny):
    code = tiny.styles(random(1, tiny.layout.rows, STYLE_DIM).float())
    edited = code.with_convs(code.convs + 1)
    assert edited.rgbs is code.rgbs and not torch.equal(tiny.synthesize(edited), tiny.synthesize(code))


def test_truncation(tiny):
    free, mean = tiny.sample_w_plus(4, 5, 1.0), tiny.sample_w_plus(4, 5, 0.0)
    torch.testing.assert_close(mean, tiny.mean_w().expand_as(mean))
    half = tiny.sample_w_plus(4, 5, 0.5)
    torch.testing.assert_close(half, (free + mean) / 2, rtol=0, atol=1e-5)
    assert torch.equal(tiny.sample_w_plus(4, 5, 0.7), tiny.sample_w_plus(4, 5, 0.7))
    assert not torch.equal(free, tiny.sample_w_plus(4, 6, 1.0))
    assert all(torch.equal(free[:, 0], free[:, row]) for row in range(tiny.layout.rows))
    z = torch.randn(4, STYLE_DIM, generator=torch.Generator().manual_seed(5))
    assert torch.equal(free[:, 0], tiny.map(z))


def test_the_mean_that_a_file_brought_is_the_one_used(tiny):
    known = tiny.w_mean.clone()
    tiny.w_mean.fill_(3)
    assert float(tiny.mean_w().mean()) == 3 and float(tiny.sample_w_plus(1, 0, 0.0).std()) == 0
    tiny.w_mean.copy_(known)


def test_noise_is_the_stored_one_or_a_seeds(tiny):
    w_plus = random(1, tiny.layout.rows, STYLE_DIM).float()
    code = tiny.styles(w_plus)
    assert torch.equal(tiny.synthesize(code, tiny.noise()), tiny(w_plus))
    assert torch.equal(tiny.synthesize(code, tiny.noise(3)), tiny.synthesize(code, tiny.noise(3)))
    assert not torch.equal(tiny.synthesize(code, tiny.noise(3)), tiny(w_plus))


def test_codes_of_other_shapes_and_generators_are_refused(tiny):
    with pytest.raises(
        EditingError, match=r"^The W\+ code has shape \[1, 2, 7\]; this generator needs \[batch, 6, 7\]\.$"
    ):
        tiny.styles(torch.zeros(1, 2, STYLE_DIM))
    code = tiny.styles(torch.zeros(1, tiny.layout.rows, STYLE_DIM))
    tiny.check(code)
    with pytest.raises(EditingError, match="made by another generator"):
        tiny.check(StyleCode(code.layout, code.convs, code.rgbs, "other"))
    for size in (4, 7, 0, 96):
        with pytest.raises(EditingError, match=f"A StyleGAN2 of {size} pixels does not exist"):
            StyleGAN2(size)
    with pytest.raises(EditingError, match="must be given for"):
        StyleGAN2(16, {4: 3, 8: 3})


def test_no_compiled_operators(tiny):
    """Whatever the generator does, it does with torch's own operators, gradients included."""
    seen = set()

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(function.namespace)
            return function(*args, **(kwargs or {}))

    w_plus = random(1, tiny.layout.rows, STYLE_DIM).float().requires_grad_()
    with Noted():
        tiny(w_plus).square().sum().backward()
    assert seen <= {"aten", "prim", "prims"} and "aten" in seen
    assert float(w_plus.grad.abs().min()) > 0


def test_gradients_are_right(tiny):
    generator = StyleGAN2(8, {4: 3, 8: 2}, 3, 1).double().requires_grad_(False)
    rows = random(1, generator.layout.rows, 3).requires_grad_()
    assert torch.autograd.gradcheck(generator, (rows,))


# Style codes
# ----------------------------------------------------------------------------------------------------------------


def codes(tiny, first=1, second=1):
    rows = random(first + second, tiny.layout.rows, STYLE_DIM).float()
    both = tiny.styles(rows)
    return both.select(slice(first)), both.select(slice(first, None))


def test_blending_ends_exactly_at_both_codes(tiny):
    first, second = codes(tiny)
    for amount, expected in ((0.0, first), (1.0, second)):
        made = blend(first, second, [amount] * 3)
        assert torch.equal(made.convs, expected.convs) and torch.equal(made.rgbs, expected.rgbs)
    made = blend(first, second, [0.25] * 3)
    torch.testing.assert_close(made.convs, 0.75 * first.convs + 0.25 * second.convs)
    torch.testing.assert_close(made.rgbs, 0.75 * first.rgbs + 0.25 * second.rgbs)
    beyond = blend(first, second, [1.5] * 3)
    torch.testing.assert_close(beyond.convs, 1.5 * second.convs - 0.5 * first.convs)


@pytest.mark.parametrize("level", range(2))  # of 16 pixels nothing is fine
def test_mixing_takes_one_level_from_the_other(tiny, level):
    first, second = codes(tiny)
    amounts = [float(index == level) for index in range(3)]
    made = blend(first, second, amounts)
    for index, (a, b, c) in enumerate(
        zip(made.level_styles(), first.level_styles(), second.level_styles(), strict=True)
    ):
        assert torch.equal(a, c if index == level else b)
    sides = [side for side, _ in tiny.layout.rgbs]
    for side, a, b, c in zip(sides, made.rgb_styles(), first.rgb_styles(), second.rgb_styles(), strict=True):
        assert torch.equal(a, c if level_of(side) == level else b)
    kept = blend(first, second, amounts, colours=False)
    assert torch.equal(kept.rgbs, first.rgbs) and torch.equal(kept.convs, made.convs)


def test_steps_of_a_batch_follow_pair_by_pair(tiny):
    first, second = codes(tiny, 1, 2)
    made = interpolate(first, second, [1.0, 0.5, 0.0], 3)
    assert len(made) == 6 and made.w_plus is None and made.generator == "tiny"
    for pair in range(2):
        for step in range(3):
            part = step / 2
            expected = blend(first, second.select(slice(pair, pair + 1)), [part, 0.5 * part, 0.0])
            row = made.select(slice(3 * pair + step, 3 * pair + step + 1))
            assert torch.equal(row.convs, expected.convs) and torch.equal(row.rgbs, expected.rgbs)
    alone = interpolate(first, second, [1.0] * 3, 1)
    assert torch.equal(alone.convs, second.convs)


def test_one_code_blends_with_many(tiny):
    first, second = codes(tiny, 1, 3)
    for a, b, amount in ((first, second, 0.3), (second, first, 0.7)):
        made = blend(a, b, [amount] * 3, colours=False)
        assert len(made) == 3 and made.rgbs.shape == (3, sum(tiny.layout.rgb_widths))
        torch.testing.assert_close(made.convs, (1 - amount) * a.convs + amount * b.convs)
    with pytest.raises(EditingError, match="holds 2 faces and the other 3"):
        check_partner(second.select(slice(2)), second)
    with pytest.raises(EditingError, match="different generators"):
        check_partner(first, StyleCode(first.layout, first.convs, first.rgbs, "other"))
    with pytest.raises(EditingError, match="2 amounts were given"):
        blend(first, second, [1.0, 0.0])
    assert summary(second) == {
        "faces": 3,
        "layers": 5,
        "channels": dict(zip(LEVELS, tiny.layout.level_widths, strict=True)),
    }

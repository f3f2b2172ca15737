"""Attention control in diffusers U-Nets: sites, capture, the map loss, and that nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0
from torch.nn.functional import scaled_dot_product_attention

from semantic_editing.core.attention.capture import (
    PUBLISHED_LAYERS,
    CaptureMaps,
    LastLayerSeen,
    MapLoss,
    attention_maps,
    show,
)
from semantic_editing.core.attention.site import Site
from semantic_editing.core.diffusers.attention import attention_sites, controlled
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.tiny_models import FAMILIES, TEXT_WIDTH, TOKENS, tiny_cond, tiny_denoiser, tiny_latent

SIGMA = 3.0


class Everywhere:
    """The identity control: plain attention at every layer, noting what it was shown."""

    def __init__(self):
        self.seen = []

    def wants(self, site):
        return True

    def __call__(self, q, k, v, site):
        self.seen.append((site, tuple(q.shape), tuple(k.shape)))
        return scaled_dot_product_attention(q, k, v)


class Failing(Everywhere):
    def __call__(self, q, k, v, site):
        if site.index == 2:
            raise KeyError("failed inside")
        return super().__call__(q, k, v, site)


def maps_by_hooks(denoiser, run):
    """Oracle: cross-attention maps from the outputs of the layers' own projections, in order of their calls."""
    projected, handles = [], []
    for name, module in denoiser.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            heads = denoiser.unet.get_submodule(name.rsplit(".", 1)[0]).heads
            handles.append(module.register_forward_hook(lambda _, __, out, heads=heads: projected.append((out, heads))))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    maps = []
    for (q, heads), (k, _) in zip(projected[::2], projected[1::2], strict=True):
        width = q.shape[-1] // heads
        by_head = [
            q[..., i * width : (i + 1) * width] @ k[..., i * width : (i + 1) * width].transpose(1, 2)
            for i in range(heads)
        ]
        maps.append(torch.stack([(scores / width**0.5).softmax(-1) for scores in by_head], 1))
    return maps


def sd1_shaped_unet():
    """Stable Diffusion 1's layout, 4 levels with 2 layers each, 8 channels wide."""
    blocks = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )


@pytest.mark.parametrize("size", [(16, 16), (9, 22)])
def test_sites_are_numbered_in_network_order_with_the_resolution_of_the_queries(size):
    unet, control = sd1_shaped_unet(), Everywhere()
    with torch.no_grad(), controlled(unet, control, size, (0,)):
        unet(torch.zeros(2, 4, *size), 5, torch.zeros(2, TOKENS, TEXT_WIDTH))
    for kind in ("self", "cross"):
        seen = [(site, q, k) for site, q, k in control.seen if site.kind == kind]
        assert [site.index for site, _, _ in seen] == list(range(16))
        assert [site.block for site, _, _ in seen] == ["down"] * 6 + ["mid"] + ["up"] * 9
        for site, q, k in seen:
            assert q == (2, site.heads, site.resolution[0] * site.resolution[1], 8 // site.heads)
            assert k[2] == (TOKENS if kind == "cross" else q[2])


def test_sdxl_sites_count_every_transformer_block():
    sites = [site for _, site in attention_sites(tiny_denoiser("sdxl").unet, (8, 8)) if site.kind == "cross"]
    assert [(site.index, site.block) for site in sites] == list(enumerate(["down"] * 2 + ["mid"] * 2 + ["up"] * 4))
    assert {site.resolution for site in sites} == {(4, 4)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
def test_identity_control_gives_the_fused_output_and_leaves_nothing_behind(family, shape):
    denoiser, x, cond = tiny_denoiser(family), tiny_latent(*shape) * SIGMA, tiny_cond(family, shape[0])
    processors = dict(denoiser.unet.attn_processors)
    with torch.no_grad():
        before = denoiser(x, SIGMA, cond)
        for control in (Everywhere(), CaptureMaps()):
            torch.testing.assert_close(denoiser(x, SIGMA, cond, control=control), before, atol=2e-5, rtol=2e-5)
            assert all(processors[name] is now for name, now in denoiser.unet.attn_processors.items())
        assert torch.equal(denoiser(x, SIGMA, cond), before)


def test_nothing_stays_behind_when_the_control_raises():
    denoiser, x, cond = tiny_denoiser(), tiny_latent(), tiny_cond()
    processors = dict(denoiser.unet.attn_processors)
    with torch.no_grad():
        before = denoiser(x, SIGMA, cond)
        with pytest.raises(KeyError, match="failed inside"):
            denoiser(x, SIGMA, cond, control=Failing())
        assert all(processors[name] is now for name, now in denoiser.unet.attn_processors.items())
        assert torch.equal(denoiser(x, SIGMA, cond), before)
    assert all(p.requires_grad for p in denoiser.unet.parameters())


def test_only_wanted_layers_get_another_processor():
    unet, control = tiny_denoiser().unet, CaptureMaps((4, 4))
    before = {name: id(processor) for name, processor in unet.attn_processors.items()}
    with controlled(unet, control, (8, 8), (0,)):
        changed = [name for name, processor in unet.attn_processors.items() if id(processor) != before[name]]
    # Of the tiny U-Net only the second level and the middle work at 4x4.
    assert changed
    assert all("attn2" in name and name.startswith(("down_blocks.1", "mid_block", "up_blocks.0")) for name in changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_maps_are_those_of_the_projections(family):
    denoiser, x, cond = tiny_denoiser(family), tiny_latent(3, 6, 10) * SIGMA, tiny_cond(family, 3)
    capture = CaptureMaps()
    with torch.no_grad():
        expected = maps_by_hooks(denoiser, lambda: denoiser(x, SIGMA, cond))
        denoiser(x, SIGMA, cond, control=capture)
    assert list(capture.maps) == [(index, 0, 0) for index in range(len(expected))]
    for got, want in zip(capture.maps.values(), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert float((want - 1 / TOKENS).abs().max()) > 0.05  # far from uniform, or this would show little


def test_branches_of_a_batch_are_told_apart():
    denoiser, x = tiny_denoiser(), tiny_latent(2) * SIGMA
    conds, together = [tiny_cond(seed=0), tiny_cond(seed=1)], CaptureMaps()
    with torch.no_grad():
        denoiser.batch(x, SIGMA, conds, control=together)
        for branch, cond in enumerate(conds):
            alone = CaptureMaps()
            denoiser(x, SIGMA, cond, control=alone)
            for (index, _, _), maps in alone.maps.items():
                torch.testing.assert_close(together.maps[index, branch, 0], maps, atol=1e-5, rtol=1e-5)


def test_chunks_of_one_branch_shown_in_several_calls_or_in_any_order_find_their_reference():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 2, 5, 3, generator=generator) for _ in range(3))
    site = Site("down", 0, (1, 5), 2, "cross", (1, 0))
    capture = CaptureMaps()
    capture(q, k, v, site)
    loss = MapLoss(capture.seen)
    for rows, branch in ((slice(2, 4), 0), (slice(0, 2), 1)):
        loss(q[rows], k[rows], v[rows], Site("down", 0, (1, 5), 2, "cross", (branch,)))
    assert loss.losses.tolist() == [0.0, 0.0]


def test_map_loss_equals_plain_loops():
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    layers = [((2, 3, 4, 5), (2, 3, 6, 5)), ((2, 1, 9, 4), (2, 1, 6, 4))]
    capture, shown = CaptureMaps(), []
    for index, (q_shape, k_shape) in enumerate(layers):
        site = Site("up", index, (1, q_shape[2]), q_shape[1], "cross")
        reference, k = make(*q_shape), make(*k_shape)
        capture(reference, k, make(*k_shape), site)
        shown.append((make(*q_shape), k, make(*k_shape), site))
    control = MapLoss(capture.seen)
    for q, k, v, site in shown:
        torch.testing.assert_close(control(q, k, v, site), scaled_dot_product_attention(q, k, v))
    expected = [0.0, 0.0]
    for index, (q, k, _, _) in enumerate(shown):
        for row in range(2):
            for head in range(q.shape[1]):
                for pixel in range(q.shape[2]):
                    scores = [
                        float(q[row, head, pixel] @ k[row, head, token]) / q.shape[-1] ** 0.5 for token in range(6)
                    ]
                    weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                    for token in range(6):
                        difference = float(weights[token] - capture.maps[index, 0, 0][row, head, pixel, token])
                        expected[row] += difference**2 / q.shape[1] * PUBLISHED_LAYERS / len(shown)
    torch.testing.assert_close(control.losses, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_the_map_loss_equals_finite_differences(family):
    denoiser = tiny_denoiser(family, dtype=torch.float64)
    x, direction = tiny_latent(2, 6, 4).double() * SIGMA, tiny_latent(2, 6, 4, seed=7).double()
    capture = CaptureMaps()
    with torch.no_grad():
        denoiser(tiny_latent(2, 6, 4, seed=1).double() * SIGMA, SIGMA, tiny_cond(family), control=capture)

    def losses(x):
        control = MapLoss(capture.seen)
        denoiser(x, SIGMA, tiny_cond(family, seed=3), control=control)
        return control.losses

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(leaf).sum(), leaf)
    assert denoiser.evaluations.backward == 2  # counted, though the loss never flows through the prediction
    h = 1e-5
    with torch.no_grad():
        slope = (losses(x + h * direction) - losses(x - h * direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_and_losses_are_fp32_whatever_the_network_runs_in(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 50, 8, generator=generator).to(dtype) for _ in range(3))
    site = Site("mid", 0, (5, 10), 2, "cross")
    near = q + 1e-2 * torch.randn(q.shape, generator=generator).to(dtype)  # maps apart by squares that fp16 cannot hold
    expected = (attention_maps(q.double(), k.double()) - attention_maps(near.double(), k.double())).square()
    assert expected.max() < torch.finfo(torch.float16).tiny
    control = MapLoss({(0, 0, 0): (near, k)})
    with torch.autocast("cpu", torch.bfloat16):
        out = control(q, k, v, site)
    assert out.dtype == dtype
    wanted = PUBLISHED_LAYERS * expected.sum((-1, -2)).mean(1).float()
    torch.testing.assert_close(control.losses, wanted, rtol=1e-2, atol=0)


def test_what_cannot_be_guided_is_refused_in_a_sentence():
    x, cond = tiny_latent(), tiny_cond()
    with pytest.raises(EditingError, match="no cross-attention layers"):
        tiny_denoiser("plain")(x, SIGMA, cond, control=CaptureMaps())
    denoiser = tiny_denoiser()
    denoiser.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor = IPAdapterAttnProcessor2_0(
        16, TEXT_WIDTH
    )
    with pytest.raises(EditingError, match="IPAdapterAttnProcessor2_0"):
        denoiser(x, SIGMA, cond, control=CaptureMaps())
    denoiser = tiny_denoiser()
    denoiser.unet.enable_gradient_checkpointing()
    with pytest.raises(EditingError, match="gradient checkpointing"):
        denoiser(x, SIGMA, cond, control=CaptureMaps())
    nothing = MapLoss({})
    tiny_denoiser()(x, SIGMA, cond, control=nothing)
    with pytest.raises(EditingError, match="no cross-attention layer"):
        nothing.losses  # noqa: B018


def test_a_plain_processor_of_another_kind_is_put_back():
    denoiser, other = tiny_denoiser(), AttnProcessor()
    denoiser.unet.set_attn_processor(other)
    with torch.no_grad():
        denoiser(tiny_latent(), SIGMA, tiny_cond(), control=CaptureMaps())
    assert all(processor is other for processor in denoiser.unet.attn_processors.values())


def shorter(key, q, k):
    return key, q, k[:, :, :-1]


def elsewhere(key, q, k):
    return (key[0], 1, 0), q, k


def smaller(key, q, k):
    return key, q[:, :, :-1], k


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shorter, "6 tokens long and the target text 7"),
        (elsewhere, "more parts"),
        (smaller, "different areas or batches"),
    ],
)
def test_maps_that_do_not_correspond_are_refused_in_a_sentence(change, sentence):
    denoiser, capture = tiny_denoiser(), CaptureMaps()
    with torch.no_grad():
        denoiser(tiny_latent(), SIGMA, tiny_cond(), control=capture)
        changed = [change(key, q, k) for key, (q, k) in capture.seen.items()]
        with pytest.raises(EditingError, match=sentence):
            denoiser(tiny_latent(), SIGMA, tiny_cond(), control=MapLoss({key: (q, k) for key, q, k in changed}))


class TestEarlyExit:
    """An evaluation that only serves maps ends after the last layer that is looked at, and leaves nothing behind."""

    def setup_method(self):
        self.denoiser, self.x, self.cond = tiny_denoiser(), tiny_latent(2) * SIGMA, tiny_cond()
        self.entered = []
        for name in ("down_blocks.0", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"):
            module = self.denoiser.unet.get_submodule(name)
            module.register_forward_pre_hook(lambda *_, name=name: self.entered.append(name))
        self.whole = CaptureMaps((4, 4))
        with torch.no_grad():
            self.prediction = show(self.denoiser, self.x, SIGMA, self.cond, self.whole)
        self.processors = dict(self.denoiser.unet.attn_processors)

    def check_nothing_left(self, forward):
        assert self.denoiser.evaluations.forward == forward
        assert all(self.processors[name] is now for name, now in self.denoiser.unet.attn_processors.items())
        with torch.no_grad():
            assert torch.equal(self.denoiser(self.x, SIGMA, self.cond), self.prediction)
        assert all(parameter.requires_grad for parameter in self.denoiser.unet.parameters())

    def test_a_capture_that_knows_its_layers_ends_after_them(self):
        assert self.entered[-1] == "conv_out"
        self.entered.clear()
        capture = CaptureMaps((4, 4), until=self.whole.seen)
        with torch.no_grad():
            assert show(self.denoiser, self.x, SIGMA, self.cond, capture) is None
        assert self.entered == ["down_blocks.0", "mid_block", "up_blocks.0"]  # up_blocks.1 works at 8 x 8
        for key, maps in self.whole.maps.items():
            assert torch.equal(capture.maps[key], maps)
        self.check_nothing_left(2 + 2)

    def test_the_loss_and_its_gradient_are_those_of_the_whole_evaluation(self):
        results = []
        for to_the_end in (True, False):
            self.entered.clear()
            control, leaf = MapLoss(self.whole.seen, to_the_end), (self.x * 1.1).requires_grad_()
            made = show(self.denoiser, leaf, SIGMA, self.cond, control)
            (gradient,) = torch.autograd.grad(control.losses.sum(), leaf)
            results.append((control.losses.detach(), gradient))
            assert (made is None) is ("conv_out" not in self.entered) is not to_the_end
        for whole, early in zip(*results, strict=True):
            assert torch.equal(whole, early)
        assert float(gradient.abs().max()) > 0
        assert self.denoiser.evaluations.backward == 2 + 2
        self.check_nothing_left(2 + 2 + 2)

    def test_without_a_reader_the_signal_is_an_exception_of_its_own(self):
        with torch.no_grad(), pytest.raises(LastLayerSeen):
            self.denoiser(self.x, SIGMA, self.cond, control=CaptureMaps(until=[(0, 0, 0)], largest=(8, 8)))
        self.check_nothing_left(2)


def test_what_the_loss_keeps_for_its_backward_pass_grows_by_no_map():
    """Queries and keys are kept anyway; a map of 7 tokens by 64 pixels and 2 heads is never among what is saved."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, count, 3, generator=generator) for count in (64, 7, 7))
    saved = []
    control = MapLoss({(0, 0, 0): (q + 0.1, k)})
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        control(q.requires_grad_(), k, v, Site("mid", 0, (8, 8), 2, "cross"))
    assert (1, 2, 64, 7) not in saved

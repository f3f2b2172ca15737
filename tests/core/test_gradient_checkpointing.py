"""Blocks computed again: the same gradients, fewer bytes kept, and nothing left behind."""

import pytest
import torch
from torch import nn

from semantic_editing.core.gradient_checkpointing import blocks_of, checkpointed


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.runs = 0

    def forward(self, x, options=None):
        self.runs += 1
        return x + self.layers(x if options is None else options["factor"] * x)


class Network(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.down = nn.ModuleList([nn.Sequential(Residual(width), Residual(width))])
        self.middle = nn.Module()
        self.middle.block = Residual(width)
        self.residuals = [*self.down[0], self.middle.block]

    def forward(self, x):
        options, x = {}, self.first(x)
        for number, block in enumerate(self.residuals):
            options["factor"] = number + 1.0  # as ComfyUI tells its blocks which one they are
            x = block(x, options)
        return x


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().double().requires_grad_(False)


def kept_bytes(network, leaf):
    """``(output, bytes that autograd keeps for the backward pass)``."""
    stores = {}

    def pack(tensor):
        stores[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(leaf)
    return out, sum(store.nbytes() for store in stores.values())


def test_blocks_are_the_outermost_parts_with_parts(network):
    assert blocks_of(network) == network.residuals


def test_same_gradient_with_fewer_bytes_kept_and_nothing_left(network):
    gradients, kept = [], []
    for blocks in ([], blocks_of(network)):
        leaf = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6).requires_grad_()
        with checkpointed(blocks):
            out, size = kept_bytes(network, leaf)
        gradients.append(
            torch.autograd.grad(out.square().sum(), leaf)[0]
        )  # after the block: what was recorded in it stays
        kept.append(size)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)
    assert kept[1] < kept[0] / 3
    assert [block.runs for block in network.residuals] == [3, 3, 3], "once without, once with and once again"
    assert not any("forward" in block.__dict__ for block in network.modules())


def test_without_a_gradient_nothing_runs_twice_and_an_error_restores(network):
    with pytest.raises(ZeroDivisionError), checkpointed(blocks_of(network)):
        network(torch.zeros(1, 6, dtype=torch.float64))
        with torch.no_grad():
            network(torch.zeros(1, 6, dtype=torch.float64, requires_grad=True))
        raise ZeroDivisionError
    assert [block.runs for block in network.residuals] == [2, 2, 2]
    assert not any("forward" in block.__dict__ for block in network.modules())


def test_a_forward_that_another_program_put_there_comes_back(network):
    block = network.middle.block

    def own(x, options=None):
        return x

    block.forward = own
    with checkpointed([block]):
        assert block.forward is not own
    assert block.forward is own

"""Gradient checkpointing (Chen et al. 2016): blocks that keep no activations but run again for a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost parts of ``network`` with parts of their own: residual blocks, transformers, upsamplers.

    Lists, sequences and modules that do nothing but contain others
    are searched for blocks inside; single layers are left out, because running them again saves nothing.
    """
    found: list[nn.Module] = []
    for part in network.children():
        if type(part) is nn.Module or isinstance(part, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            found += blocks_of(part)
        elif any(True for _ in part.children()):
            found.append(part)
    return found


@contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Within the ``with`` block each of ``blocks`` keeps only its inputs, and runs again in a backward pass.

    Gradients stay the same. A forward made inside may be differentiated after the end. Evaluations (u) count what an
    algorithm asks of a network, so running again is not counted; it costs about the time of one more forward.
    """
    blocks = list(blocks)
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = _checkpointed(block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            del block.__dict__["forward"]
            if own is not None:
                block.__dict__["forward"] = own


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def call(*arguments: Any, **named: Any) -> Any:
        given = [*arguments, *named.values()]
        if not (is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in given)):
            return forward(*arguments, **named)
        # Blocks hand on options that they change (ComfyUI's transformer_options name the next block): each gets copies.
        arguments = tuple(_as_it_is(value) for value in arguments)
        return checkpoint(
            forward, *arguments, use_reentrant=False, **{key: _as_it_is(value) for key, value in named.items()}
        )

    return call


def _as_it_is(value: Any) -> Any:
    return dict(value) if type(value) is dict else value

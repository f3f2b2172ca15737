"""Attention control in a diffusers U-Net: who its attention layers are, and handing them to a control for one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from ..attention.site import AttentionControl, Site
from ..errors import EditingError

#: Processors that compute plain attention, which a control can stand in for. Others (IP-Adapter) add terms of their
#: own.
PLAIN_PROCESSORS = frozenset(
    {"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "SlicedAttnProcessor", "FusedAttnProcessor2_0"}
)


@contextmanager
def controlled(
    unet: nn.Module, control: AttentionControl | None, size: tuple[int, int], branches: tuple[int, ...]
) -> Iterator[None]:
    """Show the attention of the calls made inside the ``with`` block to ``control``.

    Only layers the control wants get another processor; all of them get theirs back at the end, whatever happens.

    Args:
        unet: a ``UNet2DConditionModel``.
        control: None leaves the network alone.
        size: height and width of the latent.
        branches: see :class:`Site`.

    Raises:
        EditingError: a control for a network without cross-attention, a wanted layer with a processor that does more
            than attention, or gradient checkpointing (its second forward would run when the control is gone).
    """
    if control is None:
        yield
        return
    if getattr(unet, "is_gradient_checkpointing", False):
        raise EditingError(
            "Attention cannot be guided under gradient checkpointing; call unet.disable_gradient_checkpointing() first."
        )
    sites = list(attention_sites(unet, size, branches))
    if not any(site.kind == "cross" for _, site in sites):
        raise EditingError(
            "This model has no cross-attention layers to steer; use a Stable Diffusion 1.x, 2.x or SDXL model, "
            "or an edit that guides no attention."
        )
    wanted = [(layer, site) for layer, site in sites if control.wants(site)]
    for layer, _ in wanted:
        name = type(layer.processor).__name__
        if name not in PLAIN_PROCESSORS:
            raise EditingError(
                f"The model's attention runs through {name}, which cannot be guided; unload that adapter first."
            )
    previous = [layer.processor for layer, _ in wanted]
    try:
        for layer, site in wanted:
            layer.processor = _ControlledAttention(control, site)
        yield
    finally:
        for (layer, _), processor in zip(wanted, previous, strict=True):
            layer.processor = processor


def attention_sites(unet: Any, size: tuple[int, int], branches: tuple[int, ...] = (0,)) -> Iterator[tuple[Any, Site]]:
    """Every attention layer of the transformer blocks with its :class:`Site`, in network order (down, mid, up)."""
    numbers = {"self": 0, "cross": 0}
    for block, resolution, module in _stages(unet, size):
        for transformer in module.modules():
            for name in ("attn1", "attn2"):
                layer = getattr(transformer, name, None)
                if layer is None:
                    continue
                kind: Literal["self", "cross"] = "cross" if layer.is_cross_attention else "self"
                yield layer, Site(block, numbers[kind], resolution, layer.heads, kind, branches)
                numbers[kind] += 1


def _stages(
    unet: Any, size: tuple[int, int]
) -> Iterator[tuple[Literal["down", "mid", "up"], tuple[int, int], nn.Module]]:
    """The parts of the U-Net in network order with the resolution their attention works at."""
    sizes = [size]
    for module in unet.down_blocks:
        yield "down", sizes[-1], module
        if module.downsamplers is not None:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
    if unet.mid_block is not None:
        yield "mid", sizes[-1], unet.mid_block
    for module in unet.up_blocks:
        yield "up", sizes[-1], module
        if module.upsamplers is not None:
            sizes.pop()


class _ControlledAttention:
    """An attention processor that leaves the projections to the layer and the attention itself to a control."""

    def __init__(self, control: AttentionControl, site: Site):
        self.control = control
        self.site = site

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """``hidden_states [B, N, C]`` (and the text ``[B, M, D]``) -> ``[B, N, C]``, without the residual."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        q, k, v = (tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in projected)
        out = self.control(q, k, v, self.site).to(q.dtype).transpose(1, 2).flatten(2)
        for module in attn.to_out:
            out = module(out)
        return out / attn.rescale_output_factor

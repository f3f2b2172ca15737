"""Feature control in a ComfyUI U-Net: handing what residual blocks put out to a control for one forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn

from ...core.attention.site import Block, FeatureControl, FeatureSite


@contextmanager
def features_controlled(network: Any, control: object, branches: tuple[int, ...]) -> Iterator[None]:
    """Show the residual blocks of the forward made inside the ``with`` block to ``control``, where it is a
    ``core.attention.site.FeatureControl``; its hooks are gone at the end, whatever happens.
    """
    if not isinstance(control, FeatureControl):
        yield
        return
    feature = control.feature
    handles = []
    try:
        for layer, site in feature_sites(network, branches):
            if control.wants_feature(site):
                handles.append(layer.register_forward_hook(lambda _, __, out, site=site: feature(out, site)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def feature_sites(network: Any, branches: tuple[int, ...] = (0,)) -> Iterator[tuple[nn.Module, FeatureSite]]:
    """The last convolution of every residual block with its site, in network order."""
    middle = [] if network.middle_block is None else [network.middle_block]
    parts: tuple[tuple[Block, Any], ...] = (
        ("down", network.input_blocks),
        ("mid", middle),
        ("up", network.output_blocks),
    )
    for block, groups in parts:
        index = 0
        for group in groups:
            layers = list(group) if group is not None else []
            for number, layer in enumerate(layers):
                if isinstance(layer, ResBlock):
                    attends = any(isinstance(after, SpatialTransformer) for after in layers[number + 1 : number + 2])
                    yield layer.out_layers[-1], FeatureSite(block, index, attends, branches)
                    index += 1

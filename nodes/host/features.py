"""The residual blocks of a ComfyUI U-Net, for controls of what they put out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn

from ...core.attention.site import Block, FeatureSite


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

"""The residual blocks of a diffusers U-Net, for controls of what they put out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..attention.site import Block, FeatureSite


def feature_sites(unet: Any, branches: tuple[int, ...] = (0,)) -> Iterator[tuple[nn.Module, FeatureSite]]:
    """The last convolution of every residual block with its :class:`FeatureSite`, in network order."""
    parts: tuple[tuple[Block, Any], ...] = (
        ("down", unet.down_blocks),
        ("mid", [] if unet.mid_block is None else [unet.mid_block]),
        ("up", unet.up_blocks),
    )
    for block, modules in parts:
        index = 0
        for module in modules:
            transformers = getattr(module, "attentions", None) or []
            for number, residual in enumerate(module.resnets):
                yield residual.conv2, FeatureSite(block, index, number < len(transformers), branches)
                index += 1

"""Feature control in a diffusers U-Net: handing what residual blocks put out to a control for one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..attention.site import Block, FeatureControl, FeatureSite


@contextmanager
def features_controlled(unet: nn.Module, control: object | None, branches: tuple[int, ...]) -> Iterator[None]:
    """Show the residual blocks of the calls made inside the ``with`` block to ``control``, where it is a
    :class:`FeatureControl`; its hooks are gone at the end, whatever happens.

    Args:
        unet: a ``UNet2DConditionModel``.
        branches: see :class:`~..attention.site.Site`.
    """
    if not isinstance(control, FeatureControl):
        yield
        return
    feature = control.feature
    handles = []
    try:
        for layer, site in feature_sites(unet, branches):
            if control.wants_feature(site):
                handles.append(layer.register_forward_hook(lambda _, __, out, site=site: feature(out, site)))
        yield
    finally:
        for handle in handles:
            handle.remove()


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

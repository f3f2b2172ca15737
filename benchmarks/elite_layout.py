"""Random tensors under the names of ELITE's ``global_mapper.pt``, of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def elite_tensors(
    vision: int = 6, hidden: int = 5, word: int = 4, projections: Sequence[tuple[str, int]] = ()
) -> dict[str, Tensor]:
    """Random tensors under the names of ELITE's ``global_mapper.pt``; ``projections`` are names and inner widths."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(5):
        for name in (f"mapping_{number}", f"mapping_patch_{number}"):
            for layer, width in ((0, vision), (3, hidden), (6, hidden)):
                rows = word if layer == 6 else hidden
                shapes |= {f"{name}.{layer}.weight": (rows, width), f"{name}.{layer}.bias": (rows,)}
            for layer in (1, 4):
                shapes |= {f"{name}.{layer}.weight": (hidden,), f"{name}.{layer}.bias": (hidden,)}
    for name, inner in projections or (("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 8),):
        shapes[f"{name}.weight"] = (inner, word)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

"""Snapshots as NVIDIA's GAN trainings pickle them, of random tensors: networks that bring their classes' source."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

MODULE, FUNCTION = "torch_utils.persistence", "_reconstruct_persistent_obj"
#: Tensors that are no parameters.
BUFFERS = ("noise_const", "resample_filter", "w_avg")
#: What the source of a class would do if somebody ran it.
SOURCE = "import os\nos.abort()\n"


class Persistent:
    """A network that pickles itself with its class's source.

    Args:
        kind: name of the class.
        state: its attributes, ``_parameters``, ``_buffers`` and ``_modules`` among them.
        source: of the module that defines the class.
    """

    def __init__(self, kind: str, state: dict[str, Any], source: str = SOURCE):
        self.kind, self.state, self.source = kind, state, source

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.kind, "state": self.state}
        return getattr(sys.modules[MODULE], FUNCTION), (meta,)


@contextlib.contextmanager
def persistence() -> Iterator[None]:
    """Within the ``with`` block pickles can name NVIDIA's function."""

    def reconstruct(meta: dict[str, Any]) -> Any:
        raise AssertionError("the reader must not call it")

    reconstruct.__module__, reconstruct.__qualname__ = MODULE, FUNCTION
    package = MODULE.partition(".")[0]
    made = {package: ModuleType(package), MODULE: ModuleType(MODULE)}
    setattr(made[MODULE], FUNCTION, reconstruct)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def network(tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None, source: str = SOURCE) -> Persistent:
    """Networks inside each other, of tensors and attributes by their dotted names."""
    facts = facts or {}
    inside = sorted({key.split(".")[0] for key in (*tensors, *facts) if "." in key})

    def below(table: Mapping[str, Any], part: str) -> dict[str, Any]:
        return {key.removeprefix(f"{part}."): value for key, value in table.items() if key.startswith(f"{part}.")}

    own = {key: value for key, value in tensors.items() if "." not in key}
    state = {
        "training": False,
        "_parameters": {key: torch.nn.Parameter(value) for key, value in own.items() if key not in BUFFERS},
        "_buffers": {key: value for key, value in own.items() if key in BUFFERS},
        "_non_persistent_buffers_set": set(),
        "_modules": {part: network(below(tensors, part), below(facts, part), source) for part in inside},
    }
    return Persistent("Generator", state | {key: value for key, value in facts.items() if "." not in key}, source)


def generator_tensors(widths: Mapping[int, int], style_dim: int, layers: int, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a StyleGAN2 under NVIDIA's names.

    Args:
        widths: resolution -> channels.
        layers: of the mapping network.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return mean + scale * torch.randn(shape, generator=generator)

    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    found = {"mapping.w_avg": random(style_dim, scale=0.1)}
    for index in range(layers):
        found[f"mapping.fc{index}.weight"] = random(style_dim, style_dim, scale=100.0)
        found[f"mapping.fc{index}.bias"] = random(style_dim, scale=10.0)
    before = 0
    for side, width in widths.items():
        block = f"synthesis.b{side}"
        found[f"{block}.resample_filter"] = line[:, None] * line
        if not before:
            found[f"{block}.const"] = random(width, side, side)
        for layer, inputs in (("conv0", before), ("conv1", width)):
            if not inputs:
                continue
            found |= {
                f"{block}.{layer}.weight": random(width, inputs, 3, 3),
                f"{block}.{layer}.bias": random(width, scale=0.3),
                f"{block}.{layer}.noise_const": random(side, side),
                f"{block}.{layer}.noise_strength": random(scale=0.3),
                f"{block}.{layer}.resample_filter": line[:, None] * line,
                f"{block}.{layer}.affine.weight": random(inputs, style_dim),
                f"{block}.{layer}.affine.bias": random(inputs, scale=0.3, mean=1.0),
            }
        found |= {
            f"{block}.torgb.weight": random(3, width, 1, 1),
            f"{block}.torgb.bias": random(3, scale=0.3),
            f"{block}.torgb.affine.weight": random(width, style_dim),
            f"{block}.torgb.affine.bias": random(width, scale=0.3, mean=1.0),
        }
        before = width
    return found


def write_snapshot(path: Path, value: Any, protocol: int = 4) -> Path:
    """Pickle ``value``, e.g. ``{"G": ..., "G_ema": network(...)}``."""
    with persistence():
        path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path

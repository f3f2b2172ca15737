"""ELITE's global mapper (Wei et al. 2023, arXiv 2302.13848): pictures as words, and how cross-attention reads them.

Five small networks take CLIP's image tokens of five layers to five words; the first, of the last layer, is the one that
names the thing in the picture. The file also holds the key and value projections that were trained with them, which are
the U-Net's for every text, not for the word alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_tensors
from ..reading.pickles import read_table_pickle

#: Layers of CLIP's image tower whose tokens are mapped, counted from 1; -1 is the last. One word each, in this order.
LAYERS = (-1, 4, 8, 12, 16)
PROJECTION = re.compile(r"(.+_attn2_to_[kv])\.weight")
#: Of one network: its three linear layers, each but the last with a normalisation behind it.
LINEAR, NORM = (0, 3, 6), (1, 4)


@dataclass(frozen=True, eq=False)
class EliteMapper:
    """The networks and projections of a file.

    Attributes:
        networks: "mapping_0" to "mapping_4", which read the class token, and "mapping_patch_0" to "mapping_patch_4",
            which read the others: name -> tensors by their names in the file, "0.weight" to "6.bias".
        projections: name of a layer's projection, as diffusers has it with underscores -> ``[inner, word]`` weight.
    """

    networks: Mapping[str, Mapping[str, Tensor]]
    projections: Mapping[str, Tensor]

    @property
    def vision_width(self) -> int:
        """Width of the image tokens."""
        return self.networks["mapping_0"]["0.weight"].shape[1]

    @property
    def word_width(self) -> int:
        """Width of the words."""
        return self.networks["mapping_0"]["6.weight"].shape[0]

    def words(self, states: Sequence[Tensor]) -> Tensor:
        """Words ``[B, 5, W]`` of the tokens of :data:`LAYERS`, each ``[B, N, D]`` with the class token first.

        Raises:
            EditingError: tokens of another width, or another number of layers.
        """
        if len(states) != len(LAYERS) or any(part.shape[-1] != self.vision_width for part in states):
            raise EditingError(
                f"This ELITE mapper reads {self.vision_width} channels of {len(LAYERS)} layers; use the image tower it "
                "was trained with, CLIP ViT-L/14."
            )
        made = []
        for number, part in enumerate(states):
            tokens = part.float()
            whole = _mapped(self.networks[f"mapping_{number}"], tokens[:, :1])
            made.append(whole + _mapped(self.networks[f"mapping_patch_{number}"], tokens[:, 1:]).mean(1, keepdim=True))
        return torch.cat(made, 1)


def _mapped(network: Mapping[str, Tensor], x: Tensor) -> Tensor:
    for linear, norm in zip(LINEAR, (*NORM, None), strict=True):
        x = functional.linear(x, network[f"{linear}.weight"], network[f"{linear}.bias"])
        if norm is not None:
            x = functional.layer_norm(x, x.shape[-1:], network[f"{norm}.weight"], network[f"{norm}.bias"])
            x = functional.leaky_relu(x)
    return x


def load_elite_mapper(path: str | Path) -> EliteMapper:
    """Read ELITE's ``global_mapper.pt``, or the same tensors in a safetensors file.

    Raises:
        EditingError: missing, damaged, or another kind of file.
    """
    source = Path(path)
    if source.suffix == ".safetensors":
        tensors, _ = load_tensors(source, kind="ELITE mapper")
    else:
        tensors = read_table_pickle(source, "ELITE mapper")
    networks, projections = {}, {}
    names = [f"mapping_{kind}{number}" for number in range(len(LAYERS)) for kind in ("", "patch_")]
    for name in names:
        parts = {key.removeprefix(f"{name}."): part for key, part in tensors.items() if key.startswith(f"{name}.")}
        networks[name] = _checked(source.name, parts)
    widths = {(parts["0.weight"].shape[1], parts["6.weight"].shape[0]) for parts in networks.values()}
    for key, part in tensors.items():
        found = PROJECTION.fullmatch(key)
        if found is not None:
            projections[found[1]] = _number(source.name, part)
    word = networks[names[0]]["6.weight"].shape[0]
    if len(widths) != 1 or any(part.ndim != 2 or part.shape[1] != word for part in projections.values()):
        raise EditingError(f"{source.name} has parts that do not fit together; download the mapper again.")
    if not projections:
        raise EditingError(
            f"{source.name} holds no key and value projections; use ELITE's global_mapper.pt, which has them."
        )
    return EliteMapper(networks, projections)


def _checked(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one network, fp32, when they are those and fit together."""
    wanted = {f"{layer}.{part}" for layer in (*LINEAR, *NORM) for part in ("weight", "bias")}
    if set(parts) != wanted:
        raise EditingError(f"{name} is no ELITE mapper; choose ELITE's global_mapper.pt.")
    first, middle, last = (parts[f"{layer}.weight"] for layer in LINEAR)
    fits = first.ndim == middle.ndim == last.ndim == 2
    fits = fits and middle.shape[1] == first.shape[0] and last.shape[1] == middle.shape[0]
    for linear, norm in zip(LINEAR, (*NORM, None), strict=True):
        vectors = [parts[f"{linear}.bias"]]
        vectors += [] if norm is None else [parts[f"{norm}.weight"], parts[f"{norm}.bias"]]
        fits = fits and all(part.shape == parts[f"{linear}.weight"].shape[:1] for part in vectors)
    if not fits or not all(part.numel() for part in parts.values()):
        raise EditingError(f"{name} has parts that do not fit together; download the mapper again.")
    return {key: _number(name, part) for key, part in parts.items()}


def _number(name: str, part: Tensor) -> Tensor:
    if not part.is_floating_point():
        raise EditingError(f"{name} has weights that are no numbers with a point; download the mapper again.")
    check_finite(part, f"A weight of {name}")
    return part.float()

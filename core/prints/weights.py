"""Prints of networks by content: a slice of every tensor, so that a merged LoRA or another checkpoint is told apart.

A print survives a change of file format, backend and storage precision (fp32, bf16, fp16), unlike a hash of bytes. It
is a few milliseconds of work, so it is taken anew whenever it is asked for and never stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..content_hash import content_hash

PICKED = 8  # values taken of each tensor
CODE_LENGTH = 8  # hexadecimal digits shown to people
#: bf16 keeps 8 bits of mantissa, so equal weights in another precision agree to about 0.4 %.
RELATIVE, ABSOLUTE = 1e-2, 1e-6


@dataclass(frozen=True, eq=False)
class WeightPrint:
    """Slices of all tensors of a network, whatever they are called and in whatever order.

    Attributes:
        sizes: elements of each tensor, ascending, int64 ``[N]``.
        values: ``[N, 8]`` fp32; among tensors of one size each column is sorted by itself. Sorting moves nothing
            further apart than it was, so what rounds alike compares alike, and no names need to correspond.
    """

    sizes: Tensor
    values: Tensor

    @property
    def hash(self) -> str:
        """Hexadecimal; that of the same weights in another precision is another one."""
        return content_hash(self.sizes, self.values)

    @property
    def code(self) -> str:
        """A short :attr:`hash` for people."""
        return self.hash[:CODE_LENGTH]

    def mismatch(self, other: WeightPrint) -> str | None:
        """Say in half a sentence how ``other`` differs, or None when both are of the same weights."""
        if not torch.equal(self.sizes, other.sizes):
            return "differently shaped networks"
        gap, size = (self.values - other.values).abs(), torch.maximum(self.values.abs(), other.values.abs())
        return "other weights" if bool((gap > ABSOLUTE + RELATIVE * size).any()) else None


def weight_print(tensors: Iterable[Tensor]) -> WeightPrint:
    """The print of a network's parameters, of any shapes, dtypes and devices; NaN counts as 0."""
    taken = [(tensor.numel(), piece) for tensor in map(_plain, tensors) for piece in (_picked(tensor),)]
    if not taken:
        return WeightPrint(torch.zeros(0, dtype=torch.int64), torch.zeros(0, PICKED))
    sizes = torch.tensor([size for size, _ in taken])
    values = torch.nan_to_num(_joined([piece for _, piece in taken]))
    order = sizes.sort(stable=True)
    sizes, values = order.values, values[order.indices]
    bounds = [0, *((sizes.diff() != 0).nonzero().flatten() + 1).tolist(), len(sizes)]
    groups = [values[start:end].sort(dim=0).values for start, end in pairwise(bounds)]
    return WeightPrint(sizes, torch.cat(groups))


def sliced(tensor: Tensor) -> Tensor:
    """``[8]`` evenly spaced values of a tensor of any shape, fp32 on the CPU."""
    return _picked(_plain(tensor)).float().cpu()


def _plain(tensor: Tensor) -> Tensor:
    """The stored numbers of a tensor, packed ones as they are packed (GGUF's bytes, a quantised tensor's codes)."""
    tensor = tensor.detach()
    stored = getattr(tensor, "_qdata", None)
    if isinstance(stored, Tensor):
        return stored
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _picked(tensor: Tensor) -> Tensor:
    """``[8]`` of its own dtype, without touching the rest of the tensor."""
    count = tensor.numel()
    if not count or tensor.is_meta:
        return torch.zeros(PICKED)
    stride = max(1, (count - 1) // (PICKED - 1))
    if tensor.is_contiguous():
        piece = tensor.view(-1)[::stride][:PICKED]
    else:
        index = torch.arange(0, count, stride)[:PICKED].to(tensor.device)
        piece = tensor[torch.unravel_index(index, tensor.shape)]
    return piece if len(piece) == PICKED else torch.cat([piece, piece[-1:].expand(PICKED - len(piece))])


def _joined(pieces: list[Tensor]) -> Tensor:
    """``[N, 8]`` fp32 on the CPU, with one transfer for each device and dtype."""
    values = torch.zeros(len(pieces), PICKED)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, piece in enumerate(pieces):
        kinds.setdefault((piece.device, piece.dtype), []).append(number)
    for (_, dtype), numbers in kinds.items():
        chosen = [pieces[number] for number in numbers]
        if dtype.itemsize == 1:  # not every device joins eight-bit floats
            chosen = [piece.float() for piece in chosen]
        values[numbers] = torch.cat(chosen).float().cpu().view(-1, PICKED)
    return values

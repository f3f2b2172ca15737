"""One array of numbers in NumPy's ``.npy``, read without pickles and without believing what its header claims."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import EditingError
from ..file_names import shown_name
from .kinds import KINDS, check_size

LONGEST_HEADER = 10_000  # bytes; NumPy's own limit
SIDES = 8
#: Where the header's length begins, and in how many bytes it is written, in the versions of the format.
VERSIONS = {(1, 0): 2, (2, 0): 4}


def read_array(path: str | Path, kind: str) -> Tensor:
    """The floating-point array in a ``.npy`` file, as fp32.

    Args:
        kind: of file, a key of :data:`~.kinds.KINDS`.

    Raises:
        EditingError: missing, too large, damaged, or anything else than one array of floating-point numbers.
    """
    source = Path(path)
    size, name, title = check_size(source, kind), shown_name(source.name), KINDS[kind].title
    try:
        with source.open("rb") as stream:
            shape, columns_first, dtype = _header(stream)
            if dtype.kind != "f" or dtype.hasobject or len(shape) > SIDES:
                raise EditingError(f"{name} holds no floating-point numbers, which a {title} is; choose another file.")
            if math.prod(shape) * dtype.itemsize != size - stream.tell():
                raise ValueError("more or fewer numbers than declared")
            numbers = np.frombuffer(stream.read(), dtype).reshape(shape, order="F" if columns_first else "C")
        with np.errstate(over="ignore"):  # a double beyond fp32 becomes infinite, which whoever reads it refuses
            return torch.from_numpy(np.array(numbers, np.float32, order="C"))
    except (EditingError, MemoryError):
        raise
    except Exception as error:  # the header is a text of Python, which can be wrong in any way
        raise EditingError(f"{name} is damaged or was not saved by numpy.save; download it again.") from error


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type. The stream is left at the numbers."""
    start = stream.read(12)
    length_bytes = VERSIONS[(start[6], start[7])]
    length = int.from_bytes(start[8 : 8 + length_bytes], "little")
    if start[:6] != b"\x93NUMPY" or length > LONGEST_HEADER:
        raise ValueError("no array")
    stream.seek(8)
    header = io.BytesIO(stream.read(length_bytes + length))  # NumPy parses it as a literal and runs nothing
    if VERSIONS[(start[6], start[7])] == 2:
        return np.lib.format.read_array_header_1_0(header)
    return np.lib.format.read_array_header_2_0(header)

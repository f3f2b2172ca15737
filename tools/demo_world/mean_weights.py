"""The mean of networks trained on from one another, which errs less than either. Usage: mean_weights.py FILE FILE ...
--out FILE

Metadata are those of the last file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


def mean(tensors: list[Tensor]) -> Tensor:
    """Of floats the mean in their own precision; counters are the last one's."""
    last = tensors[-1]
    return (
        torch.stack([tensor.float() for tensor in tensors]).mean(0).to(last.dtype) if last.is_floating_point() else last
    )


def main() -> None:
    """Read, average, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    states = [load_file(file) for file in options.files]
    with safe_open(options.files[-1], "pt") as file:
        metadata = file.metadata()
    save_file({name: mean([state[name] for state in states]) for name in states[-1]}, options.out, metadata=metadata)


if __name__ == "__main__":
    main()

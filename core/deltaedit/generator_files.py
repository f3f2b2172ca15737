"""Files of StyleGAN2 generators: this pack's, those of the PyTorch port, and NVIDIA's snapshots.

All of them are read into the same network, which computes in single precision throughout. NVIDIA's later networks were
trained with half precision at the highest resolutions and with every layer's values held within 256: the limit is kept,
the rounding is not (it is what their own ``force_fp32`` leaves out, too).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..content_hash import content_hash
from ..errors import EditingError
from ..file_names import shown_name
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..reading.forms import only
from ..reading.kinds import LARGEST_SIDE
from ..reading.pickles import read_snapshot_pickle
from .stylegan2 import FILTER, MAPPING_RATE, Blur, StyleGAN2, Upsample, low_pass

FILE_FORMAT = "semantic_editing.stylegan2"
#: Arguments of :class:`~.stylegan2.StyleGAN2`, as a file describes them.
SHAPE = ("size", "channels", "style_dim", "mapping_layers", "clamp")
#: What a training's file holds beside what nobody needs: the averaged generator, as NVIDIA and the port call it, and
#: the mean of W.
NVIDIA, PORT, MEAN = "G_ema", "g_ema", "latent_avg"
#: Names of a layer's tensors: the port's -> NVIDIA's.
PARTS = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "noise.weight": "noise_strength",
    "activate.bias": "bias",
    "bias": "bias",
}
#: Filters, which follow from the network's kind; files repeat them in every layer.
FILTERS = (".kernel", ".resample_filter")
#: A stored filter may differ from 1, 3, 3, 1 by rounding to half precision.
CLOSE = 1e-3
LARGEST_CLAMP = 1e6
MOST_LAYERS = 64  # of a mapping network
MOST_CHANNELS = 65_536
NAMED = 3  # tensors that a sentence names


def load_generator(path: str | Path) -> StyleGAN2:
    """Read a generator, whatever program wrote it; size, channels and layers follow from its tensors.

    Args:
        path: safetensors of :func:`save_generator` or with the port's names, a ``.pt`` of the port (a table with
            ``g_ema``, or the weights alone), or a ``.pkl`` of stylegan2-ada-pytorch. No code in a file is run.

    Raises:
        EditingError: missing, damaged, hostile, of another kind (StyleGAN3, conditional, without skip connections), or
            incomplete; the sentence names what is missing.
    """
    source = Path(path)
    shape: dict[str, Any] | None = None
    if source.suffix == ".safetensors":
        weights, metadata = load_tensors(source, kind="stylegan2")
        if metadata.get(FORMAT_KEY) == FILE_FORMAT:
            shape = only(metadata_json(metadata, "shape", source.name, "stylegan2"), SHAPE)
            shape["channels"] = {int(side): width for side, width in shape["channels"].items()}
        return _assembled(weights, shape, source.name)
    read = read_snapshot_pickle(source, "stylegan2", (NVIDIA, PORT, MEAN))
    prefix = f"{NVIDIA}." if any(key.startswith(f"{NVIDIA}.") for key in read.tensors) else ""
    if prefix or any(key.startswith(("synthesis.", "mapping.")) for key in read.tensors):
        tensors, facts = _below(read.tensors, prefix), _below(read.facts, prefix)
        shape = _nvidia_shape(tensors, facts, source.name)
        return _assembled(_renamed(tensors, facts, shape, source.name), shape, source.name)
    weights = {key.removeprefix(f"{PORT}."): value for key, value in read.tensors.items() if key != MEAN}
    if MEAN in read.tensors:
        weights["w_mean"] = read.tensors[MEAN].flatten()
    return _assembled(weights, None, source.name)


def save_generator(
    path: str | Path, generator: StyleGAN2, overwrite: bool = False, *, half_precision: bool = False
) -> Path:
    """Write a generator as safetensors, from whatever file it came; it gets its :func:`identity_of`.

    Args:
        half_precision: store 16 bits for each number, half the size. What is read is again computed in 32.

    Raises:
        EditingError: see :func:`~..files.save_tensors`, or a number is too large for half precision.
    """
    tensors = dict(generator.state_dict())
    if not generator.w_mean.isnan().any():
        tensors["w_mean"] = generator.w_mean
    tensors = {name: value.detach().float() for name, value in tensors.items()}
    if half_precision:
        tensors = {name: value.half() for name, value in tensors.items()}
        _check_finite(tensors, Path(path).name, "in half precision; save it in single precision")
    generator.identity = identity_of(generator)
    channels = {str(side): width for side, width in generator.widths.items()}
    values = (generator.size, channels, generator.style_dim, generator.mapping_layers, generator.clamp)
    shape = dict(zip(SHAPE, values, strict=True))
    metadata = {FORMAT_KEY: FILE_FORMAT, "shape": json.dumps(shape)}
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def identity_of(generator: StyleGAN2) -> str:
    """Names a style space: a hash of the affine layers, which make S of W+.

    They are rounded to half precision first, so that a generator keeps its identity whether a file stores 16 or 32
    bits.
    """
    affine = [value for key, value in generator.state_dict().items() if ".modulation." in key]
    return content_hash(*(value.float().half() for value in affine))


def _below(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in table.items() if key.startswith(prefix)}


def _assembled(weights: Mapping[str, Tensor], shape: dict[str, Any] | None, name: str) -> StyleGAN2:
    """The network of weights with the port's names and "w_mean"; nothing is allocated before all of them fit."""
    shape = shape or _port_shape(weights, name)
    with torch.device("meta"):
        generator = StyleGAN2(**shape)
    expected = {key: value for key, value in generator.state_dict().items() if not key.endswith(FILTERS)}
    _require(expected, weights, name)
    for key, value in weights.items():
        if key.endswith(FILTERS):
            _check_filter(value, key, name)
        elif key == "w_mean":
            _check_shape(value, (generator.style_dim,), "mean of W", name)
        elif key not in expected:
            raise EditingError(
                f"{name} holds {shown_name(key)}, which no StyleGAN2 of {generator.size} pixels has; choose another "
                "file."
            )
        else:
            _check_shape(value, tuple(expected[key].shape), key, name)
    weights = {key: value.float().contiguous() for key, value in weights.items() if not key.endswith(FILTERS)}
    _check_finite(weights, name, "; it is damaged or its training failed")
    mean = weights.pop("w_mean", torch.full((generator.style_dim,), math.nan))
    generator.load_state_dict(weights, strict=False, assign=True)
    for module in generator.modules():
        if isinstance(module, (Blur, Upsample)):
            module.kernel = low_pass(4.0)
    generator.w_mean = mean
    generator.identity = identity_of(generator)
    return generator.eval()


def _require(expected: Iterable[str], weights: Mapping[str, Tensor], name: str) -> None:
    missing = [key for key in expected if key not in weights]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise EditingError(
            f"{name} is no whole StyleGAN2 generator: it lacks {', '.join(missing[:NAMED])}{more}; download it again "
            "or choose another file."
        )


def _check_shape(value: Tensor, wanted: tuple[int, ...], key: str, name: str) -> None:
    if tuple(value.shape) != wanted:
        raise EditingError(
            f"{name} does not fit together: {shown_name(key)} has the shape {list(value.shape)} and not "
            f"{list(wanted)}; choose another file."
        )


def _check_filter(value: Tensor, key: str, name: str) -> None:
    """Raise unless it is :data:`~.stylegan2.FILTER`, whose gain the port stores with it and NVIDIA does not."""
    _check_shape(value, (len(FILTER), len(FILTER)), key, name)
    value = value.float()
    if not ((value / value.sum() - low_pass()).abs() < CLOSE).all():
        raise EditingError(
            f"{name} filters with another kernel than 1, 3, 3, 1 ({shown_name(key)}), which this pack does not "
            "compute; choose another file."
        )


def _check_finite(weights: Mapping[str, Tensor], name: str, remedy: str) -> None:
    for key, value in weights.items():
        if not value.isfinite().all():
            raise EditingError(f"{name}: {shown_name(key)} holds numbers that are not finite{remedy}.")


def _width(weights: Mapping[str, Tensor], key: str, dim: int, name: str) -> int:
    """A side of a tensor from which the network's shape follows."""
    _require([key], weights, name)
    shape = weights[key].shape
    if dim >= len(shape) or not 1 <= shape[dim] <= MOST_CHANNELS:
        raise EditingError(f"{name} does not fit together: {key} has the shape {list(shape)}; choose another file.")
    return shape[dim]


def _port_shape(weights: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Arguments of :class:`StyleGAN2` by tensors with the port's names."""
    levels = 1 + max((int(index) // 2 for index in _indices(r"convs\.(\d{1,3})\..+", weights)), default=0)
    side = min(4 << levels, LARGEST_SIDE)
    channels = {4: _width(weights, "input.input", 1, name)}
    for level in range(side.bit_length() - 3):
        channels[8 << level] = _width(weights, f"convs.{2 * level}.conv.weight", 1, name)
    _require(["style.1.weight"], weights, name)
    return {
        "size": side,
        "channels": channels,
        "style_dim": _width(weights, "conv1.conv.modulation.weight", 1, name),
        "mapping_layers": min(len(_indices(r"style\.(\d{1,3})\.weight", weights)), MOST_LAYERS),
    }


def _indices(pattern: str, weights: Iterable[str]) -> set[str]:
    return {match.group(1) for match in map(re.compile(pattern).fullmatch, weights) if match}


def _nvidia_shape(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Arguments of :class:`StyleGAN2` by tensors with NVIDIA's names; what it cannot be is refused by name."""
    sides = sorted(int(side) for side in _indices(r"synthesis\.b(\d{1,4})\..+", tensors))
    if not sides and any(key.startswith(("synthesis.L", "synthesis.input.")) for key in tensors):
        raise EditingError(f"{name} is a StyleGAN3, which has another style space; choose a StyleGAN2.")
    if any(key.startswith("mapping.embed.") for key in tensors) or facts.get("c_dim", 0):
        raise EditingError(f"{name} was trained with class labels, which this pack cannot give; choose another file.")
    if any(re.match(r"synthesis\.b\d+\.skip\.", key) for key in tensors):
        raise EditingError(f"{name} is a StyleGAN2 of the resnet kind; choose one of the usual kind (skip).")
    if len(sides) > 1 and not any(key.startswith("synthesis.b4.torgb.") for key in tensors):
        raise EditingError(f"{name} is a StyleGAN2 of the orig kind; choose one of the usual kind (skip).")
    for key, value in facts.items():
        if key.endswith(".activation") and ".affine." not in key and value != "lrelu":
            raise EditingError(
                f"{name} uses {shown_name(str(value))} where a StyleGAN2 has leaky ReLU ({shown_name(key)}); choose "
                "another file."
            )
    channels = {side: _width(tensors, f"synthesis.b{side}.conv1.weight", 0, name) for side in sides}
    size = max(sides, default=0)
    wanted = [4 << level for level in range(max(size.bit_length() - 2, 2))]
    _require([f"synthesis.b{side}.conv1.weight" for side in wanted], tensors, name)
    if sides != wanted or size > LARGEST_SIDE:
        raise EditingError(f"{name} works at the resolutions {sides}, which no StyleGAN2 does; choose another file.")
    _require(["mapping.fc0.weight"], tensors, name)
    clamp = facts.get("synthesis.b4.conv1.conv_clamp")
    return {
        "size": size,
        "channels": channels,
        "style_dim": _width(tensors, "synthesis.b4.conv1.affine.weight", 1, name),
        "mapping_layers": min(len(_indices(r"mapping\.fc(\d{1,3})\.weight", tensors)), MOST_LAYERS),
        "clamp": float(clamp) if isinstance(clamp, (int, float)) and 0 < clamp <= LARGEST_CLAMP else None,
    }


def _nvidia_name(key: str) -> str:
    """The port's name of a tensor -> NVIDIA's."""
    owner, _, rest = key.partition(".")
    index, _, part = rest.partition(".")
    if owner == "style":
        return f"mapping.fc{int(index) - 1}.{part}"
    if key == "input.input":
        return "synthesis.b4.const"
    if owner == "noises":
        number = int(rest.removeprefix("noise_"))
        return f"synthesis.{_nvidia_layer(number - 1)}.noise_const"
    if owner in ("conv1", "to_rgb1"):
        return f"synthesis.b4.{'conv1' if owner == 'conv1' else 'torgb'}.{PARTS[rest]}"
    if owner == "convs":
        return f"synthesis.{_nvidia_layer(int(index))}.{PARTS[part]}"
    return f"synthesis.b{8 << int(index)}.torgb.{PARTS[part]}"


def _nvidia_layer(index: int) -> str:
    """The layer that the port calls ``convs.index``; -1: the first, at 4 pixels."""
    return "b4.conv1" if index < 0 else f"b{8 << index // 2}.conv{index % 2}"


def _renamed(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], shape: dict[str, Any], name: str
) -> dict[str, Tensor]:
    """NVIDIA's tensors under the port's names, with the port's sides of length 1.

    The two agree in everything else: kernels are neither flipped nor scaled (both transpose them in the convolution
    that enlarges), the affine layers' biases already contain the 1 that styles start from, and toRGB's gain is applied
    to the style in one and to the kernel in the other.
    """
    with torch.device("meta"):
        state = StyleGAN2(**shape).state_dict()
    wanted = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(FILTERS)}
    names = {key: _nvidia_name(key) for key in wanted}
    found: dict[str, Tensor] = {}
    if not any(key.endswith(("noise_strength", "noise_const")) for key in tensors):  # trained without noise
        found = {key: torch.zeros(wanted[key]) for key in wanted if key.endswith("noise.weight") or "noise_" in key}
    names = {key: names[key] for key in wanted if key not in found}
    _require(names.values(), tensors, name)
    for key, theirs in names.items():
        value, size = tensors[theirs], wanted[key]
        _check_shape(value.squeeze(), tuple(side for side in size if side != 1), theirs, name)
        found[key] = value.reshape(size)
    rate = facts.get("mapping.fc0.bias_gain", MAPPING_RATE)
    if isinstance(rate, (int, float)) and rate != MAPPING_RATE:
        found |= {key: value * (rate / MAPPING_RATE) for key, value in found.items() if key.startswith("style.")}
    known = {*names.values(), "mapping.w_avg"}
    for key, value in tensors.items():
        if key.endswith(FILTERS):
            _check_filter(value, key, name)
        elif key not in known:
            raise EditingError(f"{name} holds {shown_name(key)}, which no StyleGAN2 has; choose another file.")
    if "mapping.w_avg" in tensors:
        found["w_mean"] = tensors["mapping.w_avg"]
    return found

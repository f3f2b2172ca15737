"""Ways to damage a file: blindly, and as somebody would who knows what it is."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semantic_editing.core.models.model_settings import SETTINGS  # keys that are read, in whatever file they stand

Mutation = Callable[[random.Random, bytes], bytes]

#: Values that somebody might not have thought of.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 60_000, 20_000_000, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "a", "x" * 100_000, "\ud800", "a\x00b", "../../etc/passwd", "hf-hub:timm/vit_base", "a/b",
    "kernels-community/flash-attn", "timm_wrapper", [], {}, [None], [[]], [1, 2, 3], {"a": 1}, {"": {}}, [0] * 1000,
    [[1, 2], [3, 4]], [1e999], [0.5],
)  # fmt: skip
#: Settings with which a file would like to have more done than to be read.
HOSTILE: dict[str, Any] = {
    "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]},
    "attn_implementation": "kernels-community/flash-attn",
    "_attn_implementation": "kernels-community/flash-attn",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "model_type": "timm_wrapper",
    "architecture": "hf-hub:timm/vit_base_patch16_224",
    "tokenizer_class": "EvilTokenizer",
    "_class_name": "EvilPipeline",
    "torch_dtype": "os.system",
    "hidden_size": 60_000,
    "num_hidden_layers": 2**30,
    "image_size": 10**9,
    "num_labels": 10**9,
    "vocab_size": 10**9,
    "sample_size": 10**9,
    "layers_per_block": 10**6,
    "block_out_channels": [2**20] * 4,
    "unet": ["None", "evil"],
    "scheduler": ["evil", "Evil"],
    "model_max_length": 10**12,
    "num_train_timesteps": 10**10,
    "base_model_name_or_path": "somebody/adapter",
}
EVIL = "import os, pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nclass Pipeline: ...\n"


# Any bytes
# ----------------------------------------------------------------------------------------------------------------


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:  # near the front, where files describe themselves
        start = min(start, rng.randrange(1024))
    return start, min(len(data), start + int(2 ** rng.uniform(0, 12)))


def flip(rng: random.Random, data: bytes) -> bytes:
    """Change a few bits."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if made:
            made[_span(rng, data)[0] % len(made)] ^= 1 << rng.randrange(8)
    return bytes(made)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Keep the beginning."""
    return data[: _span(rng, data)[0]]


def lengthen(rng: random.Random, data: bytes) -> bytes:
    """Add bytes to the end."""
    return data + rng.choice((b"\0", b"\xff", data[:64] or b"a")) * int(2 ** rng.uniform(0, 14))


def overwrite(rng: random.Random, data: bytes) -> bytes:
    """Fill a span with one byte, with noise, or with another span."""
    start, end = _span(rng, data)
    other = _span(rng, data)[0]
    fill = rng.choice(
        (b"\0" * (end - start), b"\xff" * (end - start), rng.randbytes(end - start), data[other:][: end - start])
    )
    return data[:start] + fill + data[end:]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Put a span in a second time, or noise."""
    start, end = _span(rng, data)
    return data[:start] + rng.choice((data[start:end] * rng.randint(1, 4), rng.randbytes(end - start))) + data[start:]


def remove(rng: random.Random, data: bytes) -> bytes:
    """Take a span out."""
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def number(rng: random.Random, data: bytes) -> bytes:
    """Write an extreme number over some bytes."""
    value = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1))
    form = rng.choice(("<I", ">I", "<Q", ">Q", "<H", ">H"))
    packed = struct.pack(form, value % 2 ** (8 * struct.calcsize(form)))
    start = _span(rng, data)[0]
    return data[:start] + packed + data[start + len(packed) :]


def empty(rng: random.Random, data: bytes) -> bytes:
    """Nothing, or noise of the same length."""
    return rng.choice((b"", rng.randbytes(min(len(data), 10_000))))


BLIND: tuple[Mutation, ...] = (flip, flip, cut, lengthen, overwrite, insert, remove, number, empty)


# JSON
# ----------------------------------------------------------------------------------------------------------------


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every ``(holder, key)`` in a value."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending and len(found) < 5000:
        part = pending.pop()
        entries = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, inner in list(entries):
            found.append((part, key))
            pending.append(inner)
    return found


def edit(rng: random.Random, value: Any) -> Any:
    """A JSON value with one to three changes."""
    for _ in range(rng.randint(1, 3)):
        places = _places(value)
        roll = rng.random()
        if not places or roll < 0.03:
            value = rng.choice(NASTY)
            continue
        holder, key = rng.choice(places)
        if roll < 0.5:
            holder[key] = rng.choice(NASTY)
        elif roll < 0.62:
            del holder[key]
        elif roll < 0.7 and isinstance(holder[key], int):
            holder[key] = rng.choice((holder[key] * 1000, -holder[key], holder[key] + 1, float(holder[key])))
        elif roll < 0.78 and isinstance(holder, dict):
            holder[rng.choice(("", "x" * 5000, "\ud800", "__class__", key + "2"))] = holder.pop(key)
        else:
            name = rng.choice(list(rng.choice((HOSTILE, SETTINGS))))
            (value if isinstance(value, dict) else {})[name] = HOSTILE.get(name, rng.choice(NASTY))
    return value


def dumped(rng: random.Random, value: Any) -> bytes:
    """A value as JSON, now and then nested without end or said twice."""
    text = json.dumps(value)
    roll = rng.random()
    if roll < 0.04:
        text = "[" * 50_000 + text + "]" * 50_000
    elif roll < 0.08:
        text = '{"a":' * 3000 + text + "}" * 3000
    elif roll < 0.1:
        text = text.replace("1", "1" * 5000, 1)
    elif roll < 0.12:
        text = text[:-1] + ',"a":1e99999}'
    return text.encode("utf-8", "surrogatepass")


def json_file(rng: random.Random, data: bytes) -> bytes:
    """Change a JSON file."""
    return dumped(rng, edit(rng, json.loads(data)))


# Tensors
# ----------------------------------------------------------------------------------------------------------------


def tensor_file(rng: random.Random, data: bytes) -> bytes:
    """Change what a safetensors file says of itself, or its numbers."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    metadata = header.get("__metadata__", {})
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    roll = rng.random()
    if roll < 0.3 and metadata:
        key = rng.choice(list(metadata))
        try:
            metadata[key] = dumped(rng, edit(rng, json.loads(metadata[key]))).decode("utf-8", "ignore")
        except ValueError:
            metadata[key] = rng.choice(
                ("", "0", "-1", "9" * 30, "\u00b2", "9" * 5000, "a b", "\x00", "x" * 100_000, "null")
            )
    elif roll < 0.35 and metadata:
        del metadata[rng.choice(list(metadata))]
    elif roll < 0.5:
        shape = header[name]["shape"]
        change = rng.random()
        if change < 0.3:  # as many numbers in another shape
            header[name]["shape"] = rng.choice((shape[::-1], [1, *shape], [*shape, 1], [_product(shape)]))
        elif change < 0.7:  # nothing, of any size
            header[name] = {
                "dtype": header[name]["dtype"],
                "shape": [rng.choice((0, 5, 2**20, 2**40)), 0],
                "data_offsets": [0, 0],
            }
        elif shape:
            shape[rng.randrange(len(shape))] = rng.choice((0, -1, 2**31, 2**62, 60_000, None, "a", 1.5))
    elif roll < 0.58:
        header[name]["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X", 5))
    elif roll < 0.64:
        header[name]["data_offsets"] = rng.choice(([0, 0], [0, 2**62], [-1, 5], [5, 0], "a", [0]))
    elif roll < 0.7:
        del header[name]
    elif roll < 0.78:
        header[rng.choice(("a", "", "x" * 3000, name + ".0", "blocks.999999999.a", "features.-1.weight"))] = header.pop(
            name
        )
    elif roll < 0.82:
        for index in range(rng.choice((20, 12_000))):
            header[f"more.{index}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    elif roll < 0.94 and body:
        start = rng.randrange(len(body))
        value = rng.choice((float("nan"), float("inf"), -1.0, 1e38, 0.0))
        for position in range(start - start % 4, min(len(body) - 3, start + 4 * rng.randint(1, 200)), 4):
            body[position : position + 4] = struct.pack("<f", value)
    else:
        return (rng.choice((0, 2**63, length * 2, 100_000_000, len(data) - 8))).to_bytes(8, "little") + data[8:]
    made = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(made).to_bytes(8, "little") + made + bytes(body)


def _product(shape: list[int]) -> int:
    made = 1
    for side in shape:
        made *= side
    return made


# Pickles
# ----------------------------------------------------------------------------------------------------------------


class Attack:
    """Unpickled the ordinary way, it touches a file."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch semedit_fuzz_pwned",)


#: Pickles that take more than they weigh, or that call something.
BOMBS: tuple[bytes, ...] = (
    pickle.dumps(Attack(), 2),
    b"\x80\x02]p200000000\n.",
    b"\x80\x02]r\xff\xff\xff\x7f.",
    b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.",
    b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"abc.",
    b"\x80\x02" + b"(" * 100_000 + b".",
    b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    b"\x80\x02)" + b"2\x86" * 60 + b"}q\x002h\x00K\x01s.",
    b"\x80\x02}" + b")" + b"q\x01h\x01h\x01\x86" * 60 + b"K\x01s.",
    b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    b"ccollections\nOrderedDict\nq\x01(" + b"K\x01" * 5000 + b"lq\x02\x85q\x03" + b"h\x01h\x03R0" * 5000 + b"N.",
    b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    b"I" + b"9" * 100_000 + b"\n.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"\x80\x02\x82\x01.",
)


def zip_file(rng: random.Random, data: bytes) -> bytes:
    """Change the parts of a zip that torch wrote."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    key = next(name for name in members if name.endswith("data.pkl"))
    blocks = [name for name in members if "/data/" in name]
    compression, extra = zipfile.ZIP_STORED, []
    roll = rng.random()
    if roll < 0.3:
        members[key] = rng.choice(BOMBS)
    elif roll < 0.5:
        members[key] = rng.choice(BLIND)(rng, members[key])
    elif roll < 0.62:  # other sizes, strides and offsets
        members[key] = members[key].replace(
            b"K\x08", b"J" + rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\1"))
        )
    elif roll < 0.72:
        compression = zipfile.ZIP_DEFLATED
        members[rng.choice(blocks)] = b"\0" * 100_000_000
    elif roll < 0.82 and blocks:
        name = rng.choice(blocks)
        members[name] = rng.choice(
            (
                b"",
                members[name][:-1],
                members[name] * rng.choice((2, 100_000_000 // max(1, len(members[name])) + 1)),
                rng.choice(BLIND)(rng, members[name]),
            )
        )
    elif roll < 0.88:
        del members[rng.choice(list(members))]
    elif roll < 0.94:
        extra = [(f"a/{index}", b"") for index in range(rng.choice((3, 100_000)))]
    else:
        extra = [(key, members[key]), ("byteorder", b"big")]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in [*members.items(), *extra]:
            archive.writestr(name, content)
    return stream.getvalue() if rng.random() < 0.8 else rng.choice(BLIND)(rng, stream.getvalue())


def old_pickle(rng: random.Random, data: bytes) -> bytes:
    """Change a file in torch's layout before 1.6."""
    ends = [0]
    stream = io.BytesIO(data)
    import pickletools

    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    parts = [data[a:b] for a, b in itertools.pairwise(ends)] + [data[ends[-1] :]]
    index = rng.randrange(len(parts))
    if index == 5:
        parts[5] = rng.choice((b"\xff" * 8, (2**62).to_bytes(8, "little"))) + parts[5][8:]
    elif rng.random() < 0.5:
        parts[index] = rng.choice(BOMBS)
    else:
        parts[index] = rng.choice(BLIND)(rng, parts[index])
    return b"".join(parts)


def png_file(rng: random.Random, data: bytes) -> bytes:
    """Claim another size, or other settings, in a PNG's first part, checksum and all."""
    import zlib

    head = bytearray(data[12:29])
    if rng.random() < 0.7:
        struct.pack_into(">I", head, 4 + 4 * rng.randrange(2), rng.choice((0, 1, 30_000, 60_000, 2**31 - 1)))
    else:
        head[rng.randrange(12, 17)] = rng.randrange(256)
    return data[:12] + bytes(head) + struct.pack(">I", zlib.crc32(bytes(head))) + data[33:]


def knowing(file: Path) -> Mutation | None:
    """The way to change a file that knows its kind, None where there is none."""
    start = file.read_bytes()[:2]
    if file.suffix == ".json":
        return json_file
    if file.suffix == ".safetensors":
        return tensor_file
    if start == b"PK":
        return zip_file
    if start == b"\x89P":
        return png_file
    return old_pickle if file.suffix in (".pt", ".pth") else None


def spoil(rng: random.Random, path: Path) -> str:
    """Damage a file, or something in a folder; returns in what way."""
    if path.is_dir() and rng.random() < 0.2:
        return _spoil_folder(rng, path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = rng.choice(files)
    way = knowing(file)
    if way is None or rng.random() < 0.35:
        way = rng.choice(BLIND)
    data = file.read_bytes()
    try:
        file.write_bytes(way(rng, data))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, StopIteration, zipfile.BadZipFile):
        way = flip  # what cannot be said is damaged blindly
        file.write_bytes(way(rng, data))
    return f"{file.name}: {way.__name__}"


def _spoil_folder(rng: random.Random, path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    folders = [path, *(folder for folder in sorted(path.rglob("*")) if folder.is_dir())]
    roll, place = rng.random(), rng.choice(folders)
    if roll < 0.35:
        name = rng.choice(("None.py", "evil.py", "modeling_vit.py", "pipeline.py", "tokenization_clip.py"))
        (place / name).write_text(EVIL)
        for file in path.rglob("*.json"):
            if "index" in file.name or file.name == "config.json":
                with contextlib.suppress(ValueError, TypeError):
                    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": HOSTILE["auto_map"]}))
        return f"{name} added"
    if roll < 0.55:
        name = rng.choice(
            ("adapter_config.json", "tokenizer_config.json", "generation_config.json", "added_tokens.json")
        )
        (place / name).write_bytes(dumped(rng, dict(HOSTILE)))
        return f"{name} added"
    if roll < 0.8:
        file = rng.choice(files)
        file.unlink()
        return f"{file.name} removed"
    one, two = rng.choice(files), rng.choice(files)
    if one != two:
        shutil.copy(one, two)
    return f"{two.name} replaced by {one.name}"

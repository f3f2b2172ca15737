"""Put trained parts and rendered pictures together into the shipped folder. Usage: build_assets.py OUT [--data DIR]
[--parts DIR].

Pictures and pairs come from ``val``, ``pairs`` and ``unseen`` as ``render.mjs`` left them; networks (``unet/ vae/
clip/``, classifiers) from ``--parts`` are stored in half precision. ``--vocabulary`` writes the token list for a first
CLIP instead.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from world import ASSETS, ATTRIBUTES, END, Words, caption, load

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.demo.data import PHRASES

PICTURES, PAIRS = 24, 24  # pictures, and pairs of each edit
#: Pairs in ``unseen/``, of faces that are in none of the others: of the edits that embeddings are learned for, and of
#: each other edit.
LEARNED = ("glasses: none to glasses", "mouth: sad to smile", "facial hair: none to beard", "hair color: black to red")
UNSEEN_LEARNED, UNSEEN = 40, 16
NETWORKS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "clip": "model.safetensors",
}
CLASSIFIERS = ("classifier.safetensors", "classifier_judge.safetensors")
#: Words a user may type that no caption of the world has.
EXTRA = (
    "photo image picture painting of the and with without no man woman boy girl cat dog horse zebra not very old young "
    ", . big small in on "
    "at is has have looking person people face portrait red green blue black white brown pink gray grey yellow orange "
    "purple"
)


def vocabulary(labels: list[dict[str, str]], words: Words) -> list[int]:
    """CLIP ids of all words that captions of these labels use, of :data:`EXTRA`, and of start and end."""
    rng = random.Random(0)
    texts = [caption(row, rng) for row in labels * 20]
    return sorted({END, *words.ids([*texts, EXTRA]).flatten().tolist()})


def looks(labels: dict[str, Any]) -> dict[str, str]:
    """The ten labels without the renderer's own numbers."""
    return {attribute: labels[attribute] for attribute in ATTRIBUTES}


def pair_captions(row: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """Captions of source and target that differ in the phrase of the edited attribute alone."""
    attribute, before, after = row["edit"]
    phrases = PHRASES[attribute]
    labels = looks(row["src"])
    color = labels["hair_color"]
    parts = caption(labels, rng).split(", ")
    about = {
        "glasses": ("glasses", "eyeglasses", "sunglasses"),
        "facial_hair": ("beard", "bearded", "mustache", "shaven"),
        "mouth": ("smil", "happy face", "sad", "frown", "mouth", "shocked", "serious", "neutral", "tongue"),
        "hair_color": (" hair", "bob", f"{color} beard", f"{color} mustache"),
        "background": ("background", "wall"),
        "top": (" hair", "bob", "bald", "hat", "beanie"),
        "clothes": ("hoodie", "suit", "sweater", "shirt", "overalls"),
        "skin": ("skin",),
    }[attribute]
    head, *rest = parts
    kept = [part for part in rest if not any(word in part for word in about)]
    place = rng.randint(0, len(kept))
    return tuple(", ".join([head, *kept[:place], phrases[name], *kept[place:]]) for name in (before, after))  # type: ignore[return-value]


def listing(data: Path, out: Path) -> None:
    """``demo.json``, ``images/`` and ``pairs.npz``."""
    rng = random.Random(0)
    pictures, labels = load(data, "val")
    (out / "images").mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(PICTURES):
        name = f"images/{index:02d}.png"
        Image.fromarray(np.array(pictures[index])).save(out / name, optimize=True)
        images.append({"file": name, "caption": caption(labels[index], rng), "attributes": looks(labels[index])})
    write_pairs(data, "pairs", out, rng, images, lambda edit: PAIRS)


def unseen(edit: str) -> int:
    """How many unseen pairs of an edit there are."""
    return UNSEEN_LEARNED if edit in LEARNED else UNSEEN


def write_pairs(
    data: Path, name: str, out: Path, rng: random.Random, images: list[dict[str, Any]], most: Callable[[str], int]
) -> None:
    """``demo.json`` and ``pairs.npz`` of the rendered pairs ``name``, ``most(edit)`` at most of each edit."""
    rows = json.loads((data / f"{name}.json").read_text(encoding="utf-8"))
    rendered = np.memmap(data / f"{name}.rgb", dtype=np.uint8, mode="r").reshape(-1, 2, 128, 128, 3)
    pairs, chosen, counts = [], [], Counter[str]()
    for index, row in enumerate(rows):
        attribute, before, after = row["edit"]
        edit = f"{attribute.replace('_', ' ')}: {before} to {after}"
        if counts[edit] == most(edit):
            continue
        counts[edit] += 1
        chosen.append(index)
        source, target = pair_captions(row, rng)
        pairs.append(
            {
                "edit": edit,
                "attribute": attribute,
                "from": before,
                "to": after,
                "source_caption": source,
                "target_caption": target,
                "source_attributes": looks(row["src"]),
                "target_attributes": looks(row["tgt"]),
            }
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps({"images": images, "pairs": pairs}, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(out / "pairs.npz", images=rendered[chosen])


def half(source: Path, target: Path) -> None:
    """Copy a safetensors file with its metadata, floating point tensors in half precision."""
    with safe_open(source, "pt") as opened:
        metadata = opened.metadata()
    tensors = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in load_file(source).items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata=metadata)


def networks(parts: Path, out: Path) -> None:
    """The networks found in ``parts``, in half precision, with their configurations."""
    for name, file in NETWORKS.items():
        if (parts / name / file).exists():
            half(parts / name / file, out / name / file)
            config = json.loads((parts / name / "config.json").read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)  # the path of the machine it was trained on
            (out / name / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in CLASSIFIERS:
        if (parts / name).exists():
            half(parts / name, out / name)


def main() -> None:
    """Write the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--data", type=Path, help="folder of the rendered pictures: write demo.json, images, pairs and unseen pairs"
    )
    parser.add_argument("--parts", type=Path, help="folder of the trained networks")
    parser.add_argument(
        "--vocabulary", action="store_true", help="write vocab.json from the captions of --data, for a first CLIP"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.vocabulary:
        found = vocabulary(load(options.data, "val")[1], Words())
        (options.out / "vocab.json").write_text(json.dumps(found), encoding="utf-8")
    elif options.data:
        listing(options.data, options.out)
        write_pairs(options.data, "unseen", options.out / "unseen", random.Random(1), [], unseen)
    if options.parts:
        networks(options.parts, options.out)
    if options.out.resolve() != ASSETS.resolve() and not (options.out / "scheduler").exists():
        shutil.copytree(ASSETS / "scheduler", options.out / "scheduler")


if __name__ == "__main__":
    main()

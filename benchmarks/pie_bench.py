"""PIE-Bench: judges a folder of edited pictures as the papers do, and by corrected figures.

    python benchmarks/pie_bench.py --bench PIE-Bench_v1 --edited output/my_method --vision dino-vitb8 \\
        --lpips squeezenet1_1.pth --clip clip-vit-large-patch14 --json bench_out/pie_bench.json

The benchmark's folder holds mapping_file.json and annotation_images/; an edited picture has the path of its source
below annotation_images/. Nothing downloads: a figure whose weights are not given is named and left out. Papers use
DINO ViT-B/8, LPIPS with SqueezeNet and CLIP ViT-L/14; other weights give other figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.lpips import load_lpips
from semantic_editing.core.metrics.pie_bench import Networks, Variant, evaluate, read_pie_bench, table
from semantic_editing.core.models.clip import load_transformers_clip
from semantic_editing.core.models.vision_features import load_vision_features

LISTED = 5  # how many entries without a usable edit are named


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bench", type=Path, required=True, help="folder of PIE-Bench")
    made.add_argument("--edited", type=Path, required=True, help="folder of the edited pictures")
    made.add_argument("--variant", choices=["both", *get_args(Variant)], default="both")
    add_network_options(made)
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    made.add_argument("--json", type=Path, help="write the figures of every picture there")
    return made


def add_network_options(made: argparse.ArgumentParser) -> None:
    """Where the weights of the figures' networks are."""
    made.add_argument("--vision", type=Path, help="vision model for the structure distance: folder or safetensors file")
    made.add_argument("--lpips", type=Path, help="weights of SqueezeNet 1.1 for LPIPS")
    made.add_argument("--clip", type=Path, help="folder of a transformers CLIPModel")


def load_networks(options: argparse.Namespace) -> Networks:
    """Those that are given."""
    vision = load_vision_features(options.vision).to(options.device) if options.vision else None
    lpips = load_lpips(options.lpips, "squeeze").to(options.device) if options.lpips else None
    clip = load_transformers_clip(options.clip, options.device) if options.clip else None
    return Networks((lambda images: vision.keys(images, images.shape[-1])) if vision else None, lpips, clip)


def show_progress(done: int, total: int) -> None:
    """A counter on stderr, beside the tables on stdout."""
    print(f"\r{done} of {total} pictures", end="\n" if done == total else "", file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> None:
    """Evaluate, print the tables, write the JSON."""
    cases = read_pie_bench(options.bench)
    networks = load_networks(options)
    results = []
    for variant in get_args(Variant) if options.variant == "both" else [options.variant]:
        with torch.inference_mode():
            results.append(evaluate(cases, options.edited, networks, variant, show_progress))
        print(f"\n{table(results[-1])}", flush=True)
    for sentence in results[0].skipped[:LISTED]:
        print(f"- {sentence}")
    if options.json:
        records = [{**asdict(result), "rows": [row._asdict() for row in result.rows]} for result in results]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        print(f"\nwrote {options.json}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, or say in one sentence why not."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except EditingError as error:
        raise SystemExit(f"pie_bench: {error}") from error


if __name__ == "__main__":
    main()

"""The short way to a place: a map on noised copies, one box, one render by inpainting, on pairs whose true region is
known.

Arms: nothing done; a random box; the map's tightest box (``fast``); the true box. All paint with the same editor, texts
and noise. The true pictures only measure, they never choose.

    python benchmarks/region_words.py --pairs 16
"""

from __future__ import annotations

import argparse
import json
from itertools import zip_longest
from pathlib import Path

import torch
from region_boxes import overlap, random_boxes, true_region

from semantic_editing.core.demo.data import DemoData, DemoPair
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.metrics.image import psnr
from semantic_editing.core.regions.edit_inpaint import InpaintSettings, LocatingInpaintEditor
from semantic_editing.core.regions.paste import Framing
from semantic_editing.core.regions.proposals import Box
from semantic_editing.core.regions.words import edit_by_words

SIDE = 128
RANDOM, FAST, TRUE = "random place, random size", "fast: the map's tightest box", "the true box"


def editor_of(demo: DemoModel, pair: DemoPair, steps: int, cfg: float) -> LocatingInpaintEditor:
    """The editor of all arms."""
    with torch.no_grad():
        source, target = (demo.encode_text([text]) for text in (pair.source_caption, pair.target_caption))
    settings = InpaintSettings(cfg, steps, framing=Framing(float("inf"), working_size=SIDE))
    return LocatingInpaintEditor(
        demo.denoiser(), demo.encode_image, demo.decode, target, source, settings, source_cond=source
    )


def measure(demo: DemoModel, pair: DemoPair, number: int, steps: int, cfg: float) -> dict[str, object]:
    """One pair: IoU, PSNR to the true picture in dB and u of each arm."""
    image, truth, target = pair.source[None], true_region(pair), pair.target[None]
    editor = editor_of(demo, pair, steps, cfg)
    generator = torch.Generator().manual_seed(number)
    ((drawn,),) = random_boxes(1, (SIDE, SIDE), generator).boxes
    given: dict[str, list[Box]] = {RANDOM: [drawn] if drawn else [], FAST: [], TRUE: [truth]}
    arms = {}
    for name, boxes in given.items():
        made = edit_by_words(editor, image, boxes=boxes)
        iou = overlap(made.painted[0].box, truth) if made.painted else 0.0
        arms[name] = {"iou": iou, "psnr": float(psnr(made.result, target)), "u": made.units}
    return {"pair": number, "edit": pair.edit, "nothing": float(psnr(image, target)), "arms": arms}


def main() -> None:
    """Measure what is missing, one line of the file a pair, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of each edit")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("bench_out/region_words.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    demo = load_demo_model(None)
    among = DemoData(demo.folder / "unseen")
    rows = [[n for n, p in enumerate(among.pairs) if p.edit == edit][: options.pairs] for edit in among.edits]
    wanted = [n for row in zip_longest(*rows) for n in row if n is not None]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    known = {record["pair"] for record in records}
    for number in wanted:
        if number not in known:
            records.append(measure(demo, among.pairs[number], number, options.steps, options.cfg))
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
    count = len(records)
    print(
        f"{count} pairs\n\n| box | IoU | PSNR to true, dB | nearer than random | nearer than nothing | u |\n"
        + "|---" * 6
        + "|"
    )
    print(f"| nothing done | | {sum(r['nothing'] for r in records) / count:.2f} | | | 0 |")
    for name in (RANDOM, FAST, TRUE):
        own = [r["arms"][name] for r in records]
        iou, decibel, units = (sum(arm[key] for arm in own) / count for key in ("iou", "psnr", "u"))
        near = sum((r["arms"][name]["psnr"] > r["arms"][RANDOM]["psnr"]) + 0.5 * (name == RANDOM) for r in records)
        better = sum(r["arms"][name]["psnr"] > r["nothing"] for r in records)
        print(
            f"| {name} | {iou:.3f} | {decibel:.2f} | {100 * near / count:.1f} % | {100 * better / count:.1f} % | "
            f"{units:.0f} |"
        )


if __name__ == "__main__":
    main()

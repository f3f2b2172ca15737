"""Edit by Words, Place Found on pairs whose true region is known: what the node does, arm by arm.

Arms: a random box; ``map`` (its tightest box); ``map, judged`` (three frames, a CLIP chooses); ``exact``; the true box.
All paint with the same editor, texts and noise, through the function that the node calls. The true pictures only
measure, they never choose. Every arm of every pair is one line of the file, so a run can be stopped and taken up, and
arms can be added.

    python benchmarks/region_words.py --arms random map true
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from region_boxes import overlap, random_boxes, true_region

from semantic_editing.core.demo.builders import demo_scorer, demo_vision_features
from semantic_editing.core.demo.data import DemoData, DemoPair
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.metrics.image import attributes_kept, psnr, success
from semantic_editing.core.regions.edit_inpaint import PLAIN_STRENGTH, InpaintSettings, LocatingInpaintEditor
from semantic_editing.core.regions.paste import Framing
from semantic_editing.core.regions.words import edit_by_words

SIDE = 128
ARMS = ("random", "map", "map, judged", "exact", "true")


class Bench:
    """The models, and the options of the command line."""

    def __init__(self, demo: DemoModel, options: argparse.Namespace):
        self.demo, self.options = demo, options
        self.scorer, self.vision = demo_scorer(demo), demo_vision_features(demo)

    def measure(self, pair: DemoPair, number: int, arm: str) -> dict[str, Any]:
        """One arm on one pair: IoU, PSNR to the true picture in dB, and u."""
        options = self.options
        image, truth = pair.source[None], true_region(pair)
        texts = (options.sentence.replace("{}", pair.words[0]), options.sentence.replace("{}", pair.words[1]))
        with torch.no_grad():
            source, target = (self.demo.encode_text([text]) for text in texts)
        framing = Framing(options.context, working_size=SIDE)
        settings = InpaintSettings(options.cfg, options.steps, options.strength, framing)
        editor = LocatingInpaintEditor(
            self.demo.denoiser(), self.demo.encode_image, self.demo.decode, target, source, settings, source_cond=source
        )
        more: dict[str, Any] = {}
        if arm == "random":
            ((drawn,),) = random_boxes(1, (SIDE, SIDE), torch.Generator().manual_seed(number)).boxes
            more = {"boxes": [drawn]}
        elif arm == "true":
            more = {"boxes": [truth]}
        elif arm != "map":
            more = {"scorer": self.scorer, "texts": texts}
            if arm == "exact":
                more |= {"strategy": arm, "attention": self.vision(image).attention[0]}
        made = edit_by_words(editor, image, **more)
        with torch.no_grad():
            seen, wanted, before = (self.demo.judge.labels(part) for part in (made.result, pair.target[None], image))
        return {
            "pair": number,
            "edit": pair.edit,
            "arm": arm,
            "iou": overlap(made.painted[0].box, truth) if made.painted else 0.0,
            "helped": made.helped,
            "success": float(success(seen, {pair.attribute: pair.after}).mean()),
            "kept": float(attributes_kept(seen, wanted, pair.attribute).mean()),
            "psnr": float(psnr(made.result, pair.target[None])),
            "nothing_success": float(success(before, {pair.attribute: pair.after}).mean()),
            "nothing_kept": float(attributes_kept(before, wanted, pair.attribute).mean()),
            "painted_psnr": float(psnr(made.painted[0].edited if made.painted else image, pair.target[None])),
            "nothing": float(psnr(image, pair.target[None])),
            "u": made.units,
        }


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row of the report for each arm, over the pairs that all measured arms have."""
    by_arm = {arm: {r["pair"]: r for r in records if r["arm"] == arm} for arm in ARMS}
    by_arm = {arm: known for arm, known in by_arm.items() if known}
    pairs = sorted(set.intersection(*(set(known) for known in by_arm.values()))) if by_arm else []
    lines = [
        f"{len(pairs)} pairs",
        "",
        "| box | IoU | success | others kept | PSNR to true, dB (worst) | nearer than random | nearer than nothing | "
        "given back unedited | u |",
        "|---" * 9 + "|",
    ]
    if not pairs:
        return lines[0]
    mean = lambda values: sum(values) / len(pairs)  # noqa: E731
    first = next(iter(by_arm.values()))
    rest = [first[pair] for pair in pairs]
    lines.append(
        f"| nothing done | | {100 * mean(r['nothing_success'] for r in rest):.1f} % | "
        f"{100 * mean(r['nothing_kept'] for r in rest):.1f} % | {mean(r['nothing'] for r in rest):.2f} "
        f"({min(r['nothing'] for r in rest):.1f}) | | | | 0 |"
    )
    for arm, known in by_arm.items():
        own = [known[pair] for pair in pairs]
        chance = by_arm.get("random", {})
        near = mean(r["psnr"] > chance[r["pair"]]["psnr"] for r in own) if chance and arm != "random" else None
        lines.append(
            f"| {arm} | {mean(r['iou'] for r in own):.3f} | {100 * mean(r['success'] for r in own):.1f} % | "
            f"{100 * mean(r['kept'] for r in own):.1f} % | {mean(r['psnr'] for r in own):.2f} "
            f"({min(r['psnr'] for r in own):.1f}) | "
            + ("" if near is None else f"{100 * near:.1f} %")
            + f" | {100 * mean(r['psnr'] > r['nothing'] for r in own):.1f} % | "
            + f"{100 * mean(not r['helped'] for r in own):.1f} % | {mean(r['u'] for r in own):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="unseen pairs of each of the 12 edits; there are 16")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--strength", type=float, default=PLAIN_STRENGTH, help="share of the steps taken")
    parser.add_argument("--context", type=float, default=0.5, help="100 or more: the whole picture in view")
    parser.add_argument("--sentence", default="a photo of {}")
    parser.add_argument("--out", type=Path, default=Path("bench_out/region_words.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(load_demo_model(None), options)
    among = DemoData(bench.demo.folder / "unseen")
    rows = [[n for n, p in enumerate(among.pairs) if p.edit == edit][: options.pairs] for edit in among.edits]
    wanted = [n for row in zip_longest(*rows) for n in row if n is not None]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    known = {(record["pair"], record["arm"]) for record in records}
    with options.out.open("a", encoding="utf-8") as file:
        for number in wanted:
            for arm in options.arms:
                if (number, arm) not in known:
                    records.append(bench.measure(among.pairs[number], number, arm))
                    file.write(json.dumps(records[-1]) + "\n")
                    file.flush()
    print(table(records))


if __name__ == "__main__":
    main()

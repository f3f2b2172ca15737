"""Where an edit goes: the box search of the pack against random boxes, on demo pairs whose true region is known.

All arms edit with the same editor, texts and noise, and each shows its picture of highest score S (Eq. 7 of the paper).
The random arms are the paper's (section 4.4): as many boxes as we have anchors, sides uniform up to the picture's,
centred on random points or on our anchors, on the class-token attention of DINO (``--vision``) or of the demo's own
image tower. A third one takes a random one of our own sizes for each anchor. Renders are shared, but u counts every arm
as if it ran alone, inversions included. The true pictures only measure, they never choose.

    python benchmarks/region_quality.py --skip 8       # the tables of the README, with --vision for the rows with
    DINOv2 python benchmarks/region_quality.py --pairs 1      # a quick look; a larger number later goes on from the
    same file,
                                                       # and two processes with other --edits may fill one file together
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import torch
from region_bench import ATTENDED, EXACT, HALVING, OWN_SIZES, RANDOM, Bench

from semantic_editing.core.demo.data import DemoData
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.regions.proposals import DEFAULT_SIZES
from semantic_editing.core.regions.ranking import Choice
from semantic_editing.core.spdinv.solvers import Solver

BARS = {RANDOM: 83.9, ATTENDED: 71.0}  # Table 2 of the paper
RESAMPLES = 4000
PLACE_ONLY = ("out", "threads", "pairs", "skip", "edits", "batch", "assets")  # options that change no record

Record = dict[str, Any]


def mean(record: Record, arm: str, key: str) -> float:
    """A figure of one pair, over the draws."""
    values = [outcome[key] for outcome in record["arms"][arm]]
    return float(sum(values) / len(values))


def average(records: list[Record], figure: Callable[[Record], float]) -> float:
    """Over all pairs."""
    return sum(map(figure, records)) / len(records)


def wins(record: Record, ours: str, other: str, key: str) -> float:
    """Share of the draws in which ours is higher, a tie counts half."""
    mine = record["arms"][ours][0][key]
    theirs = [outcome[key] for outcome in record["arms"][other]]
    return sum((mine > value) + 0.5 * (mine == value) for value in theirs) / len(theirs)


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over pairs."""
    data = torch.tensor(values)
    picked = torch.randint(len(data), (RESAMPLES, len(data)), generator=torch.Generator().manual_seed(0))
    low, high = data[picked].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def arm_table(records: list[Record]) -> str:
    """Markdown: one row an arm."""
    header = (
        "| box | IoU with the true region | score S | CLIP success | success | others kept | PSNR to true, dB | "
        "u per edit |"
    )
    lines = [header, "|---" * 8 + "|"]
    for arm in records[0]["arms"]:
        iou, score, clip, done, kept, decibel, u = (
            average(records, lambda record, arm=arm, key=key: mean(record, arm, key))
            for key in ("iou", "score", "clip", "success", "kept", "psnr", "u")
        )
        shares = " | ".join(f"{100 * value:.1f} %" for value in (clip, done, kept))
        lines.append(f"| {arm} | {iou:.3f} | {score:.4f} | {shares} | {decibel:.2f} | {u:.0f} |")
    return "\n".join(lines)


def comparisons(records: list[Record]) -> str:
    """Markdown: how often ours is better, by score and by distance to the true picture."""
    lines = ["| ours better | by score S | nearer to the true picture | the paper's, by people |", "|---|---|---|---|"]
    for ours in (EXACT, HALVING):
        for other in (RANDOM, ATTENDED, OWN_SIZES):
            cells = []
            for key in ("score", "psnr"):
                shares = [100 * wins(record, ours, other, key) for record in records]
                cells.append("{:.1f} % ({:.1f} to {:.1f})".format(sum(shares) / len(shares), *interval(shares)))
            lines.append(
                f"| {ours}, over {other} | {cells[0]} | {cells[1]} | {f'{BARS[other]} %' if other in BARS else ''} |"
            )
    return "\n".join(lines)


def edit_table(records: list[Record]) -> str:
    """Markdown: `exact` on each edit."""
    header = (
        f"| edit | IoU | best IoU among the boxes | success | PSNR to true, dB | nearer than {RANDOM} | nearer "
        f"than {ATTENDED} |"
    )
    lines = [header, "|---" * 7 + "|"]
    for edit in dict.fromkeys(record["edit"] for record in records):
        own = [record for record in records if record["edit"] == edit]
        iou, done, decibel = (
            average(own, lambda r, key=key: mean(r, EXACT, key)) for key in ("iou", "success", "psnr")
        )
        best = average(own, lambda r: r["best_iou"])
        near = " | ".join(
            f"{100 * average(own, lambda r, o=other: wins(r, EXACT, o, 'psnr')):.0f} %" for other in (RANDOM, ATTENDED)
        )
        lines.append(f"| {edit} | {iou:.2f} | {best:.2f} | {100 * done:.0f} % | {decibel:.1f} | {near} |")
    return "\n".join(lines)


def halving_line(records: list[Record]) -> str:
    """What halving costs and loses."""
    u, score = (
        average(records, lambda r, key=key: mean(r, HALVING, key))
        / average(records, lambda r, key=key: mean(r, EXACT, key))
        for key in ("u", "score")
    )
    worst = min(mean(r, HALVING, "score") / mean(r, EXACT, "score") for r in records)
    return f"halving: {100 * u:.1f} % of exact's u, {100 * score:.2f} % of its score (worst pair {100 * worst:.1f} %)"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--among", choices=["unseen", "demo"], default="unseen", help="demo: the pairs that settings were found on"
    )
    parser.add_argument("--pairs", type=int, default=8, help="pairs of each edit")
    parser.add_argument("--skip", type=int, default=0, help="pairs of each edit left out at the start")
    parser.add_argument("--edits", nargs="+", help="names of edits; all by default")
    parser.add_argument("--editor", choices=["inpaint", "inversion"], default="inversion")
    parser.add_argument("--vision", help="folder of DINO or another ViT; by default the demo's own image tower")
    parser.add_argument("--anchors", type=int, default=2, help="places on the attention")
    parser.add_argument(
        "--changes", type=int, default=2, help="places where the edit acts; both together are the paper's K"
    )
    parser.add_argument("--spread", type=int, default=1, help="patches between anchors")
    parser.add_argument("--sizes", type=float, nargs="+", default=list(DEFAULT_SIZES))
    parser.add_argument("--aspects", type=float, nargs="+", default=[1.0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--screen-steps",
        type=int,
        default=0,
        help="0: screening cuts boxes out of one edit of the whole (inversion editor)",
    )
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--negative", choices=["source", "empty"], default="source")
    parser.add_argument("--strength", type=float, default=1.0, help="of inpainting")
    parser.add_argument("--guidance", type=float, default=0.0, help="of the inversion editor")
    parser.add_argument("--solver", choices=get_args(Solver), default="ddim", help="of the inversion editor")
    parser.add_argument(
        "--sentence", default="a portrait of a person, {}", help="what the judge reads, around the edit's words"
    )
    parser.add_argument(
        "--weights", type=float, nargs=3, default=[1.0, 1.0, 1.0], help="of L_Clip, L_Dir, L_Str (Eq. 3)"
    )
    parser.add_argument("--crops", type=int, default=0, help="of the losses, besides the whole picture")
    parser.add_argument("--choice", choices=get_args(Choice), default="tightest", help="who is best")
    parser.add_argument(
        "--refine", action=argparse.BooleanOptionalAction, default=True, help="move the sides of the best box"
    )
    parser.add_argument("--draws", type=int, default=2, help="of each random arm")
    parser.add_argument("--seed", type=int, default=0, help="of the random boxes")
    parser.add_argument("--batch", type=int, default=8, help="boxes rendered together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    parser.add_argument("--out", type=Path, default=Path("bench_out/region_quality.jsonl"))
    return parser.parse_args()


def earlier(path: Path, settings: dict[str, Any]) -> dict[int, Record]:
    """Records of an interrupted or smaller run, or of one beside this, with the same settings."""
    if not path.is_file():
        return {}
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    if json.loads(first) != settings:
        raise SystemExit(f"{path} holds a run with other settings; choose another --out or delete it.")
    return {entry["pair"]: entry for entry in map(json.loads, lines) if "pair" in entry}


def append(path: Path, entry: dict[str, Any]) -> None:
    """A line of JSON at the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def main() -> None:
    """Run what is missing, one line of the file a pair, and print the tables."""
    arguments = options()
    torch.set_num_threads(arguments.threads)
    settings = {key: value for key, value in vars(arguments).items() if key not in PLACE_ONLY}
    records = earlier(arguments.out, settings)
    demo = load_demo_model(arguments.assets)
    bench = Bench(demo, arguments)
    among = demo if arguments.among == "demo" else DemoData(demo.folder / "unseen")
    numbers = {
        edit: [number for number, pair in enumerate(among.pairs) if pair.edit == edit]
        for edit in arguments.edits or among.edits
    }
    chosen = [own[arguments.skip :][: arguments.pairs] for own in numbers.values()]
    wanted = [number for row in zip_longest(*chosen) for number in row if number is not None]
    if not arguments.out.is_file():
        append(arguments.out, settings)
    for count, number in enumerate(wanted, start=1):
        if number in records:
            continue
        began = time.perf_counter()
        records[number] = {"pair": number, **bench.run(among.pairs[number], number)}
        append(arguments.out, records[number])
        print(f"{count} of {len(wanted)}: {records[number]['edit']}, {time.perf_counter() - began:.0f} s", flush=True)
    measured = [records[number] for number in wanted]
    print(f"\n{len(measured)} pairs, {arguments.editor} editor, {arguments.steps} steps\n")
    parts = (
        arm_table(measured),
        comparisons(measured),
        halving_line(measured),
        edit_table(measured),
        f"wrote {arguments.out}",
    )
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()

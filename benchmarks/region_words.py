"""Edit by Words, Place Found, measured through its shipped workflow on pairs whose true region is known.

Arms, all by ``demo_edit_by_words`` in a ComfyUI with its own settings: as it ships (the map's tightest box), with a
CLIP wired that compares three boxes, and with a box wired in place of the map: a random one, the whole picture, the
true one. The true pictures only measure, they never choose. What is done stays in --out.

    python benchmarks/region_words.py              # all unseen pairs: the table of docs/measured.md
    python benchmarks/region_words.py --pairs 2    # of each edit: a quick look
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from demo import ComfyRunner, chosen_host, running, saved, workflow_called
from region_boxes import overlap, random_boxes, true_region

from semantic_editing.core.demo.bench import Judgement, Workflow, aimed_at, interval
from semantic_editing.core.demo.data import FOLDER, DemoData, DemoPair
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.files import read_picture
from semantic_editing.core.metrics.image import psnr
from semantic_editing.core.regions.proposals import Box

SIDE, NODE = 128, "SemEdit_EditByWords"
RANDOM, WHOLE, FAST, JUDGED, TRUE = (
    "random place, random size",
    "the whole picture",
    "**as it ships: the map's tightest box**",
    "three of the map's boxes, compared by a CLIP",
    "the true box",
)
EDITED = re.compile(r"edited: (\d+) x (\d+) pixels at \((\d+), (\d+)\)")


def arms(pair: DemoPair, number: int, source: str, truth: str) -> dict[str, Workflow]:
    """The workflow of each arm for a pair whose pictures lie in the input folder as ``source`` and ``truth``."""
    shipped = aimed_at(workflow_called("demo_edit_by_words"), pair, source, truth)
    ((drawn,),) = random_boxes(1, (SIDE, SIDE), torch.Generator().manual_seed(number)).boxes
    assert drawn is not None
    made = {FAST: shipped}
    for name, box in ((RANDOM, drawn), (WHOLE, Box(0, 0, SIDE, SIDE)), (TRUE, true_region(pair))):
        made[name] = copy.deepcopy(shipped)
        given = {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
        node_of(made[name])["inputs"]["boxes"] = [given]
    made[JUDGED] = copy.deepcopy(shipped)
    made[JUDGED]["scorer"] = {"class_type": "SemEdit_LoadCLIPScorer", "inputs": {"clip_model": "demo model"}}
    node_of(made[JUDGED])["inputs"]["clip_scorer"] = ["scorer", 0]
    return made


def node_of(workflow: Workflow) -> dict[str, Any]:
    """The node that edits."""
    return next(node for node in workflow.values() if node["class_type"] == NODE)


def measure(pair: DemoPair, number: int, runner: ComfyRunner, folder: Path) -> dict[str, Any]:
    """One pair: IoU (0 where nothing was painted), PSNR to the true picture in dB and u of each arm."""
    truth, found = true_region(pair), {}
    files = runner.picture_file(pair.source), runner.picture_file(pair.target)
    for place, (name, workflow) in enumerate(arms(pair, number, *files).items()):
        before = runner.counts()
        outputs = runner.execute(workflow)["outputs"]
        image = saved(workflow, outputs)["images"][0]
        picture = read_picture(runner.base / "output" / image["subfolder"] / image["filename"])[0]
        key = next(key for key, node in workflow.items() if node["class_type"] == NODE)
        box = EDITED.search(outputs[key]["text"][0])
        width, height, x, y = map(int, box.groups()) if box else (0, 0, 0, 0)
        found[name] = {
            "iou": overlap(Box(x, y, width, height), truth) if box else 0.0,
            "psnr": float(psnr(picture, pair.target[None])),
            "u": runner.counts()["forward"] - before["forward"],
            "helped": box is not None,
        }
        torch.save((picture[0] * 255).round().byte(), folder / f"{number}_{place}.pt")
    return {"pair": number, "nothing": float(psnr(pair.source[None], pair.target[None])), "arms": found}


def seen(records: Sequence[dict[str, Any]], pairs: Sequence[DemoPair], folder: Path) -> dict[str, list[float]]:
    """``[success, others kept]`` of each arm and of nothing done, by the second classifier."""
    demo, names = load_demo_model(), list(records[0]["arms"])
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in ["nothing", *names]}
    for edit in dict.fromkeys(pairs[record["pair"]].edit for record in records):
        own = [record["pair"] for record in records if pairs[record["pair"]].edit == edit]
        judgement = Judgement(demo, [pairs[number] for number in own])
        for place, name in enumerate(parts):
            images = (
                judgement.sources
                if name == "nothing"
                else torch.stack([torch.load(folder / f"{number}_{place - 1}.pt") for number in own]).float() / 255
            )
            figures = judgement.measure(images)
            parts[name].append(torch.stack([figures["success"], figures["kept"]]))
    return {name: torch.cat(values, 1).mean(1).tolist() for name, values in parts.items()}


def main() -> None:
    """Measure what is missing, one line of the file a pair, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="of each edit")
    parser.add_argument("--comfyui", type=Path, help="the ComfyUI to use (default: the first that is found)")
    parser.add_argument("--out", type=Path, default=Path("bench_out/region_words"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    among, listing = DemoData(FOLDER / "unseen"), options.out / "pairs.jsonl"
    rows = [[n for n, p in enumerate(among.pairs) if p.edit == edit][: options.pairs] for edit in among.edits]
    wanted = [n for row in zip_longest(*rows) for n in row if n is not None]
    records = [json.loads(line) for line in listing.read_text().splitlines()] if listing.is_file() else []
    missing = [number for number in wanted if number not in {record["pair"] for record in records}]
    host = chosen_host(options.comfyui) if missing else None
    if missing and host is None:
        raise EditingError("It is measured in a ComfyUI; set COMFYUI_PATH or give --comfyui.")
    if missing:
        with running(host) as runner:
            assert isinstance(runner, ComfyRunner)
            for number in missing:
                records.append(measure(among.pairs[number], number, runner, options.out))
                with listing.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    print_table([record for record in records if record["pair"] in wanted], among.pairs, options.out)


def print_table(records: Sequence[dict[str, Any]], pairs: Sequence[DemoPair], folder: Path) -> None:
    """A row for each arm."""
    judged, count = seen(records, pairs, folder), len(records)
    print(f"{count} pairs; nearer than random: 95 % interval in brackets\n")
    print(
        "| box | IoU | PSNR to true, dB | worst, dB | nearer than random | than nothing | success | others kept | u |"
    )
    print("|---" * 9 + "|")
    plain = [record["nothing"] for record in records]
    success, kept = judged["nothing"]
    print(f"| nothing done | | {sum(plain) / count:.2f} | {min(plain):.1f} | | | {success:.1%} | {kept:.1%} | 0 |")
    for name in (RANDOM, WHOLE, FAST, JUDGED, TRUE):
        own = [record["arms"][name] for record in records]
        worst = min(arm["psnr"] for arm in own)
        near = torch.tensor(
            [float(record["arms"][name]["psnr"] > record["arms"][RANDOM]["psnr"]) for record in records]
        )
        better = sum(record["arms"][name]["psnr"] > record["nothing"] for record in records) / count
        low, high = interval(near)
        told = "" if name == RANDOM else f"{float(near.mean()):.1%} ({low:.0%} to {high:.0%})"
        iou, decibel, units = (sum(arm[key] for arm in own) / count for key in ("iou", "psnr", "u"))
        success, kept = judged[name]
        given_back = sum(not arm["helped"] for arm in own)
        back = f" ({given_back} given back)" if given_back else ""
        print(
            f"| {name}{back} | {iou:.2f} | {decibel:.2f} | {worst:.1f} | {told} | {better:.1%} "
            f"| {success:.1%} | {kept:.1%} | {units:.0f} |"
        )
    for edit in dict.fromkeys(pairs[record["pair"]].edit for record in records):
        own = [record["arms"][FAST]["iou"] for record in records if pairs[record["pair"]].edit == edit]
        print(f"IoU, {edit}: {sum(own) / len(own):.2f} (n {len(own)})")


if __name__ == "__main__":
    main()

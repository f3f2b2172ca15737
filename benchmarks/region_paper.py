"""Learnable Regions as the paper has it, on pairs whose true region is known: what its losses and its network choose.

Of every edit some pictures are learned from and some unseen ones are chosen for. Every box (section 3.1) of every
picture is painted once; what a box is worth is one line of the file, so a run can be stopped and taken up. Then every
row takes one box at each anchor, and of those the one of highest score (Eq. 7): the network after the paper's epochs
and after ten times as many, learned from all three losses, from one, from two (the question of Fig. 8), and from the
structure loss at the paper's size (a Frobenius norm, where the pack takes the root of the mean); the largest box; a box
by chance; the box of least loss, which is the network's goal; and the box nearest to the truth, which is the ceiling.

    python benchmarks/region_paper.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from region_boxes import overlap, true_region

from semantic_editing.core.demo.builders import demo_scorer, demo_vision_features
from semantic_editing.core.demo.data import DemoData, DemoPair
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.metrics.image import psnr
from semantic_editing.core.regions.edit_inpaint import InpaintEditor, InpaintSettings
from semantic_editing.core.regions.network import region_features
from semantic_editing.core.regions.paper import (
    Example,
    PaperSettings,
    Studied,
    choices,
    new_network,
    study,
    train,
)
from semantic_editing.core.regions.paste import Framing
from semantic_editing.core.regions.proposals import Box, propose
from semantic_editing.core.regions.rewards import LossWeights, Verdict

SIDE = 128


@dataclass(frozen=True, eq=False)
class Known:
    """A picture with every box painted.

    Attributes:
        overlaps, decibels: of each box IoU with the true region, and PSNR of its edit to the true picture.
        nothing: PSNR of the unedited picture to the true one.
    """

    studied: Studied
    overlaps: Mapping[Box, float]
    decibels: Mapping[Box, float]
    nothing: float


class Bench:
    """The models, and the options of the command line."""

    def __init__(self, demo: DemoModel, options: argparse.Namespace):
        self.demo, self.options = demo, options
        self.scorer, self.vision = demo_scorer(demo), demo_vision_features(demo)
        self.settings = PaperSettings(anchors=options.anchors)
        self.lines: dict[str, dict[str, Any]] = {}
        if options.out.is_file():
            self.lines = {line["key"]: line for line in map(json.loads, options.out.read_text().splitlines())}

    def known(self, pair: DemoPair, key: str) -> Known:
        """Paint every box of a pair, or read what was found of them."""
        truth, target = true_region(pair), pair.target[None]
        example = Example(pair.source[None], pair.source_caption, pair.target_caption)
        if key not in self.lines:
            found: list[float] = []
            editor = self._editor(pair)
            studied = study(
                example,
                self.vision,
                self.scorer,
                editor,
                self.settings,
                watch=lambda done, total, edited: found.append(float(psnr(edited, target))),
            )
            boxes = {",".join(map(str, box)): vars(verdict) for box, verdict in studied.verdicts.items()}
            self.lines[key] = {"key": key, "u": studied.units, "boxes": boxes, "psnr": found}
            with self.options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[key]) + "\n")
        line = self.lines[key]
        verdicts = {Box(*map(int, name.split(","))): Verdict(**values) for name, values in line["boxes"].items()}
        view = self.vision(example.image)
        proposals = propose(view.attention[0], view.image_size, self.settings.anchors, self.settings.sizes)
        studied = Studied(
            example, proposals, verdicts, region_features(view.features[0], proposals), torch.empty(0), line["u"]
        )
        return Known(
            studied,
            {box: overlap(box, truth) for box in verdicts},
            dict(zip(verdicts, line["psnr"], strict=True)),
            float(psnr(example.image, target)),
        )

    def _editor(self, pair: DemoPair) -> InpaintEditor:
        with torch.no_grad():
            source, target = (self.demo.encode_text([text]) for text in (pair.source_caption, pair.target_caption))
        settings = InpaintSettings(self.options.cfg, self.options.steps, framing=Framing(100.0, working_size=SIDE))
        return InpaintEditor(self.demo.denoiser(), self.demo.encode_image, self.demo.decode, target, source, settings)


def weighed(known: Known, weights: LossWeights) -> Studied:
    """A picture whose boxes' losses are those of ``weights``."""
    rows = [
        [float("nan") if box is None else known.studied.verdicts[box].loss(weights) for box in row]
        for row in known.studied.proposals.boxes
    ]
    return replace(known.studied, losses=torch.tensor(rows))


#: A box at each anchor, ``[K]`` slots.
Choice = Callable[[Known], torch.Tensor]


def by_least(known: Known, value: Callable[[Box], float]) -> torch.Tensor:
    """At each anchor the slot of the box of least ``value``."""
    rows = [[float("inf") if box is None else value(box) for box in row] for row in known.studied.proposals.boxes]
    return torch.tensor(rows).argmin(1)


def by_chance(known: Known) -> torch.Tensor:
    """At each anchor a slot by chance, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    valid = known.studied.proposals.valid.float()
    return torch.multinomial(valid, 1, generator=generator).flatten()


def learned(bench: Bench, taught: Sequence[Known], weights: LossWeights, epochs: int) -> Choice:
    """The network's choice after learning from ``taught``."""
    settings = replace(bench.settings, weights=weights, epochs=epochs)
    network = new_network(taught[0].studied, bench.vision)
    train(network, [weighed(one, weights) for one in taught], settings)
    return lambda known: choices(network, known.studied)


def rows_of(bench: Bench, taught: Sequence[Known]) -> dict[str, Choice]:
    """Every row's way to choose."""
    tokens = bench.scorer.embed_images(taught[0].studied.example.image).similarity.shape[-1]
    weights = {
        "all three losses": LossWeights(),
        "L_Clip alone": LossWeights(1, 0, 0),
        "L_Dir alone": LossWeights(0, 1, 0),
        "L_Str alone": LossWeights(0, 0, 1),
        "without L_Clip": LossWeights(0, 1, 1),
        "without L_Dir": LossWeights(1, 0, 1),
        "without L_Str": LossWeights(1, 1, 0),
        "L_Str at the paper's size": LossWeights(1, 1, float(tokens)),
    }
    few = bench.settings.epochs
    rows: dict[str, Choice] = {f"network, {few} epochs": learned(bench, taught, LossWeights(), few)}
    for name, chosen in weights.items():
        rows[f"network, {10 * few} epochs, {name}"] = learned(bench, taught, chosen, 10 * few)
        rows[f"least loss, {name}"] = lambda known, chosen=chosen: by_least(
            known, lambda box: known.studied.verdicts[box].loss(chosen)
        )
    return rows | {
        "the largest box": lambda known: known.studied.largest,
        "a box by chance": by_chance,
        "nearest to the truth": lambda known: by_least(known, lambda box: -known.overlaps[box]),
    }


def table(bench: Bench, edits: Mapping[str, tuple[Sequence[Known], Sequence[Known]]]) -> str:
    """A row of the report for each way to choose, over the unseen pictures."""
    found: dict[str, list[tuple[float, float, float, bool, bool, float]]] = {}
    for taught, unseen in edits.values():
        ways = rows_of(bench, taught)
        for known in unseen:
            plain = weighed(known, LossWeights())
            picks = {name: way(known) for name, way in ways.items()}
            shown = {
                name: max(
                    (known.studied.proposals.box(anchor, int(slot)) for anchor, slot in enumerate(slots)),
                    key=lambda box: known.studied.verdicts[box].score,
                )
                for name, slots in picks.items()
            }
            chance = known.decibels[shown["a box by chance"]]
            for name, slots in picks.items():
                box = shown[name]
                loss = float(plain.losses.gather(1, slots[:, None]).mean())
                same = float((slots == known.studied.largest).float().mean())
                decibels = known.decibels[box]
                found.setdefault(name, []).append(
                    (loss, known.overlaps[box], decibels, decibels > chance, decibels > known.nothing, same)
                )
    count = len(next(iter(found.values())))
    lines = [
        f"{count} unseen pictures of {len(edits)} edits",
        "",
        "| one box at each anchor by | mean loss there | IoU | PSNR to true, dB | nearer than by chance | nearer than "
        "nothing | the largest box chosen |",
        "|---" * 7 + "|",
    ]
    for name, values in found.items():
        loss, iou, decibels, near, better, same = (sum(column) / count for column in zip(*values, strict=True))
        lines.append(
            f"| {name} | {loss:.3f} | {iou:.2f} | {decibels:.2f} | {100 * near:.0f} % | {100 * better:.0f} % | "
            f"{100 * same:.0f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Paint what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=8)
    parser.add_argument("--learn", type=int, default=4, help="pictures of an edit to learn from")
    parser.add_argument("--unseen", type=int, default=4, help="pictures of an edit to choose for")
    parser.add_argument("--anchors", type=int, default=3, help="the paper has 9")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("bench_out/region_paper.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(load_demo_model(None), options)
    known: dict[str, tuple[list[Known], list[Known]]] = {}
    seen, unseen = DemoData(bench.demo.folder), DemoData(bench.demo.folder / "unseen")
    with torch.no_grad():
        for edit in unseen.edits[: options.edits]:
            known[edit] = ([], [])
            for place, (data, most) in enumerate(((seen, options.learn), (unseen, options.unseen))):
                numbers = [number for number, pair in enumerate(data.pairs) if pair.edit == edit][:most]
                for number in numbers:
                    key = f"{('seen', 'unseen')[place]} {number}, {options.anchors} anchors, {options.steps} steps"
                    known[edit][place].append(bench.known(data.pairs[number], key))
            print(edit, *map(len, known[edit]), flush=True)
    print(table(bench, known))


if __name__ == "__main__":
    main()

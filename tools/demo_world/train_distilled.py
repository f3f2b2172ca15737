"""Train a distilled edit of the demo from the pairs of ``distil_pairs.py``.

    python tools/demo_world/train_distilled.py "glasses: none to glasses" PAIRS.npz OUT.safetensors

As Distil Edit Trainer does it, with the demo's CLIP as the filter; the file is stored in half precision. ``--strip
FILE.png`` shows held-out pairs: before, network, edit.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from world import ASSETS  # also makes ``core`` importable

from core.demo.builders import demo_scorer
from core.demo.model import load_demo_model
from core.distillation.files import save_editor
from core.distillation.network import SHAPES
from core.distillation.pairs import EditPairs, PairFilter, filter_pairs
from core.distillation.training import DistillationSettings, DistillationTrainer
from core.images.contact_sheet import to_picture


def main() -> None:
    """Filter, train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edit", help='"attribute: label to label"')
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--strip", type=Path)
    for setting in fields(DistillationSettings):
        if setting.type in ("int", "float"):
            kind = int if setting.type == "int" else float
            parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    options = vars(parser.parse_args())
    torch.set_num_threads(1)
    pictures = torch.from_numpy(np.load(options["pairs"])["images"]).permute(0, 1, 4, 2, 3).contiguous()
    demo = load_demo_model(ASSETS)
    source, target = (f"a portrait of a person, {words}" for words in demo.pairs_of(options["edit"])[0].words)
    found = filter_pairs(EditPairs(pictures[:, 0], pictures[:, 1]), PairFilter(source, target), demo_scorer(demo))
    print(found.report(), flush=True)
    chosen = {
        setting.name: options[setting.name] for setting in fields(DistillationSettings) if setting.name in options
    }
    trainer = DistillationTrainer(
        found.pairs, SHAPES["small"], DistillationSettings(**chosen), source=source, target=target
    )

    def report(seen: DistillationTrainer) -> None:
        if seen.step % seen.settings.check_every == 0:
            print(seen.line(), flush=True)

    editor = trainer.run(report)
    print(trainer.report(editor))
    save_editor(options["out"], editor, overwrite=True, half=True)
    if options["strip"]:
        rows = [torch.cat(list(part), 2) for part in trainer.pictures()]
        to_picture(torch.cat(rows, 1)).save(options["strip"])


if __name__ == "__main__":
    main()

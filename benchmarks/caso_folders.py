"""CASO from two folders, measured: 75 bundled pictures that have it, 75 that have it not, no other labels.

Trains as CASO Embedding Trainer does at its defaults (the kind's recipe, the classifier that it trains itself, the
held-out pictures, judged by layers over the demo's CLIP as with CLIP Vision wired into second_opinion), edits unseen
pairs by the kind's window and focus, and lets the demo's second classifier judge. Each folder is exactly one class,
look-alikes are in neither, and never both pictures of a pair. What is done stays in --out, so that a run that was
stopped, or one with more seeds, goes on from there.

    python benchmarks/caso_folders.py                                  # the table of docs/measured.md
    python benchmarks/caso_folders.py --seeds 0 1 2                    # three sets of pictures
    python benchmarks/caso_folders.py --attributes glasses --unseen 8  # a quick look
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from caso_bench import ATTRIBUTES, Bench
from torch import Tensor

from semantic_editing.core.caso.embedding import SemanticEmbedding
from semantic_editing.core.caso.look import RealLook, opinion_of_folders, teacher_of_folders
from semantic_editing.core.caso.settings import KINDS
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.classifiers.frozen_features import scorer_trunk
from semantic_editing.core.demo.builders import demo_scorer
from semantic_editing.core.demo.caso_recipes import RECIPES
from semantic_editing.core.demo.data import DemoData, visible
from semantic_editing.core.demo.model import load_demo_model

#: Name -> kind, a word to start from, and strengths of the edits.
SETTINGS = {
    "glasses": ("large", "face", (3.0, 5.0)),
    "smile": ("fine", "face", (4.0, 7.0, 10.0)),
    "beard": ("large", "face", (3.0, 5.0, 7.0)),
    "red hair": ("colour", "hair", (2.0, 3.0)),
}
#: Attributes whose pictures without it are of one label; the other labels look alike.
WITHOUT = {"glasses": "none", "facial_hair": "none"}
HELD_OUT = 16


def folders(demo: DemoData, attribute: str, target: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``(pictures that have it, pictures that have it not)``, at most ``count`` each, one of a pair at most."""
    generator = torch.Generator().manual_seed(seed)
    having: list[Tensor] = []
    without: list[Tensor] = []
    seen: set[bytes] = set()
    for number in torch.randperm(len(demo.pairs), generator=generator).tolist():
        pair = demo.pairs[number]
        sides = [(pair.source, pair.source_attributes), (pair.target, pair.target_attributes)]
        if float(torch.rand(1, generator=generator)) < 0.5:
            sides.reverse()
        sides.sort(key=lambda side: side[1][attribute] != target)  # those that have it are the rarer ones
        names = {picture.numpy().tobytes() for picture, _ in sides}
        if names & seen:
            continue
        for picture, labels in sides:
            has = labels[attribute] == target
            wanted = WITHOUT.get(attribute, labels[attribute])
            if not visible(attribute, labels) or (not has and labels[attribute] != wanted):
                continue
            group = having if has else without
            if len(group) < count:
                group.append(picture)
                seen |= names
                break
    return torch.stack(having), torch.stack(without)


def learned(
    bench: Bench, name: str, options: argparse.Namespace, seed: int
) -> tuple[SemanticEmbedding, dict[str, Any]]:
    """The embedding from one set of pictures and what its training said; read from ``options.out`` where it is."""
    path = options.out / f"folders_{name.replace(' ', '_')}_{options.pictures}_{options.opinion}_{seed}.safetensors"
    facts = path.with_suffix(".json")
    if facts.exists():
        return SemanticEmbedding.load(path), json.loads(facts.read_text(encoding="utf-8"))
    demo, recipe, (kind_name, words, _) = bench.demo, RECIPES[name], SETTINGS[name]
    kind = KINDS[kind_name]
    having, without = folders(demo, recipe.attribute, recipe.target, options.pictures, seed)
    settings = kind.settings(recipe.attribute, recipe.target, kind.classifier, seed=seed, start_words=words)
    began = time.perf_counter()
    trunk = scorer_trunk(demo_scorer(demo)) if options.opinion == "clip" else None
    opinion = opinion_of_folders(having, without, HELD_OUT, seed, trunk=trunk)
    teacher = teacher_of_folders(having, without[HELD_OUT:], settings) if kind.classifier else None
    held, rest = without[:HELD_OUT], without[HELD_OUT:]
    latents = [bench.encode(torch.cat([part, part.flip(-1)])) for part in (rest, having)]
    parts, judged = (demo.denoiser(), bench.vector_encoder, bench.decoder), bench.encode(held)
    look = RealLook(*parts, opinion, judged, kind)
    trainer = EmbeddingTrainer(*parts, teacher, latents[0], settings, judged, None, latents[1], look)
    (embedding,) = trainer.run()
    kept = trainer.history[trainer.best_found.step].validation
    assert kept is not None
    said = {
        "pictures": [len(having), len(without)],
        "seconds": time.perf_counter() - began,
        "kept step": trainer.best_found.step + 1,
        "reported success": kept.accuracy,
        "at strength": look.strength,
        "opinion": opinion.sentence(),
    }
    embedding.save(path, overwrite=True)
    facts.write_text(json.dumps(said, indent=1), encoding="utf-8")
    return embedding, said


def main() -> None:
    """Parse arguments, train, edit, print a line for each attribute, set of pictures and strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attributes", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--pictures", type=int, default=75, help="in each folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of choices of pictures and of trainings")
    parser.add_argument("--unseen", type=int, default=40, help="pairs that are edited")
    parser.add_argument("--opinion", choices=["clip", "small"], default="clip", help="layers over CLIP, or networks")
    parser.add_argument("--data", type=Path, help="a folder with other pairs, from tools/demo_world/fresh_pairs.py")
    parser.add_argument("--steps", type=int, default=20, help="of an edit's whole trajectory")
    parser.add_argument("--out", type=Path, default=Path("bench_out"), help="where embeddings and figures are kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    demo = load_demo_model(options.assets)
    bench, data = Bench(demo, options), DemoData(options.data or demo.folder / "unseen")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.attributes:
        kind_name, words, strengths = SETTINGS[name]
        kind = KINDS[kind_name]
        pairs = data.pairs_of(ATTRIBUTES[name])[: options.unseen]
        inverted = None
        for seed in options.seeds:
            embedding, said = learned(bench, name, options, seed)
            having, without = said["pictures"]
            print(
                f"{name}, set {seed}: {having} + {without} pictures, kind {kind_name}, start word {words}; "
                f"{said['seconds']:.0f} s; kept step {said['kept step']}; reported success "
                f"{said['reported success']:.0%} at strength {said['at strength']:g}, {said['opinion']}",
                flush=True,
            )
            inverted = inverted or bench.invert(torch.stack([pair.source for pair in pairs]), kind.start)
            condition = embedding.condition(bench.vector_encoder)
            for strength in (0.0, *strengths):
                images, _ = bench.edit(inverted, condition, strength, kind.focus)
                row = bench.measure(images, pairs, name, strength, 0.0)
                print(
                    f"{name}, set {seed}: strength {strength:g}: success {row['success_judge']:.1%}, others kept "
                    f"{row['kept_judge']:.1%}, {row['psnr_true']:.2f} dB, {len(pairs)} pairs",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""CASO taking away: red hair and beards off unseen pictures, with and without something to lead to.

A negative strength says what to leave, not where to go. Against that stand the class to go to, alone and against the
one to leave (``against`` of CASO Edit Sampler), and a longer window. The class to go to is learned as the demo's own
embeddings are, from the ten-head classifier (``core/demo/caso_recipes.py``), or is words alone (``--goal words``: the
vectors of "black hair" as an embedding, for which nothing is learned). Success: the second classifier no longer
sees it; the share in which it sees the class that the true picture has stands beside.

    python benchmarks/caso_away.py                                      # the table of docs/measured.md
    python benchmarks/caso_away.py --attributes "red hair" --unseen 8   # a quick look
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from caso_bench import ATTRIBUTES, VALIDATION, Bench, undone

from semantic_editing.core.caso.editing import semantic_edit
from semantic_editing.core.caso.embedding import GuidanceTerm, SemanticEmbedding
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.demo.caso_recipes import RECIPES
from semantic_editing.core.demo.data import DemoData, pictures_without
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.metrics.image import success

#: Name -> the class to go to, windows, and strengths of: away alone, there alone, there against it.
SETTINGS = {
    "red hair": ("black", (0.7,), (-3.0, -5.0), (3.0,), (2.0, 3.0)),
    "beard": ("none", (0.8, 0.5), (-7.0,), (7.0,), (3.0, 5.0)),
}
#: Words for the class to go to.
WORDS = {"red hair": "black hair", "beard": "clean shaven"}
PICTURES = 120


def goal(bench: Bench, name: str, folder: Path, words: bool) -> SemanticEmbedding:
    """The embedding of the class to go to: read from ``folder``, or learned and put there; or ``words`` alone."""
    target, encoder = SETTINGS[name][0], bench.vector_encoder
    if words:
        vectors = encoder.word_vectors(WORDS[name])
        return SemanticEmbedding({part: rows.detach().float().cpu() for part, rows in vectors.items()})
    recipe = replace(RECIPES[name], target=target)
    path = folder / f"{recipe.attribute}_{target}.safetensors"
    if not path.exists():
        pictures = pictures_without(bench.demo.pairs, recipe.attribute, target)[:PICTURES]
        latents = bench.encode(pictures)
        parts = (bench.demo.denoiser(), bench.vector_encoder, bench.decoder, bench.classifier)
        trainer = EmbeddingTrainer(*parts, latents[VALIDATION:], recipe.settings(), latents[:VALIDATION])
        trainer.run()[0].save(path)
    return SemanticEmbedding.load(path)


def main() -> None:
    """Parse arguments, learn what is missing, edit, print a line for each way and strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attributes", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--unseen", type=int, default=40, help="pairs that are edited, from with it to without")
    parser.add_argument("--data", type=Path, help="a folder with other pairs, from tools/demo_world/fresh_pairs.py")
    parser.add_argument("--goal", choices=["learned", "words"], default="learned", help="the class to go to")
    parser.add_argument("--steps", type=int, default=20, help="of an edit's whole trajectory")
    parser.add_argument("--out", type=Path, default=Path("bench_out"), help="where the embeddings go")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    demo = load_demo_model(options.assets)
    bench, data = Bench(demo, options), DemoData(options.data or demo.folder / "unseen")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.attributes:
        recipe, (target, windows, away, there, both) = RECIPES[name], SETTINGS[name]
        shipped = SemanticEmbedding.load(demo.folder / "embeddings" / f"{name.replace(' ', '_')}.safetensors")
        towards = goal(bench, name, options.out, options.goal == "words")
        leave, go = (part.condition(bench.vector_encoder) for part in (shipped, towards))
        pairs = [undone(pair) for pair in data.pairs_of(ATTRIBUTES[name])[: options.unseen]]
        for start in windows:
            inverted = bench.invert(torch.stack([pair.source for pair in pairs]), start)
            ways = [("nothing", leave, (), 0.0)]
            ways += [(f"{name} at a negative strength", leave, (), strength) for strength in away]
            ways += [(target, go, (), strength) for strength in there]
            ways += [(f"{target} against {name}", go, (leave,), strength) for strength in both]
            for label, cond, against, strength in ways:
                term = GuidanceTerm(cond, strength, focus=recipe.focus, against=against)
                parts = [semantic_edit(demo.denoiser(), made, bench.uncond, [term], own) for made, own in inverted]
                images = bench.decode(torch.cat(parts))
                row, seen = bench.measure(images, pairs, label, strength, 0.0), bench.judge.labels(images)
                gone = 1 - float(success(seen, {recipe.attribute: recipe.target}).mean())
                print(
                    f"{name}, window {start:g}: {label}, strength {strength:g}: gone {gone:.1%}, true class "
                    f"{row['success_judge']:.1%}, others kept {row['kept_judge']:.1%}, {row['psnr_true']:.2f} dB, "
                    f"{len(pairs)} pairs",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""CASO on the demo world: train attributes from a classifier, edit unseen pictures, let a second classifier judge.

For each attribute and method: success (the judge sees the target), the other nine attributes kept, PSNR to the true
edited picture, u per edit; then removal by negative strength, Proposition 2, reconstruction gain and the order of two
embeddings. Training uses pictures without captions; the edited ones are of other faces. All methods share the inversion,
the window and the strengths.

    python benchmarks/caso_quality.py                                        # the tables of the README
    python benchmarks/caso_quality.py --attributes glasses --train-steps 20 --unseen 8 --steps 10   # a quick look
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from caso_bench import ATTRIBUTES, Bench, make_task

from semantic_editing.core.caso.analysis import order_effect
from semantic_editing.core.caso.editing import Window, invert_to_window
from semantic_editing.core.caso.embedding import SemanticEmbedding
from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.demo import load_demo_model


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one row a method and strength."""
    lines = [
        "| method | strength | success (judge) | success (guide) | others kept (judge) | PSNR to true, dB | u per edit |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        shares = " | ".join(f"{100 * row[key]:.0f} %" for key in ("success_judge", "success_guide", "kept_judge"))
        lines.append(f"| {row['method']} | {row['strength']:g} | {shares} | {row['psnr_true']:.2f} | {row['u']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, train, edit, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attributes", nargs="+", choices=list(ATTRIBUTES), default=list(ATTRIBUTES))
    parser.add_argument("--pictures", type=int, default=120, help="to learn from, 8 of them held out")
    parser.add_argument("--unseen", type=int, default=64, help="pictures to edit; 24 of them have a true edited picture")
    parser.add_argument("--train-steps", type=int, default=TrainingSettings.steps)
    parser.add_argument("--train-batch", type=int, default=TrainingSettings.batch)
    parser.add_argument("--train-cfg", type=float, default=TrainingSettings.cfg)
    parser.add_argument("--learning-rate", type=float, default=TrainingSettings.learning_rate)
    parser.add_argument("--reconstruction", type=float, default=TrainingSettings.reconstruction)
    parser.add_argument("--keep-others", type=float, default=1.0, help="the paper's loss, without it, is measured beside it")
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--band", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=TrainingSettings.tokens)
    parser.add_argument("--steps", type=int, default=50, help="of the whole trajectory")
    parser.add_argument("--start", type=float, help="where guidance starts, for all attributes")
    parser.add_argument("--strengths", type=float, nargs="+", default=[3.0, 6.0, 9.0], help="of CASO")
    parser.add_argument("--focused-strengths", type=float, nargs="+", default=[6.0, 9.0, 12.0], help="of CASO with --focus")
    parser.add_argument("--focus", type=float, default=0.1, help="share of the latent's elements that focused CASO guides")
    parser.add_argument("--text-strengths", type=float, nargs="+", default=[1.5, 3.0, 5.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    parser.add_argument("--out", type=Path, default=Path("bench_out/caso_quality.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    demo = load_demo_model(arguments.assets)
    bench, report, embeddings = Bench(demo, arguments), {}, {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.attributes:
        task = make_task(demo, name, arguments.pictures, arguments.unseen, arguments.start)
        embeddings[name], cost = bench.train(task, arguments.keep_others)
        as_printed, _ = bench.train(task, 0.0) if arguments.keep_others else (None, None)
        embeddings[name].save(arguments.out.parent / f"caso_{name.replace(' ', '_')}.safetensors", overwrite=True)
        result = report[name] = {"training": cost} | bench.attribute(task, embeddings[name], as_printed)
        result["reconstruction"] = bench.reconstruction(task, embeddings[name])
        print(
            f"\n### {name}: trained on {len(task.training)} pictures in {cost['seconds']:.0f} s, {cost['seconds_per_step']:.2f} s a step, "
        )
        print(f"u {cost['u_forward']} + {cost['u_backward']} backward; window from {task.start:g}\n\n{table(result['rows'])}")
        if result["removal"]:
            print(f"\nRemoving it (success: no longer seen)\n\n{table(result['removal'])}")
        print("\nProposition 2, cosine before and after training: {before:.3f}, {after:.3f}\n".format(**result["proposition_2"]))
        for row in result["reconstruction"]:
            print("Reconstruction guided from {start} on, strength {strength}: latent MSE {plain:.5f} -> {guided:.5f}".format(**row))
    if len(embeddings) > 1:
        report["order"] = orders(bench, arguments, embeddings)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    arguments.out.write_text(json.dumps({"settings": settings, "report": report}, indent=1))
    print(f"\nwrote {arguments.out}")


def orders(bench: Bench, arguments: argparse.Namespace, embeddings: dict[str, SemanticEmbedding]) -> dict[str, float]:
    """Order effect of the first embedding with each other one, over a few pictures."""
    task = make_task(bench.demo, arguments.attributes[0], arguments.pictures, 8, arguments.start)
    latents = bench.encode(torch.stack([pair.source for pair in task.forth]))
    denoiser = bench.demo.denoiser()
    inversion, window = invert_to_window(denoiser, latents, bench.uncond, arguments.steps, Window(task.start))
    first, *others = embeddings
    result = {}
    for other in others:
        pair = [embeddings[first], embeddings[other]]
        effect = order_effect(denoiser, inversion, bench.injector, pair, arguments.strengths[-1], window)
        result[f"{first} + {other}"] = float(effect.mean())
        print(f"Order of {first} + {other}: edits differ by {100 * float(effect.mean()):.0f} % of their size")
    return result


if __name__ == "__main__":
    main()

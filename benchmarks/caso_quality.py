"""CASO on the demo world: train attributes from a classifier, edit unseen pictures, let a second classifier judge.

For each attribute and method: success (the judge sees the target), the other nine attributes kept, PSNR to the true
edited picture, u per edit; then removal by negative strength, Proposition 2 and the reconstruction gain. Training uses
pictures without captions; the edited ones are of other faces. All methods share the inversion and the window; SEGA's
way of guiding by text (Brack et al. 2023: only the largest elements) has the focus that our embedding has.

    python benchmarks/caso_quality.py                                        # the tables of the README
    python benchmarks/caso_quality.py --attributes glasses --training '{"steps": 20}' --unseen 8 --steps 10   # a quick
    look

Its embeddings are those of the demo: --ship puts them there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from caso_bench import ATTRIBUTES, Bench, make_task

from semantic_editing.core.demo.model import load_demo_model


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one row a method and strength."""
    lines = [
        "| method | strength | success (judge) | success (guide) | others kept (judge) | PSNR to true, dB | u per "
        "edit |",
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
    parser.add_argument("--pictures", type=int, default=120, help="to learn from, 24 of them held out")
    parser.add_argument(
        "--unseen", type=int, default=64, help="pairs: their sources are edited, their targets are the truth"
    )
    parser.add_argument(
        "--training", type=json.loads, default={}, help='in place of the recipe\'s settings, such as {"steps": 20}'
    )
    parser.add_argument(
        "--ship", action="store_true", help="save the embeddings with the demo model instead of beside the figures"
    )
    parser.add_argument("--without-paper", action="store_true", help="do not measure the paper's training beside ours")
    parser.add_argument("--steps", type=int, default=20, help="of the whole trajectory")
    parser.add_argument("--strengths", type=float, nargs="+", default=[2.0, 3.0, 5.0], help="of CASO")
    parser.add_argument(
        "--paper-strengths", type=float, nargs="+", default=[7.0, 11.0], help="of CASO trained the paper's way"
    )
    parser.add_argument(
        "--text-strengths", type=float, nargs="+", default=[1.5, 3.0, 5.0], help="of text, with and without focus"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    parser.add_argument("--out", type=Path, default=Path("bench_out/caso_quality.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    demo = load_demo_model(arguments.assets)
    bench, report = Bench(demo, arguments), {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.attributes:
        task = make_task(demo, name, arguments.pictures, arguments.unseen)
        embedding, cost = bench.train(task, bench.recipe(task))
        as_printed, _ = (None, None) if arguments.without_paper else bench.train(task, bench.paper(task))
        folder = demo.folder / "embeddings" if arguments.ship else arguments.out.parent
        embedding.save(folder / f"{name.replace(' ', '_')}.safetensors", overwrite=True)
        result = report[name] = {"training": cost} | bench.attribute(task, embedding, as_printed)
        result["reconstruction"] = bench.reconstruction(task, embedding)
        print(
            f"\n### {name}: trained on {len(task.training)} pictures in {cost['seconds']:.0f} s, "
            f"{cost['seconds_per_step']:.2f} s a step"
        )
        print(
            f"u {cost['u_forward']} + {cost['u_backward']} backward; window from {task.recipe.start:g}, focus "
            f"{task.recipe.focus:g}"
        )
        print(f"\n{table(result['rows'])}")
        print(f"\nRemoving it (success: no longer seen)\n\n{table(result['removal'])}")
        print(
            "\nProposition 2, cosine before and after training: {before:.3f}, {after:.3f}\n".format(
                **result["proposition_2"]
            )
        )
        for row in result["reconstruction"]:
            print(
                "Reconstruction guided from {start} on, strength {strength}: "
                "latent MSE {plain:.5f} -> {guided:.5f}".format(**row)
            )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    arguments.out.write_text(json.dumps({"settings": settings, "report": report}, indent=1))
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()

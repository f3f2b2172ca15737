"""How good the edits are, on counterfactual pairs of the demo world: the true edited picture of the same face is known.

For each edit: success (a classifier sees the target label), the other nine attributes kept, PSNR to the true edited
picture, u per edited image. The baselines swap the word in the caption; ours adds a sentence direction and guides by
the source's cross-attention maps. All share steps and cfg unless a column says otherwise.

    python benchmarks/edit_quality.py                 # the tables of the README, whole; it takes hours
    python benchmarks/edit_quality.py --sweep         # how strength, guidance, cfg and guided share trade off
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from quality_tables import at_equal_success, edit_table, tables, with_cfg, without
from torch import Tensor

from semantic_editing.core.demo.data import DemoPair
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.metrics.image import attributes_kept, perceptual_distance, psnr, ssim, success
from semantic_editing.core.pix2pix_zero.edit_direction import EditDirection, sentence_direction
from semantic_editing.core.pix2pix_zero.guided_edit import Preset, cross_attention_guided_edit
from semantic_editing.core.pix2pix_zero.sentences import expand_words
from semantic_editing.core.spdinv.invert import invert

EDITS = (
    "glasses: none to glasses", "glasses: glasses to none", "mouth: sad to smile", "mouth: smile to sad", "hair color: "
                                                                                                          "black to "
                                                                                                          "red",
    "hair color: blond to black", "facial hair: none to beard", "facial hair: beard to none", "background: blue to "
                                                                                              "green",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One way to edit.

    ``target``: "word" is the caption with the word swapped, "direction" the source caption plus the sentence direction.
    ``negative``: the conditioning cfg moves away from, the "source" caption or the "empty" text.
    """

    name: str
    solver: str = "auto"
    target: str = "direction"
    negative: str = "source"
    cfg: float = 5.0
    guidance: float = 0.1
    strength: float = 1.0
    guided_fraction: float = 1.0
    max_resolution: int | None = None
    preset: Preset = "carried"


def methods(ours: Method) -> list[Method]:
    """The rows of the table, the last one ``ours``."""
    guided = replace(ours, name="SPDInv + word swap + guidance", target="word")
    word = replace(guided, name="SPDInv + word swap", guidance=0.0)
    return [replace(word, name="plain DDIM + word swap", solver="ddim"), word, guided, ours]


def sweep(base: Method) -> list[Method]:
    """Variations of one knob at a time around ``base``, and word swap at the same cfg values."""
    rows = [base]
    rows += [replace(base, guidance=value) for value in (0.0, 0.03, 0.3, 1.0)]
    rows += [replace(base, preset=value) for value in get_args(Preset)]
    rows += [replace(base, strength=value) for value in (0.7, 1.5)]
    rows += [replace(base, guided_fraction=value) for value in (0.3, 0.6)]
    rows += [replace(base, max_resolution=8)]
    rows += [replace(base, target="word"), replace(base, target="word", guidance=0.0)]
    return [replace(row, name=knobs(row)) for row in dict.fromkeys(rows)]


def knobs(method: Method) -> str:
    """A row's settings as its name."""
    parts = [method.target, f"cfg {method.cfg:g}", f"guidance {method.guidance:g}"]
    parts += [f"strength {method.strength:g}"] if method.target == "direction" else []
    parts += [f"guided {method.guided_fraction:g}"] if method.guided_fraction != 1 else []
    parts += [f"<={method.max_resolution}"] if method.max_resolution else []
    parts += [method.preset] if method.guidance else []
    return ", ".join(parts)


class Bench:
    """Shared work: texts, latents, inversions and directions are computed once."""

    def __init__(self, demo: DemoModel, pairs: list[DemoPair], steps: int, batch: int, sentences: int):
        self.demo, self.pairs, self.steps, self.batch = demo, pairs, steps, batch
        self.sources = torch.stack([pair.source for pair in pairs])
        self.targets = torch.stack([pair.target for pair in pairs])
        with torch.no_grad():
            self.latents = torch.cat([demo.encode_image(chunk) for chunk in self.sources.split(batch)])
            self.source_cond = demo.encode_text([pair.source_caption for pair in pairs])
            self.target_cond = demo.encode_text([pair.target_caption for pair in pairs])
            self.empty = demo.encode_text([""])
        self.directions: dict[str, EditDirection] = {}
        for pair in pairs:
            if pair.edit not in self.directions:
                source, target = expand_words(pair.words, sentences, bank="portrait")
                self.directions[pair.edit] = sentence_direction(
                    demo.encode_text, source, target, encoder_name="clip_l 256"
                )
        self.inversions: dict[str, list[Inversion]] = {}
        true_images = self.decode([demo.encode_image(chunk) for chunk in self.targets.split(batch)])
        self.judges = {"classifier": demo.classifier, "judge": demo.judge}
        self.expected = {name: judge.labels(self.targets) for name, judge in self.judges.items()}
        self.true_features = demo.judge.stages(self.targets)
        self.roundtrip = self.measure(Method("true picture through the VAE"), true_images, torch.zeros(3))

    def chunks(self) -> Iterable[slice]:
        """Batches of pairs."""
        return (
            slice(start, min(start + self.batch, len(self.pairs))) for start in range(0, len(self.pairs), self.batch)
        )

    def decode(self, latents: list[Tensor]) -> Tensor:
        """Latents of all batches -> images."""
        with torch.no_grad():
            return torch.cat([self.demo.decode(latent) for latent in latents])

    def inverted(self, solver: Any) -> list[Inversion]:
        """The inversion of every batch, each made once."""
        if solver not in self.inversions:
            self.inversions[solver] = [
                invert(
                    self.demo.denoiser(), self.latents[part], self.source_cond[part], steps=self.steps, solver=solver
                )
                for part in self.chunks()
            ]
        return self.inversions[solver]

    def conditioning(self, method: Method, part: slice) -> Tensor:
        """Target conditionings of a batch, ``[b, 77, D]``."""
        if method.target == "word":
            return self.target_cond[part]
        shifted = [
            self.directions[pair.edit].apply(cond[None], strength=method.strength)[0]
            for pair, cond in zip(self.pairs[part], self.source_cond[part], strict=True)
        ]
        return torch.cat(shifted)

    def run(self, method: Method) -> dict[str, Any]:
        """Edit all pairs and measure."""
        latents, spent = [], torch.zeros(3)
        for part, inversion in zip(self.chunks(), self.inverted(method.solver), strict=True):
            denoiser = self.demo.denoiser()
            latents.append(
                cross_attention_guided_edit(
                    denoiser,
                    inversion,
                    self.source_cond[part],
                    self.conditioning(method, part),
                    self.source_cond[part] if method.negative == "source" else self.empty,
                    cfg=method.cfg,
                    guidance=method.guidance,
                    guided_fraction=method.guided_fraction,
                    max_resolution=method.max_resolution,
                    preset=method.preset,
                )
            )
            count = len(inversion.noise)
            used = [inversion.evaluations * count, denoiser.evaluations.forward, denoiser.evaluations.backward]
            spent += torch.tensor(used) / len(self.pairs)
        return self.measure(method, self.decode(latents), spent)

    def measure(self, method: Method, images: Tensor, spent: Tensor) -> dict[str, Any]:
        """Figures of all edited ``images``, over all pairs and for each edit."""
        per_image: dict[str, Tensor] = {
            "psnr_true": psnr(images, self.targets).float(),
            "ssim_true": ssim(images, self.targets).float(),
            "lpips_true": perceptual_distance(self.demo.judge.stages(images), self.true_features).float(),
            "psnr_source": psnr(images, self.sources).float(),
        }
        for name, judge in self.judges.items():
            seen = judge.labels(images)
            per_image[f"success_{name}"] = torch.cat(
                [success([labels], pair.attribute, pair.after) for labels, pair in zip(seen, self.pairs, strict=True)]
            )
            per_image[f"kept_{name}"] = torch.cat(
                [
                    attributes_kept([s], [e], p.attribute)
                    for s, e, p in zip(seen, self.expected[name], self.pairs, strict=True)
                ]
            )
        edits = {edit: torch.tensor([pair.edit == edit for pair in self.pairs]) for edit in self.directions}
        figures = {
            edit: {key: float(values[rows].mean()) for key, values in per_image.items()} for edit, rows in edits.items()
        }
        overall = {key: float(values.mean()) for key, values in per_image.items()}
        u = dict(zip(("u_inversion", "u_forward", "u_backward"), spent.tolist(), strict=True))
        return {"method": asdict(method), "all": overall, **u, "edits": figures}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24, help="pairs of each edit")
    parser.add_argument("--edits", nargs="+", default=list(EDITS), help="names of edits, as in the table")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], choices=EDITS, help="edits without which the table is printed once more"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument(
        "--cfgs", type=float, nargs="*", default=[1.0, 1.5, 2.0, 3.0], help="for the table at equal success"
    )
    parser.add_argument(
        "--curve-pairs", type=int, default=8, help="pairs of each edit for the table at equal success; 0: no such table"
    )
    parser.add_argument("--curve-steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=0.3)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--guided-fraction", type=float, default=1.0)
    parser.add_argument("--preset", choices=get_args(Preset), default="carried")
    parser.add_argument("--negative", choices=["source", "empty"], default="source")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--sentences", type=int, default=256, help="sentences a side of each direction")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sweep", action="store_true", help="vary one knob at a time instead of comparing methods")
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    parser.add_argument("--out", type=Path, default=Path("bench_out/edit_quality.json"))
    return parser.parse_args()


def run(work: Bench, method: Method) -> dict[str, Any]:
    """A row of the table, and a line on how long it took."""
    start = time.perf_counter()
    row = work.run(method)
    print(f"{method.name}, cfg {method.cfg:g}: {time.perf_counter() - start:.0f} s", flush=True)
    return row


def main() -> None:
    """Run the methods, print the tables, write the JSON."""
    arguments = options()
    torch.set_num_threads(arguments.threads)
    demo = load_demo_model(arguments.assets)
    ours = Method(
        "SPDInv + direction + guidance", negative=arguments.negative, cfg=arguments.cfg, guidance=arguments.guidance,
        strength=arguments.strength, guided_fraction=arguments.guided_fraction, preset=arguments.preset,
    )  # fmt: skip

    def bench(pairs: int, steps: int) -> Bench:
        chosen = [pair for edit in arguments.edits for pair in demo.pairs_of(edit)[:pairs]]
        return Bench(demo, chosen, steps, arguments.batch, arguments.sentences)

    rows, curves = [], {}
    if arguments.pairs:
        work = bench(arguments.pairs, arguments.steps)
        rows = [work.roundtrip] + [run(work, method) for method in (sweep(ours) if arguments.sweep else methods(ours))]
        print(
            f"\n{len(work.pairs)} pairs, {arguments.steps} steps, cfg "
            f"{arguments.cfg:g}\n\n{tables(rows, arguments.leave_out)}"
        )
        print(f"\n{edit_table(rows)}\n", flush=True)
    if arguments.curve_pairs and not arguments.sweep:
        work = bench(arguments.curve_pairs, arguments.curve_steps)
        for method in methods(ours):
            curves[method.name] = [run(work, replace(method, cfg=cfg)) for cfg in sorted(arguments.cfgs)]
        named = [with_cfg(row) for curve in curves.values() for row in curve]
        print(
            f"\n{len(work.pairs)} pairs, {arguments.curve_steps} steps: others kept / by the 2nd judge / PSNR to true\n"
        )
        print(f"{at_equal_success(curves)}\n")
        if arguments.leave_out:
            fewer = {name: without(curve, arguments.leave_out) for name, curve in curves.items()}
            print(f"Without {', '.join(arguments.leave_out)}:\n\n{at_equal_success(fewer)}\n")
        print(f"{tables([work.roundtrip, *named], arguments.leave_out)}\n")
        for number, cfg in enumerate(sorted(arguments.cfgs)):
            print(f"cfg {cfg:g}:\n\n{edit_table([curve[number] for curve in curves.values()])}\n", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    arguments.out.write_text(json.dumps({"settings": settings, "rows": rows, "curves": curves}, indent=1))
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()

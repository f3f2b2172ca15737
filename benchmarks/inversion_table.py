"""The reach of the inversion at several numbers of steps, its ablations, and the paper's noise gap level by level.

    python benchmarks/inversion_table.py --out inversion_table.json
    python tools/demo_world/fresh_pairs.py --seed 1919 --count 6 fresh
    python benchmarks/inversion_table.py --data fresh --pictures 64 --out inversion_table_fresh.json

Every row inverts under the picture's own caption at cfg 1 and rebuilds from the noise with plain Euler steps, without
the stored trajectory; PSNR is against the decoded latent that was inverted. u = evaluations of the network for one
image, of the inversion alone. Rows are written as they are done and not done twice, so a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from inversion_reach import batches, gaussian_noise, generated_trajectory, portraits
from torch import Tensor

from semantic_editing.core.demo.data import DemoData
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.denoiser import unit_scale
from semantic_editing.core.metrics.image import psnr
from semantic_editing.core.sampling import sample
from semantic_editing.core.spdinv.invert import spdinv
from semantic_editing.core.spdinv.solvers import SPDInvSettings

STEPS = (20, 50, 10, 100)
#: The paper's Table 3 alters one of K, delta and eta; the last is of the solver with gradients alone.
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"K = {most}": ("auto", {"max_iterations": most}) for most in (1, 2, 5, 25)},
    **{f"delta = {delta:g}": ("auto", {"tolerance": delta}) for delta in (5e-4, 5e-5, 5e-6, 5e-7)},
    **{f"eta = {eta:g}": ("gradient", {"learning_rate": eta, "max_iterations": 5}) for eta in (1e-3, 5e-3, 1e-2, 1e-1)},
}


def pictures(demo: DemoModel, data: Path | None, count: int) -> tuple[Tensor, list[str]]:
    """``count`` pictures ``[B, 3, H, W]`` with captions: the demo's, or the sources of the pairs in ``data``, one of
    each edit in turn."""
    if data is None:
        return portraits(demo, count)
    fresh = DemoData(data)
    turns = [fresh.pairs_of(edit) for edit in fresh.edits]
    ordered = [pairs[turn] for turn in range(len(turns[0])) for pairs in turns][:count]
    return torch.stack([pair.source for pair in ordered]), [pair.source_caption for pair in ordered]


class Bench:
    """The demo model, pictures as latents, and rows measured on them."""

    def __init__(self, options: argparse.Namespace):
        self.demo, self.batch = load_demo_model(), options.batch
        images, self.captions = pictures(self.demo, options.data, options.pictures)
        parts = batches(len(images), options.batch)
        self.latents = torch.cat([self.demo.encode_image(images[part]) for part in parts])

    def row(self, solver: str, steps: int, count: int | None = None, **settings: Any) -> dict[str, Any]:
        """Invert and rebuild the first ``count`` pictures."""
        denoiser = self.demo.denoiser()
        found: list[Tensor] = []
        spent: list[Tensor] = []
        estimated: list[float] = []
        for part in batches(min(count or len(self.latents), len(self.latents)), self.batch):
            latent, cond = self.latents[part], self.demo.encode_text(self.captions[part])
            inversion = spdinv(denoiser, latent, cond, steps, SPDInvSettings(solver, **settings))  # type: ignore[arg-type]
            start, levels = inversion.latents[-1], inversion.sigmas.flip(0).tolist()
            rebuilt = sample(lambda x, sigma, _, cond=cond: denoiser(x, sigma, cond), start, levels)
            found.append(psnr(self.demo.decode(rebuilt), self.demo.decode(latent)))
            spent.append((inversion.forward_evaluations + inversion.backward_evaluations).sum(0).float())
            estimated += inversion.info.get("rebuild_error", [])
            print(f"  {solver} T={steps} {settings}: {found[-1].tolist()} {spent[-1].mean():.1f} u", flush=True)
        decibels, u = torch.cat(found).double(), torch.cat(spent)
        return {
            "pictures": len(decibels),
            "mean": float(decibels.mean()),
            "lowest": float(decibels.min()),
            "second_lowest": float(decibels.sort().values[min(1, len(decibels) - 1)]),
            "u": float(u.mean()),
            "most_u": float(u.max()),
            "psnr": decibels.tolist(),
            "estimated_error": estimated,
        }

    def gap(self, solver: str, steps: int, count: int, seed: int) -> dict[str, Any]:
        """``D_noi`` of pictures generated from known noise: the mean at every level, at the noise end each one's."""
        denoiser = self.demo.denoiser()
        cond = self.demo.encode_text(self.captions[:count])
        truth, sigmas = generated_trajectory(denoiser, gaussian_noise((count, 4, 16, 16), seed), cond, steps)
        inverted = spdinv(denoiser, truth[0], cond, steps, SPDInvSettings(solver)).latents  # type: ignore[arg-type]
        scale = unit_scale(denoiser.identity, sigmas).view(-1, 1)
        gaps = (inverted - truth).flatten(2).square().mean(2) * scale**2
        return {"levels": sigmas.tolist(), "mean": gaps.mean(1).tolist(), "at_noise": gaps[-1].tolist()}


def rows(options: argparse.Namespace) -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every row by name: the method of :class:`Bench` and its arguments."""
    few = min(8, options.pictures)
    listed: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {}
    for steps in STEPS:
        listed[f"auto, T = {steps}"] = ("row", ("auto", steps), {})
    for steps in STEPS:
        listed[f"ddim, T = {steps}"] = ("row", ("ddim", steps), {})
    listed["one_evaluation, T = 50"] = ("row", ("one_evaluation", 50), {})
    if options.data is None:
        for solver in ("ddim", "auto"):
            for steps in (20, 50):
                listed[f"noise gap of {solver}, T = {steps}"] = ("gap", (solver, steps, few, 0), {})
        for name, (solver, settings) in ABLATIONS.items():
            listed[f"{name} ({solver}, T = 50)"] = ("row", (solver, 50, few), settings)
    return listed


def main() -> None:
    """Measure what is not there yet, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="a folder of fresh_pairs.py instead of the demo's own")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=None, help="words that a row's name must have one of")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, gone on with when it is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    with torch.no_grad():
        bench = Bench(options)
        for name, (method, values, settings) in rows(options).items():
            if name in done or (options.only is not None and not any(word in name for word in options.only)):
                continue
            done[name] = getattr(bench, method)(*values, **settings)
            options.out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
            figures = {key: value for key, value in done[name].items() if not isinstance(value, list)}
            print(f"{name}: {figures or done[name]['at_noise']}", flush=True)


if __name__ == "__main__":
    main()

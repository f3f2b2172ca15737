"""DeltaEdit on the demo world, for the arms that no node offers: the true code's edit, the paper's straightforward
mapper, the mapper in W+.

    python benchmarks/deltaedit_quality.py --latents latents.safetensors     # as DeltaEdit Latents writes them
    python benchmarks/deltaedit_quality.py --latents ... --pairs 8 --steps 500

What the nodes do at their defaults is measured through the shipped workflows by ``semantic-editing bench --demo``. Here
all arms start from the same codes of the same unseen pictures, 64 pixels, and are judged by the demo's second
classifier: success where the reconstruction still reads as the source, other attributes kept against the own
reconstruction, PSNR to the true edited picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from semantic_editing.core.deltaedit.encoder_files import load_encoder
from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.latents import Latents, load_latents
from semantic_editing.core.deltaedit.mapper import DeltaMapper
from semantic_editing.core.deltaedit.relevance import Relevance, from_covariance
from semantic_editing.core.deltaedit.style_code import StyleCode
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2
from semantic_editing.core.deltaedit.training import DELTA, PLAIN, PRESETS, MapperTrainer
from semantic_editing.core.demo.data import FOLDER, PHRASES, DemoData, DemoPair
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.metrics.image import psnr

EDITS = (
    "glasses: none to glasses",
    "facial hair: none to beard",
    "mouth: sad to smile",
    "hair color: black to red",
    "background: blue to green",
)
SENTENCE = "a portrait of a person, {}"
STYLE = FOLDER / "style"


@dataclass(eq=False)
class Faces:
    """The pairs of one edit as the generator sees them.

    Attributes:
        code, true: codes of the source and of the true edited picture.
        rebuilt: the source's reconstruction, ``[N, 3, 64, 64]`` in 0..1; ``read`` is what the judge sees in it.
        truth: true edited pictures at that size.
        features: CLIP's of the source pictures.
        texts: difference of the two texts' features ``[1, P]``; ``target`` the second text's.
    """

    pairs: list[DemoPair]
    code: StyleCode
    true: StyleCode
    rebuilt: Tensor
    read: list[dict[str, str]]
    truth: Tensor
    features: Tensor
    true_features: Tensor
    texts: Tensor
    target: Tensor


def shown(generator: StyleGAN2, code: StyleCode) -> Tensor:
    """Pictures in 0..1."""
    return generator.synthesize(code).add(1).div(2).clamp(0, 1)


def large(pictures: Tensor) -> Tensor:
    """64 pixels at the judge's 128."""
    return functional.interpolate(pictures, scale_factor=2, mode="bicubic").clamp(0, 1)


def faces(demo: DemoModel, generator: StyleGAN2, encode: Callable[[Tensor], Tensor], pairs: list[DemoPair]) -> Faces:
    """Everything that the arms start from."""
    sources, targets = (torch.stack([getattr(pair, side) for pair in pairs]) for side in ("source", "target"))
    small_sources, small_targets = (functional.avg_pool2d(part, 2) for part in (sources, targets))
    code, true = (generator.styles(encode(part * 2 - 1)) for part in (small_sources, small_targets))
    phrases = PHRASES[pairs[0].attribute]
    before, after = (SENTENCE.format(phrases[label]) for label in (pairs[0].before, pairs[0].after))
    texts = demo.text_features([before, after])
    rebuilt = shown(generator, code)
    return Faces(
        pairs,
        code,
        true,
        rebuilt,
        demo.judge.labels(large(rebuilt)),
        small_targets,
        demo.image_features(sources),
        demo.image_features(targets),
        texts[1:] - texts[:1],
        texts[1:],
    )


def figures(demo: DemoModel, made: Tensor, of: Faces) -> dict[str, Tensor]:
    """Success (NaN where the reconstruction does not read as the source), kept, and PSNR, one for each face."""
    labels = demo.judge.labels(large(made))
    success, kept = [], []
    for pair, seen, was in zip(of.pairs, labels, of.read, strict=True):
        reads = was[pair.attribute] == pair.before
        success.append(float(seen[pair.attribute] == pair.after) if reads else torch.nan)
        others = [seen[name] == was[name] for name in seen if name != pair.attribute]
        kept.append(sum(others) / len(others))
    return {"success": torch.tensor(success), "kept": torch.tensor(kept), "psnr": psnr(made, of.truth).float()}


def trained(latents: Latents, steps: int, conditioning: str) -> DeltaMapper:
    """A mapper by the shipped trainer."""
    start = time.process_time()
    settings = replace(PRESETS["fast"], steps=steps, conditioning=conditioning)
    mapper = MapperTrainer(latents, settings).run()
    spent = time.process_time() - start
    print(f"trained ({conditioning}, {latents.offsets.shape[1]} channels): {mapper.facts}, {spent:.0f} CPU seconds")
    return mapper


def arms(
    generator: StyleGAN2, latents: Latents, steps: int, wide: Latents | None, probed: Relevance | None
) -> dict[str, Callable[[Faces], StyleCode]]:
    """Name -> what it makes of the codes."""
    mapper, plain = trained(latents, steps, DELTA), trained(latents, steps, PLAIN)
    covariance = from_covariance(mapper.standardised(latents.convs), latents.image_features.float())

    def moved(
        of: Faces, difference: Tensor, share: float = 1.0, idle: bool = False, by: Relevance = covariance
    ) -> StyleCode:
        rows = difference.expand(len(of.code), -1)
        change = mapper.change(of.code.convs, of.features, rows, subtract_idle=idle)
        if share < 1:
            change = change * by.most(rows, share)
        return of.code.with_convs(of.code.convs + change)

    def straightforward(of: Faces) -> StyleCode:
        styles = plain.standardised(of.code.convs)
        rows = of.target.expand(len(styles), -1)
        change = plain(styles, torch.cat([of.features, functional.normalize(rows, dim=1)], 1))
        return of.code.with_convs(of.code.convs + change * plain.deviation)

    def tau(of: Faces) -> StyleCode:
        change = mapper.change(of.code.convs, of.features, of.texts.expand(len(of.code), -1))
        return of.code.with_convs(of.code.convs + change * covariance.above(of.texts, 0.03))

    made: dict[str, Callable[[Faces], StyleCode]] = {
        "no edit (the reconstruction)": lambda of: of.code,
        "true S": lambda of: of.code.with_convs(of.true.convs),
        "true W+": lambda of: of.true,
        "straightforward (Eq. 1, 2)": straightforward,
        "delta": lambda of: moved(of, of.texts),
        "delta - delta(0)": lambda of: moved(of, of.texts, idle=True),
        "delta, tau .03": tau,
    }
    for share in (0.2, 0.3, 0.4, 0.6):
        made[f"delta, covariance, {share:.0%}"] = lambda of, share=share: moved(of, of.texts, share)
        made[f"delta - delta(0), covariance, {share:.0%}"] = lambda of, share=share: moved(of, of.texts, share, True)
        if probed is not None:
            made[f"delta, probing, {share:.0%}"] = lambda of, share=share: moved(of, of.texts, share, by=probed)
    made["image pair as condition"] = lambda of: moved(of, of.true_features - of.features)
    if wide is not None:
        wide_mapper = trained(wide, steps, DELTA)

        def in_w_plus(of: Faces) -> StyleCode:
            assert of.code.w_plus is not None
            flat = of.code.w_plus.flatten(1)
            change = wide_mapper.change(flat, of.features, of.texts.expand(len(flat), -1))
            return generator.styles((flat + change).view_as(of.code.w_plus))

        made["delta in W+"] = in_w_plus
    return made


def main() -> None:
    """Train the arms' mappers and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--style", type=Path, default=STYLE, help="folder of generator and encoder")
    parser.add_argument("--data", type=Path, default=FOLDER / "unseen")
    parser.add_argument("--edits", nargs="+", default=list(EDITS))
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=PRESETS["fast"].steps)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_generator(options.style / "generator.safetensors").eval()
    encoder = load_encoder(options.style / "encoder.safetensors", generator.layout.rows, generator.style_dim)
    demo, data = load_demo_model(), DemoData(options.data)
    latents = load_latents(options.latents)
    with torch.inference_mode(False):
        methods = arms(generator, latents, options.steps, None, None)
    with torch.inference_mode():
        sets = {edit: faces(demo, generator, encoder, data.pairs_of(edit)[: options.pairs]) for edit in options.edits}
        for edit, of in sets.items():
            reads = sum(was[pair.attribute] == pair.before for was, pair in zip(of.read, of.pairs, strict=True))
            print(f"\n### {edit}: n = {len(of.pairs)}, of which the reconstruction reads as the source: {reads}\n")
            print("| method | success | others kept | PSNR to the truth, dB | worst, dB |\n|---|---|---|---|---|")
            for name, method in methods.items():
                found = figures(demo, shown(generator, method(of)), of)
                print(
                    f"| {name} | {found['success'].nanmean():.3f} | {found['kept'].mean():.3f} | "
                    f"{found['psnr'].mean():.2f} | {found['psnr'].min():.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

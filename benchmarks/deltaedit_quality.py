"""DeltaEdit on the demo world, arm by arm: the true code's edit, the shipped mapper with and without its parts, and,
where there are latents to train on, the paper's straightforward mapper and one in W+.

    python benchmarks/deltaedit_quality.py
    python benchmarks/deltaedit_quality.py --latents latents.safetensors     # as DeltaEdit Latents writes them, with W+

(The rendered world's latents: ``tools/demo_world/train_mapper.py --keep latents.safetensors``.)

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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from semantic_editing.core.deltaedit.edit import SHARE
from semantic_editing.core.deltaedit.encoder_files import load_encoder
from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.latents import Latents, load_latents
from semantic_editing.core.deltaedit.mapper import DeltaMapper
from semantic_editing.core.deltaedit.mapper_files import load_mapper
from semantic_editing.core.deltaedit.relevance_probe import ProbeSettings, RelevanceProbe, by_covariance
from semantic_editing.core.deltaedit.style_code import StyleCode, StyleLayout
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2
from semantic_editing.core.deltaedit.training import PLAIN, PRESETS, MapperSettings, MapperTrainer
from semantic_editing.core.demo.builders import demo_scorer
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


def trained(latents: Latents, settings: MapperSettings) -> DeltaMapper:
    """A mapper by the shipped trainer."""
    start = time.process_time()
    mapper = MapperTrainer(latents, settings).run()
    spent = time.process_time() - start
    print(
        f"trained ({settings.conditioning}, {latents.offsets.shape[1]} channels): {mapper.facts}, {spent:.0f} CPU s",
        flush=True,
    )
    return mapper


def arms(generator: StyleGAN2, mapper: DeltaMapper) -> dict[str, Callable[[Faces], StyleCode]]:
    """Name -> what it makes of the codes, for everything that needs no training."""
    relevance = mapper.relevance
    assert relevance is not None, "the demo's mapper carries it"

    def moved(of: Faces, share: float = 1.0, idle: bool = True, difference: Tensor | None = None) -> StyleCode:
        rows = (of.texts if difference is None else difference).expand(len(of.code), -1)
        change = mapper.change(of.code.convs, of.features, rows, subtract_idle=idle)
        if share < 1:
            change = change * relevance.most(rows, share)
        return of.code.with_convs(of.code.convs + change)

    def at_random(of: Faces) -> StyleCode:
        change = moved(of).convs - of.code.convs
        seeded = torch.Generator().manual_seed(0)
        return of.code.with_convs(of.code.convs + change * (torch.rand(change.shape, generator=seeded) < SHARE))

    def above(of: Faces, tau: float) -> StyleCode:
        change = mapper.change(of.code.convs, of.features, of.texts.expand(len(of.code), -1), subtract_idle=True)
        return of.code.with_convs(of.code.convs + change * relevance.above(of.texts, tau))

    return {
        "no edit (the reconstruction)": lambda of: of.code,
        "true S": lambda of: of.code.with_convs(of.true.convs),
        "as the paper: all channels": lambda of: moved(of, 1.0, False),
        "minus the idle change": moved,
        "and tau .03": lambda of: above(of, 0.03),
        f"and {SHARE:.0%} of the channels (default)": lambda of: moved(of, SHARE),
        f"in its place {SHARE:.0%} of the channels at random": at_random,
        "in its place all channels at strength .7": lambda of: of.code.with_convs(
            of.code.convs + 0.7 * (moved(of).convs - of.code.convs)
        ),
        "and 50% of the channels": lambda of: moved(of, 0.5),
        "image pair as condition, default": lambda of: moved(of, SHARE, True, of.true_features - of.features),
    }


def probed_arms(
    generator: StyleGAN2, demo: DemoModel, mapper: DeltaMapper, latents: Latents
) -> dict[str, Callable[[Faces], StyleCode]]:
    """Name -> what it makes of the codes, with relevance of one kind: the faces' covariance, and the paper's, each
    channel moved and CLIP asked.
    """
    start = time.process_time()
    probe = RelevanceProbe(lambda: generator, demo_scorer(demo), latents, ProbeSettings())
    kinds = {"perturbation": probe.run()}
    spent = time.process_time() - start
    print(f"relevance by perturbation: {probe.evaluations} pictures, {spent:.0f} CPU s", flush=True)
    kinds["covariance"] = by_covariance(latents)

    def kept(of: Faces, kind: str, share: float) -> StyleCode:
        rows = of.texts.expand(len(of.code), -1)
        change = mapper.change(of.code.convs, of.features, rows, subtract_idle=True)
        return of.code.with_convs(of.code.convs + change * kinds[kind].most(rows, share))

    return {
        f"relevance by {kind}, {share:.0%}": partial(kept, kind=kind, share=share)
        for kind in kinds
        for share in (SHARE, 0.5)
    }


def trained_arms(
    generator: StyleGAN2, latents: Latents, settings: MapperSettings
) -> dict[str, Callable[[Faces], StyleCode]]:
    """Name -> what it makes of the codes, for mappers that the pack does not ship."""
    plain = trained(latents, replace(settings, conditioning=PLAIN, alike=1))

    def straightforward(of: Faces) -> StyleCode:
        styles = plain.standardised(of.code.convs)
        target = functional.normalize(of.target.expand(len(styles), -1), dim=1)
        change = plain(styles, torch.cat([of.features, target], 1))
        return of.code.with_convs(of.code.convs + change * plain.deviation)

    made: dict[str, Callable[[Faces], StyleCode]] = {"straightforward (Eq. 1, 2), all channels": straightforward}
    if latents.w_plus is not None:
        flat = latents.w_plus.flatten(1).float()
        width = latents.w_plus.shape[2]
        layout = StyleLayout(tuple((size, width) for size, _ in latents.layout.convs), latents.layout.rgbs)
        centre = flat[:, : layout.width].mean(0)
        rows = replace(
            latents, offsets=(flat[:, : layout.width] - centre).half(), centre=centre, layout=layout, w_plus=None
        )
        wide = trained(rows, settings)

        def in_w_plus(of: Faces) -> StyleCode:
            assert of.code.w_plus is not None
            code = of.code.w_plus[:, :-1].flatten(1)
            change = wide.change(code, of.features, of.texts.expand(len(code), -1), subtract_idle=True)
            moved = torch.cat([(code + change).unflatten(1, (-1, width)), of.code.w_plus[:, -1:]], 1)
            return generator.styles(moved)

        made["in W+, minus the idle change"] = in_w_plus
    return made


def main() -> None:
    """Train the arms' mappers and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, help="what to train the other mappers on (default: without them)")
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
    mapper = load_mapper(options.style / "mapper.safetensors")
    methods = arms(generator, mapper)
    if options.latents is not None:
        settings = replace(PRESETS["fast"], steps=options.steps)
        latents = load_latents(options.latents)
        methods |= probed_arms(generator, demo, mapper, latents)
        methods |= trained_arms(generator, latents, settings)
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

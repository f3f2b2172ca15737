"""DeltaEdit-D on the demo world: what its style code says, what its noise says, and edits by the shipped mapper.

    python benchmarks/style_diffusion_quality.py [--pairs 16]

Rebuilt pictures are the sources of the first edit; "wrong s" is the code of the next picture, in encoding and decoding
alike or in decoding alone. Edits keep the encoded noise and change the code; the judge is the demo's second classifier,
success where the rebuilt picture reads as the source, other attributes kept against the rebuilt picture, PSNR to the
true edited picture, 64 pixels. u = evaluations of the network for one picture, encoding and decoding.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from deltaedit_quality import EDITS, STYLE, Faces, faces, figures, large
from torch import Tensor
from torch.nn.functional import avg_pool2d

from semantic_editing.core.deltaedit.edit import SHARE
from semantic_editing.core.deltaedit.encoder_files import load_encoder
from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.mapper import DeltaMapper
from semantic_editing.core.deltaedit.mapper_files import load_mapper
from semantic_editing.core.deltaedit.style_code import StyleCode
from semantic_editing.core.deltaedit.style_diffusion import (
    StyleDiffusion,
    StyleNoise,
    decode,
    encode,
    load_style_diffusion,
    random_noise,
)
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.metrics.image import psnr

#: Steps, and whether every step of the encoding is solved; the first is what the nodes do untouched.
ENCODINGS = ((20, True), (20, False), (50, True), (50, False))


def drawn(network: StyleDiffusion, noise: StyleNoise, code: StyleCode) -> Tensor:
    """Pictures in 0..1."""
    return decode(network, noise, code).div(2).add(0.5).clamp(0, 1)


def rebuilt(network: StyleDiffusion, of: Faces, sources: Tensor, steps: int, exact: bool) -> tuple[StyleNoise, Tensor]:
    """Print what comes back of the sources, by right and wrong codes and noises; their noise, and they rebuilt."""

    def line(name: str, noise: StyleNoise, code: StyleCode) -> Tensor:
        made = drawn(network, noise, code)
        found, u = psnr(made, sources), noise.evaluations + noise.steps
        print(f"| {steps}{', exact' if exact else ''} | {name} | {found.mean():.1f} | {found.min():.1f} | {u:.0f} |")
        return made

    wrong = of.code.with_convs(of.code.convs.roll(1, 0))
    noise = encode(network, sources * 2 - 1, of.code, steps, exact=exact)
    made = line("its noise, right s", noise, of.code)
    line("wrong s both ways", encode(network, sources * 2 - 1, wrong, steps, exact=exact), wrong)
    line("its noise, wrong s in decoding", noise, wrong)
    line("random noise, right s", random_noise(network, len(sources), steps, 0), of.code)
    return noise, made


def edited(
    demo: DemoModel, network: StyleDiffusion, mapper: DeltaMapper, of: Faces, noise: StyleNoise, made: Tensor
) -> None:
    """Print what edits do to pictures that were rebuilt as ``made``."""
    assert mapper.relevance is not None
    of = replace(of, rebuilt=made, read=demo.judge.labels(large(made)))
    rows = of.texts.expand(len(of.code), -1)
    change = mapper.change(of.code.convs, of.features, rows, subtract_idle=True) * mapper.relevance.most(rows, SHARE)
    codes = {"nothing done": of.code, "the true code's s": of.code.with_convs(of.true.convs)}
    codes |= {f"mapper, strength {s:g}": of.code.with_convs(of.code.convs + s * change) for s in (1.0, 1.5)}
    for name, code in codes.items():
        pictures = made if name == "nothing done" else drawn(network, noise, code)
        found = figures(demo, pictures, of)
        pair, reads = of.pairs[0], int((~found["success"].isnan()).sum())
        print(
            f"| {pair.attribute}: {pair.before} to {pair.after} | {noise.steps} | {name} | "
            f"{found['success'].nanmean():.2f} | {found['kept'].mean():.2f} | {found['psnr'].mean():.1f} | "
            f"{found['psnr'].min():.1f} | {reads} of {len(of.pairs)} |",
            flush=True,
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_generator(STYLE / "generator.safetensors").eval()
    encoder = load_encoder(STYLE / "encoder.safetensors", generator.layout.rows, generator.style_dim).eval()
    network = load_style_diffusion(STYLE / "diffusion.safetensors").eval()
    mapper, demo, data = load_mapper(STYLE / "mapper.safetensors"), load_demo_model(), DemoData(FOLDER / "unseen")
    with torch.inference_mode():
        sets = [faces(demo, generator, encoder, data.pairs_of(edit)[: options.pairs]) for edit in EDITS]
        sources = [avg_pool2d(torch.stack([pair.source for pair in of.pairs]), 2) for of in sets]
        print("| T | what is drawn | PSNR to the picture, dB | worst, dB | u |\n|---|---|---|---|---|", flush=True)
        for steps, exact in ENCODINGS:
            rebuilt(network, sets[0], sources[0], steps, exact)
        print("\n| edit | T | method | success | kept | PSNR to the truth, dB | worst, dB | reads as the source |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for of, pictures in zip(sets, sources, strict=True):
            steps, exact = ENCODINGS[0]
            noise = encode(network, pictures * 2 - 1, of.code, steps, exact=exact)
            edited(demo, network, mapper, of, noise, drawn(network, noise, of.code))


if __name__ == "__main__":
    main()

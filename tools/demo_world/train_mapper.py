"""The demo world's Delta Mapper, trained by the pack's own trainer at its fast preset on the training pictures.
Usage: train_mapper.py STYLE OUT [--data FOLDER] [--keep FILE] [--steps N] [--hidden N]

STYLE is the folder that finish_style.py wrote. The pictures' CLIP features are kept beside the pictures, for the next
generator's mapper; the codes are made anew. A line compares the mapper with the predictor that changes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from train_style import small
from world import load, to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.deltaedit.encoder import StyleEncoder
from core.deltaedit.encoder_files import load_encoder
from core.deltaedit.generator_files import load_generator
from core.deltaedit.latents import LatentsBuilder, Origin
from core.deltaedit.mapper_files import save_mapper
from core.deltaedit.relevance import both
from core.deltaedit.relevance_probe import ProbeSettings, RelevanceProbe, by_covariance
from core.deltaedit.stylegan2 import StyleGAN2
from core.deltaedit.training import PRESETS, MapperTrainer, delta_loss
from core.demo.builders import demo_scorer
from core.demo.model import load_demo_model

BATCH = 64


@torch.inference_mode()
def clip_features(data: Path, split: str) -> Tensor:
    """The demo CLIP's unit features of a split's pictures ``[N, P]``, from a file beside them or computed now."""
    cache = data / f"{split}_clip.npy"
    if not cache.exists():
        pictures, demo = load(data, split)[0], load_demo_model()
        batches = (to_tensor(pictures[start : start + BATCH]) / 2 + 0.5 for start in range(0, len(pictures), BATCH))
        np.save(cache, torch.cat([demo.image_features(batch) for batch in batches]).numpy())
    return torch.from_numpy(np.load(cache))


@torch.inference_mode()
def latents(
    generator: StyleGAN2, encoder: StyleEncoder, pictures: np.ndarray, features: Tensor, path: Path, w_plus: bool
) -> LatentsBuilder:
    """Pictures ``uint8 [N, 64, 64, 3]`` gathered as **DeltaEdit Latents** gathers a folder's."""
    scorer = demo_scorer(load_demo_model())
    origin = Origin(generator.identity, scorer.identity, "demo")
    builder = LatentsBuilder(lambda: generator, scorer, path, origin, lambda: encoder, keep_w_plus=w_plus)
    for start in range(0, len(pictures), BATCH):
        part = pictures[start : start + BATCH]
        names = [f"{start + number:05d}" for number in range(len(part))]
        builder.append(names, features[start : start + BATCH], generator.styles(encoder(to_tensor(part))))
    return builder


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("style", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--keep", type=Path, help="keep the training pictures' latents there, with W+")
    parser.add_argument("--steps", type=int, default=PRESETS["fast"].steps)
    parser.add_argument("--alike", type=int, default=PRESETS["fast"].alike)
    parser.add_argument("--hidden", type=int, default=PRESETS["fast"].hidden)
    options = parser.parse_args()
    generator = load_generator(options.style / "generator.safetensors").eval()
    encoder = load_encoder(options.style / "encoder.safetensors", generator.layout.rows, generator.style_dim)
    cache = options.data / "train64.npy"
    if not cache.exists():
        np.save(cache, small(load(options.data, "train")[0]))
    builder = latents(
        generator, encoder, np.load(cache, mmap_mode="c"), clip_features(options.data, "train"), options.keep or Path(),
        options.keep is not None,
    )  # fmt: skip
    if options.keep is not None:
        builder.save(options.keep, overwrite=True)
    train = builder.latents()
    val_pictures = small(load(options.data, "val")[0])
    val = latents(generator, encoder, val_pictures, clip_features(options.data, "val"), Path(), False).latents()

    trainer = MapperTrainer(
        train, replace(PRESETS["fast"], steps=options.steps, hidden=options.hidden, alike=options.alike)
    )
    begun, cpu = time.time(), time.process_time()

    def tell(trainer: MapperTrainer) -> None:
        if trainer.step % trainer.settings.check_every == 0:
            print(f"{time.time() - begun:.0f} s (cpu {time.process_time() - cpu:.0f}), {trainer.line()}", flush=True)

    mapper = trainer.run(tell)
    print(trainer.report(mapper))
    print(f"trained in {time.time() - begun:.0f} s (cpu {time.process_time() - cpu:.0f})")
    half = len(val) // 2
    first, second = val.convs[:half], val.convs[half : 2 * half]
    seen, others = (val.image_features[rows].float() for rows in (slice(half), slice(half, 2 * half)))
    made, true = mapper.change(first, seen, others - seen) / mapper.deviation, (second - first) / mapper.deviation
    ratio = float((made - true).square().mean() / true.square().mean())
    cosine = float(torch.cosine_similarity(made, true).mean())
    print(
        f"validation pictures: loss {delta_loss(made, true):.4f}, {ratio:.4f} of no change's error, cosine {cosine:.4f}"
    )
    probe = RelevanceProbe(lambda: generator, demo_scorer(load_demo_model()), train, ProbeSettings())
    save_mapper(options.out, mapper, both(by_covariance(train), probe.run()), overwrite=True, half=True)


if __name__ == "__main__":
    main()

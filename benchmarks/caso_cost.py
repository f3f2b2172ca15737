"""Cost of a CASO training step: ours against the procedure of the released code, on the same networks, in one run.

The released trainer encodes the pictures anew each step, runs the 50 network evaluations of an unconditional DDIM
inversion whose result it does not use, evaluates both branches of guidance with gradients, and learns W and b of a
linear layer. Both work on the same batch size, classifier and device; steps are taken in turn, so that a busy machine
slows both alike.

    python benchmarks/caso_cost.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.classifiers.loaders import load_image_classifier
from semantic_editing.core.demo.builders import DemoDecoder, demo_vector_encoder
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.token_vectors import empty_condition

INVERSION_STEPS = 50
CFG, LEVEL = 10.0, 0.4
ATTRIBUTE, TARGET = "glasses", "glasses"


class Released:
    """A step as the released trainer takes it, by its description: Brier loss, reconstruction weighted by 0."""

    def __init__(self, demo: DemoModel, classifier: Any, images: Tensor, batch: int):
        self.demo, self.classifier, self.images, self.batch = demo, classifier, images, batch
        self.denoiser, self.vector_encoder, self.decoder = demo.denoiser(), demo_vector_encoder(demo), DemoDecoder(demo)
        self.empty = empty_condition(self.vector_encoder)
        self.generator = torch.Generator().manual_seed(0)
        width = self.vector_encoder.widths["clip_l"]
        self.weight, self.bias = (
            (torch.rand(width, generator=self.generator) * 2 - 1).requires_grad_() for _ in range(2)
        )
        self.optimizer = torch.optim.AdamW([self.weight, self.bias], lr=1e-2)
        self.number = 0

    def step(self) -> None:
        """One batch."""
        start = self.number * self.batch % len(self.images)
        self.number += 1
        picked = self.images[start : start + self.batch]
        with torch.no_grad():
            clean = self.demo.encode_image(picked)
            x, grid = clean, self.denoiser.sigma_grid(INVERSION_STEPS).tolist()
            for now, after in pairwise(grid):
                x = x + (x - self.denoiser(x, now, self.empty)) / now * (after - now)
        sigma = float(self.denoiser.sigma_grid(INVERSION_STEPS)[round(LEVEL * INVERSION_STEPS)])
        noisy = clean + sigma * torch.randn(clean.shape, generator=self.generator)
        cond = self.vector_encoder({"clip_l": (self.weight + self.bias)[None, None]})
        conditional, unconditional = self.denoiser(noisy, sigma, cond), self.denoiser(noisy, sigma, self.empty)
        predicted = unconditional + CFG * (conditional - unconditional)
        probability = self.classifier.logits(self.decoder(predicted))[ATTRIBUTE].softmax(1)[:, 0]
        loss = (1 - probability).square().mean() + 0 * (predicted - clean).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main() -> None:
    """Take steps in turn, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench_out/caso_cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    demo = load_demo_model(arguments.assets)
    classifier = load_image_classifier(demo.folder / "classifier.safetensors")
    images = demo.images[: 4 * arguments.batch]
    released = Released(demo, classifier, images, arguments.batch)
    with torch.no_grad():
        latents = demo.encode_image(images)
    rounds = arguments.rounds
    trainers = {}
    for name, noises in (("ours, new noise each step", 0), ("ours, one noise an image", 1)):
        settings = TrainingSettings(
            ATTRIBUTE,
            (TARGET,),
            steps=rounds + 5,
            batch=arguments.batch,
            noise_level=LEVEL,
            cfg=CFG,
            noises_per_image=noises,
            check_every=0,
        )
        trainers[name] = EmbeddingTrainer(
            demo.denoiser(), demo_vector_encoder(demo), DemoDecoder(demo), classifier, latents, settings
        )
    contenders = {"released procedure": (released.step, released.denoiser)}
    contenders |= {name: (trainer.advance, trainer.denoiser) for name, trainer in trainers.items()}
    for _ in range(4):  # every picture has its noise afterwards
        for trainer in trainers.values():
            trainer.advance()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    u: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, (step, denoiser) in contenders.items():
            forward, backward = denoiser.evaluations.forward, denoiser.evaluations.backward
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
            spent = (denoiser.evaluations.forward - forward, denoiser.evaluations.backward - backward)
            u[name] = (spent[0] / arguments.batch, spent[1] / arguments.batch)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"| a step of {arguments.batch} samples | u forward a sample | u backward | s a step (median of {rounds}) | "
        "times faster |"
    )
    print("|---|---|---|---|---|")
    for name in contenders:
        forward, backward = u[name]
        print(
            f"| {name} | {forward:g} | {backward:g} | {median[name]:.2f} | "
            f"{median['released procedure'] / median[name]:.1f} |"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"seconds": seconds, "u": u, "batch": arguments.batch}, indent=1))


if __name__ == "__main__":
    main()

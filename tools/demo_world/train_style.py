"""The demo world's StyleGAN2 and the encoder that goes with it, trained together as an autoencoder at 64 pixels.
Usage: train_style.py SECONDS --out FILE [--data FOLDER] [--resume]

A checkpoint is written every few minutes; ``--resume`` goes on from it, with the clock where it stood. The colour
layers' styles are constant (weight 0): otherwise they, rather than the convolutions that the mapper moves, carry hair
and background. In a share of the pictures (``--shared``) only the code that all rows share is used, so that W alone
draws a face.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from loop import Average
from muon import Muon
from torch import Tensor, nn
from world import ASSETS, halve, load, to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.classifiers.convnet import load_classifier
from core.deltaedit.encoder import CompactEncoder
from core.deltaedit.stylegan2 import EqualLinear, ModulatedConv, StyleGAN2

SIDE = 64
CHANNELS = {4: 96, 8: 96, 16: 96, 32: 48, 64: 24}
STYLE_DIM, MAPPING_LAYERS = 96, 4
#: Minutes between checkpoints, and lines of the log.
EVERY = 3


def small(pictures: np.ndarray) -> np.ndarray:
    """``uint8 [N, 128, 128, 3]`` -> the same at 64 pixels."""
    parts = []
    for start in range(0, len(pictures), 1000):
        halved = halve(to_tensor(pictures[start : start + 1000]))
        parts.append(((halved + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def places() -> Tensor:
    """How much a pixel counts ``[1, 1, 64, 64]``: the head more than the background, the face most. Its mean is 1."""
    weight = torch.ones(1, 1, SIDE, SIDE)
    weight[:, :, 16:52, 16:48] = 2.5
    weight[:, :, 23:45, 20:44] = 6.0
    return weight / weight.mean()


def edges(made: Tensor, true: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels' differences."""
    error = made - true
    down, across = error[:, :, 1:] - error[:, :, :-1], error[:, :, :, 1:] - error[:, :, :, :-1]
    return down.abs().mean() + across.abs().mean()


def groups(generator: StyleGAN2, encoder: nn.Module) -> list[tuple[torch.optim.Optimizer, list[float]]]:
    """Muon for convolutions, AdamW for the rest, each with the factors of its groups' rates.

    An equalised weight is stored ``1 / scale`` times larger than it is used, so it takes a rate that much larger.
    """
    scaled: dict[int, float] = {}
    for module in generator.modules():
        if isinstance(module, (ModulatedConv, EqualLinear)):
            scaled[id(module.weight)] = 1 / module.scale
    matrices: dict[float, list[Tensor]] = {}
    plain: dict[float, list[Tensor]] = {}
    named = [*generator.named_parameters(), *encoder.named_parameters()]
    large = ("pooled", "shared", "differences", "first", "input", "rgb")
    for name, value in named:
        if not value.requires_grad:
            continue
        factor = scaled.get(id(value), 1.0)
        kind = matrices if value.ndim >= 2 and not any(word in name for word in large) else plain
        kind.setdefault(factor, []).append(value)
    muon = Folded([{"params": values, "factor": factor} for factor, values in matrices.items()], lr=1e-3)
    adam = torch.optim.AdamW(
        [{"params": values} for values in plain.values()], 1e-3, betas=(0.9, 0.99), weight_decay=0, foreach=True
    )
    return [(muon, list(matrices)), (adam, list(plain))]


class Folded(Muon):
    """Muon that sees the generator's ``[1, out, in, k, k]`` as ``[out, in, k, k]``."""

    def __init__(self, parameters: list[dict], lr: float):
        views = []
        for group in parameters:
            values = [v[0].detach() if v.ndim == 5 else v for v in group["params"]]
            views.append({"params": values})
        self.sources = [list(group["params"]) for group in parameters]
        super().__init__(views, lr)

    def step(self) -> None:
        """One update, through views of the same memory."""
        for group, sources in zip(self.param_groups, self.sources, strict=True):
            for view, source in zip(group["params"], sources, strict=True):
                if source is not view:
                    view.grad = None if source.grad is None else source.grad[0]
        super().step()


def main() -> None:
    """Train for a given time and save both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--features", type=float, default=0.3, help="weight of the classifier's features")
    parser.add_argument("--shared", type=float, default=0.25, help="share of pictures drawn from the shared code alone")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    cache = options.data / "train64.npy"
    if not cache.exists():
        np.save(cache, small(load(options.data, "train")[0]))
    pictures = np.load(cache, mmap_mode="r")
    held_out = to_tensor(small(load(options.data, "val")[0][:128]))
    generator = StyleGAN2(SIDE, CHANNELS, STYLE_DIM, MAPPING_LAYERS)
    encoder = CompactEncoder(generator.layout.rows, STYLE_DIM, SIDE).to(memory_format=torch.channels_last)
    for layer in generator._rgbs():
        nn.init.zeros_(layer.conv.modulation.weight)
        layer.conv.modulation.requires_grad_(False)
    generator.style.requires_grad_(False)  # fitted afterwards
    for layer in generator._convs():
        layer.noise.requires_grad_(False)
    judge = load_classifier(ASSETS / "classifier.safetensors").to(memory_format=torch.channels_last)
    judge.requires_grad_(False)
    network = nn.ModuleDict({"generator": generator, "encoder": encoder})
    optimizers = groups(generator, encoder)
    parameters = [value for value in network.parameters() if value.requires_grad]
    average = Average(dict(network.named_parameters()), 0.998)
    weight, count, spent = places(), 0, 0.0
    if options.resume and options.out.exists():
        state = torch.load(options.out, weights_only=False)
        network.load_state_dict(state["network"])
        average.values = state["average"]
        average.count = count = state["count"]
        spent = state["spent"]
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    draw, encode, see = generator.forward, encoder.parts, judge.stages
    if options.compile:
        draw, encode, see = torch.compile(generator.forward), torch.compile(encoder.parts), torch.compile(judge.stages)

    @torch.no_grad()
    def quality() -> tuple[float, float]:
        kept = {name: value.clone() for name, value in average.weights.items()}
        for name, value in average.weights.items():
            value.copy_(average.values[name])
        shared, differences = encoder.parts(held_out)
        found = []
        for code in (shared[:, None] + differences, shared[:, None].expand_as(differences)):
            error = (generator(code).clamp(-1, 1) - held_out) / 2
            found.append((-10 * error.square().mean((1, 2, 3)).log10()).mean().item())
        for name, value in average.weights.items():
            value.copy_(kept[name])
        return found[0], found[1]

    def save() -> None:
        state = {
            "network": network.state_dict(),
            "average": average.values,
            "count": count,
            "spent": spent + time.time() - begun,
            "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers],
        }
        part = options.out.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, options.out)

    begun, told = time.time(), 0.0
    cpu = time.process_time()
    while (done := (spent + time.time() - begun) / options.seconds) < 1:
        count += 1
        rate = options.lr * min(1, count / 50) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02)
        true = to_tensor(pictures[np.sort(rng.integers(0, len(pictures), options.batch))])
        shared, differences = encode(true)
        whole = torch.ones(options.batch, 1, 1)
        whole[: round(options.shared * options.batch)] = 0
        made = draw(shared[:, None] + differences * whole)
        error = made - true
        loss = (error.abs() * weight).mean() + 2 * (error.square() * weight).mean() + edges(made, true)
        if options.features:
            with torch.no_grad():
                goal = see((true + 1) / 2)[:-1]
            seen = see((made + 1) / 2)[:-1]
            ratios = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(seen, goal, strict=True)]
            loss = loss + options.features * torch.stack(ratios).mean()
        for value in parameters:
            value.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, factors in optimizers:
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        average.take()
        if count in (20, 100) or time.time() - told > EVERY * 60:
            told = time.time()
            both, alone = quality()
            clock = spent + time.time() - begun
            print(
                f"{count} {clock:.0f} s (cpu {time.process_time() - cpu:.0f}), loss {loss.item():.4f}, held out "
                f"{both:.2f} dB, shared code alone {alone:.2f} dB",
                flush=True,
            )
            save()
    both, alone = quality()
    print(f"end: {count} steps, held out {both:.2f} dB, shared code alone {alone:.2f} dB", flush=True)
    save()


if __name__ == "__main__":
    main()

"""The demo world's style diffusion: a small U-Net at 64 pixels that the trained generator's style codes steer.
Usage: train_style_diffusion.py SECONDS --data FOLDER --style FILE --out FILE [--resume]

``--style`` is a checkpoint of train_style.py, whose encoder reads the codes of all training pictures and whose
generator they belong to. A checkpoint is written every few minutes; ``--resume`` goes on from it, with the clock where
it stood. ``--export`` writes the average as the pack reads it and ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from loop import Average
from muon import optimizers
from torch import Tensor
from train_style import CHANNELS, MAPPING_LAYERS, SIDE, STYLE_DIM, small
from world import load, to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.deltaedit.encoder import CompactEncoder
from core.deltaedit.style_code import StyleCode
from core.deltaedit.style_diffusion import StyleDenoiser, StyleDiffusion, decode, encode, random_noise
from core.deltaedit.style_diffusion_training import StyledPictures, level_chances, noise_loss, noisy
from core.deltaedit.style_unet import DEMO_SHAPE
from core.deltaedit.stylegan2 import StyleGAN2

#: Minutes between checkpoints, and lines of the log.
EVERY = 3
#: Layers whose matrices AdamW trains: Muon treats all directions alike, and theirs are not.
PLAIN = ("first", "last", "places", ".time.", ".style.", "time.", "styles.")
HELD_OUT = 32


def style_networks(path: Path) -> tuple[StyleGAN2, CompactEncoder]:
    """Generator and encoder of a checkpoint of train_style.py, with its averaged weights."""
    state = torch.load(path, weights_only=False)
    generator = StyleGAN2(SIDE, CHANNELS, STYLE_DIM, MAPPING_LAYERS)
    encoder = CompactEncoder(generator.layout.rows, STYLE_DIM, SIDE).to(memory_format=torch.channels_last)
    network = torch.nn.ModuleDict({"generator": generator, "encoder": encoder})
    network.load_state_dict({**state["network"], **state["average"]})
    network.eval().requires_grad_(False)
    return generator, encoder


@torch.inference_mode()
def codes(generator: StyleGAN2, encoder: CompactEncoder, pictures: np.ndarray) -> Tensor:
    """Convolution styles ``[N, S]`` of ``uint8 [N, 64, 64, 3]``."""
    parts = []
    for start in range(0, len(pictures), 256):
        part = to_tensor(np.array(pictures[start : start + 256]))  # a copy, as the file may not be written to
        parts.append(generator.styles(encoder(part)).convs)
    return torch.cat(parts).clone()


def psnr(made: Tensor, true: Tensor) -> float:
    """Mean over pictures in -1..1, decibels."""
    error = ((made.clamp(-1, 1) - true) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def main() -> None:
    """Train for a given time and save the network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--style", type=Path, required=True, help="checkpoint of train_style.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", default="", help="identity of the exported generator")
    parser.add_argument("--export", type=Path, help="write what was trained to this file, and end")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--levels", choices=("uniform", "balanced"), default="balanced")
    parser.add_argument("--limit", type=float, default=10.0, help="most that a noise level's error counts; 1: Eq. 14")
    parser.add_argument("--decay", type=float, default=0.998, help="of the average of the weights")
    parser.add_argument("--pictures", type=int, default=0, help="train on so many only; 0: all")
    parser.add_argument("--shape", type=json.loads, default={}, help="""changes to the U-Net: '{"places": false}'""")
    parser.add_argument("--quick", action="store_true", help="fewer figures at each look")
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    cache = options.data / "train64.npy"
    if not cache.exists():
        np.save(cache, small(load(options.data, "train")[0]))
    pictures = np.load(cache, mmap_mode="r")[: options.pictures or None]
    generator, encoder = style_networks(options.style)
    convs, kept = None, options.out.with_suffix(".codes.pt")
    if options.resume and kept.exists():
        convs = torch.load(kept, weights_only=True)
    if convs is None or len(convs) != len(pictures):
        convs = codes(generator, encoder, pictures)
        torch.save(convs, kept)
    data = StyledPictures(pictures, convs, generator.layout, options.generator)
    seen = small(load(options.data, "val")[0][:HELD_OUT])
    true, layout = to_tensor(seen), generator.layout
    code = StyleCode(layout, codes(generator, encoder, seen), torch.zeros(HELD_OUT, sum(layout.rgb_widths)), "")
    code = replace(code, generator=options.generator)
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in options.shape.items()}
    shape = replace(DEMO_SHAPE, **changes)
    network = StyleDiffusion(shape, layout, options.generator, *data.statistics())
    network = network.to(memory_format=torch.channels_last)
    groups = optimizers(network, options.lr, PLAIN)
    parameters = [value for value in network.parameters() if value.requires_grad]
    average = Average(dict(network.named_parameters()), options.decay)
    chances, count, spent, mean = level_chances(options.levels), 0, 0.0, math.nan
    if options.resume and options.out.exists():
        state = torch.load(options.out, weights_only=False)
        network.load_state_dict(state["network"])
        average.values, average.count, count = state["average"], state["count"], state["count"]
        spent, mean = state["spent"], state["loss"]
        for optimizer, saved in zip(groups, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    if options.export is not None:
        network.load_state_dict({**network.state_dict(), **average.values})
        network.facts = {"steps": count, "pictures": len(data), "batch": options.batch, "noise_levels": options.levels,
                         "weight_limit": options.limit, "cpu_seconds": round(spent)}  # fmt: skip
        network.save(options.export, overwrite=True)
        return
    if options.compile:
        network.unet.forward = torch.compile(network.unet.forward)  # type: ignore[method-assign]
    plain = type(network.unet).forward
    print(f"{sum(value.numel() for value in parameters)} parameters, {len(data)} pictures", flush=True)

    @torch.inference_mode()
    def quality() -> str:
        """Held-out figures of the average, with fixed noise."""
        quick = network.unet.forward
        network.unet.forward = plain.__get__(network.unet)  # type: ignore[method-assign] # no new compilation
        now = {name: value.clone() for name, value in average.weights.items()}
        for name, value in average.weights.items():
            value.copy_(average.values[name])
        seeded = torch.Generator().manual_seed(0)
        sigma = network.sigmas[torch.linspace(0, 999, HELD_OUT).round().long()]
        noise = torch.randn(true.shape, generator=seeded)
        few = 8 if options.quick else HELD_OUT
        part, few_true = code.select(slice(0, few)), true[:few]
        loss = noise_loss(network(noisy(true, noise, sigma), sigma, code.convs), noise, sigma)
        told = [f"held-out Eq. 14 {float(loss):.4f}"]
        guess = StyleDenoiser(network)(157.0 * noise[:few], 157.0, part.convs)
        told.append(f"from s at once {psnr(guess, few_true):.2f}")
        for steps in (20,) if options.quick else (20, 50):
            start = random_noise(network, few, steps, 1)
            told.append(f"random x_T, {steps} steps {psnr(decode(network, start, part), few_true):.2f}")
        if not options.quick:
            wrong = replace(part, convs=part.convs.roll(1, 0))
            found = encode(network, few_true, part, 20)
            told.append(f"inverted x_T, 20 steps, right s {psnr(decode(network, found, part), few_true):.2f}")
            told.append(f"another's s after it {psnr(decode(network, found, wrong), few_true):.2f}")
            found = encode(network, few_true, wrong, 20)
            told.append(f"another's s both ways {psnr(decode(network, found, wrong), few_true):.2f} dB")
        for name, value in average.weights.items():
            value.copy_(now[name])
        network.unet.forward = quick  # type: ignore[method-assign]
        return ", ".join(told)

    def save() -> None:
        state = {
            "network": network.state_dict(),
            "average": average.values,
            "count": count,
            "spent": spent + time.time() - begun,
            "loss": mean,
            "optimizers": [optimizer.state_dict() for optimizer in groups],
        }
        part = options.out.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, options.out)

    begun, told, cpu = time.time(), 0.0, time.process_time()
    while (done := (spent + time.time() - begun) / options.seconds) < 1:
        count += 1
        rate = options.lr * min(1, count / 50) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02)
        clean, styles = data.rows(torch.from_numpy(rng.integers(0, len(data), options.batch)))
        sigma = network.sigmas[torch.multinomial(chances, options.batch, replacement=True)]
        noise = torch.randn_like(clean)
        loss = noise_loss(network(noisy(clean, noise, sigma), sigma, styles), noise, sigma, options.limit)
        for value in parameters:
            value.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in groups:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        average.take()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        if count == 20:
            print(f"20 steps in {time.time() - begun:.0f} s (cpu {time.process_time() - cpu:.0f})", flush=True)
        if count == 100 or (count > 100 and time.time() - told > EVERY * 60):
            told = time.time()
            clock = spent + time.time() - begun
            print(
                f"{count} {clock:.0f} s (cpu {time.process_time() - cpu:.0f}), loss {mean:.4f}, {quality()}", flush=True
            )
            save()
    print(f"end: {count} steps, loss {mean:.4f}, {quality()}", flush=True)
    save()


if __name__ == "__main__":
    main()

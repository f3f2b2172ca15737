"""The network from Z to W of the demo world's StyleGAN2, fitted to the codes of real pictures, and all of it saved.
Usage: fit_mapping.py SECONDS --style FILE --out FOLDER [--data FOLDER]

A GAN's own mapping network comes from playing against a discriminator; this generator was trained as half of an
autoencoder, so its W is what the encoder makes of pictures. A flow (rectified, Liu et al. 2022) from noise to those
codes is learnt first; the mapping network then learns the flow's end points, kept near the codes' distribution by their
energy distance. Before all that W is turned so that the codes have mean 0 and covariance 1, by changing generator and
encoder alike: they draw the same pictures. Writes generator.safetensors, encoder.safetensors and samples.png.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from loop import Average, Steps, descend
from torch import Tensor, nn
from train_style import CHANNELS, MAPPING_LAYERS, SIDE, STYLE_DIM
from world import to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.deltaedit.encoder import CompactEncoder
from core.deltaedit.encoder_files import save_encoder
from core.deltaedit.generator_files import save_generator
from core.deltaedit.stylegan2 import ModulatedConv, StyleGAN2
from core.images.contact_sheet import contact_sheet
from core.images.files import save_picture

#: Steps of the flow's path for the mapping network's lessons.
PATH = 8
BATCH = 512


def networks(checkpoint: Path) -> tuple[StyleGAN2, CompactEncoder]:
    """Generator and encoder of train_style.py's checkpoint, their averaged weights."""
    generator = StyleGAN2(SIDE, CHANNELS, STYLE_DIM, MAPPING_LAYERS)
    encoder = CompactEncoder(generator.layout.rows, STYLE_DIM, SIDE)
    both = nn.ModuleDict({"generator": generator, "encoder": encoder})
    state = torch.load(checkpoint, weights_only=False)
    both.load_state_dict({**state["network"], **state["average"]})
    return generator.eval(), encoder.to(memory_format=torch.channels_last).eval()


@torch.inference_mode()
def shared_codes(encoder: CompactEncoder, pictures: np.ndarray) -> Tensor:
    """The code that all rows share ``[N, style_dim]``."""
    parts = range(0, len(pictures), 250)
    return torch.cat([encoder.parts(to_tensor(pictures[k : k + 250]))[0] for k in parts]).clone()


def whitening(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(mean, forth, back)``: ``(w - mean) @ forth`` has covariance 1, and ``@ back`` undoes it."""
    mean = codes.double().mean(0)
    centred = codes.double() - mean
    values, axes = torch.linalg.eigh(centred.T @ centred / len(codes))
    root = values.clamp_min(values[-1] * 1e-6).sqrt()
    return mean, axes / root, (axes * root).T


@torch.no_grad()
def turn(generator: StyleGAN2, encoder: CompactEncoder, mean: Tensor, forth: Tensor, back: Tensor) -> None:
    """Put both networks into the turned W, in place."""
    for module in generator.modules():
        if isinstance(module, ModulatedConv):
            layer = module.modulation
            weight = layer.weight.double() * layer.scale
            layer.bias.add_(weight @ mean)
            layer.weight.copy_(weight @ back.T / layer.scale)
    shared, differences = encoder.shared, encoder.differences
    shared.bias.copy_((shared.bias.double() + encoder.mean - mean) @ forth)
    encoder.mean.zero_()
    shared.weight.copy_(forth.T @ shared.weight.double())
    rows = (encoder.rows, encoder.style_dim)
    differences.bias.copy_((differences.bias.double().unflatten(0, rows) @ forth).flatten())
    differences.weight.copy_((forth.T @ differences.weight.double().unflatten(0, rows)).flatten(0, 1))


class Flow(nn.Module):
    """Velocity from noise (time 0) to codes (time 1)."""

    def __init__(self, width: int, hidden: int = 512):
        super().__init__()
        self.register_buffer("frequencies", 2 ** torch.arange(6.0) * math.pi)
        self.layers = nn.Sequential(
            nn.Linear(width + 12, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x [B, width]``, ``time [B, 1]``."""
        angles = time * self.frequencies
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))

    @torch.no_grad()
    def end(self, x: Tensor) -> Tensor:
        """Where noise arrives, by Heun's method."""
        for step in range(PATH):
            time = torch.full((len(x), 1), step / PATH)
            first = self(x, time)
            x = x + (first + self(x + first / PATH, time + 1 / PATH)) / (2 * PATH)
        return x


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """0 where two samples ``[N, D]`` come from one distribution (Szekely and Rizzo)."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return 2 * torch.cdist(a, b).mean() - within(a) - within(b)


def main() -> None:
    """Fit for a given time, half of it the flow, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--style", type=Path, required=True, help="checkpoint of train_style.py")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    generator, encoder = networks(options.style)
    codes = shared_codes(encoder, np.load(options.data / "train64.npy", mmap_mode="r"))
    example = to_tensor(np.load(options.data / "train64.npy", mmap_mode="r")[:8])
    with torch.no_grad():
        before = generator(encoder(example))
        mean, forth, back = whitening(codes)
        turn(generator, encoder, mean, forth, back)
        print(f"turned; pictures differ by {(generator(encoder(example)) - before).abs().max().item():.1e} of 2")
    white = ((codes.double() - mean) @ forth).float()

    flow = Flow(STYLE_DIM)
    average = Average(dict(flow.named_parameters()), 0.999)
    adam = torch.optim.AdamW(flow.parameters(), weight_decay=0)
    steps = Steps(options.seconds / 2, 2e-3, rise=100)
    for rate in steps:
        goal = white[torch.randint(len(white), (BATCH,))]
        noise, time = torch.randn_like(goal), torch.rand(BATCH, 1)
        loss = (flow(noise + time * (goal - noise), time) - (goal - noise)).square().mean()
        descend(loss, flow.parameters(), [adam], rate)
        average.take()
        if steps.count % 500 == 0:
            steps.tell(f"flow {loss.item():.4f}")
    flow.load_state_dict({**flow.state_dict(), **average.values})

    mapping = generator.style.requires_grad_(True)
    for parameter in mapping.parameters():  # stored large, used small: see EqualLinear
        parameter.requires_grad_(True)
    average = Average(dict(mapping.named_parameters()), 0.999)
    adam = torch.optim.AdamW(mapping.parameters(), weight_decay=0)
    steps = Steps(options.seconds / 2, 0.3, rise=100)
    for rate in steps:
        z = torch.randn(BATCH, STYLE_DIM)
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        goal = flow.end(z)
        made = mapping(z)
        distance = energy_distance(made, white[torch.randint(len(white), (BATCH,))])
        loss = (made - goal).square().mean() + 0.3 * distance
        descend(loss, mapping.parameters(), [adam], rate)
        average.take()
        if steps.count % 200 == 0:
            steps.tell(f"end points {(made - goal).square().mean().item():.4f}, distance {distance.item():.4f}")
    mapping.load_state_dict({**mapping.state_dict(), **average.values})
    generator.requires_grad_(False)

    with torch.no_grad():
        z = torch.randn(4096, STYLE_DIM, generator=torch.Generator().manual_seed(1))
        w = generator.map(z)
        generator.w_mean.copy_(w.mean(0))
        print(
            f"energy distance to the codes: {energy_distance(w, white[:4096]).item():.4f} (two halves of the "
            f"codes: {energy_distance(white[:4096], white[4096:8192]).item():.4f}; a Gaussian: "
            f"{energy_distance(torch.randn_like(w), white[:4096]).item():.4f})"
        )
        rows = []
        for truncation in (1.0, 0.7, 0.5):
            pictures = generator(generator.sample_w_plus(12, 3, truncation)).add(1).div(2).clamp(0, 1)
            rows.append((f"truncation {truncation}", [(picture, "") for picture in pictures]))
    options.out.mkdir(parents=True, exist_ok=True)
    save_picture(options.out / "samples.png", contact_sheet(rows, scale=2), overwrite=True)
    save_generator(options.out / "generator.safetensors", generator, overwrite=True)
    save_encoder(options.out / "encoder.safetensors", encoder, overwrite=True)


if __name__ == "__main__":
    main()

"""The demo world's StyleGAN2 and encoder as the pack reads them, from a checkpoint of train_style.py.
Usage: finish_style.py --style FILE --out FOLDER [--data FOLDER]

A GAN's W comes from Z by a network that plays against a discriminator. This generator was trained as half of an
autoencoder, so W is what its encoder makes of pictures: of the code that all rows share, as the rows' differences add a
tenth of a decibel for a fifth of the encoder's size and are left out. W is turned here so that these codes have mean 0
and covariance 1, by changing generator and encoder alike, which then draw the same pictures; Z, on its sphere, is W. A
flow distilled into four mapping layers was tried, and lay ten times as far from the codes. Writes
generator.safetensors, encoder.safetensors and samples.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
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

SAMPLES = 4096  # for the distance of samples to codes


def networks(checkpoint: Path) -> tuple[StyleGAN2, CompactEncoder]:
    """Generator, without a mapping network, and encoder of a checkpoint, with averaged weights."""
    generator = StyleGAN2(SIDE, CHANNELS, STYLE_DIM, MAPPING_LAYERS)
    encoder = CompactEncoder(generator.layout.rows, STYLE_DIM, SIDE)
    both = nn.ModuleDict({"generator": generator, "encoder": encoder})
    state = torch.load(checkpoint, weights_only=False)
    both.load_state_dict({**state["network"], **state["average"]})
    generator.style, generator.mapping_layers, encoder.differences = generator.style[:1], 0, None
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
    shared = encoder.shared
    shared.bias.copy_((shared.bias.double() + encoder.mean - mean) @ forth)
    encoder.mean.zero_()
    shared.weight.copy_(forth.T @ shared.weight.double())


def energy_distance(a: Tensor, b: Tensor) -> float:
    """0 where two samples ``[N, D]`` come from one distribution (Szekely and Rizzo)."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


@torch.no_grad()
def main() -> None:
    """Turn, tell how near samples come to codes, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--style", type=Path, required=True, help="checkpoint of train_style.py")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    generator, encoder = networks(options.style)
    pictures = np.load(options.data / "train64.npy", mmap_mode="c")
    mean, forth, back = whitening(shared_codes(encoder, pictures))
    example = to_tensor(pictures[:64])
    before = generator(encoder(example))
    turn(generator, encoder, mean, forth, back)
    generator.w_mean.zero_()
    for value in (*generator.state_dict().values(), *encoder.state_dict().values()):
        value.copy_(value.half())  # as they are saved, so that the identity is that of the file
    print(f"turned; pictures differ by {(generator(encoder(example)) - before).abs().max().item():.1e} of 2")
    codes = shared_codes(encoder, pictures[: 2 * SAMPLES])
    made = generator.map(torch.randn(SAMPLES, STYLE_DIM, generator=torch.Generator().manual_seed(1)))
    print(
        f"energy distance of {SAMPLES} samples to codes {energy_distance(made, codes[:SAMPLES]):.4f}; of other codes "
        f"{energy_distance(codes[SAMPLES:], codes[:SAMPLES]):.4f}"
    )
    rows = []
    for truncation in (1.0, 0.7, 0.5):
        drawn = generator(generator.sample_w_plus(12, 3, truncation)).add(1).div(2).clamp(0, 1)
        rows.append((f"truncation {truncation}", [(picture, "") for picture in drawn]))
    options.out.mkdir(parents=True, exist_ok=True)
    save_picture(options.out / "samples.png", contact_sheet(rows, scale=2), overwrite=True)
    save_generator(options.out / "generator.safetensors", generator, overwrite=True, half_precision=True)
    save_encoder(options.out / "encoder.safetensors", encoder, overwrite=True, half=True)


if __name__ == "__main__":
    main()

"""A decoder that paints all 128 pixels, for the frozen encoder. Usage: train_decoder.py VAE SECONDS [--data DIR] [--out
DIR].

The last layer grows from 12 to 48 channels (4x4 pixels of each of 32x32 places) and starts as a doubling of the old
one. The face counts 2.5 times; the latents get a little noise, because a sampled latent is never exactly an encoded
one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from loop import Average, Steps, descend
from muon import optimizers
from torch import Tensor
from torch.nn import functional
from train_vae import FOLD, edge_loss
from world import halve, load, to_tensor

PAINT = 4  # pixels folded into the decoder's output channels
NOISE = 0.05  # largest latent noise, in units of the scaled latent
KEPT = 9000  # training pictures whose latents are kept


def widen(small: AutoencoderKL) -> AutoencoderKL:
    """The same network with 48 output channels, painting what the old one painted, each pixel doubled."""
    config = {key: value for key, value in small.config.items() if not key.startswith("_")}
    vae = AutoencoderKL(**{**config, "out_channels": 3 * PAINT**2})
    state = small.state_dict()
    rows = torch.tensor([c * 4 + (i // 2) * 2 + j // 2 for c in range(3) for i in range(PAINT) for j in range(PAINT)])
    for key in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        state[key] = state[key][rows]
    vae.load_state_dict(state)
    return vae


def decode(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Unscaled latent ``[B, 4, 16, 16]`` -> pictures ``[B, 3, 128, 128]`` in -1..1."""
    return functional.pixel_shuffle(vae.decode(latent).sample, PAINT)


def main() -> None:
    """Train for a given time and save an average of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vae", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("vae128"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    pictures, _ = load(options.data, "train")
    vae = AutoencoderKL.from_pretrained(options.vae).float()
    vae = vae if vae.config.out_channels == 3 * PAINT**2 else widen(vae)
    vae = vae.requires_grad_(False).to(memory_format=torch.channels_last)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    scale = vae.config.scaling_factor
    with torch.no_grad():
        blocks = (halve(to_tensor(pictures[k : k + 100])) for k in range(0, KEPT, 100))
        latents = torch.cat(
            [vae.encode(functional.pixel_unshuffle(block, FOLD)).latent_dist.mode() for block in blocks]
        )
    weight = torch.ones(1, 1, 128, 128)
    weight[:, :, 32:104, 32:96] = 2.5
    weight /= weight.mean()
    trained = {name: value for name, value in vae.named_parameters() if value.requires_grad}
    average = Average(trained, 0.99)
    updates = optimizers(vae, options.lr, plain=("conv_in", "conv_out"))
    steps = Steps(options.seconds, options.lr, rise=20)
    for rate in steps:
        chosen = np.sort(rng.integers(0, KEPT, options.batch))
        true, latent = to_tensor(pictures[chosen]), latents[chosen]
        latent = latent + torch.randn_like(latent) * torch.rand(len(latent), 1, 1, 1) * NOISE / scale
        painted = decode(vae, latent)
        error = painted - true
        loss = (error.abs() * weight).mean() + 2 * (error.square() * weight).mean() + edge_loss(painted, true)
        descend(loss, trained.values(), updates, rate)
        average.take()
        if steps.count % 10 == 0:
            steps.tell(f"loss {loss.item():.4f}")
    vae.load_state_dict(average.values, strict=False)
    vae.save_pretrained(options.out)


if __name__ == "__main__":
    main()

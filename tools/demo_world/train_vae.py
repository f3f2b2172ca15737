"""The autoencoder: encoder and a 12-channel decoder at 64 pixels. Usage: train_vae.py SECONDS [--data DIR] [--out
DIR]."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from loop import Average, Steps, descend
from torch import Tensor
from torch.nn import functional
from world import halve, load, to_tensor

FOLD = 2  # pixels folded into channels before the network
KL_WEIGHT = 5e-5


def make() -> AutoencoderKL:
    """12 channels in and out, two resolutions, groups of 32 as ComfyUI's autoencoder wants them."""
    return AutoencoderKL(
        in_channels=3 * FOLD**2,
        out_channels=3 * FOLD**2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=32,
        scaling_factor=1.0,
    )


def differences(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal differences of neighbouring pixels."""
    return pictures[..., 1:, :] - pictures[..., :-1, :], pictures[..., :, 1:] - pictures[..., :, :-1]


def edge_loss(painted: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of the differences: sharp edges."""
    pairs = zip(differences(painted), differences(true), strict=True)
    return torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()


def save_scaled(vae: AutoencoderKL, pictures: np.ndarray, folder: Path) -> None:
    """Save with the scaling factor that gives the latents of the first 500 pictures a standard deviation of 1."""
    with torch.no_grad():
        folded = functional.pixel_unshuffle(halve(to_tensor(pictures[:500])), FOLD)
        latent = torch.cat([vae.encode(part).latent_dist.mode() for part in folded.split(50)])
    vae.register_to_config(scaling_factor=1 / latent.std().item())
    vae.save_pretrained(folder)


def main() -> None:
    """Train for a given time and save an average of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("vae"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pictures, _ = load(options.data, "train")
    vae = make().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), options.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(vae.state_dict(), 0.998)
    steps = Steps(options.seconds, options.lr, rise=100)
    for rate in steps:
        true = halve(to_tensor(pictures[rng.integers(0, len(pictures), options.batch)]))
        posterior = vae.encode(functional.pixel_unshuffle(true, FOLD)).latent_dist
        painted = functional.pixel_shuffle(vae.decode(posterior.sample()).sample, FOLD)
        loss = (painted - true).abs().mean() + edge_loss(painted, true) + KL_WEIGHT * posterior.kl().mean() / 1024
        descend(loss, vae.parameters(), [optimizer], rate)
        average.take()
        if steps.count % 50 == 0:
            steps.tell(f"loss {loss.item():.4f}")
    vae.load_state_dict(average.values)
    save_scaled(vae, pictures, options.out)


if __name__ == "__main__":
    main()

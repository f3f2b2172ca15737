"""Encoder and 128-pixel decoder together, so that latents keep eyes and mouths. Usage: refine_vae.py VAE SECONDS
[--data DIR].

A plain pixel loss spends the latents on hair and clothes: eyes and mouth are a hundredth of it. So the face counts
more, eyes and mouth most, and the features of the attribute classifier count too (a perceptual loss, as Johnson et al.
2016 do with VGG). A weak tie holds the latents near the old encoder's: a U-Net trained on those can be trained on, not
anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from loop import Average, Steps, descend
from muon import optimizers
from torch import Tensor
from torch.nn import functional
from train_decoder import NOISE, decode
from train_vae import FOLD, edge_loss, save_scaled
from world import ASSETS, halve, load, to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.classifiers.convnet import AttributeClassifier, load_classifier

TIE = 0.02  # weight of the squared distance to the old encoder's scaled latents
PERCEPTUAL = 0.3


def place_weights() -> Tensor:
    """``[1, 1, 128, 128]``, mean 1: the face 2.5, eyes and mouth 6."""
    weight = torch.ones(1, 1, 128, 128)
    weight[:, :, 32:104, 32:96] = 2.5
    weight[:, :, 46:90, 40:88] = 6.0
    return weight / weight.mean()


def feature_distance(net: AttributeClassifier, painted: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of the classifier's features in units of their size, over all stages but the last, which
    sees no place.

    Pictures ``[B, 3, 128, 128]`` in -1..1.
    """
    with torch.no_grad():
        goals = net.stages((true + 1) / 2)[:-1]
    pairs = zip(net.stages((painted + 1) / 2), goals, strict=False)
    return torch.stack([(seen - goal).abs().mean() / goal.abs().mean() for seen, goal in pairs]).mean()


def main() -> None:
    """Train for a given time and save an average of the weights with the new scaling factor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vae", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the classifier")
    parser.add_argument("--out", type=Path, default=Path("vae_refined"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    options = parser.parse_args()
    torch.manual_seed(4)
    rng = np.random.default_rng(4)
    pictures, _ = load(options.data, "train")
    vae = AutoencoderKL.from_pretrained(options.vae).float().to(memory_format=torch.channels_last)
    old = AutoencoderKL.from_pretrained(options.vae).float().requires_grad_(False).to(memory_format=torch.channels_last)
    net = load_classifier(options.assets / "classifier.safetensors").to(memory_format=torch.channels_last)
    scale = vae.config.scaling_factor
    weight = place_weights()
    average = Average(dict(vae.named_parameters()), 0.99)
    updates = optimizers(vae, options.lr, plain=("conv_in", "conv_out", "quant_conv"))
    steps = Steps(options.seconds, options.lr, rise=30)
    for rate in steps:
        true = to_tensor(pictures[np.sort(rng.integers(0, len(pictures), options.batch))])
        folded = functional.pixel_unshuffle(halve(true), FOLD).contiguous(memory_format=torch.channels_last)
        latent = vae.encode(folded).latent_dist.mode()
        with torch.no_grad():
            before = old.encode(folded).latent_dist.mode()
        tie = (latent - before).square().mean() * scale**2
        painted = decode(vae, latent + torch.randn_like(latent) * torch.rand(len(latent), 1, 1, 1) * NOISE / scale)
        error = painted - true
        seen = feature_distance(net, painted, true)
        pixel = (error.abs() * weight).mean() + 2 * (error.square() * weight).mean()
        loss = pixel + edge_loss(painted, true) + PERCEPTUAL * seen + TIE * tie
        descend(loss, vae.parameters(), updates, rate)
        average.take()
        if steps.count % 10 == 0:
            terms = f"pixel {pixel.item():.4f}, features {seen.item():.4f}, moved {tie.item() ** 0.5:.3f}"
            steps.tell(f"loss {loss.item():.4f} ({terms})")
    vae.load_state_dict(average.values, strict=False)
    save_scaled(vae, pictures, options.out)


if __name__ == "__main__":
    main()

"""An attribute classifier at 128 pixels. Usage: train_classifier.py SECONDS --out FILE [--init FILE] [--decoded SHARE]
[--seed N] ...

With ``--decoded`` that share of the batches are pictures decoded from noisy latents, so that it also judges decoded
edits. ``--init`` may be a 64-pixel classifier: it goes on as a 128-pixel one that first averages 2x2 pixels.
An attribute counts only where the picture shows it. Pictures that the network still gets wrong are drawn more often
(``--hard``): half of the errors of an even draw were one rare haircut against a bald head.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from loop import Steps, descend
from muon import Muon
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from train_decoder import decode
from train_vae import FOLD
from world import ASSETS, ATTRIBUTES, halve, load, to_tensor, visible

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.classifiers.convnet import AttributeClassifier

SIDE, FOLD_IN = 128, 2
DECODED = 1800  # pictures to decode
MEMORY = 0.5  # share of a picture's last loss in its new difficulty
HARD = {"mouth": 1.5, "eyes": 8.0, "top": 2.0, "hair_color": 3.0}


@torch.no_grad()
def decoded_pictures(folder: Path, pictures: np.ndarray) -> Tensor:
    """``pictures`` encoded, disturbed a little and decoded, ``[B, 3, 128, 128]`` in -1..1."""
    vae = AutoencoderKL.from_pretrained(folder).float().eval()
    parts = []
    for k in range(0, len(pictures), 50):
        latent = vae.encode(functional.pixel_unshuffle(halve(to_tensor(pictures[k : k + 50])), FOLD)).latent_dist.mode()
        noise = torch.randn_like(latent) * torch.rand(len(latent), 1, 1, 1) * 0.08 / vae.config.scaling_factor
        parts.append(decode(vae, latent + noise).clamp(-1, 1))
    return torch.cat(parts)


def unfolded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A 64-pixel classifier's weights as those of a 128-pixel one that first averages 2x2 pixels."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    first = state["features.0.weight"]
    if first.shape[-1] == 3:
        state["features.0.weight"] = first.repeat_interleave(FOLD_IN, 2).repeat_interleave(FOLD_IN, 3) / FOLD_IN**2
    return state


def disturb(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Sometimes blurred, sometimes noisy, a little brighter or darker."""
    if rng.random() < 0.15:
        side = int(SIDE * rng.uniform(0.4, 1))
        pictures = functional.interpolate(pictures, size=(side, side), mode="area")
        pictures = functional.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear")
    if rng.random() < 0.3:
        pictures = pictures + torch.randn_like(pictures) * rng.random() * 0.15
    return pictures * rng.uniform(0.88, 1.08) + rng.uniform(-0.06, 0.06)


def main() -> None:
    """Train for a given time and save the weights with their label names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the VAE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from this file")
    parser.add_argument("--decoded", type=float, default=0.0, help="share of batches of decoded pictures")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 96, 128])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument(
        "--hard", type=float, default=0.5, help="share of the draws that goes by the loss a picture last had"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=4e-3)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    pictures, labels = load(options.data, "train")
    classes = {attribute: sorted({row[attribute] for row in labels}) for attribute in ATTRIBUTES}
    targets = {a: torch.tensor([classes[a].index(row[a]) for row in labels]) for a in ATTRIBUTES}
    shown = {a: torch.tensor([visible(a, row) for row in labels]).float() for a in ATTRIBUTES}
    decoded = decoded_pictures(options.assets / "vae", pictures[:DECODED]) if options.decoded else None
    net = AttributeClassifier(options.widths, options.hidden, classes, SIDE, FOLD_IN)
    if options.init:
        net.load_state_dict(unfolded(load_file(options.init)))
    net = net.to(memory_format=torch.channels_last)
    kernels = [value for value in net.parameters() if value.ndim == 4]
    rest = [value for value in net.parameters() if value.ndim != 4]
    updates = [Muon(kernels, options.lr), torch.optim.AdamW(rest, options.lr, weight_decay=1e-2)]
    difficulty = torch.ones(len(pictures))
    steps = Steps(options.seconds, options.lr, rise=50, last=0.005)
    for rate in steps:
        if decoded is not None and rng.random() < options.decoded:
            chosen = torch.from_numpy(rng.integers(0, len(decoded), options.batch))
            batch = decoded[chosen]
        else:
            odds = options.hard * difficulty / difficulty.sum() + (1 - options.hard) / len(difficulty)
            chosen = torch.multinomial(odds, options.batch).sort().values
            batch = to_tensor(pictures[chosen.numpy()])
        logits = net((disturb(batch, rng) + 1) / 2)
        losses = torch.zeros(options.batch)
        for attribute in ATTRIBUTES:
            loss = functional.cross_entropy(logits[attribute], targets[attribute][chosen], reduction="none")
            losses = losses + HARD.get(attribute, 1.0) * loss * shown[attribute][chosen]
        difficulty[chosen] = MEMORY * difficulty[chosen] + (1 - MEMORY) * losses.detach()
        descend(losses.mean(), net.parameters(), updates, rate)
        if steps.count % 50 == 0:
            steps.tell(f"loss {losses.mean().item():.3f}, mean difficulty {difficulty.mean().item():.3f}")
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in net.state_dict().items()
    }
    about = f"RGB in [-1,1], resized to {SIDE}x{SIDE} (bilinear, antialias)"
    metadata = {"classes": json.dumps(classes), "widths": json.dumps(options.widths), "size": str(SIDE), "input": about}
    save_file(state, options.out, metadata={**metadata, "seed": str(options.seed)})


if __name__ == "__main__":
    main()

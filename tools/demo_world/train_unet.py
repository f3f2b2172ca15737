"""The denoiser, on latents and text states computed once. Usage: train_unet.py SECONDS [--init DIR] [--data DIR] [--out
DIR].

eps prediction on Stable Diffusion's noise schedule, one caption in ten empty. What the text decides is drawn at middle
noise, so most times are taken from there, and the loss weights follow min-SNR-5 (Hang et al. 2023) below sigma 1 and
the v-prediction's above. The face's latents count three times and eyes and mouth five times: eps at each place and time
is a conditional mean, so weights change speed, not the optimum. Rare looks are drawn more often. A run that was stopped
goes on from ``--out`` given as ``--init``.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from loop import Average, Steps, descend
from torch.nn import functional
from train_vae import FOLD
from transformers import CLIPModel
from world import ASSETS, Words, describe, halve, load, to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.demo.model import expand_token_table

EMPTY = 0.1
SNR_LIMIT = 5.0
MIDDLE, MIDDLE_SHARE = (200, 760), 0.65  # times at which the text decides most, and how many of the draws fall there
RARE = ("top", "eyes", "mouth", "facial_hair", "glasses")
OPTIMIZER = "optimizer.pt"
KEEP_EVERY = 500  # steps between saves


def make() -> UNet2DConditionModel:
    """Stable Diffusion 1's layout with three resolutions and a text width of 256 (9.0 million parameters)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=256,
        attention_head_dim=4,
        norm_num_groups=32,
    )


@torch.no_grad()
def encode_pictures(data: Path, assets: Path, count: int) -> torch.Tensor:
    """Scaled latents ``[N, 4, 16, 16]`` in half precision."""
    pictures, _ = load(data, "train")
    vae = AutoencoderKL.from_pretrained(assets / "vae").float().eval().to(memory_format=torch.channels_last)
    latents = []
    for k in range(0, count, 100):
        folded = functional.pixel_unshuffle(halve(to_tensor(pictures[k : min(count, k + 100)])), FOLD)
        latents.append((vae.encode(folded).latent_dist.mode() * vae.config.scaling_factor).half())
    return torch.cat(latents)


@torch.no_grad()
def encode_captions(data: Path, assets: Path, count: int) -> torch.Tensor:
    """Text states ``[N + 1, 77, D]`` of a caption for each picture in half precision; the last text is empty."""
    _, labels = load(data, "train")
    text = CLIPModel.from_pretrained(assets / "clip").float().eval().text_model
    words, rng = Words(assets), random.Random(5)
    table = expand_token_table(text.embeddings.token_embedding.weight, words.vocab.tolist())
    text.embeddings.token_embedding = torch.nn.Embedding.from_pretrained(table)
    captions = [
        describe(row, rng, thorough=rng.choice([0.0, 0.6]), absent=rng.random() < 0.3)[0] for row in labels[:count]
    ]
    rows = words.ids([*captions, ""])
    return torch.cat([text(input_ids=part).last_hidden_state.half() for part in rows.split(100)])


def cached(file: Path | None, make_it: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``file`` holds, or what is made now and kept there."""
    if file is not None and file.exists():
        return torch.load(file, mmap=True, weights_only=True)
    made = make_it()
    if file is not None:
        torch.save(made, file)
    return made


def rarity(labels: list[dict[str, str]]) -> np.ndarray:
    """Probability ``[N]`` of drawing each picture."""
    weight = np.ones(len(labels))
    for attribute in RARE:
        counts = Counter(row[attribute] for row in labels)
        weight *= np.array([counts[row[attribute]] for row in labels], dtype=float) ** -0.3
    return weight / weight.sum()


def place_weights() -> torch.Tensor:
    """``[1, 1, 16, 16]``, mean 1: the face 3, eyes and mouth 5."""
    place = torch.ones(1, 1, 16, 16)
    place[:, :, 3:13, 4:12] = 3.0
    place[:, :, 6:11, 5:11] = 5.0
    return place / place.mean()


def main() -> None:
    """Train for a given time and save an average of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--init", type=Path, help="go on from this U-Net")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the VAE, CLIP and tokenizer")
    parser.add_argument("--out", type=Path, default=Path("unet"))
    parser.add_argument("--latents", type=Path, help="keep the latents in this file")
    parser.add_argument("--states", type=Path, help="keep the text states in this file")
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--last", type=float, default=0.03, help="share of the learning rate at the end of the cosine")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    states = cached(options.states, lambda: encode_captions(options.data, options.assets, options.pictures))
    latents = cached(options.latents, lambda: encode_pictures(options.data, options.assets, options.pictures))
    count = min(len(latents), len(states) - 1)
    chances = rarity(load(options.data, "train")[1][:count])
    unet = (UNet2DConditionModel.from_pretrained(options.init) if options.init else make()).float()
    unet = unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), options.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    if options.init and (options.init / OPTIMIZER).exists():
        optimizer.load_state_dict(torch.load(options.init / OPTIMIZER, weights_only=True))
    average = Average(unet.state_dict(), 0.998)
    kept = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    place = place_weights()
    mean = None

    def save() -> None:
        now = {key: value.clone() for key, value in unet.state_dict().items()}
        unet.load_state_dict(average.values)
        unet.save_pretrained(options.out)
        unet.load_state_dict(now)
        torch.save(optimizer.state_dict(), options.out / OPTIMIZER)

    steps = Steps(options.seconds, options.lr, rise=150, last=options.last)
    for rate in steps:
        chosen = torch.from_numpy(rng.choice(count, options.batch, p=chances))
        clean = latents[chosen].float()
        named = torch.where(torch.rand(options.batch) < EMPTY, len(states) - 1, chosen)
        middle = torch.randint(*MIDDLE, (options.batch,))
        times = torch.where(
            torch.rand(options.batch) < MIDDLE_SHARE, middle, torch.randint(0, len(kept), (options.batch,))
        )
        noise = torch.randn_like(clean)
        alpha = kept[times][:, None, None, None]
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, times, encoder_hidden_states=states[named].float()).sample
        variance = (1 - kept[times]) / kept[times]  # sigma squared
        weight = torch.minimum((1 + variance).clamp(max=SNR_LIMIT), SNR_LIMIT * variance + 0.05)
        loss = (((predicted - noise).square() * place).mean((1, 2, 3)) * weight).mean()
        descend(loss, unet.parameters(), [optimizer], rate)
        average.take()
        mean = loss.item() if mean is None else 0.99 * mean + 0.01 * loss.item()
        if steps.count % 100 == 0:
            steps.tell(f"loss {mean:.4f}")
        if steps.count % KEEP_EVERY == 0:
            save()
    save()


if __name__ == "__main__":
    main()

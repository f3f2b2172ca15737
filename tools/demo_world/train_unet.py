"""The denoiser, on latents and text states computed once. Usage: train_unet.py SECONDS [--init DIR] [--data DIR] [--out DIR].

eps prediction on Stable Diffusion's noise schedule, min-SNR-5 loss weights (Hang et al. 2023), one caption in ten empty.
The face's latents count three times: eps at each place is a conditional mean, so place weights change speed, not the optimum.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch.nn import functional
from train_vae import FOLD
from transformers import CLIPModel
from world import ASSETS, Words, caption, halve, load, to_tensor

EMPTY = 0.1
SNR_LIMIT = 5.0


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
def prepare(data: Path, assets: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents ``[N, 4, 16, 16]`` and text states ``[N + 1, 77, D]`` in half precision; the last text is empty."""
    pictures, labels = load(data, "train")
    vae = AutoencoderKL.from_pretrained(assets / "vae").float().eval()
    text = CLIPModel.from_pretrained(assets / "clip").float().eval().text_model
    words, rng = Words(assets), random.Random(5)
    latents, states = [], []
    for k in range(0, count, 100):
        folded = functional.pixel_unshuffle(halve(to_tensor(pictures[k : k + 100])), FOLD)
        latents.append((vae.encode(folded).latent_dist.mode() * vae.config.scaling_factor).half())
        rows, _ = words([caption(labels[j], rng) for j in range(k, k + 100)])
        states.append(text(input_ids=rows).last_hidden_state.half())
    states.append(text(input_ids=words([""])[0]).last_hidden_state.half())
    return torch.cat(latents), torch.cat(states)


def main() -> None:
    """Train for a given time and save an average of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--init", type=Path, help="go on from this U-Net")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the VAE, CLIP and tokenizer")
    parser.add_argument("--out", type=Path, default=Path("unet"))
    parser.add_argument("--pictures", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-4)
    options = parser.parse_args()
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    latents, states = prepare(options.data, options.assets, options.pictures)
    unet = (UNet2DConditionModel.from_pretrained(options.init) if options.init else make()).float()
    unet = unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), options.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    average = {key: value.clone() for key, value in unet.state_dict().items()}
    kept = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    place = torch.ones(1, 1, 16, 16)
    place[:, :, 3:13, 4:12] = 3.0
    place /= place.mean()
    start, step = time.time(), 0
    while (done := (time.time() - start) / options.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1, (step + 1) / 150) * (0.5 * (1 + math.cos(math.pi * done)) * 0.97 + 0.03)
        chosen = torch.from_numpy(rng.integers(0, len(latents), options.batch))
        clean = latents[chosen].float()
        named = torch.where(torch.rand(options.batch) < EMPTY, len(latents), chosen)
        times = torch.randint(0, len(kept), (options.batch,))
        noise = torch.randn_like(clean)
        alpha = kept[times][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        predicted = unet(noisy, times, encoder_hidden_states=states[named].float()).sample
        snr = kept[times] / (1 - kept[times])
        weight = (snr.clamp(max=SNR_LIMIT) / snr).clamp(min=0.05)
        loss = (((predicted - noise).square() * place).mean((1, 2, 3)) * weight).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in unet.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        if step % 100 == 0:
            print(step, f"{time.time() - start:.0f} s, loss {loss.item():.4f}", flush=True)
    unet.load_state_dict(average)
    unet.save_pretrained(options.out)


if __name__ == "__main__":
    main()

"""Measure the shipped model on the validation pictures. Usage: evaluate.py [vae] [classifiers] [clip] [unet] [--data
DIR] [--count N].

Prints the autoencoder's PSNR, the classifiers' accuracy on pictures and on decoded pictures, CLIP's zero-shot accuracy
and the share of the attributes asked for in a caption that the classifier finds in the sampled picture.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from world import ASSETS, ATTRIBUTES, HAIRED, NAMING, caption, load, visible

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.classifiers.convnet import AttributeClassifier
from core.demo.model import DemoModel, load_demo_model


def pictures_of(array: np.ndarray) -> Tensor:
    """``uint8 [B, H, W, 3]`` -> ``[B, 3, H, W]`` in 0..1."""
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).float() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    return float((-10 * (a - b).square().mean((1, 2, 3)).log10()).mean())


def accuracy(net: AttributeClassifier, pictures: Tensor, labels: list[dict[str, str]]) -> dict[str, float]:
    """Per cent of right labels for each attribute, where it is visible."""
    seen = [row for part in pictures.split(100) for row in net.labels(part)]
    rates = {}
    for attribute in ATTRIBUTES:
        kept = [(a[attribute], b[attribute]) for a, b in zip(seen, labels, strict=True) if visible(attribute, b)]
        rates[attribute] = round(100 * sum(a == b for a, b in kept) / len(kept), 1)
    return rates


def zero_shot(demo: DemoModel, pictures: Tensor, labels: list[dict[str, str]]) -> dict[str, float]:
    """Per cent of pictures whose right prompt of two wins."""
    tests = {
        "glasses": {"none": "a person", "glasses": "a person wearing glasses"},
        "mouth": {"sad": "a person, sad", "smile": "a person, smiling"},
        "hair_color": {"black": "a person with black hair", "red": "a person with red hair"},
        "facial_hair": {"none": "a person, clean shaven", "beard": "a person with a beard"},
        "background": {"blue": "a person on a blue background", "green": "a person on a green background"},
    }
    image = torch.cat([demo.image_features(part) for part in pictures.split(100)])
    rates = {}
    for attribute, prompts in tests.items():
        text = demo.text_features(prompts.values())
        kept = [
            i
            for i, row in enumerate(labels)
            if row[attribute] in prompts and (attribute != "hair_color" or row["top"] in HAIRED)
        ]
        best = (image[kept] @ text.T).argmax(1).tolist()
        rates[attribute] = round(
            100 * sum(list(prompts)[b] == labels[i][attribute] for i, b in zip(kept, best, strict=True)) / len(kept), 1
        )
    return rates


def asked(text: str, labels: dict[str, str]) -> list[str]:
    """The attributes that a caption made from these labels names, as far as the eye can judge them."""
    parts = text.replace(",", " ,") + " "
    named = [attribute for attribute, options in NAMING.items() if any(f" {word} " in parts for word in options)]
    if f"{labels['hair_color']} hair" in text or f"{labels['hair_color']} bob" in text:
        named.append("hair_color")
    if "clothes" in named:
        named.append("clothes_color")
    return [attribute for attribute in named if visible(attribute, labels)]


@torch.no_grad()
def sample(demo: DemoModel, texts: list[str], seed: int, cfg: float, steps: int = 30) -> Tensor:
    """DDIM pictures ``[B, 3, 128, 128]`` of the texts."""
    demo.scheduler.set_timesteps(steps)
    latent = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    context = demo.encode_text([""] * len(texts) + texts)
    for time in demo.scheduler.timesteps:
        empty, named = demo.unet(torch.cat([latent, latent]), time, encoder_hidden_states=context).sample.chunk(2)
        latent = demo.scheduler.step(empty + cfg * (named - empty), time, latent).prev_sample
    return demo.decode(latent)


def text_to_image(
    demo: DemoModel, labels: list[dict[str, str]], cfg: float, sheet: Path | None
) -> dict[str, dict[str, float]]:
    """Per cent of the named attributes that each classifier sees in pictures sampled from captions of these labels."""
    rng = random.Random(1)
    texts = [caption(row, rng) for row in labels]
    pictures = torch.cat([sample(demo, texts[k : k + 20], seed=k, cfg=cfg) for k in range(0, len(texts), 20)])
    if sheet:
        rows = pictures[:24].mul(255).round().byte().permute(0, 2, 3, 1).numpy().reshape(3, 8, 128, 128, 3)
        Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(384, 1024, 3)).save(sheet)
    rates = {}
    for name, net in (("classifier", demo.classifier), ("judge", demo.judge)):
        seen = [row for part in pictures.split(100) for row in net.labels(part)]
        hits: dict[str, list[bool]] = {attribute: [] for attribute in ATTRIBUTES}
        for text, wanted, found in zip(texts, labels, seen, strict=True):
            for attribute in asked(text, wanted):
                hits[attribute].append(wanted[attribute] == found[attribute])
        every = [hit for row in hits.values() for hit in row]
        rates[name] = {a: round(100 * sum(row) / max(1, len(row)), 1) for a, row in hits.items()}
        rates[name]["all"] = round(100 * sum(every) / len(every), 1)
    return rates


def main() -> None:
    """Measure the chosen parts and print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["vae", "classifiers", "clip", "unet"])
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--count", type=int, default=200, help="captions for the U-Net")
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path, help="write the first 24 samples to this PNG")
    options = parser.parse_args()
    demo = load_demo_model(options.assets)
    array, labels = load(options.data, "val")
    with torch.no_grad():
        few = pictures_of(array[:300])
        if {"vae", "classifiers"} & set(options.parts):
            decoded = torch.cat([demo.decode(demo.encode_image(part)) for part in few.split(50)])
        if "vae" in options.parts:
            half = [functional.avg_pool2d(x, 2) for x in (decoded, few)]
            face = psnr(decoded[..., 40:96, 36:92], few[..., 40:96, 36:92])
            print(
                json.dumps({"psnr_64": psnr(*half), "psnr_128": psnr(decoded, few), "psnr_128_face": face}), flush=True
            )
        if "classifiers" in options.parts:
            everything = pictures_of(array)
            for name, net in (("classifier", demo.classifier), ("judge", demo.judge)):
                print(
                    json.dumps(
                        {name: accuracy(net, everything, labels), "decoded": accuracy(net, decoded, labels[:300])}
                    ),
                    flush=True,
                )
        if "clip" in options.parts:
            print(json.dumps({"zero_shot": zero_shot(demo, pictures_of(array), labels)}), flush=True)
        if "unet" in options.parts:
            rates = text_to_image(demo, labels[300 : 300 + options.count], options.cfg, options.sheet)
            print(json.dumps({"text_to_image": rates}), flush=True)


if __name__ == "__main__":
    main()

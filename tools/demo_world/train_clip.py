"""CLIP's image tower and both projections, for a frozen text tower. Usage: train_clip.py SECONDS [--data DIR] [--out
DIR].

Contrastive learning alone picks up colours and leaves mouths: a caption's rivals in a batch nearly always differ in
some colour. So besides the contrastive loss over captions every picture must choose, for each attribute, the right one
among short prompts that differ in that attribute alone ("a person, sad" against "a person, smiling").
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
from loop import Steps, descend
from muon import optimizers
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel
from world import ASSETS, ATTRIBUTES, HAIRED, Words, caption, load, to_tensor, visible

from world import EYES, FACIAL_HAIR, GLASSES, HEADS, MOUTH, TOP  # isort: skip

SKINS = ["dark", "brown", "tan", "light", "pale"]
COLORS = ["black", "brown", "blond", "red", "pink", "gray"]
GROUNDS = ["blue", "green", "yellow", "purple", "white", "pink", "gray", "orange"]
CLOTH_COLORS = ["black", "blue", "navy", "red", "green", "yellow", "white", "gray"]
PLAIN = {
    "glasses": "without glasses",
    "facial_hair": "clean shaven",
    "mouth": "neutral expression",
    "eyes": "eyes open",
}
CAPTIONS = 20000
SAYINGS = 6  # prompts for each label
WEIGHTS = {
    "mouth": 4.0,
    "eyes": 1.0,
    "glasses": 2.0,
    "facial_hair": 2.0,
    "clothes": 0.5,
    "clothes_color": 0.5,
    "top": 0.7,
}


def phrases(attribute: str, label: str) -> list[str]:
    """Ways to name one label of one attribute; for an absent thing also the bare "a person" of an empty phrase."""
    if attribute == "hair_color":
        return [f"{label} hair", f"with {label} hair"]
    if attribute == "skin":
        return [f"{label} skin", f"with {label} skin"]
    if attribute == "background":
        return [f"{label} background", f"on a {label} background", f"in front of a {label} wall"]
    if attribute == "clothes":
        return [f"in a {'overalls' if label == 'overall' else label}"]
    if attribute == "clothes_color":
        return [f"in a {label} hoodie", f"in a {label} shirt", f"wearing a {label} sweater"]
    if attribute == "top":
        return [text.replace("{c} ", "") for text in TOP[label]]
    table = {"glasses": GLASSES, "facial_hair": FACIAL_HAIR, "mouth": MOUTH, "eyes": EYES}[attribute]
    texts = [text.replace("{c} ", "") for text in table[label]]
    return [*texts, PLAIN[attribute]] if "" in texts else texts


def labels_of(attribute: str) -> list[str]:
    """All labels of an attribute, in a fixed order."""
    tables = {"glasses": GLASSES, "facial_hair": FACIAL_HAIR, "mouth": MOUTH, "eyes": EYES, "top": TOP}
    lists = {"skin": SKINS, "hair_color": COLORS, "background": GROUNDS, "clothes_color": CLOTH_COLORS}
    if attribute == "clothes":
        return ["hoodie", "suit", "sweater", "shirt", "overall"]
    return list(tables[attribute]) if attribute in tables else lists[attribute]


def prompts(attribute: str, rng: random.Random) -> list[list[str]]:
    """For each label ``SAYINGS`` prompts; the k-th prompts of all labels share their head."""
    heads = [rng.choice(HEADS) for _ in range(SAYINGS)]
    commas = [rng.choice([", ", " "]) for _ in range(SAYINGS)]
    rows = []
    for label in labels_of(attribute):
        ways = phrases(attribute, label)
        rows.append(
            [
                head + (comma + way if (way := ways[k % len(ways)]) else "")
                for k, (head, comma) in enumerate(zip(heads, commas, strict=True))
            ]
        )
    return rows


@torch.no_grad()
def end_states(clip: CLIPModel, words: Words, texts: list[str]) -> Tensor:
    """The text tower's state at the first end-of-text token, ``[B, D]``."""
    parts = []
    for k in range(0, len(texts), 100):
        rows, ends = words(texts[k : k + 100])
        states = clip.text_model(input_ids=rows[:, : int(ends.max()) + 1]).last_hidden_state
        parts.append(states[torch.arange(len(ends)), ends])
    return torch.cat(parts)


@torch.no_grad()
def evaluate(
    clip: CLIPModel, states: dict[str, Tensor], pictures: np.ndarray, labels: list[dict[str, str]]
) -> dict[str, float]:
    """Zero-shot accuracy of each attribute in per cent, prompts of a label averaged."""
    image = torch.cat([image_features(clip, to_tensor(pictures[k : k + 100])) for k in range(0, len(pictures), 100)])
    rates = {}
    for attribute in ATTRIBUTES:
        text = functional.normalize(clip.text_projection(states[attribute]), dim=-1).mean(1)
        best = (image @ text.T).argmax(1)
        names = labels_of(attribute)
        kept = [i for i, label in enumerate(labels) if shown(attribute, label)]
        rates[attribute] = 100 * sum(names[int(best[i])] == labels[i][attribute] for i in kept) / len(kept)
    return rates


def shown(attribute: str, labels: dict[str, str]) -> bool:
    """Whether a picture with these labels shows the attribute: hair colour only where there is hair."""
    if attribute == "hair_color":
        return labels["top"] in HAIRED
    return True


def image_features(clip: CLIPModel, pictures: Tensor) -> Tensor:
    """Unit features of pictures ``[B, 3, 128, 128]`` in -1..1."""
    return functional.normalize(clip.visual_projection(clip.vision_model(pixel_values=pictures).pooler_output), dim=-1)


def widen(clip: CLIPModel) -> None:
    """Make a tower for 64 pixels (patches of 8) one for 128 (patches of 16) that at first averages 2x2 pixels."""
    old = clip.vision_model.embeddings.patch_embedding
    new = torch.nn.Conv2d(3, old.out_channels, 16, 16, bias=False)
    new.weight.data.copy_(old.weight.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4)
    clip.vision_model.embeddings.patch_embedding = new
    clip.vision_model.embeddings.patch_size, clip.vision_model.embeddings.image_size = 16, 128
    clip.config.vision_config.patch_size, clip.config.vision_config.image_size = 16, 128


def main() -> None:
    """Train for a given time, tell the zero-shot accuracy and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument(
        "--assets", type=Path, default=ASSETS, help="folder of the CLIP to go on from and its tokenizer"
    )
    parser.add_argument("--out", type=Path, default=Path("clip"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng, draw = random.Random(0), np.random.default_rng(0)
    pictures, labels = load(options.data, "train")
    held, held_labels = load(options.data, "val")
    clip = CLIPModel.from_pretrained(options.assets / "clip").float()
    if clip.config.vision_config.image_size == 64:
        widen(clip)
    clip.text_model.requires_grad_(False)
    words = Words(options.assets)
    named = end_states(clip, words, [caption(labels[j], rng) for j in range(CAPTIONS)])
    states = {}
    for attribute in ATTRIBUTES:
        rows = prompts(attribute, rng)
        states[attribute] = end_states(clip, words, [text for row in rows for text in row]).reshape(
            len(rows), SAYINGS, -1
        )
    targets = {a: torch.tensor([labels_of(a).index(label[a]) for label in labels[:CAPTIONS]]) for a in ATTRIBUTES}
    hair = torch.tensor([visible("hair_color", label) for label in labels[:CAPTIONS]])
    updates = optimizers(clip, options.lr, plain=("embedding", "projection"))
    trained = [value for value in clip.parameters() if value.requires_grad]
    steps = Steps(options.seconds, options.lr, rise=50)
    for rate in steps:
        chosen = draw.integers(0, CAPTIONS, options.batch)
        image = image_features(clip, to_tensor(pictures[chosen]))
        scale = clip.logit_scale.exp()
        text = functional.normalize(clip.text_projection(named[chosen]), dim=-1)
        logits = scale * image @ text.T
        right = torch.arange(options.batch)
        loss = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
        for attribute in ATTRIBUTES:
            way = int(draw.integers(SAYINGS))
            short = functional.normalize(clip.text_projection(states[attribute][:, way]), dim=-1)
            logits = scale * image @ short.T
            seen = hair[chosen] if attribute == "hair_color" else slice(None)
            target = targets[attribute][chosen]
            loss = loss + WEIGHTS.get(attribute, 1.0) * functional.cross_entropy(logits[seen], target[seen])
        descend(loss, trained, updates, rate)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        if steps.count % 50 == 0:
            steps.tell(f"loss {loss.item():.3f}")
        if steps.count % 200 == 0:
            print(
                {a: round(rate, 1) for a, rate in evaluate(clip, states, held[:500], held_labels[:500]).items()},
                flush=True,
            )
            clip.save_pretrained(options.out)
    print(steps.count, {a: round(rate, 1) for a, rate in evaluate(clip, states, held, held_labels).items()}, flush=True)
    clip.save_pretrained(options.out)


if __name__ == "__main__":
    main()

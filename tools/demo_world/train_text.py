"""Let the text tower's end state name every attribute without changing what the U-Net reads. Usage: train_text.py SECONDS.

A tower trained by contrast with pictures hardly tells mouths apart at its end-of-text state, which is all that CLIP
similarity sees; its word states do, and they feed the U-Net. Linear heads on the end state learn the attributes that a
caption names, while all token states are held to their values before (relative squared error times 1000; the end state
itself at 0.15 of that).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from train_clip import labels_of, phrases
from transformers import CLIPModel
from world import ASSETS, ATTRIBUTES, HEADS, Words, caption, load

HOLD = 1000.0
END_HOLD = 0.15
CAPTIONS = 9000
SHORT = 3000


def short_caption(labels: dict[str, str], rng: random.Random) -> str:
    """A head with none to three attributes."""
    named = rng.sample(ATTRIBUTES, rng.choice([0, 1, 1, 1, 2, 2, 3]))
    parts = [part for attribute in named if (part := rng.choice(phrases(attribute, labels[attribute])))]
    return ", ".join([rng.choice(HEADS), *parts])


def named_label(text: str, attribute: str, label: str) -> int:
    """The index of ``label`` if the text names it, else the class "not named"."""
    names = labels_of(attribute)
    color = {"hair_color": [f"{label} hair", f"{label} bob", f"{label} beard", f"{label} mustache"]}
    ways = color.get(attribute) or [way for way in phrases(attribute, label) if way]
    if attribute in ("clothes", "clothes_color"):
        ways = [f"{label} "] if attribute == "clothes_color" else [label]
        text = "".join(
            part for part in text.split(", ") if any(f" {cloth}" in part for cloth in ("hoodie", "suit", "sweater", "shirt", "overalls"))
        )
    return names.index(label) if any(way in text for way in ways) else len(names)


def main() -> None:
    """Train for a given time; print the drift of the states and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the CLIP to go on from and its tokenizer")
    parser.add_argument("--out", type=Path, default=Path("clip_text"))
    parser.add_argument("--lr", type=float, default=2e-4)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(1)
    _, labels = load(options.data, "train")
    clip = CLIPModel.from_pretrained(options.assets / "clip").float()
    text, words = clip.text_model, Words(options.assets)
    pairs = [(caption(row, rng), row) for row in labels[:CAPTIONS]]
    pairs += [(short_caption(row, rng), row) for row in labels[CAPTIONS : CAPTIONS + SHORT]]
    rows, ends = words([sentence for sentence, _ in pairs])
    targets = torch.tensor([[named_label(sentence, a, row[a]) for a in ATTRIBUTES] for sentence, row in pairs])
    with torch.no_grad():
        held = torch.cat([text(input_ids=part).last_hidden_state.half() for part in rows.split(100)])
    before = held[torch.arange(len(pairs)), ends].float()
    middle, spread = before.mean(0), before.std(0).clamp(min=1e-3)
    heads = nn.ModuleDict({a: nn.Linear(before.shape[1], len(labels_of(a)) + 1) for a in ATTRIBUTES})
    groups = [{"params": text.parameters(), "lr": options.lr}, {"params": heads.parameters(), "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0)
    rates = [group["lr"] for group in optimizer.param_groups]
    start, step = time.time(), 0
    while (done := (time.time() - start) / options.seconds) < 1:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 20) * (0.5 * (1 + math.cos(math.pi * done)) * 0.97 + 0.03)
        chosen = torch.randint(CAPTIONS, len(pairs), (48,)) if step % 3 == 2 else torch.randint(0, CAPTIONS, (48,))
        end, length = ends[chosen], int(ends[chosen].max()) + 2
        states = text(input_ids=rows[chosen, :length]).last_hidden_state
        moved = relative_drift(states, held[chosen, :length].float(), end)
        features = (states[torch.arange(len(chosen)), end] - middle) / spread
        named = [functional.cross_entropy(heads[a](features), targets[chosen, j]) for j, a in enumerate(ATTRIBUTES)]
        loss = torch.stack(named).sum() + HOLD * moved
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            print(step, f"{time.time() - start:.0f} s, loss {loss.item():.3f}, drift {moved.item() ** 0.5:.4f}", flush=True)
    clip.save_pretrained(options.out)


def relative_drift(states: Tensor, held: Tensor, ends: Tensor) -> Tensor:
    """Weighted squared distance of ``[B, L, D]`` states to the held ones over their squared size."""
    weight = torch.ones(states.shape[:2])
    weight[torch.arange(len(ends)), ends] = END_HOLD
    return ((states - held).square().sum(-1) * weight).sum() / (held.square().sum(-1) * weight).sum()


if __name__ == "__main__":
    main()

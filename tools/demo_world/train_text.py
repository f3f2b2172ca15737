"""The text tower: every end state tells what the text names. Usage: train_text.py SECONDS [--data DIR] [--out DIR].

Stable Diffusion reads its prompt from CLIP's token states, the padding after the text included. A contrastively trained
tower this small tells colours there and little else, and a U-Net cannot draw what its text does not tell. So each label
of each attribute gets a fixed direction, all orthogonal, and the states from the end of text on learn to be the sum of
the directions of the labels named; the word states stay where they were. Words the world does not know are mixed in, so
that they learn to change nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch
from loop import Steps, descend
from torch import Tensor, nn
from transformers import CLIPModel
from world import ASSETS, ATTRIBUTES, END, HEADS, NAMING, Words, describe, load

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.demo.model import expand_token_table
from core.pix2pix_zero.sentences import expand_word

SHARE = 0.25  # length of one label's direction, in units of the state's length
PIN = 1.0  # weight that holds the word states of plain captions
FRAMES = 400
HELD = 600  # texts for judging


class Code:
    """A fixed direction for each label of each attribute.

    Args:
        labels: of the training pictures.
        width: of the text states.
        length: of each direction.
    """

    def __init__(self, labels: list[dict[str, str]], width: int, length: float):
        self.classes = {a: sorted({row[a] for row in labels}) for a in ATTRIBUTES}
        count = sum(len(names) for names in self.classes.values())
        generator = torch.Generator().manual_seed(7)
        self.directions = length * torch.linalg.qr(torch.randn(width, count, generator=generator))[0].T
        self.places = {
            (a, name): i for i, (a, name) in enumerate((a, name) for a in ATTRIBUTES for name in self.classes[a])
        }

    def target(self, named: dict[str, str]) -> Tensor:
        """Coefficients ``[labels]``: 1 for a named label, 0 else."""
        row = torch.zeros(len(self.places))
        for attribute, name in named.items():
            row[self.places[attribute, name]] = 1.0
        return row

    def read(self, states: Tensor) -> Tensor:
        """Coefficients of states ``[..., width]``."""
        return states @ self.directions.T / self.directions[0].square().sum()

    def accuracy(self, read: Tensor, wanted: Tensor) -> dict[str, float]:
        """Per cent of named attributes whose label has the largest coefficient, and of unnamed ones below one half."""
        rates, start = {}, 0
        for attribute, names in self.classes.items():
            part, true = read[:, start : start + len(names)], wanted[:, start : start + len(names)]
            named = true.sum(1) > 0
            right = (part[named].argmax(1) == true[named].argmax(1)).float().mean() * 100
            quiet = (part[~named].amax(1) < 0.5).float().mean() * 100
            rates[attribute] = round(float(right), 1), round(float(quiet), 1)
            start += len(names)
        return rates


def texts(
    labels: list[dict[str, str]], frames: list[str], rng: random.Random, count: int
) -> list[tuple[str, dict[str, str], bool]]:
    """Text, the labels it names, and whether it is a plain caption: captions, short lists of looks, and looks in
    everyday sentences."""
    found = []
    for _ in range(count):
        row, kind = rng.choice(labels), rng.random()
        if kind < 0.45:
            text, named = describe(row, rng, thorough=rng.choice([0.0, 0.5]), absent=rng.random() < 0.4)
            found.append((text, named, True))
            continue
        kept = rng.sample(ATTRIBUTES, rng.choice([0, 1, 1, 1, 2, 2, 3]))
        parts, named = [], {}
        for _attempt in range(4):  # a caption is a list of looks: take those that name the wanted attributes alone
            whole, _ = describe(row, rng, thorough=1.0, absent=True)
            for part in whole.split(", ")[1:]:
                about = part_names(part, row)
                if about and set(about) <= set(kept) and not set(about) & set(named):
                    parts.append(part)
                    named |= about
        rng.shuffle(parts)
        if kind < 0.75:
            lead = rng.choice([*HEADS, *HEADS, ""])
            joined = rng.choice([", ", " and ", " "]).join(parts)
            text = (lead + rng.choice([", ", " "]) + joined).strip(" ,") if joined else lead
        else:
            text = rng.choice(frames).replace("a zebra", ("a person " + " ".join(parts)).strip())
        found.append((text, named, False))
    return found


def part_names(part: str, labels: dict[str, str]) -> dict[str, str]:
    """The labels that one part of a caption of these labels names."""
    padded = f" {part} "
    about = {a: labels[a] for a, options in NAMING.items() if any(f" {word} " in padded for word in options)}
    if any(f" {labels['hair_color']} {noun} " in padded for noun in ("hair", "bob", "beard", "mustache")):
        about["hair_color"] = labels["hair_color"]
    if "clothes" in about:
        about["clothes_color"] = labels["clothes_color"]
    return about


def main() -> None:
    """Train for a given time, tell what the end states tell, and save the model with the small token table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument(
        "--assets", type=Path, default=ASSETS, help="folder of the CLIP to go on from, its tokenizer and vocab.json"
    )
    parser.add_argument("--out", type=Path, default=Path("clip"))
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--lr", type=float, default=8e-4)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng, draw = random.Random(0), np.random.default_rng(0)
    _, labels = load(options.data, "train")
    clip = CLIPModel.from_pretrained(options.assets / "clip").float()
    words = Words(options.assets)
    text = clip.text_model
    known = text.embeddings.token_embedding.weight.detach()
    vocab = words.vocab
    table = nn.Embedding.from_pretrained(expand_token_table(known, vocab.tolist()), freeze=True)
    text.embeddings.token_embedding = table  # stays as it was: only the transformer learns
    frames = [sentence for sentence in expand_word("zebra", FRAMES, 0) if "a zebra" in sentence]
    rows = texts(labels, frames, rng, 12000)
    for row in rows[:12]:
        print(row, flush=True)
    ids = words.ids([row[0] for row in rows])
    ends = (ids == END).int().argmax(1)
    with torch.no_grad():
        before = [text(input_ids=part).last_hidden_state.half() for part in ids[:300].split(100)]
        length = torch.cat(before).float().norm(dim=-1).mean().item()
    code = Code(labels, known.shape[1], SHARE * length)
    wanted = torch.stack([code.target(row[1]) for row in rows])
    plain = torch.tensor([row[2] for row in rows])
    old = CLIPModel.from_pretrained(options.assets / "clip").float().text_model.requires_grad_(False)
    old.embeddings.token_embedding = table
    trained = [value for value in text.parameters() if value.requires_grad]
    updates = torch.optim.AdamW(trained, options.lr, betas=(0.9, 0.98), weight_decay=0)
    positions = torch.arange(ids.shape[1])

    def judge() -> None:
        with torch.no_grad():
            held = torch.cat([text(input_ids=part).last_hidden_state for part in ids[-HELD:].split(100)])
            for name, place in (("end of text", ends[-HELD:]), ("last padding", torch.full((HELD,), 76))):
                read = code.read(held[torch.arange(HELD), place])
                print(
                    name,
                    code.accuracy(read, wanted[-HELD:]),
                    f"error {(read - wanted[-HELD:]).square().mean():.4f}",
                    flush=True,
                )

    steps, told = Steps(options.seconds, options.lr, rise=40), 0.0
    for rate in steps:
        chosen = torch.from_numpy(draw.integers(0, len(rows) - HELD, options.batch))
        longest = int(ends[chosen].max()) + 3
        width = ids.shape[1] if steps.count % 3 == 0 else min(longest, ids.shape[1])
        states = text(input_ids=ids[chosen, :width]).last_hidden_state
        ending = (positions[:width] >= ends[chosen][:, None]).float()
        error = (code.read(states) - wanted[chosen][:, None]).square().sum(-1)
        told_loss = (error * ending).sum() / ending.sum()
        held = (1 - ending) * plain[chosen][:, None].float()
        with torch.no_grad():
            goal = old(input_ids=ids[chosen, :width]).last_hidden_state
        pin = ((states - goal).square().sum(-1) * held).sum() / (held.sum() * length**2)
        loss = told_loss + PIN * pin
        descend(loss, trained, [updates], rate)
        if steps.count % 25 == 0:
            steps.tell(f"told {told_loss.item():.4f}, words moved {pin.item() ** 0.5:.3f}")
        if steps.spent - told > 150:
            told = steps.spent
            judge()
    judge()
    clip.text_model.embeddings.token_embedding = nn.Embedding.from_pretrained(known)
    clip.save_pretrained(options.out)


if __name__ == "__main__":
    main()

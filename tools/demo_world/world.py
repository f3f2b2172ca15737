"""The cartoon-portrait world: rendered pictures, their labels, captions composed from the labels, token ids."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.demo.data import HAIRED as HAIRED  # the scripts take both from here
from core.demo.data import visible as visible

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"
ATTRIBUTES = [
    "glasses",
    "facial_hair",
    "mouth",
    "eyes",
    "hair_color",
    "skin",
    "background",
    "top",
    "clothes",
    "clothes_color",
]
END, LENGTH, CLIP_ROWS = 49407, 77, 49408

GLASSES = {
    "none": [""],
    "glasses": ["wearing glasses", "with glasses", "with eyeglasses"],
    "sunglasses": ["wearing sunglasses", "with sunglasses"],
}
FACIAL_HAIR = {
    "none": ["", "clean shaven"],
    "beard": ["with a beard", "with a {c} beard", "bearded"],
    "mustache": ["with a mustache", "with a {c} mustache"],
}
MOUTH = {
    "smile": ["smiling", "with a smile", "happy face"],
    "sad": ["sad", "with a sad face", "frowning"],
    "open": ["mouth open", "with an open mouth", "shocked"],
    "neutral": ["", "serious", "neutral expression"],
    "tongue": ["tongue out", "sticking out the tongue"],
}
EYES = {
    "open": ["", "eyes open"],
    "closed": ["eyes closed", "with closed eyes"],
    "happy": ["laughing eyes", "happy eyes"],
    "wink": ["winking", "with a wink"],
    "hearts": ["heart eyes", "in love"],
    "squint": ["squinting"],
    "surprised": ["surprised eyes", "wide eyes"],
}
TOP = {
    "short": ["short {c} hair"],
    "long": ["long {c} hair"],
    "curly": ["curly {c} hair"],
    "bun": ["{c} hair in a bun"],
    "bob": ["{c} bob haircut", "{c} hair in a bob"],
    "hat": ["wearing a hat", "in a hat"],
    "beanie": ["wearing a beanie", "in a winter hat"],
    "bald": ["bald", "with no hair"],
}
ABSENT = {"glasses": ["without glasses", "no glasses"], "facial_hair": ["without a beard", "no beard"]}
#: Words of a caption by the attribute that they name; the colour of hair and of clothes is named beside its noun.
NAMING = {
    "glasses": ("glasses", "eyeglasses", "sunglasses"),
    "facial_hair": ("beard", "bearded", "mustache", "shaven"),
    "mouth": (
        "smiling", "smile", "happy face", "sad", "frowning", "mouth", "shocked", "serious", "neutral", "tongue",
    ),
    "eyes": ("eyes", "winking", "wink", "in love", "squinting"),
    "skin": ("skin",),
    "background": ("background", "wall"),
    "clothes": ("hoodie", "suit", "sweater", "shirt", "overalls"),
    "top": ("short", "long", "curly", "bun", "bob", "hat", "beanie", "bald", "no hair", "winter hat"),
}  # fmt: skip
HEADS = [
    "a portrait of a person",
    "a cartoon of a person",
    "a person",
    "a drawing of a person",
    "a face",
    "a cartoon face",
    "an avatar of a person",
]


def load(folder: Path, split: str) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Pictures ``uint8 [N, 128, 128, 3]`` (memory-mapped) and their labels, as rendered by ``render.mjs``."""
    pictures = np.memmap(folder / f"{split}.rgb", dtype=np.uint8, mode="c").reshape(-1, 128, 128, 3)
    return pictures, json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))


def to_tensor(pictures: np.ndarray) -> Tensor:
    """``uint8 [B, H, W, 3]`` -> ``[B, 3, H, W]`` in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def halve(pictures: Tensor) -> Tensor:
    """128-pixel pictures at the 64 pixels at which the autoencoder looks."""
    return functional.avg_pool2d(pictures, 2)


def caption(labels: dict[str, str], rng: random.Random) -> str:
    """A caption that names most of the labels, in random order and wording."""
    return describe(labels, rng)[0]


def describe(
    labels: dict[str, str], rng: random.Random, thorough: float = 0.0, absent: bool = False
) -> tuple[str, dict[str, str]]:
    """A caption and the labels that its words name.

    Args:
        thorough: 0 names most labels, 1 names all that have words.
        absent: also say "without glasses" and the like.
    """
    color = labels["hair_color"]
    parts: list[str] = []
    named: dict[str, str] = {}

    def keep(probability: float) -> bool:
        return rng.random() < probability + (1 - probability) * thorough

    def say(attribute: str, template: str, lead: str = "") -> None:
        if template:
            parts.append(lead + template.format(c=color))
            named[attribute] = labels[attribute]
            if "{c}" in template:
                named["hair_color"] = color

    top = rng.choice(TOP[labels["top"]])
    if labels["top"] in HAIRED:
        if keep(0.85):
            if keep(0.25 * (1 - thorough)):
                parts.append(("with " if keep(0.5) else "") + f"{color} hair")
                named["hair_color"] = color
            else:
                say("top", top, "with " if rng.random() < 0.5 else "")
    elif keep(0.85):
        say("top", top)
    face = (("glasses", GLASSES, 0.85), ("facial_hair", FACIAL_HAIR, 0.85), ("mouth", MOUTH, 0.8), ("eyes", EYES, 0.6))
    for attribute, table, probability in face:
        if keep(probability):
            options = table[labels[attribute]]
            if absent and labels[attribute] == "none":
                options = options + ABSENT[attribute]
            say(attribute, rng.choice(options))
    if keep(0.7):
        say("skin", rng.choice([f"{labels['skin']} skin", f"with {labels['skin']} skin"]))
    if keep(0.7):
        clothes = "overalls" if labels["clothes"] == "overall" else labels["clothes"]
        say("clothes", rng.choice(["wearing a ", "in a "]) + f"{labels['clothes_color']} {clothes}")
        named["clothes_color"] = labels["clothes_color"]
    if keep(0.75):
        ground = labels["background"]
        say(
            "background",
            rng.choice([f"{ground} background", f"on a {ground} background", f"in front of a {ground} wall"]),
        )
    rng.shuffle(parts)
    return ", ".join([rng.choice(HEADS), *parts]), named


class Words:
    """CLIP's tokenizer and the rows of the demo's small token table.

    Args:
        folder: holds ``vocab.json``.
    """

    def __init__(self, folder: Path = ASSETS):
        self.tokenizer = CLIPTokenizer.from_pretrained(ASSETS.with_name("clip_tokenizer"))
        self.vocab = torch.tensor(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        self.rows = torch.full((CLIP_ROWS,), -1)
        self.rows[self.vocab] = torch.arange(len(self.vocab))

    def ids(self, texts: list[str]) -> Tensor:
        """CLIP token ids ``[B, 77]``, padded with the end of text."""
        return torch.tensor(self.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH).input_ids)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Rows of the token table ``[B, 77]`` and the place of the first end-of-text token ``[B]``."""
        ids = self.ids(texts)
        return self.rows[ids], (ids == END).int().argmax(1)

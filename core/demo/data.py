"""The pictures of the demo world: portraits with captions and labels, and exact counterfactual pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import EditingError
from ..files import load_json
from ..images.files import decoded

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "demo"
#: CLIP's byte pairs, in transformers' files.
TOKENIZER = FOLDER.with_name("clip_tokenizer")

#: How a caption says a label, for the labels that edits lead from or to; "" says nothing.
PHRASES = {
    "glasses": {"none": "without glasses", "glasses": "wearing glasses", "sunglasses": "wearing sunglasses"},
    "mouth": {"sad": "sad", "smile": "smiling"},
    "hair_color": {"black": "black hair", "red": "red hair", "blond": "blond hair"},
    "facial_hair": {"none": "clean shaven", "beard": "with a beard"},
    "background": {"blue": "blue background", "green": "green background"},
    "top": {"short": "short hair", "hat": "wearing a hat"},
    "clothes": {"hoodie": "in a hoodie", "suit": "in a suit"},
    "skin": {"pale": "pale skin", "dark": "dark skin"},
}

#: What pictures are sorted by into two folders, as a person would who wants to teach it: name -> its attribute, its
#: label, and the labels of the pictures without it, where () is all others. Look-alikes (sunglasses) are in neither.
SORTED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "glasses": ("glasses", "glasses", ("none",)),
    "a smile": ("mouth", "smile", ()),
    "a beard": ("facial_hair", "beard", ("none",)),
    "red hair": ("hair_color", "red", ()),
}

#: Labels of "top" that show hair.
HAIRED = ("short", "long", "curly", "bun", "bob")


def visible(attribute: str, labels: Mapping[str, str]) -> bool:
    """Whether a picture of these labels shows the attribute.

    Sunglasses hide the eyes; under a hat or on a bald head only a beard has a hair color.
    """
    if attribute == "eyes":
        return labels["glasses"] != "sunglasses"
    return attribute != "hair_color" or labels["top"] in HAIRED or labels["facial_hair"] != "none"


@dataclass(frozen=True, eq=False)
class DemoPair:
    """A portrait and the same portrait after exactly one edit.

    Attributes:
        source, target: ``[3, H, W]`` in 0..1; ``target`` is the *true* edited picture.
        edit: name of the edit, e.g. "mouth: sad to smile".
        attribute, before, after: what changes and from which label to which, e.g. "mouth", "sad", "smile".
        source_caption, target_caption: worded alike but for the edited attribute.
        source_attributes, target_attributes: all ten labels.
    """

    source: Tensor
    target: Tensor
    edit: str
    attribute: str
    before: str
    after: str
    source_caption: str
    target_caption: str
    source_attributes: Mapping[str, str]
    target_attributes: Mapping[str, str]

    @property
    def words(self) -> tuple[str, str]:
        """What to call the source and the target of the edit, for :func:`~..pix2pix_zero.sentences.expand_words`'s
        "portrait" bank.

        Raises:
            EditingError: a label without a phrase.
        """
        phrases = PHRASES.get(self.attribute, {})
        if self.before not in phrases or self.after not in phrases:
            raise EditingError(f"The demo has no words for the edit {self.edit!r}; write your own sentences.")
        return phrases[self.before], phrases[self.after]


def pictures_without(pairs: Iterable[DemoPair], attribute: str, label: str) -> Tensor:
    """Pictures to learn a label from, ``[N, 3, H, W]``: sources of *other* edits that show the attribute otherwise."""
    kept = [pair for pair in pairs if pair.attribute != attribute and visible(attribute, pair.source_attributes)]
    return torch.stack([pair.source for pair in kept if pair.source_attributes[attribute] != label])


class DemoData:
    """Captions, labels and pictures under one folder; pictures are read when first asked for.

    Args:
        folder: holds ``demo.json``, ``images/`` and ``pairs.npz``; the pack's own ``assets/demo`` by default.

    Raises:
        EditingError: the folder or its ``demo.json`` is missing or damaged.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = FOLDER if folder is None else Path(folder)
        try:
            listing = load_json(self.folder / "demo.json", "configuration")
            self._images: list[dict[str, Any]] = list(listing["images"])
            self._pairs: list[dict[str, Any]] = list(listing["pairs"])
            #: One caption for each of :attr:`images`.
            self.captions: list[str] = [entry["caption"] for entry in self._images]
            #: The labels of each of :attr:`images`: attribute -> label.
            self.attributes: list[dict[str, str]] = [dict(entry["attributes"]) for entry in self._images]
            #: Names of the edits that :attr:`pairs` has, in order.
            self.edits: list[str] = list(dict.fromkeys(entry["edit"] for entry in self._pairs))
        except (ValueError, KeyError, TypeError) as error:
            raise damaged("demo.json") from error

    @cached_property
    def images(self) -> Tensor:
        """The portraits, ``[N, 3, H, W]`` in 0..1.

        Raises:
            EditingError: a picture is missing or damaged.
        """
        pictures = []
        for entry in self._images:
            try:
                pictures.append(np.asarray(decoded(self.folder / entry["file"])))
            except (EditingError, KeyError, TypeError) as error:
                raise damaged(str(entry.get("file", "demo.json"))) from error
        return to_unit(np.stack(pictures))

    @cached_property
    def pairs(self) -> list[DemoPair]:
        """The counterfactual pairs, in the order of ``demo.json``.

        Raises:
            EditingError: ``pairs.npz`` is missing, damaged or of another length.
        """
        try:
            with np.load(self.folder / "pairs.npz", allow_pickle=False) as stored:
                pictures = stored["images"]
            return [
                DemoPair(
                    source=to_unit(picture[0]),
                    target=to_unit(picture[1]),
                    edit=entry["edit"],
                    attribute=entry["attribute"],
                    before=entry["from"],
                    after=entry["to"],
                    source_caption=entry["source_caption"],
                    target_caption=entry["target_caption"],
                    source_attributes=dict(entry["source_attributes"]),
                    target_attributes=dict(entry["target_attributes"]),
                )
                for entry, picture in zip(self._pairs, pictures, strict=True)
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged("pairs.npz") from error

    def sorted_by(self, what: str) -> tuple[list[tuple[Tensor, str]], list[tuple[Tensor, str]]]:
        """Pictures ``[3, H, W]`` with their captions: those that have it and those that have it not.

        Of each pair one at most, in a random order.

        Args:
            what: one of :data:`SORTED`.
        """
        attribute, label, others = SORTED[what]
        having: list[tuple[Tensor, str]] = []
        without: list[tuple[Tensor, str]] = []
        seen: set[bytes] = set()
        for number in torch.randperm(len(self.pairs), generator=torch.Generator().manual_seed(0)).tolist():
            pair = self.pairs[number]
            sides = [
                ((pair.source, pair.source_caption), pair.source_attributes),
                ((pair.target, pair.target_caption), pair.target_attributes),
            ]
            names = {side[0].numpy().tobytes() for side, _ in sides}
            shown = [(side, labels[attribute]) for side, labels in sides if visible(attribute, labels)]
            own = [side for side, has in shown if has == label]
            rest = [side for side, has in shown if has != label and (has in others or not others)]
            if names & seen or not own + rest:
                continue  # some pictures are in several pairs
            seen |= names
            if own and (len(having) <= len(without) or not rest):
                having.append(own[0])
            else:
                without.append(rest[0])
        return having, without

    def pairs_of(self, edit: str) -> list[DemoPair]:
        """The pairs of one edit.

        Raises:
            EditingError: no such edit.
        """
        if edit not in self.edits:
            raise EditingError(f"The demo has no pairs for {edit!r}; use one of: {'; '.join(self.edits)}.")
        return [pair for pair in self.pairs if pair.edit == edit]


def embedding_files(folder: str | Path = FOLDER) -> dict[str, Path]:
    """The learned embeddings in ``embeddings/`` of a demo folder: name -> file, in the order of names."""
    return {path.stem: path for path in sorted((Path(folder) / "embeddings").glob("*.safetensors"))}


def damaged(name: str) -> EditingError:
    """The error for a demo file that is missing or unreadable."""
    return EditingError(
        f"The demo model's {name} is missing or damaged; install the pack again with its assets folder."
    )


def to_unit(pictures: np.ndarray) -> Tensor:
    """``[..., H, W, 3]`` bytes -> ``[..., 3, H, W]`` floats in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, -1, -3))).float() / 255

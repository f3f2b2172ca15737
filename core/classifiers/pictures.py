"""Labelled pictures to train a classifier with, from folders or from a batch and its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..file_names import check_characters, shown_name
from ..images.files import picture_files, read_folder, read_picture, skipped_report


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Pictures at a classifier's size with their classes.

    Attributes:
        pixels: ``[N, 3, h, w]`` uint8.
        labels: ``[N]`` long, indices into ``classes``.
        classes: names.
        skipped: names of the files that could not be read.
    """

    pixels: Tensor
    labels: Tensor
    classes: list[str]
    skipped: list[str] = field(default_factory=list)

    def counts(self) -> list[int]:
        """Pictures of each class."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def describe(self) -> str:
        """Classes and their numbers, and what was skipped, in one or two lines."""
        lines = ", ".join(f"{name} {count}" for name, count in zip(self.classes, self.counts(), strict=True))
        return f"pictures: {lines}" + (f"\n{skipped_report(self.skipped)}" if self.skipped else "")


def to_bytes(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``images [B, 3, H, W]`` in 0..1 -> ``[B, 3, h, w]`` uint8, resized as classifiers resize."""
    if tuple(images.shape[-2:]) != tuple(size):
        images = functional.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def pictures_from_folders(
    folders: Sequence[str | Path], size: tuple[int, int], callback: Callable[[int, int], None] | None = None
) -> LabelledPictures:
    """One folder for each class, its name being the class's; or a single folder whose sub-folders are the classes.

    Raises:
        EditingError: fewer than two classes, two of the same name, a folder missing or without a readable picture, or a
            class with fewer than two pictures.
    """
    chosen = [Path(folder) for folder in folders]
    if len(chosen) == 1:
        if not chosen[0].is_dir():
            raise EditingError(f"The folder '{shown_name(chosen[0].name)}' was not found; check its name.")
        try:
            chosen = sorted(p for p in chosen[0].iterdir() if p.is_dir() and not p.name.startswith("."))
        except OSError as error:
            raise EditingError(
                f"The folder '{shown_name(chosen[0].name)}' cannot be read ({error.strerror}); check its permissions."
            ) from error
    if len(chosen) < 2:
        raise EditingError(
            "A classifier needs at least two classes; give two or more folders, or one with a sub-folder for each "
            "class."
        )
    names = [check_characters(folder.name, "folder name") for folder in chosen]
    if len(set(names)) != len(names):
        raise EditingError("Two of the folders have the same name, which is their class's; rename one of them.")
    total = sum(len(picture_files(folder)) for folder in chosen)
    pixels, labels, skipped, done = [], [], [], 0
    for index, folder in enumerate(chosen):

        def report(number: int, _: int, done: int = done) -> None:
            if callback is not None:
                callback(done + number, total)

        read, bad = read_folder(folder, lambda path: to_bytes(read_picture(path, multiple=1)[0], size), report)
        done += len(read) + len(bad)
        pixels.append(read)
        labels.append(torch.full((len(read),), index, dtype=torch.long))
        skipped += [f"{folder.name}/{name}" for name in bad]
    return checked(LabelledPictures(torch.cat(pixels), torch.cat(labels), names, skipped))


def pictures_from_batch(images: Tensor, labels: Sequence[str], size: tuple[int, int]) -> LabelledPictures:
    """``images [N, 3, H, W]`` in 0..1 and one class name for each.

    Raises:
        EditingError: numbers that differ, empty labels, pixels that are not numbers, or too few of a class.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise EditingError(
            f"The images have shape {list(images.shape)}; a classifier needs [batch, 3, height, width] in 0..1."
        )
    names = [label.strip() for label in labels]
    if len(names) != len(images):
        raise EditingError(
            f"There are {len(images)} images but {len(names)} labels; give one label for each image, in the same order."
        )
    if not all(names):
        raise EditingError(f"Label {names.index('') + 1} is empty; give every image the name of its class.")
    if not bool(torch.isfinite(images).all()):
        raise EditingError(
            "The images hold values that are not numbers (NaN or infinity); check the node that makes them."
        )
    classes = sorted(set(names))
    if len(classes) < 2:
        raise EditingError(
            f"All images have the label {classes[0]!r}; a classifier needs at least two classes."
            if classes
            else "There are no images."
        )
    return checked(
        LabelledPictures(to_bytes(images, size), torch.tensor([classes.index(name) for name in names]), classes)
    )


def checked(pictures: LabelledPictures) -> LabelledPictures:
    """``pictures`` if every class has two, one to learn from and one to test with.

    Raises:
        EditingError: one has fewer.
    """
    for name, count in zip(pictures.classes, pictures.counts(), strict=True):
        if count < 2:
            raise EditingError(
                f"The class {name!r} has {count} readable picture(s); give at least 2, better 50 or more."
            )
    return pictures


def split(labels: Tensor, part: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``(train, test)`` row numbers: of every class ``part``, at least one and not all, is set aside at random."""
    train, test = [], []
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        aside = min(max(1, round(part * len(rows))), len(rows) - 1)
        test.append(rows[:aside])
        train.append(rows[aside:])
    return torch.cat(train), torch.cat(test)

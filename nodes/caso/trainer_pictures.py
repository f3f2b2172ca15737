"""The pictures that CASO Embedding Trainer learns from: folders that are classes, a single folder, or wired batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.file_names import shown_name
from ...core.images.files import check_square, picture_files, picture_folders, square_pictures
from ..host.folders import input_folder
from ..host.progress import counting_bar

NAMED = 10  # files or classes in a sentence
VALIDATION_PART = 4  # one picture of so many is held out at most (rounded up)


@dataclass
class Group:
    """The pictures of one class: ``images [N, H, W, 3]`` in 0..1 and their names."""

    name: str
    images: Tensor
    files: list[str] = field(default_factory=list)


@dataclass
class TrainingPictures:
    """What a training learns from.

    Attributes:
        having: pictures that have it; None where a classifier alone teaches.
        without: groups that have it not; the first gives the held-out pictures, the others are look-alikes.
        skipped: names of files that could not be read.
    """

    having: Group | None
    without: list[Group]
    skipped: list[str]

    def held_out(self, most: int) -> int:
        """How many pictures are not learned from: ``most``, but a quarter of the first group at most."""
        first = len(self.without[0].images)
        learned = sum(len(group.images) for group in self.without) - 1
        return max(0, min(most, math.ceil(first / VALIDATION_PART), learned))

    def all_without(self) -> Tensor:
        """``[N, H, W, 3]``, the held-out ones first."""
        return torch.cat([group.images for group in self.without])

    def sentence(self) -> str:
        """Which classes are told apart, and how many pictures there are of each."""
        first, *others = [f"{group.name} ({len(group.images)})" for group in self.without]
        if self.having is None:
            return f"pictures: {', '.join([first, *others])}"
        also = f" and its look-alikes {', '.join(others)}" if others else ""
        return f"learned: {self.having.name} ({len(self.having.images)} pictures) against {first}{also}"

    def held_out_sentence(self, count: int) -> str:
        """The held-out pictures by name."""
        if not count:
            return "held out: none, so nothing was judged"
        group = self.without[0]
        if not group.files:
            return f"held out: the first {count} of {group.name}"
        more = f" and {count - NAMED} more" if count > NAMED else ""
        return f"held out of {group.name}: {', '.join(map(shown_name, group.files[:count][:NAMED]))}{more}"


def collected(
    folders: str,
    targets: Sequence[str],
    image_size: int,
    having: Tensor | None,
    without: Tensor | None,
    lookalikes: Tensor | None,
) -> tuple[TrainingPictures, tuple[str, ...]]:
    """``(pictures, target classes)`` of the folders named, or of the batches ``[N, H, W, C]``.

    Args:
        folders: one a line, each a class; a single one holds a sub-folder for each class, or is no class but pictures
            for a classifier to teach by.
        targets: classes to learn; none takes the first folder named.

    Raises:
        EditingError: neither, both, or whatever is wrong with them.
    """
    named = [line.strip() for line in folders.splitlines() if line.strip()]
    if without is not None or having is not None or lookalikes is not None:
        if named:
            raise EditingError("Both folders and images are given; empty the folders or unwire the images.")
        if without is None:
            raise EditingError("There are no pictures that have it not; wire without, too.")
        kind = targets[0] if targets else "yes"
        groups = [Group("without", without[..., :3].float())]
        if lookalikes is not None:
            groups.append(Group("lookalikes", fitted(lookalikes, without)))
        own = None if having is None else Group(kind, fitted(having, without))
        return TrainingPictures(own, groups, []), tuple(targets) or (kind,)
    if not named:
        raise EditingError("There are no pictures to learn from; name two folders of pictures, or wire images.")
    check_square(image_size)
    one_a_line = len(named) > 1
    if not one_a_line:
        below = [part for part in picture_folders(input_folder(named[0])) if "/" not in part]
        named = [f"{named[0]}/{part}" for part in below] or named
    for name in named:
        picture_files(input_folder(name))  # all are there before the first is read
    names = [name.replace("\\", "/").rstrip("/").split("/")[-1] for name in named]
    if len(set(names)) < len(names):
        raise EditingError("Two of the folders have the same name, which is their class's; rename one of them.")
    if not targets and len(names) > 1 and not one_a_line:
        raise EditingError(f"Write into targets which class to learn: {in_words(names)}.")
    chosen = tuple(targets) or (names[0],)
    groups, skipped = [], []
    for name, short in zip(named, names, strict=True):
        folder = input_folder(name)
        images, bad = square_pictures(folder, image_size, counting_bar())
        files = [path.name for path in picture_files(folder) if path.name not in bad]
        groups.append(Group(short, images.movedim(1, -1), files))
        skipped += [f"{short}/{file}" for file in bad] if len(named) > 1 else bad
    own = next((group for group in groups if len(groups) > 1 and group.name in chosen), None)
    rest = [group for group in groups if group is not own]
    if own is None and len(groups) > 1 and len(chosen) == 1:
        raise EditingError(
            f"None of the folders is called {chosen[0]!r}; write one of them into targets: {in_words(names)}."
        )
    return TrainingPictures(own, rest, skipped), chosen


def in_words(names: Sequence[str]) -> str:
    """The first :data:`NAMED` names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(map(shown_name, names[:NAMED]))}{more}"


def fitted(images: Tensor, like: Tensor) -> Tensor:
    """``images [N, H, W, C]`` without transparency, if they have the size of ``like``.

    Raises:
        EditingError: they have another size.
    """
    if images.shape[1:3] != like.shape[1:3]:
        raise EditingError(
            f"The wired pictures are {images.shape[2]} x {images.shape[1]} and {like.shape[2]} x {like.shape[1]} "
            "pixels; scale them to one size."
        )
    return images[..., :3].float()

"""The pictures that CASO Embedding Trainer learns from: folders, each a class, or wired batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.file_names import shown_name
from ...core.images.files import check_square, picture_files, square_pictures
from ..host.folders import input_folder
from ..host.progress import counting_bar

NAMED = 10  # files in a sentence
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

    @property
    def classes(self) -> tuple[str, ...]:
        """The class to learn: of the pictures that have it; without any, what a classifier may know by that name."""
        return ("yes",) if self.having is None else (self.having.name,)

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
    folders: Sequence[str],
    image_size: int,
    having: Tensor | None,
    without: Tensor | None,
    lookalikes: Tensor | None,
    called: str,
) -> TrainingPictures:
    """The pictures of folders, or of batches ``[N, H, W, C]``.

    Args:
        folders: inside ComfyUI's input folder: pictures that have it, that have it not, look-alikes; "" for none.
        image_size: side in pixels to which a folder's pictures are scaled and cut.
        called: the class of wired pictures; that of a folder is its name.

    Raises:
        EditingError: neither, both, or whatever is wrong with them.
    """
    if without is not None or having is not None or lookalikes is not None:
        if any(folders):
            raise EditingError("Both folders and images are given; set the folders to none or unwire the images.")
        if without is None:
            raise EditingError("There are no pictures that have it not; wire without, too.")
        groups = [Group("without", without[..., :3].float())]
        if lookalikes is not None:
            groups.append(Group("lookalikes", fitted(lookalikes, without)))
        own = None if having is None else Group(called, fitted(having, without))
        return TrainingPictures(own, groups, [])
    if not any(folders):
        raise EditingError(
            "There are no pictures to learn from; put pictures that have it and pictures that have it not into two "
            "folders inside ComfyUI's input folder and choose them, or wire images."
        )
    if not folders[1]:
        raise EditingError("There are no pictures that have it not; choose without_folder, too.")
    check_square(image_size)
    named = [name for name in folders if name]
    for name in named:
        picture_files(input_folder(name))  # all are there before the first is read
    short = [name.replace("\\", "/").rstrip("/").split("/")[-1] for name in named]
    if len(set(short)) < len(short):
        raise EditingError("Two of the folders have the same name, which is their class's; rename one of them.")
    groups, skipped = [], []
    for name, kind in zip(named, short, strict=True):
        folder = input_folder(name)
        images, bad = square_pictures(folder, image_size, counting_bar())
        files = [path.name for path in picture_files(folder) if path.name not in bad]
        groups.append(Group(kind, images.movedim(1, -1), files))
        skipped += [f"{kind}/{file}" for file in bad]
    return TrainingPictures(groups.pop(0) if folders[0] else None, groups, skipped)


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

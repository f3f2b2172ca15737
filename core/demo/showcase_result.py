"""What ``semantic-editing demo`` made: rows of its contact sheet, pictures and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..images.contact_sheet import Cell


@dataclass
class Showcase:
    """What a run made.

    Attributes:
        rows: titled rows for :func:`~..images.contact_sheet.contact_sheet`.
        pictures: file stem -> image ``[3, H, W]``.
        measures: JSON-able figures.
    """

    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)

    def show(self, stem: str, image: Tensor, caption: str) -> Cell:
        """Keep a picture under ``stem`` and return its cell of the contact sheet."""
        self.pictures[stem] = image
        return image, caption

    def judged(self, stem: str, image: Tensor, name: str, figures: Mapping[str, float]) -> Cell:
        """:meth:`show` of an edit, with what its measures say."""
        said = "edit seen" if figures["success"] else "edit not seen"
        kept, decibel = 100 * figures["others_kept"], figures["psnr_to_true"]
        return self.show(stem, image, f"{name}\n{said}, others kept {kept:.0f} %\n{decibel:.1f} dB to the true one")

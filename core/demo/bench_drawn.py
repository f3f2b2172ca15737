"""The demo bench for techniques that draw the face anew: judged at the generator's size, against its own copy.

A small generator loses more of a face than an edit changes, so a success or a loss only counts against the same picture
without the edit: the generator's copy of the source for what it drew, the photo for what was pasted back into it. And
pictures of two sizes are compared with the truth at the smaller one, each of whose pixels is the mean of what it
covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..errors import EditingError
from ..metrics.image import attributes_kept, psnr, ssim, success
from .bench import NOTHING, Outcome, Row, decibels, number, share
from .data import DemoPair
from .model import DemoModel


@dataclass(eq=False)
class DrawnJudgement:
    """The judge's eyes on edits that a generator drew, or that were pasted into the photo.

    Args:
        demo: its judge.
        pairs: what is edited, all by the same edit.
        copies: what the generator makes of the sources without an edit, ``[N, 3, S, S]`` in 0..1.

    Raises:
        EditingError: no pairs, another number of copies, or copies whose size does not divide the pairs'.
    """

    demo: DemoModel
    pairs: Sequence[DemoPair]
    copies: Tensor

    def __post_init__(self) -> None:
        if not self.pairs:
            raise EditingError("There are no pairs to measure; choose an edit of the demo or a folder with pairs.")
        self.sources, self.truths = (
            torch.stack([getattr(pair, side) for pair in self.pairs]) for side in ("source", "target")
        )
        self.side, self.small = self.sources.shape[-1], self.copies.shape[-1]
        if len(self.copies) != len(self.pairs) or self.side % self.small:
            raise EditingError(
                f"The generator's copies have shape {list(self.copies.shape)}, the pairs {list(self.sources.shape)}; "
                "give one copy for each pair, of a size that divides theirs."
            )
        self._unedited = {size: self._seen(images) for size, images in ((self.small, self.copies), (0, self.sources))}
        same = ((self.sources - self.truths).abs().amax(1, keepdim=True) == 0).float()
        self._stays = (self._shrunk(same) == 1).float()

    def _seen(self, images: Tensor) -> list[dict[str, str]]:
        """What the judge sees; smaller pictures are enlarged to the size that it knows."""
        if images.shape[-1] != self.side:
            images = interpolate(images, (self.side, self.side), mode="bicubic").clamp(0, 1)
        return self.demo.judge.labels(images)

    def _shrunk(self, images: Tensor) -> Tensor:
        factor = images.shape[-1] // self.small
        return avg_pool2d(images, factor) if factor > 1 else images

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Figures of ``images [N, 3, H, H]`` in 0..1, one for each pair, drawn (of the copies' size) or pasted (of the
        pairs').

        Returns:
            Those of :class:`~.bench.Row`; "success" is NaN where the same picture without the edit does not read as the
            source, and "kept_rebuilt" compares with that picture. "psnr", "ssim" and "outside" are of the copies' size;
            "psnr_photo", of pasted pictures, is of the pairs'.

        Raises:
            EditingError: another number or size of pictures.
        """
        height, width = images.shape[-2:]
        if len(images) != len(self.pairs) or height != width or height not in (self.small, self.side):
            raise EditingError(
                f"The pictures have shape {list(images.shape)}; give one for each of {len(self.pairs)} pairs, of "
                f"{self.small} or {self.side} pixels."
            )
        pair = self.pairs[0]
        seen, unedited = self._seen(images), self._unedited[self.small if height == self.small else 0]
        reads = torch.tensor([labels[pair.attribute] == pair.before for labels in unedited])
        shrunk, truths = self._shrunk(images), self._shrunk(self.truths)
        figures = {
            "success": torch.where(reads, success(seen, {pair.attribute: pair.after}).double(), torch.nan),
            "kept": attributes_kept(seen, [one.target_attributes for one in self.pairs], pair.attribute),
            "kept_rebuilt": attributes_kept(seen, unedited, pair.attribute),
            "psnr": psnr(shrunk, truths),
            "ssim": ssim(shrunk, truths),
            "outside": psnr(shrunk, self._shrunk(self.sources), self._stays),
        }
        if height == self.side:
            figures["psnr_photo"] = psnr(images, self.truths)
        return {name: values.double() for name, values in figures.items()}

    def nothing(self) -> Row:
        """The photo as it is."""
        return Row(NOTHING, self.measure(self.sources))

    def row(self, name: str, outcomes: Sequence[Outcome], seconds: float | None = None) -> Row:
        """The figures of a method that drew every pair."""
        return Row(name, self.measure(torch.stack([outcome.picture for outcome in outcomes])), seconds=seconds)


def drawn_table(rows: Sequence[Row], size: int) -> str:
    """Markdown, one row a method: mean with its 95 % interval, the worst picture beside it, n.

    Args:
        size: of the generator's pictures, in pixels.
    """
    lines = [
        f"| method | success | of n | others kept, as in truth | as without the edit | PSNR to true at {size} px, dB | "
        "worst, dB | SSIM | outside the edit, dB | PSNR to true, whole photo, dB | seconds | n |",
        "|---" * 12 + "|",
    ]
    for row in rows:
        figures = row.figures
        counted = figures["success"][~figures["success"].isnan()]
        cells = [
            row.name,
            share(counted) if len(counted) else "",
            str(len(counted)),
            share(figures["kept"]),
            share(figures["kept_rebuilt"]),
            decibels(figures["psnr"], True),
            number(float(figures["psnr"].min())),
            f"{float(figures['ssim'].mean()):.3f}",
            decibels(figures["outside"], False),
            decibels(figures.get("psnr_photo"), True),
            "" if row.seconds is None else f"{row.seconds:.1f}",
            str(len(figures["kept"])),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

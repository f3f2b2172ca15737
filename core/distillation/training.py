"""Teaching a :class:`~.network.DistilledEditor` an edit by pairs (pix2pix-zero, section 4.5 and appendix A).

The paper's loss is L1 with LPIPS, whose weights do not ship with anything here. In its place stand the L1 errors of the
pictures' gradients at several scales. The pairs are augmented as the paper has it: shifted, recoloured, noisy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.func import functional_call

from ..content_hash import content_hash
from ..errors import EditingError
from ..images.curves import curves_plot
from ..metrics.image import psnr
from ..training import Best, Titles, Trainer
from .network import DistilledEditor, EditorShape, editor_like, gate
from .pairs import EditPairs, only_edited

#: Halvings of a picture at which its gradients are compared.
SCALES = 3
#: What the gradients and the mask count in the loss, beside an L1 error of 1.
GRADIENTS, MASK = 1.0, 0.1
#: Augmentation: shift as a share of the shorter side, factor and offset of the colours, deviation of the noise.
SHIFT, CONTRAST, BRIGHTNESS, NOISE = 1 / 16, 0.1, 0.05, 0.01
FEWEST, MOST_HELD = 4, 64  # pairs in all, and held out
TOGETHER = 8  # held-out pictures that are edited at once


@dataclass(frozen=True)
class DistillationSettings:
    """How an edit is distilled.

    Attributes:
        learning_rate: of AdamW; it falls to nearly nothing over the steps, after ``warm_up`` steps of rising.
        averaging: how much of their running mean the weights keep at each step; that mean is what is kept.
        keep_outside: learn no change where the edit changed nothing to be seen; False: copy the edit, losses and all.
        flip: mirror half of the pairs.
        augment: factor of shifts, colours and noise; 0 is off.
        held_out: share of the pairs that are not learned from, one at least and :data:`MOST_HELD` at most.
        check_every: steps between looks at these.
    """

    steps: int = 600
    batch: int = 8
    learning_rate: float = 2e-3
    warm_up: int = 30
    averaging: float = 0.98
    keep_outside: bool = True
    flip: bool = True
    augment: float = 1.0
    held_out: float = 0.1
    check_every: int = 100
    seed: int = 0

    def check(self) -> None:
        """Raise :class:`EditingError` for what cannot be trained with."""
        for name in ("steps", "batch", "check_every"):
            if getattr(self, name) < 1:
                raise EditingError(f"{name} is {getattr(self, name)}; use 1 or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise EditingError(f"The learning rate is {self.learning_rate}; use more than 0.")
        if not (0 < self.held_out < 1 and 0 <= self.averaging < 1 and self.augment >= 0):
            raise EditingError(
                f"held_out is {self.held_out}, averaging {self.averaging}, augment {self.augment}; use shares between "
                "0 and 1, and 0 or more."
            )


@dataclass(frozen=True)
class Validation:
    """What the network makes of the held-out pairs.

    Attributes:
        step: after which.
        error: mean L1 error to the edited pictures, inside and outside the edited region alike: what is minimised.
        psnr: dB to them, mean over the pictures.
    """

    step: int
    error: float
    psnr: float


def region_means(values: Tensor, region: Tensor) -> Tensor:
    """Mean of ``values [B, C, H, W]`` over ``region [B, 1, H, W]`` plus that over the rest, a scalar.

    A small edit would be lost in a mean over the whole picture. A part without a pixel counts nothing.
    """
    grey = values.mean(1, keepdim=True)
    inside, outside = ((grey * part).sum() / part.sum().clamp(min=1) for part in (region, 1 - region))
    return inside + outside


def edit_loss(made: Tensor, wanted: Tensor, region: Tensor) -> Tensor:
    """How far ``made`` is from ``wanted``, ``[B, 3, H, W]`` in 0..1: L1 of colours, and of gradients at several scales.

    Args:
        region: ``[B, 1, H, W]``, where the edit is; it counts as much as all the rest.
    """
    total = region_means((made - wanted).abs(), region)
    error = made - wanted
    for scale in range(SCALES):
        if min(error.shape[-2:]) < 2:
            break
        down, across = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
        part = region_means(down.abs(), region[..., 1:, :]) + region_means(across.abs(), region[..., 1:])
        total = total + GRADIENTS / SCALES * part
        if scale < SCALES - 1:
            error, region = functional.avg_pool2d(error, 2), functional.avg_pool2d(region, 2)
    return total


class DistillationTrainer(Trainer[DistilledEditor]):
    """Trains an editor, see :class:`~..training.Trainer`; what is learned from and held out are pairs.

    Args:
        pairs: to learn from; on the CPU.
        source, target: the edit in words, for the file.

    Raises:
        EditingError: too few pairs, or settings out of range.
    """

    titles = Titles(
        made="edit",
        kind="distillation training",
        file_format="semantic_editing.distillation_training",
        judged_by="error",
        another="another value of {}; use the same one",
    )
    look = Validation

    def __init__(
        self,
        pairs: EditPairs,
        shape: EditorShape,
        settings: DistillationSettings,
        device: str | torch.device = "cpu",
        source: str = "",
        target: str = "",
    ):
        settings.check()
        if len(pairs) < FEWEST:
            raise EditingError(
                f"There are only {len(pairs)} pairs to learn from; make at least {FEWEST}, best hundreds."
            )
        self.pairs, self.shape = pairs, shape
        super().__init__(settings, len(pairs), min(max(round(settings.held_out * len(pairs)), 1), MOST_HELD), device)
        with torch.inference_mode(False), self._seeded(-1):
            self.editor = DistilledEditor(shape).to(self.device)
            self.editor.side, self.editor.source, self.editor.target = pairs.side, source, target
            self._learn(self.editor, weight_decay=0.01)
        self.nothing = self._nothing_done()

    def _loss(self) -> Tensor:
        before, wanted, region = self._batch()
        self.editor.train()
        change, logits = self.editor.look(before)
        loss = edit_loss(before + gate(logits) * change, wanted, region)
        return loss + MASK * functional.binary_cross_entropy_with_logits(logits, region)

    def averaging(self, step: int) -> float:
        """The first mean forgets sooner."""
        return min(super().averaging(step), (1 + step) / (10 + step))

    def _finished(self, found: Best) -> DistilledEditor:
        with torch.inference_mode(False):
            made = editor_like(self.shape, self.editor.state_dict() | found.weights, self.editor)
        result = self._validation(found.weights)
        made.facts = {
            "pairs": f"{len(self.train)} and {len(self.held)} held out",
            "steps": f"{found.step} of {self.step}",
            "held-out PSNR": f"{result.psnr:.2f}",
            "held-out PSNR, nothing done": f"{self.nothing.psnr:.2f}",
            "training": self.fingerprint(),
        }
        return made

    @torch.no_grad()
    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(before, what the best makes of it, what the edit made)`` of the first held-out pairs, ``[b, 3, H, W]``."""
        before, wanted, _ = self._wanted(self.held[:TOGETHER])
        made = self._edited(self.best_found.weights or self.averages, before)
        return before.cpu(), made.cpu(), wanted.cpu()

    def plot(self) -> Tensor:
        """Loss and held-out PSNR over the steps, ``[H, W, 3]`` in 0..1; a line marks what is kept."""
        last = f", now {self.validations[-1].psnr:.1f}" if self.validations else ""
        panels = {
            "loss of the training pairs": {"training": self.smoothed()},
            f"held-out PSNR in dB (nothing done {self.nothing.psnr:.1f}{last})": {
                "nothing done": [self.nothing.psnr] * max(self.step, 1),
                "held-out": self.looked("psnr"),
            },
        }
        return curves_plot(panels, mark=self.mark(), axis="step")

    def _told(self, look: Validation) -> str:
        return f"held-out {look.psnr:.1f} dB (nothing done {self.nothing.psnr:.1f})"

    def report(self, editor: DistilledEditor) -> str:
        """What ``editor``, the result of :meth:`~..training.Trainer.best`, has come to, in a few lines."""
        facts, count = editor.facts, sum(value.numel() for value in editor.parameters())
        lines = [
            f"{facts['pairs']}; {count / 1e6:.2f} million weights; best at step {facts['steps']}",
            f"held-out pairs, PSNR to the edit: {facts['held-out PSNR']} dB",
            f"nothing done: {facts['held-out PSNR, nothing done']} dB",
            self.broken,
        ]
        return "\n".join(filter(None, lines))

    def run_facts(self) -> dict[str, Any]:
        """What must be the same for a training to go on; it may look more often."""
        settings = {key: value for key, value in asdict(self.settings).items() if key != "check_every"}
        shape = {"fold": self.shape.fold, "widths": list(self.shape.widths), "blocks": self.shape.blocks}
        return settings | shape | {"pairs": self._pairs_hash}

    @cached_property
    def _pairs_hash(self) -> str:
        return content_hash(self.pairs.before, self.pairs.after)

    def _wanted(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(before, after as it is to be learned, edited region)`` of some pairs, on the device."""
        before, after = (part.to(self.device) for part in self.pairs.floats(rows))
        wanted, region = only_edited(before, after)
        return before, wanted if self.settings.keep_outside else after, region

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next step's pairs, augmented: what is done to a picture is done to its edit, too; noise is added to the
        picture alone, and stays where the edit changes nothing."""
        rows = self.train[torch.randint(len(self.train), (self.settings.batch,))]
        before, wanted, region = self._wanted(rows)
        together = torch.cat([before, wanted, region], 1)
        if self.settings.flip:
            mirrored = (torch.rand(len(rows), 1, 1, 1) < 0.5).to(self.device)
            together = torch.where(mirrored, together.flip(3), together)
        amount = self.settings.augment
        if amount:
            together = shifted(together, round(amount * SHIFT * self.pairs.side))
            before, wanted, region = together.split((3, 3, 1), 1)
            contrast = 1 + amount * CONTRAST * (2 * torch.rand(len(rows), 3, 1, 1) - 1).to(self.device)
            brightness = amount * BRIGHTNESS * (2 * torch.rand(len(rows), 1, 1, 1) - 1).to(self.device)
            before, wanted = ((part * contrast + brightness).clamp(0, 1) for part in (before, wanted))
            noise = amount * NOISE * torch.randn(before.shape).to(self.device)
            outside = 1 - region if self.settings.keep_outside else 0
            return before + noise, wanted + outside * noise, region
        before, wanted, region = together.split((3, 3, 1), 1)
        return before, wanted, region

    def _edited(self, weights: Mapping[str, Tensor], before: Tensor) -> Tensor:
        self.editor.eval()
        edited: Tensor = functional_call(self.editor, dict(weights), (before,))
        return edited

    @torch.no_grad()
    def _validation(self, weights: Mapping[str, Tensor]) -> Validation:
        return self._measured(lambda before: self._edited(weights, before))

    def _nothing_done(self) -> Validation:
        return self._measured(lambda before: before)

    def _measured(self, edit: Callable[[Tensor], Tensor]) -> Validation:
        errors, decibels = [], []
        for rows in self.held.split(TOGETHER):
            before, wanted, region = self._wanted(rows)
            made = edit(before)
            if not made.isfinite().all():
                return Validation(self.step, math.nan, math.nan)
            for difference, part in zip((made - wanted).abs(), region, strict=True):
                errors.append(float(region_means(difference[None], part[None])))
            decibels.append(psnr(made.cpu(), wanted.cpu()).clamp(max=99))
        return Validation(self.step, sum(errors) / len(errors), float(torch.cat(decibels).mean()))


def shifted(images: Tensor, most: int) -> Tensor:
    """``images [B, C, H, W]`` each moved by up to ``most`` pixels either way, by lot; borders are continued."""
    if most < 1:
        return images
    height, width = images.shape[-2:]
    padded = functional.pad(images, (most,) * 4, mode="replicate")
    moves = torch.randint(2 * most + 1, (len(images), 2)).tolist()
    return torch.stack(
        [part[:, top : top + height, left : left + width] for part, (top, left) in zip(padded, moves, strict=True)]
    )

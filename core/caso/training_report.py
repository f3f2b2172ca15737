"""A training of embeddings as pictures: its curves, and what the embeddings do to the held-out portraits."""

from __future__ import annotations

import math

from PIL import Image
from torch import Tensor

from ..errors import EditingError
from ..images.contact_sheet import contact_sheet
from ..images.curves import curves_plot
from .training import EmbeddingTrainer

SHOWN = 8  # held-out pictures of each class


def training_plot(trainer: EmbeddingTrainer) -> Tensor:
    """Loss and accuracy over the steps, ``[H, W, 3]`` in 0..1, and their last values in words; a line marks the step that was kept.

    Blue is the training batch; red are the held-out pictures, whose figures stand until the next look at them.
    """
    loss, accuracy = [float("nan")], [float("nan")]
    for entry in trainer.history:
        loss.append(loss[-1] if entry.held is None else entry.held.loss)
        accuracy.append(accuracy[-1] if entry.held is None else entry.held.accuracy)
    trained = {
        "loss": [entry.loss for entry in trainer.history],
        "accuracy": [entry.accuracy for entry in trainer.history],
    }
    panels = {
        f"loss{_now(trained['loss'], loss, '.3f')}": {"training": trained["loss"], "held-out": loss[1:]},
        f"classified as asked{_now(trained['accuracy'], accuracy, '.0%')}": {
            "training": trained["accuracy"],
            "held-out": accuracy[1:],
        },
    }
    return curves_plot(panels, mark=trainer.best_found.step if trainer.best_found.vectors else None, axis="step")


def _now(trained: list[float], held: list[float], form: str) -> str:
    """The last figures in words, so that a person can read them while it runs."""
    parts = [
        f" {trained[-1]:{form}}" if trained else "",
        "" if math.isnan(held[-1]) else f" (held-out {held[-1]:{form}})",
    ]
    return "".join(parts)


def progress_line(trainer: EmbeddingTrainer) -> str:
    """Where the training is, in one line: the figures of the last step, and of the last look at the held-out pictures."""
    last = trainer.history[-1]
    looks = [entry.held for entry in trainer.history if entry.held is not None]
    held = f"; held-out: loss {looks[-1].loss:.3f}, {looks[-1].accuracy:.0%} as asked" if looks else ""
    return f"step {trainer.step} of {trainer.settings.steps}: loss {last.loss:.3f}, {last.accuracy:.0%} as asked{held}"


def sample_sheet(trainer: EmbeddingTrainer, scale: int = 1) -> Image.Image:
    """The last look at the first :data:`SHOWN` held-out pictures: a row for each target class.

    Raises:
        EditingError: nothing was held out, or it was not looked at yet (since resuming).
    """
    images = last_pictures(trainer)
    if images is None:
        raise EditingError("There is no look at held-out pictures yet; hold some out and train for some steps.")
    rows = []
    groups = images.chunk(len(trainer.settings.targets))
    for target, images in zip(trainer.settings.targets, groups, strict=True):
        rows.append((f"{trainer.settings.attribute}: {target}", [(image, "") for image in images[:SHOWN]]))
    return contact_sheet(rows, scale)


def last_pictures(trainer: EmbeddingTrainer) -> Tensor | None:
    """Pictures ``[K * H, 3, H', W']`` of the last look of this run that has some; None if there is none yet."""
    looks = (entry.held for entry in reversed(trainer.history))
    return next((look.images for look in looks if look is not None and look.images is not None), None)

"""A training of embeddings as pictures and words: its curves, and what the embeddings do to the validation pictures."""

from __future__ import annotations

import math

from PIL import Image
from torch import Tensor

from ..errors import EditingError
from ..images.contact_sheet import contact_sheet
from ..images.curves import curves_plot
from .training import EmbeddingTrainer

SHOWN = 8  # validation pictures of each class


def training_plot(trainer: EmbeddingTrainer) -> Tensor:
    """Loss and accuracy over the steps, ``[H, W, 3]`` in 0..1, their last values in words; a line marks the step that
    was kept.

    Blue is the training batch, red are the validation pictures, whose figures stand until the next validation.
    """
    loss, accuracy = [float("nan")], [float("nan")]
    for entry in trainer.history:
        loss.append(loss[-1] if entry.validation is None else entry.validation.loss)
        accuracy.append(accuracy[-1] if entry.validation is None else entry.validation.accuracy)
    trained = {
        "loss": [entry.loss for entry in trainer.history],
        "accuracy": [entry.accuracy for entry in trainer.history],
    }
    judged = "classified as asked" if trainer.settings.classification else "told apart"
    panels = {
        f"loss{_last(trained['loss'], loss, '.3f')}": {"training": trained["loss"], "held-out": loss[1:]},
        f"{judged}{_last(trained['accuracy'], accuracy, '.0%')}": {
            "training": trained["accuracy"],
            "held-out": accuracy[1:],
        },
    }
    return curves_plot(panels, mark=trainer.best_found.step if trainer.best_found.vectors else None, axis="step")


def _last(trained: list[float], validation: list[float], form: str) -> str:
    """The last figures in words, so that a person can read them while it runs."""
    parts = [
        f" {trained[-1]:{form}}" if trained else "",
        "" if math.isnan(validation[-1]) else f" (held-out {validation[-1]:{form}})",
    ]
    return "".join(parts)


def progress_line(trainer: EmbeddingTrainer) -> str:
    """Where the training is, in one line: the figures of the last step and of the last validation."""
    last = trainer.history[-1]
    results = [entry.validation for entry in trainer.history if entry.validation is not None]
    judged = "success {:.0%}" if trainer.look is not None else "{:.0%} as asked"
    validation = f"; held-out: loss {results[-1].loss:.3f}, {judged.format(results[-1].accuracy)}" if results else ""
    share = f"{last.accuracy:.0%} {'as asked' if trainer.settings.classification else 'told apart'}"
    return f"step {trainer.step} of {trainer.settings.steps}: loss {last.loss:.3f}, {share}{validation}"


def sample_contact_sheet(trainer: EmbeddingTrainer, images: Tensor | None = None, scale: int = 1) -> Image.Image:
    """The first :data:`SHOWN` validation pictures: a row for each target class.

    Args:
        images: ``[K * V, 3, H, W]`` in 0..1; those of the last validation by default.

    Raises:
        EditingError: there are no validation pictures, or there was no validation yet (since resuming).
    """
    images = last_pictures(trainer) if images is None else images
    if images is None:
        raise EditingError("There is no look at held-out pictures yet; hold some out and train for some steps.")
    rows = []
    groups = images.chunk(len(trainer.settings.targets))
    for target, images in zip(trainer.settings.targets, groups, strict=True):
        rows.append((f"{trainer.settings.attribute}: {target}", [(image, "") for image in images[:SHOWN]]))
    return contact_sheet(rows, scale)


def last_pictures(trainer: EmbeddingTrainer) -> Tensor | None:
    """Pictures ``[K * V, 3, H, W]`` of the last validation of this run; None if there was none yet."""
    results = (entry.validation for entry in reversed(trainer.history))
    return next((result.images for result in results if result is not None and result.images is not None), None)

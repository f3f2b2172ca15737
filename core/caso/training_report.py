"""A training of embeddings as pictures: its curves, and what the embeddings do to the held-out portraits."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ..curves_plot import curves_plot
from ..errors import EditingError
from ..sheet import contact_sheet
from .settings import HeldCheck
from .training import EmbeddingTrainer


def training_plot(trainer: EmbeddingTrainer) -> Tensor:
    """Loss and accuracy over the steps, ``[H, W, 3]`` in 0..1; a line marks the step that was kept.

    Blue is the training batch; red are the held-out pictures, whose figures stand until the next look at them.
    """
    loss, accuracy = [float("nan")], [float("nan")]
    for entry in trainer.history:
        loss.append(loss[-1] if entry.held is None else entry.held.loss)
        accuracy.append(accuracy[-1] if entry.held is None else entry.held.accuracy)
    panels = {
        "loss: training blue, held-out red": {"training": [entry.loss for entry in trainer.history], "held": loss[1:]},
        "classified as asked": {"training": [entry.accuracy for entry in trainer.history], "held": accuracy[1:]},
    }
    return curves_plot(panels, mark=max(trainer.best_found.step, 0), axis="step")


def sample_sheet(trainer: EmbeddingTrainer, scale: int = 1) -> Image.Image:
    """The last look at the held-out pictures: a row for each target class.

    Raises:
        EditingError: nothing was held out, or it was not looked at yet.
    """
    check: HeldCheck | None = next((entry.held for entry in reversed(trainer.history) if entry.held is not None), None)
    if check is None:
        raise EditingError("There is no look at held-out pictures yet; hold some out and train for some steps.")
    rows = []
    groups = check.images.chunk(len(trainer.settings.targets))
    for target, images in zip(trainer.settings.targets, groups, strict=True):
        rows.append((f"{trainer.settings.attribute}: {target}", [(image, "") for image in images]))
    return contact_sheet(rows, scale)

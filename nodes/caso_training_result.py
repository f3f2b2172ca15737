"""What a training of embeddings leaves: files, pictures and a few figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.caso.embedding import SemanticEmbedding
from ..core.caso.training import EmbeddingTrainer
from ..core.caso.training_report import last_pictures, sample_sheet, training_plot
from ..core.denoiser import Evaluations
from ..core.errors import EditingError
from ..core.pictures import save_picture
from ..core.sheet import to_picture
from .caso_embeddings import FOLDER
from .host import output_path

TRAININGS = "embedding_trainings"


@dataclass(frozen=True)
class Files:
    """Where a training writes: an embedding for each target class, two pictures, and the state to go on from."""

    embeddings: list[Path]
    samples: Path
    plot: Path
    state: Path

    @staticmethod
    def named(filename: str, targets: tuple[str, ...]) -> Files:
        """One class is saved under ``filename`` itself, several with the class's name added.

        Raises:
            EditingError: an unusable name.
        """
        first = output_path(FOLDER, filename)
        stems = [first.stem] if len(targets) == 1 else [f"{first.stem}_{target.replace(' ', '_')}" for target in targets]
        embeddings = [output_path(FOLDER, stem) for stem in stems]
        pictures = (first.with_name(f"{first.stem}.{kind}.png") for kind in ("preview", "training"))
        return Files(embeddings, *pictures, output_path(TRAININGS, filename))

    def check(self, overwrite: bool) -> None:
        """Raise :class:`EditingError` if an embedding exists and may not be replaced."""
        for path in self.embeddings:
            if path.exists() and not overwrite:
                raise EditingError(f"{path.name} exists already; choose another name or allow overwriting.")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training has come to: embeddings, figures, and pictures ``[H, W, 3]`` in 0..1.

    ``samples`` is None before a look at the held-out pictures, and where none are held out; ``figures_of`` says whose ``loss``
    and ``accuracy`` are given.
    """

    embeddings: list[SemanticEmbedding]
    plot: Tensor
    samples: Tensor | None
    held_out: int
    evaluations: Evaluations
    steps: int
    best_step: int
    figures_of: str
    loss: float
    accuracy: float

    @staticmethod
    def of(trainer: EmbeddingTrainer) -> Outcome:
        """The state of ``trainer``; figures are the held-out pictures' last ones, or the training's where there are none."""
        looks = [entry.held for entry in trainer.history if entry.held is not None]
        last = looks[-1] if looks else (trainer.history[-1] if trainer.history else None)
        loss, accuracy = (float("nan"), float("nan")) if last is None else (last.loss, last.accuracy)
        samples = None if last_pictures(trainer) is None else as_tensor(sample_sheet(trainer))
        return Outcome(
            trainer.best(), training_plot(trainer), samples, 0 if trainer.held is None else len(trainer.held),
            trainer.denoiser.evaluations, trainer.step, trainer.best_found.step + 1,
            "last look" if looks else "last step, in training", loss, accuracy,
        )  # fmt: skip

    def shown(self) -> Tensor:
        """The samples, or the curves where there are none."""
        return self.plot if self.samples is None else self.samples

    def picture(self) -> Any:
        """Curves above samples, as a PIL picture to show while it runs."""
        parts = [self.plot] if self.samples is None else [self.plot, self.samples]
        width = max(part.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1]), value=1.0) for part in parts]
        return to_picture(torch.cat(padded).movedim(-1, 0))

    def save(self, files: Files) -> None:
        """Write embeddings and pictures, each file whole or not at all."""
        for embedding, path in zip(self.embeddings, files.embeddings, strict=True):
            embedding.save(path, overwrite=True)
        pictures = {files.plot: self.plot}
        if self.samples is not None or not self.held_out:  # curves never replace samples that are to come again
            pictures[files.samples] = self.shown()
        for path, picture in pictures.items():
            save_picture(path, to_picture(picture.movedim(-1, 0)), overwrite=True)

    def report(self, files: Files, pictures: int) -> str:
        """A few lines for people."""
        cost = self.evaluations
        return (
            f"saved {', '.join(path.name for path in files.embeddings)}\n"
            f"{self.steps} steps on {pictures} pictures, {self.held_out} held out; best at step {self.best_step}\n"
            f"{self.figures_of}: loss {self.loss:.3f}, {100 * self.accuracy:.0f} % classified as asked\n"
            f"network evaluations: {cost.forward:.0f} forward, {cost.backward:.0f} backward"
        )


def as_tensor(picture: Any) -> Tensor:
    """A PIL picture as ``[H, W, 3]`` in 0..1."""
    size = (picture.height, picture.width, 3)
    return torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).reshape(size).float() / 255

"""What CASO Embedding Trainer writes: what it may replace, and what becomes of it where the disk refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...core.caso.embedding import SemanticEmbedding
from ...core.caso.settings import TrainingSettings
from ...core.caso.training import EmbeddingTrainer
from ...core.caso.training_state import made_by, save_training
from ...core.classifiers.base import ImageClassifier
from ...core.errors import EditingError
from ...core.file_names import check_name
from ...core.images.contact_sheet import to_picture
from ...core.images.files import picture_mark, save_picture
from ...core.writing import check_target
from ..common.saving import Saved, save_or_rescue
from ..host.folders import output_path
from .embeddings import FOLDER

TRAININGS = "embedding_trainings"  # ComfyUI's folder for states to go on from
MARK = "CASO Embedding Trainer"  # in the pictures, by which a resumed training knows its own


@dataclass(eq=False)
class TrainingFiles:
    """Where a training writes: an embedding for each target class, two pictures, and the state to go on from.

    Attributes:
        replaceable: those that this run may replace.
        trouble: why the state could not be saved the last time, "" if it was.
    """

    embeddings: list[Path]
    samples: Path
    plot: Path
    state: Path
    replaceable: set[Path] = field(default_factory=set)
    trouble: str = ""

    @staticmethod
    def named(filename: str, targets: Sequence[str]) -> TrainingFiles:
        """One class is saved under ``filename`` itself, several with the class's name added.

        Raises:
            EditingError: an unusable name, or two classes that would share a file.
        """
        first = output_path(FOLDER, filename)
        stems = (
            [first.stem] if len(targets) == 1 else [f"{first.stem}_{target.replace(' ', '_')}" for target in targets]
        )
        if len({stem.casefold() for stem in stems}) < len(stems):  # some systems do not tell upper case from lower
            raise EditingError("Two of the target classes would be saved under one name; learn them one by one.")
        pictures = (first.with_name(check_name(first.stem, added=f".{kind}.png")) for kind in ("preview", "training"))
        return TrainingFiles([output_path(FOLDER, stem) for stem in stems], *pictures, output_path(TRAININGS, filename))

    def claim(self, overwrite: bool, own: Callable[[Path], bool] | None) -> None:
        """Refuse, before anything is computed, what must not be replaced or cannot be written.

        Args:
            overwrite: everything of these names may be replaced.
            own: whether an existing file is one of the training that is gone on with; None for a new training.

        Raises:
            EditingError: a file exists that is not to be replaced, or a folder cannot be written to.
        """
        for path in (*self.embeddings, self.samples, self.plot, self.state):
            if overwrite or (own is not None and os.path.lexists(path) and own(path)):
                self.replaceable.add(path)
            elif os.path.lexists(path) and own is not None:
                made = "made with these settings" if path in self.embeddings else "from the training to go on with"
                raise EditingError(
                    f"{path.name} exists already and is not {made}; move it away, choose another name, or allow "
                    "overwriting."
                )
            elif os.path.lexists(path) and path == self.state:
                raise EditingError(
                    f"There is progress of another training of this name ({TRAININGS}/{path.name}); switch resume on "
                    "to go on with it, choose another name, or allow overwriting."
                )
            check_target(path, overwrite=path in self.replaceable)

    def ownership(self, settings: TrainingSettings, classifier: ImageClassifier | None) -> Callable[[Path], bool]:
        """Tells of an existing file whether a training with these settings and this classifier wrote it."""

        def own(path: Path) -> bool:
            if path == self.state:  # is compared when it is read
                return True
            if path in self.embeddings:
                try:
                    return made_by(SemanticEmbedding.load(path), settings, classifier)
                except EditingError:
                    return False
            return picture_mark(path) == MARK

        return own

    def save_state(self, trainer: EmbeddingTrainer) -> None:
        """Save the state; a full disk ends no training, which may find room again the next time."""
        try:
            save_training(trainer, self.state, overwrite=self.state in self.replaceable)
        except EditingError as error:
            self.trouble = f"The progress to go on from could not be saved: {error}"
        else:
            self.replaceable.add(self.state)
            self.trouble = ""

    def save(self, embeddings: Sequence[SemanticEmbedding], pictures: Mapping[Path, Tensor]) -> list[Saved]:
        """Write embeddings and pictures (path -> ``[H, W, 3]`` in 0..1); one for each embedding comes back, and one for
        each picture that could not be written."""
        saved = []
        for embedding, path in zip(embeddings, self.embeddings, strict=True):

            def save(target: Path, overwrite: bool, embedding: SemanticEmbedding = embedding) -> None:
                embedding.save(target, overwrite=overwrite)

            saved.append(save_or_rescue(save, path, path in self.replaceable))
        for path, picture in pictures.items():
            try:
                save_picture(path, to_picture(picture.movedim(-1, 0)), overwrite=path in self.replaceable, mark=MARK)
            except EditingError as error:
                saved.append(Saved("", f"{error} The picture is in this node's output."))
        return saved

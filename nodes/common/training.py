"""What the nodes that train a network do around it: go on where one stopped, tell how it goes, obey Cancel, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.errors import EditingError
from ...core.images.contact_sheet import to_picture
from ...core.training import Trainer, made_with, resume_training, save_training
from ...core.writing import Pace
from ..host.progress import StoppableBar
from .claimed_files import ClaimedFiles
from .saving import Saved, save_or_rescue

SHOW_EVERY = 10  # steps between moves of the bar


class TrainingRun:
    """A training that saves what it makes, and a state to go on from.

    Args:
        path, state: files of both.
        overwrite: both may be replaced.
        resume: go on from the state, if there is one; what else is replaced is only what that training saved.
        facts: reads a file like ``path`` and returns what it says of its training.

    Raises:
        EditingError: a file exists that is not to be replaced, or a folder cannot be written to.
    """

    def __init__(
        self, path: Path, state: Path, overwrite: bool, resume: bool, facts: Callable[[Path], Mapping[str, str]]
    ):
        self.path, self.overwrite, self.facts = path, overwrite, facts
        self.files, self.bar = ClaimedFiles(state), StoppableBar()
        self.going_on = resume and state.exists()
        if not self.going_on:  # before what is learned from is read
            self.files.claim(path, overwrite)
            self.files.claim(state, overwrite)

    def train(self, trainer: Trainer[Any], picture: Callable[[], Tensor]) -> Any:
        """The best that ``trainer`` finds; after Cancel the best so far, and :meth:`save` ends the run.

        Args:
            picture: what is shown after a look, ``[H, W, 3]`` in 0..1.

        Raises:
            EditingError: the state is another training's, or there is nothing to keep.
        """
        files, bar, pace = self.files, self.bar, Pace()
        if self.going_on:
            files.claim(self.path, self.overwrite, lambda path: self._made_by(path, trainer))
            files.claim(files.state, self.overwrite, lambda path: True)  # compared when it is read
            resume_training(trainer, files.state)

        def save_state(target: Path, replacing: bool) -> None:
            save_training(trainer, target, overwrite=replacing)

        def report(_: Any) -> None:
            looked = trainer.step % trainer.settings.check_every == 0
            last = trainer.step == trainer.settings.steps
            if not trainer.broken and (last or (looked and pace.due())):
                with pace.saving():
                    files.save_state(save_state)
            if looked or last or trainer.step % SHOW_EVERY == 0:
                shown = to_picture(picture().movedim(-1, 0)) if looked else None
                bar.show(trainer.step, trainer.settings.steps, shown, trainer.line())

        with bar.catching():
            trainer.run(report)
        if bar.cancelled is not None:
            if not trainer.step:
                bar.finish()
            if not trainer.broken:
                files.save_state(save_state)
                if not trainer.best_found.weights:
                    trainer.validate()
        return trainer.best()

    def save(self, write: Callable[..., object], made: Any) -> Saved:
        """Save ``made`` by ``write(path, made, overwrite=)``, and obey Cancel where nothing is lost by it.

        Returns:
            What became of the file, and what to tell the person of it.
        """

        def save(target: Path, replacing: bool) -> None:
            write(target, made, overwrite=replacing)

        saved = save_or_rescue(save, self.path, self.path in self.files.replaceable)
        if saved.file and not self.files.trouble:
            self.bar.finish()  # else it would be lost, or nobody would hear where it went
        return saved

    def _made_by(self, path: Path, trainer: Trainer[Any]) -> bool:
        try:
            return made_with(self.facts(path), trainer)
        except EditingError:
            return False

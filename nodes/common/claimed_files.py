"""What a training may replace of the files that it writes, and a state that is saved on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import EditingError
from ...core.writing import check_target


@dataclass(eq=False)
class ClaimedFiles:
    """Files that a run writes, and which of them it may replace.

    Attributes:
        replaceable: those that it may.
        trouble: why the state could not be saved the last time, "" if it was.
    """

    state: Path
    replaceable: set[Path] = field(default_factory=set)
    trouble: str = ""

    def claim(self, path: Path, overwrite: bool, own: Callable[[Path], bool] | None = None) -> None:
        """Refuse, before anything is computed, what must not be replaced or cannot be written.

        Args:
            own: whether an existing file is the gone-on training's; None where none is gone on with.
        """
        exists = os.path.lexists(path)
        if overwrite or (exists and own is not None and own(path)):
            self.replaceable.add(path)
        elif exists and own is not None:
            raise EditingError(
                f"{path.name} exists already and is not from the training to go on with; move it away, choose another "
                "name, or allow overwriting."
            )
        elif exists and path == self.state:
            raise EditingError(
                f"There is progress of another training of this name ({path.parent.name}/{path.name}); switch resume "
                "on to go on with it, choose another name, or allow overwriting."
            )
        check_target(path, overwrite=path in self.replaceable)

    def save_state(self, save: Callable[[Path, bool], object]) -> None:
        """Save the state; a full disk ends nothing, and may have room the next time."""
        try:
            save(self.state, self.state in self.replaceable)
        except EditingError as error:
            self.trouble = f"The progress to go on from could not be saved: {error}"
        else:
            self.replaceable.add(self.state)
            self.trouble = ""

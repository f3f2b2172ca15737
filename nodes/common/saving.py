"""Saving what took long to make: where its own folder refuses, other folders of the host are tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import EditingError
from ..host.folders import rescue_folders

NUMBERS = 100  # names that are tried in one folder


@dataclass(frozen=True)
class Saved:
    """How a result was saved.

    Attributes:
        file: its name in the folder where it belongs, "" if it is not there.
        line: what to tell the person.
    """

    file: str
    line: str

    def first(self, sentence: str) -> str:
        """What a report begins with: ``sentence``, or why the result is not where it belongs."""
        return sentence if self.file else self.line


def save_or_rescue(
    save: Callable[[Path, bool], object], path: Path, overwrite: bool, *, is_output: bool = True
) -> Saved:
    """Save at ``path``; where that fails, under a free name in a folder of :func:`~..host.folders.rescue_folders`.

    Where all of them refuse, the result is still in the node's output, and the line says so; nothing is raised, because
    that would lose it.

    Args:
        save: writes to a path, replacing a file only if told to; raises EditingError where it cannot.
        is_output: whether the node gives what it saves as an output, too. A node that only saves has it from another
            node, which keeps it.

    Raises:
        EditingError: all folders refuse, and it is no output.
    """
    try:
        save(path, overwrite)
    except EditingError as error:
        reason = str(error)
    else:
        return Saved(path.name, f"Saved {path.name}.")
    for place, folder in rescue_folders():
        name = _saved_in(folder, path, save)
        if name:
            return Saved(
                "", f"{reason} It is kept as {name} in {place}; move it from there into the folder {path.parent.name}."
            )
    if not is_output:
        raise EditingError(reason)
    return Saved(
        "",
        f"{reason} No other folder could take it: it is in this node's output alone, until ComfyUI ends or the node "
        "runs anew.",
    )


def _saved_in(folder: Path, path: Path, save: Callable[[Path, bool], object]) -> str:
    """Save in ``folder`` under the first free name; "" where it cannot be."""
    for number in range(1, NUMBERS + 1):
        target = folder / (path.name if number == 1 else f"{path.stem}_{number}{path.suffix}")
        if target.exists():
            continue
        try:
            save(target, False)
        except EditingError:
            return ""
        return target.name
    return ""

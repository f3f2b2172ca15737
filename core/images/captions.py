"""Captions beside pictures: a text file of the same name for each, or one list for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EditingError
from ..file_names import shown_name
from ..files import load_json, load_text
from .files import NAMED, picture_files

#: The file that may list the captions of a folder: {"1.png": "a face, smiling", ...}.
LISTING = "captions.json"


def read_captions(folder: str | Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """``(pictures of a folder with their captions, names of pictures without one)``, by name.

    The caption of ``1.png`` is the first line with words of ``1.txt``, or else what ``captions.json`` lists under
    "1.png" or "1": a text, or a list of which the first is taken.

    Raises:
        EditingError: no such folder, no picture in it, not one caption, or a damaged ``captions.json``.
    """
    source = Path(folder)
    files = picture_files(source)
    listing = load_json(source / LISTING, "captions") if (source / LISTING).is_file() else {}
    found, without = [], []
    for path in files:
        caption = _own_text(path) or _listed(listing, path)
        if caption:
            found.append((path, caption))
        else:
            without.append(path.name)
    if not found:
        raise EditingError(
            f"None of the {len(files)} pictures in '{shown_name(source.name)}' has a caption; put a text file of the "
            f"same name beside each (1.png and 1.txt), or one {LISTING} that lists them."
        )
    return found, without


def without_report(names: Sequence[str]) -> str:
    """One line that counts and names pictures without a caption, "" for none."""
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"left out {len(names)} without a caption: {', '.join(map(shown_name, names[:NAMED]))}{more}"


def _own_text(picture: Path) -> str:
    try:
        text = load_text(picture.with_suffix(".txt"), "caption")
    except EditingError:  # none, or unusable: the picture counts as one without
        return ""
    return next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")


def _listed(listing: Mapping[str, Any], picture: Path) -> str:
    value = listing.get(picture.name, listing.get(picture.stem, ""))
    return " ".join((value if isinstance(value, str) else value[0]).split())

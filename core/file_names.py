"""Names that a person, a workflow or an API client gives to files and folders: the one check that all of them pass.

What is refused on one system is refused on all, because model folders are shared and copied between systems.
"""

from __future__ import annotations

import unicodedata

from .errors import EditingError

MAX_BYTES = 255  # of a name in UTF-8, as ext4 counts; Windows and macOS count the same limit in larger units
SHOWN = 60  # characters of a name that a sentence repeats
FORBIDDEN = '<>:"|?*'  # on Windows
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"
}
#: Unicode's invisible joiners, the only format characters that words are spelled with (Persian, emoji).
JOINERS = "\u200c\u200d"


def shown_name(name: str) -> str:
    """``name`` as a sentence may repeat it: short, and with every character spelled out that cannot be seen or sent."""
    return repr(name if len(name) <= SHOWN else f"{name[: SHOWN - 1]}…")[1:-1]


def check_characters(name: str, what: str) -> str:
    """``name``, whose characters can all be seen and written.

    Args:
        what: what is named, e.g. "file name".

    Raises:
        EditingError: control characters, half of a surrogate pair (which no file system and no message can hold), or
            characters that turn the direction of writing and make a name look like another.
    """
    for character in name:
        kind = unicodedata.category(character)
        if kind == "Cs":
            reason = "half of a surrogate pair, which is no text"
        elif kind in ("Cc", "Zl", "Zp"):
            reason = "a control character"
        elif kind == "Cf" and character not in JOINERS:
            reason = "an invisible character that makes it look like another name"
        else:
            continue
        raise EditingError(
            f"The {what} '{shown_name(name)}' holds {reason} (U+{ord(character):04X}); type the name again without it."
        )
    return name


def check_name(name: str, what: str = "file name", added: str = "") -> str:
    """``name`` with ``added`` at its end, a plain name that every system can hold.

    Args:
        name: spaces around it are dropped.
        what: what is named, for the sentence.
        added: an ending such as ".safetensors", which counts for the length.

    Raises:
        EditingError: empty, hidden, with separators, "..", unseen or forbidden characters, reserved on Windows, or too
            long.
    """
    plain = check_characters(name.strip(), what)
    if not plain:
        raise EditingError(f"The {what} is empty; write a plain name.")
    quoted = f"The {what} '{shown_name(plain)}'"
    if "/" in plain or "\\" in plain or ".." in plain:
        raise EditingError(f"{quoted} leads to another folder; give a plain name without '/', '\\' or '..'.")
    if plain.startswith("."):
        raise EditingError(f"{quoted} begins with a dot, which hides it; begin it with a letter or a digit.")
    if any(mark in plain for mark in FORBIDDEN):
        raise EditingError(f"{quoted} holds one of {' '.join(FORBIDDEN)}, which Windows forbids; leave it out.")
    if plain.endswith("."):
        raise EditingError(f"{quoted} ends in a dot, which Windows drops; leave it out.")
    if plain.split(".")[0].strip().upper() in RESERVED:
        raise EditingError(f"{quoted} is a device's name on Windows; choose another name.")
    size = len(f"{plain}{added}".encode())
    if size > MAX_BYTES:
        raise EditingError(
            f"{quoted} is too long ({size} bytes with its ending, {MAX_BYTES} are allowed); choose a shorter one."
        )
    return f"{plain}{added}"

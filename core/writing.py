"""Writing a file whole or not at all: the one way in which the pack writes, whatever the kind of file.

The bytes go into a temporary file beside the target, reach the disk, and then take the target's name in one move. A
process that is killed on the way leaves its temporary file behind; the next save into that folder removes it. Whether
the writer still lives tells the lock that it holds on its file: another program that saves there at the same moment
keeps its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import EditingError

try:
    import fcntl
except ImportError:  # Windows, which lets nobody delete or rename a file that another program holds open
    fcntl = None  # type: ignore[assignment]

PART = re.compile(r"\.semantic_editing-[0-9a-f]{16}\.part")
ABANDONED = 3600.0  # seconds without a write, after which a file counts as abandoned where no lock tells
ATTEMPTS = 10  # to make a temporary file that no other program takes for abandoned before it is locked


def write_whole(path: str | Path, fill: Callable[[BinaryIO], object], *, overwrite: bool = False) -> Path:
    """Write a file whole or not at all; it gets the permissions that the person's umask gives to new files.

    Args:
        fill: writes the content into the stream it is given.
        overwrite: False never replaces a file, not even one that appears while this one is written.

    Raises:
        EditingError: the file exists and ``overwrite`` is False, or it cannot be written.
    """
    target = Path(path)
    refuse_existing(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with _temporary(target.parent) as (temporary, stream):
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
            if fcntl is None:
                stream.close()
            _publish(temporary, target, overwrite)
    except FileExistsError as error:
        refuse_existing(target, overwrite)
        raise _unwritable(target, error) from error
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


class Pace:
    """When to save what a long run has made so far: never for more than a tenth of the time, however large the file."""

    SHARE = 0.1

    def __init__(self) -> None:
        self.saved, self.took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether there is time for it now."""
        return self.took <= self.SHARE * (time.monotonic() - self.saved)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measures how long a save, in the ``with`` block, takes."""
        begun = time.monotonic()
        yield
        self.saved = time.monotonic()
        self.took = self.saved - begun


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """``path`` if :func:`write_whole` will be able to write it, asked before a long run by making a file there.

    Raises:
        EditingError: the file exists and ``overwrite`` is False, or its folder cannot be made or written to.
    """
    target = Path(path)
    refuse_existing(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EditingError(
            f"The folder {target.parent.name} cannot be made ({_reason(error)}); choose another one."
        ) from error
    try:
        with _temporary(target.parent):
            pass
    except OSError as error:
        raise EditingError(
            f"The folder {target.parent.name} cannot be written to ({_reason(error)}); check its permissions and its "
            "free space."
        ) from error
    return target


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raise :class:`EditingError` if ``target``, a broken link included, exists and ``overwrite`` is False, or if no
    file can have its name."""
    try:
        unusable = b"\0" in os.fsencode(target)
    except UnicodeEncodeError:
        unusable = True
    if unusable:
        raise EditingError("The file's name holds characters that no file can have; choose another name.")
    if os.path.lexists(target) and not overwrite:
        raise EditingError(f"{target.name} exists already; choose another name or allow overwriting.")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _unwritable(target: Path, error: OSError) -> EditingError:
    return EditingError(
        f"{target.name} could not be written ({_reason(error)}); check the folder's permissions and free space."
    )


@contextmanager
def _temporary(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new temporary file of ``folder``, open for writing and locked; gone at the end unless it was renamed."""
    path, stream = _locked(folder)
    try:
        with stream:
            yield path, stream
    finally:
        with contextlib.suppress(OSError):  # renamed; or a broken disk, of which the writing itself has told
            path.unlink()


def _locked(folder: Path) -> tuple[Path, BinaryIO]:
    for _ in range(ATTEMPTS):
        path = folder / f".semantic_editing-{secrets.token_hex(8)}.part"
        # os.open and not tempfile, whose files are the owner's alone: the mode of new files is the umask's business
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        stream = os.fdopen(handle, "wb")
        if fcntl is None:
            return path, stream
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another program found it unlocked, and swept it
            return path, stream
        stream.close()
    raise OSError(None, "other programs remove the new files")


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name; raise FileExistsError where that may not replace what has it."""
    if overwrite:
        os.replace(temporary, target)
    elif fcntl is None:
        os.rename(temporary, target)  # Windows refuses a name that is taken
    else:
        try:
            os.link(temporary, target)  # refuses one, too, which a rename would replace
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise FileExistsError from None
            os.replace(temporary, target)


def _sweep(folder: Path) -> None:
    """Remove the temporary files that killed saves left in ``folder``; one that cannot be removed stays."""
    with os.scandir(folder) as entries:
        left = [Path(entry.path) for entry in entries if PART.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                abandoned = _abandoned(handle)
                if abandoned and fcntl is not None:
                    path.unlink()
            finally:
                os.close(handle)
            if abandoned and fcntl is None:
                path.unlink()


def _abandoned(handle: int) -> bool:
    """Whether the writer of an open temporary file is gone."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks here: its age must tell
            pass
        else:
            return True
    return time.time() - os.fstat(handle).st_mtime > ABANDONED

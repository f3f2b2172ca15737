"""Progress bars, previews and text under a running node; a press of Cancel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as model_management
import comfy.utils
from comfy_execution.utils import get_executing_context

#: Longer side in pixels of a picture shown while a node runs.
PICTURE_SIDE = 768


def stop_if_cancelled() -> None:
    """Raise what the host raises when the person pressed Cancel."""
    model_management.throw_exception_if_processing_interrupted()


def progress_text(text: str) -> None:
    """Write a line under the node that runs; nothing outside a server's prompt."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    running, context = getattr(server, "instance", None), get_executing_context()
    if running is not None and context is not None:
        running.send_progress_text(text, context.node_id)


class StoppableBar:
    """A progress bar that remembers a press of Cancel instead of raising at once, so that work done can be kept first."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.cancelled: BaseException | None = None

    def __call__(self, done: int, total: int, picture: Any = None) -> bool:
        """Move the bar, and show a PIL ``picture`` when given; True when the person wants to stop."""
        with self.catching():
            self.show(done, total, picture)
        return self.cancelled is not None

    def show(self, done: int, total: int, picture: Any = None, text: str = "") -> None:
        """Move the bar, and write ``text`` under the node; a press of Cancel raises at once."""
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        model_management.throw_exception_if_processing_interrupted()
        if text:
            progress_text(text)
        self.bar.update_absolute(done, total, None if picture is None else ("JPEG", picture, PICTURE_SIDE))

    @contextmanager
    def catching(self) -> Iterator[None]:
        """A press of Cancel, wherever it raises in the ``with`` block, ends the block and is remembered."""
        try:
            yield
        except model_management.InterruptProcessingException as pressed:
            self.cancelled = pressed

    def finish(self) -> None:
        """Raise what was remembered."""
        if self.cancelled is not None:
            raise self.cancelled


def counting_bar() -> Callable[[int, int], None]:
    """A callback told ``(done, total)`` that moves the node's progress bar."""
    bars: list[Any] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return report

"""Progress bars, previews and text under a running node; a press of Cancel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as model_management
import comfy.utils
import latent_preview
from comfy_execution.utils import get_executing_context

from ...core.denoiser import Progress

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
    """A progress bar that remembers a press of Cancel instead of raising at once, so that results can be kept."""

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


class PicturePreviewer:
    """A previewer for :class:`PreviewBar` of a model of pictures ``[B, 3, H, W]`` in -1..1 and no latents."""

    @staticmethod
    def decode_latent_to_preview_image(form: str, pictures: Any) -> tuple[str, Any, int]:
        """What the host's bar shows of the first picture."""
        return form, latent_preview.preview_to_image(pictures[0].movedim(0, -1)), PICTURE_SIDE


class PreviewBar:
    """A core callback that moves the node's bar, never back, and shows a preview once a step.

    Args:
        previewer: the host's latent previewer, a :class:`PicturePreviewer`, or None for no previews.
        total: length of the bar; ``steps * max_iterations`` of the first report when None.
    """

    def __init__(self, previewer: Any, total: int | None):
        self.previewer, self.total = previewer, total
        self.bar: Any = None
        self.position = 0
        self.shown = -1

    def __call__(self, progress: Progress) -> None:
        """Report one network evaluation or step; a press of Cancel raises at once."""
        model_management.throw_exception_if_processing_interrupted()
        span = progress.steps * progress.max_iterations
        length = self.total or span
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(length)
        done = progress.step * progress.max_iterations + min(progress.iteration + 1, progress.max_iterations)
        self.position = max(self.position, min(length, round(length * done / span)))
        preview = None
        if self.previewer is not None and progress.step != self.shown:
            preview = self.previewer.decode_latent_to_preview_image("JPEG", progress.denoised.detach())
            self.shown = progress.step
        self.bar.update_absolute(self.position, length, preview)


def counting_bar() -> Callable[[int, int], None]:
    """A callback told ``(done, total)`` that moves the node's progress bar."""
    bars: list[Any] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return report

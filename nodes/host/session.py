"""What an algorithm is given while a MODEL is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as model_management
import comfy.utils
import latent_preview
from torch import Tensor

from ...core.denoiser import Callback, Progress
from .denoiser import ComfyDenoiser


@dataclass
class Session:
    """What an algorithm works with while the model is loaded. Valid only inside ``work``.

    Attributes:
        denoiser: the loaded MODEL as ``core.denoiser.Denoiser``.
        latent: the LATENT in model space ``[B, C, H, W]``, fp32, on the model's device.
        conds: processed conditionings by the names given to :func:`run`, to be handed to ``denoiser``.
    """

    denoiser: ComfyDenoiser
    latent: Tensor
    conds: dict[str, Any]
    _patcher: Any = field(repr=False)

    def callback(self, total: int | None = None) -> Callback:
        """A core callback that moves the node's progress bar over real inner iterations, shows the latent preview once
        a step and raises when the person pressed Cancel.

        Args:
            total: length of the bar; ``steps * max_iterations`` of the first report when None.
        """
        previewer = latent_preview.get_previewer(self._patcher.load_device, self._patcher.model.latent_format)
        return _Bar(previewer, total)


class _Bar:
    """The callback's state: a bar that never goes back, and the last step whose preview was shown."""

    def __init__(self, previewer: Any, total: int | None):
        self.previewer, self.total = previewer, total
        self.bar: Any = None
        self.position = 0
        self.shown = -1

    def __call__(self, progress: Progress) -> None:
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

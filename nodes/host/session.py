"""What an algorithm is given while a MODEL is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import latent_preview
from torch import Tensor

from ...core.denoiser import Callback
from .denoiser import ComfyDenoiser
from .progress import PreviewBar


@dataclass
class Session:
    """What an algorithm works with while the model is loaded. Valid only inside ``work``.

    Attributes:
        denoiser: the loaded MODEL as ``core.denoiser.Denoiser``.
        latent: the LATENT in model space ``[B, C, H, W]``, fp32, on the model's device.
        conds: processed conditionings by the names given to :func:`~.sampling.run`, to be handed to ``denoiser``.
    """

    denoiser: ComfyDenoiser
    latent: Tensor
    conds: dict[str, Any]
    _patcher: Any = field(repr=False)

    def callback(self, total: int | None = None) -> Callback:
        """A callback for an algorithm: progress bar, latent preview once a step, and Cancel; see :class:`PreviewBar`.

        Args:
            total: length of the bar; ``steps * max_iterations`` of the first report when None.
        """
        previewer = latent_preview.get_previewer(self._patcher.load_device, self._patcher.model.latent_format)
        return PreviewBar(previewer, total)

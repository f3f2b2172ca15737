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
        form = self._patcher.model.latent_format
        return PreviewBar(
            latent_preview.get_previewer(self._patcher.load_device, form) or _plain_previewer(form), total
        )


def _plain_previewer(form: Any) -> Any:
    """The host's cheapest previewer, a linear map of the latent, for a latent format that has one, else None.

    Hosts show no previews by default, and an edit takes minutes: what comes of it is worth a look before it is done.
    """
    factors = getattr(form, "latent_rgb_factors", None)
    if factors is None:
        return None
    reshape = getattr(form, "latent_rgb_factors_reshape", None)  # hosts newer than 0.3.64
    rest = () if reshape is None else (reshape,)
    return latent_preview.Latent2RGBPreviewer(factors, getattr(form, "latent_rgb_factors_bias", None), *rest)

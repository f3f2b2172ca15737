"""Models that read a mask and the masked picture besides the latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import EditingError


def reads_mask(model: Any) -> bool:
    """Whether ``model`` is an inpainting model, which reads mask and masked picture; False for a plain one.

    Raises:
        EditingError: it reads another picture besides the latent (to edit, to upscale, of depth or edges).
    """
    base, channels = model.model, model.model.latent_format.latent_channels

    def read(picture: float, mask: float) -> Tensor | None:
        latent = torch.full((1, channels, 8, 8), picture)
        found: Tensor | None = base.concat_cond(
            noise=latent, device=latent.device, concat_latent_image=latent, concat_mask=torch.full((1, 1, 8, 8), mask)
        )
        return found

    neither, masked, pictured = read(0, 0), read(0, 1), read(1, 0)
    if neither is None or masked is None or pictured is None:
        taken = base.model_config.unet_config.get("in_channels", channels)
        if not hasattr(base.diffusion_model, "input_blocks") or taken == channels:
            return False
    elif not torch.equal(neither, masked) and not torch.equal(neither, pictured):
        return True
    raise EditingError(
        "This model reads another picture besides the latent (instruct-pix2pix, depth or upscale models do) and cannot "
        "inpaint; wire a plain or an inpainting model."
    )

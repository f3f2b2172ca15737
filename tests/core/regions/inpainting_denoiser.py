"""A true inpainting U-Net of diffusers (9 channels: latent, mask, masked image) as a :class:`~..denoiser.Denoiser`."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ....core.diffusers.denoiser import DiffusersDenoiser
from ....core.errors import EditingError


class InpaintingDenoiser(DiffusersDenoiser):
    """An inpainting U-Net, to be told by :meth:`inpainting` what is known before it is evaluated.

    Args:
        unet: ``UNet2DConditionModel`` that takes 2 C + 1 channels and returns C (9 and 4 for Stable Diffusion).
        scheduler: see :class:`~.diffusers.DiffusersDenoiser`.

    Raises:
        EditingError: another number of channels, or what :class:`~.diffusers.DiffusersDenoiser` refuses.
    """

    def __init__(self, unet: Any, scheduler: Any):
        taken, returned = unet.config.in_channels, unet.config.out_channels
        if taken != 2 * returned + 1:
            raise EditingError(
                f"This U-Net takes {taken} channels, an inpainting one takes {2 * returned + 1}; use an inpainting or a plain model."
            )
        super().__init__(_KnownChannels(unet, None), scheduler)

    def inpainting(self, mask: Tensor, masked: Tensor) -> InpaintingDenoiser:
        """This model with what is known of the picture; its evaluations count for both.

        Args:
            mask: ``[1, 1, h, w]``, 1 where to paint.
            masked: latent ``[1, C, h, w]`` of the image with the masked pixels grey.
        """
        bound = copy(self)
        bound.unet = _KnownChannels(self.unet.network, torch.cat([mask.to(masked), masked], 1))
        return bound


class _KnownChannels(nn.Module):
    """The U-Net as one of the latent's own channels: the ``known [1, C + 1, h, w]`` ones are appended to its input."""

    def __init__(self, network: Any, known: Tensor | None):
        super().__init__()
        self.network, self.known = network, known
        self.config = type(network.config)({**network.config, "in_channels": network.config.out_channels})
        self.conv_in, self.conv_out = network.conv_in, network.conv_out

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.dtype
        return dtype

    def forward(self, sample: Tensor, *args: Any, **options: Any) -> Any:
        if self.known is None:
            raise EditingError(
                "An inpainting model needs the mask and the masked image; use it through an inpainting editor."
            )
        if self.known.shape[-2:] != sample.shape[-2:]:
            raise EditingError(
                f"The known part is {list(self.known.shape[-2:])} and the latent {list(sample.shape[-2:])}; use one size."
            )
        return self.network(
            torch.cat([sample, self.known.to(sample).expand(len(sample), -1, -1, -1)], 1), *args, **options
        )

"""A true inpainting U-Net of diffusers (9 channels: latent, mask, masked image) as a :class:`~..denoiser.Denoiser`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ....core.diffusers.denoiser import DiffusersDenoiser
from ....core.errors import EditingError


class Known(NamedTuple):
    """A conditioning together with what is known of the picture."""

    cond: Tensor
    mask: Tensor  # [1, 1, h, w], 1 where to paint
    masked: Tensor  # latent [1, C, h, w] of the image with the masked pixels grey


def show_known(encode: Callable[[Tensor], Tensor]) -> Callable[..., dict[str, Known]]:
    """``InpaintEditor.show_known`` for :class:`InpaintingDenoiser`; ``encode`` is the VAE."""
    return lambda conds, cells, known: {name: Known(cond, cells, encode(known)) for name, cond in conds.items()}


class InpaintingDenoiser(DiffusersDenoiser):
    """An inpainting U-Net; its conditionings are :class:`Known`.

    Args:
        unet: ``UNet2DConditionModel`` that takes 2 C + 1 channels and returns C (9 and 4 for Stable Diffusion).
        scheduler: see :class:`DiffusersDenoiser`.

    Raises:
        EditingError: another number of channels, or what :class:`DiffusersDenoiser` refuses.
    """

    def __init__(self, unet: Any, scheduler: Any):
        taken, returned = unet.config.in_channels, unet.config.out_channels
        if taken != 2 * returned + 1:
            raise EditingError(
                f"This U-Net takes {taken} channels, an inpainting one takes {2 * returned + 1}; "
                "use an inpainting or a plain model."
            )
        super().__init__(_KnownChannels(unet, None), scheduler)

    def __call__(self, x: Tensor, sigma: float | Tensor, cond: Any, **options: Any) -> Tensor:
        return super().__call__(x, sigma, self._shown([cond])[0], **options)

    def batch(self, x: Tensor, sigma: float | Tensor, conds: Sequence[Any], **options: Any) -> list[Tensor]:
        return super().batch(x, sigma, self._shown(conds), **options)

    def _shown(self, conds: Sequence[Any]) -> list[Tensor]:
        """The conditionings themselves; what the first says of the picture goes to the U-Net."""
        known = conds[0] if isinstance(conds[0], Known) else None
        self.unet.known = None if known is None else torch.cat([known.mask.to(known.masked), known.masked], 1)
        return [cond.cond if isinstance(cond, Known) else cond for cond in conds]


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
                f"The known part is {list(self.known.shape[-2:])} and the latent {list(sample.shape[-2:])}; use one "
                "size."
            )
        return self.network(
            torch.cat([sample, self.known.to(sample).expand(len(sample), -1, -1, -1)], 1), *args, **options
        )

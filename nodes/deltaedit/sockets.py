"""The sockets of DeltaEdit, and how its networks come to the host's device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ..host.gradients import gradient_scope
from ..host.managed_models import load_to_device, managed_patcher
from ..host.schema import io

CATEGORY = "semantic editing/deltaedit"
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Managed(Generic[Network]):
    """A network that the host loads for use and may move away afterwards.

    Attributes:
        network: for its layout and names; compute with what :meth:`loaded` returns.
        patcher: the host's handle.
    """

    network: Network
    patcher: Any

    @staticmethod
    def make(make: Callable[[], Network]) -> Managed[Network]:
        """``make`` is called outside inference mode, so that autograd works; the weights are frozen."""
        with gradient_scope(True):
            network = make().eval().requires_grad_(False)
        return Managed(network, managed_patcher(network))

    @property
    def device(self) -> torch.device:
        """Where it computes once loaded."""
        device: torch.device = self.patcher.load_device
        return device

    def loaded(self) -> Network:
        """The network, on the host's device."""
        load_to_device(self.patcher)
        return self.network


#: Carries a ``Managed[core.deltaedit.stylegan2.StyleGAN2]``.
StyleGAN2Type = io.Custom("STYLEGAN2")
#: Carries a ``core.deltaedit.style_code.StyleCode`` on the CPU.
StyleCodeType = io.Custom("STYLE_CODE")
#: Carries a ``core.deltaedit.alignment.FaceCrop``: where the face was taken from the photo.
FaceCropType = io.Custom("FACE_CROP")
#: Carries a ``core.deltaedit.latents.Latents``: pairs of CLIP features and style codes to train on.
DeltaLatentsType = io.Custom("DELTA_LATENTS")
#: Carries a ``Managed[core.deltaedit.mapper.DeltaMapper]``.
DeltaMapperType = io.Custom("DELTA_MAPPER")
#: Carries a ``core.deltaedit.relevance.Relevance`` on the CPU.
RelevanceType = io.Custom("RELEVANCE_MATRIX")
#: Carries a ``Managed[core.deltaedit.style_diffusion.StyleDiffusion]``.
StyleDiffusionType = io.Custom("STYLE_DIFFUSION")
#: Carries a ``core.deltaedit.style_diffusion.StyleNoise`` on the CPU.
StyleNoiseType = io.Custom("STYLE_NOISE")

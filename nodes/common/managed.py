"""How the pack's own networks come to the host's device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ..host.gradients import gradient_scope
from ..host.managed_models import load_to_device, managed_patcher

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

"""Muon: momentum made orthogonal by a Newton-Schulz iteration (K. Jordan et al. 2024), for matrices and convolutions.

On these networks it needs about half of AdamW's steps; a step is scaled to AdamW's size (0.2 root mean square), so that
both optimizers take the same learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(gradient: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix to ``[m, n]``."""
    x = gradient / (gradient.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; kernels are folded to ``[out, rest]``."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("momentum", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"]).reshape(len(parameter), -1)
                scale = 0.2 * max(update.shape) ** 0.5
                parameter.add_(orthogonalize(update).reshape(parameter.shape), alpha=-group["lr"] * scale)


def optimizers(network: nn.Module, lr: float, plain: tuple[str, ...] = ()) -> list[torch.optim.Optimizer]:
    """Muon for the trainable matrices, AdamW for vectors and for layers whose name contains one of ``plain``."""
    trainable = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    matrices = [value for name, value in trainable if value.ndim >= 2 and not any(part in name for part in plain)]
    chosen = {id(value) for value in matrices}
    rest = [value for _, value in trainable if id(value) not in chosen]
    return [Muon(matrices, lr), torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0)]

"""What every training of the demo model does around its own loss: the rate of each step, the step itself, an average of
the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Steps:
    """Iterates over the learning rates of a training, for as long as it may take by the clock.

    Args:
        seconds: time of the training, from its first step on.
        peak: largest rate.
        rise: steps of the linear rise at the start.
        last: share of ``peak`` at which the half cosine over the time ends.

    Attributes:
        count: steps begun, the one at hand included.
        spent: seconds since the first.
    """

    def __init__(self, seconds: float, peak: float, *, rise: int, last: float = 0.02):
        self.seconds, self.peak, self.rise, self.last = seconds, peak, rise, last
        self.count, self.start = 0, time.time()

    @property
    def spent(self) -> float:
        """Seconds since the first step."""
        return time.time() - self.start

    def __iter__(self) -> Iterator[float]:
        self.count, self.start = 0, time.time()
        while (done := self.spent / self.seconds) < 1:
            self.count += 1
            cosine = 0.5 * (1 + math.cos(math.pi * done)) * (1 - self.last) + self.last
            yield self.peak * min(1, self.count / self.rise) * cosine

    def tell(self, text: str) -> None:
        """Print a line with the step and the seconds in front."""
        print(self.count, f"{self.spent:.0f} s, {text}", flush=True)


def descend(
    loss: Tensor, parameters: Iterable[Tensor], optimizers: Sequence[torch.optim.Optimizer], rate: float
) -> None:
    """One step down ``loss`` at a rate, with the gradient of all ``parameters`` together cut to length 1."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


class Average:
    """An exponential average of weights, over few steps at first.

    Args:
        weights: by name, tensors that the training changes in place.
        longest: decay of a step once the training is well under way.
    """

    def __init__(self, weights: Mapping[str, Tensor], longest: float):
        self.weights = {name: value.detach() for name, value in weights.items()}
        self.values = {name: value.clone() for name, value in self.weights.items()}
        self.longest, self.count = longest, 0

    def take(self) -> None:
        """Add the weights as they are now."""
        self.count += 1
        decay = min(self.longest, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.values.values()), list(self.weights.values()), 1 - decay)

"""What a training evaluates once for each picture and noise, and then remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

#: An image's number and the number of one of its noises.
Key = tuple[int, int]


class Memory:
    """Rows by image and noise, made when first met.

    Args:
        together: for each key all that first meet in the same step, in order, see :meth:`~.schedule.Schedule.first_met`. What is
            not known is made for all of them at once, so that a resumed run makes it in the same batches, to the bit.
    """

    def __init__(self, together: Mapping[Key, tuple[Key, ...]]):
        self.together = together
        self._known: dict[Key, Tensor] = {}

    def known(self, keys: Sequence[Key]) -> Tensor:
        """Rows ``[B, ...]`` that were all met before."""
        return torch.stack([self._known[key] for key in keys])

    def rows(self, keys: Sequence[Key], make: Callable[[list[Key]], Tensor]) -> Tensor:
        """Rows ``[B, ...]`` of ``keys``; ``make`` gives those that are not known."""
        for key in keys:
            if key not in self._known:
                group = list(self.together[key])
                self._known |= dict(zip(group, make(group), strict=True))
        return self.known(keys)

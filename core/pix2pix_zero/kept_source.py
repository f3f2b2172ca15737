"""What the guided steps of one edit saw of its source, kept for the next edit along the same inversion.

A person tries several words and strengths on one photo. The source's queries, keys and prediction are the same for
all of them, so that from the second edit on a guided step takes three forwards in place of four.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..attention.capture import MapKey, Projections

#: What the cross-attention layers of one evaluation work with, see :class:`~..attention.capture.CaptureMaps`.
Seen = Mapping[MapKey, Projections]


class KeptSource:
    """Queries, keys and predictions of one inversion's source by level, in main memory.

    Whoever holds it answers for that model, source conditioning and choice of layers are those it was filled with.

    Args:
        most_bytes: levels beyond are not kept, so that a next edit evaluates those anew.

    Attributes:
        bytes: held.
        used: evaluations that were spared; whoever starts an edit may set it to 0.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self.bytes = 0
        self.used = 0
        self._levels: dict[int, tuple[Seen, Tensor | None]] = {}

    def get(self, level: int, whole: bool, device: torch.device) -> tuple[Seen, Tensor | None] | None:
        """What was put there, the prediction ``[B, C, H, W]`` on ``device``; None where it is not kept, or has no
        prediction and is to be ``whole``.
        """
        seen, predicted = self._levels.get(level, (None, None))
        if seen is None or (whole and predicted is None):
            return None
        self.used += 1
        return seen, None if predicted is None else predicted.to(device)

    def put(self, level: int, seen: Seen, predicted: Tensor | None) -> None:
        """Keep copies, while there is room."""
        old = self._levels.pop(level, None)
        self.bytes -= 0 if old is None else _size(*old)
        size = _size(seen, predicted)
        if self.bytes + size > self.most_bytes:
            return
        # Copies: what the network hands over may be a view of much more.
        copies = {key: (q.to("cpu", copy=True), k.to("cpu", copy=True)) for key, (q, k) in seen.items()}
        self._levels[level] = copies, None if predicted is None else predicted.to("cpu", copy=True)
        self.bytes += size


def _size(seen: Seen, predicted: Tensor | None) -> int:
    """Bytes of the numbers."""
    size = sum(each.nbytes for projections in seen.values() for each in projections)
    return size + (0 if predicted is None else predicted.nbytes)

"""A tiny edit that a network can learn in seconds: whatever is green in a picture becomes red."""

import torch

from semantic_editing.core.distillation.network import EditorShape
from semantic_editing.core.distillation.pairs import EditPairs

TINY = EditorShape(2, (8, 16), 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def green_to_red(count=16, side=32):
    """Pairs of a green square somewhere on a grey ground, and the same square red."""
    generator = seeded(0)
    before = torch.full((count, 3, side, side), 100, dtype=torch.uint8)
    after = before.clone()
    for number in range(count):
        top, left = torch.randint(2, side - 14, (2,), generator=generator).tolist()
        for part, colour in ((before, (20, 200, 20)), (after, (200, 20, 20))):
            part[number, :, top : top + 12, left : left + 12] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return EditPairs(before, after)

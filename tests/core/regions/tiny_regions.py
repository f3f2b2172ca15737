"""A region search whose right answer is known: the editor paints a box, the judge compares it with a hidden one."""

import torch

from semantic_editing.core.regions.learning import RegionTask
from semantic_editing.core.regions.network import RegionNetwork
from semantic_editing.core.regions.proposals import Box, propose
from semantic_editing.core.regions.rewards import Verdict
from semantic_editing.core.regions.table import RewardTable

SIZES = (0.25, 0.5, 0.75, 1.0)
HEIGHT, WIDTH = 24, 40


class Painter:
    """Paints the mask white; a screen render paints a little darker. Remembers its calls."""

    identity = "painter"

    def __init__(self):
        self.calls = []

    def cost(self, quality):
        return {"screen": 2.0, "full": 20.0}[quality]

    def render(self, image, mask, box, *, seed, quality):
        self.calls.append((box, seed, quality))
        return torch.where(mask[:, None] > 0, torch.full_like(image, 1.0 if quality == "full" else 0.9), image)


class HiddenBox:
    """The loss is 1 - IoU of the changed pixels with a hidden box."""

    def __init__(self, image, box):
        self.image, self.identity = image, f"hidden {box}"
        self.hidden = torch.zeros(image.shape[-2:], dtype=torch.bool)
        self.hidden[box.y : box.y + box.height, box.x : box.x + box.width] = True

    def __call__(self, edited):
        changed = (edited != self.image).any(1)[0]
        overlap = float((changed & self.hidden).sum() / (changed | self.hidden).sum())
        return Verdict(1 - overlap, 0.0, 0.0, overlap, 1.0)


def black_image():
    return torch.zeros(1, 3, HEIGHT, WIDTH)


def tiny_attention(seed=0):
    return torch.rand(2, 6, 10, generator=torch.Generator().manual_seed(seed))


def tiny_features(seed=0):
    return torch.randn(5, 6, 10, generator=torch.Generator().manual_seed(seed + 100))


def tiny_proposals(anchors=3, seed=0, **options):
    return propose(tiny_attention(seed), (HEIGHT, WIDTH), anchors, SIZES, **options)


def tiny_network(seed=0):
    return RegionNetwork(5, len(SIZES), bins=3, seed=seed)


def tiny_table(planted=(1, 1), seed=0, cache=None, editor=None, **options):
    """Its planted box is that of an anchor and slot, ``planted``, or a :class:`Box`."""
    proposals = tiny_proposals(seed=seed)
    box = planted if isinstance(planted, Box) else proposals.box(*planted)
    return RewardTable(
        black_image(), proposals, editor or Painter(), HiddenBox(black_image(), box), cache=cache, **options
    )


def tiny_task(table, network, seed=0):
    return RegionTask.of(table, tiny_features(seed), network)

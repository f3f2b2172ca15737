"""A tiny world whose right answer is known: a vision model that looks where it is told, an editor that paints a box
white, a CLIP that wants so many white pixels."""

from contextlib import contextmanager

import torch
from torch.nn import functional

from semantic_editing.core.models.clip import ImageEmbedding
from semantic_editing.core.models.vision_features import VisionFeatures
from semantic_editing.core.regions.network import RegionNetwork
from semantic_editing.core.regions.proposals import Box, propose

PATCH, GRID = 4, (6, 10)
HEIGHT, WIDTH = PATCH * GRID[0], PATCH * GRID[1]
SPOTS = ((1, 2), (4, 7), (2, 5))  # row and column of the patches looked at, the most attended first
SIZES = (0.25, 0.5, 0.75, 1.0)


class Looking(torch.nn.Module):
    """Attends to ``spots``, the first most; in an upright image to the same, mirrored. Its features are the patches'
    pixels."""

    def __init__(self, spots=SPOTS):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3 * PATCH**2))
        self.attention = torch.zeros(GRID)
        for rank, spot in enumerate(spots):
            self.attention[spot] = 1.0 - 0.1 * rank

    def forward(self, pixels):
        tokens = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2) @ self.weight
        upright = pixels.shape[-2] > pixels.shape[-1]
        attention = self.attention.T.contiguous() if upright else self.attention
        assert attention.shape == (pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH)
        return tokens, attention.flatten().expand(len(pixels), 2, -1)


def looking(spots=SPOTS):
    return VisionFeatures(Looking(spots), PATCH, HEIGHT, (0.0,) * 3, (1.0,) * 3, "looking")


class Painter:
    """Paints the mask white for 20 u. Remembers its calls."""

    identity = "painter"

    def __init__(self):
        self.calls = []

    def cost(self):
        return 20.0

    def render(self, image, mask, box, *, seed):
        self.calls.append((box, seed))
        return torch.where(mask[:, None] > 0, torch.ones_like(image), image)


class WantsArea:
    """The nearer the number of bright pixels is to ``area``, the likelier its "target"; "source" is the opposite."""

    def __init__(self, area):
        self.identity, self.area = f"wants {area}", float(area)

    def embed_images(self, images):
        bright = (images.mean(1) > 0.5).sum((1, 2)).float()
        share = torch.minimum(bright, torch.tensor(self.area)) / bright.clamp_min(self.area)
        features = torch.stack([0.5 * share, torch.ones_like(share)], 1)
        return ImageEmbedding(functional.normalize(features, dim=1), torch.zeros(len(images), 1, 1))

    def text_features(self, texts):
        return torch.tensor([[1.0, 0.0] if "target" in text else [-1.0, 0.0] for text in texts])


def tiny_attention(seed=0):
    return torch.rand(2, 6, 10, generator=torch.Generator().manual_seed(seed))


def tiny_features(seed=0):
    return torch.randn(5, 6, 10, generator=torch.Generator().manual_seed(seed + 100))


def tiny_proposals(anchors=3, seed=0, **options):
    return propose(tiny_attention(seed), (HEIGHT, WIDTH), anchors, SIZES, **options)


def tiny_network(seed=0):
    return RegionNetwork(5, len(SIZES), bins=3, seed=seed)


def tiny_image(seed=0, height=HEIGHT, width=WIDTH):
    """Almost black."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 0.05


def box_at(spot, size, shape=(HEIGHT, WIDTH)):
    """The square of ``size`` around the middle of a spot, clipped, by plain arithmetic."""
    side, grid = round(size * min(shape)), GRID
    if shape[0] > shape[1]:
        spot, grid = spot[::-1], grid[::-1]
    y, x = ((place + 0.5) * extent / cells for place, extent, cells in zip(spot, shape, grid, strict=True))
    left, top = int(x - side / 2 + 0.5), int(y - side / 2 + 0.5)
    right, bottom = min(left + side, shape[1]), min(top + side, shape[0])
    left, top = max(left, 0), max(top, 0)
    return Box(left, top, right - left, bottom - top)


class Shop:
    """Opens painters, and keeps a diary."""

    def __init__(self, make=Painter):
        self.make, self.diary, self.painters = make, [], []

    @contextmanager
    def open(self, image, progress):
        self.diary.append("open")
        painter = self.make()
        painter.progress = progress
        self.painters.append(painter)
        try:
            yield painter
        except BaseException as error:
            self.diary.append(type(error).__name__)
            raise
        finally:
            self.diary.append("close")

    title = "paints white"

    @property
    def calls(self):
        return [call for painter in self.painters for call in painter.calls]

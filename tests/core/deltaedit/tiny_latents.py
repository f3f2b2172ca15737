"""Small faces to learn from: a random generator with its CLIP, and a world in which styles are a line of features."""

import torch
from torch.nn import functional

from semantic_editing.core.deltaedit.latents import Latents, Origin
from semantic_editing.core.deltaedit.style_code import StyleLayout
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2
from semantic_editing.core.models.clip import ImageEmbedding

ORIGIN = Origin("a generator", "a CLIP", "", 0.7)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tiny_generator(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = StyleGAN2(64, dict.fromkeys((4, 8, 16, 32, 64), 4), style_dim=6, mapping_layers=2)
    made.identity = f"generator {seed}"
    return made.eval().requires_grad_(False)


class LinearClip:
    """Features are a fixed linear map of the picture's 4 x 4 means, unit length by choice."""

    def __init__(self, width=10, unit=True, seed=0):
        self.identity, self.unit = f"clip {seed}", unit
        self.weight = torch.randn(48, width, generator=seeded(seed))

    def embed_images(self, images):
        features = functional.adaptive_avg_pool2d(images, 4).flatten(1) @ self.weight
        return ImageEmbedding(functional.normalize(features, dim=1) if self.unit else features, torch.ones(1, 1, 1))


def layout_of(*widths):
    """One convolution a level, at 4, 16 and 64 pixels."""
    return StyleLayout(tuple(zip((4, 16, 64), widths, strict=True)), ((4, 3),))


def linear_world(count=600, features=8, widths=(6, 6, 6), seed=0, dtype=torch.float16):
    """Latents whose styles are an affine map of their features, as ``(latents, styles [N, S])``."""
    image = functional.normalize(torch.randn(count, features, generator=seeded(seed)), dim=1)
    styles = image @ torch.randn(features, sum(widths), generator=seeded(seed + 1)) * torch.rand(
        sum(widths), generator=seeded(seed + 2)
    ) + 3 * torch.randn(sum(widths), generator=seeded(seed + 3))
    centre = styles.mean(0)
    names = tuple(f"{number}.png" for number in range(count))
    offsets = (styles - centre).to(dtype)
    made = Latents(image.to(dtype), offsets, centre, torch.ones(3), layout_of(*widths), names, ORIGIN)
    return made, styles

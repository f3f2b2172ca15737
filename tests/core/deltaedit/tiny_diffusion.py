"""Small style diffusions: random U-Nets, and one whose answer is known in closed form."""

import torch

from semantic_editing.core.deltaedit.style_code import StyleCode, StyleLayout
from semantic_editing.core.deltaedit.style_diffusion import StyleDiffusion
from semantic_editing.core.deltaedit.style_unet import UNetShape

LAYOUT = StyleLayout(((4, 3), (8, 2), (16, 4), (32, 1), (64, 2)), ((4, 3), (8, 2)))
#: Maps of 8, 4 and 2 pixels read fine, medium and coarse styles.
TINY = UNetShape(
    size=16, fold=2, width=8, multipliers=(1, 1, 2), blocks=1, attention=(4,), dropout=0.0, embedding=8, coarse=2,
    medium=4, places=True, prediction="v",
)  # fmt: skip


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def code(count=2, seed=0, generator="tiny", layout=LAYOUT):
    return StyleCode(
        layout, random(count, layout.width, seed=seed), torch.ones(count, sum(layout.rgb_widths)), generator
    )


def network(shape=TINY, seed=0, generator="tiny", scale=0.1):
    """A U-Net of random weights, the layers that start from 0 included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = StyleDiffusion(shape, LAYOUT, generator)
        for value in made.parameters():
            if not value.any():
                torch.nn.init.normal_(value, std=scale)
    return made.eval().requires_grad_(False)


class Gaussian(StyleDiffusion):
    """Knows the noise exactly where pictures are normal around their first style, with standard deviation ``spread``.

    With ``x = picture + sigma * noise`` the mean of the noise given x is ``sigma (x - mean) / (spread^2 + sigma^2)``,
    and the probability-flow equation takes a picture to ``mean + (picture - mean) sqrt(1 + sigma^2 / spread^2)``.
    """

    def __init__(self, spread=0.4):
        super().__init__(TINY, LAYOUT, "tiny")
        self.spread = spread

    def forward(self, x, sigma, convs):
        level, mean = sigma[:, None, None, None], convs[:, :1, None, None] / 10
        noisy = x * (1 + level**2).sqrt()
        return level * (noisy - mean) / (self.spread**2 + level**2)

    def noise_of(self, pictures, convs):
        """x_T in closed form."""
        mean, top = convs[:, :1, None, None].double() / 10, float(self.sigmas[-1])
        x = mean + (pictures.double() - mean) * (1 + top**2 / self.spread**2) ** 0.5
        return x / (1 + top**2) ** 0.5

"""The small network that takes a slow edit's place (Parmar et al., pix2pix-zero, arXiv 2302.03027, section 4.5).

The paper trains a Co-Mod-GAN, made to fill holes. An edit leaves most of a picture as it is, so that here a U-Net
(diffusers' ``UNet2DModel``, its time held at 0) says *how* each pixel changes and *how much of that* is taken:
``edited = x + mask * change``. The mask reaches 0 itself, so what is not edited is the photo's own, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..denoiser import check_finite
from ..errors import EditingError
from ..reading.libraries import library

COLOURS = 3
#: How far the mask's sigmoid is stretched beyond 0 and 1 before it is cut there (Louizos et al., arXiv 1712.01312).
STRETCH = 0.1
GROUP = 8  # channels' common divisor, for diffusers' group normalisation
#: A picture whose shorter side is up to this many times the pairs', or so many times less, is edited as it is.
TOLERANCE = 1.5


@dataclass(frozen=True)
class EditorShape:
    """What the network is made of.

    Attributes:
        fold: side of the squares of pixels that the first layer takes as one.
        widths: channels at each resolution, which halves from one to the next; multiples of 8.
        blocks: residual blocks of a resolution on the way down, and one more on the way up.
    """

    fold: int = 4
    widths: tuple[int, ...] = (32, 48, 64)
    blocks: int = 1

    def __post_init__(self) -> None:
        if not self.widths or any(width < GROUP or width % GROUP for width in self.widths):
            raise EditingError(f"The widths are {list(self.widths)}; use multiples of {GROUP}.")
        if self.fold < 1 or self.blocks < 1:
            raise EditingError(f"fold is {self.fold} and blocks is {self.blocks}; use 1 or more.")

    @property
    def multiple(self) -> int:
        """What must divide a picture's sides; others are padded."""
        return self.fold * 2 ** (len(self.widths) - 1)


#: By name: quick on a CPU, and for photographs on a GPU.
SHAPES = {"small": EditorShape(), "large": EditorShape(4, (64, 128, 192, 256), 2)}


class DistilledEditor(nn.Module):
    """One edit as one forward of a network.

    Attributes:
        shape: see :class:`EditorShape`.
        side: shorter side in pixels of the pictures it learned from; 0: not known.
        source, target: what the edit leads from and to, in words.
        facts: how it was trained, for people.
    """

    def __init__(self, shape: EditorShape):
        super().__init__()
        self.shape, self.side, self.source, self.target = shape, 0, "", ""
        self.facts: dict[str, str] = {}
        model = library("diffusers", "A distilled edit", "UNet2DModel").UNet2DModel
        levels = len(shape.widths)
        self.unet: Any = model(
            in_channels=COLOURS * shape.fold**2,
            out_channels=(COLOURS + 1) * shape.fold**2,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            block_out_channels=shape.widths,
            layers_per_block=shape.blocks,
            norm_num_groups=GROUP,
            add_attention=False,  # so that memory grows with the picture, not with its square
        )
        nn.init.zeros_(self.unet.conv_out.weight)  # a new network changes nothing
        nn.init.zeros_(self.unet.conv_out.bias)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``images [B, 3, H, W]`` in 0..1 -> ``(change [B, 3, H, W], logits of the mask [B, 1, H, W])``."""
        height, width = images.shape[-2:]
        padding = (0, -width % self.shape.multiple, 0, -height % self.shape.multiple)
        padded = functional.pad(images * 2 - 1, padding, mode="replicate")
        folded = functional.pixel_unshuffle(padded, self.shape.fold)
        raw = functional.pixel_shuffle(self.unet(folded, 0).sample, self.shape.fold)[..., :height, :width]
        return raw[:, :COLOURS], raw[:, COLOURS:]

    def forward(self, images: Tensor, strength: float = 1.0, fit: bool = True) -> Tensor:
        """Edit ``images [B, 3, H, W]`` in 0..1; the same shape, in 0..1.

        Args:
            strength: factor of the change; 0 gives ``images`` back.
            fit: look at pictures of quite another size than the pairs' at the pairs' size, and bring the change to
                theirs.

        Raises:
            EditingError: not such images.
        """
        if images.ndim != 4 or images.shape[1] != COLOURS or 0 in images.shape:
            raise EditingError(f"The images have shape {list(images.shape)}; give [batch, 3, height, width] in 0..1.")
        check_finite(images, "The image")
        size, seen = self.seen_size(images), images
        if fit and size != tuple(images.shape[-2:]):
            seen = functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        change, logits = self.look(seen)
        moved = change * gate(logits)
        if moved.shape != images.shape:
            moved = functional.interpolate(moved, images.shape[-2:], mode="bicubic")
        return torch.where(moved == 0, images, (images + strength * moved).clamp(0, 1))

    def seen_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width at which ``images [B, 3, H, W]`` are looked at where they may be fitted."""
        height, width = images.shape[-2:]
        ratio = self.side / min(height, width)
        if not self.side or 1 / TOLERANCE <= ratio <= TOLERANCE:
            return height, width
        return max(1, round(height * ratio)), max(1, round(width * ratio))


def weight_bytes(shape: EditorShape) -> int:
    """Bytes of such a network's weights in fp32."""
    with torch.device("meta"):
        return sum(4 * value.numel() for value in DistilledEditor(shape).parameters())


def gate(logits: Tensor) -> Tensor:
    """The mask of ``logits``: a sigmoid stretched to -0.1..1.1 and cut to 0..1, so that it reaches both."""
    return (logits.sigmoid() * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)


def editor_like(shape: EditorShape, weights: Mapping[str, Tensor], like: DistilledEditor) -> DistilledEditor:
    """A frozen network on the CPU with ``weights``, made for the same edit as ``like``."""
    with torch.random.fork_rng(devices=[]):
        made = DistilledEditor(shape)
    made.load_state_dict({name: value.detach().cpu() for name, value in weights.items()})
    made.side, made.source, made.target = like.side, like.source, like.target
    return made.eval().requires_grad_(False)

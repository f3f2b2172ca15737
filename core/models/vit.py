"""A plain vision transformer (Dosovitskiy et al., arXiv 2010.11929) with the layer names of DINO, DINOv2 and timm.

Those files hold bare weights, so the network is written here with torch's own layers; the last block's attention of the
class token comes out with the features. Registers (arXiv 2309.16588), layer scale and DINOv2's gated MLP are there
where a file has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import EditingError

HEAD_WIDTH = 64  # of every ViT that DINO, DINOv2 and timm publish under these names
EPSILON = 1e-6
PREFIXES = ("module.", "backbone.", "teacher.", "model.")
UNUSED = ("mask_token", "head.", "head_dist.", "fc_norm.")


class Attention(nn.Module):
    """Self-attention with one joint projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, T, D]`` -> the same shape."""
        q, k, v = self._split(x)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def class_attention(self, x: Tensor) -> Tensor:
        """Softmax weights of the class token's query, ``[B, heads, T]``, which fused attention does not tell."""
        q, k, _ = self._split(x)
        return ((q[:, :, :1] @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(-1)[:, :, 0]

    def keys(self, x: Tensor) -> Tensor:
        """The keys of ``x [B, T, D]``, all heads side by side, ``[B, T, D]``."""
        return self.qkv(x).chunk(3, 2)[1]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class GatedMlp(nn.Module):
    """SwiGLU (arXiv 2002.05202) as in DINOv2 ViT-g."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, T, D]`` -> the same shape."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, T, D]`` -> the same shape."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Scale(nn.Module):
    """Layer scale (arXiv 2103.17239)."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, T, D]`` times one factor a channel."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and with a residual."""

    def __init__(self, width: int, heads: int, weights: Mapping[str, Tensor]):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, heads, "attn.qkv.bias" in weights)
        gated = "mlp.w3.weight" in weights
        self.mlp = (
            GatedMlp(width, weights["mlp.w3.weight"].shape[1]) if gated else Mlp(width, len(weights["mlp.fc1.weight"]))
        )
        self.ls1, self.ls2 = (Scale(width) if f"{name}.gamma" in weights else nn.Identity() for name in ("ls1", "ls2"))

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, T, D]`` -> the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """A ViT whose shape is read off its weights.

    Args:
        weights: names and tensors of a DINO, DINOv2 or timm file; a classification head and prefixes of training are
            dropped.
        heads: attention heads; by default one for every 64 channels, as all published files have.

    Raises:
        EditingError: no such network, or a part is missing or of another shape.
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: int | None = None):
        super().__init__()
        weights = _plain(weights)
        try:
            kernel = weights["patch_embed.proj.weight"]
            self.width, _, self.patch, _ = kernel.shape
            depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
            if depth > len(weights):
                raise EditingError("Its blocks are numbered with gaps; download it again.")
            if heads is None and self.width % HEAD_WIDTH:
                raise EditingError(
                    f"Its {self.width} channels do not divide into heads of {HEAD_WIDTH}; use a DINO or DINOv2 ViT."
                )
            if heads is not None and (heads < 1 or self.width % heads):
                raise EditingError(
                    f"Its {self.width} channels do not divide into {heads} heads; give the number its page names."
                )
            self.heads = heads or self.width // HEAD_WIDTH
            with torch.device("meta"):  # the sizes are claims of single tensors until all of them fit
                self.patch_embed = nn.Module()
                self.patch_embed.proj = nn.Conv2d(
                    3, self.width, self.patch, self.patch, bias="patch_embed.proj.bias" in weights
                )
                self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width))
                self.pos_embed = nn.Parameter(torch.zeros(1, weights["pos_embed"].shape[1], self.width))
                registers = weights.get("register_tokens")
                self.register_tokens = (
                    nn.Parameter(torch.zeros(1, registers.shape[1], self.width)) if registers is not None else None
                )
                self.blocks = nn.ModuleList(
                    Block(self.width, self.heads, _below(weights, f"blocks.{index}.")) for index in range(depth)
                )
                self.norm = nn.LayerNorm(self.width, eps=EPSILON)
            self.load_state_dict(weights, assign=True)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            if isinstance(error, EditingError):
                raise
            raise EditingError(
                "The file holds no plain ViT; use DINO or DINOv2 weights (ViT-S, B, L or g) as safetensors."
            ) from error
        count = self.pos_embed.shape[1]
        side = math.isqrt(count)
        #: Whether the class token has a position of its own (not in timm's networks with registers).
        self.class_position = side * side != count
        self.native = math.isqrt(count - self.class_position)
        if self.native**2 + self.class_position != count:
            raise EditingError(f"The file's {count} positions are no square grid; use a ViT trained on square images.")

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position vectors of a grid, ``[1, rows * columns, D]``: bicubic between those of the native one, which stay
        as they are."""
        grid = self.pos_embed[:, int(self.class_position) :]
        if (rows, columns) == (self.native, self.native):
            return grid
        square = grid.unflatten(1, (self.native, self.native)).permute(0, 3, 1, 2)
        return functional.interpolate(square, size=(rows, columns), mode="bicubic").flatten(2).transpose(1, 2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised ``pixels [B, 3, h, w]``, sides multiples of the patch -> ``(patch tokens [B, N, D], class
        attention [B, heads, N])``.

        The tokens are the last block's after the final LayerNorm, the attention that of the last block.
        """
        x, count = self._before_last(pixels)
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        attention = last.attn.class_attention(last.norm1(x))
        return self.norm(last(x))[:, -count:], attention[:, :, -count:]

    def keys(self, pixels: Tensor) -> Tensor:
        """The keys of the last block for normalised ``pixels [B, 3, h, w]``: ``[B, T, D]``, heads side by side, the
        class token and registers first."""
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        return last.attn.keys(last.norm1(self._before_last(pixels)[0]))

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, int]:
        """What the last block gets, ``[B, T, D]``, and how many of its last tokens are patches."""
        patches = self.patch_embed.proj(pixels)  # type: ignore[operator, union-attr]
        rows, columns = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2) + self.positions(rows, columns)
        first = self.cls_token + self.pos_embed[:, :1] if self.class_position else self.cls_token
        prefix = [first] if self.register_tokens is None else [first, self.register_tokens]
        x = torch.cat([*(part.expand(len(x), -1, -1) for part in prefix), x], 1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x, rows * columns


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without prefixes of training, registers under one name, and without what features do not need."""
    made = {}
    for name, tensor in weights.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if not name.startswith(UNUSED):
            made["register_tokens" if name == "reg_token" else name] = tensor.float()
    return made


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}

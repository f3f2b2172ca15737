"""Inpainting a box with a latent diffusion model: an editor of the region search, for plain and for true inpainting models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..content_hash import fingerprint
from ..denoiser import Callback, Denoiser, guided, require_negative, unit_scale
from ..errors import EditingError
from ..inversion import check_latent
from ..sampling import sample
from .editors import Quality
from .paste import Framing, check_quality, repainted_cells, resized
from .proposals import Box
from .soft_mask import one_step_guess

#: ``[1, 3, h, w]`` in 0..1 to a scaled latent, or back.
ImageMap = Callable[[Tensor], Tensor]
GREY = 0.5  # what an inpainting model was trained to see where it is to paint


@runtime_checkable
class Inpainting(Protocol):
    """A denoiser of a true inpainting model, which sees the mask and the masked picture besides the noisy latent."""

    def inpainting(self, mask: Tensor, masked: Tensor) -> Denoiser:
        """The model told what is known: ``mask [1, 1, h, w]``, 1 where to paint, and the latent ``masked [1, C, h, w]``."""
        ...


def inpaint(
    denoiser: Denoiser,
    source: Tensor,
    mask: Tensor,
    noise: Tensor,
    cond: Any,
    uncond: Any | None = None,
    *,
    cfg: float = 5.0,
    steps: int = 20,
    strength: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Sample the masked part of a latent, the rest held to the source at every level (Lugmayr et al. 2022, arXiv 2201.09865, Eq. 8
    without resampling; ComfyUI's noise mask): the clean latent ``[B, C, h, w]``, outside the mask exactly ``source``.

    At each level the known part is the source with the *same* noise, so under Euler (= DDIM) steps it moves on a straight line.

    Args:
        source: ``[B, C, h, w]``, scaled latent.
        mask: zeros and ones ``[B or 1, 1, h, w]``, 1 where to paint.
        noise: ``[B, C, h, w]``, unit variance.
        steps: number of steps of the model's grid.
        strength: share of the steps taken, from the clean end; below 1 the painting starts from the source.
        callback: told after each step; an exception it raises ends the run.

    Raises:
        EditingError: wrong latent shape, cfg without ``uncond``, values out of range, a prediction that is not a number.
    """
    count = steps_taken(steps, strength)
    require_negative(cfg, uncond)
    source, noise = check_latent(source, denoiser.identity), noise.to(source)
    painted = mask.to(source.device) > 0.5
    levels = denoiser.sigma_grid(steps)[: count + 1].flip(0).tolist()

    def put_back_source(x: Tensor, sigma: float) -> Tensor:
        return torch.where(painted, x, _noised(denoiser, source, noise, sigma))

    if count == steps:
        x = noise / unit_scale(denoiser.identity, levels[0])
    else:
        x = _noised(denoiser, source, noise, levels[0])
    x = sample(
        lambda x, sigma, step: guided(denoiser, x, sigma, cond, uncond, cfg),
        put_back_source(x, levels[0]),
        levels,
        callback,
        lambda x, step: put_back_source(x, levels[step + 1]),
    )
    return torch.where(painted, x, source)


def steps_taken(steps: int, strength: float) -> int:
    """How many of ``steps`` a strength of 0..1 takes, at least one.

    Raises:
        EditingError: no steps, or a strength out of range.
    """
    if steps < 1:
        raise EditingError(f"steps is {steps}; use 1 or more.")
    if not 0 < strength <= 1:
        raise EditingError(f"strength is {strength:g}; use a share of the steps above 0 and at most 1.")
    return max(1, round(strength * steps))


@dataclass(eq=False)
class InpaintEditor:
    """Box editor by latent inpainting, crop-and-stitch (:class:`~.paste.Framing`).

    A denoiser that is :class:`Inpainting` also sees the mask and the masked picture; any other model paints by the noise mask
    alone. A latent pixel is painted when the mask touches it.

    Attributes:
        encode, decode: the VAE, ``[1, 3, h, w]`` in 0..1 to a scaled latent and back.
        cond, uncond: conditioning of the target text, and the negative one (needed unless cfg is 1).
        steps, screen_steps: steps of a full render and of one that only ranks.
        strength: see :func:`inpaint`.
        label: whatever else changes the picture and cannot be seen from here, as the name of the VAE or of a LoRA.
        callback: told after each step; an exception it raises ends the run.

    Raises:
        EditingError: values out of range, cfg without ``uncond``.
    """

    denoiser: Denoiser
    encode: ImageMap
    decode: ImageMap
    cond: Any
    uncond: Any | None = None
    cfg: float = 5.0
    steps: int = 20
    screen_steps: int = 4
    strength: float = 1.0
    framing: Framing = field(default_factory=Framing)
    label: str = ""
    callback: Callback | None = None

    def __post_init__(self) -> None:
        require_negative(self.cfg, self.uncond)
        for steps in (self.steps, self.screen_steps):
            steps_taken(steps, self.strength)

    @cached_property
    def identity(self) -> str:
        """Key of everything but the image, mask, box, seed and quality that decides the picture."""
        settings = (self.cfg, self.steps, self.screen_steps, self.strength, self.framing, self.label)
        return f"inpaint/{fingerprint(self.denoiser.identity, self.cond, self.uncond, settings)}"

    def cost(self, quality: Quality) -> int:
        """Network evaluations (u) of one render."""
        return steps_taken(self._steps(quality), self.strength) * (1 if self.cfg == 1.0 else 2)

    @torch.no_grad()
    def render(
        self, image: Tensor, mask: Tensor, box: Sequence[int], *, seed: int, quality: Quality = "full"
    ) -> Tensor:
        """The image ``[1, 3, H, W]`` with the box repainted, bit-equal outside it; see :meth:`~.paste.Framing.render`.

        Args:
            seed: of the noise; the same seed gives the same picture.
        """
        steps = self._steps(quality)

        def edit(crop: Tensor, masked: Tensor) -> Tensor:
            source = self.encode(crop)
            cells = repainted_cells(masked, (source.shape[-2], source.shape[-1]))
            noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(seed))
            return self.decode(self.paint(source, cells, torch.where(masked[:, None] > 0, GREY, crop), noise, steps))

        return self.framing.render(image, mask, box, edit)

    def paint(self, source: Tensor, cells: Tensor, known: Tensor, noise: Tensor, steps: int) -> Tensor:
        """The painted latent of one crop; a host may wrap it in its own sampling.

        Args:
            source: the crop's scaled latent ``[1, C, h, w]``.
            cells: ``[1, 1, h, w]``, 1 where to paint.
            known: the crop ``[1, 3, H, W]`` in 0..1 with the masked pixels grey.
            noise: ``[1, C, h, w]``, unit variance.
            steps: see :func:`inpaint`.
        """
        denoiser = self.denoiser
        if isinstance(denoiser, Inpainting):
            denoiser = denoiser.inpainting(cells, self.encode(known))
        return inpaint(
            denoiser, source, cells, noise, self.cond, self.uncond,
            cfg=self.cfg, steps=steps, strength=self.strength, callback=self.callback,
        )  # fmt: skip

    @property
    def preview_cost(self) -> int:
        """Network evaluations (u) of one preview."""
        return 1 if self.cfg == 1.0 else 2

    @torch.no_grad()
    def preview(self, image: Tensor, *, seed: int = 0) -> Tensor:
        """A guess of the image ``[1, 3, H, W]`` painted everywhere, see :func:`~.soft_mask.one_step_guess`.

        It works at the size at which a box as large as the image is rendered.
        """
        height, width = image.shape[-2:]
        cut = resized(
            image, replace(self.framing, context=float("inf")).crop(height, width, Box(0, 0, width, height)).size
        )
        guess = self.decode(self.glimpse(self.encode(cut), torch.full_like(cut, GREY), seed))
        return resized(guess.clamp(0, 1), (height, width))

    def glimpse(self, source: Tensor, known: Tensor, seed: int) -> Tensor:
        """The latent of a preview; a host may wrap it in its own sampling.

        Args:
            source: the scaled latent ``[1, C, h, w]`` of the whole image.
            known: ``[1, 3, H, W]`` in 0..1, all grey.
        """
        denoiser = self.denoiser
        if isinstance(denoiser, Inpainting):
            denoiser = denoiser.inpainting(torch.ones_like(source[:, :1]), self.encode(known))
        return one_step_guess(denoiser, source, self.cond, self.uncond, cfg=self.cfg, seed=seed)

    def _steps(self, quality: Quality) -> int:
        check_quality(quality)
        return self.steps if quality == "full" else self.screen_steps


def _noised(denoiser: Denoiser, source: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The source at a level: ``x0 + sigma * noise``, for flow models ``(1 - sigma) * x0 + sigma * noise``."""
    clean = source * (1 - sigma) if denoiser.identity.prediction == "flow" else source
    return clean + sigma * noise

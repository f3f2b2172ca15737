"""Which samples a training takes at each step, with which noise, and a cache of what depends on image and noise alone.

Everything follows from the seed and the step's number, so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..denoiser import Denoiser, ModelIdentity

#: Number of an image, and of one of its noises.
ImageNoise = tuple[int, int]
GRID = 100  # the noise level is a fraction of the model's steps, to 1 %


def seeded(*keys: object) -> torch.Generator:
    """A CPU generator that depends on nothing but ``keys``."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Draw:
    """One sample of a step: numbers of the image, of the target class and of the image's noise."""

    image: int
    target: int
    noise: int


@dataclass(frozen=True)
class Schedule:
    """The samples of a whole training.

    Attributes:
        images, targets: how many there are.
        batch: samples in a step.
        noises_per_image: noises that each image gets in turn, so that what depends on image and noise alone can be
            remembered; 0 draws a new noise every time.
        seed: of everything.
    """

    images: int
    targets: int
    batch: int
    noises_per_image: int
    seed: int

    def draws(self, step: int) -> list[Draw]:
        """The samples of ``step``: every image once an epoch in random order, every class equally often."""
        return [self._draw(number) for number in range(step * self.batch, (step + 1) * self.batch)]

    def _draw(self, number: int) -> Draw:
        epoch, place = divmod(number, self.images)
        image = self._order(epoch)[place]
        # Offset by the image's number: each class then meets every image in turn, whatever the batch.
        target = (self._offsets[image] + epoch) % self.targets
        if not self.noises_per_image:
            return Draw(image, target, epoch)
        noise = torch.randint(self.noises_per_image, (1,), generator=seeded(self.seed, "slot", number))
        return Draw(image, target, int(noise))

    @cached_property
    def _orders(self) -> dict[int, list[int]]:
        return {}

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            self._orders[epoch] = torch.randperm(self.images, generator=seeded(self.seed, "order", epoch)).tolist()
        return self._orders[epoch]

    @cached_property
    def _offsets(self) -> list[int]:
        return (torch.randperm(self.images, generator=seeded(self.seed, "targets")) % self.targets).tolist()

    def first_met(self, steps: int) -> dict[ImageNoise, tuple[ImageNoise, ...]]:
        """For each image and noise of ``steps`` steps: all that occur for the first time in the same step, in order."""
        together: dict[ImageNoise, tuple[ImageNoise, ...]] = {}
        for step in range(steps):
            new = tuple(
                dict.fromkeys(key for draw in self.draws(step) if (key := (draw.image, draw.noise)) not in together)
            )
            together |= dict.fromkeys(new, new)
        return together


class RowCache:
    """Rows of a tensor by image and noise, each computed when it is first needed.

    Args:
        together: see :meth:`Schedule.first_met`. What first occurs in the same step is always computed as one batch, so
            that a resumed training, which computes it again, gets the same bits.
    """

    def __init__(self, together: Mapping[ImageNoise, tuple[ImageNoise, ...]]):
        self.together = together
        self._known: dict[ImageNoise, Tensor] = {}

    def known(self, keys: Sequence[ImageNoise]) -> Tensor:
        """Rows ``[B, ...]`` that were computed before."""
        return torch.stack([self._known[key] for key in keys])

    def rows(self, keys: Sequence[ImageNoise], compute: Callable[[list[ImageNoise]], Tensor]) -> Tensor:
        """Rows ``[B, ...]`` of ``keys``; ``compute`` is called for those that are not known."""
        for key in keys:
            if key not in self._known:
                group = list(self.together[key])
                self._known |= dict(zip(group, compute(group), strict=True))
        return self.known(keys)


@dataclass(frozen=True)
class NoiseLevels:
    """How noisy the latents of a training are.

    Attributes:
        sigmas: ``[GRID + 1]`` ascending, the model's levels by hundredths of its steps.
        noise_level: L as a fraction of the model's steps T.
        jitter: levels are drawn from ``noise_level`` plus or minus this.
    """

    sigmas: Tensor
    noise_level: float
    jitter: float

    @staticmethod
    def of(denoiser: Denoiser, noise_level: float, jitter: float) -> NoiseLevels:
        """The levels of a model."""
        return NoiseLevels(denoiser.sigma_grid(GRID), noise_level, jitter)

    def sigma(self, generator: torch.Generator) -> float:
        """The sigma of a level that is drawn; that of ``noise_level`` itself without jitter."""
        offset = (2 * float(torch.rand(1, generator=generator)) - 1) * self.jitter if self.jitter else 0.0
        return float(self.sigmas[min(GRID, max(1, round((self.noise_level + offset) * GRID)))])


def noisy(
    latents: Tensor, identity: ModelIdentity, levels: NoiseLevels, keys: Sequence[tuple[object, ...]]
) -> tuple[Tensor, Tensor]:
    """Forward diffusion of each row with its own seed (Eq. 8): ``(x [B, C, h, w] in sigma space, sigma [B])``.

    Args:
        latents: ``[B, C, h, w]``, clean.
        keys: what the noise and level of each row depend on.
    """
    rows, sigmas = [], []
    for latent, key in zip(latents, keys, strict=True):
        generator = seeded(*key)
        sigmas.append(levels.sigma(generator))
        rows.append(torch.randn(latent.shape, generator=generator))
    noise = torch.stack(rows).to(latents)
    sigma = torch.tensor(sigmas, dtype=torch.float32, device=latents.device)
    scale = sigma.view(-1, 1, 1, 1)
    if identity.prediction == "flow":
        return (1 - scale) * latents + scale * noise, sigma
    return latents + scale * noise, sigma

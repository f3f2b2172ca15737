"""What a training evaluates once for each picture and noise, and then remembers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..denoiser import Denoiser, ModelIdentity

#: An image's number and the number of one of its noises.
Key = tuple[int, int]


class Memory:
    """Rows by image and noise, made when first met.

    Args:
        together: for each key all that first meet in the same step, in order, see :meth:`~.schedule.Schedule.first_met`. What is
            not known is made for all of them at once, so that a resumed run makes it in the same batches, to the bit.
    """

    def __init__(self, together: Mapping[Key, tuple[Key, ...]]):
        self.together = together
        self._known: dict[Key, Tensor] = {}

    def known(self, keys: Sequence[Key]) -> Tensor:
        """Rows ``[B, ...]`` that were all met before."""
        return torch.stack([self._known[key] for key in keys])

    def rows(self, keys: Sequence[Key], make: Callable[[list[Key]], Tensor]) -> Tensor:
        """Rows ``[B, ...]`` of ``keys``; ``make`` gives those that are not known."""
        for key in keys:
            if key not in self._known:
                group = list(self.together[key])
                self._known |= dict(zip(group, make(group), strict=True))
        return self.known(keys)


GRID = 100  # the noise level is a fraction of the model's steps, to 1 %


def seeded(*keys: object) -> torch.Generator:
    """A CPU generator that depends on nothing but ``keys``."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Draw:
    """One sample of a step: image number, class number, and which of the image's noises."""

    image: int
    target: int
    slot: int


@dataclass(frozen=True)
class Schedule:
    """The draws of a whole run.

    Attributes:
        images, targets: how many there are.
        batch: samples a step.
        bank: noises for each image that come again and again, so that what depends on image and noise alone can be kept;
            0 draws a new noise every time.
        seed: of everything.
    """

    images: int
    targets: int
    batch: int
    bank: int
    seed: int

    def draws(self, step: int) -> list[Draw]:
        """The samples of ``step``: every image once an epoch in random order, every class equally often."""
        return [self._draw(number) for number in range(step * self.batch, (step + 1) * self.batch)]

    def _draw(self, number: int) -> Draw:
        epoch, place = divmod(number, self.images)
        image = self._order(epoch)[place]
        # Offset by the image's number: each class then meets every image in turn, whatever the batch.
        target = (self._offsets[image] + epoch) % self.targets
        slot = int(torch.randint(self.bank, (1,), generator=seeded(self.seed, "slot", number))) if self.bank else epoch
        return Draw(image, target, slot)

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

    def first_met(self, steps: int) -> dict[tuple[int, int], tuple[tuple[int, int], ...]]:
        """For each (image, slot) of ``steps`` steps, those first met in the same step, in order.

        What is kept for them is computed as one batch, so a resumed run, which computes it again, gets the same bits.
        """
        together: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        for step in range(steps):
            new = tuple(
                dict.fromkeys(key for draw in self.draws(step) if (key := (draw.image, draw.slot)) not in together)
            )
            together |= dict.fromkeys(new, new)
        return together


@dataclass(frozen=True)
class NoiseLevels:
    """The noisy latents of training: level L with an optional band around it.

    Attributes:
        sigmas: ``[GRID + 1]`` ascending, the model's levels by hundredths of its steps.
        level: L as a fraction of the steps T.
        band: half the width of the band, in the same unit.
    """

    sigmas: Tensor
    level: float
    band: float

    @staticmethod
    def of(denoiser: Denoiser, level: float, band: float) -> NoiseLevels:
        """The levels of a model."""
        return NoiseLevels(denoiser.sigma_grid(GRID), level, band)

    def sigma(self, generator: torch.Generator) -> float:
        """A level's sigma: L itself without a band."""
        spread = (2 * float(torch.rand(1, generator=generator)) - 1) * self.band if self.band else 0.0
        return float(self.sigmas[min(GRID, max(1, round((self.level + spread) * GRID)))])


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

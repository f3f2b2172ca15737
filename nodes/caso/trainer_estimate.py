"""What a training will take, told before its first step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...core.caso.look import FINAL_STEPS
from ...core.caso.settings import TrainingSettings
from ...core.caso.training import EmbeddingTrainer
from ...core.denoiser import Evaluations
from ..host.sampling import CHECKPOINTED_ROOM, GRADIENT_ROOM

#: A backward pass in forward passes, and another forward where blocks run again.
BACKWARD, AGAIN = 2, 1
INVERTING = 2  # evaluations of a step of the way to the noise
GIB = 1024**3


def in_time(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


class Estimate:
    """Time and memory of a training.

    Args:
        model: the host's MODEL.
        rows: pictures that go through the network with gradient at once.
        shape: of one latent, ``[C, h, w]``.
        settings: of the training.
        checkpointing: whether blocks run again in the backward pass.
        held_out: number of pictures that are edited at each look.
        look_steps: of these edits.
        beside: the host's handles of the networks that are loaded besides.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        shape: tuple[int, ...],
        settings: TrainingSettings,
        checkpointing: bool,
        held_out: int,
        look_steps: int,
        beside: Iterable[Any] = (),
    ):
        room = CHECKPOINTED_ROOM if checkpointing else GRADIENT_ROOM
        weights = float(sum(patcher.model_size() for patcher in (model, *beside)))
        self.bytes = weights + float(model.model.memory_required([rows * room, *shape]))
        self.rows, self.settings, self.checkpointing = rows, settings, checkpointing
        self.held_out, self.look_steps = held_out, look_steps
        self.sentence = ""

    def evaluations(self, steps: int) -> float:
        """Network evaluations, in forwards, of ``steps`` steps and the looks between them."""
        step = self.rows * (1 + 1 + BACKWARD + (AGAIN if self.checkpointing else 0))
        looks = steps / self.settings.check_every if self.settings.check_every else 1.0
        edits = self.held_out / 2 * (self.look_steps * (INVERTING + 2 * looks) + FINAL_STEPS * (INVERTING + 2))
        return steps * step + edits

    @torch.no_grad()
    def measured(self, trainer: EmbeddingTrainer, latent: Tensor) -> str:
        """The sentence, after one look of the network at ``latent [1, C, h, w]``, which is not counted."""
        sigma, batch = float(trainer.levels.sigmas[50]), latent.expand(self.rows, -1, -1, -1)
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            prediction = trainer.denoiser(batch, sigma, trainer.empty)
            float(prediction.flatten()[0])  # waits for the device
            spent = time.monotonic() - began
        trainer.denoiser.evaluations = Evaluations()
        steps = max(0, self.settings.steps - trainer.step)
        seconds = spent / self.rows * self.evaluations(steps)
        also = " besides decoding" if self.settings.classification else ""
        self.sentence = (
            f"estimated before the first step: {in_time(seconds)}{also} and {self.bytes / GIB:.1f} GB for {steps} "
            f"steps of {self.rows} pictures"
        )
        return self.sentence

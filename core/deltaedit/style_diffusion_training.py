"""Training a :class:`~.style_diffusion.StyleDiffusion` (DeltaEdit, Eq. 14): the loss, and the steps down it.

The paper draws the time uniformly and counts every error of the noise the same. Then little is learned where noise
hides the picture, although what the style code says is learned just there. ``noise_levels`` and ``weight_limit`` are
the two ways around it that leave the loss Eq. 14's, the L1 error of the noise.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..training import MOMENTS, check_same_run, moments, restore_moments
from .style_code import StyleLayout
from .style_diffusion import TIMES, StyleDiffusion, fitted, noise_schedule

FILE_FORMAT = "semantic_editing.style_diffusion_training"
FILE_VERSION = "1"
NoiseLevels = Literal["uniform", "balanced"]
#: ``balanced`` draws the logarithm of sigma evenly between these, but for this share of the draws.
LEAST_LEVEL, MOST_LEVEL, UNIFORM_SHARE = 0.05, 30.0, 0.2
FIGURES = ("loss", "held_out")
MOST_HELD_OUT = 64  # pictures
#: Settings that may differ in a resumed training.
FREE = {"steps", "check_every"}


def level_chances(levels: NoiseLevels) -> Tensor:
    """How often each training step is drawn, ``[TIMES]``, sum 1.

    ``uniform`` is Eq. 14's. ``balanced`` spends four fifths evenly on the logarithm of the noise level where the
    picture is decided, sigma .05 to 30; a fifth of Eq. 14's draws lie above, where the noise can be read off.
    """
    uniform = torch.full((TIMES,), 1 / TIMES, dtype=torch.float64)
    if levels == "uniform":
        return uniform
    sigmas = noise_schedule().double()
    steps = torch.gradient(sigmas.log())[0] * ((sigmas > LEAST_LEVEL) & (sigmas < MOST_LEVEL))
    return UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * steps / steps.sum()


def noise_loss(predicted: Tensor, noise: Tensor, sigma: Tensor, weight_limit: float = 1.0) -> Tensor:
    """The L1 error of predicted noise ``[B, 3, H, W]`` (Eq. 14, as a mean), a scalar.

    Args:
        sigma: noise levels ``[B]``.
        weight_limit: a picture counts ``sqrt(1 + sigma^2)``, which makes of the noise's error that of v (Salimans & Ho,
            arXiv 2202.00512), and no more than this; 1 is the paper's.
    """
    weight = (1 + sigma**2).sqrt().clamp(max=weight_limit)
    return ((predicted - noise).abs().mean((1, 2, 3)) * weight).mean()


def noisy(pictures: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 9: ``pictures`` in -1..1 and ``noise`` ``[B, 3, H, W]`` mixed at levels ``[B]``, of unit variance."""
    level = sigma[:, None, None, None]
    return (pictures + level * noise) * (1 + level**2).rsqrt()


@dataclass(frozen=True, eq=False)
class StyledPictures:
    """Pictures with their style codes, to learn from.

    Attributes:
        pictures: uint8 ``[N, size, size, 3]``, an array or tensor that may be memory-mapped.
        convs: their convolution styles ``[N, layout.width]``.
        layout, generator: of these styles.

    Raises:
        EditingError: the parts do not fit each other, or there is nothing to learn from.
    """

    pictures: Any
    convs: Tensor
    layout: StyleLayout
    generator: str

    def __post_init__(self) -> None:
        shape = tuple(self.pictures.shape)
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise EditingError(
                f"The pictures have shape {list(shape)}; training takes squares, [count, side, side, 3]."
            )
        if len(self.convs) != shape[0] or self.convs.shape[1:] != (self.layout.width,):
            raise EditingError(
                f"There are {shape[0]} pictures and styles of shape {list(self.convs.shape)}; each picture needs "
                f"{self.layout.width} of them."
            )
        if shape[0] < 2:
            raise EditingError("One picture is nothing to learn from; give at least two, usually thousands.")

    def __len__(self) -> int:
        return len(self.convs)

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return int(self.pictures.shape[1])

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """``([b, 3, size, size] in -1..1, styles [b, S])`` of pictures ``index [b]``."""
        order = index.sort().indices  # a file is read from front to back
        array = isinstance(self.pictures, np.ndarray)
        chosen = torch.from_numpy(self.pictures[index[order].numpy()]) if array else self.pictures[index[order]]
        found = chosen.movedim(-1, 1).float() / 127.5 - 1
        back = order.argsort()
        return found[back], self.convs[index].float()

    def statistics(self, chunk: int = 4096) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each style ``[S]``."""
        count, total = len(self.convs), torch.zeros(self.layout.width, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for start in range(0, count, chunk):
            part = torch.as_tensor(self.convs[start : start + chunk]).double()
            total, squares = total + part.sum(0), squares + part.square().sum(0)
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


def gather_pictures(
    names: Sequence[str],
    find: Callable[[str], Tensor | None],
    size: int,
    callback: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The pictures behind the rows of a set of style codes: ``(uint8 [n, size, size, 3], their rows [n])``.

    Args:
        names: of all rows.
        find: a name -> its square picture ``[1, 3, H, H]`` in 0..1, None where there is none.
        callback: told ``(rows done, rows in all)``; an exception it raises ends it.

    Raises:
        EditingError: fewer than two pictures were found.
    """
    found, rows = [], []
    for row, name in enumerate(names):
        picture = find(name)
        if picture is not None:
            found.append(((fitted(picture, size) + 1) * 127.5).round().byte()[0].movedim(0, -1).cpu())
            rows.append(row)
        if callback is not None:
            callback(row + 1, len(names))
    if len(found) < 2:
        raise EditingError(
            f"Of the {len(names)} faces in the latents {len(found)} have a picture here; name the folder that the "
            "latents were made of, or wire the generator whose samples they are."
        )
    return torch.stack(found), torch.tensor(rows)


@dataclass(frozen=True)
class DiffusionSettings:
    """How to train.

    Attributes:
        steps: of the optimizer.
        batch: pictures of a step.
        learning_rate: of AdamW, after ``rise`` steps in which it grows.
        rise: see ``learning_rate``.
        weight_decay: of AdamW.
        average: decay of the exponential average of the weights (EMA), which is what is kept; over few steps at first.
        noise_levels: see :func:`level_chances`.
        weight_limit: see :func:`noise_loss`.
        check_every: steps between looks at the held-out pictures.
        seed: of everything drawn at random.
    """

    steps: int = 20_000
    batch: int = 16
    learning_rate: float = 1e-3
    rise: int = 100
    weight_decay: float = 0.01
    average: float = 0.999
    noise_levels: NoiseLevels = "balanced"
    weight_limit: float = 10.0
    check_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.check_every) < 1 or self.rise < 0:
            raise EditingError("steps, batch size and the steps between two looks must be 1 or more.")
        if not self.learning_rate > 0 or not self.weight_limit >= 1 or not 0 <= self.average < 1:
            raise EditingError(
                "The learning rate must be above 0, the limit of weights 1 or more, the average from 0 to below 1."
            )

    @staticmethod
    def paper(**changes: Any) -> DiffusionSettings:
        """As section 5.1 says: AdamW at 1e-4, weight decay .01, batches of 64; the average is DiffAE's."""
        settings = DiffusionSettings(
            batch=64, learning_rate=1e-4, rise=0, average=0.9999, noise_levels="uniform", weight_limit=1.0
        )
        return replace(settings, **changes)


@dataclass(frozen=True)
class DiffusionProgress:
    """One step.

    Attributes:
        step: from 1.
        loss: of its batch, as trained.
        held_out: Eq. 14 as printed, of the average on held-out pictures; NaN where there was no look.
    """

    step: int
    loss: float
    held_out: float = math.nan


class DiffusionTrainer:
    """Trains a network step by step and keeps the best average of its weights.

    A loss that is not a number ends the training; what was kept before stays, and :attr:`trouble` says so.

    Args:
        network: is changed; its statistics become those of ``data``.
        data: of the network's size and generator. A twentieth, at most :data:`MOST_HELD_OUT`, is set aside.

    Raises:
        EditingError: pictures of another size or generator.
    """

    def __init__(self, network: StyleDiffusion, data: StyledPictures, settings: DiffusionSettings):
        if data.size != network.shape.size:
            raise EditingError(
                f"The pictures are {data.size} pixels wide and the network takes {network.shape.size}; bring them to "
                "that size."
            )
        if data.layout != network.layout or data.generator != network.generator:
            raise EditingError("The style codes are another generator's than the network's; use one generator.")
        self.network, self.data, self.settings = network, data, settings
        self.step, self.trouble = 0, ""
        self.history: list[DiffusionProgress] = []
        self.best_step, self.best_score = 0, math.inf
        order = torch.randperm(len(data), generator=_seeded(settings.seed, "order", 0))
        count = min(MOST_HELD_OUT, max(1, len(data) // 20))
        self.held_out, self.training = order[:count], order[count:]
        with torch.inference_mode(False), torch.no_grad():
            mean, deviation = data.statistics()
            network.mean.copy_(mean)
            network.deviation.copy_(deviation)
        self.weights = dict(network.named_parameters())
        for value in self.weights.values():
            value.requires_grad_(True)
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        self.best_weights = {name: value.clone() for name, value in self.average.items()}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.chances = level_chances(settings.noise_levels)

    def run(self, callback: Callable[[DiffusionProgress], None] | None = None) -> StyleDiffusion:
        """Train the steps that are left; returns :meth:`best`.

        Args:
            callback: told after each step; an exception it raises ends the run, and :meth:`best` still has the best.
        """
        for progress in self.steps():
            if callback is not None:
                callback(progress)
        return self.best()

    def steps(self) -> Iterator[DiffusionProgress]:
        """One entry after each step, until all are taken or a loss is not a number."""
        while self.step < self.settings.steps and not self.trouble:
            progress = self._advance()
            if progress is not None:
                yield progress

    def best(self) -> StyleDiffusion:
        """The network with its best average, for use; its training goes on from where it was all the same."""
        network = StyleDiffusion(
            self.network.shape, self.network.layout, self.network.generator, self.network.mean, self.network.deviation
        ).to(self.network.mean.device)
        kept = self.best_weights if self.best_score < math.inf else self.average
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(kept[name])
        network.facts = {
            "steps": self.best_step or self.step,
            "pictures": len(self.training),
            "settings": asdict(self.settings),
        }
        return network.eval().requires_grad_(False)

    def look(self) -> float:
        """Eq. 14 as printed, uniform times and all errors alike, of the average on the held-out pictures.

        Noise and times are the same at every look. The average is kept if it is the best so far.
        """
        self._finish(self._held_out_loss())
        return self.history[-1].held_out if self.history else math.nan

    def _advance(self) -> DiffusionProgress | None:
        settings, network = self.settings, self.network
        seeded = _seeded(settings.seed, "step", self.step)
        with torch.inference_mode(False), torch.enable_grad():
            network.train()
            chosen = self.training[torch.randint(len(self.training), (settings.batch,), generator=seeded)]
            times = torch.multinomial(self.chances, settings.batch, replacement=True, generator=seeded)
            device = network.mean.device
            with torch.random.fork_rng(
                [device] if device.type == "cuda" else []
            ):  # dropout has no generator of its own
                torch.manual_seed(int(torch.randint(2**62, (1,), generator=seeded)))
                loss = self._loss(chosen, times, seeded, settings.weight_limit)
                gradients = torch.autograd.grad(  # a level without maps of its own has none
                    loss, list(self.weights.values()), allow_unused=True, materialize_grads=True
                )
            squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
            if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(squares)):
                self.trouble = (
                    f"The loss at step {self.step + 1} is not a number; what was best before is kept. Lower the "
                    "learning rate."
                )
                return None
            shrink = (1 / squares.sqrt().clamp_min(1e-12)).clamp(max=1)
            for value, gradient in zip(self.weights.values(), gradients, strict=True):
                value.grad = gradient * shrink
            rate = settings.learning_rate * min(1.0, (self.step + 1) / max(settings.rise, 1))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.step += 1
            decay = min(settings.average, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)
        self.history.append(DiffusionProgress(self.step, float(loss.detach())))
        if self.step % settings.check_every == 0 or self.step == settings.steps:
            self.look()
        return self.history[-1]

    def _loss(self, index: Tensor, times: Tensor, seeded: torch.Generator, weight_limit: float) -> Tensor:
        device = self.network.mean.device
        pictures, convs = (part.to(device) for part in self.data.rows(index))
        noise = torch.randn(pictures.shape, generator=seeded).to(device)
        sigma = self.network.sigmas[times.to(device)]
        return noise_loss(self.network(noisy(pictures, noise, sigma), sigma, convs), noise, sigma, weight_limit)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        network, seeded = self.network, _seeded(self.settings.seed, "held out", 0)
        network.eval()
        now = {name: value.detach().clone() for name, value in self.weights.items()}
        total = 0.0
        try:
            for name, value in self.weights.items():
                value.data.copy_(self.average[name])
            # The times are spread evenly rather than drawn, so that few pictures say enough.
            spread = torch.linspace(0, TIMES - 1, len(self.held_out)).round().long()
            for part, times in zip(
                self.held_out.split(self.settings.batch), spread.split(self.settings.batch), strict=True
            ):
                total += len(part) * float(self._loss(part, times, seeded, 1.0))
        finally:
            for name, value in self.weights.items():
                value.data.copy_(now[name])
        return total / len(self.held_out)

    def _finish(self, score: float) -> None:
        if self.history:
            self.history[-1] = replace(self.history[-1], held_out=score)
        if score < self.best_score:
            self.best_score, self.best_step = score, self.step
            self.best_weights = {name: value.clone() for name, value in self.average.items()}


def _seeded(seed: int, what: str, number: int) -> torch.Generator:
    """A generator for one purpose and step, so that a resumed training draws what it would have drawn."""
    digest = hashlib.sha256(f"{seed} {what} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def save_training(trainer: DiffusionTrainer, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write everything that :func:`resume_training` needs: weights, average, best, AdamW's moments, history.

    Raises:
        EditingError: the file exists and ``overwrite`` is False, or it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in trainer.weights.items():
        tensors |= {f"now.{name}": value, f"average.{name}": trainer.average[name]}
        tensors[f"best.{name}"] = trainer.best_weights[name]
    tensors |= moments(trainer.optimizer, trainer.weights)
    rows = [[getattr(entry, figure) for figure in FIGURES] for entry in trainer.history]
    tensors["history"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(FIGURES))
    best = None if math.isinf(trainer.best_score) else trainer.best_score
    progress = {"step": trainer.step, "smoothed": 0.0, "best_step": trainer.best_step, "best_score": best}
    metadata = {
        FORMAT_KEY: FILE_FORMAT,
        "version": FILE_VERSION,
        "progress": json.dumps(progress),
        "run": json.dumps(_run(trainer)),
    }
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def resume_training(trainer: DiffusionTrainer, path: str | Path) -> None:
    """Put a new ``trainer`` where the saved one was; it then goes on exactly as the saved one would have.

    Raises:
        EditingError: missing, damaged or foreign file, or one of a training with other pictures, settings or network.
    """
    tensors, metadata = load_tensors(path, FILE_FORMAT, kind="style diffusion training")
    name = Path(path).name
    saved = metadata_json(metadata, "run", name, "style diffusion training")
    progress = metadata_json(metadata, "progress", name, "style diffusion training")
    check_same_run(saved, _run(trainer), name)
    step = progress["step"]
    wanted = {
        f"{kind}.{key}": value.shape
        for key, value in trainer.weights.items()
        for kind in ("now", "average", "best", *(MOMENTS if step else ()))
    }
    fits = set(wanted) | {"history"} == set(tensors) and all(tensors[key].shape == wanted[key] for key in wanted)
    sound = fits and all(tensors[key].is_floating_point() and bool(tensors[key].isfinite().all()) for key in wanted)
    if not sound or tensors["history"].shape != (step, len(FIGURES)) or not tensors["history"].is_floating_point():
        raise EditingError(f"{name} has parts that do not fit together; start the training anew.")
    with torch.inference_mode(False), torch.no_grad():
        for key, value in trainer.weights.items():
            value.copy_(tensors[f"now.{key}"])
            trainer.average[key].copy_(tensors[f"average.{key}"])
            trainer.best_weights[key].copy_(tensors[f"best.{key}"])
        restore_moments(trainer.optimizer, trainer.weights, tensors, step)
    trainer.step, trainer.best_step = step, progress["best_step"]
    trainer.best_score = math.inf if progress["best_score"] is None else float(progress["best_score"])
    trainer.history = [
        DiffusionProgress(number, *row) for number, row in enumerate(tensors["history"].tolist(), start=1)
    ]


def made_by(network: StyleDiffusion, settings: DiffusionSettings) -> bool:
    """Whether a trained network comes from a training with these settings, however long."""
    stored = network.facts.get("settings")
    current = {key: value for key, value in asdict(settings).items() if key not in FREE}
    return isinstance(stored, dict) and all(stored.get(key) == value for key, value in current.items())


def _run(trainer: DiffusionTrainer) -> dict[str, Any]:
    """What must be the same for a training to go on, as the file keeps it."""
    settings = {key: value for key, value in asdict(trainer.settings).items() if key not in FREE}
    network = trainer.network
    return {
        **settings,
        "network": asdict(network.shape),
        "generator": network.generator,
        "layout": asdict(network.layout),
        "pictures": [
            len(trainer.data),
            round(float(network.mean.mean()), 4),
            round(float(network.deviation.mean()), 4),
        ],
    }

"""Training a Delta Mapper on differences of images alone (section 4.1, Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.func import functional_call

from ..errors import EditingError
from ..images.curves import curves_plot
from ..training import Best, Titles, Trainer
from .latents import Latents, described
from .mapper import FLAT, RELEASED, DeltaMapper, condition

DELTA, PLAIN = "delta", "plain"
#: Held-out faces, whatever their share, and held-out pairs at most.
FEWEST_HELD, MOST_HELD = 16, 2000
RATIO = "held-out squared error over no change's"


@dataclass(frozen=True)
class MapperSettings:
    """How a mapper is trained.

    Attributes:
        architecture, hidden, dropout: see :class:`~.mapper.DeltaMapper`.
        standardise: styles in units of each channel's deviation; False: as they are, as the published program has them.
        learning_rate, beta2, weight_decay: of AdamW (Adam where nothing decays); the first beta is .9.
        warm_up: steps over which the rate rises.
        cosine: the rate falls to nearly nothing over the steps; False: it stays.
        longest_gradient: longer gradients are cut to this norm; 0: none are.
        averaging: how much of their running mean the weights keep at each step, which is what is kept; 0: no mean.
        conditioning: :data:`DELTA`, or :data:`PLAIN`, the paper's straightforward solution (Eq. 1 and 2), whose
            condition is the other image itself: for comparison, as it gives an average face.
        alike: the second face of a pair is the one that CLIP finds most like the first among some random faces: 1, 4,
            16 and so on to this number of them, by lot. 1: any face, as in the paper. Faces at random differ in nearly
            everything, and an edit asks for one thing.
        held_out: share of the faces that are not learned from, with a least and a most.
        check_every: steps between looks at these.
    """

    architecture: str = FLAT
    hidden: int = 256
    dropout: float = 0.1
    standardise: bool = True
    steps: int = 4000
    batch: int = 256
    learning_rate: float = 3e-3
    beta2: float = 0.99
    weight_decay: float = 0.01
    warm_up: int = 50
    cosine: bool = True
    longest_gradient: float = 1.0
    averaging: float = 0.99
    conditioning: str = DELTA
    alike: int = 1
    held_out: float = 0.05
    check_every: int = 100
    seed: int = 0

    def check(self) -> None:
        """Raise :class:`EditingError` for what cannot be trained with."""
        for name in ("steps", "batch", "hidden", "check_every"):
            if getattr(self, name) < 1:
                raise EditingError(f"{name} is {getattr(self, name)}; use 1 or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise EditingError(f"The learning rate is {self.learning_rate}; use more than 0.")
        if not 0 <= self.held_out < 1:
            raise EditingError(f"The share held out is {self.held_out}; use 0 to 1.")


#: Settings by name: learned several times faster, and as the published program.
PRESETS = {
    "fast": MapperSettings(alike=256),
    "released": MapperSettings(
        architecture=RELEASED,
        standardise=False,
        batch=64,
        learning_rate=0.5,
        beta2=0.999,
        weight_decay=0.0,
        warm_up=0,
        cosine=False,
        longest_gradient=0.0,
        averaging=0.0,
    ),
}


@dataclass(frozen=True)
class Validation:
    """What a mapper makes of the held-out pairs.

    Attributes:
        step: after which.
        loss: Eq. 6.
        ratio: its squared error over that of the predictor that never changes anything.
        cosine: between predicted and true change, mean over the pairs.
    """

    step: int
    loss: float
    ratio: float
    cosine: float


def delta_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Eq. 6 for changes ``[B, S]``: squared error, mean over the channels, plus 1 - cosine.

    The paper prints the norm of the error; the published program has its mean square, which is taken here.
    """
    return functional.mse_loss(predicted, true) + 1 - functional.cosine_similarity(predicted, true).mean()


class MapperTrainer(Trainer[DeltaMapper]):
    """Trains a mapper, see :class:`~..training.Trainer`; what is learned from and held out are faces.

    Args:
        latents: what to learn from; on the CPU they stay maps of their file, elsewhere they move to ``device`` whole.
        device: where to compute.

    Raises:
        EditingError: too few faces, settings out of range, or an architecture that the generator does not allow.
    """

    titles = Titles(made="mapper", kind="mapper training", file_format="semantic_editing.mapper_training")
    look = Validation

    def __init__(self, latents: Latents, settings: MapperSettings, device: str | torch.device = "cpu"):
        settings.check()
        held = min(max(round(settings.held_out * len(latents)), FEWEST_HELD), MOST_HELD)
        if len(latents) < 2 * FEWEST_HELD:
            raise EditingError(
                f"There are only {len(latents)} faces to learn from; make at least {2 * FEWEST_HELD} with DeltaEdit "
                "Latents, usually ten thousand or more."
            )
        self.latents = latents
        super().__init__(settings, len(latents), held, device)
        self.longest_gradient = settings.longest_gradient
        with torch.inference_mode(False), self._seeded(-1):
            clip_width = latents.image_features.shape[1]
            self.mapper = DeltaMapper(
                latents.layout.levels, clip_width, settings.architecture, settings.hidden, settings.dropout
            )
            if settings.standardise:
                self.mapper.mean, self.mapper.deviation = latents.moments(self.train)
            self.mapper.layout = latents.layout
            self.mapper.generator, self.mapper.clip = latents.origin.generator, latents.origin.clip
            self.mapper.to(self.device)
            fused = self.device.type in ("cpu", "cuda")
            self._learn(
                self.mapper,
                betas=(0.9, settings.beta2),
                weight_decay=settings.weight_decay,
                fused=fused,
                foreach=None if fused else True,
            )
            self.features, self.offsets = (part.to(self.device) for part in (latents.image_features, latents.offsets))
            self.centre = (latents.centre.to(self.device) - self.mapper.mean) / self.mapper.deviation
            self.scale = 1 / self.mapper.deviation
            # Pairs of the held-out faces: each with the next ones in a seeded order, so that there are enough of few
            shuffled = self.lot.to(self.device)
            shifts = range(1, max(2, min(held - 1, MOST_HELD // held) + 1))
            self.pairs = shuffled.repeat(len(shifts)), torch.cat([shuffled.roll(shift) for shift in shifts])

    def _finished(self, found: Best) -> DeltaMapper:
        settings, source = self.settings, self.mapper
        with torch.inference_mode(False), self._seeded(-1):
            made = DeltaMapper(
                source.levels, source.clip_width, settings.architecture, settings.hidden, settings.dropout
            )
            made.load_state_dict(
                {name: value.detach().cpu() for name, value in (source.state_dict() | found.weights).items()}
            )
        made.layout, made.generator, made.clip = source.layout, source.generator, source.clip
        result = self._validation(found.weights)
        made.facts = {
            "faces": f"{len(self.train)} and {len(self.held)} held out",
            "steps": f"{found.step} of {self.step}",
            "held-out loss": f"{result.loss:.4f}",
            RATIO: f"{result.ratio:.4f}",
            "held-out cosine": f"{result.cosine:.4f}",
            "training": self.fingerprint(),
        }
        return made.eval().requires_grad_(False)

    def plot(self) -> Tensor:
        """The loss and the ratio of squared errors over the steps, ``[H, W, 3]`` in 0..1; a line marks what is kept.

        Blue is the training batch, smoothed; red are the held-out pairs, whose figures stand until the next look.
        """
        last = self.validations[-1] if self.validations else None
        panels = {
            f"loss (Eq. 6){'' if last is None else f', held-out {last.loss:.3f}'}": {
                "training": self.smoothed(),
                "held-out": self.looked("loss"),
            },
            f"squared error over no change's{'' if last is None else f' {last.ratio:.3f}, cosine {last.cosine:.3f}'}": {
                "training": [],
                "held-out": self.looked("ratio"),
            },
        }
        return curves_plot(panels, mark=self.mark(), axis="step")

    def _told(self, look: Validation) -> str:
        return f"held-out: loss {look.loss:.3f}, {look.ratio:.3f} of no change's error, cosine {look.cosine:.3f}"

    def report(self, mapper: DeltaMapper) -> str:
        """What ``mapper``, the result of :meth:`~..training.Trainer.best`, has come to, in a few lines."""
        facts, settings = mapper.facts, self.settings
        count = sum(value.numel() for value in mapper.parameters())
        lines = [
            f"{facts['faces']} faces; {settings.architecture} architecture, {count / 1e6:.1f} million weights",
            f"best at step {facts['steps']} steps of {settings.batch} pairs: held-out loss {facts['held-out loss']}",
            f"{RATIO} {facts[RATIO]} (smaller is better), cosine {facts['held-out cosine']}",
            self.broken,
        ]
        return "\n".join(filter(None, lines))

    def run_facts(self) -> dict[str, Any]:
        """What must be the same for a training to go on: it may look more often, and take longer at a constant rate."""
        free = {"check_every"} if self.settings.cosine else {"check_every", "steps"}
        settings = {key: value for key, value in asdict(self.settings).items() if key not in free}
        return settings | described(self.latents)

    def _styles(self, rows: Tensor) -> Tensor:
        return torch.addcmul(self.centre, self.offsets[rows].float(), self.scale)

    def _pair(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Styles of the first faces, the condition, and the change of styles that is to be predicted."""
        styles, features, others = self._styles(first), self.features[first].float(), self.features[second].float()
        if self.settings.conditioning == PLAIN:
            given = torch.cat([features, others], 1)
        else:
            given = condition(features, others - features)
        return styles, given, self._styles(second) - styles

    def _loss(self) -> Tensor:
        first = torch.randint(len(self.train), (self.settings.batch,))
        away = torch.randint(1, len(self.train), (self.settings.batch,))
        pairs = [self.train[rows].to(self.device) for rows in (first, (first + away) % len(self.train))]
        if self.settings.alike > 1:
            pairs[1] = self._most_alike(*pairs)
        styles, given, true = self._pair(*pairs)
        self.mapper.train()
        return delta_loss(self.mapper(styles, given), true)

    def _most_alike(self, first: Tensor, second: Tensor) -> Tensor:
        """In place of each of ``second``, the face most like that of ``first`` among some of ``second`` and others."""
        others = self.train[torch.randint(len(self.train), (self.settings.alike,))].to(self.device)
        among = torch.cat([second, others])
        alike = self.features[first].float() @ self.features[among].float().T
        levels = int(math.log(self.settings.alike, 4)) + 1
        counts = 4 ** torch.randint(levels, (len(first), 1))
        places = torch.rand(len(first), len(among)).argsort(1)
        allowed = (places < counts).to(self.device) & (among != first[:, None])
        allowed[torch.arange(len(first)), torch.arange(len(first))] = True  # the one that was drawn
        return among[alike.masked_fill(~allowed, -2).argmax(1)]

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0; without ``cosine`` it does not fall."""
        return super().rate(step) if self.settings.cosine else self.warm_rate(step)

    @torch.no_grad()
    def _validation(self, weights: Mapping[str, Tensor]) -> Validation:
        self.mapper.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for first, second in zip(*(rows.split(500) for rows in self.pairs), strict=True):
            styles, given, true = self._pair(first, second)
            predicted = functional_call(self.mapper, dict(weights), (styles, given))
            error, zero = (predicted - true).square().mean(1), true.square().mean(1)
            cosine = functional.cosine_similarity(predicted, true)
            sums += torch.stack([error.sum(), zero.sum(), cosine.sum(), torch.ones_like(cosine).sum()]).double().cpu()
        error, zero, cosine, count = sums.tolist()
        return Validation(self.step, (error - cosine) / count + 1, error / zero if zero else math.nan, cosine / count)

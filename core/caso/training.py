"""Learning semantic embeddings from a classifier (CASO Algorithm 1), at two forwards and one backward a sample and step.

1. noise a clean latent to level L (Eq. 8)          4. loss = cross-entropy of its class (Eq. 3) + gamma * latent
2. guided one-step prediction of the clean latent      reconstruction (Eq. 12, 13) + change of other attributes
3. decode it (Eq. 10), augment it, classify it      5. AdamW on the token vectors
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..classifiers.augment import augmented
from ..classifiers.base import ImageClassifier
from ..denoiser import Denoiser, check_finite
from ..errors import EditingError
from ..inversion import check_latent
from .embedding import SemanticEmbedding
from .objective import Objective, Verdict
from .schedule import Draw, NoiseLevels, Schedule, noisy, seeded
from .seams import ImageDecoder, TokenInjector, clamp_through, empty_condition
from .settings import HeldCheck, TrainingProgress, TrainingSettings

METHOD = "caso"
ADAM_BETAS = (0.9, 0.999)
SMOOTHING = 0.95  # of the training loss that decides what is best where no pictures are held out


@dataclass
class BestFound:
    """The vectors ``[K, n, D]`` of the lowest loss so far (``score``), of the step ``step``; none before the first look."""

    score: float = float("inf")
    step: int = -1
    vectors: dict[str, Tensor] = field(default_factory=dict)


class EmbeddingTrainer:
    """Learns embeddings step by step; it can be stopped at any point (an exception from the callback does) and keeps the best.

    Args:
        denoiser, injector, decoder: the model.
        classifier: frozen; may be of other weights than any judge of the result.
        latents: ``[N, C, h, w]`` clean latents of the pictures, encoded once.
        held: ``[H, C, h, w]`` of a few other pictures, which decide what is best and make previews; they cost K forwards
            each a check. None lets the smoothed training loss decide.
        draft_decoder: a cheaper decoder for the first ``draft_fraction`` of the steps.

    Raises:
        EditingError: no latents, latents of another model, or a class that the classifier does not know.
    """

    def __init__(
        self, denoiser: Denoiser, injector: TokenInjector, decoder: ImageDecoder, classifier: ImageClassifier, latents: Tensor,
        settings: TrainingSettings, held: Tensor | None = None, draft_decoder: ImageDecoder | None = None,
    ):  # fmt: skip
        if not len(latents):
            raise EditingError("There are no pictures to learn from; give at least one, usually 100 to 200.")
        self.denoiser, self.injector, self.classifier, self.settings = denoiser, injector, classifier, settings
        self.decoder, self.draft_decoder = decoder, draft_decoder
        self.objective = Objective(classifier, settings.attribute, settings.targets)
        self._keeps = bool(settings.keep_others and self.objective.others)
        self.schedule = Schedule(len(latents), len(settings.targets), settings.batch, settings.bank, settings.seed)
        self.levels = NoiseLevels.of(denoiser, settings.level, settings.band)
        self.step = 0
        self.history: list[TrainingProgress] = []
        self.smoothed = 0.0
        self.best_found = BestFound()
        shape = (len(settings.targets), settings.tokens)
        with torch.inference_mode(False):
            self.latents = check_latent(latents, denoiser.identity).clone()
            self.held = None if held is None or not len(held) else check_latent(held, denoiser.identity).clone()
            self.start = {name: vector.clone().float().cpu() for name, vector in injector.end_vectors.items()}
            self.moves = {name: torch.zeros(*shape, width, requires_grad=True) for name, width in injector.widths.items()}
            self.optimizer = torch.optim.AdamW(
                list(self.moves.values()), lr=settings.learning_rate, betas=ADAM_BETAS, weight_decay=settings.weight_decay
            )
            self.empty = empty_condition(injector)
        self._unconditional: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._together = self.schedule.first_met(settings.steps) if settings.bank else {}
        self._held_start: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The token vectors as they are now, ``[K, n, D]`` for each encoder, with gradient."""
        return {name: self.start[name] + self.injector.token_scale[name] * move for name, move in self.moves.items()}

    def run(self, callback: Callable[[TrainingProgress], None] | None = None) -> list[SemanticEmbedding]:
        """Train the steps that are left; returns :meth:`best`.

        Args:
            callback: told after each step; an exception it raises ends the run, and :meth:`best` still has the best so far.

        Raises:
            EditingError: a loss that is not a number.
        """
        while self.step < self.settings.steps:
            progress = self.advance()
            if callback is not None:
                callback(progress)
        return self.best()

    def advance(self) -> TrainingProgress:
        """Take one step.

        Raises:
            EditingError: a loss that is not a number.
        """
        progress = self._train_step()
        self.step += 1
        self.history.append(progress)
        return progress

    def best(self) -> list[SemanticEmbedding]:
        """The best embeddings so far, one for each target class; the untrained start before the first step."""
        vectors = self.best_found.vectors or {name: tensor.detach() for name, tensor in self.vectors.items()}
        settings = self.settings
        facts = {
            "classes": list(settings.targets), "level": settings.level, "steps": self.best_found.step + 1,
            "classifier": self.classifier.fingerprint, "base_model": self.denoiser.identity.family, "settings": asdict(settings),
        }  # fmt: skip
        return [
            SemanticEmbedding(
                {name: tensor[number].clone() for name, tensor in vectors.items()},
                self.injector.encoder_name, settings.attribute, target, METHOD, facts,
            )
            for number, target in enumerate(settings.targets)
        ]  # fmt: skip

    def _train_step(self) -> TrainingProgress:
        settings, draws = self.settings, self.schedule.draws(self.step)
        drafting = self.draft_decoder is not None and self.step < settings.draft_fraction * settings.steps
        decoder = self.draft_decoder if drafting and self.draft_decoder is not None else self.decoder
        with torch.inference_mode(False), torch.enable_grad():
            x, sigma = self._noisy([(draw.image, draw.slot) for draw in draws])
            unconditional, before = self._unconditional_of(draws, x, sigma)
            targets = torch.tensor([draw.target for draw in draws])
            predicted = self._guided(x, sigma, unconditional, targets)
            changes = seeded(settings.seed, "augment", self.step)
            images = augmented(clamp_through(decoder(predicted)), settings.augment, settings.flip, changes)
            reconstruction = functional.mse_loss(predicted, self.latents[[draw.image for draw in draws]])
            verdict = self.objective(images, targets, before if self._keeps else None)
            loss = self._total(verdict, reconstruction)
            check_finite(loss.detach(), f"The loss at step {self.step + 1}")
            moves = list(self.moves.values())
            for move, gradient in zip(moves, torch.autograd.grad(loss, moves), strict=True):
                move.grad = gradient
            self.optimizer.step()
        value = float(loss.detach())
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * value
        held = self._check() if self._check_due() else None
        if self.held is None:
            self._keep_if_best(self.smoothed / (1 - SMOOTHING ** (self.step + 1)))
        elif held is not None:
            self._keep_if_best(held.loss)
        parts = (verdict.classification, reconstruction, verdict.others, verdict.right.float().mean())
        classification, rebuilt, others, accuracy = (float(part.detach()) for part in parts)
        return TrainingProgress(self.step, settings.steps, value, classification, rebuilt, others, accuracy, held)

    def _guided(self, x: Tensor, sigma: Tensor, unconditional: Tensor, targets: Tensor) -> Tensor:
        """Guided prediction of the clean latent (Eq. 2 in Eq. 10), ``targets [B]`` numbers of target classes."""
        cond = self.denoiser.select(self.injector(self.vectors), targets)
        return unconditional + self.settings.cfg * (self.denoiser(x, sigma, cond) - unconditional)

    def _total(self, verdict: Verdict, reconstruction: Tensor) -> Tensor:
        """Eq. 13 and the change of other attributes."""
        kept = self.settings.reconstruction * reconstruction.to(verdict.classification.device)
        return verdict.classification + kept + self.settings.keep_others * verdict.others

    def _noisy(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        seed = self.settings.seed
        latents = self.latents[[image for image, _ in keys]]
        return noisy(latents, self.denoiser.identity, self.levels, [(seed, "noise", *key) for key in keys])

    def _unconditional_of(self, draws: list[Draw], x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_unedited` of a step's samples; from memory where this image met this noise before."""
        if not self.settings.bank:
            return self._unedited(x, sigma)
        keys = [(draw.image, draw.slot) for draw in draws]
        for key in keys:
            if key not in self._unconditional:
                together = list(self._together[key])
                found = self._unedited(*self._noisy(together))
                self._unconditional |= dict(zip(together, zip(*found, strict=True), strict=True))
        predictions, appearances = zip(*(self._unconditional[key] for key in keys), strict=True)
        return torch.stack(predictions), torch.stack(appearances)

    @torch.no_grad()
    def _unedited(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional prediction and how the other attributes look in it (empty where that does not count)."""
        prediction = self.denoiser(x, sigma, self.empty)
        if not self._keeps:
            return prediction, prediction.new_zeros(len(prediction), 0)
        return prediction, self.objective.appearance(self.decoder(prediction).clamp(0, 1))

    def _check_due(self) -> bool:
        every, number = self.settings.check_every, self.step + 1
        return self.held is not None and (number == self.settings.steps or (every > 0 and number % every == 0))

    @torch.no_grad()
    def _check(self) -> HeldCheck:
        assert self.held is not None
        if self._held_start is None:
            keys: list[tuple[object, ...]] = [(self.settings.seed, "held", number) for number in range(len(self.held))]
            x, sigma = noisy(self.held, self.denoiser.identity, NoiseLevels(self.levels.sigmas, self.levels.level, 0.0), keys)
            self._held_start = x, sigma, *self._unedited(x, sigma)
        x, sigma, unconditional, before = self._held_start
        images, losses, right = [], [], []
        for number in range(len(self.settings.targets)):
            targets = torch.full((len(x),), number)
            predicted = self._guided(x, sigma, unconditional, targets)
            images.append(self.decoder(predicted).clamp(0, 1))
            verdict = self.objective(images[-1], targets, before if self._keeps else None)
            losses.append(self._total(verdict, functional.mse_loss(predicted, self.held)))
            right.append(verdict.right.float().mean())
        return HeldCheck(float(torch.stack(losses).mean()), float(torch.stack(right).mean()), torch.cat(images))

    def _keep_if_best(self, score: float) -> None:
        if score < self.best_found.score:
            self.best_found = BestFound(score, self.step, {name: tensor.detach().clone() for name, tensor in self.vectors.items()})

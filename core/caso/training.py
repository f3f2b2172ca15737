"""Learning semantic embeddings from a classifier (CASO, Algorithm 1): the loss of edited pictures, and the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..classifiers.augment import augmented
from ..classifiers.base import ImageClassifier
from ..denoiser import Denoiser, check_finite
from ..errors import EditingError
from ..inversion import check_latent
from ..token_vectors import ImageDecoder, TokenVectorEncoder, clamp_through, empty_condition, start_vectors
from .contrast import contrast_loss, denoising_errors
from .embedding import SemanticEmbedding
from .schedule import ImageNoise, NoiseLevels, RowCache, Schedule, noisy, seeded
from .settings import TrainingProgress, TrainingSettings, ValidationResult

METHOD = "caso"
ADAM_BETAS = (0.9, 0.999)
SMOOTHING = 0.95  # of the training loss that decides what is best where there are no validation pictures


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a classifier says of B edited pictures.

    Attributes:
        classification: cross-entropy of the wanted class (Eq. 3), a scalar.
        others: how much the other attributes changed, a scalar in nats.
        right: ``[B]``, which pictures it puts into the wanted class.
    """

    classification: Tensor
    others: Tensor
    right: Tensor


class Objective:
    """Judges edited images by a frozen classifier: in the wanted class (Eq. 3), and the other attributes as they were.

    Args:
        classifier: may know more attributes than the one to learn.
        attribute, targets: what to learn, by the classifier's names.

    Raises:
        EditingError: an attribute or class that the classifier does not know.
    """

    def __init__(self, classifier: ImageClassifier, attribute: str, targets: tuple[str, ...]):
        self.classifier, self.attribute = classifier, attribute
        self.columns = [classifier.class_index(attribute, target) for target in targets]
        self.others = [name for name in classifier.heads if name != attribute]

    def other_attributes(self, images: Tensor) -> Tensor:
        """Log-probabilities of the other attributes in ``images [B, 3, H, W]`` in 0..1, side by side: ``[B, S]``."""
        return self._side_by_side(self.classifier.logits(images))

    def __call__(self, images: Tensor, targets: Tensor, before: Tensor | None = None) -> Verdict:
        """Judge ``images [B, 3, H, W]`` in 0..1, differentiably.

        Args:
            targets: ``[B]`` numbers of target classes.
            before: :meth:`other_attributes` of the unedited pictures, ``[B, S]``; None does not compare them.

        Raises:
            EditingError: ``before`` is of another classifier.
        """
        found = self.classifier.logits(images)
        logits = found[self.attribute].float()
        wanted = torch.tensor([self.columns[target] for target in targets.tolist()], device=logits.device)
        right = logits.detach().argmax(1) == wanted
        others = (
            logits.new_zeros(())
            if before is None
            else self._changed(self._side_by_side(found), before.to(logits.device))
        )
        return Verdict(functional.cross_entropy(logits, wanted), others, right)

    def _side_by_side(self, found: dict[str, Tensor]) -> Tensor:
        rows = [found[name].float().log_softmax(1) for name in self.others]
        return torch.cat(rows, 1) if rows else found[self.attribute].new_zeros(len(found[self.attribute]), 0)

    def _changed(self, after: Tensor, before: Tensor) -> Tensor:
        """Kullback-Leibler divergence from before to after in nats, mean over the other attributes and the pictures."""
        if after.shape != before.shape:
            raise EditingError(
                f"The pictures before were looked at for {before.shape[-1]} classes and now for {after.shape[-1]}; "
                "use one classifier."
            )
        if not self.others:
            return after.new_zeros(())
        return (before.exp() * (before - after)).sum() / (len(after) * len(self.others))


@dataclass
class BestFound:
    """The vectors with the lowest loss so far.

    Attributes:
        score: that loss.
        step: from 0, -1 if there is none yet.
        vectors: encoder -> ``[K, n, D]``, empty if there are none yet.
    """

    score: float = float("inf")
    step: int = -1
    vectors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ValidationBatch:
    """Some of the validation pictures, B of them, with what every validation needs of them.

    Attributes:
        latents, x: clean and noised, ``[B, C, h, w]``.
        sigma: of that noise, ``[B]``.
        unconditional: clean latents as predicted without an embedding, ``[B, C, h, w]``.
        before: their other attributes without an embedding, ``[B, S]``; None where these do not count.
    """

    latents: Tensor
    x: Tensor
    sigma: Tensor
    unconditional: Tensor
    before: Tensor | None


#: Judges vectors (encoder -> ``[K, n, D]``) on pictures that nothing was learned from.
Look = Callable[[dict[str, Tensor]], ValidationResult]


class EmbeddingTrainer:
    """Learns embeddings step by step and keeps the best; an exception from the callback stops it at any step.

    Args:
        denoiser, vector_encoder, decoder: the model.
        classifier: frozen; to judge the result take another one. None where the settings give it no weight.
        latents: ``[N, C, h, w]`` clean latents of the pictures to learn from; with a contrast those that have it not.
        settings: what to learn and how.
        validation: ``[V, C, h, w]`` clean latents of a few other pictures, which decide what is best and are shown;
            each costs K network evaluations at every validation. None: the smoothed training loss decides.
        draft_decoder: a cheaper decoder for the first ``draft_fraction`` of the steps.
        having: ``[M, C, h, w]`` clean latents of pictures that have it, for the contrast.
        look: judges vectors in place of the one-step look at ``validation`` by ``classifier``.

    Raises:
        EditingError: no latents, latents of another model, a class that the classifier does not know, or pictures or
            a classifier missing that the settings give a weight.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        vector_encoder: TokenVectorEncoder,
        decoder: ImageDecoder,
        classifier: ImageClassifier | None,
        latents: Tensor,
        settings: TrainingSettings,
        validation: Tensor | None = None,
        draft_decoder: ImageDecoder | None = None,
        having: Tensor | None = None,
        look: Look | None = None,
    ):
        if not len(latents):
            raise EditingError("There are no pictures to learn from; give at least one, usually 100 to 200.")
        if settings.shown and (having is None or not len(having)):
            raise EditingError("There are no pictures that have it; give some, or learn from a classifier alone.")
        if settings.classification and classifier is None:
            raise EditingError("There is no classifier to learn from; give one, or learn from two folders of pictures.")
        self.denoiser, self.vector_encoder = denoiser, vector_encoder
        self.classifier, self.settings = classifier, settings
        self.decoder, self.draft_decoder, self.look = decoder, draft_decoder, look
        taught = classifier is not None and (settings.classification or look is None)
        self.objective = Objective(classifier, settings.attribute, settings.targets) if taught and classifier else None
        self._preserves = bool(
            settings.classification
            and settings.attribute_preservation
            and self.objective is not None
            and self.objective.others
        )
        self.schedule = Schedule(
            len(latents), len(settings.targets), settings.batch, settings.noises_per_image, settings.seed
        )
        #: Which picture that has it goes with each sample of a step.
        self.partners = Schedule(0 if having is None else len(having), 1, settings.batch, 0, settings.seed)
        self.levels = NoiseLevels.of(denoiser, settings.noise_level, settings.noise_level_jitter)
        self.step = 0
        self.history: list[TrainingProgress] = []
        self.smoothed = 0.0
        #: The best of the validations that ``check_every`` asks for, and one besides these since the last step.
        self.scheduled, self.extra = BestFound(), BestFound()
        shape = (len(settings.targets), settings.tokens)
        with torch.inference_mode(False):
            self.latents = check_latent(latents, denoiser.identity).clone()
            self.having = (
                check_latent(having, denoiser.identity).clone() if settings.shown and having is not None else None
            )
            self.validation = (
                None
                if validation is None or not len(validation)
                else check_latent(validation, denoiser.identity).clone()
            )
            self.start = {
                name: vectors.clone()
                for name, vectors in start_vectors(vector_encoder, settings.tokens, settings.start_words).items()
            }
            #: What is learned: the distance from the start in units of ``token_scale``, ``[K, n, D]`` for each encoder.
            self.moves = {
                name: torch.zeros(*shape, width, requires_grad=True) for name, width in vector_encoder.widths.items()
            }
            self.optimizer = torch.optim.AdamW(
                list(self.moves.values()),
                lr=settings.learning_rate,
                betas=ADAM_BETAS,
                weight_decay=settings.weight_decay,
            )
            self.empty = empty_condition(vector_encoder)
            #: The exponential mean of the vectors over the steps (``averaging``), not yet corrected for its start.
            self.mean = {name: torch.zeros(*shape, width) for name, width in vector_encoder.widths.items()}
        together = self.schedule.first_met(settings.steps) if settings.noises_per_image else {}
        self._unconditional, self._before, self._before_draft = (RowCache(together) for _ in range(3))
        self._validation_batches: list[ValidationBatch] = []

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The token vectors as they are now, ``[K, n, D]`` for each encoder, with gradient."""
        return {
            name: self.start[name] + self.vector_encoder.token_scale[name] * move for name, move in self.moves.items()
        }

    @property
    def settled(self) -> dict[str, Tensor]:
        """The vectors that are looked at and kept: their mean over the steps, or themselves without ``averaging``."""
        share = self.settings.averaging
        if not share or not self.step:
            return {name: tensor.detach().clone() for name, tensor in self.vectors.items()}
        return {name: mean / (1 - share**self.step) for name, mean in self.mean.items()}

    @property
    def best_found(self) -> BestFound:
        """The best of all validations.

        One that ``check_every`` did not ask for counts only until training goes on, so that a stop never changes the
        end.
        """
        return self.extra if self.extra.score < self.scheduled.score else self.scheduled

    def run(self, callback: Callable[[TrainingProgress], None] | None = None) -> list[SemanticEmbedding]:
        """Train the steps that are left; returns :meth:`best`.

        Args:
            callback: told after each step; an exception it raises ends the run, and :meth:`best` still has the best so
                far.

        Raises:
            EditingError: a loss that is not a number.
        """
        if self.history and self.history[-1].validation is None and self._validation_due():
            self.validate()  # it was stopped in the middle of that validation
        while self.step < self.settings.steps:
            progress = self.advance()
            if callback is not None:
                callback(progress)
        self.validate_if_never()
        return self.best()

    def advance(self) -> TrainingProgress:
        """Take one step.

        Raises:
            EditingError: a loss that is not a number.
        """
        progress = self._train_step()
        self.step += 1
        share = self.settings.averaging
        for name, tensor in self.vectors.items():
            self.mean[name] = share * self.mean[name] + (1 - share) * tensor.detach().cpu()
        self.history.append(progress)
        self.extra = BestFound()
        if not self._judges:
            self._keep_if_best(self.smoothed / (1 - SMOOTHING**self.step))
        elif self._validation_due() or self.step == self.settings.steps:
            self.validate()
        return self.history[-1]

    def validate(self) -> None:
        """Try the embeddings on the validation pictures, if there are any; the result joins the last step's entry."""
        if not self._judges or not self.history:
            return
        result = self._validation_result()
        self.history[-1] = replace(self.history[-1], validation=result)
        if self._validation_due():
            self._keep_if_best(result.loss)
        else:
            self.extra = self._found(result.loss)

    def validate_if_never(self) -> None:
        """:meth:`validate`, unless there are pictures of an earlier one; a resumed training has its figures only."""
        if all(entry.validation is None or entry.validation.images is None for entry in self.history):
            self.validate()

    def best(self) -> list[SemanticEmbedding]:
        """The best embeddings so far, one for each target class; the untrained start before the first step."""
        vectors = self.best_found.vectors or self.settled
        settings = self.settings
        facts = {
            "classes": list(settings.targets),
            "level": settings.noise_level,
            "steps": self.best_found.step + 1,
            "classifier": fingerprint_of(self.classifier),
            "base_model": self.denoiser.identity.family,
            "settings": settings.stored(),
        }
        return [
            SemanticEmbedding(
                {name: tensor[number].clone() for name, tensor in vectors.items()},
                self.vector_encoder.encoder_name,
                settings.attribute,
                target,
                METHOD,
                facts,
            )
            for number, target in enumerate(settings.targets)
        ]

    def _train_step(self) -> TrainingProgress:
        settings, draws = self.settings, self.schedule.draws(self.step)
        with torch.inference_mode(False), torch.enable_grad():
            keys = [(draw.image, draw.noise) for draw in draws]
            x, sigma = self._noisy(keys)
            unconditional = self._unconditional_of(keys, x, sigma)
            targets = torch.tensor([draw.target for draw in draws])
            latents = self.latents[[draw.image for draw in draws]]
            contrast = unconditional.new_zeros(())
            if self.having is None:
                conditional = self._conditional(x, sigma, targets, self.vectors)
                predicted = self._guided(unconditional, conditional)
                verdict = self._verdict(predicted, unconditional, keys, targets)
                reconstruction = functional.mse_loss(predicted, latents)
                loss = self._total(verdict, reconstruction)
            else:
                having = self.having[[draw.image for draw in self.partners.draws(self.step)]]
                partner, _ = self._with_noise(having, keys)  # of the same level and noise, so that these tell nothing
                both = self._conditional(torch.cat([x, partner]), sigma.repeat(2), targets.repeat(2), self.vectors)
                gain = denoising_errors(self._unedited(partner, sigma), having)
                gain = gain - denoising_errors(both[len(x) :], having)
                other_gain = denoising_errors(unconditional, latents) - denoising_errors(both[: len(x)], latents)
                contrast = contrast_loss(gain, other_gain, settings.contrast_scale)
                nothing, told = contrast.new_zeros(()), torch.cat([gain, -other_gain]).detach() > 0
                verdict, reconstruction, loss = Verdict(nothing, nothing, told), nothing, settings.contrast * contrast
            check_finite(loss.detach(), f"The loss at step {self.step + 1}")
            moves = list(self.moves.values())
            for move, gradient in zip(moves, torch.autograd.grad(loss, moves), strict=True):
                move.grad = gradient
            self.optimizer.step()
        value = float(loss.detach())
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * value
        parts = (verdict.classification, reconstruction, verdict.others, verdict.right.float().mean())
        classification, rebuilt, others, accuracy = (float(part.detach()) for part in parts)
        return TrainingProgress(
            self.step, settings.steps, value, classification, rebuilt, others, accuracy, None, float(contrast.detach())
        )

    def _verdict(self, predicted: Tensor, unconditional: Tensor, keys: list[ImageNoise], targets: Tensor) -> Verdict:
        """What the classifier says of a step's guided predictions, ``targets [B]`` numbers of target classes."""
        assert self.objective is not None
        settings = self.settings
        drafting = self.draft_decoder is not None and self.step < settings.draft_fraction * settings.steps
        decoder = self.draft_decoder if drafting and self.draft_decoder is not None else self.decoder
        before = self._before_of(keys, unconditional, decoder) if self._preserves else None
        changes = seeded(settings.seed, "augment", self.step)
        images = augmented(clamp_through(decoder(predicted)), settings.augment, settings.flip, changes)
        return self.objective(images, targets, before)

    def _conditional(self, x: Tensor, sigma: Tensor, targets: Tensor, vectors: dict[str, Tensor]) -> Tensor:
        """Prediction of the clean latent with the embeddings, ``targets [B]`` numbers of target classes."""
        return self.denoiser(x, sigma, self.denoiser.select(self.vector_encoder(vectors), targets))

    def _guided(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """Guided prediction of the clean latent (Eq. 2 in Eq. 10)."""
        return unconditional + self.settings.cfg * (conditional - unconditional)

    def _total(self, verdict: Verdict, reconstruction: Tensor) -> Tensor:
        """Eq. 13 and the change of other attributes."""
        settings = self.settings
        kept = settings.reconstruction * reconstruction.to(verdict.classification.device)
        learned = settings.classification * verdict.classification + kept
        return learned + settings.attribute_preservation * verdict.others

    def _noisy(self, keys: list[ImageNoise]) -> tuple[Tensor, Tensor]:
        return self._with_noise(self.latents[[image for image, _ in keys]], keys)

    def _with_noise(self, latents: Tensor, keys: list[ImageNoise]) -> tuple[Tensor, Tensor]:
        seed = self.settings.seed
        return noisy(latents, self.denoiser.identity, self.levels, [(seed, "noise", *key) for key in keys])

    def _unconditional_of(self, keys: list[ImageNoise], x: Tensor, sigma: Tensor) -> Tensor:
        """The unconditional prediction of a step's samples, remembered where this image had this noise before."""
        if not self.settings.noises_per_image:
            return self._unedited(x, sigma)
        return self._unconditional.rows(keys, lambda new: self._unedited(*self._noisy(new)))

    def _before_of(self, keys: list[ImageNoise], unconditional: Tensor, decoder: ImageDecoder) -> Tensor:
        """The other attributes of these predictions, decoded by ``decoder``, which must be the step's own."""
        if not self.settings.noises_per_image:
            return self._other_attributes(unconditional, decoder)
        memory = self._before_draft if decoder is self.draft_decoder else self._before
        return memory.rows(keys, lambda new: self._other_attributes(self._unconditional.known(new), decoder))

    @torch.no_grad()
    def _unedited(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(x, sigma, self.empty)

    @torch.no_grad()
    def _other_attributes(self, prediction: Tensor, decoder: ImageDecoder) -> Tensor:
        assert self.objective is not None
        return self.objective.other_attributes(decoder(prediction).clamp(0, 1))

    def _validation_due(self) -> bool:
        """Whether ``check_every`` asks for one now; that of the last step is extra, as steps may be raised later."""
        every = self.settings.check_every
        return every > 0 and self.step % every == 0

    @property
    def _judges(self) -> bool:
        """Whether validations decide what is best."""
        return self.look is not None or (self.validation is not None and self.objective is not None)

    @torch.no_grad()
    def _validation_result(self) -> ValidationResult:
        if self.look is not None:
            return self.look(self.settled)
        assert self.objective is not None
        if not self._validation_batches:
            self._validation_batches = self._prepare_validation()
        images, figures, count = [], [], 0
        for number in range(len(self.settings.targets)):
            for part in self._validation_batches:
                targets = torch.full((len(part.x),), number)
                predicted = self._guided(
                    part.unconditional, self._conditional(part.x, part.sigma, targets, self.settled)
                )
                images.append(self.decoder(predicted).clamp(0, 1))
                verdict = self.objective(images[-1], targets, part.before)
                loss = self._total(verdict, functional.mse_loss(predicted, part.latents))
                figures.append(len(part.x) * torch.stack([loss, verdict.right.float().mean()]))
                count += len(part.x)
        loss, accuracy = (torch.stack(figures).sum(0) / count).tolist()
        return ValidationResult(loss, accuracy, torch.cat(images))

    def _prepare_validation(self) -> list[ValidationBatch]:
        """The validation pictures in batches no larger than a step's, so that they need no more memory than a step."""
        assert self.validation is not None
        settings, parts, first = self.settings, [], 0
        levels = NoiseLevels(self.levels.sigmas, self.levels.noise_level, 0.0)
        for latents in self.validation.split(settings.batch):
            # The word "held" is part of the seed, so the noise of older trainings depends on it.
            keys: list[tuple[object, ...]] = [(settings.seed, "held", first + number) for number in range(len(latents))]
            x, sigma = noisy(latents, self.denoiser.identity, levels, keys)
            unconditional = self._unedited(x, sigma)
            before = self._other_attributes(unconditional, self.decoder) if self._preserves else None
            parts.append(ValidationBatch(latents, x, sigma, unconditional, before))
            first += len(latents)
        return parts

    def _keep_if_best(self, score: float) -> None:
        if score < self.scheduled.score:
            self.scheduled = self._found(score)

    def _found(self, score: float) -> BestFound:
        return BestFound(score, self.step - 1, self.settled)


def fingerprint_of(classifier: ImageClassifier | None) -> str:
    """What files keep of the classifier that taught; "" where none did."""
    return "" if classifier is None else classifier.fingerprint

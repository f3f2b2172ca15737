"""How a training is judged: held-out pictures are edited for real, and a second opinion says what it sees.

The classifier that taught, asked about one-step images, sees the attribute in nearly all of them whatever the edits are
like. Here the pictures go through a short edit of the usual kind, and one is asked that did not teach: classifiers of
another shape (over a CLIP, where there is one), each trained on two thirds of the pictures and asked about edits of the
last third only. How often it is right on real pictures of that third is told beside its figure, which is not corrected
for it (as Rogan and Gladen 1978 do): edits that are hardly there are no real pictures, and the correction was measured
to be farther from the truth. The last look takes as many steps as an edit does, for in few steps edits come out weaker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..classifiers.base import ImageClassifier
from ..classifiers.frozen_features import FeatureTrunk
from ..classifiers.pictures import LabelledPictures, to_bytes
from ..classifiers.training import TrainingSettings as ClassifierSettings
from ..classifiers.training import train_classifier, training_size
from ..denoiser import Denoiser
from ..errors import EditingError
from ..inversion import Inversion
from ..token_vectors import ImageDecoder, TokenVectorEncoder, empty_condition
from .editing import Window, invert_to_window, semantic_edit
from .embedding import GuidanceTerm
from .settings import Kind, ValidationResult

FOLDS = 3
SIDE = 96  # pixels that the second opinion sees, where it has no CLIP
EPOCHS, BATCH = 30, 16
PROBE_STEPS = 100  # of L-BFGS, for a layer over a CLIP
FEWEST = 2 * FOLDS  # pictures of a class from which a second opinion can be made
STEPS = 12  # of the whole trajectory of an edit, of looks while it trains
FINAL_STEPS = 50  # of the last look, as CASO Edit Sampler has by default
#: The least by which an opinion must see it more often where it is, to be believed.
WORTH = 0.3


@dataclass(frozen=True)
class Trust:
    """How far an opinion is right on real pictures that it does not know.

    Attributes:
        recall: share of those that have it in which it sees it.
        false_alarms: share of those that have it not in which it sees it.
        pictures: how many were asked about.
    """

    recall: float
    false_alarms: float
    pictures: int

    @property
    def worth(self) -> bool:
        """Whether the opinion tells the two apart well enough."""
        return self.recall - self.false_alarms >= WORTH


@dataclass(frozen=True, eq=False)
class Opinion:
    """Classifiers that say whether a held-out picture has it.

    Attributes:
        classifiers: one, or one for each fold.
        attribute: the head that is asked.
        columns: of the target classes in that head.
        folds: ``[V]``, which classifier does not know a held-out picture.
        trust: None where no real pictures are known that have it.
        source: in words, who that is.
    """

    classifiers: Sequence[ImageClassifier]
    attribute: str
    columns: Sequence[int]
    folds: Tensor
    trust: Trust | None
    source: str

    @torch.no_grad()
    def asked(self, images: Tensor, rows: Tensor, target: int) -> tuple[Tensor, Tensor]:
        """``(log-probability [B] of the target class, whether it is the likeliest [B])`` of edited pictures.

        Args:
            images: ``[B, 3, H, W]`` in 0..1.
            rows: ``[B]``, numbers of the held-out pictures that they were made of.
            target: number of the target class.
        """
        chances, seen = images.new_zeros(len(images)), torch.zeros(len(images), dtype=torch.bool)
        for number, classifier in enumerate(self.classifiers):
            own = (self.folds[rows] == number).nonzero().flatten()
            if len(own):
                found = classifier.logits(images[own.to(images.device)])[self.attribute].float().log_softmax(1)
                chances[own.to(images.device)] = found[:, self.columns[target]].to(images.device)
                seen[own] = (found.argmax(1) == self.columns[target]).cpu()
        return chances, seen

    def sentence(self) -> str:
        """Who judges, and how far that is to be trusted."""
        if self.trust is None:
            return f"judged by {self.source}"
        known = (
            f"judged by {self.source}, which sees it in {self.trust.recall:.0%} of real pictures that have it and in "
            f"{self.trust.false_alarms:.0%} of those that have it not ({self.trust.pictures} asked)"
        )
        if self.trust.worth:
            return known
        return f"{known}: too weak to be believed, so wire a CLIP or a better classifier into second_opinion"


def opinion_of_folders(
    having: Tensor,
    without: Tensor,
    held_out: int,
    seed: int,
    *,
    trunk: FeatureTrunk | None = None,
    device: str | torch.device = "cpu",
    callback: Callable[[int, int], None] | None = None,
) -> Opinion:
    """Train a second opinion on pictures of both kinds, each fold's classifier on the other folds.

    Args:
        having, without: ``[N, 3, H, W]`` in 0..1; look-alikes belong to ``without``.
        held_out: the first so many of ``without`` are those that will be edited.
        trunk: a CLIP over whose features a layer is trained; None trains small networks from nothing, which 150
            pictures teach far less.
        callback: told ``(steps done, steps in all)``; an exception it raises ends the training.

    Raises:
        EditingError: too few pictures of a kind.
    """
    if min(len(having), len(without)) < FEWEST:
        raise EditingError(
            f"There are {len(having)} pictures that have it and {len(without)} that have it not; a second opinion "
            f"needs {FEWEST} of each. Give more, or wire second_opinion."
        )
    size = (SIDE, SIDE) if trunk is None else training_size(trunk)
    steps, source = (EPOCHS, "your pictures") if trunk is None else (PROBE_STEPS, "your pictures by CLIP")
    pixels = torch.cat([to_bytes(having, size), to_bytes(without, size)])
    labels = torch.cat([torch.zeros(len(having)), torch.ones(len(without))]).long()
    folds = torch.cat([_folds(len(having), seed), _folds(len(without), seed + 1)])
    classifiers, seen = [], torch.zeros(len(pixels), dtype=torch.bool)
    for fold in range(FOLDS):
        inside = folds == fold
        known = LabelledPictures(pixels[~inside], labels[~inside], ["with", "without"])
        settings = ClassifierSettings("it", epochs=steps, batch_size=BATCH, seed=seed + 1 + fold)

        def report(progress: object, fold: int = fold) -> None:
            if callback is not None:
                callback(fold * progress.steps + progress.step, FOLDS * progress.steps)  # type: ignore[attr-defined]

        classifier = train_classifier(known, settings, trunk, device=device, callback=report).classifier
        with torch.no_grad():
            parts = (pixels[inside].float() / 255).split(BATCH)
            seen[inside] = torch.cat([classifier.logits(part)["it"].argmax(1) == 0 for part in parts]).cpu()
        classifiers.append(classifier)
    trust = Trust(float(seen[labels == 0].float().mean()), float(seen[labels == 1].float().mean()), len(pixels))
    own = folds[len(having) : len(having) + held_out]
    return Opinion(classifiers, "it", [0], own, trust, f"a second opinion from {source}")


def opinion_of_classifier(
    classifier: ImageClassifier,
    attribute: str,
    targets: Sequence[str],
    held_out: int,
    source: str,
    having: Tensor | None = None,
    without: Tensor | None = None,
) -> Opinion:
    """A classifier that is given, asked about real pictures too where there are some that have it.

    Args:
        source: who that is, in words.
        having, without: ``[N, 3, H, W]`` in 0..1.

    Raises:
        EditingError: an attribute or class that it does not know.
    """
    columns = [classifier.class_index(attribute, target) for target in targets]
    trust = None
    if having is not None and without is not None:

        def share(images: Tensor) -> float:
            with torch.no_grad():
                found = torch.cat([classifier.logits(part)[attribute].argmax(1) for part in images.split(BATCH)])
            return float((found == columns[0]).float().mean())

        trust = Trust(share(having), share(without), len(having) + len(without))
    return Opinion([classifier], attribute, columns, torch.zeros(held_out, dtype=torch.long), trust, source)


class RealLook:
    """Edits held-out pictures as the edit nodes do, in few steps, and asks an opinion about them.

    Args:
        denoiser, vector_encoder, decoder: the model.
        opinion: who judges.
        latents: ``[V, C, h, w]`` clean latents of held-out pictures.
        kind: says how such attributes are edited.
        strength: of the edits; 0 is the kind's.
        steps: of the whole trajectory.
        batch: pictures at once.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        vector_encoder: TokenVectorEncoder,
        decoder: ImageDecoder,
        opinion: Opinion,
        latents: Tensor,
        kind: Kind,
        strength: float = 0.0,
        steps: int = STEPS,
        batch: int = 4,
    ):
        self.denoiser, self.vector_encoder, self.decoder = denoiser, vector_encoder, decoder
        self.opinion, self.kind, self.steps, self.batch = opinion, kind, steps, batch
        self.strength = strength or kind.strength
        with torch.inference_mode(False):
            self.latents = latents.clone()
            self.empty = empty_condition(vector_encoder)
        self._inverted: list[tuple[Inversion, Window]] = []

    @torch.no_grad()
    def __call__(self, vectors: dict[str, Tensor]) -> ValidationResult:
        """Edit all pictures towards each class of ``vectors`` (encoder -> ``[K, n, D]``), and have them judged."""
        if not self._inverted:
            window = Window(self.kind.start)
            self._inverted = [
                invert_to_window(self.denoiser, part, self.empty, self.steps, window)
                for part in self.latents.split(self.batch)
            ]
        images, chances, seen = [], [], []
        for target in range(len(next(iter(vectors.values())))):
            cond = self.vector_encoder({name: tensor[target : target + 1] for name, tensor in vectors.items()})
            term, first = GuidanceTerm(cond, self.strength, focus=self.kind.focus), 0
            for inversion, window in self._inverted:
                edited = semantic_edit(self.denoiser, inversion, self.empty, [term], window)
                images.append(self.decoder(edited).clamp(0, 1))
                rows = torch.arange(first, first + len(edited))
                found = self.opinion.asked(images[-1], rows, target)
                chances.append(found[0])
                seen.append(found[1])
                first += len(edited)
        share = float(torch.cat(seen).float().mean())
        return ValidationResult(-float(torch.cat(chances).mean()), share, torch.cat(images))


def _folds(count: int, seed: int) -> Tensor:
    """Numbers 0 to :data:`FOLDS` - 1 for ``count`` pictures, equally often, in random order."""
    return (torch.arange(count) % FOLDS)[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]

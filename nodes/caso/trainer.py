"""CASO Embedding Trainer: its inputs, what it shows, and the node."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.caso.embedding import SemanticEmbedding
from ...core.caso.look import FINAL_STEPS, Opinion, RealLook, opinion_of_classifier, opinion_of_folders
from ...core.caso.settings import KINDS, Kind, TrainingSettings, ValidationResult
from ...core.caso.training import EmbeddingTrainer
from ...core.caso.training_report import last_pictures, progress_line, sample_contact_sheet, training_plot
from ...core.caso.training_state import resume_training
from ...core.classifiers.base import ImageClassifier
from ...core.classifiers.frozen_features import FeatureTrunk
from ...core.denoiser import Evaluations
from ...core.errors import EditingError
from ...core.images.contact_sheet import to_picture
from ...core.images.files import skipped_report
from ...core.token_vectors import empty_condition, start_vectors
from ..common.image_inputs import channels_first
from ..common.reports import plot_output, report_output, report_text, shown
from ..common.saving import Saved
from ..common.sockets import ClipScorerType
from ..host.feature_trunks import clip_trunk
from ..host.folders import list_picture_folders
from ..host.latents import latent_to_model, training_size
from ..host.managed_models import ManagedClassifier, load_to_device, training_scope
from ..host.progress import StoppableBar, progress_text, stop_if_cancelled
from ..host.sampling import run
from ..host.schema import io, schema, widget
from ..host.session import Session
from ..host.tokens import HostVectorEncoder, SessionVectorEncoder
from ..host.vae import SessionDecoder, encode_images
from .classifier_loader import AttributeClassifierType
from .embeddings import CATEGORY, chosen_one, embedding_output
from .trainer_estimate import Estimate, in_time
from .trainer_files import TrainingFiles
from .trainer_pictures import TrainingPictures, collected
from .trainer_settings import TrainingChoices, TrainingSettingsType, chosen_attribute, target_names

#: How to edit with what pictures taught, and with what a classifier did.
USE = (
    "to edit with it: CASO Edit Sampler as it is (window learned: from {start:g}, focus {focus:g}; its strength of 5 "
    "stands for {strength:g})"
)
USE_CLASSIFIED = "to edit with it: window custom from {start:g}, focus {focus:g}, strength {strength:g} or more"
NONE = "none"  # in place of a folder
SAVE_EVERY = 10  # steps, besides every validation; the picture that is shown is new then, too
ADVICE = "lower batch_size in CASO Training Settings or the size of the pictures, or switch checkpointing on"


def trainer_inputs() -> list[Any]:
    """Sockets and widgets in their order; widgets are saved by position in workflows, so new ones go to the end."""
    folders = list_picture_folders()
    return [
        widget(
            io.Model,
            "model",
            tooltip="The model to learn for: SD 1.x, SD 2.x, SDXL or the demo model. It is not changed.",
        ),
        widget(io.Clip, "clip", tooltip="Its text encoder, which reads the embedding."),
        widget(io.Vae, "vae", tooltip="Its VAE."),
        *(
            widget(io.Combo, name, options=[NONE, *folders], default=NONE, tooltip=tooltip)
            for name, tooltip in (
                (
                    "having_folder",
                    "A folder inside ComfyUI's input folder: 25 to 200 pictures that have it. One exact class: no "
                    "sunglasses among glasses.",
                ),
                (
                    "without_folder",
                    "Pictures that have it not, as many and otherwise alike. For a classifier to teach by they are "
                    "enough.",
                ),
                (
                    "lookalikes_folder",
                    "Pictures of what must not be taken for it: sunglasses for glasses, moustaches for beards.",
                ),
            )
        ),
        widget(
            io.Combo,
            "kind",
            options=list(KINDS),
            default="large",
            tooltip="What is to change, for which it takes measured settings. fine: a small part, as a mouth. large: "
            "glasses, a beard. colour: of hair, say. species: the shape of all.",
        ),
        widget(
            io.String,
            "start_words",
            default="",
            tooltip="A word for what changes, not for how, at which learning starts: face for glasses or a smile "
            "(mouth, where a classifier teaches), hair for red hair. Empty: from nothing.",
        ),
        widget(
            io.String,
            "filename",
            default="my_attribute",
            tooltip="A plain name without folders; embedding:name then works in prompts.",
        ),
        widget(
            io.Boolean,
            "overwrite",
            default=False,
            tooltip="Replace embeddings, pictures and progress of that name; a workflow that comes with this on does "
            "so without asking. Off (the default): refuse when there are any, before training.",
        ),
        widget(
            io.Boolean,
            "resume",
            default=False,
            tooltip="Go on where a training of this name and these settings stopped; it ends as if it never had. "
            "It replaces only what that training saved.",
        ),
        widget(
            io.Image,
            "having",
            optional=True,
            tooltip="Pictures that have it, in place of a folder.",
        ),
        widget(
            io.Image,
            "without",
            optional=True,
            tooltip="Pictures that have it not, in place of a folder.",
        ),
        widget(
            io.Image,
            "lookalikes",
            optional=True,
            tooltip="Pictures of what must not be taken for it, in place of a folder.",
        ),
        widget(
            AttributeClassifierType,
            "attribute_classifier",
            optional=True,
            tooltip="A classifier that teaches where no pictures have it, as in the paper: from Attribute Classifier "
            "Loader or Trainer. Two folders teach better without.",
        ),
        widget(
            io.MultiType,
            "second_opinion",
            types=[AttributeClassifierType, ClipScorerType, io.ClipVision],
            optional=True,
            tooltip="Who judges the edits of held-out pictures and teaches nothing. Best a CLIP Vision or CLIP Scorer, "
            "over which a layer is trained on your pictures; or a classifier. Unwired: small networks, which are often "
            "wrong.",
        ),
        widget(
            TrainingSettingsType,
            "settings",
            optional=True,
            tooltip="All else, from CASO Training Settings.",
        ),
        widget(
            io.Vae,
            "draft_vae",
            optional=True,
            tooltip="A small VAE (TAESD) that decodes all but the last fifth of the steps for the classifier, to save "
            "time and memory.",
        ),
    ]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training has come to so far.

    Attributes:
        embeddings: the best, one for each target class.
        plot: curves, ``[H, W, 3]`` in 0..1.
        samples: the edited validation pictures, ``[H, W, 3]`` in 0..1; None before a validation, and without such
            pictures.
        validation_count: number of validation pictures.
        evaluations: of the network so far.
        steps: taken so far.
        best_step: from 1, which step's embeddings are the best.
        success: share of the held-out pictures that have it after an edit, at the step that is kept; None without a
            look.
        loss: of the last step.
        drawn: how often pictures of each group were taken, by name.
    """

    embeddings: list[SemanticEmbedding]
    plot: Tensor
    samples: Tensor | None
    validation_count: int
    evaluations: Evaluations
    steps: int
    best_step: int
    success: float | None
    loss: float
    drawn: dict[str, int]

    @staticmethod
    def of(
        trainer: EmbeddingTrainer,
        kind: Kind,
        owners: list[str] | None = None,
        having: str = "",
        last: ValidationResult | None = None,
    ) -> Outcome:
        """The state of ``trainer``.

        Args:
            kind: what the embeddings are, which says how they are used.
            owners: whose each of its latents is, by name.
            having: what the pictures that have it are called.
            last: a look at what is kept, in as many steps as an edit takes; without one the look that chose it counts.
        """
        kept = trainer.best_found.step
        judged = trainer.history[kept].validation if 0 <= kept < len(trainer.history) else None
        judged = last or judged
        pictures = last_pictures(trainer) if last is None else last.images
        # A classifier teaches embeddings that want another strength, which depends on its guidance scale.
        own = {"edit": kind.edit} if trainer.settings.shown else {}
        drawn: dict[str, int] = {}
        for step in range(trainer.step if owners else 0):
            for draw in trainer.schedule.draws(step):
                drawn[owners[draw.image]] = drawn.get(owners[draw.image], 0) + 1  # type: ignore[index]
        if having and trainer.having is not None:
            drawn = {having: trainer.step * trainer.settings.batch, **drawn}
        return Outcome(
            embeddings=[replace(made, info={**made.info, **own}) for made in trainer.best()],
            plot=training_plot(trainer),
            samples=None if pictures is None else as_tensor(sample_contact_sheet(trainer, pictures)),
            validation_count=len(trainer.look.latents) if isinstance(trainer.look, RealLook) else 0,
            evaluations=trainer.denoiser.evaluations,
            steps=trainer.step,
            best_step=trainer.best_found.step + 1,
            success=None if judged is None else judged.accuracy,
            loss=trainer.history[-1].loss if trainer.history else float("nan"),
            drawn=drawn,
        )

    def shown(self) -> Tensor:
        """The samples, or the curves where there are none."""
        return self.plot if self.samples is None else self.samples

    def picture(self) -> Any:
        """Curves above samples, as a PIL picture to show while it runs."""
        parts = [self.plot] if self.samples is None else [self.plot, self.samples]
        width = max(part.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1]), value=1.0) for part in parts]
        return to_picture(torch.cat(padded).movedim(-1, 0))

    def save(self, files: TrainingFiles) -> list[Saved]:
        """Write embeddings and pictures; a file is never left half written."""
        pictures = {files.plot: self.plot}
        if (
            self.samples is not None or not self.validation_count
        ):  # never curves in place of samples that a resumed run lacks
            pictures[files.samples] = self.shown()
        return files.save(self.embeddings, pictures)

    def sentence(self) -> str:
        """What was learned, for the person who trained it."""
        if self.success is None or not self.validation_count:
            return f"Learned in {self.steps} steps; no picture was held out, so nobody judged it."
        having = round(self.success * self.validation_count)
        return f"After an edit, {having} of {self.validation_count} pictures that it did not learn from have it."

    def report(self, pictures: int, opinion: Opinion | None, strength: float) -> str:
        """A few lines for people."""
        cost = self.evaluations
        drawn = ", ".join(f"{name} {count}" for name, count in self.drawn.items())
        lines = [
            f"{self.steps} steps on {pictures} pictures, {self.validation_count} held out; kept: step {self.best_step}",
            f"pictures drawn: {drawn}" if drawn else "",
        ]
        if self.success is not None and opinion is not None:
            lines.append(
                f"success {self.success:.0%} in edits of the held-out pictures at strength {strength:g}, "
                f"{opinion.sentence()}"
            )
        lines.append(
            f"loss of the last step {self.loss:.3f}; network evaluations: {cost.forward:.0f} forward, "
            f"{cost.backward:.0f} backward"
        )
        return "\n".join(filter(None, lines))


def as_tensor(picture: Any) -> Tensor:
    """A PIL picture as ``[H, W, 3]`` in 0..1."""
    size = (picture.height, picture.width, 3)
    return torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).reshape(size).float() / 255


class CASOEmbeddingTrainer(io.ComfyNode):
    """CASO's training (Chang et al., Algorithm 1) in one node."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOEmbeddingTrainer",
            display_name="CASO Embedding Trainer",
            category=CATEGORY,
            description="Learns what an attribute (glasses, a smile, ...) is from a folder of pictures that have it "
            "and one of pictures that have it not, or from a classifier as in the paper, without captions, and saves "
            "it as a textual inversion in models/embeddings. Cancel keeps the best so far.",
            search_aliases=[
                "textual inversion training",
                "learn attribute",
                "semantic embedding",
                "classifier guided optimization",
                "caso",
            ],
            inputs=trainer_inputs(),
            outputs=[
                embedding_output(
                    "The embedding of the first target class; wire it into CASO Edit Sampler. All are saved as files."
                ),
                io.Image.Output(
                    "samples",
                    display_name="samples",
                    tooltip="The held-out pictures, edited in a few steps, a row for each class.",
                ),
                plot_output(),
                report_output(),
                io.String.Output(
                    "prompt_text",
                    display_name="prompt text",
                    tooltip="What to write in any prompt to use the saved files, one a line, e.g. "
                    "embedding:my_attribute.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        having_folder: str,
        without_folder: str,
        lookalikes_folder: str,
        kind: str,
        start_words: str,
        filename: str,
        overwrite: bool,
        resume: bool,
        having: Tensor | None = None,
        without: Tensor | None = None,
        lookalikes: Tensor | None = None,
        attribute_classifier: ManagedClassifier | None = None,
        second_opinion: Any = None,
        settings: TrainingChoices | None = None,
        draft_vae: Any = None,
    ) -> Any:
        """Train and save; Cancel saves the best so far, and the state to go on from, before it ends the run."""
        choices, recipe = settings or TrainingChoices(), KINDS[kind]
        size = choices.image_size or training_size(model)
        named = [name if name != NONE else "" for name in (having_folder, without_folder, lookalikes_folder)]
        pictures = collected(named, size, having, without, lookalikes, called=filename)
        chosen = target_names(choices.targets) or pictures.classes
        loss = choices.taught_by(pictures.having is not None, attribute_classifier is not None)
        teacher = None if loss == "pictures" else attribute_classifier
        classifier = None if teacher is None else teacher.classifier
        wanted = choices.settings(loss, recipe, chosen, start_words, classifier)
        start_vectors(HostVectorEncoder(clip), wanted.tokens, wanted.start_words)  # refuses what it cannot begin from
        held = pictures.held_out(choices.held_out)
        files = TrainingFiles.named(filename, wanted.targets)
        going_on = resume and files.state.exists()
        if not going_on:
            files.claim(overwrite, None)  # before anything is trained
        judge = judging(second_opinion) if held else Judge()
        opinion = second(pictures, held, wanted, judge, teacher) if held else None
        if going_on:
            files.claim(overwrite, files.ownership(wanted, classifier))
        bar = StoppableBar()
        latents, partners, owners = encoded(model, vae, pictures, held, wanted)
        vector_encoder, decoder = SessionVectorEncoder(clip), SessionDecoder(vae, choices.checkpointing)
        draft = None if draft_vae is None else SessionDecoder(draft_vae, choices.checkpointing)
        strength = choices.look_strength or recipe.strength
        rows = wanted.batch * (2 if wanted.shown else 1)
        parts = [decoder] if draft is None else [decoder, draft]
        additional_models = [vector_encoder.patcher, *(part.patcher for part in parts)]
        if teacher is not None:
            additional_models.append(teacher.patcher)
        additional_models += judge.handles
        estimate = Estimate(
            model,
            rows,
            tuple(latents.shape[1:]),
            wanted,
            choices.checkpointing,
            held,
            choices.look_steps,
            additional_models,
        )
        began: list[float] = []

        def work(session: Session) -> tuple[Outcome, list[Saved]]:
            own = latents.to(session.latent.device)
            bound = decoder.bind(session)

            def looking(steps: int) -> RealLook | None:
                return (
                    None
                    if opinion is None
                    else RealLook(
                        session.denoiser,
                        vector_encoder.bind(session),
                        bound,
                        opinion,
                        own[:held],
                        recipe,
                        strength,
                        steps,
                        wanted.batch,
                    )
                )

            trainer = EmbeddingTrainer(
                session.denoiser,
                vector_encoder.bind(session),
                bound,
                classifier,
                own[held:],
                wanted,
                own[:held],
                None if draft is None else draft.bind(session),
                None if partners is None else partners.to(session.latent.device),
                looking(choices.look_steps),
            )
            if going_on:
                resume_training(trainer, files.state)
            progress_text(estimate.measured(trainer, own[:1]))
            began.append(time.monotonic())
            first = trainer.step

            def report(_: Any) -> None:
                validated = trainer.history[-1].validation is not None
                saving = validated or trainer.step % SAVE_EVERY == 0 or trainer.step == wanted.steps
                if saving:
                    files.save_state(trainer)
                spent = (time.monotonic() - began[0]) / (trainer.step - first)
                left = spent * (wanted.steps - trainer.step)
                bar.show(
                    trainer.step,
                    wanted.steps,
                    Outcome.of(trainer, recipe).picture() if saving else None,
                    progress_line(trainer) + (f"; {in_time(left)} left" if left else ""),
                )

            with bar.catching():
                trainer.run(report)
            if bar.cancelled is not None and trainer.step:
                files.save_state(trainer)
                with bar.catching():
                    trainer.validate_if_never()  # so that there is something to keep and to show
            last = None
            look = looking(FINAL_STEPS)
            if bar.cancelled is None and look is not None:
                progress_text("editing the held-out pictures with what is kept")
                with bar.catching():
                    last = look(trainer.best_found.vectors)
            called = "" if pictures.having is None else pictures.having.name
            outcome = Outcome.of(trainer, recipe, owners, called, last)
            # Without vectors Cancel was pressed in the first step, or again in that validation.
            return outcome, outcome.save(files) if trainer.best_found.vectors else []

        outcome, saved = run(
            model,
            {"samples": torch.zeros(rows, *latents.shape[1:])},
            {"positive": empty_condition(HostVectorEncoder(clip))},
            work,
            gradients=True,
            gradient_checkpointing=choices.checkpointing,
            seed=wanted.seed,
            advice=ADVICE,
            additional_models=additional_models,
        )
        if bar.cancelled is not None:
            told = kept_sentence(outcome, saved, wanted.steps, files.trouble)
            progress_text(told)
            logging.getLogger(__name__).info(told)
        if not files.trouble and all(part.file for part in saved):
            bar.finish()  # else what could not be saved would be lost, or nobody would hear where it went
        learned = (len(pictures.having.images) if partners is not None and pictures.having else 0) + sum(
            len(group.images) for group in pictures.without
        )
        told = [saved[0].first(outcome.sentence()) if saved else outcome.sentence(), *(part.line for part in saved)]
        told += [pictures.sentence(), outcome.report(learned - held, opinion, strength)]
        told += [pictures.held_out_sentence(held), (USE if wanted.shown else USE_CLASSIFIED).format(**recipe.edit)]
        told.append(estimate.sentence)
        if attribute_classifier is not None and teacher is None:
            told.append("the classifier taught nothing: pictures did; loss in CASO Training Settings chooses")
        report = report_text(*told, files.trouble, skipped_report(pictures.skipped))
        samples, plot = outcome.shown()[None], outcome.plot[None]
        text = "\n".join(f"embedding:{Path(part.file).stem}" for part in saved if part.file)
        return io.NodeOutput(
            chosen_one(outcome.embeddings[0]), samples, plot, report, text, ui=shown(report, samples, cls)
        )


def kept_sentence(outcome: Outcome, saved: list[Saved], steps: int, trouble: str) -> str:
    """What a person who pressed Cancel has, and how to go on."""
    if not saved:
        return f"Cancelled at step {outcome.steps} of {steps}, before anything could be kept."
    names = ", ".join(part.file for part in saved if part.file)
    kept = f"Kept: {names}, step {outcome.best_step}." if names else saved[0].line
    further = trouble or f"Switch resume on to go on from step {outcome.steps}."
    return f"Cancelled at step {outcome.steps} of {steps}. {kept} {further}"


def encoded(
    model: Any, vae: Any, pictures: TrainingPictures, held_out: int, settings: TrainingSettings
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Clean latents: those without it, the held-out ones first; those that have it; and whose each learned one is.

    Where both kinds teach, mirrored copies of all but the held-out ones come after them.
    """

    def latents(images: Tensor) -> Tensor:
        return latent_to_model(model, encode_images(vae, images)).clone()

    images = pictures.all_without()
    owners = [group.name for group in pictures.without for _ in group.images][held_out:]
    if not settings.shown or pictures.having is None:
        return latents(images), None, owners
    having = pictures.having.images
    if settings.flip:
        images, owners = torch.cat([images, images[held_out:].flip(2)]), owners * 2
        having = torch.cat([having, having.flip(2)])
    return latents(images), latents(having), owners


@dataclass(frozen=True, eq=False)
class Judge:
    """What is wired into second_opinion.

    Attributes:
        classifier: one that knows the class.
        trunk: a CLIP, over which classifiers are made.
        handles: of the networks that must be loaded for it.
    """

    classifier: ManagedClassifier | None = None
    trunk: FeatureTrunk | None = None
    handles: tuple[Any, ...] = ()


def judging(wired: Any) -> Judge:
    """An ATTRIBUTE_CLASSIFIER, a CLIP_SCORER, a CLIP_VISION or None as one that judges."""
    if wired is None:
        return Judge()
    if isinstance(wired, ManagedClassifier):
        return Judge(wired, None, (wired.patcher,))
    trunk, handle = clip_trunk(wired)
    return Judge(None, trunk, (handle,))


def second(
    pictures: TrainingPictures,
    held_out: int,
    settings: TrainingSettings,
    judge: Judge,
    teacher: ManagedClassifier | None,
) -> Opinion:
    """Who judges the held-out pictures: the classifier wired for it, new ones of these pictures, or the teacher.

    Raises:
        EditingError: a classifier that does not know the class, too few pictures, or a CLIP without pictures that have
            it.
    """
    real, wired = None, judge.classifier
    if pictures.having is not None:
        real = channels_first(pictures.having.images), channels_first(pictures.all_without())
    elif judge.trunk is not None:
        raise EditingError(
            "A CLIP judges by pictures that have it, and there are none; wire having, or a classifier into "
            "second_opinion."
        )
    if wired is not None or real is None:
        asked = wired or teacher
        assert asked is not None
        load_to_device(asked.patcher)
        source = (
            "the second opinion wired"
            if wired is not None
            else ("the classifier that taught it, which may be fooled; wire second_opinion for an honest figure")
        )
        attribute = known_attribute(asked.classifier, settings)
        targets = settings.targets
        return opinion_of_classifier(asked.classifier, attribute, targets, held_out, source, *(real or (None, None)))
    progress_text("training a second opinion on your pictures")
    with training_scope(0, ADVICE) as device:
        if judge.handles:
            load_to_device(*judge.handles)
        return opinion_of_folders(
            *real, held_out, settings.seed, trunk=judge.trunk, device=device, callback=lambda *_: stop_if_cancelled()
        )


def known_attribute(classifier: ImageClassifier, settings: TrainingSettings) -> str:
    """The attribute that is learned by the name of a classifier that judges: by name, or the one that has the class.

    Raises:
        EditingError: none, or several.
    """
    if settings.attribute in classifier.heads:
        return settings.attribute
    having = [name for name, classes in classifier.heads.items() if set(settings.targets) <= set(classes)]
    return having[0] if len(having) == 1 else chosen_attribute(classifier, "")


NODES = [CASOEmbeddingTrainer]

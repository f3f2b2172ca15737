"""CASO Embedding Trainer: its inputs, what it shows, and the node."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.caso.embedding import SemanticEmbedding
from ...core.caso.settings import LEVELS, TrainingSettings
from ...core.caso.training import EmbeddingTrainer
from ...core.caso.training_report import last_pictures, progress_line, sample_contact_sheet, training_plot
from ...core.caso.training_state import resume_training
from ...core.classifiers.base import named
from ...core.denoiser import Evaluations
from ...core.errors import EditingError
from ...core.images.contact_sheet import to_picture
from ...core.images.files import skipped_report
from ...core.token_vectors import MAX_TOKENS, empty_condition
from ..common.image_inputs import gathered
from ..common.inputs import seed_input
from ..common.reports import plot_output, report_output, shown
from ..common.saving import Saved
from ..host.latents import latent_to_model
from ..host.managed_models import ManagedClassifier
from ..host.progress import StoppableBar
from ..host.sampling import run
from ..host.schema import io, schema, widget
from ..host.session import Session
from ..host.tokens import HostVectorEncoder, SessionVectorEncoder
from ..host.vae import SessionDecoder, encode_images
from .classifier_loader import AttributeClassifierType
from .embeddings import CATEGORY, embedding_output
from .trainer_files import TrainingFiles

#: Socket that can carry a :class:`~semantic_editing.core.caso.settings.TrainingSettings`.
TrainingSettingsType = io.Custom("SEMEDIT_CASO_TRAINING_SETTINGS")
DEFAULTS = TrainingSettings("attribute", ("class",))
VALIDATION_PART = 4  # one picture of so many is a validation picture at most (rounded up)
SAVE_EVERY = 10  # steps, besides every validation; the picture that is shown is new then, too
ADVICE = "lower batch_size or the size of the pictures, or switch checkpointing on"


def trainer_inputs() -> list[Any]:
    """Sockets and widgets in their order; widgets are saved by position in workflows, so new ones go to the end."""
    return [
        widget(
            io.Model,
            "model",
            tooltip="The model to learn for: SD 1.x, SD 2.x, SDXL or the demo model. It is not changed.",
        ),
        widget(io.Clip, "clip", tooltip="Its text encoder, which reads the embedding."),
        widget(io.Vae, "vae", tooltip="Its VAE."),
        widget(
            AttributeClassifierType,
            "attribute_classifier",
            tooltip="What judges whether the attribute is there, from Attribute Classifier Loader or Trainer.",
        ),
        widget(
            io.String,
            "attribute",
            default="",
            tooltip="Which attribute of the classifier, e.g. glasses. Empty: its only one.",
        ),
        widget(
            io.String,
            "targets",
            default="yes",
            tooltip="The class to learn, by the classifier's name for it. Several, separated by commas, are learned "
            "at once and saved under their names.",
        ),
        widget(
            io.String,
            "folder",
            default="",
            tooltip="A folder of pictures inside ComfyUI's input folder. Leave empty when images are wired.",
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
            io.Int,
            "steps",
            default=DEFAULTS.steps,
            min=1,
            max=100_000,
            tooltip="Steps of learning. 100 to 300 is usual; what does best on the held-out pictures is kept.",
        ),
        widget(
            io.Int,
            "batch_size",
            default=DEFAULTS.batch,
            min=1,
            max=64,
            tooltip="Pictures in one step. Lower it when memory runs out.",
        ),
        widget(
            io.Float,
            "noise_level",
            default=DEFAULTS.noise_level,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip=f"Noise the pictures get, as a fraction of the steps: {LEVELS['faces']:g} for faces, "
            f"{LEVELS['others']:g} for others.",
        ),
        seed_input("Of everything random: noise, order, augmentation."),
        widget(
            io.Boolean,
            "resume",
            default=False,
            tooltip="Go on where a training of this name and these settings stopped; it ends as if it never had. "
            "steps may be raised. It replaces only what that training saved.",
        ),
        widget(
            io.Int,
            "image_size",
            default=512,
            min=8,
            max=2048,
            step=8,
            tooltip="Side in pixels to which a folder's pictures are scaled and cut: 512 for SD, 1024 for SDXL, 128 "
            "for the demo model. Wired images keep their size.",
        ),
        widget(
            io.Int,
            "held_out",
            default=24,
            min=0,
            max=64,
            advanced=True,
            tooltip="Pictures, the first ones but at most a quarter, that are not learned from; they decide what is "
            "best, and eight are shown. 0: none.",
        ),
        widget(
            io.Float,
            "learning_rate",
            default=DEFAULTS.learning_rate,
            min=0.0001,
            max=10.0,
            step=0.001,
            advanced=True,
            tooltip="Of AdamW, in units of the token table. Lower it when the loss jumps.",
        ),
        widget(
            io.Float,
            "cfg",
            default=DEFAULTS.cfg,
            min=0.1,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="Guidance scale while learning; 10 is the paper's.",
        ),
        widget(
            io.Float,
            "reconstruction",
            default=DEFAULTS.reconstruction,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="How much the rest of the picture counts (gamma). 0 is off, 1 to 10 usual; higher changes less "
            "besides the attribute.",
        ),
        widget(
            io.Float,
            "band",
            default=DEFAULTS.noise_level_jitter,
            min=0.0,
            max=0.99,
            step=0.01,
            advanced=True,
            tooltip="Draw the noise level from this far around noise_level. 0 is off, 0.1 a good spread.",
        ),
        widget(
            io.Int,
            "tokens",
            default=DEFAULTS.tokens,
            min=1,
            max=MAX_TOKENS,
            advanced=True,
            tooltip="Token vectors of an embedding. 1 is the paper's; more can say more and learn slower.",
        ),
        widget(
            io.Int,
            "bank",
            default=DEFAULTS.noises_per_image,
            min=0,
            max=1000,
            advanced=True,
            tooltip="Noises for each picture that come again, so that half of the evaluations are kept from earlier. "
            "0: always new ones.",
        ),
        widget(
            io.Float,
            "augmentation",
            default=DEFAULTS.augment,
            min=0.0,
            max=3.0,
            step=0.1,
            advanced=True,
            tooltip="How much pictures are shifted, zoomed and made noisy before the classifier, against patterns "
            "that fool it. 0 is off.",
        ),
        widget(
            io.Boolean,
            "flip",
            default=DEFAULTS.flip,
            advanced=True,
            tooltip="Mirror half of the pictures before the classifier. Switch it off for classes that tell left "
            "from right.",
        ),
        widget(
            io.Int,
            "check_every",
            default=DEFAULTS.check_every,
            min=0,
            max=10_000,
            advanced=True,
            tooltip="Steps between validations on the held-out pictures (preview, curves, saved state). 0: at the end "
            "only.",
        ),
        widget(
            io.Boolean,
            "checkpointing",
            default=True,
            advanced=True,
            tooltip="Compute parts of model and VAE again instead of keeping them: several times less memory, "
            "somewhat slower. The result is the same.",
        ),
        widget(
            io.Float,
            "keep_others",
            default=DEFAULTS.attribute_preservation,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="How much it counts that the classifier's other attributes stay as they are. 0 is the paper's "
            "loss; 1 changes less besides, but holds fine attributes such as a smile back. A classifier of one "
            "attribute has no others.",
        ),
        widget(
            io.String,
            "start_words",
            default=DEFAULTS.start_words,
            optional=True,  # API prompts saved before it was there run on
            advanced=True,
            tooltip="A word for what changes, not for how: hair to learn red hair. Learning starts from it, and "
            "tokens before it start neutral, so give tokens one more than the words. Colors need it. Empty: from "
            "nothing, as in the paper.",
        ),
        widget(
            io.Image,
            "images",
            optional=True,
            tooltip="Pictures to learn from, in place of a folder; 100 to 200 of the kind to be edited.",
        ),
        widget(
            io.Vae,
            "draft_vae",
            optional=True,
            tooltip="A small VAE (TAESD) that decodes all but the last fifth of the steps, to save time and memory.",
        ),
    ]


def chosen_attribute(heads: Mapping[str, Sequence[str]], attribute: str) -> str:
    """The attribute asked for, or the only one of the classifier when the widget is empty.

    Raises:
        EditingError: empty, and there are several.
    """
    if not attribute.strip() and len(heads) > 1:
        raise EditingError(
            f"The classifier knows several attributes; write one of them into attribute: {named(list(heads))}."
        )
    return attribute.strip() or next(iter(heads))


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
        figures_of: in words, what ``loss`` and ``accuracy`` belong to.
        loss, accuracy: those of the last validation, or of the last step where there was none.
    """

    embeddings: list[SemanticEmbedding]
    plot: Tensor
    samples: Tensor | None
    validation_count: int
    evaluations: Evaluations
    steps: int
    best_step: int
    figures_of: str
    loss: float
    accuracy: float

    @staticmethod
    def of(trainer: EmbeddingTrainer) -> Outcome:
        """The state of ``trainer``."""
        results = [entry.validation for entry in trainer.history if entry.validation is not None]
        last = results[-1] if results else (trainer.history[-1] if trainer.history else None)
        return Outcome(
            embeddings=trainer.best(),
            plot=training_plot(trainer),
            samples=None if last_pictures(trainer) is None else as_tensor(sample_contact_sheet(trainer)),
            validation_count=0 if trainer.validation is None else len(trainer.validation),
            evaluations=trainer.denoiser.evaluations,
            steps=trainer.step,
            best_step=trainer.best_found.step + 1,
            figures_of="last look" if results else "last step, in training",
            loss=float("nan") if last is None else last.loss,
            accuracy=float("nan") if last is None else last.accuracy,
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

    def report(self, pictures: int) -> str:
        """A few lines for people."""
        cost = self.evaluations
        return (
            f"{self.steps} steps on {pictures} pictures, "
            f"{self.validation_count} held out; best at step {self.best_step}\n{self.figures_of}: loss "
            f"{self.loss:.3f}, {100 * self.accuracy:.0f} % classified as asked\nnetwork evaluations: "
            f"{cost.forward:.0f} forward, {cost.backward:.0f} backward"
        )


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
            description="Learns what an attribute (glasses, a smile, ...) is from a classifier and 100 to 200 "
            "pictures without captions, and saves it as a textual inversion in models/embeddings. Cancel keeps the "
            "best so far.",
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
                    tooltip="The held-out pictures as the embeddings change them in one step, a row for each class.",
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
        attribute_classifier: ManagedClassifier,
        attribute: str,
        targets: str,
        folder: str,
        filename: str,
        overwrite: bool,
        steps: int,
        batch_size: int,
        noise_level: float,
        seed: int,
        resume: bool,
        image_size: int,
        held_out: int,
        learning_rate: float,
        cfg: float,
        reconstruction: float,
        band: float,
        tokens: int,
        bank: int,
        augmentation: float,
        flip: bool,
        check_every: int,
        checkpointing: bool,
        keep_others: float,
        start_words: str = DEFAULTS.start_words,
        images: Tensor | None = None,
        draft_vae: Any = None,
    ) -> Any:
        """Train and save; Cancel saves the best so far, and the state to go on from, before it ends the run."""
        classifier = attribute_classifier.classifier
        chosen = chosen_attribute(classifier.heads, attribute)
        settings = TrainingSettings(
            attribute=chosen,
            targets=tuple(classifier.classes_in(chosen, targets)),  # refuses one that the classifier does not know
            steps=steps,
            batch=batch_size,
            learning_rate=learning_rate,
            cfg=cfg,
            noise_level=noise_level,
            noise_level_jitter=band,
            reconstruction=reconstruction,
            attribute_preservation=keep_others,
            tokens=tokens,
            noises_per_image=bank,
            augment=augmentation,
            flip=flip,
            check_every=check_every,
            seed=seed,
            start_words=start_words,
        )
        files = TrainingFiles.named(filename, settings.targets)
        going_on = resume and files.state.exists()
        files.claim(overwrite, files.ownership(settings, classifier) if going_on else None)
        pictures, skipped = gathered(folder, images, image_size)
        latents = latent_to_model(model, encode_images(vae, pictures)).clone()
        validation_count = min(held_out, math.ceil(len(latents) / VALIDATION_PART), len(latents) - 1)
        vector_encoder, decoder = SessionVectorEncoder(clip), SessionDecoder(vae, checkpointing)
        draft = None if draft_vae is None else SessionDecoder(draft_vae, checkpointing)
        bar = StoppableBar()

        def work(session: Session) -> tuple[Outcome, list[Saved]]:
            own = latents.to(session.latent.device)
            trainer = EmbeddingTrainer(
                session.denoiser,
                vector_encoder.bind(session),
                decoder.bind(session),
                classifier,
                own[validation_count:],
                settings,
                own[:validation_count],
                None if draft is None else draft.bind(session),
            )
            if going_on:
                resume_training(trainer, files.state)

            def report(_: Any) -> None:
                validated = trainer.history[-1].validation is not None
                saving = validated or trainer.step % SAVE_EVERY == 0 or trainer.step == settings.steps
                if saving:
                    files.save_state(trainer)
                bar.show(
                    trainer.step,
                    settings.steps,
                    Outcome.of(trainer).picture() if saving else None,
                    progress_line(trainer),
                )

            with bar.catching():
                trainer.run(report)
            if bar.cancelled is not None and trainer.step:
                files.save_state(trainer)
                with bar.catching():
                    trainer.validate_if_never()  # so that there is something to keep and to show
            outcome = Outcome.of(trainer)
            # Without vectors Cancel was pressed in the first step, or again in that validation.
            return outcome, outcome.save(files) if trainer.best_found.vectors else []

        decoders = [decoder] if draft is None else [decoder, draft]
        additional_models = [vector_encoder.patcher, *(part.patcher for part in decoders), attribute_classifier.patcher]
        sizes = {"samples": torch.zeros(settings.batch, *latents.shape[1:])}
        empty = {"positive": empty_condition(HostVectorEncoder(clip))}
        outcome, saved = run(
            model,
            sizes,
            empty,
            work,
            gradients=True,
            gradient_checkpointing=checkpointing,
            seed=settings.seed,
            advice=ADVICE,
            additional_models=additional_models,
        )
        if not files.trouble and all(part.file for part in saved):
            bar.finish()  # else what could not be saved would be lost, or nobody would hear where it went
        told = [part.line for part in saved]
        told += [outcome.report(len(pictures) - validation_count), files.trouble, skipped_report(skipped)]
        report = "\n".join(filter(None, told))
        samples, plot = outcome.shown()[None], outcome.plot[None]
        text = "\n".join(f"embedding:{Path(part.file).stem}" for part in saved if part.file)
        return io.NodeOutput(
            ((outcome.embeddings[0], 1.0),), samples, plot, report, text, ui=shown(report, samples, cls)
        )


NODES = [CASOEmbeddingTrainer]

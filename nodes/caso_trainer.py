"""CASO Embedding Trainer: an attribute learned from a classifier, saved as a textual inversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.caso.embedding import SemanticEmbedding
from ..core.caso.pictures import square_pictures
from ..core.caso.seams import empty_condition
from ..core.caso.settings import TrainingSettings
from ..core.caso.training import EmbeddingTrainer
from ..core.caso.training_report import sample_sheet, training_plot
from ..core.caso.training_state import resume_training, save_training
from ..core.classifiers.pictures import skipped_report
from ..core.denoiser import Evaluations
from ..core.errors import EditingError
from ..core.pictures import save_picture
from ..core.sheet import to_picture
from .caso_embeddings import CATEGORY, FOLDER, embedding_output
from .caso_trainer_widgets import trainer_inputs
from .classifiers import names_in
from .host import (
    HeldClassifier,
    Session,
    SessionDecoder,
    SessionInjector,
    StoppableBar,
    TokenEncoder,
    counting_bar,
    encode_images,
    input_folder,
    io,
    latent_to_model,
    output_path,
    run,
    schema,
)
from .reports import plot_output, report_output, shown

TRAININGS = "embedding_trainings"
SAVE_EVERY = 10  # steps, besides every look at the held-out pictures
ADVICE = "lower batch_size or the size of the pictures"


class CASOEmbeddingTrainer(io.ComfyNode):
    """CASO's training (Chang et al., Algorithm 1) in one node."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOEmbeddingTrainer",
            display_name="CASO Embedding Trainer",
            category=CATEGORY,
            description="Learns what an attribute (glasses, a smile, ...) is from a classifier and 100 to 200 pictures without captions, "
            "and saves it as a textual inversion in models/embeddings. Cancel keeps the best so far.",
            search_aliases=[
                "textual inversion training",
                "learn attribute",
                "semantic embedding",
                "classifier guided optimization",
                "caso",
            ],
            inputs=trainer_inputs(),
            outputs=[
                embedding_output("The embedding of the first target class; wire it into CASO Edit Sampler. All are saved as files."),
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
                    tooltip="What to write in any prompt to use the saved files, one a line, e.g. embedding:my_attribute.",
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
        attribute_classifier: HeldClassifier,
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
        images: Any = None,
        draft_vae: Any = None,
    ) -> Any:
        """Train and save; Cancel saves the best so far, and the state to go on from, before it ends the run."""
        classifier = attribute_classifier.classifier
        settings = TrainingSettings(
            known_attribute(classifier.heads, attribute), tuple(names_in(targets)), steps, batch_size, learning_rate, cfg=cfg,
            level=noise_level, band=band, reconstruction=reconstruction, tokens=tokens, bank=bank, augment=augmentation, flip=flip,
            check_every=check_every, seed=seed,
        )  # fmt: skip
        for target in settings.targets:
            classifier.class_index(settings.attribute, target)
        files = Files.named(filename, settings.targets)
        files.check(overwrite or (resume and files.state.exists()))
        pictures, skipped = gathered(folder, images, image_size)
        latents = latent_to_model(model, encode_images(vae, pictures)).clone()
        held = min(held_out, len(latents) - 1)
        injector, decoder = SessionInjector(clip), SessionDecoder(vae)
        draft = None if draft_vae is None else SessionDecoder(draft_vae)
        bar = StoppableBar()

        def work(session: Session) -> Outcome:
            own = latents.to(session.latent.device)
            trainer = EmbeddingTrainer(
                session.denoiser, injector.bind(session), decoder.bind(session), classifier, own[held:], settings, own[:held],
                None if draft is None else draft.bind(session),
            )  # fmt: skip
            if resume and files.state.exists():
                resume_training(trainer, files.state)

            def report(_: Any) -> None:
                looked = trainer.history[-1].held is not None
                if looked or trainer.step % SAVE_EVERY == 0 or trainer.step == settings.steps:
                    save_training(trainer, files.state, overwrite=True)
                bar.show(trainer.step, settings.steps, Outcome.of(trainer).picture() if looked else None)

            with bar.catching():
                trainer.run(report)
            outcome = Outcome.of(trainer)
            if trainer.best_found.vectors:  # pressed before the first look, there is nothing worth keeping
                outcome.save(files)
            return outcome

        decoders = [decoder] if draft is None else [decoder, draft]
        companions = [injector.patcher, *(part.patcher for part in decoders), attribute_classifier.patcher]
        sizes = {"samples": torch.zeros(batch_size, *latents.shape[1:])}
        empty = {"positive": empty_condition(TokenEncoder(clip))}
        outcome = run(model, sizes, empty, work, gradients=True, seed=seed, advice=ADVICE, companions=companions)
        bar.finish()
        report = "\n".join(filter(None, [outcome.report(files, len(pictures) - held, held), skipped_report(skipped)]))
        samples, plot = outcome.samples[None], outcome.plot[None]
        text = "\n".join(f"embedding:{path.stem}" for path in files.embeddings)
        return io.NodeOutput(((outcome.embeddings[0], 1.0),), samples, plot, report, text, ui=shown(report, samples, cls))


@dataclass(frozen=True)
class Files:
    """Where a training writes: an embedding for each target class, two pictures, and the state to go on from."""

    embeddings: list[Path]
    samples: Path
    plot: Path
    state: Path

    @staticmethod
    def named(filename: str, targets: tuple[str, ...]) -> Files:
        """One class is saved under ``filename`` itself, several with the class's name added.

        Raises:
            EditingError: an unusable name.
        """
        first = output_path(FOLDER, filename)
        stems = [first.stem] if len(targets) == 1 else [f"{first.stem}_{target.replace(' ', '_')}" for target in targets]
        embeddings = [output_path(FOLDER, stem) for stem in stems]
        pictures = (first.with_name(f"{first.stem}.{kind}.png") for kind in ("preview", "training"))
        return Files(embeddings, *pictures, output_path(TRAININGS, filename))

    def check(self, overwrite: bool) -> None:
        """Raise :class:`EditingError` if an embedding exists and may not be replaced."""
        for path in self.embeddings:
            if path.exists() and not overwrite:
                raise EditingError(f"{path.name} exists already; choose another name or allow overwriting.")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training has come to: embeddings, figures, and pictures ``[H, W, 3]`` in 0..1."""

    embeddings: list[SemanticEmbedding]
    plot: Tensor
    samples: Tensor
    evaluations: Evaluations
    steps: int
    best_step: int
    loss: float
    accuracy: float

    @staticmethod
    def of(trainer: EmbeddingTrainer) -> Outcome:
        """The state of ``trainer``; figures are the held-out pictures' last ones, or the training's where none are held out."""
        looks = [entry.held for entry in trainer.history if entry.held is not None]
        last = looks[-1] if looks else (trainer.history[-1] if trainer.history else None)
        plot = training_plot(trainer)
        samples = as_tensor(sample_sheet(trainer)) if looks else plot
        loss, accuracy = (float("nan"), float("nan")) if last is None else (last.loss, last.accuracy)
        return Outcome(
            trainer.best(), plot, samples, trainer.denoiser.evaluations, trainer.step, trainer.best_found.step + 1, loss, accuracy
        )

    def picture(self) -> Any:
        """Curves above samples, as a PIL picture to show while it runs."""
        width = max(self.plot.shape[1], self.samples.shape[1])
        parts = [self.plot] if self.samples is self.plot else [self.plot, self.samples]
        padded = [torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1]), value=1.0) for part in parts]
        return to_picture(torch.cat(padded).movedim(-1, 0))

    def save(self, files: Files) -> None:
        """Write embeddings and pictures, each file whole or not at all."""
        for embedding, path in zip(self.embeddings, files.embeddings, strict=True):
            embedding.save(path, overwrite=True)
        for picture, path in ((self.samples, files.samples), (self.plot, files.plot)):
            save_picture(path, to_picture(picture.movedim(-1, 0)), overwrite=True)

    def report(self, files: Files, pictures: int, held: int) -> str:
        """A few lines for people."""
        cost = self.evaluations
        return (
            f"saved {', '.join(path.name for path in files.embeddings)}\n"
            f"{self.steps} steps on {pictures} pictures, {held} held out; best at step {self.best_step}\n"
            f"last look: loss {self.loss:.3f}, {100 * self.accuracy:.0f} % classified as asked\n"
            f"network evaluations: {cost.forward:.0f} forward, {cost.backward:.0f} backward"
        )


def as_tensor(picture: Any) -> Tensor:
    """A PIL picture as ``[H, W, 3]`` in 0..1."""
    size = (picture.height, picture.width, 3)
    return torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).reshape(size).float() / 255


def known_attribute(heads: Any, attribute: str) -> str:
    """The attribute asked for, or the only one of the classifier when the widget is empty.

    Raises:
        EditingError: empty, and there are several.
    """
    if not attribute.strip() and len(heads) > 1:
        raise EditingError(f"The classifier knows several attributes; write one of them into attribute: {', '.join(heads)}.")
    return attribute.strip() or next(iter(heads))


def gathered(folder: str, images: Tensor | None, image_size: int) -> tuple[Tensor, list[str]]:
    """``([N, H, W, 3], names of unreadable files)`` of the folder or the batch.

    Raises:
        EditingError: neither, both, or whatever is wrong with them.
    """
    if images is not None:
        if folder.strip():
            raise EditingError("Both a folder and images are given; empty the folder or unwire the images.")
        return images[..., :3].float(), []
    if not folder.strip():
        raise EditingError("There are no pictures to learn from; name a folder of pictures, or wire images.")
    pictures, skipped = square_pictures(input_folder(folder.strip()), image_size, counting_bar())
    return pictures.movedim(1, -1), skipped


NODES = [CASOEmbeddingTrainer]

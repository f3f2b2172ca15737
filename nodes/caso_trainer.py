"""CASO Embedding Trainer: an attribute learned from a classifier, saved as a textual inversion."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..core.caso.seams import empty_condition
from ..core.caso.training import EmbeddingTrainer
from ..core.caso.training_report import progress_line
from ..core.caso.training_state import resume_training, save_training
from ..core.classifiers.pictures import skipped_report
from .caso_embeddings import CATEGORY, embedding_output
from .caso_trainer_widgets import trainer_inputs, training_settings
from .caso_training_result import Files, Outcome
from .host import (
    HeldClassifier,
    Session,
    SessionDecoder,
    SessionInjector,
    StoppableBar,
    TokenEncoder,
    encode_images,
    io,
    latent_to_model,
    run,
    schema,
)
from .picture_input import gathered
from .reports import plot_output, report_output, shown

HELD_OUT_OF = 4  # pictures, one at most is held out (rounded up)
SAVE_EVERY = 10  # steps, besides every look at the held-out pictures; the picture that is shown is new then, too
ADVICE = "lower batch_size or the size of the pictures, or switch checkpointing on"


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
        cls, model: Any, clip: Any, vae: Any, attribute_classifier: HeldClassifier, attribute: str, targets: str, folder: str,
        filename: str, overwrite: bool, resume: bool, image_size: int, held_out: int, checkpointing: bool, images: Any = None,
        draft_vae: Any = None, **knobs: Any,
    ) -> Any:  # fmt: skip
        """Train and save; ``knobs`` are those of :func:`training_settings`.

        Cancel saves the best so far, and the state to go on from, before it ends the run.
        """
        classifier = attribute_classifier.classifier
        settings = training_settings(classifier, attribute, targets, **knobs)
        files = Files.named(filename, settings.targets)
        files.check(overwrite or (resume and files.state.exists()))
        pictures, skipped = gathered(folder, images, image_size)
        latents = latent_to_model(model, encode_images(vae, pictures)).clone()
        held = min(held_out, math.ceil(len(latents) / HELD_OUT_OF), len(latents) - 1)
        injector, decoder = SessionInjector(clip), SessionDecoder(vae, checkpointing)
        draft = None if draft_vae is None else SessionDecoder(draft_vae, checkpointing)
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
                saving = looked or trainer.step % SAVE_EVERY == 0 or trainer.step == settings.steps
                if saving:
                    save_training(trainer, files.state, overwrite=True)
                bar.show(trainer.step, settings.steps, Outcome.of(trainer).picture() if saving else None, progress_line(trainer))

            with bar.catching():
                trainer.run(report)
            if bar.cancelled is not None and trainer.step:
                save_training(trainer, files.state, overwrite=True)
                with bar.catching():
                    trainer.look_if_none()  # so that there is something to keep and to show
            outcome = Outcome.of(trainer)
            if trainer.best_found.vectors:  # else pressed in the first step, or again in that look
                outcome.save(files)
            return outcome

        decoders = [decoder] if draft is None else [decoder, draft]
        companions = [injector.patcher, *(part.patcher for part in decoders), attribute_classifier.patcher]
        sizes = {"samples": torch.zeros(settings.batch, *latents.shape[1:])}
        empty = {"positive": empty_condition(TokenEncoder(clip))}
        outcome = run(
            model, sizes, empty, work, gradients=True, recompute=checkpointing, seed=settings.seed, advice=ADVICE, companions=companions
        )
        bar.finish()
        report = "\n".join(filter(None, [outcome.report(files, len(pictures) - held), skipped_report(skipped)]))
        samples, plot = outcome.shown()[None], outcome.plot[None]
        text = "\n".join(f"embedding:{path.stem}" for path in files.embeddings)
        return io.NodeOutput(((outcome.embeddings[0], 1.0),), samples, plot, report, text, ui=shown(report, samples, cls))


NODES = [CASOEmbeddingTrainer]

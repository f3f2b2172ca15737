"""DeltaEdit Latents, DeltaEdit Mapper Trainer and Relevance Matrix: from faces to a mapper of one's own."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...core.content_hash import content_hash
from ...core.deltaedit.encoder_files import load_encoder
from ...core.deltaedit.latents import Latents, LatentsBuilder, Origin, load_latents
from ...core.deltaedit.mapper_files import load_mapper, save_mapper, save_relevance
from ...core.deltaedit.relevance import BOTH, COVARIANCE, PERTURBATION, Relevance, both
from ...core.deltaedit.relevance_probe import ProbeSettings, RelevanceProbe, by_covariance
from ...core.deltaedit.stylegan2 import StyleGAN2
from ...core.deltaedit.training import PRESETS, MapperSettings, MapperTrainer
from ...core.errors import EditingError
from ...core.images.contact_sheet import to_picture
from ...core.images.files import picture_files, skipped_report
from ...core.models.clip import ClipScorer
from ...core.training import made_with, resume_training, save_training
from ...core.writing import Pace, check_target
from ..common.bundled import bundled_file, bundled_names
from ..common.claimed_files import ClaimedFiles
from ..common.inputs import saved_name_inputs, seed_input
from ..common.reports import plot_output, report_output, shown
from ..common.saving import Saved, save_or_rescue
from ..common.sockets import ClipScorerType
from ..host.folders import (
    DELTA_LATENTS,
    DELTA_MAPPERS,
    MAPPER_TRAININGS,
    STYLE_ENCODERS,
    input_folder,
    list_files,
    output_path,
    resolve_file,
)
from ..host.managed_models import training_scope
from ..host.memory import memory_advice
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, DeltaLatentsType, DeltaMapperType, Managed, RelevanceType, StyleGAN2Type

NO_ENCODER = "none"
PROBING = ".probing.safetensors"
DEFAULTS, PROBE = MapperSettings(), ProbeSettings()
SHOW_EVERY = 10  # steps between moves of the bar
METHODS = (COVARIANCE, PERTURBATION, BOTH)


def encoder_file(name: str) -> Path:
    """The file of a style encoder, the demo's or a person's."""
    return bundled_file(STYLE_ENCODERS, name) or resolve_file(STYLE_ENCODERS, name)


class DeltaEditLatents(io.ComfyNode):
    """Faces to train a Delta Mapper on."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_DeltaEditLatents",
            display_name="DeltaEdit Latents",
            category=CATEGORY,
            description="Gathers what a Delta Mapper is trained on: CLIP features and style codes of many faces, "
            "from a folder of pictures, from the generator itself, or both. Kept as a file that goes on where it was "
            "stopped.",
            search_aliases=["deltaedit dataset", "style codes", "s space", "clip features", "mapper training data"],
            inputs=[
                widget(StyleGAN2Type, "stylegan2", tooltip="The generator to make a mapper for."),
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    tooltip="The CLIP that will read the texts of edits; it looks at the pictures.",
                ),
                widget(
                    io.String,
                    "filename",
                    default="my_latents",
                    tooltip="A plain name without folders; .safetensors is added. A file of that name made with the "
                    "same wires goes on: only what it lacks is computed.",
                ),
                widget(
                    io.Boolean,
                    "overwrite",
                    default=False,
                    tooltip="Start anew and replace a file of that name; a workflow that comes with this on does so "
                    "without asking. Off (the default): go on with it, or refuse when it was made otherwise.",
                ),
                widget(
                    io.String,
                    "folder",
                    default="",
                    tooltip="A folder of face pictures inside ComfyUI's input folder, cut as the generator's own "
                    "training pictures. Empty: generated samples only.",
                ),
                widget(
                    io.Combo,
                    "style_encoder",
                    options=[NO_ENCODER, *bundled_names(STYLE_ENCODERS), *list_files(STYLE_ENCODERS)],
                    default=NO_ENCODER,
                    tooltip="What makes style codes of the folder's pictures: the demo's, or a file of ComfyUI's "
                    "models/style_encoders folder, e.g. e4e_ffhq_encode.pt. Press R after adding one.",
                ),
                widget(
                    io.Int,
                    "samples",
                    default=10_000,
                    min=0,
                    max=1_000_000,
                    tooltip="Faces that the generator makes up, besides the folder's. 0 with a folder: none.",
                ),
                widget(
                    io.Float,
                    "truncation",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Of the samples: 1 is the generator's whole variety, lower ones look more like its mean "
                    "face.",
                ),
                seed_input("Of the first sample; the others take the seeds after it.", advanced=True),
                widget(
                    io.Int,
                    "batch_size",
                    default=16,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="Faces that are drawn and looked at together. Lower it when memory runs out.",
                ),
            ],
            outputs=[
                DeltaLatentsType.Output(
                    "delta_latents",
                    display_name="delta latents",
                    tooltip="The faces; wire them into DeltaEdit Mapper Trainer or Relevance Matrix.",
                ),
                report_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **inputs: Any) -> str:
        """Names, sizes and times of the folder's pictures, so that new ones are added."""
        if not folder.strip():
            return ""
        states = [(path.name, path.stat()) for path in picture_files(input_folder(folder.strip()))]
        return content_hash(*(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states))

    @classmethod
    def execute(
        cls,
        stylegan2: Managed[StyleGAN2],
        clip_scorer: ClipScorer,
        filename: str,
        overwrite: bool,
        folder: str,
        style_encoder: str,
        samples: int,
        truncation: float,
        seed: int,
        batch_size: int,
    ) -> Any:
        """Gather and save; Cancel keeps what there is in the file, from which the next run goes on."""
        path = output_path(DELTA_LATENTS, filename)
        pictures = picture_files(input_folder(folder.strip())) if folder.strip() else []
        if pictures and style_encoder == NO_ENCODER:
            raise EditingError("The folder's pictures need a style encoder; choose one, or empty the folder.")
        generator = stylegan2.network
        encoder = None
        if pictures:
            source = encoder_file(style_encoder)
            encoder = Managed.make(lambda: load_encoder(source, generator.layout.rows, generator.style_dim))
        identity = "" if encoder is None else content_hash(*encoder.network.state_dict().values())
        bar = StoppableBar()
        with memory_advice("lower batch_size"), torch.inference_mode(False), torch.no_grad():
            builder = LatentsBuilder(
                stylegan2.loaded,
                clip_scorer,
                path,
                Origin(generator.identity, clip_scorer.identity, identity, truncation),
                None if encoder is None else encoder.loaded,
                batch_size,
            )
            if not overwrite and path.exists():
                builder.resume()
            check_target(path, overwrite=overwrite or builder.replaces)
            builder.replaces = builder.replaces or overwrite
            there = len(builder)

            def report(done: int, total: int) -> None:
                bar.show(done, total, text=f"{done} of {total} faces")

            with bar.catching():
                builder.run(pictures, samples, seed, report)
            if bar.cancelled is not None and not len(builder):
                bar.finish()
            saved = Saved(
                path.name, f"{path.name} holds them already" if len(builder) == there else f"saved {path.name}"
            )
            if builder.unsaved:  # the disk refused on the way
                saved = save_or_rescue(builder.save, path, builder.replaces)
            if saved.file:
                bar.finish()  # else nobody would hear where it went
            latents = load_latents(path) if saved.file else builder.latents()
        added = f"{len(latents) - there} added to {there}" if there and len(latents) > there else ""
        report_text = "\n".join(filter(None, [saved.line, latents.report(), added, skipped_report(latents.skipped)]))
        return io.NodeOutput(latents, report_text, ui=shown(report_text))


def trainer_settings(preset: str, **chosen: Any) -> MapperSettings:
    """A preset with the widgets' values; 0 leaves the preset's.

    Raises:
        EditingError: no such preset.
    """
    if preset not in PRESETS:
        raise EditingError(f"There is no preset {preset!r}; use one of: {', '.join(PRESETS)}.")
    return replace(PRESETS[preset], **{name: value for name, value in chosen.items() if value or name == "seed"})


class DeltaEditMapperTrainer(io.ComfyNode):
    """DeltaEdit's training (Lyu et al., section 4.1)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_DeltaEditMapperTrainer",
            display_name="DeltaEdit Mapper Trainer",
            category=CATEGORY,
            description="Trains a Delta Mapper from faces alone, without a text: what CLIP sees between two faces "
            "becomes the way from one style code to the other. Any text pair then edits. Cancel keeps the best so far.",
            search_aliases=["deltaedit training", "train mapper", "text-free training", "styleclip mapper"],
            inputs=[
                widget(DeltaLatentsType, "delta_latents", tooltip="Faces to learn from, of DeltaEdit Latents."),
                *saved_name_inputs("my_mapper"),
                widget(
                    io.Combo,
                    "preset",
                    options=list(PRESETS),
                    default="fast",
                    tooltip="fast: levels seen whole, standardised styles, AdamW; minutes. released: the published "
                    "architecture and settings, several times slower.",
                ),
                widget(
                    io.Int,
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps of learning. 4000 suit fast; released wants 20,000 and more (the authors took "
                    "200,000).",
                ),
                widget(
                    io.Int,
                    "batch_size",
                    default=0,
                    min=0,
                    max=8192,
                    tooltip="Pairs of faces in one step. 0: the preset's, 256 for fast and 64 for released.",
                ),
                seed_input("Of first weights, pairs, dropout, and which faces are held out."),
                widget(
                    io.Boolean,
                    "resume",
                    default=False,
                    tooltip="Go on where a training of this name, these faces and settings stopped; it ends as if it "
                    "never had. It replaces only what that training saved.",
                ),
                widget(
                    io.Float,
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    round=0.000001,
                    advanced=True,
                    tooltip="0: the preset's, 0.003 for fast and 0.5 for released (whose layers multiply it by 0.01). "
                    "Lower it when the loss jumps.",
                ),
                widget(
                    io.Int,
                    "hidden",
                    default=DEFAULTS.hidden,
                    min=8,
                    max=4096,
                    advanced=True,
                    tooltip="Width of the modules of fast; more learns slower and can hold more.",
                ),
                widget(
                    io.Int,
                    "check_every",
                    default=DEFAULTS.check_every,
                    min=1,
                    max=100_000,
                    advanced=True,
                    tooltip="Steps between looks at the held-out faces, by which the best is chosen; curves and saved "
                    "progress are new then.",
                ),
            ],
            outputs=[
                DeltaMapperType.Output(
                    "delta_mapper",
                    display_name="delta mapper",
                    tooltip="The mapper that did best on the held-out faces, with the relevance matrix of the faces "
                    "(by covariance); it is saved too.",
                ),
                plot_output(),
                report_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        delta_latents: Latents,
        filename: str,
        overwrite: bool,
        preset: str,
        steps: int,
        batch_size: int,
        seed: int,
        resume: bool,
        learning_rate: float,
        hidden: int,
        check_every: int,
    ) -> Any:
        """Train and save; Cancel saves the best so far, and the state to go on from, before it ends the run."""
        settings = trainer_settings(
            preset,
            steps=steps,
            batch=batch_size,
            seed=seed,
            learning_rate=learning_rate,
            hidden=hidden,
            check_every=check_every,
        )
        path, state = (output_path(kind, filename) for kind in (DELTA_MAPPERS, MAPPER_TRAININGS))
        going_on = resume and state.exists()
        files = ClaimedFiles(state)
        if not going_on:  # before the latents are read
            files.claim(path, overwrite)
            files.claim(state, overwrite)
        bar, pace = StoppableBar(), Pace()
        size = sum(part.numel() * part.element_size() for part in (delta_latents.offsets, delta_latents.image_features))
        with training_scope(size // 2, "lower batch_size or hidden") as device:
            trainer = MapperTrainer(delta_latents, settings, device)
            if going_on:
                files.claim(path, overwrite, lambda file: _made_by(file, trainer))
                files.claim(state, overwrite, lambda file: True)  # compared when it is read
                resume_training(trainer, state)

            def save_state(target: Path, replacing: bool) -> None:
                save_training(trainer, target, overwrite=replacing)

            def report(_: MapperTrainer) -> None:
                looked = trainer.step % settings.check_every == 0
                last = trainer.step == settings.steps
                if not trainer.broken and (last or (looked and pace.due())):
                    with pace.saving():
                        files.save_state(save_state)
                if looked or last or trainer.step % SHOW_EVERY == 0:
                    picture = to_picture(trainer.plot().movedim(-1, 0)) if looked else None
                    bar.show(trainer.step, settings.steps, picture, trainer.line())

            with bar.catching():
                trainer.run(report)
            if bar.cancelled is not None:
                if not trainer.step:
                    bar.finish()
                if not trainer.broken:
                    files.save_state(save_state)
                    if not trainer.best_found.weights:
                        trainer.validate()
            mapper = trainer.best()
            mapper.relevance = by_covariance(delta_latents, device=device)
            plot, text = trainer.plot()[None], trainer.report(mapper)

        def save(target: Path, replacing: bool) -> None:
            save_mapper(target, mapper, overwrite=replacing)

        saved = save_or_rescue(save, path, path in files.replaceable)
        if saved.file and not files.trouble:
            bar.finish()  # else it would be lost, or nobody would hear where it went
        report_text = "\n".join(filter(None, [saved.line, text, files.trouble]))
        managed = Managed.make(lambda: mapper)
        return io.NodeOutput(managed, plot, report_text, ui=shown(report_text, plot, cls))


def _made_by(path: Path, trainer: MapperTrainer) -> bool:
    try:
        return made_with(load_mapper(path).facts, trainer)
    except EditingError:
        return False


class RelevanceMatrix(io.ComfyNode):
    """Which style channels show what."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RelevanceMatrix",
            display_name="Relevance Matrix",
            category=CATEGORY,
            description="Finds which style channels show what CLIP sees, so that an edit moves no others: from the "
            "faces alone in seconds (covariance), by moving every channel and looking (perturbation, the paper's), or "
            "both.",
            search_aliases=["deltaedit relevance", "disentanglement", "styleclip global direction", "fs3"],
            inputs=[
                widget(DeltaLatentsType, "delta_latents", tooltip="Faces of DeltaEdit Latents."),
                *saved_name_inputs("my_relevance"),
                widget(
                    io.Combo,
                    "method",
                    options=list(METHODS),
                    default=COVARIANCE,
                    tooltip="covariance: how styles and CLIP features vary together over the faces; seconds. "
                    "perturbation: each channel is moved on some faces, and CLIP looks; hours for 1024 pixels. both: "
                    "their mean, which kept more of the pictures than either.",
                ),
                widget(
                    io.Int,
                    "faces",
                    default=PROBE.faces,
                    min=1,
                    max=1000,
                    tooltip="Of perturbation and both: faces on which each channel is moved. Each costs two pictures a "
                    "channel.",
                ),
                widget(
                    io.Float,
                    "amount",
                    default=PROBE.amount,
                    min=0.1,
                    max=30.0,
                    step=0.1,
                    tooltip="Of perturbation and both: how far a channel is moved to either side, in its own standard "
                    "deviations.",
                ),
                seed_input("Of perturbation and both: which faces.", advanced=True),
                widget(
                    io.Int,
                    "batch_size",
                    default=PROBE.batch,
                    min=1,
                    max=512,
                    advanced=True,
                    tooltip="Pictures that are drawn together. Lower it when memory runs out.",
                ),
                widget(
                    StyleGAN2Type,
                    "stylegan2",
                    optional=True,
                    tooltip="The generator that made the faces; for perturbation and both.",
                ),
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    optional=True,
                    tooltip="The CLIP that looked at the faces; for perturbation and both.",
                ),
            ],
            outputs=[
                RelevanceType.Output(
                    "relevance_matrix",
                    display_name="relevance matrix",
                    tooltip="Wire it into DeltaEdit Mapper, in place of the one that came with the mapper.",
                ),
                report_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        delta_latents: Latents,
        filename: str,
        overwrite: bool,
        method: str,
        faces: int,
        amount: float,
        seed: int,
        batch_size: int,
        stylegan2: Managed[StyleGAN2] | None = None,
        clip_scorer: ClipScorer | None = None,
    ) -> Any:
        """Compute and save; Cancel keeps the channels that are known, and the next run goes on from there."""
        if method not in METHODS:
            raise EditingError(f"There is no method {method!r}; use one of: {', '.join(METHODS)}.")
        path = check_target(output_path(DELTA_MAPPERS, filename), overwrite=overwrite)
        bar = StoppableBar()
        with memory_advice("lower batch_size"), torch.inference_mode(False), torch.no_grad():
            if method == COVARIANCE:
                relevance, told = by_covariance(delta_latents, bar.show), ""
                state = None
            else:
                if stylegan2 is None or clip_scorer is None:
                    raise EditingError(
                        f"The method {method} draws and looks; wire stylegan2 and clip_scorer, or choose covariance."
                    )
                settings = ProbeSettings(faces, amount, seed, batch_size)
                probe = RelevanceProbe(stylegan2.loaded, clip_scorer, delta_latents, settings)
                state = output_path(MAPPER_TRAININGS, filename, PROBING)
                relevance = _probed(probe, ClaimedFiles(state), overwrite, bar)
                if method == BOTH:
                    relevance = both(by_covariance(delta_latents), relevance)
                told = (
                    f"{probe.evaluations} pictures drawn and looked at (+-{amount:g} deviations on {len(probe.rows)} "
                    "faces)"
                )

        def save(target: Path, replacing: bool) -> None:
            save_relevance(target, relevance, overwrite=replacing)

        saved = save_or_rescue(save, path, overwrite)
        if state is not None and saved.file:
            with contextlib.suppress(OSError):  # it stays, and does no harm
                state.unlink()
        known = int((relevance.matrix.norm(dim=1) > 0).sum())
        lines = [
            saved.line,
            f"{method}: {len(relevance.matrix)} channels, {known} of which show something to CLIP; "
            f"{len(delta_latents)} faces",
            told,
        ]
        report = "\n".join(filter(None, lines))
        return io.NodeOutput(relevance, report, ui=shown(report))


def _probed(probe: RelevanceProbe, files: ClaimedFiles, overwrite: bool, bar: StoppableBar) -> Relevance:
    """The matrix of ``probe``, which goes on from the state where there is one; Cancel saves it and ends the run."""
    pace = Pace()
    if files.state.exists():
        try:
            probe.resume(files.state)
        except EditingError:
            if not overwrite:
                raise
        files.replaceable.add(files.state)
    check_target(files.state, overwrite=files.state in files.replaceable)

    def save_state(target: Path, replacing: bool) -> None:
        probe.save(target, overwrite=replacing)

    def report(done: int, total: int) -> None:
        if pace.due():
            with pace.saving():
                files.save_state(save_state)
        bar.show(done, total, text=f"{done} of {total} channels")

    with bar.catching():
        return probe.run(report)
    files.save_state(save_state)
    if files.trouble:  # what was looked at is lost, and nobody would hear of it
        raise EditingError(f"Cancelled when {probe.done} of {len(probe.matrix)} channels were known. {files.trouble}")
    bar.finish()
    raise AssertionError("a press of Cancel is raised")


NODES = [DeltaEditLatents, DeltaEditMapperTrainer, RelevanceMatrix]

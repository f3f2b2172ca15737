"""DeltaEdit Mapper Trainer: a mapper of one's own, from faces alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...core.deltaedit.latents import Latents
from ...core.deltaedit.mapper_files import load_mapper, save_mapper
from ...core.deltaedit.relevance_probe import by_covariance
from ...core.deltaedit.training import PRESETS, MapperSettings, MapperTrainer
from ...core.errors import EditingError
from ..common.inputs import saved_name_inputs
from ..common.reports import plot_output, report_output, report_text, shown
from ..common.training import TrainingRun
from ..host.folders import DELTA_MAPPERS, MAPPER_TRAININGS, output_path
from ..host.managed_models import training_scope
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, DeltaLatentsType, DeltaMapperType, Managed
from .training_settings import DEFAULTS, TrainingChoices, training_settings_input


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
                    default=MapperSettings.steps,
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
                widget(
                    io.Boolean,
                    "resume",
                    default=False,
                    tooltip="Go on where a training of this name, these faces and settings stopped; it ends as if it "
                    "never had. It replaces only what that training saved.",
                ),
                training_settings_input(),
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
        resume: bool,
        settings: TrainingChoices = DEFAULTS,
    ) -> Any:
        """Train and save; Cancel saves the best so far, and the state to go on from, before it ends the run."""
        chosen = trainer_settings(preset, steps=steps, batch=batch_size, **vars(settings))
        path, state = (output_path(kind, filename) for kind in (DELTA_MAPPERS, MAPPER_TRAININGS))
        run = TrainingRun(path, state, overwrite, resume, lambda file: load_mapper(file).facts)
        size = sum(part.numel() * part.element_size() for part in (delta_latents.offsets, delta_latents.image_features))
        with training_scope(size // 2, "lower batch_size or hidden") as device:
            trainer = MapperTrainer(delta_latents, chosen, device)
            mapper = run.train(trainer, trainer.plot)
            mapper.relevance = by_covariance(delta_latents, device=device)
            plot, told = trainer.plot()[None], trainer.report(mapper)
        saved = run.save(save_mapper, mapper)
        first = (
            f"Learned from {len(delta_latents)} faces: on faces kept back its direction agrees with the true one by "
            f"{mapper.facts['held-out cosine']} (a cosine; 1 is all)."
        )
        report = report_text(saved.first(first), saved.line, told, run.files.trouble)
        managed = Managed.make(lambda: mapper)
        return io.NodeOutput(managed, plot, report, ui=shown(report, plot, cls))


NODES = [DeltaEditMapperTrainer]

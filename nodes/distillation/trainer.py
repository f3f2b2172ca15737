"""Distil Edit Trainer: a small network learns an edit from pairs that the edit made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.content_hash import content_hash
from ...core.distillation.files import load_editor, save_editor
from ...core.distillation.network import weight_bytes
from ...core.distillation.pairs import EditPairs, PairFilter, as_bytes, filter_pairs, read_pairs
from ...core.distillation.training import DistillationTrainer
from ...core.errors import EditingError
from ...core.images.files import picture_files, skipped_report
from ...core.models.clip import ClipScorer
from ..common.image_inputs import channels_first
from ..common.inputs import saved_name_inputs
from ..common.managed import Managed
from ..common.reports import plot_output, report_output, report_text, shown
from ..common.sockets import ClipScorerType
from ..common.training import TrainingRun
from ..host.folders import DISTILLATION_TRAININGS, DISTILLED_EDITS, input_folder, output_path
from ..host.managed_models import training_scope
from ..host.progress import counting_bar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, DistilledEditType
from .trainer_settings import DEFAULTS, RECIPE, TrainingChoices, TrainingSettingsType

ADVICE = "lower batch_size, or give smaller pictures"


class DistilEditTrainer(io.ComfyNode):
    """pix2pix-zero's distillation (section 4.5, appendix A)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_DistilEditTrainer",
            display_name="Distil Edit Trainer",
            category=CATEGORY,
            description="Teaches a small network an edit from pictures before and after it, made by any edit of this "
            "pack or another, so that Distilled Edit makes it in milliseconds. Hundreds of pairs are good. Cancel "
            "keeps the best so far.",
            search_aliases=[
                "teach an edit",
                "make an edit fast",
                "distillation",
                "train pix2pix",
                "co-mod-gan",
                "train image to image",
                "learn an edit",
            ],
            inputs=[
                *saved_name_inputs("my_edit"),
                widget(
                    io.String,
                    "source_text",
                    default="",
                    tooltip='What the pictures show before the edit: "a face without glasses". Read by the CLIP '
                    "scorer, and kept with the file. May be empty.",
                ),
                widget(
                    io.String,
                    "target_text",
                    default="",
                    tooltip='What they should show after it: "a face wearing glasses". With a CLIP scorer wired, pairs '
                    "that did not come nearer to it, or still look more like source_text, are left out.",
                ),
                widget(
                    io.Int,
                    "steps",
                    default=RECIPE.steps,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps of learning. 600 suit a hundred pairs, more pairs want more; what does best on "
                    "held-out pairs is kept.",
                ),
                widget(
                    io.Boolean,
                    "resume",
                    default=False,
                    tooltip="Go on where a training of this name, these pairs and settings stopped; it ends as if it "
                    "never had. It replaces only what that training saved.",
                ),
                widget(
                    io.String,
                    "before_folder",
                    default="",
                    tooltip="In place of before and after: a folder of pictures inside ComfyUI's input folder. The "
                    "n-th by name belongs to the n-th of after_folder.",
                ),
                widget(
                    io.String,
                    "after_folder",
                    default="",
                    tooltip="The folder of the edited pictures, as many as in before_folder.",
                ),
                widget(io.Image, "before", optional=True, tooltip="Pictures before the edit, a batch."),
                widget(
                    io.Image,
                    "after",
                    optional=True,
                    tooltip="The same pictures after the edit, in the same order and size.",
                ),
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    optional=True,
                    tooltip="From Load CLIP Scorer: leaves out pairs in which the edit did not happen. Unwired: all "
                    "pairs are learned from.",
                ),
                widget(
                    TrainingSettingsType,
                    "settings",
                    optional=True,
                    tooltip="All else, from Distil Training Settings. Unwired: the measured recipe.",
                ),
            ],
            outputs=[
                DistilledEditType.Output(
                    "distilled_edit",
                    display_name="distilled edit",
                    tooltip="What did best on the held-out pairs; it is saved too. Wire it into Distilled Edit.",
                ),
                io.Image.Output(
                    "samples",
                    display_name="samples",
                    tooltip="Held-out pictures: before, what the network makes of them, what the edit made.",
                ),
                plot_output(),
                report_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, before_folder: str = "", after_folder: str = "", **inputs: Any) -> str:
        """Names, sizes and times of the folders' pictures, so that new ones are learned from."""
        states = [
            (path.name, path.stat())
            for folder in (before_folder, after_folder)
            if folder.strip()
            for path in picture_files(input_folder(folder.strip()))
        ]
        return content_hash(*(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states))

    @classmethod
    def execute(
        cls,
        filename: str,
        overwrite: bool,
        source_text: str,
        target_text: str,
        steps: int,
        resume: bool,
        before_folder: str,
        after_folder: str,
        before: Tensor | None = None,
        after: Tensor | None = None,
        clip_scorer: ClipScorer | None = None,
        settings: TrainingChoices = DEFAULTS,
    ) -> Any:
        """Train and save; Cancel saves the best so far, and the state to go on from, before it ends the run."""
        shape, chosen = settings.shape, settings.settings(steps)
        path, state = (output_path(kind, filename) for kind in (DISTILLED_EDITS, DISTILLATION_TRAININGS))
        run = TrainingRun(path, state, overwrite, resume, lambda file: load_editor(file).facts)
        pairs, skipped = gathered_pairs(before, after, before_folder, after_folder, settings.image_size)
        wanted = PairFilter(source_text, target_text, settings.clip_gain, settings.overlap)
        found = filter_pairs(pairs, wanted, clip_scorer, counting_bar())
        with training_scope(weight_bytes(shape), ADVICE) as device:
            trainer = DistillationTrainer(found.pairs, shape, chosen, device, source_text.strip(), target_text.strip())
            editor = run.train(trainer, lambda: sample_strip(trainer))
            samples, plot, told = sample_strip(trainer)[None], trainer.plot()[None], trainer.report(editor)
        saved = run.save(save_editor, editor)
        facts = editor.facts
        first = (
            f"Learned: on pairs kept back it copies the edit at {facts['held-out PSNR']} dB, where doing nothing gives "
            f"{facts['held-out PSNR, nothing done']} dB."
        )
        text = report_text(
            saved.first(first), saved.line, found.report(), told, run.files.trouble, skipped_report(skipped)
        )
        managed = Managed.make(lambda: editor)
        return io.NodeOutput(managed, samples, plot, text, ui=shown(text, samples, cls))


def gathered_pairs(
    before: Tensor | None, after: Tensor | None, before_folder: str, after_folder: str, image_size: int
) -> tuple[EditPairs, list[str]]:
    """The wired pairs, or those of two folders, with the names of unreadable ones.

    Raises:
        EditingError: none, half of them, both kinds, or whatever is wrong with them.
    """
    folders = [before_folder.strip(), after_folder.strip()]
    if before is not None or after is not None:
        if any(folders):
            raise EditingError("Both folders and images are given; empty the folders or unwire the images.")
        if before is None or after is None:
            raise EditingError("Wire both before and after: the pictures, and what the edit made of them.")
        return EditPairs(*(as_bytes(channels_first(part)) for part in (before, after))), []
    if not all(folders):
        raise EditingError("There are no pairs to learn from; wire before and after, or name both folders.")
    return read_pairs(*(input_folder(folder) for folder in folders), image_size, counting_bar())


def sample_strip(trainer: DistillationTrainer) -> Tensor:
    """Held-out pictures in columns, ``[H, W, 3]``: before, what the network makes of them, what the edit made."""
    rows = [torch.cat(list(part), 2) for part in trainer.pictures()]
    return torch.cat(rows, 1).movedim(0, -1).clamp(0, 1).contiguous()


NODES = [DistilEditTrainer]

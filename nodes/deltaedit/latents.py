"""DeltaEdit Latents: faces to train a Delta Mapper on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...core.content_hash import content_hash
from ...core.deltaedit.encoder_files import load_encoder
from ...core.deltaedit.latents import LatentsBuilder, Origin, load_latents
from ...core.deltaedit.stylegan2 import StyleGAN2
from ...core.errors import EditingError
from ...core.images.files import picture_files, skipped_report
from ...core.models.clip import ClipScorer
from ...core.writing import check_target
from ..common.bundled import bundled_file, bundled_names
from ..common.inputs import seed_input
from ..common.reports import report_output, report_text, shown
from ..common.saving import Saved, save_or_rescue
from ..common.sockets import ClipScorerType
from ..host.folders import DELTA_LATENTS, STYLE_ENCODERS, input_folder, list_files, output_path, resolve_file
from ..host.memory import memory_advice
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, DeltaLatentsType, Managed, StyleGAN2Type

NO_ENCODER = "none"


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
                path.name, f"{path.name} holds them already." if len(builder) == there else f"Saved {path.name}."
            )
            if builder.unsaved:  # the disk refused on the way
                saved = save_or_rescue(builder.save, path, builder.replaces)
            if saved.file:
                bar.finish()  # else nobody would hear where it went
            latents = load_latents(path) if saved.file else builder.latents()
        added = f"{len(latents) - there} added to {there}" if there and len(latents) > there else ""
        report = report_text(
            saved.first(f"{len(latents)} faces are ready to learn from."),
            saved.line,
            latents.report(),
            added,
            skipped_report(latents.skipped),
        )
        return io.NodeOutput(latents, report, ui=shown(report))


NODES = [DeltaEditLatents]

"""Relevance Matrix: which style channels show what."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from ...core.deltaedit.latents import Latents
from ...core.deltaedit.mapper_files import save_relevance
from ...core.deltaedit.relevance import BOTH, COVARIANCE, PERTURBATION, Relevance, both
from ...core.deltaedit.relevance_probe import ProbeSettings, RelevanceProbe, by_covariance
from ...core.deltaedit.stylegan2 import StyleGAN2
from ...core.errors import EditingError
from ...core.models.clip import ClipScorer
from ...core.writing import Pace, check_target
from ..common.claimed_files import ClaimedFiles
from ..common.inputs import saved_name_inputs, seed_input
from ..common.reports import report_output, report_text, shown
from ..common.saving import save_or_rescue
from ..common.sockets import ClipScorerType
from ..host.folders import DELTA_MAPPERS, MAPPER_TRAININGS, output_path
from ..host.memory import memory_advice
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, DeltaLatentsType, Managed, RelevanceType, StyleGAN2Type

PROBING = ".probing.safetensors"
PROBE = ProbeSettings()
METHODS = (COVARIANCE, PERTURBATION, BOTH)


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
        first = f"Found which of {len(relevance.matrix)} style channels show what: {known} show something to CLIP."
        lines = [
            saved.line,
            f"{method}: {len(relevance.matrix)} channels, {known} of which show something to CLIP; "
            f"{len(delta_latents)} faces",
            told,
        ]
        report = report_text(saved.first(first), *lines)
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


NODES = [RelevanceMatrix]

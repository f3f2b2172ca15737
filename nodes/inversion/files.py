"""Save Inversion, Load Inversion: an INVERSION on disk, because it costs minutes on a large model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.inversion import Inversion
from ...core.writing import check_target
from ..common.inputs import file_input, saved_name_inputs
from ..common.recording import changed_remarks
from ..common.reports import (
    file_fingerprint,
    inversion_outputs,
    inversion_report,
    inversion_values,
    report_output,
    report_text,
    shown,
)
from ..common.saving import save_or_rescue
from ..common.sockets import InversionType
from ..host.folders import output_path, resolve_file
from ..host.identity import identity
from ..host.schema import io, schema, widget

FOLDER = "inversions"


class SaveInversion(io.ComfyNode):
    """Write an INVERSION to ``models/inversions``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_SaveInversion",
            display_name="Save Inversion",
            category="semantic editing/inversion",
            description="Saves an inversion as a safetensors file in ComfyUI's models/inversions folder, with the "
            "model it belongs to.",
            search_aliases=["store inversion", "export inversion", "write noise"],
            inputs=[
                widget(InversionType, "inversion", tooltip="The inversion to save."),
                *saved_name_inputs("inversion"),
            ],
            outputs=[
                io.String.Output(
                    "saved_file", display_name="file", tooltip="Name of the file, as Load Inversion lists it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, inversion: Inversion, filename: str, overwrite: bool) -> Any:
        """Write whole or not at all."""
        path = check_target(output_path(FOLDER, filename), overwrite=overwrite)

        def save(target: Path, replacing: bool) -> None:
            inversion.save(target, overwrite=replacing)

        saved = save_or_rescue(save, path, overwrite, is_output=False)
        return io.NodeOutput(saved.file, ui=shown(report_text(saved.line, inversion_report(inversion))))


class LoadInversion(io.ComfyNode):
    """Read an INVERSION from ``models/inversions`` for the model it was made with."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_LoadInversion",
            display_name="Load Inversion",
            category="semantic editing/inversion",
            description="Loads an inversion saved by Save Inversion and checks that it belongs to the wired model.",
            search_aliases=["open inversion", "import inversion", "read noise"],
            inputs=[
                widget(io.Model, "model", tooltip="The model the inversion was made with; another one is refused."),
                file_input("inversion_file", FOLDER),
            ],
            outputs=[*inversion_outputs(), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, inversion_file: str, model: Any = None) -> str:
        """Size and time of the file, so that a file saved anew is read anew.

        The host may call this without the wired ``model``.
        """
        return file_fingerprint(FOLDER, inversion_file)

    @classmethod
    def execute(cls, model: Any, inversion_file: str) -> Any:
        """Read and check; EditingError for a damaged file or another model."""
        inversion = Inversion.load(resolve_file(FOLDER, inversion_file))
        inversion.require_model(own := identity(model))
        report = report_text(inversion_report(inversion), *changed_remarks(inversion, own))
        return io.NodeOutput(*inversion_values(model, inversion), report, ui=shown(report))


NODES = [SaveInversion, LoadInversion]

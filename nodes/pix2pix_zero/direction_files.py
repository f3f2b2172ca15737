"""Save Edit Direction, Load Edit Direction: directions as files, also those published with pix2pix-zero (.pt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.pix2pix_zero.edit_direction import EditDirection
from ...core.writing import check_target
from ..common.inputs import file_input, saved_name_inputs
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..common.saving import save_or_rescue
from ..host.folders import list_files, output_path, resolve_file
from ..host.schema import io, schema, widget
from .directions import EditDirectionType

CATEGORY = "semantic editing/direction"
FOLDER = "edit_directions"
NONE = "none"


class SaveEditDirection(io.ComfyNode):
    """Write an EDIT_DIRECTION to ``models/edit_directions``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_SaveEditDirection",
            display_name="Save Edit Direction",
            category=CATEGORY,
            description="Saves an edit direction as a safetensors file in ComfyUI's models/edit_directions folder, "
            "with its text encoder.",
            search_aliases=["store direction", "export direction"],
            inputs=[
                widget(EditDirectionType, "edit_direction", tooltip="The direction to save."),
                *saved_name_inputs("cat2dog"),
            ],
            outputs=[
                io.String.Output(
                    "saved_file", display_name="file", tooltip="Name of the file, as Load Edit Direction lists it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, edit_direction: EditDirection, filename: str, overwrite: bool) -> Any:
        """Write whole or not at all."""
        path = check_target(output_path(FOLDER, filename), overwrite=overwrite)

        def save(target: Path, replacing: bool) -> None:
            edit_direction.save(target, overwrite=replacing)

        saved = save_or_rescue(save, path, overwrite, is_output=False)
        return io.NodeOutput(saved.file, ui=shown(report_text(saved.line)))


class LoadEditDirection(io.ComfyNode):
    """Read an EDIT_DIRECTION from ``models/edit_directions``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_LoadEditDirection",
            display_name="Load Edit Direction",
            category=CATEGORY,
            description="Loads an edit direction: a file saved by Save Edit Direction, or a published pix2pix-zero .pt "
            "file (SD 1.x). Old files are read without running any code in them.",
            search_aliases=["cat to dog", "load edit", "open direction", "import direction", "pix2pix-zero .pt"],
            inputs=[
                file_input("direction_file", FOLDER),
                widget(
                    io.Combo,
                    "source_file",
                    options=[NONE, *list_files(FOLDER)],
                    default=NONE,
                    advanced=True,
                    tooltip="For published word embeddings (cat.pt, dog.pt): the file of the source word, "
                    "direction_file being the target's. none for ordinary directions.",
                ),
            ],
            outputs=[
                EditDirectionType.Output(
                    "edit_direction",
                    display_name="edit direction",
                    tooltip="The direction; wire it into Apply Edit Direction.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, direction_file: str, source_file: str) -> str:
        """Size and time of the files, so that a file saved anew is read anew."""
        return " ".join(file_fingerprint(FOLDER, name) for name in (direction_file, source_file) if name != NONE)

    @classmethod
    def execute(cls, direction_file: str, source_file: str) -> Any:
        """Read; EditingError for a damaged, hostile or foreign file."""
        source = None if source_file == NONE else resolve_file(FOLDER, source_file)
        direction = EditDirection.load(resolve_file(FOLDER, direction_file), source)
        report = report_text(direction.sentence(), f"{direction_file}: {direction.describe()}")
        return io.NodeOutput(direction, report, ui=shown(report))


NODES = [SaveEditDirection, LoadEditDirection]

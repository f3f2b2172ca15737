"""DeltaEdit Settings: what of an edit by a mapper is rarely changed, in a node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.deltaedit.edit import THRESHOLD
from ...core.deltaedit.text import NONE, TEMPLATES
from ..common.reports import file_fingerprint
from ..host.folders import DELTA_MAPPERS, list_files
from ..host.schema import io, schema, widget
from .sockets import CATEGORY

#: Socket that carries :class:`MapperOptions`.
DeltaEditSettingsType = io.Custom("SEMEDIT_DELTAEDIT_SETTINGS")
#: In place of a matrix's file: the one that the mapper brings.
OWN_MATRIX = "the mapper's own"
BY_SHARE, BY_THRESHOLD = "share", "threshold"


@dataclass(frozen=True)
class MapperOptions:
    """The node's widgets; see their tooltips."""

    disentangle_by: str = BY_SHARE
    threshold: float = THRESHOLD
    relevance_file: str = OWN_MATRIX
    subtract_idle: bool = True
    templates: str = NONE

    @property
    def least_relevance(self) -> float | None:
        """The threshold (tau), or None where a share of the channels is taken."""
        return self.threshold if self.disentangle_by == BY_THRESHOLD else None


DEFAULTS = MapperOptions()


class DeltaEditSettings(io.ComfyNode):
    """How DeltaEdit Mapper disentangles and reads texts, for its ``settings``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Widgets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        matrices = [
            OWN_MATRIX,
            *(name for name in list_files(DELTA_MAPPERS) if name.endswith((".npy", ".safetensors"))),
        ]
        return schema(
            node_id="SemEdit_DeltaEditSettings",
            display_name="DeltaEdit Settings",
            category=CATEGORY,
            description="What of DeltaEdit Mapper is rarely changed, above all to do as the paper and its released "
            "program do. Leave it out for the measured defaults.",
            search_aliases=[
                "deltaedit options",
                "disentangle threshold",
                "relevance matrix",
                "prompt templates",
                "fs3",
            ],
            inputs=[
                widget(
                    io.Combo,
                    "disentangle_by",
                    options=[BY_SHARE, BY_THRESHOLD],
                    default=DEFAULTS.disentangle_by,
                    tooltip="Which channels may move: the share of them set by the mapper's disentangle, or all whose "
                    "relevance reaches the threshold, as the paper has it.",
                ),
                widget(
                    io.Float,
                    "threshold",
                    default=DEFAULTS.threshold,
                    min=0.0,
                    max=2.0,
                    step=0.005,
                    tooltip="Least relevance (tau) of a channel that may move, with disentangle_by threshold. 0: all; "
                    "0.03 suits fs3.npy; for other matrices try more.",
                ),
                widget(
                    io.Combo,
                    "relevance_file",
                    options=matrices,
                    default=DEFAULTS.relevance_file,
                    tooltip="Relevance of the channels: what the mapper's file holds, or a file of "
                    "models/delta_mappers such as fs3.npy. A matrix wired into the mapper takes its place.",
                ),
                widget(
                    io.Boolean,
                    "subtract_idle",
                    default=DEFAULTS.subtract_idle,
                    tooltip="Take away what the mapper does when nothing is asked of it, a pull towards the average "
                    "face: other things stay better, the edit is a little weaker. Off: as the paper has it.",
                ),
                widget(
                    io.Combo,
                    "templates",
                    options=list(TEMPLATES),
                    default=DEFAULTS.templates,
                    tooltip="Sentences that the texts are put into before CLIP reads them. none: as typed; imagenet: "
                    "the mean over 79, as DeltaEdit's own program does.",
                ),
            ],
            outputs=[
                DeltaEditSettingsType.Output(
                    "mapper_settings",
                    display_name="settings",
                    tooltip="Wire it into settings of DeltaEdit Mapper.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, relevance_file: str = OWN_MATRIX, **others: Any) -> str:
        """Size and time of the matrix's file, so that the mapper reads one saved anew."""
        return "" if relevance_file == OWN_MATRIX else file_fingerprint(DELTA_MAPPERS, relevance_file)

    @classmethod
    def execute(cls, **options: Any) -> Any:
        """Pass the values on; the mapper checks them."""
        return io.NodeOutput(MapperOptions(**options))


NODES = [DeltaEditSettings]

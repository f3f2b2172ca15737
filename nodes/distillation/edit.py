"""Distilled Edit: an edit as one forward of a small network."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ...core.distillation.files import load_editor
from ...core.distillation.network import DistilledEditor
from ...core.errors import EditingError
from ..common.bundled import bundled, bundled_file, bundled_names
from ..common.image_inputs import channels_first
from ..common.managed import Managed
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..host.folders import DISTILLED_EDITS, list_files, resolve_file
from ..host.memory import memory_advice
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, DistilledEditType

#: In place of a file, where a distilled edit is wired.
NO_FILE = "none"
#: Pixels that are edited together, at most.
PIXELS = 2**21
#: The edit of the last run, so that the next picture does not read it anew; the host may evict it.
_KEPT: dict[tuple[str, str], Managed[DistilledEditor]] = {}


class DistilledEdit(io.ComfyNode):
    """pix2pix-zero's distilled edit (section 4.5)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        files = [*bundled_names(DISTILLED_EDITS), *list_files(DISTILLED_EDITS), NO_FILE]
        return schema(
            node_id="SemEdit_DistilledEdit",
            display_name="Distilled Edit",
            category=CATEGORY,
            description="Makes one learned edit in one pass of a small network, in milliseconds and without a "
            "diffusion model. What the edit does not touch stays the photo's own pixels. Train others with Distil "
            "Edit Trainer.",
            search_aliases=[
                "edit photo",
                "fast photo edit",
                "add glasses",
                "change hair colour",
                "change hair color",
                "fast edit",
                "pix2pix",
                "distilled gan",
                "real time edit",
                "image to image network",
            ],
            inputs=[
                widget(io.Image, "image", tooltip="The pictures to edit, of any size; one or a batch."),
                widget(
                    io.Combo,
                    "edit_file",
                    options=files,
                    default=files[0],
                    tooltip="A distilled edit of ComfyUI's models/distilled_edits folder. A wired one takes its place. "
                    "Press R after adding one.",
                ),
                widget(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="Factor of the change. 0: the picture as it is; 1: as learned; more exaggerates.",
                ),
                widget(
                    io.Boolean,
                    "fit_size",
                    default=True,
                    advanced=True,
                    tooltip="Look at pictures much larger or smaller than those it learned from at the learned size, "
                    "and bring the change to the picture's. Off: look at them as they are.",
                ),
                widget(
                    DistilledEditType,
                    "distilled_edit",
                    optional=True,
                    tooltip="From Distil Edit Trainer, in place of edit_file.",
                ),
            ],
            outputs=[
                io.Image.Output("edited", display_name="image", tooltip="The edited pictures, of the same size."),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, edit_file: str = NO_FILE, **others: Any) -> str:
        """Size and time of the file, so that one saved anew is read anew."""
        return "" if edit_file == NO_FILE else _fingerprint(edit_file)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        edit_file: str,
        strength: float,
        fit_size: bool,
        distilled_edit: Managed[DistilledEditor] | None = None,
    ) -> Any:
        """Edit; EditingError where there is no distilled edit, or the picture is none."""
        managed = editor_named(edit_file) if distilled_edit is None else distilled_edit
        pictures = channels_first(image)
        bar, made = StoppableBar(), []
        with memory_advice("edit smaller pictures"), torch.inference_mode(False), torch.no_grad():
            editor = managed.loaded()
            together = max(1, PIXELS // (pictures.shape[-2] * pictures.shape[-1]))
            began = time.perf_counter()
            for start in range(0, len(pictures), together):
                part = pictures[start : start + together].clone().to(managed.device)
                made.append(editor(part, strength, fit_size).cpu())
                bar.show(min(start + together, len(pictures)), len(pictures))
            spent = time.perf_counter() - began
        edited = torch.cat(made)
        untouched = float((edited == pictures).all(1).double().mean())
        first = f"Edited {len(pictures)} picture(s): {100 * (1 - untouched):.0f} % of the pixels changed."
        report = report_text(first, _described(editor), _cost(len(pictures), spent, untouched))
        result = edited.movedim(1, -1).contiguous()
        return io.NodeOutput(result, report, ui=shown(report, result, cls))


def editor_named(name: str) -> Managed[DistilledEditor]:
    """The distilled edit that ``edit_file`` names; kept until another is asked for, or its file changes.

    Raises:
        EditingError: none is chosen, or its file cannot be read.
    """
    if name == NO_FILE:
        raise EditingError("There is no distilled edit; choose an edit_file, or wire one from Distil Edit Trainer.")
    key = (name, _fingerprint(name))
    if key not in _KEPT:
        path = bundled_file(DISTILLED_EDITS, name) or resolve_file(DISTILLED_EDITS, name)
        _KEPT.clear()
        _KEPT[key] = Managed.make(lambda: load_editor(path))
    return _KEPT[key]


def _fingerprint(name: str) -> str:
    return name if bundled(DISTILLED_EDITS, name) else file_fingerprint(DISTILLED_EDITS, name)


def _described(editor: DistilledEditor) -> str:
    words = " to ".join(filter(None, [editor.source, editor.target]))
    learned = f"learned from pictures of {editor.side} pixels" if editor.side else ""
    return "; ".join(filter(None, [words, learned]))


def _cost(count: int, seconds: float, untouched: float) -> str:
    return (
        f"{count} image(s), one forward of the small network each: {1000 * seconds / count:.1f} ms an image\n"
        f"{100 * untouched:.0f} % of the pixels are the picture's own"
    )


NODES = [DistilledEdit]

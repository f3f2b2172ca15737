"""DeltaSpace Analysis: whether a CLIP's texts and pictures agree in their differences, on any captioned pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.deltaedit.analysis import FEWEST, analyse, check_count, sentences, table
from ...core.errors import EditingError
from ...core.images.captions import read_captions, without_report
from ...core.images.files import read_picture, skipped_report
from ...core.models.clip import ClipScorer, embed_pictures, embed_texts
from ..common.bundled import bundled, bundled_names
from ..common.inputs import seed_input
from ..common.reports import report_output, report_text, shown
from ..common.sockets import ClipScorerType
from ..host.folders import input_folder, list_picture_folders
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY

#: What the demo room enters here: a function that gives pictures and captions.
CAPTIONED = "captioned_pictures"
#: Shorter side to which pictures are read, in pixels; CLIPs see 224 to 448.
READ_SIDE = 448


class DeltaSpaceAnalysis(io.ComfyNode):
    """The paper's Fig. 1 as figures and a plot."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        options = [*bundled_names(CAPTIONED), *list_picture_folders()]
        return schema(
            node_id="SemEdit_DeltaSpaceAnalysis",
            display_name="DeltaSpace Analysis",
            category=CATEGORY,
            description="Tells whether edits by text can work with a CLIP on your kind of pictures: how well the "
            "difference of two captions points where the difference of their pictures points, as figures and a plot.",
            search_aliases=["deltaedit", "clip space", "modality gap", "clip retrieval", "caption alignment"],
            inputs=[
                widget(ClipScorerType, "clip_scorer", tooltip="The CLIP to examine, from Load CLIP Scorer."),
                widget(
                    io.Combo,
                    "picture_folder",
                    options=options,
                    default=options[0] if options else None,
                    tooltip="The demo's own pictures, or a folder inside ComfyUI's input folder: beside each picture a "
                    "text file of the same name (1.png and 1.txt), or one captions.json for all. Press R after adding "
                    "one.",
                ),
                widget(
                    io.Int,
                    "max_pictures",
                    default=200,
                    min=FEWEST,
                    max=10000,
                    tooltip="Of more pictures a random choice is taken. Some hundred make figures that mean something; "
                    "each costs one look of CLIP.",
                ),
                seed_input("Which pictures are taken, and with which other each is compared.", advanced=True),
            ],
            outputs=[
                io.Image.Output(
                    "plot",
                    display_name="plot",
                    tooltip="Left pictures and captions, right their differences, each in the plane of most variance "
                    "(PCA); for Preview Image.",
                ),
                report_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, picture_folder: str, **others: Any) -> str:
        """Names, sizes and times of the folder's files, so that what was put in anew is read anew."""
        if bundled(CAPTIONED, picture_folder):
            return picture_folder
        files = sorted(path for path in input_folder(picture_folder).iterdir() if path.is_file())
        return " ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)

    @classmethod
    def execute(cls, clip_scorer: ClipScorer, picture_folder: str, max_pictures: int, seed: int) -> Any:
        """Look, read, compare; EditingError for a folder that cannot be used."""
        demo = bundled(CAPTIONED, picture_folder)
        listed: Sequence[tuple[Any, str]]
        if demo:
            listed, without = list(zip(*demo(), strict=True)), []
        else:
            listed, without = read_captions(input_folder(picture_folder))
        check_count(len(listed))
        chosen = [listed[index] for index in choice(len(listed), max_pictures, seed)]
        captions: list[str] = []
        skipped: list[str] = []
        with torch.inference_mode(False), torch.no_grad():
            bar = StoppableBar()
            images = embed_pictures(
                clip_scorer, readable(chosen, captions, skipped), callback=lambda done: bar.show(done, len(chosen))
            )
            check_count(len(images))
            found = analyse(images, embed_texts(clip_scorer, captions), seed)
        notes = [f"{len(images)} pictures with captions from '{picture_folder}'"]
        if len(listed) > len(chosen):
            notes[0] += f", chosen from {len(listed)}"
        notes += filter(None, (without_report(without), skipped_report(skipped)))
        report = report_text(*sentences(found), f"\n{table(found)}\n", *notes)
        plot = found.plot[None]
        return io.NodeOutput(plot, report, ui=shown(report, plot, cls))


def choice(count: int, most: int, seed: int) -> list[int]:
    """``most`` of ``count`` numbers at random, or all, in order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))
    return sorted(order[:most].tolist())


def readable(chosen: Sequence[tuple[Any, str]], captions: list[str], skipped: list[str]) -> Iterator[Tensor]:
    """The pictures that can be read, ``[1, 3, H, W]``, one after the other.

    Args:
        chosen: pictures, or paths of pictures, and captions.
        captions, skipped: get the captions of those, and the names of the others.
    """
    for picture, caption in chosen:
        try:
            pixels = read_picture(picture, READ_SIDE, multiple=1)[0] if isinstance(picture, Path) else picture
        except EditingError:
            skipped.append(picture.name)
            continue
        captions.append(caption)
        yield pixels


NODES = [DeltaSpaceAnalysis]

"""DeltaEdit Mapper: faces edited by a difference of texts, or of two pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.deltaedit.edit import (
    SHARE,
    EditSettings,
    delta_edit,
    differences_of_pictures,
    differences_of_texts,
    features_of,
)
from ...core.deltaedit.edit_words import edit_sentences, readings
from ...core.deltaedit.mapper import DeltaMapper
from ...core.deltaedit.mapper_files import load_mapper, load_relevance
from ...core.deltaedit.relevance import Relevance
from ...core.deltaedit.style_code import StyleCode
from ...core.deltaedit.stylegan2 import StyleGAN2
from ...core.errors import EditingError
from ...core.images.difference import difference_map, difference_picture, full_heat
from ...core.models.clip import ClipScorer
from ..common.bundled import bundled, bundled_file, bundled_names
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..common.sockets import ClipScorerType
from ..host.folders import DELTA_MAPPERS, list_files, resolve_file
from ..host.memory import memory_advice
from ..host.progress import StoppableBar, stop_if_cancelled
from ..host.schema import io, schema, widget
from .mapper_settings import DEFAULTS, OWN_MATRIX, DeltaEditSettingsType, MapperOptions
from .sockets import CATEGORY, DeltaMapperType, Managed, RelevanceType, StyleCodeType, StyleGAN2Type

#: In place of a mapper's file, where a mapper is wired.
NO_FILE = "none"
#: Pixels that are drawn together, at most, and pictures.
PIXELS, PICTURES = 2**20, 16
#: The mapper of the last run, so that other words do not read 300 MB anew; the host may evict it.
_KEPT: dict[tuple[str, str], Managed[DeltaMapper]] = {}


class DeltaEditMapper(io.ComfyNode):
    """DeltaEdit (Lyu et al., section 4.1): Delta Mapper, disentanglement and generator in one node."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        files = [name for name in list_files(DELTA_MAPPERS) if not name.endswith(".npy")]
        mappers = [*bundled_names(DELTA_MAPPERS), *files, NO_FILE]
        return schema(
            node_id="SemEdit_DeltaEditMapper",
            display_name="DeltaEdit Mapper",
            category=CATEGORY,
            description="Edits faces in a StyleGAN2's style space by any pair of texts, or the way one picture differs "
            "from another, in milliseconds: one mapper, trained on pictures alone, does all edits.",
            search_aliases=[
                "edit face",
                "edit portrait",
                "smile",
                "age",
                "make older",
                "make younger",
                "add glasses",
                "remove glasses",
                "add beard",
                "change hair colour",
                "change hair color",
                "deltaedit",
                "text guided edit",
                "styleclip",
                "stylegan edit",
                "face edit",
                "delta mapper",
            ],
            inputs=[
                widget(
                    StyleGAN2Type, "stylegan2", tooltip="The generator that draws the faces, from StyleGAN2 Loader."
                ),
                widget(
                    StyleCodeType,
                    "style_code",
                    tooltip="The faces, from Invert to Style Code or StyleGAN2 Generate; one or a batch.",
                ),
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    tooltip="From Load CLIP Scorer: the CLIP that the mapper was trained with.",
                ),
                widget(
                    io.Combo,
                    "mapper_file",
                    options=mappers,
                    default=mappers[0],
                    tooltip="A mapper of ComfyUI's models/delta_mappers folder: this pack's, or DeltaEdit's own "
                    "net_face.pth. A wired mapper takes its place. Press R after adding one.",
                ),
                widget(
                    io.String,
                    "source_text",
                    default="face",
                    tooltip='What the picture is of, without what you want to change: "face". Only the difference to '
                    "the target counts.",
                ),
                widget(
                    io.String,
                    "target_text",
                    default="face with glasses",
                    multiline=True,
                    tooltip='The source text with what you want: "face with glasses". Each line is an edit of its own.',
                ),
                widget(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor of the change. 0: the picture as it is; 1: as learned; 1.5 if too little happens; "
                    "below 0: the opposite.",
                ),
                widget(
                    io.Float,
                    "disentangle",
                    default=SHARE,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the style channels that may move, those that matter most for this edit. 1: all, "
                    "stronger but other things change too; 0.5 if too little happens.",
                ),
                widget(
                    DeltaMapperType,
                    "mapper",
                    optional=True,
                    tooltip="From DeltaEdit Mapper Trainer, in place of mapper_file.",
                ),
                widget(
                    RelevanceType,
                    "relevance",
                    optional=True,
                    tooltip="From Relevance Matrix, in place of the mapper's own.",
                ),
                widget(
                    io.Image,
                    "image",
                    optional=True,
                    tooltip="The aligned photo that the code was made of: CLIP looks at it instead of the generator's "
                    "own picture. One for each face, or one for all.",
                ),
                widget(
                    io.Image,
                    "condition_from",
                    optional=True,
                    tooltip="With condition_to: edit the way that one differs from this. The texts are not used then.",
                ),
                widget(
                    io.Image,
                    "condition_to",
                    optional=True,
                    tooltip="See condition_from. A batch gives an edit for each pair.",
                ),
                widget(
                    DeltaEditSettingsType,
                    "settings",
                    optional=True,
                    tooltip="What is rarely changed, from DeltaEdit Settings. Unwired: as there by default.",
                ),
            ],
            outputs=[
                StyleCodeType.Output(
                    "edited_code", display_name="style code", tooltip="The edited faces: by target, then by face."
                ),
                io.Image.Output(
                    "edited", display_name="image", tooltip="The edited faces as the generator draws them."
                ),
                io.Image.Output(
                    "heat",
                    display_name="heat",
                    tooltip="Where each picture changed: heat over a pale copy, on one scale for the batch.",
                ),
                io.Image.Output(
                    "before",
                    display_name="before",
                    tooltip="The unedited faces as the generator draws them, one for each edited one; for Paste Face "
                    "Back and Edit Report.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, mapper_file: str = NO_FILE, **others: Any) -> str:
        """Size and time of the file, so that one saved anew is read anew."""
        return "" if mapper_file == NO_FILE else fingerprint_of(mapper_file)

    @classmethod
    def execute(
        cls,
        stylegan2: Managed[StyleGAN2],
        style_code: StyleCode,
        clip_scorer: ClipScorer,
        mapper_file: str,
        source_text: str,
        target_text: str,
        strength: float,
        disentangle: float,
        mapper: Managed[DeltaMapper] | None = None,
        relevance: Relevance | None = None,
        image: Tensor | None = None,
        condition_from: Tensor | None = None,
        condition_to: Tensor | None = None,
        settings: MapperOptions = DEFAULTS,
    ) -> Any:
        """Edit, draw, compare; EditingError for whatever does not belong together."""
        chosen = EditSettings(strength, disentangle, settings.least_relevance, settings.subtract_idle)
        stylegan2.network.check(style_code)
        if (condition_from is None) != (condition_to is None):
            raise EditingError("Wire both condition_from and condition_to, or none of them to edit by texts.")
        with torch.inference_mode(False), torch.no_grad(), memory_advice("edit fewer faces or targets at once"):
            managed = mapper_named(mapper_file) if mapper is None else mapper
            network = managed.network
            if relevance is None and settings.relevance_file != OWN_MATRIX:
                relevance = load_relevance(resolve_file(DELTA_MAPPERS, settings.relevance_file))
            bar = StoppableBar()

            def look(_: int) -> None:
                stop_if_cancelled()

            if condition_from is not None and condition_to is not None:
                pictures = (channels_first(part) for part in (condition_from, condition_to))
                wanted = differences_of_pictures(clip_scorer, *pictures, network.preprocessing)
            else:
                wanted = differences_of_texts(clip_scorer, source_text, target_text, settings.templates)
            # before the drawing, which takes long
            network.check(style_code, clip_scorer.identity, wanted.rows.shape[1])
            faces = len(style_code)
            total = faces * (1 + len(wanted.rows))
            before = drawn(stylegan2, style_code, lambda done: bar.show(done, total))
            seen = before if image is None else channels_first(image)
            features = features_of(clip_scorer, seen, network.preprocessing, look)
            edit = delta_edit(managed.loaded(), style_code, features, wanted, chosen, relevance, clip_scorer.identity)
            unedited = before.repeat(len(wanted.rows), 1, 1, 1)
            moved = edit.moved.any(1).nonzero()[:, 0]  # the others are the pictures before, to the bit
            after, drawn_before = unedited.clone(), total - len(moved)
            if len(moved):
                after[moved] = drawn(
                    stylegan2, edit.code.select(moved), lambda done: bar.show(drawn_before + done, total)
                )
            own = features if image is None else features_of(clip_scorer, before, network.preprocessing, look)
            edited_features = features_of(clip_scorer, after, network.preprocessing, look)
            difference = difference_map(after, unedited)
            full = full_heat(difference)
            heat = torch.cat(
                [
                    difference_picture(picture[None], change, full)
                    for picture, change in zip(unedited, difference, strict=True)
                ]
            )
            was, became = readings(edit, own, edited_features)
            nearer = int((became > was)[edit.moved.any(1)].sum())
            first = f"CLIP sees {nearer} of {len(after)} picture(s) nearer to what was asked for than before."
            if not len(moved):
                first = "Nothing was asked for that changes a face: these are the unedited pictures."
            report = report_text(
                first,
                *[
                    *notes(network, relevance or network.relevance, chosen, condition_from is not None),
                    edit_sentences(edit, own, edited_features, unedited, after),
                    f"full heat is a difference of {100 * full:.0f} %",
                ],
            )
        outputs = [picture.movedim(1, -1).contiguous() for picture in (after, heat, unedited)]
        return io.NodeOutput(edit.code, *outputs, report, ui=shown(report, outputs[0], cls))


def mapper_named(name: str) -> Managed[DeltaMapper]:
    """The mapper that ``mapper_file`` names; kept until another is asked for, or its file changes."""
    if name == NO_FILE:
        raise EditingError("There is no mapper; choose a mapper_file, or wire one from DeltaEdit Mapper Trainer.")
    key = (name, fingerprint_of(name))
    if key not in _KEPT:
        path = bundled_file(DELTA_MAPPERS, name) or resolve_file(DELTA_MAPPERS, name)
        _KEPT.clear()
        _KEPT[key] = Managed.make(lambda: load_mapper(path))
    return _KEPT[key]


def fingerprint_of(name: str) -> str:
    """Size and time of a file, so that a file saved anew is read anew."""
    return name if bundled(DELTA_MAPPERS, name) else file_fingerprint(DELTA_MAPPERS, name)


def channels_first(images: Tensor) -> Tensor:
    """IMAGE ``[B, H, W, C]`` as ``[B, 3, H, W]``, without transparency."""
    pictures = images[..., :3].movedim(-1, 1).float()
    return pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures


def drawn(generator: Managed[StyleGAN2], code: StyleCode, told: Callable[[int], None]) -> Tensor:
    """Pictures ``[B, 3, H, W]`` in 0..1 on the CPU, a few at a time.

    Args:
        told: how many are done, after each part; it raises where the person pressed Cancel.
    """
    size = generator.network.size
    together = min(PICTURES, max(1, PIXELS // size**2))
    pictures: list[Tensor] = []
    for start in range(0, len(code), together):
        network = generator.loaded()
        part = code.select(slice(start, start + together)).to(generator.device)
        pictures.append((network.synthesize(part) / 2 + 0.5).clamp(0, 1).float().cpu())
        told(min(start + together, len(code)))
    return torch.cat(pictures)


def notes(mapper: DeltaMapper, relevance: Relevance | None, settings: EditSettings, by_pictures: bool) -> list[str]:
    """What holds for all edits of the run."""
    lines = []
    if by_pictures:
        lines.append("by the difference of the condition pictures; the texts are not used")
    if settings.masks and relevance is None:
        lines.append(
            "no relevance matrix: all style channels may move; wire one, or choose its file in DeltaEdit Settings"
            " to disentangle"
        )
    elif settings.masks and relevance is not None:
        which = f"of at least {settings.threshold:g}" if settings.threshold is not None else "that is greatest"
        share = "" if settings.threshold is not None else f": {100 * settings.share:.0f} % of them"
        lines.append(f"style channels with a relevance {which} may move{share} ({relevance.kind})")
    if mapper.facts.get("weights"):
        lines.append(f"weights: {mapper.facts['weights']}")
    return lines


NODES = [DeltaEditMapper]

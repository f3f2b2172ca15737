"""Invert to Style Code and Paste Face Back: a face from a photo into the generator's code, and its edit back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.deltaedit.alignment import FaceCrop, crop_faces, paste_back
from ...core.deltaedit.encoder_files import Encoder, load_encoder
from ...core.deltaedit.invert import PRIOR, ROW_PRIOR, invert
from ...core.deltaedit.landmarks import ALIGNMENTS, find_faces, parse_landmarks
from ...core.deltaedit.style_code import StyleCode
from ...core.deltaedit.stylegan2 import StyleGAN2
from ...core.metrics.image import psnr
from ..common.bundled import bundled, bundled_file, bundled_names
from ..common.image_inputs import channels_first
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..host.folders import STYLE_ENCODERS, list_files, resolve_file
from ..host.gradients import gradient_scope
from ..host.managed_models import load_to_device
from ..host.memory import memory_advice
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, FaceCropType, Managed, StyleCodeType, StyleGAN2Type

#: The encoder of the last run, so that another photo does not read a gigabyte anew; the host may evict it.
_KEPT: dict[tuple[Any, ...], Managed[Any]] = {}


def encoder_named(name: str, generator: StyleGAN2) -> Managed[Encoder]:
    """The encoder in a file of ``models/style_encoders``, or the demo's, for a generator; kept until another is asked
    for.

    Raises:
        EditingError: see :func:`~...core.deltaedit.encoder_files.load_encoder`.
    """
    rows, width = generator.layout.rows, generator.style_dim
    key = (name, encoder_fingerprint(name), rows, width)
    if key not in _KEPT:
        path = bundled_file(STYLE_ENCODERS, name) or resolve_file(STYLE_ENCODERS, name)
        _KEPT.clear()
        _KEPT[key] = Managed.make(lambda: load_encoder(path, rows, width))
    return _KEPT[key]


def encoder_fingerprint(name: str) -> str:
    """Size and time of the file, so that a file saved anew is read anew."""
    return name if bundled(STYLE_ENCODERS, name) else file_fingerprint(STYLE_ENCODERS, name)


class InvertToStyleCode(io.ComfyNode):
    """e4e's inversion, with alignment and refinement."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        files = [*bundled_names(STYLE_ENCODERS), *list_files(STYLE_ENCODERS)]
        return schema(
            node_id="SemEdit_InvertToStyleCode",
            display_name="Invert to Style Code",
            category=CATEGORY,
            description="Finds the face in a photo, cuts it as the generator knows faces, and turns it into a style "
            "code that the generator rebuilds it from. Says how well.",
            search_aliases=[
                "find face",
                "face to code",
                "edit face",
                "portrait",
                "e4e",
                "psp",
                "gan inversion",
                "stylegan encoder",
                "deltaedit",
                "face alignment",
                "w+",
            ],
            inputs=[
                widget(
                    io.Image, "image", tooltip="One photo or a batch; each is inverted by itself. Any size and shape."
                ),
                widget(StyleGAN2Type, "stylegan2", tooltip="The generator, from StyleGAN2 Loader."),
                widget(
                    io.Combo,
                    "encoder_file",
                    options=files,
                    default=files[0] if files else None,
                    tooltip="The encoder trained for this generator: e4e_ffhq_encode.pt for FFHQ, or a safetensors "
                    "file, of ComfyUI's models/style_encoders folder, or the demo's. Press R after adding one.",
                ),
                widget(
                    io.Combo,
                    "alignment",
                    options=list(ALIGNMENTS),
                    default="auto",
                    tooltip="How the face is cut out. auto: as FFHQ by landmarks where dlib is installed, else the "
                    "middle square; the report says which. landmarks: by these or not at all. centre: the middle "
                    "square. none: the whole photo, for pictures that are cut already.",
                ),
                widget(
                    io.Int,
                    "refine_steps",
                    default=30,
                    min=0,
                    max=2000,
                    tooltip="Steps by which the code is brought nearer to the photo. 0: the encoder's code. 30 "
                    "rebuild 1 dB better on the demo; each takes a forward and a backward pass of the generator.",
                ),
                widget(
                    io.Int,
                    "passes",
                    default=3,
                    min=1,
                    max=20,
                    advanced=True,
                    tooltip="How often the encoder looks. From the second on it corrects its code by what it sees "
                    "otherwise in the rebuilt face; the best is kept. 1: it looks once.",
                ),
                widget(
                    io.Float,
                    "prior",
                    default=PRIOR,
                    min=0.0,
                    max=100.0,
                    step=0.001,
                    advanced=True,
                    tooltip="How strongly refinement is held near the encoder's code. Less rebuilds better, and the "
                    "code edits worse; 0: not at all.",
                ),
                widget(
                    io.String,
                    "landmarks",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Landmarks in pixels in place of dlib's, a line for each photo: x and y of the left eye, "
                    "the right eye, the nose, the mouth's left and right corner as seen in the photo; or of dlib's 68 "
                    "points.",
                ),
            ],
            outputs=[
                StyleCodeType.Output(
                    "style_code", display_name="style code", tooltip="The faces' codes; wire it into DeltaEdit Mapper."
                ),
                io.Image.Output(
                    "reconstruction",
                    display_name="reconstruction",
                    tooltip="What the generator makes of the codes; before of Paste Face Back.",
                ),
                io.Image.Output(
                    "aligned",
                    display_name="aligned",
                    tooltip="The faces as cut from the photos, of the generator's size.",
                ),
                FaceCropType.Output(
                    "face_crop",
                    display_name="face crop",
                    tooltip="Where the faces were taken from; for Paste Face Back.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, encoder_file: str, **inputs: Any) -> str:
        """Size and time of the file, so that a file saved anew is read anew."""
        return encoder_fingerprint(encoder_file)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        stylegan2: Managed[StyleGAN2],
        encoder_file: str,
        alignment: str,
        refine_steps: int,
        passes: int,
        prior: float,
        landmarks: str,
    ) -> Any:
        """Align, encode, refine; EditingError for photos, files or landmarks that cannot be used."""
        size = stylegan2.network.size
        bar = StoppableBar()
        with memory_advice("invert fewer photos at a time, or lower refine_steps to 0"), gradient_scope(True):
            photos = channels_first(image).clone()
            points = parse_landmarks(landmarks, len(photos)) if alignment in ("auto", "landmarks") else None
            crop = find_faces(photos, alignment, size, points)
            aligned = crop_faces(photos, crop, size)
            encoder = encoder_named(encoder_file, stylegan2.network)
            load_to_device(stylegan2.patcher, encoder.patcher)
            code = invert(
                stylegan2.network,
                encoder.network,
                aligned,
                passes=passes,
                steps=refine_steps,
                prior=prior,
                row_prior=prior * (ROW_PRIOR / PRIOR),
                report=bar.show,
            )
            rebuilt = decoded(stylegan2, code)
        lowest = float(psnr(rebuilt.clamp(0, 1), aligned.to(rebuilt)).min())
        report = report_text(
            f"The generator draws {len(aligned)} face(s), the worst at {lowest:.0f} dB of the photo; Paste Face Back "
            "keeps what it cannot draw.",
            inversion_report(crop, code, [unused(alignment, landmarks)]),
        )
        reconstruction, faces = rebuilt.movedim(1, -1), aligned.movedim(1, -1)
        shown_pictures = torch.cat([faces, reconstruction], 2)
        return io.NodeOutput(code, reconstruction, faces, crop, report, ui=shown(report, shown_pictures, cls))


@torch.no_grad()
def decoded(stylegan2: Managed[StyleGAN2], code: StyleCode) -> Tensor:
    """The faces ``[B, 3, size, size]`` in 0..1 of a code, on the CPU, one after the other."""
    rows = [
        stylegan2.network.synthesize(code.select(slice(row, row + 1)).to(stylegan2.device)).cpu()
        for row in range(len(code))
    ]
    return ((torch.cat(rows).float() + 1) / 2).clamp(0, 1)


def inversion_report(crop: FaceCrop, code: StyleCode, remarks: list[str]) -> str:
    """A line for each photo: how it was cut and how well it is rebuilt."""
    rows = list(zip(crop.facts, code.facts, strict=True))
    lines = [
        f"{f'photo {number}: ' if len(rows) > 1 else ''}{cut}; {rebuilt}"
        for number, (cut, rebuilt) in enumerate(rows, start=1)
    ]
    return "\n".join([*lines, *filter(None, remarks)])


def unused(alignment: str, landmarks: str) -> str:
    """What to say about landmarks that the alignment does not look at."""
    if landmarks.strip() and alignment not in ("auto", "landmarks"):
        return f"the landmarks were not used: alignment is {alignment}"
    return ""


class PasteFaceBack(io.ComfyNode):
    """What an edit changed, in the photo."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_PasteFaceBack",
            display_name="Paste Face Back",
            category=CATEGORY,
            description="Adds what an edit changed (the face after it minus the face before it) to the whole photo, "
            "where the face was taken from. What the generator cannot rebuild stays the photo's.",
            search_aliases=[
                "put face back",
                "edit face",
                "uncrop face",
                "paste back",
                "face restore",
                "deltaedit",
                "blend face",
            ],
            inputs=[
                widget(io.Image, "photo", tooltip="The photo that Invert to Style Code was given, or the batch."),
                widget(FaceCropType, "face_crop", tooltip="From Invert to Style Code: where the face was taken from."),
                widget(
                    io.Image,
                    "before",
                    tooltip="The face as the generator makes it without the edit: reconstruction of Invert to Style "
                    "Code.",
                ),
                widget(io.Image, "after", tooltip="The edited face. One photo may take a batch of edits."),
                widget(
                    io.Float,
                    "feather",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="Part of the face's square over which the change fades out towards its border. 0: a hard "
                    "edge.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The photo with the edit, of the photo's size."),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="How much of the change each pixel took: white inside the square.",
                ),
            ],
        )

    @classmethod
    def execute(cls, photo: Tensor, face_crop: FaceCrop, before: Tensor, after: Tensor, feather: float) -> Any:
        """Paste; EditingError for pictures that do not belong together."""
        photos, first, second = (channels_first(images) for images in (photo, before, after))
        pasted, share = paste_back(photos, face_crop, first, second, feather)
        return io.NodeOutput(pasted.movedim(1, -1), share[:, 0])


NODES = [InvertToStyleCode, PasteFaceBack]

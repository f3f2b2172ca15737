"""A labelled contact sheet: rows of pictures with a caption under each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as functional
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import EditingError

MARGIN = 8  # pixels around every cell
TEXT_SIZE, LINE_HEIGHT = 10, 13  # pixels, of letters and from line to line
TITLE_HEIGHT = 22
BACKGROUND, INK, FAINT = (250, 250, 248), (25, 25, 25), (95, 95, 95)

#: A picture ``[3, H, W]`` in 0..1 and the lines under it.
Cell = tuple[Tensor, str]


def to_picture(image: Tensor, scale: int = 1) -> Image.Image:
    """``image [3, H, W]`` in 0..1 (values outside are clipped) as a PIL picture, each pixel ``scale`` times enlarged.

    Raises:
        EditingError: another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise EditingError(f"The picture has shape {list(image.shape)}; use [3, height, width].")
    pixels = image.detach().float().cpu().clamp(0, 1)
    if scale != 1:
        pixels = functional.interpolate(pixels[None], scale_factor=scale, mode="nearest")[0]
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy().astype(np.uint8))


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Cell]]],
    scale: int = 1,
    width_of_text: int | None = None,
    text_size: int = TEXT_SIZE,
) -> Image.Image:
    """Lay out titled rows of captioned pictures; rows may differ in length and pictures in size.

    Args:
        rows: ``(title, cells)``; a caption's lines are separated by newlines and wrapped to the picture's width, a
            title is wrapped to the sheet's.
        scale: integer enlargement of the pictures.
        width_of_text: narrowest cell in pixels, so that small pictures keep readable captions.
        text_size: height of the letters in pixels.

    Raises:
        EditingError: no picture at all.
    """
    if not any(cells for _, cells in rows):
        raise EditingError("A contact sheet needs at least one picture.")
    font = ImageFont.load_default(text_size)
    line_height, first_line = (size * text_size // TEXT_SIZE for size in (LINE_HEIGHT, TITLE_HEIGHT))
    laid_out = []
    for title, cells in rows:
        pictures = [to_picture(image, scale) for image, _ in cells]
        widths = [max(picture.width, width_of_text or 0) for picture in pictures]
        texts = [_wrapped(caption, width, font) for (_, caption), width in zip(cells, widths, strict=True)]
        height = max((picture.height for picture in pictures), default=0) + line_height * max(
            map(len, texts), default=0
        )
        laid_out.append((title, pictures, widths, texts, height))
    sheet_width = max(sum(widths) + MARGIN * (len(widths) + 1) for _, _, widths, _, _ in laid_out)
    titles = [_wrapped(title, sheet_width - 2 * MARGIN, font) or [""] for title, *_ in laid_out]
    heads = [first_line + line_height * (len(lines) - 1) for lines in titles]
    sheet_height = sum(heads) + sum(height + 2 * MARGIN for *_, height in laid_out)
    sheet = Image.new("RGB", (sheet_width, sheet_height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for heading, head, (_, pictures, widths, texts, height) in zip(titles, heads, laid_out, strict=True):
        for number, line in enumerate(heading):
            draw.text((MARGIN, top + MARGIN // 2 + number * line_height), line, INK, font)
        left = MARGIN
        for picture, width, lines in zip(pictures, widths, texts, strict=True):
            sheet.paste(picture, (left, top + head))
            for number, line in enumerate(lines):
                draw.text((left, top + head + picture.height + number * line_height), line, FAINT, font)
            left += width + MARGIN
        top += head + height + 2 * MARGIN
    return sheet


def _wrapped(caption: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    lines: list[str] = []
    for paragraph in caption.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines

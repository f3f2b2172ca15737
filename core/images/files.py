"""Image files in and out: any picture a person has, at a size the model can take; written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor
from torch.nn import functional

from ..errors import EditingError
from ..file_names import shown_name
from ..reading.kinds import check_size
from ..writing import check_target, write_whole

MULTIPLE = 8  # image pixels per latent pixel
#: The picture formats that the pack reads and writes, by the endings of their files; what else lies in a folder
#: (captions and the like) is passed over. Pillow opens a file as one of these or not at all, whatever its name says:
#: others run programs (PostScript starts Ghostscript), or are rarely met and rarely mended.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
}
#: Of a picture that is read or resized. Asked of the file's first bytes, before anything is decoded.
MAX_PIXELS = 8192 * 8192
NAMED = 5  # how many unreadable pictures a report names
MARK = "semantic_editing"  # key of the text in a PNG file that says which part of the pack made it


def read_picture(path: str | Path, size: int | None = None, multiple: int = MULTIPLE) -> tuple[Tensor, str]:
    """Read a picture for a model: ``([1, 3, H, W] in 0..1, what was done to it)``.

    The camera's orientation tag is obeyed, transparency is laid on white, greyscale and palettes become RGB. The
    picture is resized so that its *shorter* side is ``size`` (aspect kept), then the sides are cropped centrally to
    multiples of ``multiple``, by less than that many pixels.

    Args:
        size: shorter side in pixels; None leaves the size as it is.

    Raises:
        EditingError: missing or unreadable file, a picture too small or too large, or a size that is no positive
            multiple.
    """
    pixels, note, _ = _read_resized(Path(path), size, multiple)
    height, width = (side - side % multiple for side in pixels.shape[-2:])
    if (height, width) != tuple(pixels.shape[-2:]):
        top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
        pixels = pixels[..., top : top + height, left : left + width].contiguous()
        note += f", cropped to {width} x {height}"
    return pixels, note


def _read_resized(source: Path, size: int | None, multiple: int) -> tuple[Tensor, str, Fit]:
    if size is not None and (size < multiple or size % multiple):
        raise EditingError(f"The size is {size}; use a positive multiple of {multiple}.")
    picture = decoded(source)
    own = picture.size
    note = f"{picture.width} x {picture.height}"
    if size is not None and min(picture.size) != size:
        factor = size / min(picture.size)
        resized = (round(picture.width * factor), round(picture.height * factor))
        _refuse_large(source, resized, "resized ")
        picture = picture.resize(resized, Image.Resampling.LANCZOS)
        note += f", resized to {picture.width} x {picture.height}"
    if min(picture.size) < multiple:
        raise EditingError(
            f"{source.name} is {picture.width} x {picture.height} pixels, too small to edit; use a larger picture."
        )
    fit = Fit(own, picture.size)
    pixels = torch.from_numpy(np.array(picture))
    del picture
    return pixels.permute(2, 0, 1)[None].float().div_(255), note, fit


@dataclass(frozen=True)
class Fit:
    """How a picture was made ready for a model, so that what is made of it can go back to the picture's own size.

    Attributes:
        size: (width, height) of the picture, upright.
        resized: the same after resizing; below and to the right it is padded to what the model takes.
    """

    size: tuple[int, int]
    resized: tuple[int, int]

    def undo(self, edited: Tensor) -> Tensor:
        """``edited [1, 3, H, W]`` in 0..1 at the picture's own size; bit-equal where nothing was resized."""
        width, height = self.resized
        whole = edited[..., :height, :width]
        if self.size == self.resized:
            return whole
        side = (self.size[1], self.size[0])
        return functional.interpolate(whole, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def read_whole_picture(path: str | Path, size: int | None = None, multiple: int = MULTIPLE) -> tuple[Tensor, str, Fit]:
    """:func:`read_picture` without cropping: ``([1, 3, H, W], what was done to it, how to undo it)``.

    What is missing to multiples of ``multiple`` is filled with the last row and column, so that all of the picture is
    edited.

    Raises:
        EditingError: see :func:`read_picture`.
    """
    pixels, note, fit = _read_resized(Path(path), size, multiple)
    below, right = (-pixels.shape[-2]) % multiple, (-pixels.shape[-1]) % multiple
    if below or right:
        pixels = functional.pad(pixels, (0, right, 0, below), mode="replicate")
        note += f", padded to {pixels.shape[-1]} x {pixels.shape[-2]}"
    return pixels, note, fit


def decoded(path: str | Path) -> Image.Image:
    """The picture of a file, upright, without transparency, in RGB.

    Raises:
        EditingError: missing, of a format that is none of :data:`FORMATS`, damaged, or too large (:data:`MAX_PIXELS`,
            :data:`~..reading.kinds.KINDS`).
    """
    source = Path(path)
    shown = shown_name(source.name)
    try:
        check_size(source, "picture")
        with Image.open(source, formats=sorted(set(FORMATS.values()))) as opened:
            _refuse_large(source, opened.size)
            ImageOps.exif_transpose(opened, in_place=True)
            picture: Image.Image = _eight_bit(opened)
            if picture.has_transparency_data:
                layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return picture.convert("RGB")
    except EditingError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, asked before ours
        raise EditingError(
            f"{shown} has far too many pixels; use a picture of at most {MAX_PIXELS // 10**6} million."
        ) from error
    except Exception as error:  # decoders raise whatever the bytes provoke, and one bad file must not end a folder
        raise EditingError(f"{shown} is damaged or not a picture; use a PNG, JPEG or WebP file.") from error


def _eight_bit(picture: Image.Image) -> Image.Image:
    """A picture of one channel with more than 8 bits as 8-bit greyscale; any other as it is.

    Pillow's own conversion cuts off what is above 255 instead of scaling it. Whole numbers are of 16 bits unless they
    are larger; floats are in 0..1, or of 8 or 16 bits where they are larger.

    Raises:
        EditingError: floats that are not numbers.
    """
    if not picture.mode.startswith("I") and picture.mode != "F":
        return picture
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise EditingError("The picture holds values that are not numbers; save it again as an 8-bit PNG.")
    highest = float(values.max(initial=0))
    scales = (1.0, 255.0, 65535.0, 2.0**31 - 1) if picture.mode == "F" else (65535.0, 2.0**31 - 1)
    scale = next((known for known in scales if highest <= known), highest)
    return Image.fromarray(np.clip(values / scale * 255 + 0.5, 0, 255).astype(np.uint8))


def _refuse_large(source: Path, size: tuple[int, int], how: str = "") -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise EditingError(
            f"{shown_name(source.name)} would be {how}{size[0]} x {size[1]} pixels; use a picture of at most "
            f"{MAX_PIXELS // 10**6} million."
        )


def check_writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """``path`` if :func:`save_picture` will be able to write it, asked before a long run.

    Raises:
        EditingError: its ending is no picture format's, or see :func:`~..writing.check_target`.
    """
    _format_of(Path(path))
    return check_target(path, overwrite=overwrite)


def save_picture(path: str | Path, picture: Image.Image, *, overwrite: bool = False, mark: str = "") -> Path:
    """Write a picture whole or not at all; the ending says the format.

    Args:
        mark: what :func:`picture_mark` will say of the file, which must be a PNG then.

    Raises:
        EditingError: its ending is no picture format's, or see :func:`~..writing.write_whole`.
    """
    kind, options = _format_of(Path(path)), {}
    if mark:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text(MARK, mark)
    return write_whole(path, lambda stream: picture.save(stream, format=kind, **options), overwrite=overwrite)


def picture_mark(path: str | Path) -> str:
    """What :func:`save_picture` marked a PNG file with; "" for any other file."""
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            return str(opened.info.get(MARK, ""))
    except Exception:  # see :func:`decoded`
        return ""


def _format_of(target: Path) -> str:
    if target.suffix.lower() not in FORMATS:
        raise EditingError(f"{target.name} has no ending of a picture format; use .png.")
    return FORMATS[target.suffix.lower()]


def skipped_report(skipped: Sequence[str]) -> str:
    """One line that counts and names unreadable files, "" for none."""
    if not skipped:
        return ""
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    named = ", ".join(shown_name(name) for name in skipped[:NAMED])
    return f"skipped {len(skipped)} unreadable: {named}{more}"


def picture_files(folder: str | Path) -> list[Path]:
    """The picture files of a folder by name, without those of its sub-folders and without hidden ones.

    Raises:
        EditingError: no such folder, or no picture in it.
    """
    source = Path(folder)
    shown = shown_name(source.name)
    if not source.is_dir():
        raise EditingError(f"The folder '{shown}' was not found; check its name.")
    try:
        found = sorted(
            p for p in source.iterdir() if p.is_file() and p.suffix.lower() in FORMATS and not p.name.startswith(".")
        )
    except OSError as error:
        raise EditingError(f"The folder '{shown}' cannot be read ({error.strerror}); check its permissions.") from error
    if not found:
        raise EditingError(f"The folder '{shown}' holds no pictures; put PNG, JPEG or WebP files into it.")
    return found


def picture_folders(home: str | Path, deepest: int = 3, most: int = 500) -> list[str]:
    """Folders below ``home`` that hold pictures, relative to it, levels separated by ``/``; none where it is missing.

    Args:
        deepest: how many levels are looked at.
        most: where the search ends.
    """
    found: list[str] = []
    for root, below, files in os.walk(home):
        level = Path(root).relative_to(home).parts
        below[:] = sorted(name for name in below if not name.startswith(".")) if len(level) < deepest else []
        if level and any(Path(file).suffix.lower() in FORMATS for file in files):
            found.append("/".join(level))
        if len(found) == most:
            break
    return found


def read_folder(
    folder: str | Path, read: Callable[[Path], Tensor], callback: Callable[[int, int], None] | None = None
) -> tuple[Tensor, list[str]]:
    """What ``read`` makes of all readable pictures of a folder, ``([N, ...], names of the unreadable)``.

    Args:
        read: a file -> ``[1, ...]``, all of one shape; its :class:`EditingError` skips the file.
        callback: told ``(files done, files in all)``; an exception it raises ends the reading.

    Raises:
        EditingError: no such folder, or not one readable picture in it.
    """
    files = picture_files(folder)
    pictures, skipped = [], []
    for number, path in enumerate(files):
        try:
            pictures.append(read(path))
        except EditingError:
            skipped.append(path.name)
        if callback is not None:
            callback(number + 1, len(files))
    if not pictures:
        raise EditingError(
            f"None of the {len(files)} pictures in the folder '{shown_name(Path(folder).name)}' can be read; use PNG, "
            "JPEG or WebP files."
        )
    return torch.cat(pictures), skipped


def square_pictures(
    folder: str | Path, size: int, callback: Callable[[int, int], None] | None = None
) -> tuple[Tensor, list[str]]:
    """:func:`read_folder` as squares ``[N, 3, size, size]`` in 0..1; aspect kept, the centre cut out.

    Args:
        size: side in pixels, a multiple of 8.

    Raises:
        EditingError: see :func:`read_folder`, or an unusable size.
    """
    check_square(size)
    return read_folder(folder, lambda path: square_picture(path, size), callback)


def square_picture(path: str | Path, size: int) -> Tensor:
    """A picture file as a square ``[1, 3, size, size]`` in 0..1; aspect kept, the centre cut out.

    Args:
        size: side in pixels, a multiple of 8.

    Raises:
        EditingError: see :func:`read_picture`, or an unusable size.
    """
    check_square(size)
    picture, _ = read_picture(path, size, multiple=1)
    top, left = ((side - size) // 2 for side in picture.shape[-2:])
    return picture[..., top : top + size, left : left + size]


def check_square(size: int) -> None:
    """Raise :class:`EditingError` for a side that no square of :func:`square_picture` can have."""
    if size < 8 or size % 8:
        raise EditingError(f"The size is {size}; use a positive multiple of 8.")

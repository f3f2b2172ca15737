"""Image files in and out: any picture a person has, at a size the model can take; written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import EditingError

MULTIPLE = 8  # image pixels per latent pixel
#: Endings of the files in a folder that count as pictures; captions and the like beside them are passed over.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
NAMED = 5  # how many unreadable pictures a report names


def read_picture(path: str | Path, size: int | None = None, multiple: int = MULTIPLE) -> tuple[Tensor, str]:
    """Read a picture for a model: ``([1, 3, H, W] in 0..1, what was done to it)``.

    The camera's orientation tag is obeyed, transparency is laid on white, greyscale and palettes become RGB. The
    picture is resized so that its *shorter* side is ``size`` (aspect kept), then the sides are cropped centrally to
    multiples of ``multiple``, by less than that many pixels.

    Args:
        size: shorter side in pixels; None leaves the size as it is.

    Raises:
        EditingError: missing or unreadable file, a picture too small, or a size that is no positive multiple.
    """
    source = Path(path)
    if size is not None and (size < multiple or size % multiple):
        raise EditingError(f"The size is {size}; use a positive multiple of {multiple}.")
    if not source.is_file():
        raise EditingError(f"{source.name} was not found; check the file name and folder.")
    try:
        with Image.open(source) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                layer = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            picture = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EditingError(f"{source.name} is damaged or not a picture; use a PNG, JPEG or WebP file.") from error
    note = f"{picture.width} x {picture.height}"
    if size is not None and min(picture.size) != size:
        factor = size / min(picture.size)
        picture = picture.resize(
            (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS
        )
        note += f", resized to {picture.width} x {picture.height}"
    width, height = (side - side % multiple for side in picture.size)
    if not width or not height:
        raise EditingError(
            f"{source.name} is {picture.width} x {picture.height} pixels, too small to edit; use a larger picture."
        )
    if (width, height) != picture.size:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        note += f", cropped to {width} x {height}"
    pixels = torch.from_numpy(np.asarray(picture).copy())
    return pixels.permute(2, 0, 1)[None].float() / 255, note


def check_writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """``path`` if :func:`save_picture` will be able to write it, asked before a long run.

    Raises:
        EditingError: the file exists, its ending is no picture format's, or the folder cannot be made.
    """
    target = Path(path)
    if target.suffix.lower() not in Image.registered_extensions():
        raise EditingError(f"{target.name} has no ending of a picture format; use .png.")
    if target.exists() and not overwrite:
        raise EditingError(f"{target.name} exists already; choose another name or allow overwriting.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EditingError(
            f"The folder {target.parent.name} cannot be made ({error.strerror}); choose another one."
        ) from error
    return target


def save_picture(path: str | Path, picture: Image.Image, *, overwrite: bool = False) -> Path:
    """Write a picture whole or not at all (temporary file in the same folder, rename); the ending says the format.

    Raises:
        EditingError: see :func:`check_writable`, or the disk refuses.
    """
    target = check_writable(path, overwrite=overwrite)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
        with os.fdopen(handle, "wb") as stream:
            picture.save(stream, format=Image.registered_extensions()[target.suffix.lower()])
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise EditingError(
            f"{target.name} could not be written ({error.strerror}); check the folder's permissions and free space."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return target


def skipped_report(skipped: Sequence[str]) -> str:
    """One line that counts and names unreadable files, "" for none."""
    if not skipped:
        return ""
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return f"skipped {len(skipped)} unreadable: {', '.join(skipped[:NAMED])}{more}"


def picture_files(folder: str | Path) -> list[Path]:
    """The picture files of a folder by name, without those of its sub-folders and without hidden ones.

    Raises:
        EditingError: no such folder, or no picture in it.
    """
    source = Path(folder)
    if not source.is_dir():
        raise EditingError(f"The folder {source.name!r} was not found; check its name.")
    found = sorted(
        p for p in source.iterdir() if p.is_file() and p.suffix.lower() in ENDINGS and not p.name.startswith(".")
    )
    if not found:
        raise EditingError(f"The folder {source.name!r} holds no pictures; put PNG, JPEG or WebP files into it.")
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
            f"None of the {len(files)} pictures in the folder {Path(folder).name!r} can be read; use PNG, JPEG or WebP "
            "files."
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
    if size < 8 or size % 8:
        raise EditingError(f"The size is {size}; use a positive multiple of 8.")

    def square(path: Path) -> Tensor:
        picture, _ = read_picture(path, size, multiple=1)
        top, left = ((side - size) // 2 for side in picture.shape[-2:])
        return picture[..., top : top + size, left : left + size]

    return read_folder(folder, square, callback)

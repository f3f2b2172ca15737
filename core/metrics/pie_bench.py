"""PIE-Bench: 700 pictures with two prompts and the place of the edit, and how an edit of them is judged.

Ju et al., "PnP Inversion", ICLR 2024 (arXiv 2310.01506). SPDInv and most later papers report its figures. Each is
computed here in one of two ways, which must not be mixed in a table.

``published`` is what the published evaluation computes and papers print:

1. The outermost ring of one pixel counts as edited, whatever the annotation says.
2. Of the unedited part, PSNR, MSE, SSIM and LPIPS are those of both pictures *multiplied* by it, over **all** pixels.
   The blacked-out edit agrees perfectly, so the larger the mask, the better the figures: a mask of half the picture
   adds 3 dB, and SSIM and LPIPS also see the mask's outline.
3. DINO gets pixels in 0..255, normalised with the constants that belong to 0..1 (values up to about 1100 in place of
   2.6), resized without a filter.
4. CLIP sees the edited part on black, ring and all; a similarity below 0 is set to 0.
5. Where nothing is outside the mask (many changes of style), the four figures of item 2 are left out of the means.

``corrected`` means the same words by their sense: averages over the pixels that are not to change, the mask as it was
annotated, pixels in 0..1, filtered resizing, and similarities as they are (of the edited part still on black). Where
nothing is inside the mask, the similarity of the edited part is left out as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_json
from ..images.files import read_picture
from ..models.clip import ClipScorer
from ..reading.forms import LONGEST_TEXT
from .checks import torchmetrics_part
from .clip import clip_score
from .image import mse, psnr, ssim
from .structure import self_similarity

SIDE = 512  # pixels of the benchmark's pictures and masks
VISION_SIDE = 224  # pixels that DINO gets
MOST_ENTRIES = 20_000  # PIE-Bench has 700
LONGEST_PATH = 250  # bytes; longer ones are no file's name anywhere
MAPPING, PICTURES = "mapping_file.json", "annotation_images"
#: What ``editing_type_id`` 0 to 9 asks for.
EDIT_TYPES = (
    "random", "change object", "add object", "delete object", "change content", "change pose", "change colour",
    "change material", "change background", "change style",
)  # fmt: skip
NOTHING_DONE, EDITED = "nothing done", "edited"

Variant = Literal["published", "corrected"]


class Figure(NamedTuple):
    """One column: how it is headed, the factor that papers print it with, and whether more is better."""

    heading: str
    factor: float
    more_is_better: bool


FIGURES = {
    "structure": Figure("structure distance x 1000", 1e3, False),
    "psnr": Figure("PSNR, dB", 1, True),
    "lpips": Figure("LPIPS x 1000", 1e3, False),
    "mse": Figure("MSE x 10000", 1e4, False),
    "ssim": Figure("SSIM x 100", 1e2, True),
    "clip_source": Figure("CLIP source", 1, True),
    "clip_whole": Figure("CLIP target, whole", 1, True),
    "clip_edited": Figure("CLIP target, edited part", 1, True),
}


@dataclass(frozen=True)
class PieCase:
    """One entry of the benchmark.

    Attributes:
        key: its name in the mapping file.
        path: of the picture below the folder of pictures, with forward slashes.
        picture: the source picture.
        source_prompt, target_prompt: what it shows and what it shall show, without the brackets.
        edit_type: 0 to 9, see :data:`EDIT_TYPES`.
        blended_word: the word of each prompt that the edit is about, as the file has it; "" where there is none.
        runs: the mask, see :func:`decode_mask`.
        side: pixels of picture and mask.
    """

    key: str
    path: str
    picture: Path
    source_prompt: str
    target_prompt: str
    edit_type: int
    blended_word: str
    runs: tuple[int, ...]
    side: int = SIDE

    @property
    def mask(self) -> Tensor:
        """Where the picture shall change, ``[1, 1, side, side]`` of 0 or 1, as it was annotated."""
        return decode_mask(self.runs, self.side)


@dataclass(frozen=True)
class Networks:
    """What the figures need beyond arithmetic; a figure whose network is None is left out and named.

    Attributes:
        keys: images ``[B, 3, 224, 224]`` -> keys of a vision model's last block ``[B, tokens, D]``, heads side by side.
            It normalises as for 0..1 and must not clip: ``published`` hands it 0..255.
        lpips: ``(images, reference, weights [B or 1, 1, H, W] or None)`` -> ``[B]``. The papers' network is SqueezeNet.
        clip: the papers' model is ViT-L/14.
    """

    keys: Callable[[Tensor], Tensor] | None = None
    lpips: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
    clip: ClipScorer | None = None

    def missing(self) -> dict[str, str]:
        """Figures that cannot be computed -> what they lack."""
        lacks = {}
        if self.keys is None:
            lacks["structure"] = "a vision model"
        if self.lpips is None:
            lacks["lpips"] = "LPIPS weights"
        if find_spec("torchmetrics") is None:
            lacks["ssim"] = "the package torchmetrics"
        if self.clip is None:
            lacks |= {name: "a CLIP model" for name in FIGURES if name.startswith("clip")}
        return lacks


class Row(NamedTuple):
    """Figures of one picture of one edit; those that have no meaning there are absent."""

    key: str
    edit_type: int
    edit: str
    figures: dict[str, float]


@dataclass(frozen=True)
class PieResult:
    """What :func:`evaluate` found.

    Attributes:
        variant: how the figures were computed.
        rows: for each pair, the source as its own edit ("nothing done") and the edit.
        skipped: one sentence for each entry without a usable edited picture.
        missing: see :meth:`Networks.missing`.
    """

    variant: Variant
    rows: list[Row]
    skipped: list[str]
    missing: dict[str, str]


def decode_mask(runs: Sequence[int], side: int = SIDE) -> Tensor:
    """The mask ``[1, 1, side, side]`` of 0 or 1 that ``runs`` encode.

    Args:
        runs: start, length, start, length, ... of the ones in the picture read row by row. A run that leaves the
            picture ends with it, as in the published reader.

    Raises:
        EditingError: no such list, or a run that starts outside the picture.
    """
    check_mask_runs(runs, side)
    pixels = side * side
    # Runs may lie over each other: count at every pixel how many have begun and not ended.
    steps = torch.zeros(pixels + 1, dtype=torch.long)
    starts = torch.tensor(runs[::2], dtype=torch.long)
    ends = torch.tensor([min(start + length, pixels) for start, length in zip(runs[::2], runs[1::2], strict=True)])
    steps.index_add_(0, starts, torch.ones_like(starts))
    steps.index_add_(0, ends.long(), -torch.ones_like(starts))
    return (steps.cumsum(0)[:pixels] > 0).float().reshape(1, 1, side, side)


def check_mask_runs(runs: Any, side: int = SIDE) -> None:
    """Raise :class:`EditingError` unless ``runs`` is what :func:`decode_mask` takes."""
    if not isinstance(runs, (list, tuple)) or any(type(number) is not int for number in runs) or len(runs) % 2:
        raise EditingError("The mask is no list of whole numbers start, length, start, length, ...; download it again.")
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if not 0 <= start < side * side or length < 0:
            raise EditingError(
                f"The mask has a run of {length} pixels from pixel {start}, outside a picture of {side} x {side}; "
                "download it again."
            )


def with_ring(mask: Tensor) -> Tensor:
    """``mask [B, 1, H, W]`` with the outermost pixels set to 1, as ``published`` has it."""
    ring = functional.pad(torch.zeros_like(mask[..., 1:-1, 1:-1]), (1, 1, 1, 1), value=1)
    return torch.maximum(mask, ring)


def read_pie_bench(folder: str | Path, side: int = SIDE) -> list[PieCase]:
    """The entries of a benchmark folder: ``mapping_file.json``, and pictures under ``annotation_images/``.

    Raises:
        EditingError: a file is missing or damaged, or an entry is not as the format has it; the sentence names it.
    """
    source = Path(folder)
    if not (source / MAPPING).is_file():
        raise EditingError(f"The folder {source.name!r} has no readable {MAPPING}; choose the folder of PIE-Bench.")
    mapping = load_json(source / MAPPING, "PIE-Bench", remedy="download it again")
    if not 0 < len(mapping) <= MOST_ENTRIES:
        raise EditingError(f"{MAPPING} holds {len(mapping)} entries, PIE-Bench has 700; download it again.")
    return [_case(source / PICTURES, key, entry, side) for key, entry in mapping.items()]


def _case(pictures: Path, key: str, entry: Any, side: int) -> PieCase:
    """One entry, checked."""

    def text(name: str, default: str | None = None) -> str:
        value = entry.get(name, default)
        if not isinstance(value, str) or len(value) > LONGEST_TEXT:
            raise EditingError(f"Entry {key} of {MAPPING} has no text {name}; download the file again.")
        return value

    if not isinstance(entry, dict):
        raise EditingError(f"Entry {key} of {MAPPING} is no object; download the file again.")
    path = text("image_path")
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or "\\" in path or path.startswith("/") or PureWindowsPath(path).drive:
        raise EditingError(
            f"Entry {key} of {MAPPING} names the picture {path!r}, which is not below {PICTURES}; use a relative path."
        )
    original, target = (
        text(name).replace("[", "").replace("]", "").strip() for name in ("original_prompt", "editing_prompt")
    )
    if not original or not target:
        raise EditingError(f"Entry {key} of {MAPPING} has an empty prompt; download the file again.")
    edit_type = text("editing_type_id")
    if edit_type not in map(str, range(len(EDIT_TYPES))):
        raise EditingError(f'Entry {key} of {MAPPING} has the editing_type_id {edit_type!r}; it must be "0" to "9".')
    runs: Any = entry.get("mask")
    try:
        check_mask_runs(runs, side)
    except EditingError as error:
        raise EditingError(f"Entry {key} of {MAPPING} cannot be used: {error}") from error
    if len(path.encode()) > LONGEST_PATH or not (pictures / path).is_file():
        raise EditingError(f"The picture {path} of entry {key} is not in {PICTURES}; download the pictures again.")
    return PieCase(
        key=key,
        path=path,
        picture=pictures / path,
        source_prompt=original,
        target_prompt=target,
        edit_type=int(edit_type),
        blended_word=text("blended_word", ""),
        runs=tuple(runs),
        side=side,
    )


def measure(
    source: Tensor,
    edits: Tensor,
    mask: Tensor,
    source_prompt: str,
    target_prompt: str,
    networks: Networks,
    variant: Variant,
) -> dict[str, Tensor]:
    """The figures of edits of one picture, each ``[B]`` in float64; those without meaning or network are absent.

    Args:
        source: ``[1, 3, H, W]`` in 0..1.
        edits: ``[B, 3, H, W]`` in 0..1.
        mask: ``[1, 1, H, W]``, 1 where the picture shall change, as annotated: the ring of ``published`` is added here.

    Raises:
        EditingError: shapes that do not fit together, or values that are not numbers.
    """
    size = tuple(source.shape[-2:])
    if tuple(source.shape[:2]) != (1, 3) or edits.ndim != 4 or tuple(edits.shape[1:]) != (3, *size):
        raise EditingError(
            f"The source has shape {list(source.shape)} and its edits {list(edits.shape)}; compare [1, 3, height, "
            "width] with edits of the same size."
        )
    if tuple(mask.shape) != (1, 1, *size):
        raise EditingError(f"The mask has shape {list(mask.shape)}; a picture of this size needs {[1, 1, *size]}.")
    for tensor, what in ((source, "The source"), (edits, "The edit"), (mask, "The mask")):
        check_finite(tensor, what)
    published = variant == "published"
    mask = with_ring(mask) if published else mask
    unedited = 1 - mask
    missing = networks.missing()
    figures: dict[str, Tensor] = {}
    if networks.keys is not None:
        figures["structure"] = _structure_distance(networks.keys, source, edits, published)
    if unedited.any():
        pair = (edits * unedited, source * unedited) if published else (edits, source)
        images, reference = pair[0], pair[1].expand_as(edits)
        weights = None if published else unedited
        figures["psnr"] = psnr(images, reference, weights)
        if networks.lpips is not None:
            figures["lpips"] = networks.lpips(images, reference, weights)
        figures["mse"] = mse(images, reference, weights)
        if "ssim" not in missing:
            figures["ssim"] = _published_ssim(images, reference) if published else ssim(images, reference, weights)
    if networks.clip is not None:
        lowest = 0 if published else -math.inf
        figures["clip_source"] = clip_score(networks.clip, source, source_prompt).clamp_min(lowest).expand(len(edits))
        figures["clip_whole"] = clip_score(networks.clip, edits, target_prompt).clamp_min(lowest)
        if mask.any():
            inside = (edits * mask, None) if published else (edits, mask)
            figures["clip_edited"] = clip_score(networks.clip, inside[0], target_prompt, inside[1]).clamp_min(lowest)
    figures = {name: values.detach().double().cpu() for name, values in figures.items()}
    for name, values in figures.items():
        if values.isnan().any():
            raise EditingError(f"{FIGURES[name].heading} is not a number; check the weights of its network.")
    return figures


def _published_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """torchmetrics' own mean, which leaves out the positions where the window does not fit, ``[B]``."""
    package = torchmetrics_part("functional.image", "SSIM")
    return package.structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")


def _structure_distance(keys: Callable[[Tensor], Tensor], source: Tensor, edits: Tensor, published: bool) -> Tensor:
    """As :func:`~.structure.structure_distance`, of pictures resized to what DINO gets, ``[B]``."""
    images = torch.cat([source, edits]).float()
    side = (VISION_SIDE, VISION_SIDE)
    images = functional.interpolate(images, side, mode="bilinear", antialias=not published)
    likeness = self_similarity(keys(255 * images if published else images).cpu())
    return (likeness[1:] - likeness[:1]).square().mean((1, 2))


def evaluate(
    cases: Sequence[PieCase],
    folder: str | Path,
    networks: Networks,
    variant: Variant,
    callback: Callable[[int, int], None] | None = None,
) -> PieResult:
    """Judge the edited pictures in ``folder``, and as a yardstick the sources themselves, as if nothing had been done.

    An edited picture has the path of its source, or that with the ending .png (no second loss by JPEG). Of a strip of
    pictures side by side the last one counts: the published editors write the steps before it on its left.

    Args:
        callback: told ``(entries done, entries in all)``; an exception it raises ends the run.

    Raises:
        EditingError: not one usable pair, or a damaged source.
    """
    rows, skipped = [], []
    for number, case in enumerate(cases):
        source = read_picture(case.picture, multiple=1)[0]
        if tuple(source.shape[-2:]) != (case.side, case.side):
            raise EditingError(
                f"The picture {case.path} is {source.shape[-1]} x {source.shape[-2]} pixels and its mask {case.side} x "
                f"{case.side}; download the pictures again."
            )
        try:
            edited = _read_edited(case, Path(folder))
        except EditingError as error:
            skipped.append(f"{case.key}: {error}")
        else:
            edits = torch.cat([source, edited])
            prompts = (case.source_prompt, case.target_prompt)
            figures = measure(source, edits, case.mask, *prompts, networks, variant)
            for index, edit in enumerate((NOTHING_DONE, EDITED)):
                values = {name: float(column[index]) for name, column in figures.items()}
                rows.append(Row(case.key, case.edit_type, edit, values))
        if callback is not None:
            callback(number + 1, len(cases))
    if not rows:
        raise EditingError(
            f"The folder {Path(folder).name!r} holds no usable edit of the {len(cases)} pictures; an edited picture "
            "needs the path and size of its source."
        )
    return PieResult(variant, rows, skipped, networks.missing())


def _read_edited(case: PieCase, folder: Path) -> Tensor:
    """The edited picture ``[1, 3, side, side]`` in 0..1."""
    path = folder / case.path
    picture = read_picture(path if path.is_file() else path.with_suffix(".png"), multiple=1)[0]
    height, width = picture.shape[-2:]
    if height != case.side or width % case.side:
        raise EditingError(f"{path.name} is {width} x {height} pixels; it must be {case.side} x {case.side}.")
    return picture[..., -case.side :]


def table(result: PieResult) -> str:
    """Markdown: a row for each edit over all pictures, then for each type of edit; each cell is ``mean (worst)``.

    n counts the pairs; a figure that some of them do not have says its own.
    """
    columns = {name: figure for name, figure in FIGURES.items() if name not in result.missing}
    heads = [f"{figure.heading} {'↑' if figure.more_is_better else '↓'}" for figure in columns.values()]
    lines = [f"| {result.variant}: type of edit | edit | n | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for name, rows in _groups(result.rows):
        for edit in (NOTHING_DONE, EDITED):
            own = [row.figures for row in rows if row.edit == edit]
            cells = [_cell(own, column, figure) for column, figure in columns.items()]
            lines.append(f"| {name} | {edit} | {len(own)} | {' | '.join(cells)} |")
    for lack in sorted(set(result.missing.values())):
        names = ", ".join(FIGURES[name].heading for name, what in result.missing.items() if what == lack)
        lines.append(f"\nNot measured without {lack}: {names}.")
    if result.skipped:
        lines.append(f"\nWithout a usable edited picture: {len(result.skipped)}.")
    return "\n".join(lines)


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """All rows, then those of each type that there is."""
    yield "all", list(rows)
    for number, name in enumerate(EDIT_TYPES):
        own = [row for row in rows if row.edit_type == number]
        if own:
            yield f"{number} {name}", own


def _cell(rows: Sequence[Mapping[str, float]], name: str, figure: Figure) -> str:
    values = [row[name] * figure.factor for row in rows if name in row]
    if not values:
        return "-"
    worst = min(values) if figure.more_is_better else max(values)
    fewer = "" if len(values) == len(rows) else f", n {len(values)}"
    return f"{sum(values) / len(values):.2f} ({worst:.2f}{fewer})"

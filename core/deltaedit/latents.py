"""What a Delta Mapper learns from: many faces, each as CLIP features of its picture and as its style code.

The faces are a folder's pictures, seen through an encoder, and seeded samples of the generator (section 5.1 has both).
A file of them grows while it is made: stopped, it is a smaller file of the same kind, and goes on where it stood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EditingError
from ..file_names import shown_name
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensor_parts
from ..images.files import read_picture
from ..images.sizes import resized
from ..models.clip import ClipScorer
from ..writing import Pace
from .encoder import StyleEncoder
from .style_code import StyleCode, StyleLayout
from .stylegan2 import StyleGAN2

FILE_FORMAT = "semantic_editing.delta_latents"
#: Largest side of a picture that CLIP is shown; more than any CLIP takes.
LARGEST_PICTURE = 512
#: Faces between two saves, or more where these are too large to be written so often.
SAVE_EVERY = 256
#: Rows that are looked at together where all are gone through.
CHUNK = 4096
#: A deviation counts as at least so much of the mean one: channels that never move are not blown up.
LEAST_DEVIATION = 1e-4
SEEDS = 2**64
#: Style channels or CLIP features, and one times the other. A StyleGAN2 of 1024 pixels has 6,048 channels, CLIPs have
#: about a thousand features.
LARGEST_WIDTH, LARGEST_MATRIX = 2**16, 2**27


@dataclass(frozen=True)
class Origin:
    """What made some latents, which must be the same where more are added.

    Attributes:
        generator, clip: identities.
        encoder: identity of the pictures' encoder, "" for generated samples only.
        truncation: of the samples.
    """

    generator: str
    clip: str
    encoder: str = ""
    truncation: float = 0.7


@dataclass(frozen=True, eq=False)
class Latents:
    """N faces.

    Attributes:
        image_features: of their pictures, unit ``[N, P]`` fp16, a map of the file where they were loaded.
        offsets: styles of the convolutions less ``centre``, ``[N, S]`` fp16, such a map too.
        centre: ``[S]`` fp32, near their mean. From here fp16 errs by .0003 of a channel's deviation, wherever its mean
            lies; storing the demo's styles as they are would cost up to .003.
        rgbs: mean styles of the colour layers ``[R]`` fp32, with which a face is drawn again.
        layout: of the generator.
        names: what each row is: a picture's name, or "seed 7".
        origin: see there.
        skipped: pictures that could not be read.
        w_plus: W+ ``[N, rows, style_dim]`` fp16, where it was asked for.
    """

    image_features: Tensor
    offsets: Tensor
    centre: Tensor
    rgbs: Tensor
    layout: StyleLayout
    names: tuple[str, ...]
    origin: Origin
    skipped: tuple[str, ...] = ()
    w_plus: Tensor | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def convs(self) -> Tensor:
        """Styles of the convolutions of all faces, fp32 ``[N, S]``; in memory, so for small sets."""
        return self.styles(slice(None))

    def styles(self, rows: slice | Tensor) -> Tensor:
        """Styles of the convolutions of some faces, fp32 ``[n, S]``."""
        return self.centre + self.offsets[rows].float()

    def code(self, rows: slice | Tensor) -> StyleCode:
        """Some faces to draw again, with the mean of the colour layers' styles."""
        convs = self.styles(rows)
        return StyleCode(self.layout, convs, self.rgbs.expand(len(convs), -1).clone(), self.origin.generator)

    def moments(self, rows: Tensor | None = None, look: Callable[[], None] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, ``[S]`` fp32.

        Args:
            rows: of which faces; None: of all.
            look: called between chunks; an exception ends it.

        Raises:
            EditingError: fewer than two faces, or values that are not numbers.
        """
        count = len(self) if rows is None else len(rows)
        if count < 2:
            raise EditingError("There are fewer than two faces; make more with DeltaEdit Latents.")
        total, squares = (torch.zeros(len(self.centre), dtype=torch.float64) for _ in range(2))
        for start in range(0, count, CHUNK):
            part = slice(start, start + CHUNK)
            offsets = self.offsets[part if rows is None else rows[part]].double()
            total += offsets.sum(0)
            squares += offsets.square().sum(0)
            if look is not None:
                look()
        mean = total / count
        deviation = ((squares - count * mean.square()) / (count - 1)).clamp_min(0).sqrt()
        if not deviation.isfinite().all():
            raise EditingError("The latents hold values that are not numbers; make them anew with DeltaEdit Latents.")
        return (self.centre + mean.float()), deviation.clamp_min(LEAST_DEVIATION * float(deviation.mean())).float()

    def check(self, generator: str, clip: str) -> None:
        """Raise :class:`EditingError` where a generator or a CLIP, by identity, is not the one that made them."""
        for what, own, other in (("generator", self.origin.generator, generator), ("CLIP", self.origin.clip, clip)):
            if own != other:
                raise EditingError(f"The latents were made with another {what}; wire the one that made them.")

    def report(self) -> str:
        """How many there are, of what."""
        samples = sum(seed_of(name) is not None for name in self.names)
        lines = [f"{len(self)} faces: {len(self) - samples} pictures, {samples} generated samples"]
        lines.append(f"{self.offsets.shape[1]} style channels, {self.image_features.shape[1]} CLIP features")
        return "\n".join(lines)


SEED = "seed "


def seed_of(name: str) -> int | None:
    """The seed of a generated sample, None where it is the name of a picture."""
    number = name.removeprefix(SEED)
    if number == name or not re.fullmatch("[0-9]{1,20}", number) or int(number) >= SEEDS:
        return None
    return int(number)


def load_latents(path: str | Path) -> Latents:
    """Read what :class:`LatentsBuilder` saved; the large tables stay on the disk until they are used.

    Raises:
        EditingError: missing, damaged or foreign.
    """
    tensors, metadata = load_tensors(path, FILE_FORMAT, kind="delta latents")
    name = shown_name(Path(path).name)
    layers, names, skipped, truncation = (
        metadata_json(metadata, key, name, "delta latents") for key in ("layout", "names", "skipped", "truncation")
    )
    layout = StyleLayout(*(tuple((side, count) for side, count in layers[kind]) for kind in ("convs", "rgbs")))
    shapes = {
        "offsets": (len(names), layout.width),
        "centre": (layout.width,),
        "rgb_sum": (sum(layout.rgb_widths),),
    }
    features, w_plus = tensors.get("image_features"), tensors.get("w_plus")
    fits = all(key in tensors and tensors[key].shape == shape for key, shape in shapes.items())
    fits = (
        fits and features is not None and features.ndim == 2 and len(features) == len(names) and features.shape[1] > 0
    )
    fits = fits and (w_plus is None or (w_plus.ndim == 3 and w_plus.shape[:2] == (len(names), layout.rows)))
    fits = fits and all(tensor.is_floating_point() for tensor in tensors.values())
    if not fits or features is None or not all(tensors[key].isfinite().all() for key in ("centre", "rgb_sum")):
        raise EditingError(f"{name} has parts that do not fit together; make it anew with DeltaEdit Latents.")
    seen = features.shape[1]
    if max(layout.width, seen) > LARGEST_WIDTH or layout.width * seen > LARGEST_MATRIX:
        # Two such rows are a small file, and whoever learns from them would take memory without measure.
        raise EditingError(
            f"{name} has {layout.width} style channels and {seen} CLIP features, more than any generator and CLIP "
            "have; choose another file."
        )
    generator, clip, encoder = (metadata.get(key, "") for key in ("generator", "clip", "encoder"))
    origin = Origin(generator, clip, encoder, float(truncation))
    return Latents(
        features,
        tensors["offsets"],
        tensors["centre"].float(),
        (tensors["rgb_sum"] / max(len(names), 1)).float(),
        layout,
        tuple(names),
        origin,
        tuple(skipped),
        w_plus,
    )


@dataclass(eq=False)
class _Rows:
    """Faces as they are gathered: parts that follow each other."""

    names: list[str] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    offsets: list[Tensor] = field(default_factory=list)
    w_plus: list[Tensor] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    centre: Tensor | None = None
    rgb_sum: Tensor | None = None


class LatentsBuilder:
    """Gathers latents and keeps them in a file while it does.

    Args:
        generator, encoder: give the networks where they compute; asked before each batch, for a host may have moved
            them. ``encoder`` is needed for pictures only.
        clip: looks at the pictures.
        path: where to keep them.
        origin: what the above are; a file at ``path`` goes on only where it says the same.
        batch: faces that go through the networks together. The file depends on it by rounding only.
        keep_w_plus: W+ too, which no mapper of S needs.
    """

    def __init__(
        self,
        generator: Callable[[], StyleGAN2],
        clip: ClipScorer,
        path: str | Path,
        origin: Origin,
        encoder: Callable[[], StyleEncoder] | None = None,
        batch: int = 16,
        keep_w_plus: bool = False,
    ):
        self.generator, self.clip, self.encoder = generator, clip, encoder
        self.path, self.origin, self.batch, self.keep_w_plus = Path(path), origin, batch, keep_w_plus
        self.layout = generator().layout
        self.rows = _Rows()
        self.replaces = False
        #: Why the last save on the way failed, "" where it did not.
        self.trouble = ""
        #: Faces that the file lacks.
        self.unsaved = 0

    def __len__(self) -> int:
        return len(self.rows.names)

    def resume(self) -> None:
        """Take over what the file at ``path`` holds.

        Raises:
            EditingError: it was made otherwise than this builder would.
        """
        held = load_latents(self.path)
        name = shown_name(self.path.name)
        different = [
            what
            for what, same in {
                "generator": held.layout == self.layout and held.origin.generator == self.origin.generator,
                "CLIP": held.origin.clip == self.origin.clip,
                "style encoder": "" in (held.origin.encoder, self.origin.encoder)
                or held.origin.encoder == self.origin.encoder,
                "truncation": held.origin.truncation == self.origin.truncation,
                "choice of keeping W+": (held.w_plus is not None) == self.keep_w_plus,
            }.items()
            if not same
        ]
        if different:
            raise EditingError(
                f"{name} was made with another {different[0]}; choose another name, or allow overwriting to start anew."
            )
        if held.origin.encoder:
            self.origin = held.origin
        copies = [held.image_features, held.offsets, *([] if held.w_plus is None else [held.w_plus])]
        features, offsets, *w_plus = (part.half().clone() for part in copies)  # no map of a file that is to be replaced
        sums = load_tensors(self.path, FILE_FORMAT, kind="delta latents")[0]["rgb_sum"].double().clone()
        self.rows = _Rows(
            list(held.names), [features], [offsets], w_plus, list(held.skipped), held.centre.clone(), sums
        )
        self.replaces = True

    def run(
        self,
        pictures: Sequence[Path] = (),
        samples: int = 0,
        seed: int = 0,
        callback: Callable[[int, int], None] | None = None,
    ) -> None:
        """Add these pictures and samples of consecutive seeds, but for those that are there.

        Saves on the way, and whatever ends it; where a file cannot be written :attr:`trouble` says why.

        Args:
            pictures: files of one folder, whose names tell them apart.
            callback: told ``(faces there, faces wanted)`` after each batch; an exception it raises ends the run.

        Raises:
            EditingError: pictures without an encoder; or the file holds others than these.
        """
        if pictures and self.encoder is None:
            raise EditingError("A folder of pictures needs a style encoder; choose one, or empty the folder.")
        wanted = {_storable(path.name): path for path in pictures}
        seeds = {f"{SEED}{(seed + number) % SEEDS}": (seed + number) % SEEDS for number in range(samples)}
        known = {*self.rows.names, *self.rows.skipped}
        others = [name for name in self.rows.names if name not in wanted and name not in seeds]
        if others:
            raise EditingError(
                f"{shown_name(self.path.name)} holds {len(others)} faces that are not asked for (such as "
                f"{shown_name(others[0])}); choose another name, or allow overwriting to start anew."
            )
        missing = [path for name, path in wanted.items() if name not in known]
        missing_seeds = [number for name, number in seeds.items() if name not in known]
        total, pace = len(wanted) + len(seeds), Pace()
        try:
            for add in self._batches(missing, missing_seeds):
                add()
                if self.unsaved >= SAVE_EVERY and pace.due():
                    with pace.saving():
                        self.save_progress()
                if callback is not None:
                    callback(len(self) + len(self.rows.skipped), total)
        finally:
            if self.unsaved:
                self.save_progress()

    def save_progress(self) -> None:
        """Save what there is; a full disk ends nothing, and may have room the next time."""
        try:
            self.save(self.path, self.replaces)
        except EditingError as error:
            self.trouble = f"The faces could not be saved on the way: {error}"
        else:
            self.replaces, self.trouble, self.unsaved = True, "", 0

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write what there is.

        Raises:
            EditingError: nothing there yet, or the file cannot be written.
        """
        rows = self.rows
        if rows.centre is None or rows.rgb_sum is None:
            raise EditingError("There is not one face yet; name a folder of pictures, or ask for samples.")
        tensors = {"image_features": rows.features, "offsets": rows.offsets}
        tensors |= {"centre": [rows.centre], "rgb_sum": [rows.rgb_sum]}
        if rows.w_plus:
            tensors["w_plus"] = rows.w_plus
        origin = self.origin
        metadata = {
            FORMAT_KEY: FILE_FORMAT,
            "version": "1",
            "layout": json.dumps({"convs": self.layout.convs, "rgbs": self.layout.rgbs}),
            "names": json.dumps(rows.names),
            "skipped": json.dumps(rows.skipped),
            "truncation": json.dumps(origin.truncation),
            "generator": origin.generator,
            "clip": origin.clip,
            "encoder": origin.encoder,
        }
        return save_tensor_parts(path, tensors, metadata, overwrite=overwrite)

    def latents(self) -> Latents:
        """What there is, from memory.

        Raises:
            EditingError: nothing there yet.
        """
        rows = self.rows
        if rows.centre is None or rows.rgb_sum is None:
            raise EditingError("There is not one face yet; name a folder of pictures, or ask for samples.")
        return Latents(
            torch.cat(rows.features),
            torch.cat(rows.offsets),
            rows.centre,
            (rows.rgb_sum / len(self)).float(),
            self.layout,
            tuple(rows.names),
            self.origin,
            tuple(rows.skipped),
            torch.cat(rows.w_plus) if rows.w_plus else None,
        )

    def _batches(self, pictures: Sequence[Path], seeds: Sequence[int]) -> Iterator[Callable[[], None]]:
        for start in range(0, len(pictures), self.batch):
            yield lambda part=pictures[start : start + self.batch]: self._add_pictures(part)  # type: ignore[misc]
        for start in range(0, len(seeds), self.batch):
            yield lambda part=seeds[start : start + self.batch]: self._add_samples(part)  # type: ignore[misc]

    @torch.no_grad()
    def _add_pictures(self, files: Sequence[Path]) -> None:
        assert self.encoder is not None
        read, names = [], []
        for path in files:
            try:
                read.append(_square(path))
            except EditingError:
                self.rows.skipped.append(_storable(path.name))
                continue
            names.append(_storable(path.name))
        if not read:
            return
        alike = all(picture.shape == read[0].shape for picture in read)
        batches = [torch.cat(read)] if alike else read
        features = torch.cat([self.clip.embed_images(batch).features.cpu() for batch in batches])
        encoder = self.encoder()
        generator = self.generator()
        small = torch.cat([resized(batch, encoder.side) for batch in batches]) * 2 - 1
        self.append(names, features, generator.styles(encoder(small.to(generator.w_mean))))

    @torch.no_grad()
    def _add_samples(self, seeds: Sequence[int]) -> None:
        generator = self.generator()
        w_plus = torch.cat([generator.sample_w_plus(1, seed, self.origin.truncation) for seed in seeds])
        code = generator.styles(w_plus)
        pictures = (generator.synthesize(code) / 2 + 0.5).clamp(0, 1)
        features = self.clip.embed_images(pictures).features.cpu()
        self.append([f"{SEED}{seed}" for seed in seeds], features, code)

    def append(self, names: list[str], features: Tensor, code: StyleCode) -> None:
        """Add faces whose codes and unit CLIP features ``[B, P]`` are there.

        Raises:
            EditingError: values that are not numbers.
        """
        rows, code = self.rows, code.to("cpu")
        centre = code.convs.mean(0) if rows.centre is None else rows.centre
        offsets = (code.convs - centre).half()
        if not (features.isfinite().all() and offsets.isfinite().all()):
            raise EditingError(
                f"The network's answer to {shown_name(names[0])} or its neighbours is not a number; check the style "
                "encoder and the generator."
            )
        if rows.features and features.shape[1] != rows.features[0].shape[1]:
            raise EditingError(
                f"{shown_name(self.path.name)} was made with another CLIP ({rows.features[0].shape[1]} features; the "
                f"wired one gives {features.shape[1]}); choose another name, or allow overwriting to start anew."
            )
        if rows.centre is None or rows.rgb_sum is None:
            rows.centre = centre
            rows.rgb_sum = torch.zeros(code.rgbs.shape[1], dtype=torch.float64)
        rows.names += names
        rows.features.append(features.half())
        rows.offsets.append(offsets)
        rows.rgb_sum = rows.rgb_sum + code.rgbs.double().sum(0)
        if self.keep_w_plus and code.w_plus is not None:
            rows.w_plus.append(code.w_plus.half())
        self.unsaved += len(names)


def _square(path: Path) -> Tensor:
    """The middle of a picture ``[1, 3, n, n]`` in 0..1, n at most :data:`LARGEST_PICTURE`."""
    picture = read_picture(path, multiple=1)[0]
    side = min(picture.shape[-2:])
    top, left = ((length - side) // 2 for length in picture.shape[-2:])
    square = picture[..., top : top + side, left : left + side]
    return resized(square, LARGEST_PICTURE) if side > LARGEST_PICTURE else square


def _storable(name: str) -> str:
    """A file's name as JSON can keep it: bytes that are no text are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def described(latents: Latents) -> dict[str, Any]:
    """What tells some latents from others, without reading all of them."""
    ends = [0, len(latents) // 2, len(latents) - 1]
    return {
        "faces": len(latents),
        "generator": latents.origin.generator,
        "clip": latents.origin.clip,
        "sample": [round(float(part[ends].float().sum()), 3) for part in (latents.image_features, latents.offsets)],
    }

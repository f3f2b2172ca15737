"""Your own SD 1.5 or SDXL, measured on photos: how exactly each solver inverts, and every engine over every inversion.

    semantic-editing bench real_models --model sd15.safetensors --photos PIE-Bench_v1 --count 20 \\
        --vision dino-vitb8 --lpips squeezenet1_1.pth --clip clip-vit-large-patch14
    semantic-editing bench real_models --model random-sd15 --size 128 --steps 4 --count 1    # does all of it run?
    semantic-editing bench real_models --model random-sdxl --size 256 --steps 2 --count 1 --dtype bfloat16

Prints the tables of docs/measured.md that need no true edit. Photos are a folder in PIE-Bench's layout
(mapping_file.json, annotation_images/); without one, portraits of the demo world stand in for them. Nothing downloads:
a figure whose weights are not given is left out. "Rebuilt" is the photo decoded from its noise by plain Euler steps at
cfg 1, against what the VAE alone makes of it; "direct" is DDIM with its leftover of each step added back (word swap and
guidance have no such shift, so that theirs are DDIM's rows); u counts forward and backward evaluations of the network.
What is measured is kept in --out, and the same command goes on where it ended. The models "random-sd15" and
"random-sdxl" have Stable Diffusion's sizes and random weights: their costs are real and their pictures mean nothing.
SDXL's weights take 14 GB, and half of it in 16 bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from semantic_editing.benchmarks.dataset import resized
from semantic_editing.benchmarks.model_edits import (
    ENGINES,
    INVERSIONS,
    RANDOM,
    UNSHIFTED,
    EditModel,
    Method,
    edited,
    inverted,
    load_model,
    peak_megabytes,
    size_for,
)
from semantic_editing.benchmarks.pie_bench import add_network_options, load_networks
from semantic_editing.core.demo.bench import decibels, number
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.contact_sheet import contact_sheet
from semantic_editing.core.images.files import read_picture, save_picture
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.metrics.image import psnr
from semantic_editing.core.metrics.pie_bench import FIGURES, SIDE, Networks, measure, read_pie_bench
from semantic_editing.core.pix2pix_zero.word_edit import choose_device
from semantic_editing.core.sampling import reconstruct

NOTHING = "nothing done"
Record = dict[str, float]


@dataclass(frozen=True)
class Photo:
    """What is edited.

    Attributes:
        image: ``[1, 3, S, S]`` in 0..1.
        mask: ``[1, 1, S, S]``, 1 where it shall change.
    """

    name: str
    image: Tensor
    mask: Tensor
    source: str
    target: str


def photos(folder: Path | None, side: int, count: int) -> list[Photo]:
    """The first ``count`` of a dataset, or portraits of the demo world, one of each edit in turn.

    Raises:
        EditingError: the folder cannot be used.
    """
    if folder is not None:
        return [
            Photo(
                case.key, read_picture(case.picture, multiple=1)[0], case.mask, case.source_prompt, case.target_prompt
            )
            for case in read_pie_bench(folder, side)[:count]
        ]
    data = DemoData(FOLDER / "unseen")
    turns = [data.pairs_of(edit) for edit in data.edits]
    pairs = [each[turn] for turn in range(min(map(len, turns))) for each in turns][:count]
    return [
        Photo(
            f"{place}: {pair.edit}",
            pair.source[None],
            (pair.source != pair.target).any(0)[None, None].float(),
            pair.source_caption,
            pair.target_caption,
        )
        for place, pair in enumerate(pairs)
    ]


class Kept:
    """Figures by what they are of, on disk after each."""

    def __init__(self, path: Path, told: str):
        self.path, self.told = path, told
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.known: dict[str, Record] = {}
        for line in lines:
            entry = json.loads(line)
            self.known[entry["key"]] = entry["figures"]

    def key(self, *words: object) -> str:
        """What a figure is of."""
        return " | ".join(map(str, (self.told, *words)))

    def get(self, *words: object) -> Record | None:
        """The figures, if they are known."""
        return self.known.get(self.key(*words))

    def put(self, figures: Record, *words: object) -> None:
        """Keep them."""
        key = self.key(*words)
        self.known[key] = figures
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, "figures": figures}) + "\n")


class Bench:
    """One model, its photos and what is known of them."""

    def __init__(self, settings: argparse.Namespace):
        self.settings = settings
        device, dtype = choose_device(settings.device, settings.dtype)
        self.networks: Networks = load_networks(argparse.Namespace(**{**vars(settings), "device": device}))
        self.photos = photos(settings.photos, settings.side, settings.count)
        start = time.perf_counter()
        self.model: EditModel = load_model(settings.model, device, dtype)
        self.size = size_for(self.model, settings.size)
        print(f"loaded in {time.perf_counter() - start:.0f} s, {peak_megabytes():.0f} MB", file=sys.stderr, flush=True)
        self.kept = Kept(settings.out / "real_models.jsonl", f"{Path(settings.model).name}, {self.size} pixels")

    def run(self) -> None:
        """Measure what is not known yet, photo by photo."""
        for count, photo in enumerate(self.photos):
            latent = self.model.model.encode_image(resized(photo.image, self.size))
            for steps in self.settings.steps:
                for inversion in self.settings.inversions:
                    self._one(photo, latent, inversion, steps)
            print(f"{count + 1} of {len(self.photos)} photos", file=sys.stderr, flush=True)

    def _one(self, photo: Photo, latent: Tensor, inversion: str, steps: int) -> None:
        """An inversion of a photo and, at the steps of the edits, all engines over it."""
        edits = self.settings.engines if steps == self.settings.edit_steps else []
        if inversion == "direct":
            edits = [engine for engine in edits if engine not in UNSHIFTED]
        wanted = [engine for engine in edits if self.kept.get("edit", photo.name, inversion, engine, steps) is None]
        solved = inversion != "direct"
        rebuilds = solved and self.kept.get("inversion", photo.name, inversion, steps) is None
        if not wanted and not rebuilds:
            return
        start = time.perf_counter()
        made, spent = inverted(self.model, latent, photo.source, inversion, steps)
        seconds = time.perf_counter() - start
        if rebuilds:
            record = {"psnr": self._rebuilt(made, latent, photo), "u": spent, "seconds": seconds}
            self.kept.put(record, "inversion", photo.name, inversion, steps)
        for engine in wanted:
            start = time.perf_counter()
            result, own = edited(
                self.model, made, photo.source, photo.target, Method(inversion, engine), self.settings.cfg
            )
            took = time.perf_counter() - start
            picture = resized(self.model.model.decode(result).cpu(), photo.image.shape[-1])
            self._show(photo, picture, f"{inversion}+{engine}")
            record = self._figures(photo, picture) | {"u": spent + own, "seconds": seconds + took}
            self.kept.put(record, "edit", photo.name, inversion, engine, steps)

    def _rebuilt(self, made: Inversion, latent: Tensor, photo: Photo) -> float:
        with torch.no_grad():
            again = reconstruct(self.model.model.denoiser(), made, self.model.cond(photo.source))
        return float(psnr(self.model.model.decode(again), self.model.model.decode(latent)))

    def _figures(self, photo: Photo, picture: Tensor) -> Record:
        with torch.inference_mode():
            found = measure(
                photo.image, picture, photo.mask, photo.source, photo.target, self.networks, self.settings.variant
            )
        return {name: float(values) for name, values in found.items()}

    def _show(self, photo: Photo, picture: Tensor, name: str) -> None:
        number_ = next(place for place, other in enumerate(self.photos) if other is photo)
        cells = [(photo.image[0], photo.source), (picture[0], f"{name}: {photo.target}")]
        path = self.settings.out / "pictures" / f"{number_:03d}-{name}.png"
        save_picture(path, contact_sheet([(photo.name, cells)], scale=1), overwrite=True)

    def inversion_table(self) -> str:
        """Markdown."""
        lines = ["| inversion | steps | rebuilt, dB | lowest, dB | u (most) | seconds (median) | n |", "|---" * 7 + "|"]
        for inversion in (name for name in self.settings.inversions if name != "direct"):
            for steps in self.settings.steps:
                found = self._found(lambda photo, i=inversion, s=steps: self.kept.get("inversion", photo.name, i, s))
                if found:
                    u = [record["u"] for record in found]
                    level = torch.tensor([record["psnr"] for record in found]).double()
                    cells = [
                        inversion, str(steps), decibels(level, True), number(float(level.min())),
                        f"{sum(u) / len(u):.1f} ({max(u):.0f})", self._median(found), str(len(found)),
                    ]  # fmt: skip
                    lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def engines_table(self) -> str:
        """Markdown; each figure is ``mean (worst)``."""
        columns = {name: figure for name, figure in FIGURES.items() if name not in self.networks.missing()}
        heads = [f"{figure.heading} {'↑' if figure.more_is_better else '↓'}" for figure in columns.values()]
        lines = [
            f"| engine | inversion | {' | '.join(heads)} | u | seconds (median) | n |",
            "|---" * (5 + len(heads)) + "|",
        ]

        def line(engine: str, inversion: str, found: list[Record]) -> None:
            cells = []
            for name, figure in columns.items():
                values = [record[name] * figure.factor for record in found if name in record]
                if not values:
                    cells.append("-")
                    continue
                worst = min(values) if figure.more_is_better else max(values)
                cells.append(f"{sum(values) / len(values):.2f} ({worst:.2f})")
            u = [record["u"] for record in found if "u" in record]
            cells += [f"{sum(u) / len(u):.1f}" if u else "", self._median(found) if u else "", str(len(found))]
            lines.append("| " + " | ".join([engine, inversion, *cells]) + " |")

        line(NOTHING, "", [self._figures(photo, photo.image) for photo in self.photos])
        steps = self.settings.edit_steps
        for engine in self.settings.engines:
            for inversion in self.settings.inversions:
                found = self._found(lambda photo, e=engine, i=inversion: self.kept.get("edit", photo.name, i, e, steps))
                if found:
                    line(engine, inversion, found)
        missing = self.networks.missing()
        lines += [""] + [
            f"Not measured without {lack}: "
            + ", ".join(FIGURES[name].heading for name, what in missing.items() if what == lack)
            + "."
            for lack in sorted(set(missing.values()))
        ]
        return "\n".join(lines)

    def _found(self, get: Callable[[Photo], Record | None]) -> list[Record]:
        return [record for photo in self.photos if (record := get(photo)) is not None]

    @staticmethod
    def _median(found: list[Record]) -> str:
        return f"{float(torch.tensor([record['seconds'] for record in found]).median()):.1f}"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="semantic-editing bench real_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--model", required=True, help="diffusers folder, single-file checkpoint, or " + ", ".join(RANDOM)
    )
    made.add_argument("--photos", type=Path, help="folder in PIE-Bench's layout (default: portraits of the demo world)")
    made.add_argument("--side", type=int, default=SIDE, help="side in pixels of that folder's pictures")
    made.add_argument("--count", type=int, default=8, help="how many photos")
    made.add_argument("--size", type=int, help="side in pixels that they are edited at (default: the model's)")
    made.add_argument("--steps", type=int, nargs="+", default=[20, 50], help="of the inversions")
    made.add_argument("--edit-steps", type=int, help="of the edits (default: the most of --steps)")
    made.add_argument("--inversions", nargs="+", choices=list(INVERSIONS), default=list(INVERSIONS))
    made.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    made.add_argument("--cfg", type=float, help="in place of every engine's default")
    made.add_argument("--variant", choices=["published", "corrected"], default="corrected", help="see pie_bench.py")
    add_network_options(made)
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    made.add_argument("--dtype", choices=["auto", "float32", "float16", "bfloat16"], default="auto")
    made.add_argument("--out", type=Path, default=Path("bench_out/real_models"))
    settings = made.parse_args(arguments)
    if settings.count < 1 or min(settings.steps) < 1:
        made.error("--count and --steps must be 1 or more")
    settings.edit_steps = settings.edit_steps or max(settings.steps)
    settings.steps = sorted({*settings.steps, settings.edit_steps})
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 2 after a sentence on stderr."""
    settings = options(arguments)
    start = time.perf_counter()
    try:
        bench = Bench(settings)
        bench.run()
        at = f"{Path(settings.model).name} at {bench.size} pixels"
        print(f"\n## Inversion, {at}\n\n{bench.inversion_table()}")
        print(f"\n## Engines over inversions, {at}, {settings.edit_steps} steps, {settings.variant} figures\n")
        print(bench.engines_table())
    except EditingError as error:
        print(f"semantic-editing bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("semantic-editing bench: interrupted; the same command goes on from there.", file=sys.stderr)
        return 130
    print(f"\n{time.perf_counter() - start:.0f} s in all, at most {peak_megabytes():.0f} MB of main memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Edits every picture of a dataset folder with any engine over any inversion, and judges what came out.

    semantic-editing bench --dataset pie-bench PIE-Bench_v1 --model sd15 --method auto+prompt_to_prompt ddim+masactrl
    semantic-editing bench --dataset pie-bench PIE-Bench_v1 --model sd15 --workers 2 --device cuda:0 cuda:1
    accelerate launch benchmarks/dataset.py pie-bench PIE-Bench_v1 --model sd15 --accelerate

The folder holds mapping_file.json and annotation_images/, as PIE-Bench's. A method is INVERSION+ENGINE: ddim, direct
(DDIM and its stored shift), aidi (fixed point), gradient or auto (both SPDInv); word_swap, guidance, prompt_to_prompt,
masactrl, plug_and_play or semantic_guidance, at their defaults. The model is a diffusers folder or a single file, or
"demo". In --out each method has a folder of its pictures with the settings they were made with; a picture that is
there is not edited again, so that an interrupted run goes on when it is started again. Then figures.csv (every
picture), summary.csv (means) and plot.png are written and the tables printed, as benchmarks/pie_bench.py judges: a
figure whose weights are not given is named and left out.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from semantic_editing.benchmarks.model_edits import (
    EditModel,
    Method,
    edited,
    inverted,
    load_model,
    method,
    size_for,
)
from semantic_editing.benchmarks.pie_bench import add_network_options, load_networks
from semantic_editing.core.demo.bench import interval
from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.bars import bars_plot
from semantic_editing.core.images.contact_sheet import to_picture
from semantic_editing.core.images.files import picture_mark, read_picture, save_picture
from semantic_editing.core.metrics.pie_bench import (
    EDIT_TYPES,
    EDITED,
    FIGURES,
    NOTHING_DONE,
    SIDE,
    PieCase,
    PieResult,
    Variant,
    evaluate,
    read_pie_bench,
    table,
)
from semantic_editing.core.pix2pix_zero.word_edit import choose_device
from semantic_editing.core.writing import write_whole

METHODS = ("auto+prompt_to_prompt", "ddim+prompt_to_prompt")
LISTED = 5  # how many pictures that could not be edited are named
INTERRUPTED = "interrupted; the pictures so far are kept, and the same command goes on from there."


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="semantic-editing bench --dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("kind", choices=["pie-bench"], help="how the folder is laid out")
    made.add_argument("folder", type=Path, help="of the dataset")
    made.add_argument("--model", required=True, help='diffusers folder, single-file checkpoint, or "demo"')
    made.add_argument("--method", nargs="+", default=list(METHODS), metavar="INVERSION+ENGINE", help="one or several")
    made.add_argument("--steps", type=int, default=50)
    made.add_argument("--cfg", type=float, help="in place of every engine's default")
    made.add_argument("--size", type=int, help="side in pixels that pictures are edited at (default: the model's)")
    made.add_argument("--side", type=int, default=SIDE, help="side in pixels of the dataset's pictures and masks")
    made.add_argument("--limit", type=int, help="only the first so many pictures")
    made.add_argument("--dtype", choices=["auto", "float32", "float16", "bfloat16"], default="auto")
    made.add_argument(
        "--device",
        nargs="+",
        default=["auto"],
        help="auto, cpu, cuda, cuda:1, mps; several: one after another's worker",
    )
    made.add_argument("--workers", type=int, default=1, help="processes that share the pictures")
    made.add_argument("--accelerate", action="store_true", help="share them as `accelerate launch` says")
    made.add_argument("--only-judge", action="store_true", help="edit nothing; judge the pictures that are there")
    made.add_argument("--variant", choices=["both", *get_args(Variant)], default="both", help="see pie_bench.py")
    add_network_options(made)
    made.add_argument("--out", type=Path, default=Path("bench_out/dataset"))
    made.add_argument("--share", help=argparse.SUPPRESS)
    settings = made.parse_args(arguments)
    for name in ("steps", "workers", "limit"):
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            made.error(f"--{name} must be 1 or more")
    return settings


def picture_of(settings: argparse.Namespace, chosen: Method, case: PieCase) -> Path:
    """Where the edited picture of a case is kept: the path of its source, as PNG."""
    return (settings.out / chosen.name / case.path).with_suffix(".png")


def check_settings(settings: argparse.Namespace, chosen: Method) -> None:
    """Write down what the method's pictures are made with, or compare with what is written.

    Raises:
        EditingError: those that are there were made otherwise.
    """
    path = settings.out / chosen.name / "settings.json"
    told = {
        "model": Path(settings.model).name,
        **{name: getattr(settings, name) for name in ("steps", "cfg", "size", "side")},
    }
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        text = json.dumps(told, indent=1) + "\n"
        write_whole(path, lambda stream: stream.write(text.encode()), overwrite=True)
        return
    except (OSError, ValueError):
        known = None
    if known != told:
        raise EditingError(
            f"The pictures of {chosen.name} in {settings.out.name} were made with other settings; give the same ones, "
            "or another --out."
        )


def edit_share(
    settings: argparse.Namespace, cases: Sequence[PieCase], methods: Sequence[Method], device: str, share: str
) -> None:
    """Edit what is not there yet of every n-th picture; ``share`` is "i/n".

    A picture that a method cannot edit is named on stderr and left out.
    """
    number, count = map(int, share.split("/"))
    own = [case for case in cases[number::count] if any(not picture_of(settings, m, case).is_file() for m in methods)]
    if not own:
        return
    model = load_model(settings.model, *choose_device(device, settings.dtype))
    size, failed = size_for(model, settings.size), 0
    for done, case in enumerate(own):
        failed += edit_case(settings, model, size, case, methods)
        print(f"worker {number}: {done + 1} of {len(own)} pictures", file=sys.stderr, flush=True)
    if failed:
        print(f"worker {number}: {failed} edits failed", file=sys.stderr)


def edit_case(
    settings: argparse.Namespace, model: EditModel, size: int, case: PieCase, methods: Sequence[Method]
) -> int:
    """Edit one picture by every method that has not; methods of one inversion share it. How many failed."""
    image = resized(read_picture(case.picture, multiple=1)[0], size)
    latent, failed = model.model.encode_image(image), 0
    missing = [chosen for chosen in methods if not picture_of(settings, chosen, case).is_file()]
    for inversion in dict.fromkeys(chosen.inversion for chosen in missing):
        start, spent = inverted(model, latent, case.source_prompt, inversion, settings.steps)
        for chosen in (one for one in missing if one.inversion == inversion):
            try:
                made, own = edited(model, start, case.source_prompt, case.target_prompt, chosen, settings.cfg)
                picture = resized(model.model.decode(made).cpu(), settings.side)
            except EditingError as error:
                print(f"{case.key}, {chosen.name}: {error}", file=sys.stderr, flush=True)
                failed += 1
                continue
            mark = json.dumps({"u": spent + own})
            save_picture(picture_of(settings, chosen, case), to_picture(picture[0]), overwrite=True, mark=mark)
    return failed


def resized(images: Tensor, side: int) -> Tensor:
    """``[B, 3, H, W]`` at ``side`` pixels."""
    if images.shape[-2:] == (side, side):
        return images
    return functional.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def accelerated() -> Any:
    """This process among those that `accelerate launch` started.

    Raises:
        EditingError: accelerate is not installed.
    """
    if find_spec("accelerate") is None:
        raise EditingError(
            "--accelerate needs the package accelerate; install it (pip install accelerate), or use --workers."
        )
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def edit_all(settings: argparse.Namespace, cases: Sequence[PieCase], methods: Sequence[Method]) -> bool:
    """Edit what is not there; whether this process is the one that judges.

    Raises:
        EditingError: a worker ended before its pictures were done.
    """
    if settings.share:
        edit_share(settings, cases, methods, settings.device[0], settings.share)
        return False
    if settings.accelerate:
        state = accelerated()
        edit_share(settings, cases, methods, str(state.device), f"{state.process_index}/{state.num_processes}")
        state.wait_for_everyone()
        return bool(state.is_main_process)
    if settings.workers == 1:
        edit_share(settings, cases, methods, settings.device[0], "0/1")
        return True
    started = []
    for number in range(settings.workers):
        device = settings.device[number % len(settings.device)]
        command = [sys.executable, __file__, *settings.arguments, "--share", f"{number}/{settings.workers}"]
        started.append(subprocess.Popen([*command, "--device", device]))
    try:
        codes = [process.wait() for process in started]
    finally:  # they heard the same Ctrl+C; a picture is written whole or not at all
        for process in started:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if any(codes):
        raise EditingError(
            f"{sum(map(bool, codes))} of {len(codes)} workers ended early, see above; start the same command again to "
            "go on."
        )
    return True


def judge(settings: argparse.Namespace, cases: Sequence[PieCase], methods: Sequence[Method]) -> None:
    """Tables, CSV and plot of the pictures that are there."""
    device, _ = choose_device(settings.device[0], settings.dtype)
    networks = load_networks(argparse.Namespace(**{**vars(settings), "device": device}))
    variants = get_args(Variant) if settings.variant == "both" else [settings.variant]
    results: dict[tuple[str, str], PieResult] = {}
    for variant in variants:
        for chosen in methods:
            with torch.inference_mode():
                results[variant, chosen.name] = result = evaluate(cases, settings.out / chosen.name, networks, variant)
            print(f"\n{chosen.name}\n\n{table(result)}", flush=True)
            for sentence in result.skipped[:LISTED]:
                print(f"- {sentence}")
    spent = {
        (chosen.name, case.key): mark["u"]
        for chosen in methods
        for case in cases
        if (mark := json.loads(picture_mark(picture_of(settings, chosen, case)) or "{}"))
    }
    for chosen in methods:
        own = [u for (name, _), u in spent.items() if name == chosen.name]
        print(f"{chosen.name}: {sum(own) / max(len(own), 1):.1f} u a picture (forward and backward, n {len(own)})")
    write_csv(settings.out / "figures.csv", picture_lines(results, spent))
    write_csv(settings.out / "summary.csv", mean_lines(results))
    image = bars_plot(panels(results, variants[-1]))
    save_picture(settings.out / "plot.png", to_picture(image.movedim(-1, 0)), overwrite=True)
    print(f"\nwrote figures.csv, summary.csv and plot.png ({variants[-1]} figures) into {settings.out}")


def write_csv(path: Path, lines: Sequence[Sequence[object]]) -> None:
    """A CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_whole(path, lambda stream: stream.write(text.getvalue().encode()), overwrite=True)


def picture_lines(results: dict[tuple[str, str], PieResult], spent: dict[tuple[str, str], float]) -> list[list[object]]:
    """Every picture's figures as they are (without the factors of the tables), the source as its own edit first."""
    lines: list[list[object]] = [["variant", "method", "key", "type of edit", "u", *FIGURES]]
    seen = set()
    for (variant, name), result in results.items():
        for row in result.rows:
            who = name if row.edit == EDITED else NOTHING_DONE
            if (variant, who, row.key) not in seen:
                seen.add((variant, who, row.key))
                figures = [row.figures.get(figure, "") for figure in FIGURES]
                u = spent.get((who, row.key), "")
                lines.append([variant, who, row.key, EDIT_TYPES[row.edit_type], u, *figures])
    return lines


def mean_lines(results: dict[tuple[str, str], PieResult]) -> list[list[object]]:
    """Means of each method, their 95 % intervals and the worst picture, with the tables' factors."""
    lines: list[list[object]] = [["variant", "method", "figure", "mean", "low", "high", "worst", "n"]]
    for (variant, name), values in by_method(results).items():
        for figure, column in values.items():
            low, high = spread(column)
            worst = column.min() if FIGURES[figure].more_is_better else column.max()
            numbers = [float(column.mean()), low, high, float(worst)]
            lines.append([variant, name, FIGURES[figure].heading, *(f"{n:.6g}" for n in numbers), len(column)])
    return lines


def spread(column: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of a figure ``[n]``; equal ones, which might be taken for shares of yes and no, have
    none."""
    return (float(column[0]),) * 2 if bool((column == column[0]).all()) else interval(column)


def by_method(results: dict[tuple[str, str], PieResult]) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(variant, method or "nothing done") -> figure -> ``[n]`` of the pictures that have it, times its factor.

    "Nothing done" is of the pictures that the first method edited.
    """
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for (variant, name), result in results.items():
        for edit, who in ((NOTHING_DONE, NOTHING_DONE), (EDITED, name)):
            if (variant, who) in found:
                continue
            rows = [row.figures for row in result.rows if row.edit == edit]
            columns = {figure: [row[figure] for row in rows if figure in row] for figure in FIGURES}
            found[variant, who] = {
                figure: torch.tensor(column).double() * FIGURES[figure].factor
                for figure, column in columns.items()
                if column
            }
    return found


def panels(results: dict[tuple[str, str], PieResult], variant: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """A panel of bars for each figure."""
    made: dict[str, dict[str, tuple[float, float, float]]] = {}
    for (own, name), values in by_method(results).items():
        for figure, column in values.items():
            if own == variant:
                rows = made.setdefault(FIGURES[figure].heading, {})
                rows[name] = (float(column.mean()), *spread(column))
    return made


def run(settings: argparse.Namespace) -> None:
    """Edit and judge."""
    methods = [method(text) for text in dict.fromkeys(settings.method)]
    cases = read_pie_bench(settings.folder, settings.side)[: settings.limit]
    for chosen in methods:
        check_settings(settings, chosen)
    if settings.only_judge or edit_all(settings, cases, methods):
        judge(settings, cases, methods)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 2 after a sentence on stderr, 130 where it was interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    settings = options(words)
    settings.arguments = words
    try:
        run(settings)
    except EditingError as error:
        print(f"semantic-editing bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"semantic-editing bench: {INTERRUPTED}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

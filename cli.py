"""``semantic-editing demo | edit | bench``: the techniques without ComfyUI."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess  # nosec B404 # see run_bench
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .core.errors import EditingError
from .core.file_names import check_characters
from .core.writing import write_whole

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"
SOLVER_NAMES = ("auto", "fixed_point", "anderson", "gradient", "ddim")
PRESETS = ("lockstep", "carried", "released")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 after a sentence on stderr, or a benchmark's own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["bench"] and words[1:2] in (["--demo"], ["--dataset"]):  # the benches that a person means first
        words[1] = words[1].removeprefix("--")
    parsed = parser().parse_args(words)
    try:
        return parsed.run(parsed) or 0
    except EditingError as error:
        print(f"semantic-editing: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("semantic-editing: cancelled; nothing was written.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="semantic-editing", description="Edit images by meaning with diffusion models.")
    commands = top.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="run every technique on the bundled demo model")
    demo.set_defaults(run=run_demo)
    demo.add_argument(
        "--out", type=Path, required=True, help="folder for contact_sheet.png, the single pictures and measures.json"
    )
    demo.add_argument("--steps", type=int, default=30, help="steps of every trajectory (default 30)")
    demo.add_argument("--pair", type=int, default=0, help="which portrait of each edit, from 0")
    demo.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files of these names in a folder that holds others than an earlier demo's",
    )
    demo.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")

    edit = commands.add_parser("edit", help="edit a picture with a local SD 1.x, SD 2.x or SDXL model")
    edit.set_defaults(run=run_edit)
    edit.add_argument(
        "--model", type=Path, required=True, help="diffusers folder, or single-file .safetensors checkpoint"
    )
    edit.add_argument("--image", type=Path, required=True, help="the picture to edit")
    edit.add_argument(
        "--source",
        help='what it shows, a word or phrase: "cat" (default: nothing goes, the target is added to the caption)',
    )
    edit.add_argument("--target", required=True, help='what it shall show instead, or besides: "dog"')
    edit.add_argument("--out", type=Path, required=True, help="where to write the edited picture, e.g. y.png")
    edit.add_argument("--caption", help='caption of the picture (default: "a photo of" the source)')
    edit.add_argument(
        "--captioner",
        type=Path,
        metavar="FOLDER",
        help="BLIP or BLIP-2 (transformers folder), which describes the picture where no --caption is given",
    )
    edit.add_argument("--size", type=int, help="shorter side in pixels, a multiple of 8 (default: the model's own)")
    edit.add_argument("--steps", type=int, default=50)
    edit.add_argument("--solver", choices=SOLVER_NAMES, default="auto", help="how each inversion step is solved")
    edit.add_argument("--cfg", type=float, default=2.0, help="how strongly the edit is followed (paper: 5)")
    edit.add_argument("--guidance", type=float, default=0.05, help="how the layout is kept; 0 is off (paper: 0.1)")
    edit.add_argument(
        "--preset",
        choices=PRESETS,
        default="carried",
        help="how a guided step is taken: carried, the paper's way (lockstep), or released",
    )
    edit.add_argument("--strength", type=float, default=1.0, help="of the direction, -3 to 3")
    edit.add_argument("--sentences", type=int, default=256, help="sentences a side of the direction")
    edit.add_argument("--seed", type=int, default=0, help="which sentences are drawn; all else is deterministic")
    edit.add_argument(
        "--direction",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="a saved direction instead of the words' own; or two published embeddings (.pt): source target",
    )
    edit.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    edit.add_argument("--dtype", choices=["auto", "float32", "float16", "bfloat16"], default="auto")
    edit.add_argument(
        "--prediction",
        choices=["epsilon", "v_prediction"],
        help="what the network of a single-file checkpoint predicts, should the picture come out broken (default: "
        "found out)",
    )
    edit.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")

    listed = "\n".join(f"  {name:<26}{purpose}" for name, purpose in benchmarks().items())
    bench = commands.add_parser(
        "bench",
        help="run a benchmark: `bench --demo` all techniques on the demo world, `bench --dataset pie-bench FOLDER` a "
        "model on a dataset; `bench NAME --help` tells its options",
        description="Run one of the benchmarks; `bench --demo` is `bench demo` (all techniques on the demo world), "
        "`bench --dataset` is `bench dataset` (your model on a dataset folder).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"benchmarks:\n{listed or '  none in this installation'}",
    )
    bench.set_defaults(run=run_bench)
    bench.add_argument("name", help="which one")
    bench.add_argument("options", nargs=argparse.REMAINDER, help="passed on to it")
    return top


def benchmarks() -> dict[str, str]:
    """Each benchmark's name and purpose (the first line of its docstring); empty where none is installed."""
    purposes = {}
    for path in sorted(BENCHMARKS.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '"__main__"' in text:  # the others are parts of them
            purposes[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return purposes


def quiet() -> None:
    """Silence the loading bars of the model libraries, which would bury what this program says."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def run_demo(options: argparse.Namespace) -> None:
    """``semantic-editing demo``: write the contact sheet, the pictures and the measures."""
    import torch

    from .core.demo.model import load_demo_model
    from .core.demo.showcase import Settings, run_showcase
    from .core.images.contact_sheet import contact_sheet, to_picture
    from .core.images.files import check_writable, save_picture

    check_characters(str(options.out), "path")
    overwrite = options.overwrite or is_demo_folder(options.out)
    sheet_path = check_writable(options.out / "contact_sheet.png", overwrite=overwrite)
    if any(options.out.iterdir()) and not overwrite:
        raise EditingError(
            f"The folder {options.out} is not empty; choose another one, or add --overwrite to replace files there."
        )
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    start = time.perf_counter()
    print("loading the demo model", flush=True)
    quiet()
    demo = load_demo_model()
    result = run_showcase(
        demo, Settings(steps=options.steps, pair=options.pair), report=lambda line: print(line, flush=True)
    )
    result.measures["seconds"] = round(time.perf_counter() - start, 1)
    for stem, image in result.pictures.items():
        save_picture(options.out / f"{stem}.png", to_picture(image), overwrite=overwrite)
    sheet = contact_sheet(result.rows, scale=1, width_of_text=170)
    save_picture(sheet_path, sheet, overwrite=overwrite)
    measures = (json.dumps(result.measures, indent=1) + "\n").encode()
    path = write_whole(options.out / "measures.json", lambda stream: stream.write(measures), overwrite=overwrite)
    print(f"wrote {sheet_path}, {len(result.pictures)} single pictures and {path}")


def is_demo_folder(folder: Path) -> bool:
    """Whether an earlier ``semantic-editing demo`` filled the folder, so that the next may replace its files."""
    try:
        measures = json.loads((folder / "measures.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(measures, dict) and "seconds" in measures and (folder / "contact_sheet.png").is_file()


def run_edit(options: argparse.Namespace) -> None:
    """``semantic-editing edit``: invert the picture, steer it, write it."""
    from .core.diffusers.checkpoint import load_checkpoint
    from .core.images.contact_sheet import to_picture
    from .core.images.files import check_writable, read_picture, read_whole_picture, save_picture
    from .core.models.captioner import load_captioner
    from .core.pix2pix_zero.guided_edit import CrossAttentionSettings
    from .core.pix2pix_zero.word_edit import NO_CAPTION, WordEdit, choose_device, edit_by_words
    from .core.spdinv.solvers import SPDInvSettings

    check_characters(str(options.out), "path")
    if options.source is None and options.caption is None and options.captioner is None:
        raise EditingError(NO_CAPTION)
    check_writable(options.out, overwrite=options.overwrite)
    read_picture(options.image)  # a bad picture is refused before the model loads
    device, dtype = choose_device(options.device, options.dtype)
    print(f"loading {options.model.name} on {device}", flush=True)
    quiet()
    model = load_checkpoint(options.model, device, dtype, options.prediction)
    image, note, fit = read_whole_picture(options.image, options.size or model.native_size, model.patch)
    print(f"{options.image.name}: {note}", flush=True)
    caption = options.caption
    if caption is None and options.captioner is not None:
        (caption,) = load_captioner(options.captioner).to(device).caption(image)
    request = WordEdit(
        source=options.source,
        target=options.target,
        caption=caption,
        steps=options.steps,
        inversion=SPDInvSettings(options.solver),
        guidance=CrossAttentionSettings(options.cfg, options.guidance, preset=options.preset),
        strength=options.strength,
        sentences=options.sentences,
        seed=options.seed,
        direction_files=tuple(options.direction or ()),
    )
    edited, summary = edit_by_words(model, image, request, report=lambda line: print(line, flush=True))
    save_picture(options.out, to_picture(fit.undo(edited)[0]), overwrite=options.overwrite)
    print(f"{summary}\nwrote {options.out}")


def run_bench(options: argparse.Namespace) -> int:
    """``semantic-editing bench``: run a benchmark in a process of its own; returns its exit code."""
    names = benchmarks()
    if not names:
        raise EditingError(
            "The benchmarks are not part of this installation; run the command from the project's repository."
        )
    if options.name not in names:
        raise EditingError(f"There is no benchmark {options.name!r}; choose one of {', '.join(names)}.")
    command = [sys.executable, str(BENCHMARKS / f"{options.name}.py"), *options.options]
    return subprocess.run(command).returncode  # nosec B603 # one of the pack's own files, with the user's own words


if __name__ == "__main__":
    sys.exit(main())

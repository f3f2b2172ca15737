"""Every editing engine over every inversion on the demo world, through the shipped nodes.

    semantic-editing bench engines_table --alone --pairs 2
    semantic-editing bench engines_table --alone --engines MasaCtrl --edits "top: short to hat"
    semantic-editing bench engines_table --report

A cell is an engine's own workflow with another inversion: DDIM, the same with its leftover of each step added back
(direct inversion), AIDI (solver fixed_point), and SPDInv (solvers gradient and auto). All of them have the nodes' own
negative, the source prompt, which is negative-prompt inversion; beside them DDIM with an empty negative, and DDIM with
negatives optimised from the empty one at the edit's cfg (null-text inversion). The guided sampler holds the trajectory
by itself and has no stored shift, so that direct inversion is DDIM there; semantic guidance has no negative, so that
the last two are DDIM there. What is not named is at its default, but for the steps (--steps). Judged by the demo's
second classifier; u is the inversion's and the engine's together. Made pair by pair, so that a run that ends early has
as many of each edit; it goes on where it ended unless --anew is given. --report only prints what is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from semantic_editing.benchmarks.demo import (
    KEEPING,
    Method,
    Runner,
    Store,
    asked,
    chosen_host,
    running,
    workflow_called,
)
from semantic_editing.benchmarks.pix2pix_zero_table import EDITS, INVERTS, SAMPLES, only_the_picture, swap_words
from semantic_editing.core.demo.bench import NOTHING, NOTHING_DECODED, Judgement, Outcome, Workflow, number, share
from semantic_editing.core.demo.data import FOLDER, DemoData, DemoPair
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.engines.prompt_to_prompt import PromptToPromptSettings
from semantic_editing.core.errors import EditingError
from semantic_editing.core.spdinv.null_text import NullTextSettings

EMPTY, NULL_TEXT = "DDIM, empty negative", "null-text (DDIM)"
#: Row -> the inversion's widgets, and whether an engine adds back what it left over.
INVERSIONS: dict[str, tuple[dict[str, object], bool]] = {
    "DDIM": ({"solver": "ddim"}, False),
    "direct (DDIM + stored shift)": ({"solver": "ddim"}, True),
    "AIDI (fixed point)": ({"solver": "fixed_point"}, True),
    "SPDInv gradient": ({"solver": "gradient"}, True),
    "SPDInv auto": ({"solver": "auto"}, True),
    EMPTY: ({"solver": "ddim"}, False),
    # Its negatives make up for what is left over. The iterations say nothing to DDIM: they only keep a host that still
    # has another row's inversion from charging nothing for this one.
    NULL_TEXT: ({"solver": "ddim", "max_iterations": 1}, False),
}
#: Widgets of Guider Settings at their defaults.
SETTINGS: dict[str, object] = {
    name: getattr(PromptToPromptSettings, name)
    for name in ("stored_shift", "proximal", "background_keep", "blend_threshold")
}
#: Inversions in the order they are made: what shall be compared first stands first.
ORDER = (
    "SPDInv auto",
    "DDIM",
    "direct (DDIM + stored shift)",
    "AIDI (fixed point)",
    "SPDInv gradient",
    EMPTY,
    NULL_TEXT,
)
#: Column -> its workflow.
ENGINES = {
    "word swap": "demo_word_edit",
    "guidance": "demo_word_edit",
    "Prompt-to-Prompt": "demo_prompt_to_prompt",
    "MasaCtrl": "demo_masactrl",
    "Plug-and-Play": "demo_plug_and_play",
    "semantic guidance": "demo_several_edits",
}


def inversion_alone(row: str, steps: int) -> Method:
    """What every engine of a row begins with; its picture is the noise, decoded, or the rebuilt one, which is free."""
    workflow = copy.deepcopy(workflow_called("demo_prompt_to_prompt"))
    key, inverting = one(workflow, INVERTS)
    inverting |= {"steps": steps, **INVERSIONS[row][0]}
    _, decoding = one(workflow, "VAEDecode")
    if row == NULL_TEXT:
        guider, guided = one(workflow, "SemEdit_PromptToPromptGuider")
        use_negatives(workflow, guided, row)
        wired = {name: guided[name] for name in ("model", "inversion")}
        workflow[guider] = {"class_type": "SemEdit_RebuildGuider", "inputs": wired}
    else:
        decoding["samples"] = [key, 1]
    return Method(f"{row}, alone", needed(only_the_picture(workflow)), {})


def cell(row: str, engine: str, steps: int) -> Method | None:
    """An engine over an inversion; None where the cell is another one's."""
    widgets, shifted = INVERSIONS[row]
    if row in (EMPTY, NULL_TEXT) and engine == "semantic guidance":
        return None
    workflow = copy.deepcopy(workflow_called(ENGINES[engine]))
    one(workflow, INVERTS)[1].update({"steps": steps, **widgets})
    if ENGINES[engine] == "demo_word_edit":
        if row.startswith("direct"):
            return None
        if engine == "word swap":
            swap_words(workflow)
            one(workflow, SAMPLES)[1].update({"guidance": 0.0, "local_fraction": 0.0})
        use_negatives(workflow, one(workflow, SAMPLES)[1], row)
    else:
        (guider,) = (node["inputs"] for node in workflow.values() if node["class_type"].endswith("Guider"))
        if "stored_shift" in guider:
            guider["stored_shift"] = shifted
        else:
            options = SETTINGS | {"stored_shift": shifted}
            workflow["settings"] = {"class_type": "SemEdit_GuiderSettings", "inputs": options}
            guider["settings"] = ["settings", 0]
        if "edits" in guider:  # the workflow shows two edits at once; the node's own threshold in place of theirs
            guider["edits"] = guider["edits"].partition("@")[0].strip()
        use_negatives(workflow, guider, row)
    return Method(f"{row} + {engine}", needed(only_the_picture(workflow)), {})


def use_negatives(workflow: Workflow, editing: dict[str, object], row: str) -> None:
    """Give the node with the inputs ``editing`` the negatives of a row, where they are not its own."""
    if row not in (EMPTY, NULL_TEXT):
        return
    clip = next(node["inputs"]["clip"] for node in workflow.values() if node["class_type"] == "CLIPTextEncode")
    workflow["empty"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}}
    if row == EMPTY:
        editing["negative"] = ["empty", 0]
        return
    widgets = {key: value for key, value in vars(NullTextSettings()).items() if key != "cfg"}
    wired = {name: editing[name] for name in ("model", "inversion", "cfg")} | {"negative": ["empty", 0]}
    workflow["null-text"] = {"class_type": "SemEdit_NullTextInversion", "inputs": wired | widgets}
    editing["inversion"] = ["null-text", 0]


def one(workflow: Workflow, kind: str) -> tuple[str, dict[str, object]]:
    """Key and inputs of the workflow's node of a class."""
    ((key, node),) = ((key, node) for key, node in workflow.items() if node["class_type"] == kind)
    return key, node["inputs"]


def needed(workflow: Workflow) -> Workflow:
    """Only what Save Image hangs on."""
    waiting = [key for key, node in workflow.items() if node["class_type"] == "SaveImage"]
    kept: set[str] = set()
    while waiting:
        kept.add(key := waiting.pop())
        waiting += [
            value[0] for value in workflow[key]["inputs"].values() if isinstance(value, list) and value[0] not in kept
        ]
    return {key: node for key, node in workflow.items() if key in kept}


def in_turn(data: DemoData, edits: Sequence[str], most: int) -> Iterator[DemoPair]:
    """The first pair of each edit, then the second of each."""
    lists = [data.pairs_of(edit)[:most] for edit in edits]
    yield from (pairs[index] for index in range(most) for pairs in lists if index < len(pairs))


def run(settings: argparse.Namespace, pairs: Sequence[DemoPair], runner: Runner, store: Store) -> None:
    """Make every cell that is not there yet."""
    rows = [row for row in ORDER if row in settings.inversions]
    for row in rows:
        for count, pair in enumerate(pairs):
            alone = inversion_alone(row, settings.steps)
            wanted = [cell(row, engine, settings.steps) for engine in settings.engines]
            asks = [asked(method, pair, runner) for method in [alone, *filter(None, wanted)]]
            if all(store.get(key) for _, key in asks):
                continue
            # The inversion first, always: the host then has it, and no engine is charged for it.
            for number_, (workflow, key) in enumerate(asks):
                if number_ == 0 or store.get(key) is None:
                    outcome = runner.run(workflow)
                    if store.get(key) is None:
                        store.put(key, outcome)
            print(f"\r{row}: {count + 1} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)


Cell = dict[str, Tensor]


def collect(settings: argparse.Namespace, pairs: Sequence[DemoPair], store: Store, runner: Runner) -> dict:
    """(inversion, engine) -> the pair's place and figures ``[1]``, of what is there."""
    demo = load_demo_model()
    judged = [Judgement(demo, [pair]) for pair in pairs]
    found: dict[tuple[str, str], list[tuple[int, Cell]]] = {}
    for place, (judgement, pair) in enumerate(zip(judged, pairs, strict=True)):
        bounds = {row.name: dict(row.figures) for row in judgement.bounds()}
        for name in (NOTHING, NOTHING_DECODED):
            found.setdefault((name, ""), []).append((place, bounds[name]))
        for row in settings.inversions:
            start = store.get(asked(inversion_alone(row, settings.steps), pair, runner)[1])
            for engine in settings.engines:
                method = cell(row, engine, settings.steps)
                outcome = None if method is None else store.get(asked(method, pair, runner)[1])
                if start is None or outcome is None:
                    continue
                figures = judgement.measure(outcome.picture[None]) | {
                    f"u {kind}": torch.tensor([cost(start, kind) + cost(outcome, kind)])
                    for kind in ("forward", "backward")
                }
                found.setdefault((row, engine), []).append((place, figures))
    return in_common(found) if settings.common else found


def in_common(found: dict) -> dict:
    """The same of the pairs that every row has."""
    places = set.intersection(*({place for place, _ in parts} for parts in found.values()))
    kept = {key: [part for part in parts if part[0] in places] for key, parts in found.items()}
    return {key: parts for key, parts in kept.items() if parts}


def cost(outcome: Outcome, kind: str) -> float:
    """u of one kind."""
    return float(getattr(outcome, kind) or 0)


def line(inversion: str, engine: str, parts: Sequence[tuple[int, Cell]]) -> str:
    """A row of the table."""
    figures = {name: torch.cat([part[name] for _, part in parts]) for name in parts[0][1]}
    evaluations = ""
    if "u forward" in figures:
        forward, backward = (float(figures[f"u {kind}"].mean()) for kind in ("forward", "backward"))
        evaluations = f"{forward:.0f}" + (f" + {backward:.0f} backward" if backward else "")
    cells = [
        engine,
        inversion,
        share(figures["success"]),
        share(figures["kept"]),
        number(float(figures["psnr"].mean())),
        number(float(figures["psnr"].min())),
        number(float(figures["outside"].mean())),
        evaluations,
        str(len(parts)),
    ]
    return "| " + " | ".join(cells) + " |"


def table(found: dict, settings: argparse.Namespace) -> str:
    """Markdown, a block of rows for each engine, nothing done above."""
    lines = [
        "| engine | inversion | success | others kept | PSNR to true, dB | worst, dB | outside the edit, dB | u | n |",
        "|---" * 9 + "|",
    ]
    keys = [(NOTHING, ""), (NOTHING_DECODED, "")]
    keys += [(row, engine) for engine in settings.engines for row in settings.inversions]
    return "\n".join([*lines, *(line(*key, found[key]) for key in keys if key in found)])


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="semantic-editing bench engines_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--inversions", nargs="+", choices=list(INVERSIONS), default=list(INVERSIONS), metavar="NAME")
    parser.add_argument("--edits", nargs="+", default=list(EDITS))
    parser.add_argument("--pairs", type=int, default=2, help="of each edit")
    parser.add_argument("--steps", type=int, default=50, help="of the inversion (default 50, the node's)")
    parser.add_argument("--data", type=Path, default=FOLDER / "unseen", help="folder of pairs")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--comfyui", type=Path, help="the ComfyUI to use (default: the first that is found)")
    where.add_argument("--alone", action="store_true", help="use none: the same nodes over diffusers, in this process")
    parser.add_argument("--report", action="store_true", help="run nothing; print the table of what is there")
    parser.add_argument("--common", action="store_true", help="count only the pairs that every row has")
    parser.add_argument("--anew", action="store_true", help="forget what an earlier run into the same folder made")
    parser.add_argument("--out", type=Path, default=Path("bench_out/engines"))
    return parser.parse_args(arguments)


def measure(settings: argparse.Namespace) -> None:
    """Run, print the table, leave the pictures and results.json."""
    pairs = list(in_turn(DemoData(settings.data), settings.edits, settings.pairs))
    store = Store(settings.out, not settings.anew)
    host = None if settings.alone or settings.report else chosen_host(settings.comfyui)
    with running(host, KEEPING) as runner:
        if not settings.report:
            run(settings, pairs, runner, store)
        found = collect(settings, pairs, store, runner)
    print(f"\n{settings.steps} steps, up to {settings.pairs} pairs of each edit\n\n{table(found, settings)}\n")
    told = [
        {"inversion": row, "engine": engine, "edits": [pairs[place].edit for place, _ in parts]}
        | {name: [float(part[name]) for _, part in parts] for name in parts[0][1]}
        for (row, engine), parts in found.items()
    ]
    (settings.out / "results.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Run; 2 after a sentence on stderr."""
    try:
        measure(options())
    except EditingError as error:
        print(f"semantic-editing bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every technique at its shipped defaults, run over unseen pairs of the demo world as a person would run it.

    semantic-editing bench --demo                                # the tables of docs/measured.md
    semantic-editing bench --demo demo_word_edit --pairs 4       # one workflow, a quick look
    semantic-editing bench --demo demo_word_edit --edits "mouth: sad to smile"
    semantic-editing bench --demo demo_word_edit demo_word_edit@SemEdit_CrossAttnGuidedSampler.guidance=0

A method is a workflow (a name out of workflows/api or benchmarks/baselines, or an API file of your own that begins at
Load Demo Image) and, behind @ signs, widgets set otherwise; TRAINING+WORKFLOW runs the first once, before. A real
ComfyUI is started for it ($COMFYUI_PATH, the one this pack lies in, or ~/comfy/ComfyUI*), in which u is counted
whatever node samples. With --alone, or where no ComfyUI is found, the same nodes run without one (tools/demo_host.py
says what that cannot do). Each table holds the rows "nothing done" and "true picture through the VAE"; wall is the
median time of a picture as a multiple of the table's first method's. DeltaEdit's tables are of their own: at the
generator's size, beside its copy of the source and what the true picture's styles make of it. Judged by the demo's
second classifier; intervals are of 95 %. Pictures, the worst of each method and results.json are left in --out;
--resume goes on where a run ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from semantic_editing.core.demo.bench import (
    Judgement,
    Outcome,
    Row,
    Workflow,
    aimed_at,
    edit_of,
    table,
    with_settings,
)
from semantic_editing.core.demo.bench_drawn import DrawnJudgement, drawn_table
from semantic_editing.core.demo.data import FOLDER, DemoData, DemoPair
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.contact_sheet import contact_sheet, to_picture
from semantic_editing.core.images.files import read_picture, save_picture
from semantic_editing.tools.comfy_server import ROOT, ComfyServer, Host, PromptFailed, find_hosts

WORKFLOWS = (ROOT / "workflows" / "api", ROOT / "benchmarks" / "baselines")
#: Every box as large as the picture, or as what the map frames: no sizes to choose from.
LARGEST_BOX = (
    'demo_region_edit@SemEdit_RegionBoxGenerator.strategy=exact@SemEdit_RegionBoxGenerator.sizes="1"'
    "@SemEdit_RegionBoxGenerator.anchors=1"
)
#: What DeltaEdit's generator or diffusion model drew, before it is pasted into the photo.
DRAWN = 'demo_deltaedit_text@SaveImage.images=["6", 1]'
DRAWN_BY_DIFFUSION = 'demo_deltaedit_diffusion@SaveImage.images=["11", 0]'
#: What draws a face anew: a node that only its workflows have -> its copy of the source without an edit, and the edit
#: by the styles of the true edited picture in place of a text's.
BOUNDS = {
    "SemEdit_StyleDiffusionDecode": (
        f'{DRAWN_BY_DIFFUSION}@SemEdit_StyleDiffusionDecode.style_code=["3", 0]',
        "deltaedit_diffusion_true_styles",
    ),
    "SemEdit_InvertToStyleCode": ('demo_deltaedit_text@SaveImage.images=["3", 1]', "deltaedit_true_styles"),
}
DRAWN_TITLES = {
    "SemEdit_StyleDiffusionDecode": "DeltaEdit, style diffusion",
    "SemEdit_InvertToStyleCode": "DeltaEdit, StyleGAN2",
}
#: Every technique's workflow and, first, the baseline its table is read against.
METHODS = (
    "word_swap",
    "demo_word_edit",
    "demo_distil_edit",
    "demo_prompt_to_prompt",
    "demo_caso_edit",
    "demo_caso_train+demo_caso_edit@SemEdit_CASOEmbeddingLoader.embedding_file=demo_glasses.safetensors"
    "@SemEdit_CASOEditSampler.window=learned@SemEdit_CASOEditSampler.strength=5",
    "demo_region_mask_to_inpaint",
    LARGEST_BOX,
    "demo_region_edit",
    "demo_caso_multi",
    "demo_invert_reconstruct@SemEdit_SPDInvInversion.solver=ddim",
    "demo_invert_reconstruct",
    "demo_noise_regularised",
    "demo_deltaedit_text",
    DRAWN,
    "demo_deltaedit_images",
    "demo_deltaedit_diffusion",
    DRAWN_BY_DIFFUSION,
)
#: Edits that a workflow is measured on, where they are not the one that it ships with.
TEXT_EDITS = (
    "glasses: none to glasses",
    "facial hair: none to beard",
    "hair color: black to red",
    "background: blue to green",
    "mouth: sad to smile",
)
EDITS = {
    "demo_deltaedit_text": TEXT_EDITS,
    "demo_deltaedit_images": TEXT_EDITS,
    "demo_deltaedit_diffusion": ("hair color: black to red", "glasses: none to glasses"),
    "demo_distil_edit": ("glasses: none to glasses", "hair color: black to red"),
}
#: What a workflow asks for beside the edit of its pair.
ALSO = {"demo_caso_multi": {"facial_hair": "beard"}, "demo_several_edits": {"hair_color": "red"}}
REBUILT = "rebuilt portraits"
KEEPING = ("--cache-lru", "200")  # node results that a ComfyUI keeps, of one workflow after another
TIMEOUT = 1800  # seconds for one picture


@dataclass(frozen=True)
class Method:
    """A workflow and widgets set otherwise.

    Attributes:
        also: what it asks for beside the edit of its pair, attribute -> label.
        training: a workflow that is run once before the first picture.
        others: edits that it is measured on in place of its own.
    """

    name: str
    workflow: Workflow
    also: dict[str, str]
    training: Workflow | None = None
    others: tuple[str, ...] = ()

    @property
    def edit(self) -> str | None:
        """The edit it was made for; None rebuilds."""
        return edit_of(self.workflow)

    @property
    def edits(self) -> tuple[str | None, ...]:
        """The edits that it is measured on."""
        return self.others or (self.edit,)

    @property
    def drawn_by(self) -> str | None:
        """Of :data:`BOUNDS`; None edits the photo itself."""
        kinds = {node["class_type"] for node in self.workflow.values()}
        return next((kind for kind in BOUNDS if kind in kinds), None)


def method(text: str) -> Method:
    """``[TRAINING+]NAME[@CLASS.widget=value]...``; a value is JSON or else a text.

    Raises:
        EditingError: no such workflow, not in the API format, or no such widget.
    """
    start, *changes = text.split("@")
    training, _, name = start.rpartition("+")
    settings = {}
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise EditingError(f"{key!r} sets nothing; write CLASS.widget=value.")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    workflow = with_settings(workflow_called(name), settings)
    trained = workflow_called(training) if training else None
    return Method(text, workflow, ALSO.get(name, {}), trained, EDITS.get(name, ()))


def workflow_called(name: str) -> Workflow:
    """One of :data:`WORKFLOWS` by its name, or a file.

    Raises:
        EditingError: none, or not in the API format.
    """
    found = [path for folder in WORKFLOWS if (path := folder / f"{name}.json").is_file()] or [Path(name)]
    try:
        workflow: Workflow = json.loads(found[0].read_text(encoding="utf-8"))
        if not all("class_type" in node and "inputs" in node for node in workflow.values()):
            raise ValueError
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise EditingError(
            f"{name!r} is no workflow in the API format; use a file, or a name out of workflows/api such as "
            "demo_word_edit."
        ) from error
    return workflow


def as_rebuilding(pairs: Sequence[DemoPair]) -> list[DemoPair]:
    """The pairs' sources as pictures of their own."""
    return [
        replace(
            pair,
            target=pair.source,
            edit=REBUILT,
            target_caption=pair.source_caption,
            target_attributes=pair.source_attributes,
        )
        for pair in pairs
    ]


class Runner(ABC):
    """Runs workflows; ``base`` holds the input folder, ``mark`` tells what it made from what others make."""

    base: Path
    mark = ""

    def picture_file(self, picture: torch.Tensor) -> str:
        """The name in the input folder under which the picture ``[3, H, W]`` lies."""
        image = to_picture(picture)
        name = f"{hashlib.sha256(image.tobytes()).hexdigest()[:16]}.png"
        path = self.base / "input" / name
        if not path.is_file():  # written whole or not at all, under a name of its content
            save_picture(path, image)
        return name

    @abstractmethod
    def execute(self, workflow: Workflow) -> Any:
        """Run it, for what it leaves behind (as a training leaves a file).

        Raises:
            EditingError: it failed.
        """

    @abstractmethod
    def run(self, workflow: Workflow) -> Outcome:
        """The picture that its Save Image node wrote, and what it cost.

        Raises:
            EditingError: it failed, or saves no picture.
        """


def saved(workflow: Workflow, outputs: Mapping[str, Any]) -> Any:
    """What the workflow's first Save Image node has among ``outputs``.

    Raises:
        EditingError: none saved.
    """
    for key, node in workflow.items():
        if node["class_type"] == "SaveImage" and key in outputs:
            return outputs[key]
    raise EditingError("The workflow saves no picture; give it a Save Image node at the edited picture.")


class ComfyRunner(Runner):
    """A ComfyUI of the bench's own, with the pack and the probe in it."""

    def __init__(self, server: ComfyServer):
        self.server, self.base = server, server.base

    def counts(self) -> dict[str, int]:
        """u since the start."""
        return self.server.get("/semantic_editing_bench")

    def execute(self, workflow: Workflow) -> Any:
        """Queue it; its entry in the history."""
        try:
            return self.server.queue(workflow, TIMEOUT)
        except PromptFailed as error:
            raise EditingError(f"The workflow failed: {str(error).splitlines()[0]}") from error

    def run(self, workflow: Workflow) -> Outcome:
        """See :meth:`Runner.run`."""
        before = self.counts()
        entry = self.execute(workflow)
        after = self.counts()
        image = saved(workflow, entry["outputs"])["images"][0]
        path = self.base / "output" / image["subfolder"] / image["filename"]
        times = {kind: message["timestamp"] for kind, message in entry["status"]["messages"] if "timestamp" in message}
        return Outcome(
            read_picture(path)[0][0],
            after["forward"] - before["forward"],
            after["backward"] - before["backward"],
            (times["execution_success"] - times["execution_start"]) / 1000,
        )


class AloneRunner(Runner):
    """The pack's nodes over the demo model's diffusers backend, in this process, without a ComfyUI."""

    mark = "-alone"

    def __init__(self, base: Path):
        from semantic_editing.tools.demo_host import COUNTS, DemoHost  # not where a ComfyUI runs the nodes

        self.base, self.host, self.counts = base, DemoHost(base), COUNTS

    def execute(self, workflow: Workflow) -> Any:
        """Run it; the outputs of its nodes."""
        try:
            return self.host.run(workflow)
        except EditingError as error:
            raise EditingError(f"The workflow failed: {error}") from error

    def run(self, workflow: Workflow) -> Outcome:
        """See :meth:`Runner.run`."""
        before, start = dict(self.counts), time.perf_counter()
        outputs = self.execute(workflow)
        seconds = time.perf_counter() - start
        costs = (self.counts[kind] - before[kind] for kind in ("forward", "backward"))
        return Outcome(saved(workflow, outputs)[0][0].movedim(-1, 0), *costs, seconds)


@contextmanager
def running(host: Host | None, arguments: Sequence[str] = ()) -> Iterator[Runner]:
    """Start ``host``, with some more ``arguments``, on the CPU, or on its GPU where it finds one; None: do without."""
    with tempfile.TemporaryDirectory() as base:
        if host is None:
            torch.set_num_threads(1)  # as in a host that is started here: the models are tiny
            yield AloneRunner(Path(base))
            return
        probe = ROOT / "benchmarks" / "probe"
        with ComfyServer(host.path, host.python, host.environment, ROOT, base, probe, arguments) as server:
            yield ComfyRunner(server)


class Store:
    """Outcomes on disk, so that a run that ended early goes on."""

    def __init__(self, folder: Path, resume: bool):
        self.folder, self.listing = folder / "pictures", folder / "outcomes.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.listing.unlink(missing_ok=True)
        lines = self.listing.read_text(encoding="utf-8").splitlines() if self.listing.is_file() else []
        self.known = {entry["key"]: entry for entry in map(json.loads, lines)}

    def get(self, key: str) -> Outcome | None:
        """What was made for ``key``."""
        entry = self.known.get(key)
        if entry is None:
            return None
        picture = read_picture(self.folder / f"{key}.png")[0][0]
        return Outcome(picture, entry["forward"], entry["backward"], entry["seconds"])

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep it."""
        save_picture(self.folder / f"{key}.png", to_picture(outcome.picture), overwrite=True)
        entry = {
            "key": key,
            "forward": outcome.forward,
            "backward": outcome.backward,
            "seconds": outcome.seconds,
        }
        with self.listing.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        self.known[key] = entry


def outcomes(method: Method, pairs: Sequence[DemoPair], runner: Runner, store: Store) -> list[Outcome]:
    """One of each pair."""
    made, trained = [], method.training is None
    for number, pair in enumerate(pairs):
        workflow, key = asked(method, pair, runner)
        outcome = store.get(key)
        if outcome is None:
            if not trained:
                runner.execute(method.training)
                trained = True
            outcome = runner.run(workflow)
            store.put(key, outcome)
        made.append(outcome)
        print(f"\r{method.name}: {number + 1} of {len(pairs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return made


def asked(method: Method, pair: DemoPair, runner: Runner) -> tuple[Workflow, str]:
    """The workflow aimed at a pair, and what its outcome is stored under."""
    source, truth = runner.picture_file(pair.source), runner.picture_file(pair.target)
    workflow = aimed_at(method.workflow, pair, source, truth)
    told = json.dumps([method.training, workflow] if method.training else workflow, sort_keys=True)
    return workflow, hashlib.sha256(told.encode()).hexdigest()[:16] + runner.mark


def together(methods: Sequence[Method], pairs: Sequence[DemoPair], runner: Runner, store: Store) -> list[list[Outcome]]:
    """Outcomes of each method, made pair by pair: the methods after the first find the pair's inversion in a cache that
    keeps it, so that only the first one's time is a time."""
    made: list[list[Outcome]] = [[] for _ in methods]
    for number, pair in enumerate(pairs):
        for method, outcomes_of in zip(methods, made, strict=True):
            workflow, key = asked(method, pair, runner)
            outcome = store.get(key)
            if outcome is None:
                outcome = runner.run(workflow)
                store.put(key, outcome)
            outcomes_of.append(outcome)
        print(
            f"\r{pair.edit}, {len(methods)} methods: {number + 1} of {len(pairs)}", end="", file=sys.stderr, flush=True
        )
    print(file=sys.stderr)
    return made


def groups(
    methods: Sequence[Method], data: DemoData, edits: Sequence[str], most: int | None
) -> Iterator[tuple[str, dict[str, str], list[DemoPair], list[Method]]]:
    """``(title, also, pairs, methods)`` of each table: methods that do the same to the same pictures.

    The baselines have no edit of their own: they stand in the table of every edit. A workflow runs on the edit it was
    made for unless ``edits`` are given.

    Raises:
        EditingError: no such edit, or no pairs at all.
    """
    if not data.edits:
        raise EditingError(f"The folder {data.folder.name!r} holds no pairs; render some (tools/demo_world).")
    baselines = [m for m in methods if m.name.partition("@")[0] == "word_swap"]
    others = [m for m in methods if m not in baselines]
    tables: dict[tuple[str | None, tuple[tuple[str, str], ...], str | None], list[Method]] = {}
    for one in others or baselines:
        for edit in (None,) if one.edit is None else edits or one.edits:
            tables.setdefault((edit, tuple(sorted(one.also.items())), one.drawn_by), []).append(one)
    for (edit, wanted, drawn_by), alike in tables.items():
        also = dict(wanted)
        if edit is None:
            each = -(-most // len(data.edits)) if most else 2
            pairs = [pair for name in data.edits for pair in data.pairs_of(name)[:each]][:most]
            yield REBUILT, also, as_rebuilding(pairs), alike
            continue
        pairs = [
            pair
            for pair in data.pairs_of(edit)
            if all(pair.source_attributes[key] != label for key, label in also.items())
        ][:most]
        title = " and ".join([edit, *(f"{key.replace('_', ' ')}: {label}" for key, label in also.items())])
        if drawn_by is not None:
            yield f"{title} ({DRAWN_TITLES[drawn_by]})", also, pairs, alike
            continue
        yield title, also, pairs, alike if also or not others else [*baselines, *alike]


def save_worst(folder: Path, title: str, row: Row, pairs: Sequence[DemoPair], made: Sequence[Outcome]) -> None:
    """The picture farthest from the truth, between its source and the truth."""
    number = row.worst
    pair = pairs[number]
    cells = [(pair.source, "source"), (made[number].picture, f"{row.name}, picture {number}")]
    cells += [(pair.target, "truth")] if "psnr" in row.figures else []  # nobody drew what more labels ask for
    name = hashlib.sha256(f"{title} {row.name}".encode()).hexdigest()[:8]
    path = folder / "worst" / f"{Path(row.name.partition('@')[0]).stem}-{name}.png"
    save_picture(path, contact_sheet([(title, cells)], scale=2), overwrite=True)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="semantic-editing bench --demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="default: every technique and its baseline")
    parser.add_argument("--edits", nargs="+", default=[], help="run on these edits instead of the workflow's own")
    parser.add_argument("--pairs", type=int, help="at most so many pairs of each edit (default: all unseen ones)")
    parser.add_argument(
        "--data",
        type=Path,
        default=FOLDER / "unseen",
        help="folder of pairs, as tools/demo_world/fresh_pairs.py writes",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--comfyui", type=Path, help="the ComfyUI to use (default: the first that is found)")
    where.add_argument("--alone", action="store_true", help="use none: the same nodes over diffusers, in this process")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run into the same folder made")
    parser.add_argument("--out", type=Path, default=Path("bench_out/demo"))
    return parser.parse_args(arguments)


def chosen_host(path: Path | None) -> Host | None:
    """The ComfyUI to run; None where none is found and none was asked for.

    Raises:
        EditingError: ``path`` is none.
    """
    hosts = [host for host in find_hosts() if path is None or host.path == path.expanduser().resolve()]
    if path is not None and not hosts:
        raise EditingError(f"{path} is no ComfyUI; give the folder that holds its main.py.")
    if not hosts:
        print("No ComfyUI was found (COMFYUI_PATH says where); the nodes run without one.", file=sys.stderr)
        return None
    return hosts[0]


def bench(settings: argparse.Namespace) -> None:
    """Run, print the tables, leave the pictures."""
    methods = [method(text) for text in settings.methods]
    data = DemoData(settings.data)
    planned = list(groups(methods, data, settings.edits, settings.pairs))
    demo: DemoModel = load_demo_model()
    store = Store(settings.out, settings.resume)
    results = []
    host = None if settings.alone else chosen_host(settings.comfyui)
    for title, also, pairs, alike in planned:
        if alike[0].drawn_by is not None:
            rows, told = drawn(title, pairs, alike, host, store, demo, settings.out)
        else:
            judgement = Judgement(demo, pairs, also, rebuild=title == REBUILT)
            rows = judgement.bounds()
            for one in alike:
                with running(host) as runner:  # a fresh one each: what another method left in caches would look free
                    made = outcomes(one, pairs, runner, store)
                row = judgement.row(one.name, made)
                rows.append(row)
                save_worst(settings.out, title, row, pairs, made)
            told = table(rows, next(row for row in rows if row.seconds is not None))
        print(f"\n## {title}\n\n{told}\n", flush=True)
        results.append({"title": title, "rows": [as_json(row) for row in rows]})
        (settings.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"pictures, the worst of each method and results.json are in {settings.out}")


def drawn(
    title: str,
    pairs: Sequence[DemoPair],
    methods: Sequence[Method],
    host: Host | None,
    store: Store,
    demo: DemoModel,
    folder: Path,
) -> tuple[list[Row], str]:
    """Rows and table of methods that draw the face anew, with the copy and the true styles among them."""
    drawn_by = methods[0].drawn_by
    assert drawn_by is not None, "these are not methods that draw"
    every = [*methods, *map(method, BOUNDS[drawn_by])]
    with running(host, KEEPING) as runner:
        made = together(every, pairs, runner, store)
    judgement = DrawnJudgement(demo, pairs, torch.stack([outcome.picture for outcome in made[-2]]))
    times = torch.tensor([outcome.seconds for outcome in made[0]], dtype=torch.float64)
    rows = [judgement.nothing()]
    for one, outcomes_of in [*zip(every[-2:], made[-2:], strict=True), *zip(methods, made, strict=False)]:
        rows.append(judgement.row(one.name, outcomes_of, float(times.median()) if one is methods[0] else None))
        save_worst(folder, title, rows[-1], pairs, outcomes_of)
    return rows, drawn_table(rows, judgement.small)


def as_json(row: Row) -> dict[str, Any]:
    """A row with the figures of each picture; infinite ones, and those that do not count, as null."""
    figures = {
        name: [value if math.isfinite(value) else None for value in values.tolist()]
        for name, values in row.figures.items()
    }
    cost = {"forward": row.forward, "backward": row.backward, "seconds": row.seconds}
    return {"name": row.name, **cost, "worst": row.worst, "figures": figures}


def main() -> int:
    """Run; 2 after a sentence on stderr."""
    try:
        bench(options())
    except EditingError as error:
        print(f"semantic-editing bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""CASO from two folders, measured through the shipped workflows: no labels, no captions, no classifier.

For each attribute and set of pictures, ``demo_caso_train`` runs in a ComfyUI with two folders of bundled pictures (each
exactly one class, look-alikes in neither, never both pictures of a pair), and then ``demo_caso_edit`` with what it
learned and the settings that its report names, on unseen pairs. Rows beside it: nothing done, the shipped embedding
(taught by a classifier of ten attributes), each worst case, n. What the training reported stands above. With --away the
pairs are turned round and it is taken away: by what was learned, at a negative strength; by what the same folders teach
the other way round; and by the second against the first. What is done stays in --out, so that a run that was stopped,
or one with more sets, goes on from there.

With --look the pictures that a training held out are edited instead, as a person would, and the second classifier's
share stands beside the reported one.

    python benchmarks/caso_folders.py                                      # the tables of docs/measured.md
    python benchmarks/caso_folders.py --away --attributes beard "red hair" --sets 0
    python benchmarks/caso_folders.py --attributes glasses --pairs 8       # a quick look
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from caso_bench import undone
from demo import Method, Runner, Store, chosen_host, outcomes, running, save_worst, workflow_called

from semantic_editing.core.caso.editing import EditSettings
from semantic_editing.core.caso.settings import KINDS
from semantic_editing.core.demo.bench import Judgement, Workflow, table, with_settings
from semantic_editing.core.demo.caso_recipes import RECIPES
from semantic_editing.core.demo.data import FOLDER, SORTED, DemoData
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.image import success

TRAINER, SAMPLER = "SemEdit_CASOEmbeddingTrainer", "SemEdit_CASOEditSampler"
EMBEDDING = "SemEdit_CASOEmbeddingLoader.embedding_file"
HELD_OUT = 16  # pictures, the trainer's default


@dataclass(frozen=True)
class Away:
    """Edits that take something away.

    Attributes:
        start, focus: where they begin, and of what share of the latent.
        negative: strengths of what was learned.
        reverse: of what the folders teach the other way round.
        against: of that, against what was learned.
    """

    start: float
    focus: float
    negative: tuple[float, ...]
    reverse: tuple[float, ...]
    against: tuple[float, ...]


@dataclass(frozen=True)
class Attribute:
    """What is learned.

    Attributes:
        what: one of :data:`SORTED`.
        edit: whose unseen pairs are edited.
        kind, start_words: of the trainer.
        pictures: in each folder; there are 66 with red hair.
        away: how edits take it away.
    """

    what: str
    edit: str
    kind: str
    start_words: str
    pictures: int = 75
    away: Away | None = None


BEARD_OFF, RED_OFF = (
    Away(0.85, 0.05, (-4.0,), (1.0, 2.0), (0.75, 1.0, 1.5)),
    Away(0.7, 0.1, (-2.0,), (1.0, 2.0), (0.75, 1.0)),
)
ATTRIBUTES = {
    "glasses": Attribute("glasses", "glasses: none to glasses", "large", "face"),
    "smile": Attribute("a smile", "mouth: sad to smile", "fine", "face"),
    "beard": Attribute("a beard", "facial hair: none to beard", "large", "face", 75, BEARD_OFF),
    "red hair": Attribute("red hair", "hair color: black to red", "colour", "hair", 60, RED_OFF),
}


def training(attribute: Attribute, number: int, name: str, turned: bool) -> Workflow:
    """``demo_caso_train`` with two folders that begin at picture ``number``, the other way round where ``turned``."""
    workflow = workflow_called("demo_caso_train")
    trainer = next(node for node in workflow.values() if node["class_type"] == TRAINER)
    words = ("without", "with") if turned else ("with", "without")
    for side, word in zip(("having", "without"), words, strict=True):
        loader = workflow[trainer["inputs"][side][0]]
        own = {"pictures": f"{word} {attribute.what}", "number": number, "count": attribute.pictures}
        loader["inputs"].update(own)
    own = {"kind": attribute.kind, "start_words": attribute.start_words, "filename": name}
    trainer["inputs"].update(own)
    return workflow


def edit(embedding: str, against: str = "", **settings: Any) -> Workflow:
    """``demo_caso_edit`` with another embedding and the sampler's own defaults, but for ``settings``; ``against`` is a
    second embedding."""
    own = {"strength": EditSettings.strength, "window": "learned", "interpolate": 0, **settings}
    changes = {f"{SAMPLER}.{key}": value for key, value in own.items()}
    workflow = with_settings(workflow_called("demo_caso_edit"), {EMBEDDING: embedding, **changes})
    if against:
        loader, sampler = (
            next(node for node in workflow.values() if node["class_type"] == kind)
            for kind in (EMBEDDING.partition(".")[0], SAMPLER)
        )
        workflow["against"] = {**loader, "inputs": {**loader["inputs"], "embedding_file": against}}
        sampler["inputs"]["against"] = ["against", 0]
    return workflow


def learned(attribute: Attribute, number: int, runner: Runner, folder: Path, turned: bool = False) -> str:
    """The file of a training, whose report is printed; one that ``folder`` has is not done again."""
    asked = training(attribute, number, "", turned)
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    name = f"folders_{attribute.what.replace(' ', '_')}_{number}_{mark}"
    kept, report = folder / f"{name}.safetensors", folder / f"{name}.txt"
    place = runner.base / "models" / "embeddings" / kept.name
    if not report.exists():
        asked = training(attribute, number, name, turned)
        outputs = runner.execute(asked)["outputs"]
        shown = next(outputs[key]["text"][0] for key, node in asked.items() if node["class_type"] == TRAINER)
        shutil.copyfile(place, kept)
        report.write_text(shown, encoding="utf-8")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, place)
    print(f"{'no ' * turned}{attribute.what}, set {number}:\n{report.read_text(encoding='utf-8')}\n", flush=True)
    return kept.name


def edits(name: str, runner: Runner, options: argparse.Namespace) -> list[Method]:
    """Every row of an attribute's table: the shipped embedding's, and those of each set of pictures."""
    attribute, recipe = ATTRIBUTES[name], RECIPES[name]
    kind, away = KINDS[attribute.kind], attribute.away if options.away else None
    start, strength = away.start if away else recipe.start, recipe.strength
    # The bench turns a bundled embedding round itself where the pair's edit takes it away.
    shipped = edit(f"demo: {name}", window="custom", start=start, focus=recipe.focus, strength=strength)
    found = [Method(f"the shipped embedding, strength {-strength if away else strength:g}", shipped, {})]
    few = f" of {options.count}" if options.count else ""
    for number in options.sets:
        file = learned(attribute, number, runner, options.out)
        if away is None:
            for strength in (kind.strength, *options.strengths):
                workflow = edit(file, strength=strength * EditSettings.strength / kind.strength)
                found.append(Method(f"two folders{few}, set {number}, strength {strength:g}", workflow, {}))
            continue
        other = learned(attribute, number, runner, options.out, turned=True)
        ways = [("it", file, "", strength) for strength in away.negative]
        ways += [("the other way round", other, "", strength) for strength in away.reverse]
        ways += [("that against it", other, file, strength) for strength in away.against]
        for way, used, against, strength in ways:
            own = {"window": "custom", "start": away.start, "focus": away.focus}
            workflow = edit(used, against, strength=strength * EditSettings.strength / kind.strength, **own)
            found.append(Method(f"{way}, set {number}, strength {strength:g}", workflow, {}))
    return found


def looked(name: str, options: argparse.Namespace, store: Store, demo: Any) -> None:
    """What trainings reported of the held-out pictures, and what the second classifier sees in edits of them."""
    attribute = ATTRIBUTES[name]
    asked, label, _ = SORTED[attribute.what]
    like, groups = DemoData(options.data).pairs_of(attribute.edit)[0], DemoData().sorted_by(attribute.what)[1]
    with running(chosen_host(options.comfyui)) as runner:
        for number in options.sets:
            file = learned(attribute, number, runner, options.out)
            report = (options.out / file).with_suffix(".txt").read_text(encoding="utf-8")
            told = re.search(r"success (\d+)% .* at strength", report)
            shown = [groups[(number + place) % len(groups)] for place in range(HELD_OUT)]
            pairs = [
                replace(like, source=picture, target=picture, source_caption=text, target_caption=text)
                for picture, text in shown
            ]
            made = outcomes(Method(f"{name}, set {number}, held out", edit(file), {}), pairs, runner, store)
            seen = demo.judge.labels(torch.stack([outcome.picture for outcome in made]))
            true = 100 * float(success(seen, {asked: label}).mean())
            said = told[1] if told else "-"
            print(f"{name}, set {number}: reported {said} %, seen by the second classifier {true:.0f} %", flush=True)


def measured(name: str, options: argparse.Namespace, store: Store, demo: Any) -> None:
    """Train, edit and print the table of one attribute.

    Raises:
        EditingError: no ComfyUI, or nobody says how it is taken away.
    """
    attribute = ATTRIBUTES[name]
    if options.away and attribute.away is None:
        raise EditingError(f"How {name} is taken away is not settled; leave --away out.")
    host = chosen_host(options.comfyui)
    if host is None:
        raise EditingError("Trainings are measured in a ComfyUI; set COMFYUI_PATH or give --comfyui.")
    pairs = DemoData(options.data).pairs_of(attribute.edit)[: options.pairs]
    pairs = [undone(pair) for pair in pairs] if options.away else pairs
    judgement = Judgement(demo, pairs)
    rows = judgement.bounds()
    with running(host) as runner:
        for method in edits(name, runner, options):
            made = outcomes(method, pairs, runner, store)
            rows.append(judgement.row(method.name, made))
            if options.away:
                seen = demo.judge.labels(torch.stack([outcome.picture for outcome in made]))
                gone = 1 - float(success(seen, {pairs[0].attribute: pairs[0].before}).mean())
                print(f"{method.name}: no longer seen in {gone:.1%}", flush=True)
            save_worst(options.out, f"{name}, {method.name}", rows[-1], pairs, made)
    what = f"{name} taken away" if options.away else name
    size = f"{attribute.pictures} + {attribute.pictures}"
    print(f"\n## {what}, kind {attribute.kind}, {size} pictures\n\n{table(rows)}\n", flush=True)


def main() -> None:
    """Parse arguments, measure each attribute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attributes", nargs="+", choices=list(ATTRIBUTES), default=list(ATTRIBUTES))
    parser.add_argument("--sets", type=int, nargs="+", default=[0, 25, 50], help="first picture of each set")
    parser.add_argument("--count", type=int, help="pictures of each kind (default: 75, 60 of red hair)")
    parser.add_argument("--pairs", type=int, default=40, help="unseen pairs that are edited")
    parser.add_argument("--look", action="store_true", help="compare what the trainings reported with the truth")
    parser.add_argument("--away", action="store_true", help="take it away")
    parser.add_argument("--strengths", type=float, nargs="*", default=[], help="besides the kind's")
    parser.add_argument("--data", type=Path, default=FOLDER / "unseen", help="a folder of pairs")
    parser.add_argument("--comfyui", type=Path, help="the ComfyUI to use (default: the first that is found)")
    parser.add_argument("--out", type=Path, default=Path("bench_out/caso_folders"), help="where all of it is kept")
    options = parser.parse_args()
    store, demo = Store(options.out, resume=True), load_demo_model()
    for name in options.attributes:
        if options.count:
            ATTRIBUTES[name] = replace(ATTRIBUTES[name], pictures=options.count)
        (looked if options.look else measured)(name, options, store, demo)


if __name__ == "__main__":
    main()

"""CASO from two folders, measured through the shipped workflows: no labels, no captions, no classifier.

For each attribute and set of pictures, ``demo_caso_train`` runs in a ComfyUI with two folders of bundled pictures (each
exactly one class, look-alikes in neither, never both pictures of a pair), and then ``demo_caso_edit`` with what it
learned and the settings that its report names, on unseen pairs. Rows beside it: nothing done, the shipped embedding
(taught by a classifier of ten attributes), each worst case, n. What the training reported stands below. What is done
stays in --out, so that a run that was stopped, or one with more sets, goes on from there.

    python benchmarks/caso_folders.py                                  # the table of docs/measured.md
    python benchmarks/caso_folders.py --attributes glasses --pairs 8   # a quick look
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import Method, Runner, Store, chosen_host, outcomes, running, save_worst, workflow_called

from semantic_editing.core.caso.settings import KINDS, Kind
from semantic_editing.core.demo.bench import Judgement, Workflow, table, with_settings
from semantic_editing.core.demo.caso_recipes import RECIPES, DemoRecipe
from semantic_editing.core.demo.data import FOLDER, SORTED, DemoData
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError

TRAINER, SAMPLER = "SemEdit_CASOEmbeddingTrainer", "SemEdit_CASOEditSampler"
EMBEDDING = "SemEdit_CASOEmbeddingLoader.embedding_file"


@dataclass(frozen=True)
class Attribute:
    """What is learned.

    Attributes:
        what: one of :data:`SORTED`.
        edit: whose unseen pairs are edited.
        kind, start_words: of the trainer.
        pictures: in each folder; there are 66 with red hair.
    """

    what: str
    edit: str
    kind: str
    start_words: str
    pictures: int = 75


ATTRIBUTES = {
    "glasses": Attribute("glasses", "glasses: none to glasses", "large", "face"),
    "smile": Attribute("a smile", "mouth: sad to smile", "fine", "face"),
    "beard": Attribute("a beard", "facial hair: none to beard", "large", "face"),
    "red hair": Attribute("red hair", "hair color: black to red", "colour", "hair", 60),
}


def training(attribute: Attribute, number: int, name: str) -> Workflow:
    """``demo_caso_train`` with two folders that begin at picture ``number``, and a file ``name``."""
    workflow = workflow_called("demo_caso_train")
    trainer = next(node for node in workflow.values() if node["class_type"] == TRAINER)
    for side, word in (("having", "with"), ("without", "without")):
        loader = workflow[trainer["inputs"][side][0]]
        own = {"pictures": f"{word} {attribute.what}", "number": number, "count": attribute.pictures}
        loader["inputs"].update(own)
    own = {"targets": SORTED[attribute.what][1], "kind": attribute.kind, "start_words": attribute.start_words}
    trainer["inputs"].update(own | {"filename": name})
    return workflow


def edit(embedding: str, settings: Kind | DemoRecipe, strength: float) -> Workflow:
    """``demo_caso_edit`` with another embedding and what is set for its kind."""
    own = {"window": "custom", "start": settings.start, "focus": settings.focus, "strength": strength, "interpolate": 0}
    changes = {f"{SAMPLER}.{key}": value for key, value in own.items()}
    return with_settings(workflow_called("demo_caso_edit"), {EMBEDDING: embedding, **changes})


def learned(attribute: Attribute, number: int, runner: Runner, folder: Path) -> tuple[str, str]:
    """``(file, report)`` of a training; one that ``folder`` has is not done again."""
    asked = training(attribute, number, "")
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    name = f"folders_{attribute.what.replace(' ', '_')}_{number}_{mark}"
    kept, report = folder / f"{name}.safetensors", folder / f"{name}.txt"
    place = runner.base / "models" / "embeddings" / kept.name
    if not report.exists():
        asked = training(attribute, number, name)
        outputs = runner.execute(asked)["outputs"]
        shown = next(outputs[key]["text"][0] for key, node in asked.items() if node["class_type"] == TRAINER)
        shutil.copyfile(place, kept)
        report.write_text(shown, encoding="utf-8")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, place)
    return kept.name, report.read_text(encoding="utf-8")


def measured(name: str, options: argparse.Namespace, store: Store, demo: Any) -> None:
    """Train, edit and print the table of one attribute."""
    attribute, recipe = ATTRIBUTES[name], RECIPES[name]
    kind = KINDS[attribute.kind]
    pairs = DemoData(options.data).pairs_of(attribute.edit)[: options.pairs]
    judgement = Judgement(demo, pairs)
    rows, told = judgement.bounds(), []
    host = chosen_host(options.comfyui)
    if host is None:
        raise EditingError("Trainings are measured in a ComfyUI; set COMFYUI_PATH or give --comfyui.")
    with running(host) as runner:
        shipped = edit(f"demo: {name.replace(' ', '_')}", recipe, recipe.strength)
        methods = [Method(f"the shipped embedding, strength {recipe.strength:g}", shipped, {})]
        for number in options.sets:
            file, report = learned(attribute, number, runner, options.out)
            told.append(f"set {number}:\n{report}")
            print(f"{name}, {told[-1]}\n", flush=True)
            for strength in (kind.strength, *options.strengths):
                title = f"two folders, set {number}, strength {strength:g}"
                methods.append(Method(title, edit(file, kind, strength), {}))
        for method in methods:
            made = outcomes(method, pairs, runner, store)
            rows.append(judgement.row(method.name, made))
            save_worst(options.out, f"{name}, {method.name}", rows[-1], pairs, made)
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(
        f"\n## {name}, kind {attribute.kind}, {attribute.pictures} + {attribute.pictures} pictures\n\n{table(rows)}\n"
    )


def main() -> None:
    """Parse arguments, measure each attribute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attributes", nargs="+", choices=list(ATTRIBUTES), default=list(ATTRIBUTES))
    parser.add_argument("--sets", type=int, nargs="+", default=[0, 25, 50], help="first picture of each set")
    parser.add_argument("--pairs", type=int, default=40, help="unseen pairs that are edited")
    parser.add_argument("--strengths", type=float, nargs="*", default=[], help="besides the kind's")
    parser.add_argument("--data", type=Path, default=FOLDER / "unseen", help="a folder of pairs")
    parser.add_argument("--comfyui", type=Path, help="the ComfyUI to use (default: the first that is found)")
    parser.add_argument("--out", type=Path, default=Path("bench_out/caso_folders"), help="where all of it is kept")
    options = parser.parse_args()
    store, demo = Store(options.out, resume=True), load_demo_model()
    for name in options.attributes:
        measured(name, options, store, demo)


if __name__ == "__main__":
    main()

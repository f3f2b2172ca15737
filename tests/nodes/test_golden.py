"""Every workflow that was ever shipped must load forever: widgets are saved by position, links by slot.

``tests/golden/<version>/`` holds copies of what a version shipped (``tools/make_workflows.py --freeze``); they are
never made anew. A node may get new widgets after those it has, new optional sockets and new outputs at the end.
"""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SNAPSHOT = json.loads((HERE / "snapshot.json").read_text("utf-8"))
GOLDEN = sorted((HERE.parent / "golden").rglob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def all_nodes(workflow):
    """The nodes of a workflow, those of its closed parts among them."""
    closed = workflow.get("definitions", {}).get("subgraphs", [])
    return [node for part in [workflow, *closed] for node in part["nodes"]]


def complaints(node):
    """What of a saved node the present one would misread; an empty list when it loads as it was."""
    if node["type"] not in SNAPSHOT:
        return [f"{node['type']} is gone"]
    now = SNAPSHOT[node["type"]]
    kinds = {name: kind for name, kind, _, _ in now["inputs"]}
    saved = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    widgets = [name for name, kind, _, _ in now["inputs"] if kind in WIDGETS]
    found = []
    if widgets[: len(saved)] != saved:
        found.append(f"{node['type']}: its widgets were {saved} and are {widgets}")
    for slot in node["inputs"]:
        kind = kinds.get(slot["name"])
        if kind is None or ("widget" not in slot and not set(kind.split(",")) & {*slot["type"].split(","), "*"}):
            found.append(f"{node['type']}: its input {slot['name']} of type {slot['type']} is now {kind}")
    names = {slot["name"] for slot in node["inputs"]}
    needed = [name for name, kind, optional, _ in now["inputs"] if not optional and kind not in WIDGETS]
    found += [f"{node['type']}: the new input {name} must be optional" for name in needed if name not in names]
    outputs = [(slot["name"], slot["type"]) for slot in node["outputs"]]
    if [tuple(output) for output in now["outputs"][: len(outputs)]] != outputs:
        found.append(f"{node['type']}: its outputs were {outputs} and are {now['outputs']}")
    values = [value for value in node["widgets_values"] if value not in ("fixed", "image")]
    for name, kind, _, options in now["inputs"]:
        choices = options.get("options")
        if kind == "COMBO" and choices and name in saved and not set(values) & set(choices):
            found.append(f"{node['type']}: {name} no longer has the choice that was saved")
    return found


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_it_loads_as_it_was(path):
    ours = [node for node in all_nodes(json.loads(path.read_text("utf-8"))) if node["type"].startswith("SemEdit_")]
    assert ours
    assert [text for node in ours for text in complaints(node)] == []


def test_there_is_a_copy_of_every_workflow_of_this_version():
    shipped = {path.stem for folder in ("workflows", "subgraphs") for path in (HERE.parents[1] / folder).glob("*.json")}
    assert shipped <= {path.stem for path in GOLDEN}, "python tools/make_workflows.py --freeze"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda node: node["inputs"].insert(0, {"name": "new", "type": "INT", "widget": {"name": "new"}}), "widgets"),
        (lambda node: node["inputs"].pop(0), "must be optional"),
        (lambda node: node["outputs"].reverse(), "outputs"),
        (lambda node: node.update(type="SemEdit_NoSuchNode"), "gone"),
        (lambda node: node.update(widgets_values=[]), "choice"),
    ],
)
def test_a_spoiled_copy_is_seen(spoil, told):
    """What the test above looks for is there when it should be."""
    (path,) = [path for path in GOLDEN if path.stem == "demo_word_edit"][:1]
    nodes = all_nodes(json.loads(path.read_text("utf-8")))
    (node,) = [node for node in nodes if node["type"] == "SemEdit_SPDInvInversion"]
    assert complaints(node) == []
    spoil(node)
    assert any(told in text for text in complaints(node))

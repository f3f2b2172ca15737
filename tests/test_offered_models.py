"""Files that a shipped workflow needs and that can be offered: the host's dialog for missing models compares the name
with the widget's value, and downloads into a folder of its own."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(path for folder in ("workflows", "subgraphs") for path in (ROOT / folder).glob("*.json"))
#: Loader's type -> the host's folder for what it offers. All these are on Hugging Face.
LOADERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "SemEdit_LoadCLIPScorer": "clip_vision",
    "SemEdit_LoadVisionFeatures": "clip_vision",
}
BUNDLED = "demo model"


def loaders(path):
    """All nodes of a workflow that load such a model, those in its subgraphs too."""
    graph = json.loads(path.read_text("utf-8"))
    inner = graph.get("definitions", {}).get("subgraphs", [])
    return [node for part in (graph, *inner) for node in part["nodes"] if node["type"] in LOADERS]


def test_workflows_with_such_loaders_are_found():
    types = [node["type"] for path in WORKFLOWS for node in loaders(path) if node["widgets_values"][0] != BUNDLED]
    assert types.count("SemEdit_LoadCLIPScorer") == 2 and types.count("CheckpointLoaderSimple") >= 5


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_loader_needs_is_offered_under_its_name(path):
    for node in loaders(path):
        chosen, offered = node["widgets_values"][0], node["properties"].get("models", [])
        if chosen == BUNDLED:
            assert not offered
            continue
        ((name, url, directory),) = [(file["name"], file["url"], file["directory"]) for file in offered]
        assert name == chosen and directory == LOADERS[node["type"]]
        address, _, query = url.partition("?")
        assert address.startswith("https://huggingface.co/") and "/resolve/" in address and query == "download=true"
        assert Path(address).suffix == Path(name).suffix

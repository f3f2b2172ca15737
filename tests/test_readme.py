"""What README.md says of nodes, workflows and files is so."""

import json
import re
from pathlib import Path

import pytest

from semantic_editing.tools import host_stand_in

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
NAMES = [node.define_schema().display_name for node in host_stand_in.load_pack().load_nodes()]
WORKFLOWS = {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "workflows" / "api").glob("*.json")}


def section(title):
    """The text under a heading."""
    return re.split(r"^##+ ", README.split(f"# {title}\n")[1], flags=re.M)[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_node_has_its_row(name):
    assert f"\n| **{name}** |" in section("Nodes")


def test_no_row_of_a_node_that_does_not_exist():
    assert set(re.findall(r"^\| \*\*(.+?)\*\* \|", section("Nodes"), re.M)) == set(NAMES)


def test_workflows_that_are_named_exist():
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", section("Workflows"), re.M)))
    assert named and set(named) <= set(WORKFLOWS)


@pytest.mark.parametrize(
    "loader,choice,folder",
    [
        ("CheckpointLoaderSimple", "ckpt_name", "checkpoints"),
        ("SemEdit_LoadCLIPScorer", "clip_model", "clip_vision"),
    ],
)
def test_models_of_the_workflows_are_in_the_download_table(loader, choice, folder):
    table = section("Models for the other workflows")
    wanted = {
        (stem, node["inputs"][choice])
        for stem, prompt in WORKFLOWS.items()
        for node in prompt.values()
        if node["class_type"] == loader and f"`{stem}`" in README
    }
    wanted = {(stem, name) for stem, name in wanted if name != "demo model"}
    assert wanted
    for stem, name in wanted:
        assert re.search(rf"`{stem}`.*`{re.escape(name)}` \| `models/{folder}/`", table)

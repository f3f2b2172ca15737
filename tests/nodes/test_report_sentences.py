"""Every report begins with one plain sentence for people, which is also written on the node; figures come after it.

What a node says at run time is checked wherever a test runs one: see ``conftest.py`` here and of the tests in the host.
"""

import ast
from pathlib import Path

import pytest

from semantic_editing.tools import host_stand_in

ROOT = Path(__file__).parents[2]
NODES = {node.define_schema().node_id: node for node in host_stand_in.load_pack().load_nodes()}
#: Before a test refuses what is none.
IS_SENTENCE = host_stand_in.module("nodes.common.reports").is_sentence
#: Functions whose result is a report that begins with a sentence; each has tests of its own.
REPORTERS = {"report_text", "inversion_report"}


def calls(tree, name):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


def begins_with_a_report(value):
    """Whether an expression is a report, or one with more after it."""
    if isinstance(value, ast.BinOp):
        return begins_with_a_report(value.left)
    return isinstance(value, ast.Call) and getattr(value.func, "id", "") in REPORTERS


def complaints(source):
    """What of a module is shown on a node without having been made by :data:`REPORTERS`, as lines of source."""
    tree = ast.parse(source)
    # ``of a run``: what a function that runs inside the sampler hands out is a report as well
    made = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and begins_with_a_report(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    inner = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
        for part in node.value.elts
        if begins_with_a_report(part)
        or (isinstance(part, (ast.Call, ast.BinOp)) and "terms.report" in ast.unparse(part))
    }
    found = []
    for call in calls(tree, "shown"):
        given = call.args[0]
        named = isinstance(given, ast.Name) and (given.id in made or inner)
        if not (named or begins_with_a_report(given)):
            found.append(ast.unparse(call))
    return found


MODULES = sorted(path for path in (ROOT / "nodes").rglob("*.py") if path.parent.name != "common")
SHOWING = [path for path in MODULES if calls(ast.parse(path.read_text("utf-8")), "shown")]


@pytest.mark.parametrize("path", SHOWING, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_what_a_node_shows_is_a_sentence_and_then_figures(path):
    assert complaints(path.read_text("utf-8")) == []


def test_every_node_with_a_report_shows_it():
    reporting = {
        node.__module__.rpartition("nodes.")[2].replace(".", "/")
        for node in NODES.values()
        if any(slot.id == "report" for slot in node.define_schema().outputs)
    }
    shared = {"inversion/spdinv", "pix2pix_zero/autocorr"}  # by common/inverting.py
    shows = {f"{path.parent.name}/{path.stem}" for path in SHOWING}
    assert reporting - shared <= shows and len(reporting) > 25


@pytest.mark.parametrize(
    "source",
    ["io.NodeOutput(ui=shown('3 images'))", "told = 'a'\nio.NodeOutput(ui=shown(told))", "shown(f'{saved.line}')"],
)
def test_a_report_without_a_sentence_is_seen(source):
    assert complaints(source)


def test_what_begins_a_report_is_told_from_figures():
    for text in ("8 % of the picture changed.", "It reads: 'a cat'.", "It is right about 90% of the pictures."):
        assert IS_SENTENCE(text), text
    for text in ("1 image(s), 50 steps", "saved a.safetensors", "", "network evaluations: 200", "a", "glasses +5"):
        assert not IS_SENTENCE(text), text

"""The pack in the host's real page: it loads without complaint, every template opens whole, one runs to a picture."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
QUICK = "demo_noise_regularised"
pytestmark = pytest.mark.browser

#: Loads a graph and says which of its nodes the page does not know.
LOAD = """async graph => {
    await app.loadGraphData(graph);
    return app.graph._nodes.filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type);
}"""
#: Whether every preview of the graph shows its picture.
SHOWN = """() => {
    const previews = app.graph._nodes.filter(node => node.type === "PreviewImage");
    const drawn = node => node.imgs?.length && node.imgs.every(image => image.naturalWidth);
    return previews.length > 0 && previews.every(drawn);
}"""


def says_missing(page):
    """Whether the page says anywhere that nodes are missing."""
    page.wait_for_timeout(500)
    return page.evaluate("/nodes? (are |is )?missing|missing node/i.test(document.body.innerText)")


def test_the_page_and_the_pack_load_without_a_complaint(page, server, tmp_path):
    page.screenshot(path=str(tmp_path / "page.png"))
    names = page.evaluate("Object.keys(LiteGraph.registered_node_types).filter(name => name.startsWith('SemEdit_'))")
    assert set(names) == {name for name in server.object_info() if name.startswith("SemEdit_")} and len(names) > 20
    assert page.console.complaints == []


def test_every_template_is_offered_and_opens_without_missing_nodes(page, server):
    assert set(server.get("/workflow_templates")[server.pack_name]) == {path.stem for path in TEMPLATES}
    for template in TEMPLATES:
        graph = server.get(f"/api/workflow_templates/{server.pack_name}/{template.name}")
        assert page.evaluate(LOAD, graph) == [], template.stem
        assert page.evaluate("app.graph._nodes.length") == len(graph["nodes"]) > 3, template.stem
        assert not says_missing(page), template.stem
        assert page.console.complaints == [], template.stem


def test_an_unknown_node_is_found(page):
    """What the test above looks for is there when it should be."""
    graph = json.loads(TEMPLATES[0].read_text("utf-8"))
    graph["nodes"][0]["type"] = "SemEdit_NoSuchNode"
    assert page.evaluate(LOAD, graph) == ["SemEdit_NoSuchNode"]
    assert says_missing(page)


def test_a_template_runs_to_a_picture(page, server, tmp_path):
    page.evaluate(LOAD, json.loads((ROOT / "workflows" / f"{QUICK}.json").read_text("utf-8")))
    assert not page.evaluate(SHOWN)
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(SHOWN, timeout=240_000)
    (prompt,) = server.running() or list(server.get("/history"))[-1:]
    assert server.wait(prompt)["status"]["status_str"] == "success"
    page.screenshot(path=str(tmp_path / "done.png"))
    assert page.console.complaints == []

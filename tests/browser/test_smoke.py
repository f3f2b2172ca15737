"""The pack in the host's real page: it loads without complaint, every template opens whole and readable, what is
dropped on it opens, templates, Apps and blueprints run to a picture, errors say their sentence, Cancel stops."""

import base64
import json
import sys
import time
from pathlib import Path

import pytest

from semantic_editing.tools.gallery import GALLERY, template_name

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
QUICK, FACE, LONG = "demo_noise_regularised", "demo_deltaedit_text", "demo_word_edit"
#: Apps that are run, each with a label of its form.
APPS = {"05 Face, Edit by Text - demo": "what you want", "07 Edit by Words, Place Found - demo": "into"}
BLUEPRINT = "Face, Edit by Text"
#: Hosts from here on know Apps and blueprints.
KNOWS_APPS = (0, 20)
pytestmark = pytest.mark.browser

#: Loads a graph and says which of its nodes, also of its closed parts, the page does not know.
LOAD = """async graph => {
    await app.loadGraphData(graph);
    const closed = (graph.definitions?.subgraphs ?? []);
    const inside = closed.flatMap(part => part.nodes).map(node => node.type);
    const known = type => type in LiteGraph.registered_node_types || closed.some(part => part.id === type);
    return [...app.graph._nodes.map(node => node.type), ...inside].filter(type => !known(type));
}"""
#: Whether every preview of the graph shows its picture.
SHOWN = """() => {
    const previews = app.graph._nodes.filter(node => node.type === "PreviewImage");
    const drawn = node => node.imgs?.length && node.imgs.every(image => image.naturalWidth);
    return previews.length > 0 && previews.every(drawn);
}"""
#: [left, top, right, bottom, title] of every node as the page draws it; folded ones take only their title.
PLACES = """() => app.graph._nodes.map(node => {
    const [left, top] = node.pos, folded = node.flags?.collapsed;
    const [width, height] = folded ? [node._collapsed_width ?? 80, 0] : node.size;
    return [left, top - 30, left + width, top + height, node.title];
})"""
#: Drops a file, given as base64, on the canvas.
DROP = """([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const carried = new DataTransfer();
    carried.items.add(new File([bytes], name, {type}));
    const options = {dataTransfer: carried, bubbles: true, cancelable: true, clientX: 700, clientY: 450};
    document.querySelector("#graph-canvas").dispatchEvent(new DragEvent("drop", options));
}"""
PROMPT = "async () => (await app.graphToPrompt()).output"


def template(name):
    return json.loads((ROOT / "workflows" / f"{template_name(name)}.json").read_text("utf-8"))


def api(name):
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))


def stands_for():
    """Template -> the workflow whose API file it must send."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from app_graphs import APPS
    finally:
        sys.path.pop(0)
    apps = {f"{title}.app": name for title, (name, _) in APPS.items()}
    return apps | {title: name for name, title in GALLERY.items()}


def says_missing(page):
    """Whether the page says anywhere that nodes are missing."""
    page.wait_for_timeout(500)
    return page.evaluate("/nodes? (are |is )?missing|missing node/i.test(document.body.innerText)")


def only_what_is_sent(prompt):
    """Node number -> (type, inputs) of a prompt, with the numbers of closed parts ("14:3") made plain; without the
    frontend's own text fields."""

    def plain(value):
        return [str(value[0]).split(":")[-1], value[1]] if isinstance(value, list) else value

    return {
        number.split(":")[-1]: (
            node["class_type"],
            {k: plain(v) for k, v in node["inputs"].items() if v is not None and k != "preview"},
        )
        for number, node in prompt.items()
    }


def knows_apps(server):
    version = server.get("/system_stats")["system"]["comfyui_version"]
    return tuple(int(part) for part in version.split(".")[:2]) >= KNOWS_APPS


def finished(server, page):
    """The history entry of the page's prompt once it is over."""
    page.wait_for_timeout(500)
    deadline = time.monotonic() + 60
    while not (prompts := server.running() or list(server.get("/history"))[-1:]):
        assert time.monotonic() < deadline, "nothing was queued"
        page.wait_for_timeout(200)
    return server.wait(prompts[0])


def skip_the_tour(page):
    page.wait_for_timeout(1500)
    if page.get_by_text("Skip", exact=True).count():
        page.get_by_text("Skip", exact=True).first.click()
    close_the_gallery(page)


def close_the_gallery(page):
    """A slow machine's first start shows it late, over whatever is open by then."""
    if page.get_by_text("All Templates", exact=True).count():
        page.keyboard.press("Escape")
        page.wait_for_timeout(500)


@pytest.fixture(autouse=True)
def empty_queue(request):
    """Each test finds a server that has run nothing."""
    server = request.getfixturevalue("server")
    server.post("/history", {"clear": True})
    yield
    server.interrupt()


def test_the_page_and_the_pack_load_without_a_complaint(page, server, shots):
    shots(page, "page")
    names = page.evaluate("Object.keys(LiteGraph.registered_node_types).filter(name => name.startsWith('SemEdit_'))")
    assert set(names) == {name for name in server.object_info() if name.startswith("SemEdit_")} and len(names) > 20
    assert page.console.complaints == []


def test_every_template_is_offered_and_opens_whole_and_readable(page, server, shots):
    assert set(server.get("/workflow_templates")[server.pack_name]) == {path.stem for path in TEMPLATES}
    scripts = stands_for()
    for path in TEMPLATES:
        graph = template(path.stem)
        assert page.evaluate(LOAD, graph) == [], path.stem
        assert page.evaluate("app.graph._nodes.length") == len(graph["nodes"]) > 3, path.stem
        sent = only_what_is_sent(page.evaluate(PROMPT))
        assert sent == only_what_is_sent(api(scripts.get(path.stem, path.stem))), path.stem
        assert not says_missing(page), path.stem
        assert page.get_by_text("Workflow Validation").count() == 0, f"{path.stem}: the page mends its links"
        assert page.console.complaints == [], path.stem
        as_form = graph["extra"].get("linearMode") and knows_apps(server)
        if not as_form:
            assert graph["groups"] and page.evaluate("app.canvas.ds.scale") >= 0.7, path.stem
            places = page.evaluate(PLACES)
            for number, a in enumerate(places):
                for b in places[number + 1 :]:
                    apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                    assert apart, f"{path.stem}: {a[4]} covers {b[4]}"
        close_the_gallery(page)
        shots(page, path.stem.replace(" ", "_"))


def test_an_unknown_node_is_found(page):
    """What the test above looks for is there when it should be."""
    graph = template("demo_region_edit")
    graph["nodes"][0]["type"] = "SemEdit_NoSuchNode"
    assert page.evaluate(LOAD, graph) == ["SemEdit_NoSuchNode"]
    assert says_missing(page)


def test_a_template_runs_to_a_picture_and_its_picture_carries_it(page, server, shots):
    page.evaluate(LOAD, template(QUICK))
    assert not page.evaluate(SHOWN)
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(SHOWN, timeout=240_000)
    entry = finished(server, page)
    assert entry["status"]["status_str"] == "success"
    shots(page, "done")
    saved = [image for output in entry["outputs"].values() for image in output.get("images", ())]
    (picture,) = [image for image in saved if image["type"] == "output"]
    files = {
        "dropped.json": ("application/json", (ROOT / "workflows" / f"{template_name(FACE)}.json").read_bytes(), FACE),
        "dropped.png": ("image/png", server.view(picture), QUICK),
    }
    for name, (kind, data, expected) in files.items():
        page.evaluate(DROP, [name, kind, base64.b64encode(data).decode()])
        page.wait_for_function(f"app.graph._nodes.length === {len(template(expected)['nodes'])}", timeout=20_000)
        page.wait_for_timeout(500)
        assert only_what_is_sent(page.evaluate(PROMPT)) == only_what_is_sent(api(expected)), name
    assert page.console.complaints == []


@pytest.mark.parametrize(("app", "said"), APPS.items())
def test_an_app_runs_to_a_picture(page, server, shots, app, said):
    if not knows_apps(server):
        pytest.skip("this host knows no Apps; it opens them as workflows")
    graph = template(f"{app}.app")
    page.evaluate(
        "async ([graph, name]) => { await app.loadGraphData(graph, true, true, name, {openSource: 'template'}) }",
        [graph, app],
    )
    skip_the_tour(page)
    assert page.get_by_text(said).count(), "the form is not shown"
    shots(page, "form")
    page.get_by_role("button", name="Run").last.click()
    entry = finished(server, page)
    assert entry["status"]["status_str"] == "success"
    name = stands_for()[f"{app}.app"]
    page.wait_for_function(
        f"[...document.images].some(image => /{name}/.test(image.src) && image.naturalWidth)", timeout=30_000
    )
    shots(page, "done")
    assert page.console.complaints == []


def add_from_search(page, words):
    """Types ``words`` into the search over the empty canvas; the names it lists, best first."""
    page.mouse.dblclick(500, 420)
    page.wait_for_timeout(800)
    page.keyboard.type(words, delay=20)
    page.wait_for_timeout(1200)


def test_a_blueprint_is_found_and_runs_to_a_picture(page, server, shots):
    if not knows_apps(server):
        pytest.skip("this host knows no blueprints")
    page.evaluate("() => app.graph.clear()")
    page.wait_for_timeout(500)
    add_from_search(page, BLUEPRINT)
    shots(page, "search")
    page.keyboard.press("Enter")
    page.wait_for_timeout(800)
    page.mouse.click(700, 500)
    page.wait_for_function("app.graph._nodes.length === 1", timeout=20_000)
    page.evaluate(
        """() => {
            const add = type => { const node = LiteGraph.createNode(type); app.graph.add(node); return node };
            const [box] = app.graph._nodes, photo = add("SemEdit_LoadDemoImage"), shown = add("PreviewImage");
            photo.connect(0, box, box.inputs.findIndex(input => input.name === "image"));
            box.connect(0, shown, 0);
        }"""
    )
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(SHOWN, timeout=240_000)
    shots(page, "done")
    assert finished(server, page)["status"]["status_str"] == "success"
    assert page.console.complaints == []


def test_an_error_says_its_sentence(page, server, shots):
    graph = template(FACE)
    (box,) = [node for node in graph["nodes"] if node.get("title") == BLUEPRINT]
    page.evaluate(LOAD, graph)
    page.evaluate(
        "number => { const node = app.graph.getNodeById(number);"
        " node.widgets.find(widget => widget.name === 'target_text').value = '' }",
        box["id"],
    )
    page.evaluate("() => app.queuePrompt(0)")
    entry = finished(server, page)
    (error,) = [message for kind, message in entry["status"]["messages"] if kind == "execution_error"]
    sentence = error["exception_message"].strip()
    assert error["exception_type"] == "EditingError" and "text" in sentence
    page.wait_for_timeout(1500)
    details = page.get_by_role("button", name="View details")
    if details.count():
        details.first.click()
        page.wait_for_timeout(800)
    shots(page, "error")
    assert sentence[:40] in page.evaluate("document.body.innerText")


def test_cancel_stops(page, server, shots):
    graph = template(LONG)
    (box,) = [node for node in graph["nodes"] if node.get("title") == "Edit Photo by Words"]
    page.evaluate(LOAD, graph)
    page.evaluate(
        "number => { app.graph.getNodeById(number).widgets.find(widget => widget.name === 'steps').value = 900 }",
        box["id"],
    )
    page.evaluate("() => app.queuePrompt(0)")
    deadline = time.monotonic() + 60
    while not server.running():
        assert time.monotonic() < deadline
        page.wait_for_timeout(200)
    page.wait_for_timeout(3000)
    shots(page, "running")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    entry = finished(server, page)
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_interrupted" in kinds and "execution_error" not in kinds
    page.wait_for_timeout(1000)
    shots(page, "cancelled")
    assert page.get_by_role("dialog").count() == 0
    assert page.console.complaints == []

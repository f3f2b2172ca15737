"""The nodes' public contract: ids, order, types and defaults never change unnoticed, and everything is explained."""

import json
import logging
import re
from pathlib import Path

import pytest

from semantic_editing.tools import host_stand_in
from semantic_editing.tools import node_contract as contract
from semantic_editing.tools.gallery import GALLERY, template_name

#: Of a help page, without the list of its sockets, which the tool makes.
MOST_WORDS = 400
#: Of a node that is no technique's Settings node: the default renderer shows advanced widgets as well.
MOST_WIDGETS = 8
#: Nodes with more, and why.
BIGGER = {
    "SemEdit_RegionNetworkTrainer": 13,  # experimental: the settings of a paper's training, which only it has
}
#: What a person types who wants to edit a photo.
ARTISTS = ("edit photo", "replace", "remove glasses", "smile", "age", "change hair colour", "change cat to dog")
ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("snapshot.json")
LANGUAGES = ("en", "zh", "ja")

PACK = host_stand_in.load_pack()
SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in PACK.load_nodes())}
each_node = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)


def test_every_technique_loads():
    nodes = {node for technique in PACK.TECHNIQUES for node in PACK.load_nodes([technique])}
    assert len(nodes) == len(SCHEMAS) == len(json.loads(SNAPSHOT.read_text("utf-8")))


def test_a_broken_technique_is_named_and_takes_no_other_down(caplog):
    with caplog.at_level(logging.ERROR):
        nodes = PACK.load_nodes(["demo.load", "no_such_technique", "pix2pix_zero.guided_edit"])
    assert len(nodes) == 4
    assert (
        len(caplog.records) == 1 and "no_such_technique" in caplog.text and "\n" not in caplog.records[0].getMessage()
    )


def test_a_bad_schema_takes_no_other_technique_down(caplog, monkeypatch):
    demo = host_stand_in.module("nodes.demo.load")
    monkeypatch.setattr(demo.LoadDemoImage, "define_schema", classmethod(lambda cls: 1 / 0))
    assert len(PACK.load_nodes(["demo.load", "pix2pix_zero.guided_edit"])) == 2
    assert "demo" in caplog.text


def test_contract_equals_the_snapshot():
    assert {name: contract.from_schema(schema) for name, schema in SCHEMAS.items()} == json.loads(
        SNAPSHOT.read_text("utf-8")
    )


@each_node
def test_ids(schema):
    ids = [slot.id for slot in (*schema.inputs, *schema.outputs)]
    assert len(set(ids)) == len(ids), "0.3.64 wants ids unique across inputs and outputs"
    assert all(id.isascii() and "." not in id for id in ids), "dots break the keys of locales"
    assert schema.node_id.startswith("SemEdit_") and schema.node_id.isascii()
    assert schema.category.startswith("semantic editing/")


def widgets_of(schema):
    return [slot.id for slot in schema.inputs if slot.type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")]


@each_node
def test_a_node_has_few_widgets_but_for_settings(schema):
    if not schema.display_name.endswith(" Settings"):
        assert len(widgets_of(schema)) <= BIGGER.get(schema.node_id, MOST_WIDGETS), widgets_of(schema)


def test_the_exceptions_are_as_large_as_they_say():
    assert {name: len(widgets_of(SCHEMAS[name])) for name in BIGGER} == BIGGER


@each_node
def test_every_settings_node_has_a_socket_to_go_to(schema):
    """All that it hands on is the type of an optional input of some other node."""
    if schema.display_name.endswith(" Settings"):
        (output,) = schema.outputs
        sockets = [slot for other in SCHEMAS.values() for slot in other.inputs if slot.type == output.type]
        assert sockets and all(slot.options.get("optional") for slot in sockets)


@each_node
def test_optional_inputs_come_last(schema):
    optional = [bool(slot.options.get("optional")) for slot in schema.inputs]
    assert optional == sorted(optional), "hosts list required inputs first; saved workflows go by position"


@each_node
def test_everything_is_explained(schema):
    assert len(schema.description) > 40 and schema.search_aliases
    for slot in (*schema.inputs, *schema.outputs):
        assert slot.options.get("tooltip", "").endswith((".", '"')), f"{schema.node_id}.{slot.id}"
    assert all(slot.options.get("display_name") for slot in schema.outputs), "0.3.64 shows the type otherwise"


@each_node
def test_defaults_work(schema):
    for slot in schema.inputs:
        if slot.type in ("INT", "FLOAT"):
            assert slot.options["min"] <= slot.options["default"] <= slot.options["max"], slot.id
        if slot.type == "COMBO" and slot.id not in contract.OPEN_COMBOS:
            assert slot.options["default"] in slot.options["options"], slot.id


@pytest.mark.parametrize("language", LANGUAGES)
@each_node
def test_locales_cover_every_input_and_output(schema, language):
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[schema.node_id]
    assert words["display_name"] and words["description"]
    assert list(words["inputs"]) == [slot.id for slot in schema.inputs]
    assert list(words["outputs"]) == [str(index) for index in range(len(schema.outputs))]
    texts = [*words["inputs"].values(), *words["outputs"].values()]
    assert all(text["name"] and text["tooltip"] for text in texts)
    if language != "en":
        assert all(not text["tooltip"].isascii() for text in texts), "left untranslated"


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_name_no_node_that_does_not_exist(language):
    assert set(json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))) == set(SCHEMAS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_name_every_category_and_no_other(language):
    words = json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))["nodeCategories"]
    hosts_own = {"sampling", "loaders"}
    assert set(words) == {part for schema in SCHEMAS.values() for part in schema.category.split("/")} - hosts_own


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_hold_nothing_that_no_host_looks_up(language):
    """A frontend looks up these of a node, each by its own key; it knows none for the values of a combo."""
    for words in json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8")).values():
        assert set(words) == {"display_name", "description", "inputs", "outputs"}
        sockets = [*words["inputs"].values(), *words["outputs"].values()]
        assert all(set(socket) == {"name", "tooltip"} for socket in sockets)


@pytest.mark.parametrize("words", ARTISTS)
def test_what_artists_type_finds_nodes_that_edit_and_no_guider(words):
    """A GUIDER is for experts; the search lists what has the words in its name or aliases."""
    whole = re.compile(rf"\b{words}\b")
    found = [
        schema
        for schema in SCHEMAS.values()
        if any(whole.search(text.lower()) for text in (schema.display_name, *(schema.search_aliases or [])))
    ]
    assert len(found) >= 2, [schema.node_id for schema in found]
    assert not [schema.node_id for schema in found if any(slot.type == "GUIDER" for slot in schema.outputs)]


@each_node
def test_help_page(schema):
    text = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text("utf-8")
    assert text.startswith(f"# {schema.display_name}\n")
    assert "## Pitfalls" in text or not schema.inputs
    workflows = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert any(f"*{name}*" in text or f"`{name}`" in text for name in workflows), "name a workflow that shows the node"
    gone = [name for name in GALLERY if f"`{name}`" in text]
    assert gone == [], "a person reads the gallery's names"
    assert all(f"**{slot.id}**" in text for slot in schema.inputs)
    own = re.sub(r"<!-- sockets.*?<!-- end -->", "", text, flags=re.DOTALL)
    assert len(re.findall(r"\w[\w'-]*", own)) <= MOST_WORDS, "a page that nobody reads to its end"
    assert not re.search(r"^\|", own, flags=re.MULTILINE), "the panel is narrower than a table"


SAVING = [schema for schema in SCHEMAS.values() if any(slot.id == "overwrite" for slot in schema.inputs)]


@pytest.mark.parametrize("schema", SAVING, ids=[schema.node_id for schema in SAVING])
def test_what_overwriting_means_is_said_wherever_a_node_writes(schema):
    (slot,) = [slot for slot in schema.inputs if slot.id == "overwrite"]
    assert slot.options["default"] is False
    for language, word in zip(LANGUAGES, ("workflow", "工作流", "ワークフロー"), strict=True):
        words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[schema.node_id]
        assert word in words["inputs"]["overwrite"]["tooltip"]
    pitfalls = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text("utf-8").partition("## Pitfalls")[2]
    assert "**overwrite**" in pitfalls and "workflow from somebody else may have it on" in pitfalls


def test_every_node_that_writes_asks_before_it_replaces():
    """Whoever makes the path of a new file has the widget."""
    writers = [path for path in (ROOT / "nodes").rglob("*.py") if "output_path(" in path.read_text("utf-8")]
    rooms = {path.stem for path in writers} - {"folders", "trainer_files"}
    assert rooms == {
        "files", "direction_files", "models", "classifier_trainer", "generator", "diffusion_trainer", "latents",
        "mapper_trainer", "relevance", "trainer",
    }  # fmt: skip
    assert len(SAVING) == 11


def test_a_shipped_workflow_that_replaces_files_says_so():
    replacing = set()
    for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
        nodes = json.loads(path.read_text("utf-8")).values()
        if any(node["inputs"].get("overwrite") for node in nodes):
            drawn = json.loads((ROOT / "workflows" / f"{template_name(path.stem)}.json").read_text("utf-8"))[
                "nodes"
            ]  # notes are never closed
            notes = [node["widgets_values"][0] for node in drawn if node["type"] == "MarkdownNote"]
            assert any("*overwrite* is on" in note and "replaces" in note for note in notes), path.stem
            replacing.add(path.stem)
    assert replacing == {"demo_caso_train", "demo_caso_texts", "demo_distil_train"}

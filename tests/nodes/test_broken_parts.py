"""A part that does not import costs the nodes that need it and no others; the log names them and why.

The host's real parts load here, against a ComfyUI whose every name is an empty class.
"""

import json
import logging
from pathlib import Path

import pytest

from semantic_editing.tools.host_stand_in import fresh_pack

SNAPSHOT = Path(__file__).with_name("snapshot.json")
WORDS = {"inversion.spdinv", "pix2pix_zero.autocorr", "pix2pix_zero.directions", "pix2pix_zero.guided_edit"}
EVERYTHING_BUT_EDITORS = {
    "demo.load", *WORDS, "inversion.reference", "caso.classifier_loader", "caso.edit", "caso.trainer", "regions.models"
}  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "down", "stay"),
    [
        ("nodes.regions.host_editors", "regions.editors", EVERYTHING_BUT_EDITORS),
        ("core.regions.edit_tokens", "regions.editors", EVERYTHING_BUT_EDITORS),
        ("nodes.host.tokens", "caso.embeddings", {"demo.load", *WORDS, "caso.classifier_loader", "regions.generator"}),
        ("nodes.host.managed_models", "regions.models", {"demo.load", *WORDS, "caso.edit", "caso.generate"}),
        ("nodes.host.managed_models", "caso.classifier_loader", {"demo.load", *WORDS, "caso.edit", "caso.generate"}),
        ("nodes.demo.comfy_model", "demo.load", {*WORDS, "caso.classifier_loader", "caso.edit", "regions.editors"}),
        ("core.demo.data", "demo.load", {*WORDS, "caso.classifier_loader", "caso.embeddings", "regions.models"}),
        ("core.caso.training", "caso.trainer", {"demo.load", "caso.edit", "caso.embeddings", "regions.trainer"}),
        ("nodes.host.vae", "caso.trainer", {"demo.load", *WORDS, "caso.classifier_loader", "caso.generate"}),
        ("nodes.host.sampling", "inversion.spdinv", {"demo.load", "pix2pix_zero.directions", "caso.embeddings"}),
    ],
)
def test_a_broken_part_takes_down_only_those_who_need_it(caplog, broken, down, stay):
    with fresh_pack(broken, ImportError("no such thing here")) as registry, caplog.at_level(logging.ERROR):
        loaded = {technique: registry.load_nodes([technique]) for technique in registry.TECHNIQUES}
        failed = {technique for technique, nodes in loaded.items() if not nodes}
        assert down in failed and not failed & stay
        assert [record.args[0] for record in caplog.records] == [
            technique for technique in loaded if technique in failed
        ]
        assert all("unavailable" in line and "no such thing here" in line for line in caplog.messages)
        caplog.clear()
        assert registry.load_nodes() == [node for nodes in loaded.values() for node in nodes]
        assert len(caplog.records) == len(failed)


def test_nothing_is_missing_where_nothing_is_broken(caplog):
    with fresh_pack() as registry:
        assert len(registry.load_nodes()) == len(json.loads(SNAPSHOT.read_text("utf-8")))
    assert not caplog.records


def test_the_log_says_what_a_changed_host_lacks(caplog):
    with fresh_pack(
        "nodes.regions.host_editors", AttributeError("module 'comfy.samplers' has no attribute 'CFGGuider'")
    ) as registry:
        registry.load_nodes(["regions.editors"])
    assert len(caplog.records) == 1 and "regions.editors" in caplog.text and "'CFGGuider'" in caplog.text

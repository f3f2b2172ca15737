"""What tests of several rooms of nodes need of a host that is in trouble."""

import sys

import pytest

from semantic_editing.tools import host_stand_in


@pytest.fixture
def disk(monkeypatch):
    """Names of folders on a full disk, none at first."""
    full, writing = set(), host_stand_in.module("core.writing")
    publish = writing._publish

    def refusing(temporary, target, overwrite):
        if target.parent.name in full:
            raise OSError(28, "No space left on device")
        publish(temporary, target, overwrite)

    monkeypatch.setattr(writing, "_publish", refusing)
    return full


@pytest.fixture(autouse=True)
def every_report_begins_with_a_sentence(monkeypatch):
    """Whatever a test runs: what a node shows begins with a sentence."""
    reports = host_stand_in.module("nodes.common.reports")
    plain = reports.is_sentence

    def strict(line):
        room = sys._getframe(2).f_globals["__name__"]
        assert plain(line), f"{room} shows {line!r} first"
        return plain(line)

    monkeypatch.setattr(reports, "is_sentence", strict)

"""What tests of several rooms of nodes need of a host that is in trouble."""

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

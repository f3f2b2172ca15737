"""core.files: damaged, foreign and hostile files are refused in a sentence; writing is whole or not at all."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_legacy_tensor, load_tensors, load_weights, metadata_json, save_tensors
from semantic_editing.core.reading.kinds import KINDS

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def test_round_trip_keeps_values_dtypes_and_metadata(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {"format": "kind", "n": "3"})
    tensors, metadata = load_tensors(path, "kind")
    assert metadata == {"format": "kind", "n": "3"}
    for key, value in TENSORS.items():
        torch.testing.assert_close(tensors[key], value, rtol=0, atol=0)


def test_transposed_and_shared_tensors_are_written_as_they_look(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    path = save_tensors(tmp_path / "x.safetensors", {"t": base.T}, {})
    torch.testing.assert_close(load_tensors(path)[0]["t"], base.T, rtol=0, atol=0)


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {"format": "kind"})
    before = path.read_bytes()
    with pytest.raises(EditingError, match=r"x\.safetensors exists already"):
        save_tensors(path, {"a": torch.zeros(1)}, {"format": "kind"})
    assert path.read_bytes() == before
    save_tensors(path, {"a": torch.zeros(1)}, {"format": "kind"}, overwrite=True)
    assert list(load_tensors(path)[0]) == ["a"]


def test_a_text_that_no_file_can_hold_is_said(tmp_path):
    with pytest.raises(EditingError, match="the text of attribute holds half of a surrogate pair"):
        save_tensors(tmp_path / "x.safetensors", TENSORS, {"attribute": "a\ud800"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("load", [load_tensors, load_legacy_tensor, load_weights])
def test_a_missing_file_is_named(tmp_path, load):
    with pytest.raises(EditingError, match=r"nothing\.pt was not found"):
        load(tmp_path / "nothing.pt")


@pytest.mark.parametrize("keep", [0, 4, 40, -1], ids=["empty", "header cut", "header only", "last byte gone"])
def test_damaged_safetensors(tmp_path, keep):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {"format": "kind"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EditingError, match=r"x\.safetensors is damaged"):
        load_tensors(path, "kind")


def test_random_bytes_are_damaged(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(EditingError, match="damaged"):
        load_tensors(path)


@pytest.mark.parametrize(("metadata", "found"), [({"format": "other"}, "other"), ({}, "another program's file")])
def test_a_foreign_format_is_named(tmp_path, metadata, found):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, metadata)
    with pytest.raises(EditingError, match=f"not a kind file.*{found}"):
        load_tensors(path, "kind")


def test_legacy_tensor_is_read(tmp_path):
    torch.save(TENSORS["a"], tmp_path / "a.pt")
    torch.testing.assert_close(load_legacy_tensor(tmp_path / "a.pt"), TENSORS["a"], rtol=0, atol=0)


class Bomb:
    """Unpickling this by an unrestricted loader makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"]
)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, save):
    path, trace = tmp_path / "evil.pt", tmp_path / "pwned"
    save(Bomb(trace), path)
    with pytest.raises(EditingError, match=r"evil\.pt was refused: it asks for 'posix.mkdir'"):
        load_legacy_tensor(path)
    assert not trace.exists()


def test_the_bomb_is_live(tmp_path):
    trace = tmp_path / "pwned"
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


def test_a_dictionary_is_not_one_tensor(tmp_path):
    torch.save(TENSORS, tmp_path / "d.pt")
    with pytest.raises(EditingError, match="dict instead of one tensor"):
        load_legacy_tensor(tmp_path / "d.pt")


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    torch.save(TENSORS["a"], tmp_path / "a.pt")
    small = replace(KINDS["edit direction"], largest=10)
    monkeypatch.setitem(KINDS, "edit direction", small)
    with pytest.raises(EditingError, match="larger than"):
        load_legacy_tensor(tmp_path / "a.pt")


@pytest.mark.parametrize("metadata", [{}, {"key": "{"}], ids=["absent", "broken"])
def test_unreadable_metadata_is_said(metadata):
    with pytest.raises(EditingError, match=r"f\.safetensors (lacks readable key|\(key\) holds damaged JSON)"):
        metadata_json(metadata, "key", "f.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_from_every_kind_of_file(tmp_path, zipped):
    torch.save(TENSORS, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    save_tensors(tmp_path / "w.safetensors", TENSORS, {})
    for name in ("w.pth", "w.safetensors"):
        found = load_weights(tmp_path / name)
        assert found.keys() == TENSORS.keys()
        for key, tensor in TENSORS.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


def test_what_is_no_table_of_weights_is_refused(tmp_path):
    for value in (TENSORS["a"], {"a": 1}, {1: TENSORS["a"]}, [TENSORS["a"]]):
        torch.save(value, tmp_path / "x.pth")
        with pytest.raises(EditingError, match=r"x\.pth holds no table of weights"):
            load_weights(tmp_path / "x.pth")
    trace = tmp_path / "pwned"
    torch.save({"a": Bomb(trace)}, tmp_path / "evil.pth")
    with pytest.raises(EditingError, match=r"evil\.pth was refused: it asks for 'posix.mkdir'"):
        load_weights(tmp_path / "evil.pth")
    assert not trace.exists()

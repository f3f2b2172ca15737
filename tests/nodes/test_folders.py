"""nodes.host.folders and saving under a stand-in for the host: names, the way out of a full disk, and no paths told."""

import os
from types import SimpleNamespace

import pytest

from semantic_editing.tools import host_stand_in

host_stand_in.load_pack()
FOLDERS = host_stand_in.module("nodes.host.folders")
SAVING = host_stand_in.module("nodes.common.saving")
EditingError = host_stand_in.module("core.errors").EditingError
write_whole = host_stand_in.module("core.writing").write_whole


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The host's folders below ``tmp_path``."""
    for name in ("models", "input", "output", "temp"):
        (tmp_path / name).mkdir()
    stand_in = SimpleNamespace(
        get_folder_paths=lambda kind: [str(tmp_path / "models" / kind)],
        get_full_path=lambda kind, name: None,
        get_input_directory=lambda: str(tmp_path / "input"),
        get_output_directory=lambda: str(tmp_path / "output"),
        get_temp_directory=lambda: str(tmp_path / "temp"),
    )
    monkeypatch.setattr(FOLDERS, "folder_paths", stand_in)
    return tmp_path


def refusal(function, *args):
    with pytest.raises(EditingError) as caught:
        function(*args)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and sentence.isprintable() and len(sentence) < 300
    return sentence


BAD = ["", "..", "../up", "a/../../b", "/etc", "C:x", "nul\0", "a\ud800", "a\u202eb", "CON", "x" * 300, "x" * 10**5]


@pytest.mark.parametrize("name", [*BAD, "a/b", ".x"])
def test_a_new_file_needs_a_plain_name(host, name):
    assert str(host) not in refusal(FOLDERS.output_path, "inversions", name)


def test_a_new_file_gets_its_ending_once(host):
    for name in ("x", " x ", "x.safetensors"):
        assert FOLDERS.output_path("inversions", name) == host / "models" / "inversions" / "x.safetensors"
    assert FOLDERS.output_path("inversions", "x", ".png").name == "x.png"


@pytest.mark.parametrize("name", [*BAD, "absent", "/", "a/CON/b", "/".join(["x" * 200] * 30)])
def test_a_folder_of_pictures_is_below_input_or_refused_without_its_place(host, name):
    (host / "up").mkdir()
    assert str(host) not in refusal(FOLDERS.input_folder, name)


def test_folders_of_pictures_are_found(host):
    (host / "input" / "faces" / "red hair").mkdir(parents=True)
    for name in (" faces/red hair ", "faces\\red hair", "faces//red hair/"):
        assert FOLDERS.input_folder(name) == host / "input" / "faces" / "red hair"


@pytest.mark.parametrize("name", [*BAD, "absent.safetensors"])
def test_a_file_that_is_not_listed_is_refused_without_its_place(host, name, monkeypatch):
    assert str(host) not in refusal(FOLDERS.resolve_file, "inversions", name)
    monkeypatch.setattr(FOLDERS, "list_files", lambda kind: [name])
    assert "has disappeared" in refusal(FOLDERS.resolve_file, "inversions", name)


def save(path, overwrite):
    write_whole(path, lambda stream: stream.write(b"result"), overwrite=overwrite)


def full(*folders):
    """What a disk does that is full in ``folders`` and has room elsewhere."""

    def saving(path, overwrite):
        if path.parent.name in folders:
            raise EditingError(f"{path.name} could not be written (No space left on device); free some.")
        save(path, overwrite)

    return saving


def test_where_there_is_room_nothing_special_happens(host):
    path = host / "models" / "x.safetensors"
    assert SAVING.save_or_rescue(save, path, False) == SAVING.Saved("x.safetensors", "Saved x.safetensors.")
    assert path.read_bytes() == b"result" and os.listdir(host / "output") == []


def test_a_result_without_room_goes_elsewhere_and_replaces_nothing_there(host):
    (host / "output" / "x.safetensors").write_bytes(b"another's")
    saved = SAVING.save_or_rescue(full("models"), host / "models" / "x.safetensors", True)
    assert saved.file == "" and saved.line == (
        "x.safetensors could not be written (No space left on device); free some. It is kept as x_2.safetensors in "
        "ComfyUI's output folder; move it from there into the folder models."
    )
    assert (host / "output" / "x.safetensors").read_bytes() == b"another's"
    assert (host / "output" / "x_2.safetensors").read_bytes() == b"result"
    saved = SAVING.save_or_rescue(full("models", "output"), host / "models" / "x.safetensors", True)
    assert "x.safetensors in ComfyUI's temp folder, which is emptied" in saved.line
    assert (host / "temp" / "x.safetensors").read_bytes() == b"result"


def test_without_any_room_the_node_keeps_it_and_says_so(host):
    saved = SAVING.save_or_rescue(full("models", "output", "temp"), host / "models" / "x.safetensors", True)
    assert saved.file == "" and "it is in this node's output alone" in saved.line and str(host) not in saved.line


def test_a_file_that_appeared_during_a_training_is_kept_and_so_is_the_result(host):
    path = host / "models" / "x.safetensors"
    path.write_bytes(b"another's")
    saved = SAVING.save_or_rescue(save, path, False)
    assert "exists already" in saved.line and "kept as x.safetensors in ComfyUI's output folder" in saved.line
    assert path.read_bytes() == b"another's" and (host / "output" / "x.safetensors").read_bytes() == b"result"

"""core.writing: whole or not at all, never over another's file, whatever becomes of disk and process."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from semantic_editing.core import writing
from semantic_editing.core.errors import EditingError
from semantic_editing.core.writing import check_target, write_whole


def put(data):
    return lambda stream: stream.write(data)


def names(folder):
    return sorted(os.listdir(folder))


def process(code, *arguments):
    """A Python that runs ``code`` with the pack's writing module as ``writing``."""
    head = "import os, resource, signal, sys; from semantic_editing.core import writing\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_new_file_appears_only_when_whole(tmp_path):
    def fill(stream):
        stream.write(b"one ")
        stream.flush()
        assert not (tmp_path / "new" / "x").exists()
        stream.write(b"two")

    assert write_whole(tmp_path / "new" / "x", fill) == tmp_path / "new" / "x"
    assert (tmp_path / "new" / "x").read_bytes() == b"one two" and names(tmp_path / "new") == ["x"]


@pytest.mark.parametrize("failing", ["fsync", "link"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, failing):
    (tmp_path / "x").write_bytes(b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    for name in {failing, "replace"}:  # where there are no hard links, a rename is tried
        monkeypatch.setattr(writing.os, name, full_disk)
    for name, overwrite in (("x", True), ("y", False)):
        with pytest.raises(EditingError, match=r"could not be written \(No space left on device\)"):
            write_whole(tmp_path / name, put(b"new"), overwrite=overwrite)
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_whatever_ends_the_filling_leaves_nothing(tmp_path, error):
    def fill(stream):
        stream.write(b"half")
        raise error

    with pytest.raises(error):
        write_whole(tmp_path / "x", fill)
    assert names(tmp_path) == []


def test_a_limit_of_the_system_is_a_sentence_and_leaves_nothing(tmp_path):
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    writing.write_whole(sys.argv[1], lambda stream: stream.write(bytes(100_000)))
except writing.EditingError as error:
    print(error)
"""
    said, errors = process(code, tmp_path / "x").communicate(timeout=60)
    assert said == "x could not be written (File too large); check the folder's permissions and free space.\n", errors
    assert names(tmp_path) == []


@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_a_sentence_keeps_the_old_file_and_leaves_nothing(tmp_path):
    options = ["-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        write_whole(tmp_path / "x", put(b"old"))
        for name, overwrite in (("x", True), ("y", False)):
            with pytest.raises(EditingError, match=rf"{name} could not be written \(No space left on device\)"):
                write_whole(tmp_path / name, put(bytes(100_000)), overwrite=overwrite)
        assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"old"
        write_whole(tmp_path / "y", put(bytes(30_000)))  # there is room again
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_umask_says_who_may_read(tmp_path, mask):
    before = os.umask(mask)
    try:
        for overwrite in (False, True):
            write_whole(tmp_path / "x", put(b"1"), overwrite=overwrite)
            assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask
    finally:
        os.umask(before)


def test_an_existing_file_or_broken_link_is_kept_unless_overwriting_is_allowed(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("x", "link"):
        with pytest.raises(EditingError, match=f"{name} exists already"):
            write_whole(tmp_path / name, put(b"new"))
    assert (tmp_path / "x").read_bytes() == b"old" and (tmp_path / "link").is_symlink()
    write_whole(tmp_path / "x", put(b"new"), overwrite=True)
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_file_that_appears_meanwhile_is_kept_too(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(writing.os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "not permitted")))

    def fill(stream):
        stream.write(b"mine")
        (tmp_path / "x").write_bytes(b"another's")

    with pytest.raises(EditingError, match="x exists already"):
        write_whole(tmp_path / "x", fill)
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"another's"
    write_whole(tmp_path / "y", put(b"mine"))
    assert (tmp_path / "y").read_bytes() == b"mine"


KILLED = """
def fill(stream):
    stream.write(bytes(5000))
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
writing.write_whole(sys.argv[1], fill)
"""


def test_the_next_save_sweeps_what_killed_ones_left_and_nothing_else(tmp_path):
    others = [".x.part", ".semantic_editing-x.part", "semantic_editing-0123456789abcdef.part", ".mine"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    for _ in range(3):
        killed = process(KILLED, tmp_path / "x")
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
    left = set(names(tmp_path)) - set(others)
    assert len(left) == 1 and all(writing.PART.fullmatch(name) for name in left), "each save swept the one before"
    write_whole(tmp_path / "y", put(b""))
    assert names(tmp_path) == sorted([*others, "y"])


def test_another_program_that_is_saving_keeps_its_file(tmp_path):
    code = """
def fill(stream):
    stream.write(b"hers")
    stream.flush()
    print("begun", flush=True)
    sys.stdin.readline()
writing.write_whole(sys.argv[1], fill)
"""
    other = process(code, tmp_path / "hers")
    assert other.stdout.readline() == "begun\n"
    write_whole(tmp_path / "mine", put(b"mine"))
    assert len(names(tmp_path)) == 2, "its temporary file is there"
    assert other.communicate("\n", timeout=60)[1] == "" and other.returncode == 0
    assert (tmp_path / "hers").read_bytes() == b"hers" and names(tmp_path) == ["hers", "mine"]


def test_saves_at_the_same_moment_all_arrive(tmp_path):
    """Sweeping and making temporary files race; every file arrives whole, and of one name only one."""
    failures = []

    def save(thread):
        for number in range(40):
            try:
                write_whole(tmp_path / f"{thread}_{number}", put(bytes([thread]) * 1000))
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=save, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(names(tmp_path)) == 240
    assert all((tmp_path / name).read_bytes() == bytes([int(name[0])]) * 1000 for name in names(tmp_path))


def test_where_no_lock_tells_the_age_does(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(writing.fcntl, "flock", no_locks)
    young, old = (tmp_path / f".semantic_editing-{digit * 16}.part" for digit in "01")
    for path in (young, old):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    write_whole(tmp_path / "x", put(b"1"))
    assert names(tmp_path) == sorted([young.name, "x"])


def test_windows_way_without_locks_and_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "fcntl", None)
    old = tmp_path / ".semantic_editing-0123456789abcdef.part"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    write_whole(tmp_path / "x", put(b"1"))
    write_whole(tmp_path / "x", put(b"2"), overwrite=True)
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"2"


def test_before_a_long_run_it_is_known_what_will_not_be_written(tmp_path):
    assert check_target(tmp_path / "new" / "x") == tmp_path / "new" / "x" and names(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(EditingError, match="file exists already"):
        check_target(tmp_path / "file")
    assert check_target(tmp_path / "file", overwrite=True)
    with pytest.raises(EditingError, match="folder file cannot be made"):
        check_target(tmp_path / "file" / "x")
    with pytest.raises(EditingError, match="could not be written"):
        write_whole(tmp_path / "file" / "x", put(b""))


def test_a_folder_that_takes_no_files_is_said_before_and_after(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(writing.os, "open", read_only)
    with pytest.raises(EditingError, match=r"cannot be written to \(Read-only file system\)"):
        check_target(tmp_path / "x")
    with pytest.raises(EditingError, match=r"x could not be written \(Read-only file system\)"):
        write_whole(tmp_path / "x", put(b""))


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "x" * 300])
def test_a_name_that_no_file_can_have_is_a_sentence(tmp_path, name):
    for act in (lambda path: write_whole(path, put(b"")), lambda path: write_whole(path, put(b""), overwrite=True)):
        with pytest.raises(EditingError):
            act(tmp_path / name)
    assert names(tmp_path) == []


def test_the_longest_name_is_written(tmp_path):
    path = write_whole(tmp_path / ("x" * 255), put(b"1"))
    assert Path(path).read_bytes() == b"1"

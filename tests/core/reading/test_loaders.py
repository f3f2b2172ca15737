"""No loader goes unwatched: each is in the table of sizes and in the fuzzer, and reads by the functions that look."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from semantic_editing.benchmarks import fuzz
from semantic_editing.benchmarks.fuzz_samples import SAMPLES, Sample
from semantic_editing.core.errors import EditingError
from semantic_editing.core.reading import kinds
from semantic_editing.core.reading.kinds import KINDS

ROOT = Path(__file__).parents[3]
#: What begins the name of a function that reads files.
READS = ("load", "read", "resume", "open")
#: Functions of that name that read no file of a stranger, and why.
NOT_FILES = {
    "core.files.load_json": "called by loaders, with a kind",
    "nodes.demo.comfy_model.load_demo_model": "reads the pack's own assets; the same files as core.demo.model's",
}
#: Calls that read bytes themselves: only here, where sizes and forms are checked.
RAW = {
    "open", "read_bytes", "read_text", "safe_open", "from_pretrained", "from_single_file", "loads", "ZipFile",
    "frombuffer", "Unpickler", "fromfile", "memmap",
}  # fmt: skip
MAY_READ = {
    "core/files.py": {"open", "safe_open", "read_bytes", "loads"},
    "core/reading/forms.py": {"loads"},
    "core/reading/pickles.py": {"open", "ZipFile", "frombuffer"},
    "core/reading/arrays.py": {"open", "frombuffer"},
    "core/models/model_folder.py": {"from_pretrained", "read_bytes"},
    "core/diffusers/single_file.py": {"from_single_file", "safe_open"},
    "core/images/files.py": {"open"},
    "core/writing.py": {"open"},  # opens to write and to lock
    # The pack's own assets
    "core/demo/data.py": {"open", "load"},
    "core/demo/model.py": {"from_pretrained"},  # torch.nn.Embedding.from_pretrained, which reads nothing
    "core/pix2pix_zero/sentences.py": {"loads", "read_text"},
    "nodes/demo/comfy_model.py": {"loads", "read_text"},
    # No files: what this process has just made
    "core/caso/training_state.py": {"loads"},
    "core/training.py": {"loads"},
    "nodes/caso/trainer.py": {"frombuffer"},
}
#: Functions that are given a kind of file, and which of their arguments it is.
TAKES_KIND = {
    "load_tensors": "kind", "tensor_shapes": 1, "load_legacy_tensor": 1, "load_weights": 1, "load_json": 1,
    "metadata_json": 3, "read_network_pickle": 1, "read_snapshot_pickle": 1, "read_table_pickle": 1,
    "read_tensor_pickle": 1, "check_size": 1, "read_array": 1, "load_text": 1,
    "Titles": "kind",
}  # fmt: skip


def sources():
    for folder in ("core", "nodes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def loaders_in(path, tree):
    """Dotted names of the public functions and methods that read a file."""
    found, module = set(), path.removesuffix(".py").replace("/", ".")

    def visit(node, prefix):
        for part in node.body:
            if isinstance(part, ast.ClassDef):
                visit(part, f"{prefix}{part.name}.")
            elif isinstance(part, ast.FunctionDef) and part.name.startswith(READS):
                annotations = [ast.unparse(argument.annotation or ast.Constant("")) for argument in part.args.args]
                if any("Path" in annotation for annotation in annotations):
                    found.add(f"{module}.{prefix}{part.name}")

    visit(tree, "")
    return found


def test_every_loader_is_in_the_fuzzer():
    found = set().union(*(loaders_in(path, tree) for path, tree in sources()))
    covered = {loader for sample in SAMPLES.values() for loader in sample.loaders}
    assert len(found) > 25
    assert found - covered - set(NOT_FILES) == set(), "give each a sample in benchmarks/fuzz_samples.py"
    assert covered | set(NOT_FILES) >= found and set(NOT_FILES) <= found
    unknown = {name for name in covered - found if not name.rsplit(".", 1)[1].startswith(("pickled", "square"))}
    assert unknown == set(), "the fuzzer names loaders that are gone"


def test_a_loader_that_nobody_watches_is_found():
    tree = ast.parse(
        "class A:\n def load(path: str | Path): ...\ndef load_stylegan(file: Path): ...\ndef loader(): ...\n"
    )
    assert loaders_in("core/deltaedit/a.py", tree) == {"core.deltaedit.a.A.load", "core.deltaedit.a.load_stylegan"}


def raw_calls(tree):
    names = set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in RAW or ast.unparse(call.func) in ("np.load", "torch.load", "numpy.load"):
            names.add(name)
    return names


def test_bytes_are_read_in_the_places_that_look_at_them():
    wrong = {path: calls for path, tree in sources() if (calls := raw_calls(tree) - MAY_READ.get(path, set()))}
    assert wrong == {}, "read by core.files, core.reading or core.models.model_folder instead"
    assert raw_calls(ast.parse("torch.load(x)\nPath(x).read_bytes()\nload(x)")) == {"load", "read_bytes"}


def kinds_named(tree):
    """The kinds that a source's calls name, as constants."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        place = TAKES_KIND.get(name)
        if place is None:
            continue
        given = [word.value for word in call.keywords if word.arg == "kind"]
        if isinstance(place, int) and len(call.args) > place:
            given.append(call.args[place])
        yield name, [argument.value for argument in given if isinstance(argument, ast.Constant)]


def test_every_kind_is_in_the_table_and_every_entry_of_the_table_is_used():
    used = {"network"}  # what the functions take where none is given
    for path, tree in sources():
        for name, given in kinds_named(tree):
            assert set(given) <= set(KINDS), f"{path}: {name}({given})"
            used |= set(given)
    assert used == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_larger_than_its_kind_is_refused_unread(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], largest=2**20))
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(2**20 + 1)
    with pytest.raises(EditingError, match=r"^large is larger than 1 MiB, which no .* is; choose another file\.$"):
        kinds.check_size(tmp_path / "large", kind)


# The fuzzer itself
# ----------------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


def run_fuzzer(*options, timeout):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@linux
@pytest.mark.fuzz
def test_five_hundred_damaged_files_end_in_a_sentence_or_load(tmp_path):
    """Of every kind; in a process that may not take 2 GiB or 20 s for one, go online, or run what a file brings."""
    done = run_fuzzer("--mutations", 500, "--seed", 17, "--out", tmp_path / "out.json", timeout=550)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    outcomes = [result["outcome"] for result in found["results"]]
    assert len(outcomes) == 500 and set(outcomes) == {fuzz.SENTENCE, fuzz.LOADED}
    assert {result["kind"] for result in found["results"]} == set(SAMPLES) - set(found["lacking"])
    assert 150 < outcomes.count(fuzz.SENTENCE) < 480, "the mutations damage too little or too much"


BAD_LOADERS = """
import hashlib, os, subprocess, sys, threading, time
sys.argv = ["fuzz", *sys.argv[1:]]
from pathlib import Path
import numpy
from semantic_editing.benchmarks import fuzz, fuzz_samples
from semantic_editing.core.errors import EditingError

def make(folder):
    (folder / "a.bin").write_bytes(UNDAMAGED)
    return folder / "a.bin"

UNDAMAGED = bytes(range(256)) * 20

def work():
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 30_000)  # other threads may run meanwhile

def starve(until):
    # Two threads have the one processor, and this one what they leave
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    others = lambda: [work() for _ in iter(lambda: time.perf_counter() < until, False)]
    for _ in range(2): threading.Thread(target=others).start()
    os.setpriority(os.PRIO_PROCESS, 0, 19)  # of this thread alone
    while time.perf_counter() < until: work()

def bad(deed):
    def load(path):
        if path.read_bytes() == UNDAMAGED: return
        if deed == "raises": {}["x"]
        if deed == "waits": time.sleep(60)
        if deed == "takes": numpy.ones(2**26)
        if deed == "claims": numpy.empty(2**40)
        if deed == "hides":
            try: numpy.empty(2**40)
            except MemoryError as error: raise EditingError("It is damaged; download it again.") from error
        if deed == "dies": os.abort()
        if deed == "runs": subprocess.run(["true"])
        if deed == "imports":
            (path.parent / "evil.py").write_text("x = 1")
            sys.path.insert(0, str(path.parent))
            import evil
        if deed == "leaks": raise EditingError(f"{path} is damaged; download it again.")
        if deed == "starves": starve(time.perf_counter() + fuzz.SECONDS + fuzz.GRACE + 1)
        if deed == "mumbles": raise EditingError("It is\\ndamaged.")
    return load

fuzz.SECONDS, fuzz.GRACE, fuzz.PEAK = 2.0, 2.0, 2**28
fuzz_samples.SAMPLES.clear()
for deed in DEEDS:
    fuzz_samples.SAMPLES[deed] = fuzz_samples.Sample(make, bad(deed), ())
fuzz.__file__ = __file__
fuzz.main()
"""
VERDICTS = {
    "raises": "other exception", "waits": "hang", "takes": "memory", "claims": "memory", "hides": "memory",
    "dies": "crash", "runs": "forbidden", "imports": "forbidden", "leaks": "other exception",
    "mumbles": "other exception", "nothing": "loaded",
    "starves": "loaded",  # the last: it stays where it put itself
}  # fmt: skip


@linux
def test_the_fuzzer_sees_what_a_loader_must_not_do(tmp_path):
    """Loaders that do it are put in the place of the pack's."""
    script = tmp_path / "bad.py"
    script.write_text(BAD_LOADERS.replace("DEEDS", repr(list(VERDICTS))), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), "--mutations", str(len(VERDICTS)), "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 1, done.stderr[-2000:]
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))["results"]
    assert {result["kind"]: result["outcome"] for result in found} == VERDICTS


def test_a_sample_says_what_it_lacks():
    assert Sample(lambda folder: folder, print, (), ("json", "no_such_package")).missing() == "no_such_package"
    assert Sample(lambda folder: folder, print, (), ("json",)).missing() == ""

"""Runs tests/host/inprocess with the host's own interpreter, where ComfyUI can be imported."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent / "inprocess"
PYTEST = (
    "pytest",
    "_pytest",
    "py",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "exceptiongroup",
    "tomli",
    "typing_extensions",
)
RUN = "import sys; sys.path.append(sys.argv.pop(1)); import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def lent_pytest(folder):
    """A folder with this interpreter's pytest and what it imports, pure Python all of it, for hosts that have none."""
    for name in PYTEST:
        spec = find_spec(name)
        if spec is None:  # some are for older Pythons alone
            continue
        place = Path(spec.origin)
        if place.name == "__init__.py":
            shutil.copytree(place.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, folder)
    return folder


def test_in_process(host, tmp_path):
    arguments = ["-c", "/dev/null", "--rootdir", str(FOLDER), "--confcutdir", str(FOLDER)]
    arguments += ["-p", "no:cacheprovider", "-q", "--tb=short", "-rfEs", str(FOLDER)]
    command = [host.python, "-c", RUN, str(lent_pytest(tmp_path)), *arguments]
    done = subprocess.run(command, cwd=FOLDER, env=host.environment, capture_output=True, text=True)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

"""Runs tests with the host's own interpreter, where ComfyUI and torchvision can be imported."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent / "inprocess"
PACK = FOLDER.parents[2]
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


def lent_packages(folder, names=PYTEST):
    """A folder with packages of this interpreter, pure Python all of them, for hosts that have none."""
    for name in names:
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
    command = [host.python, "-c", RUN, str(lent_packages(tmp_path)), *arguments]
    done = subprocess.run(command, cwd=FOLDER, env=host.environment, capture_output=True, text=True)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_lpips(host, tmp_path):
    """The test interpreter has no torchvision, whose networks LPIPS is made of; a ComfyUI always has."""
    (tmp_path / "semantic_editing").symlink_to(PACK, target_is_directory=True)
    lent_packages(tmp_path, [*PYTEST, "torchmetrics", "lightning_utilities"])
    test = PACK / "tests" / "core" / "metrics" / "test_lpips.py"
    arguments = ["-c", "/dev/null", "--rootdir", str(test.parent), "--confcutdir", str(test.parent)]
    arguments += ["-p", "no:cacheprovider", "--import-mode=importlib", "-q", "--tb=short", "-rfEs", str(test)]
    done = subprocess.run(
        [host.python, "-c", RUN, str(tmp_path), *arguments], cwd=tmp_path, env=host.environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout

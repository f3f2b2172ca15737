"""Runs tests/host/inprocess with the host's own interpreter, where ComfyUI can be imported."""

import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent / "inprocess"


def test_in_process(host):
    command = [host.python, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(FOLDER), "--confcutdir", str(FOLDER)]
    command += ["-p", "no:cacheprovider", "-q", "--tb=short", "-rfEs", str(FOLDER)]
    done = subprocess.run(command, cwd=FOLDER, env=host.environment, capture_output=True, text=True)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

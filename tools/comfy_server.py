"""Real ComfyUI hosts: which there are, and a live server of one, started in a folder of its own, spoken to over HTTP,
always killed. Standard library only.

Hosts come from ``$COMFYUI_PATH`` (separated by ``:``, ``;`` on Windows), else the ComfyUI this pack lies in, else
``~/comfy/ComfyUI*``. Each runs in its own interpreter: ``<host>/.venv/bin/python``, else ``$COMFYUI_PYTHON``, else this
one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Host:
    """A checkout of ComfyUI and the interpreter it runs in."""

    path: Path
    python: str

    @property
    def environment(self):
        """The caller's environment without its Python paths; one thread, because the models are tiny; nothing from a
        hub."""
        kept = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COMFYUI_PATH")
        }
        return kept | {
            "COMFYUI_PATH": str(self.path),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def find_hosts():
    """The hosts of this machine, possibly none."""
    listed = os.environ.get("COMFYUI_PATH")
    if listed:
        candidates = [Path(part).expanduser() for part in listed.split(os.pathsep) if part]
    else:
        candidates = [*ROOT.parents, *sorted(Path("~/comfy").expanduser().glob("ComfyUI*"))]
    return [
        Host(path, _python(path)) for path in candidates if (path / "main.py").is_file() and (path / "comfy").is_dir()
    ]


def _python(path):
    own = path / ".venv" / "bin" / "python"
    return str(own) if own.is_file() else os.environ.get("COMFYUI_PYTHON", sys.executable)


class PromptFailed(AssertionError):
    """A prompt ended in an error; ``error`` is the host's execution_error message."""

    def __init__(self, error, log):
        super().__init__(
            f"{error.get('node_type')}: {error.get('exception_type')}: {error.get('exception_message')}\n{log}"
        )
        self.error = error


class ComfyServer:
    """``with ComfyServer(...) as server:`` starts the host and waits until it answers.

    Attributes:
        support: a second custom node folder, with nodes for the tests.
        base: the server's base directory, with ``input``, ``output``, ``models/<kind>`` and ``custom_nodes``.
        pack_name: folder name of the pack there.
    """

    pack_name = "semantic-editing"

    def __init__(self, host, python, environment, pack, base, support=None, extra_arguments=()):
        self.host, self.python, self.environment, self.base = Path(host), python, environment, Path(base)
        self.extra_arguments = list(extra_arguments)
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "custom_nodes" / self.pack_name).symlink_to(pack, target_is_directory=True)
        if support is not None:
            (self.base / "custom_nodes" / "test-support").symlink_to(support, target_is_directory=True)
        self.log_file = self.base / "server.log"
        self.client = uuid.uuid4().hex

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [self.python, "-u", "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                command + self.extra_arguments,
                cwd=self.host,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_up(self, seconds=300):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"ComfyUI ended with {self.process.returncode}:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError(f"ComfyUI did not answer within {seconds} s:\n{self.log()[-4000:]}")

    def log(self):
        """Everything the server printed so far."""
        return self.log_file.read_text(errors="replace")

    # HTTP ---------------------------------------------------------------------------------------------------------

    def request(self, path, data=None, headers=None):
        """Bytes of the answer; ``urllib.error.HTTPError`` for a refusal."""
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def get(self, path):
        """Parsed JSON of a GET."""
        return json.loads(self.request(path))

    def post(self, path, body):
        """Parsed JSON of a POST, None for an empty answer."""
        answer = self.request(path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.loads(answer) if answer.strip() else None

    def object_info(self, node=None):
        """The host's description of all nodes, or of one."""
        return self.get("/object_info")[node] if node else self.get("/object_info")

    def view(self, image):
        """Bytes of an output image, given its entry in a history's outputs."""
        return self.request("/view?" + urllib.parse.urlencode({k: image[k] for k in ("filename", "subfolder", "type")}))

    # Prompts ------------------------------------------------------------------------------------------------------

    def submit(self, prompt):
        """Queue an API-format prompt; its id. :class:`PromptFailed` with the host's node_errors when it does not
        validate."""
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": self.client})["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            answer["exception_type"], answer["exception_message"] = "validation", json.dumps(answer)
            raise PromptFailed(answer, "") from error

    def wait(self, prompt_id, timeout=300):
        """The history entry of a prompt once it is over, whatever way."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history and history[prompt_id].get("status", {}).get("messages"):
                return history[prompt_id]
            assert self.process.poll() is None, f"ComfyUI died:\n{self.log()[-4000:]}"
            time.sleep(0.05)
        raise AssertionError(f"prompt {prompt_id} did not end within {timeout} s:\n{self.log()[-4000:]}")

    def queue(self, prompt, timeout=300):
        """Run an API-format prompt to its end; the history entry. :class:`PromptFailed` when it errs or is
        cancelled."""
        entry = self.wait(self.submit(prompt), timeout)
        messages = dict(entry["status"]["messages"])
        for kind in ("execution_error", "execution_interrupted"):
            if kind in messages:
                raise PromptFailed(
                    messages[kind] | ({"exception_type": kind} if "interrupted" in kind else {}), self.log()[-4000:]
                )
        return entry

    def interrupt(self):
        """Press Cancel."""
        self.post("/interrupt", {})

    def running(self):
        """Ids of the prompts being executed."""
        return [entry[1] for entry in self.get("/queue")["queue_running"]]

    @contextmanager
    def cancelled(self, prompt, after=None, timeout=120):
        """Submit, wait until ``after(log since submission)`` is true, press Cancel; yields (history entry, seconds it
        took)."""
        start = len(self.log())
        prompt_id = self.submit(prompt)
        deadline = time.monotonic() + timeout
        while prompt_id not in self.running() or (after is not None and not after(self.log()[start:])):
            assert time.monotonic() < deadline, f"never started:\n{self.log()[-4000:]}"
            time.sleep(0.02)
        pressed = time.monotonic()
        self.interrupt()
        entry = self.wait(prompt_id, timeout)
        yield entry, time.monotonic() - pressed

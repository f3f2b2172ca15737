"""Finds real ComfyUI hosts and runs them: ``host`` (a checkout), ``server`` (a live server with this pack in
custom_nodes).

Hosts come from ``$COMFYUI_PATH`` (separated by ``:``, ``;`` on Windows), else the ComfyUI this pack lies in, else
``~/comfy/ComfyUI*``. Each runs in its own interpreter: ``<host>/.venv/bin/python``, else ``$COMFYUI_PYTHON``, else this
one. Without any host all tests here are skipped.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for comfy_server.py, because tests/ is no package
from comfy_server import ComfyServer

PACK = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).parent / "support_nodes"
collect_ignore = ["inprocess", "support_nodes"]  # need comfy; only the host's interpreter has it


@dataclass(frozen=True)
class Host:
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
    listed = os.environ.get("COMFYUI_PATH")
    if listed:
        candidates = [Path(part).expanduser() for part in listed.split(os.pathsep) if part]
    else:
        candidates = [*PACK.parents, *sorted(Path("~/comfy").expanduser().glob("ComfyUI*"))]
    return [
        Host(path, _python(path)) for path in candidates if (path / "main.py").is_file() and (path / "comfy").is_dir()
    ]


def _python(path):
    own = path / ".venv" / "bin" / "python"
    return str(own) if own.is_file() else os.environ.get("COMFYUI_PYTHON", sys.executable)


@pytest.fixture(scope="session", params=find_hosts() or [None], ids=lambda host: host.path.name if host else "none")
def host(request):
    if request.param is None:
        pytest.skip("no ComfyUI found; set COMFYUI_PATH to a checkout")
    return request.param


@pytest.fixture(scope="session")
def server(host, tmp_path_factory):
    """A running server of ``host`` on the CPU with this pack as its only custom node; see :class:`ComfyServer`."""
    with ComfyServer(
        host.path, host.python, host.environment, PACK, tmp_path_factory.mktemp("comfy"), SUPPORT
    ) as running:
        yield running

"""Finds real ComfyUI hosts and runs them: ``host`` (a checkout), ``server`` (a live server with this pack in
custom_nodes).

Which hosts there are and in which interpreter each runs says :mod:`semantic_editing.tools.comfy_server`. Without any
host all tests here are skipped.
"""

from pathlib import Path

import pytest

from semantic_editing.tools.comfy_server import ROOT as PACK
from semantic_editing.tools.comfy_server import ComfyServer, find_hosts

SUPPORT = Path(__file__).parent / "support_nodes"
collect_ignore = ["inprocess", "support_nodes"]  # need comfy; only the host's interpreter has it


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

"""One thread for every network, and the tests shared out to the workers of pytest-xdist.

A file is one worker's, as is a host's live server: module fixtures are made once, and no server is started twice.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="session")  # before any fixture that computes: sums differ with the threads
def one_thread():
    """Networks this small run fastest on one thread; more only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    """Name each test's group. The longest go first, so that both workers end together: hosts, then whole commands."""
    for item in items:
        host = item.callspec.params.get("host") if hasattr(item, "callspec") else None
        way = "live" if "server" in item.fixturenames else "in process"
        item.add_marker(
            pytest.mark.xdist_group(f"{host.path.name} {way}" if host else str(item.path.relative_to(HERE)))
        )
    items.sort(key=lambda item: (not item.path.is_relative_to(HERE / "host"), item.path.parent != HERE))

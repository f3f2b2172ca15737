"""The hosts' own page in the system's Chromium: ``page`` is open at a live server with this pack."""

import os
import shutil
from pathlib import Path

import pytest

from semantic_editing.tests.host.conftest import host, server  # noqa: F401

#: What the hosts' pages complain about by themselves; seen on servers without this pack, but for the last two.
HOST_NOISE = (
    "Failed to load resource",  # optional files of a fresh user folder; see Console
    "ComfyApp graph accessed before initialization",  # 0.33, at start
    "Cannot read properties of undefined (reading 'id')",  # 0.3.64, at start, in its own settings
    "https://huggingface.co",  # asks how large the missing model of a workflow is; nothing is to be reached
    "Error fetching file size",  # the same on 0.3.64
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    """The executable of ``$CHROMIUM_PATH``, else the system's Chromium or Chrome, else None."""
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)


class Console:
    """What a page complains about: errors in its console, uncaught exceptions, failed requests of the pack's own files.

    A host's page asks for optional files that a fresh user folder lacks; Chromium writes these 404s into the console
    without their address, so requests are judged by their address instead.
    """

    def __init__(self, page, pack):
        self.complaints = []
        page.on("console", lambda message: self._said(message))
        page.on("pageerror", lambda error: self._complain(f"uncaught: {error}"))
        page.on("response", lambda answer: self._answered(answer, pack))

    def _said(self, message):
        if message.type == "error":
            self._complain(message.text)

    def _complain(self, text):
        if not any(noise in text for noise in HOST_NOISE):
            self.complaints.append(text)

    def _answered(self, answer, pack):
        if answer.status >= 400 and pack in answer.url:
            self.complaints.append(f"{answer.status} {answer.url}")


@pytest.fixture
def shots(request, tmp_path):
    """Takes a picture of a page under a name: in ``$BROWSER_SHOTS``, where a CI run keeps them, else in pytest's own
    folder."""
    kept = os.environ.get("BROWSER_SHOTS")
    folder = Path(kept) / request.node.name.replace("/", "_") if kept else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=str(folder / f"{name}.png"))


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium found; install it or set CHROMIUM_PATH")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(server, browser):  # noqa: F811
    """A fresh page of ``server`` that is ready to load graphs; ``page.console`` holds its complaints."""
    made = browser.new_page(viewport={"width": 1440, "height": 900})
    made.console = Console(made, server.pack_name)
    made.goto(server.url, timeout=60_000)
    made.wait_for_function("window.app?.vueAppReady", timeout=120_000)
    made.locator("#splash-loader").wait_for(state="hidden", timeout=60_000)  # newer frontends; absent from 0.3.64
    made.locator("#graph-canvas").wait_for(state="visible", timeout=60_000)
    made.wait_for_function("'SemEdit_LoadDemoModel' in LiteGraph.registered_node_types", timeout=60_000)
    yield made
    made.close()

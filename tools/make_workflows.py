"""Build workflows/*.json (the UI's format), workflows/api/*.json (the server's), the Apps workflows/*.app.json and the
blueprints subgraphs/*.json from the one description in workflow_graphs.py, engine_graphs.py, caso_graphs.py,
region_graphs.py, delta_graphs.py, distil_graphs.py and app_graphs.py.

Node definitions come from a running ComfyUI's /object_info, so both formats hold what that host says:

    python tools/make_workflows.py --server http://127.0.0.1:8188            # write the files
    python tools/make_workflows.py --server http://127.0.0.1:8188 --check    # fail when a file differs
    python tools/make_workflows.py --freeze    # keep copies, which must load forever, of those that have none
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def object_info(server: str) -> dict[str, Any]:
    """Node definitions of a running ComfyUI."""
    with urllib.request.urlopen(f"{server}/object_info", timeout=120) as response:
        return json.load(response)


def written(graph: dict[str, Any]) -> str:
    """The text of a graph's file."""
    return json.dumps(graph, indent=1) + "\n"


def build_all(info: dict[str, Any]) -> dict[str, str]:
    """Path from the root -> file text of every workflow in both formats, every App and every blueprint."""
    sys.path.insert(0, str(Path(__file__).parent))  # as when this file is run, also where it is imported
    try:
        from app_graphs import APPS, BLUEPRINTS
        from caso_graphs import GRAPHS as CASO_GRAPHS
        from delta_graphs import GRAPHS as DELTA_GRAPHS
        from distil_graphs import GRAPHS as DISTIL_GRAPHS
        from engine_graphs import GRAPHS as ENGINE_GRAPHS
        from graph_builder import Graph
        from region_graphs import GRAPHS as REGION_GRAPHS
        from workflow_graphs import GRAPHS
    finally:
        sys.path.pop(0)
    files = {}
    graphs = {**GRAPHS, **ENGINE_GRAPHS, **CASO_GRAPHS, **REGION_GRAPHS, **DELTA_GRAPHS, **DISTIL_GRAPHS}
    for name, describe in graphs.items():
        graph = Graph(name, info)
        describe(graph)
        files[f"workflows/{name}.json"] = written(graph.ui())
        files[f"workflows/api/{name}.json"] = written(graph.api())
    for title, (name, describe) in APPS.items():
        graph = Graph(name, info)
        describe(graph)
        files[f"workflows/{title}.app.json"] = written(graph.ui(app=True))
    for title, (describe, description, aliases) in BLUEPRINTS.items():
        graph = Graph(title, info)
        describe(graph)
        files[f"subgraphs/{title}.json"] = written(graph.blueprint(description, aliases))
    return files


def freeze() -> None:
    """Copy what is shipped into tests/golden/<version>; what is there already stays."""
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found is not None
    folder = ROOT / "tests" / "golden" / found.group(1)
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]:
        copy = folder / path.name
        if not copy.exists():
            copy.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))) + "\n", encoding="utf-8")
            print(f"kept  {copy.relative_to(ROOT)}")


def main() -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file differs")
    parser.add_argument("--freeze", action="store_true", help="only keep copies of what is shipped")
    arguments = parser.parse_args()
    if arguments.freeze:
        freeze()
        return 0
    stale = 0
    for name, text in build_all(object_info(arguments.server)).items():
        path = ROOT / name
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        stale += not same
        if not same and not arguments.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{'unchanged' if same else 'differs' if arguments.check else 'written'}  {name}")
    return int(bool(stale and arguments.check))


if __name__ == "__main__":
    sys.exit(main())

"""Bring what repeats the node schemas up to date.

That is locales/en/nodeDefs.json, the tables of inputs and outputs in web/docs/*.md, and tests/nodes/snapshot.json: the
ids, order, types and defaults that saved workflows depend on. A widget is declared in its node alone.

The schemas are read without ComfyUI, under the stand-in for its host beside this file. The prose of the help pages is
written by hand.

    python tools/make_node_docs.py            # write
    python tools/make_node_docs.py --check    # fail when a file differs
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from semantic_editing.tools import host_stand_in
from semantic_editing.tools.node_contract import from_schema

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- sockets and widgets, made by tools/make_node_docs.py -->", "<!-- end -->"


def schemas() -> dict[str, Any]:
    """Node id -> schema of every node."""
    return {
        schema.node_id: schema for schema in (node.define_schema() for node in host_stand_in.load_pack().load_nodes())
    }


def locale(nodes: dict[str, Any]) -> dict[str, Any]:
    """The content of a nodeDefs.json in the schemas' own words."""
    return {
        name: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {slot.id: {"name": slot.id, "tooltip": slot.options["tooltip"]} for slot in schema.inputs},
            "outputs": {
                str(index): {"name": slot.options["display_name"], "tooltip": slot.options["tooltip"]}
                for index, slot in enumerate(schema.outputs)
            },
        }
        for name, schema in nodes.items()
    }


def _default(slot: Any) -> str:
    options = slot.options
    if "default" in options:
        value = options["default"]
        number = (
            f"`{value:.10f}`".rstrip("0`") + "`"
            if isinstance(value, float) and value and value < 1e-3
            else f"`{value}`"
        )
        return number.replace("\n", " ").replace("|", "\\|")
    return "optional" if options.get("optional") else "required"


def _cell(text: str) -> str:
    """``text`` inside a table."""
    return text.replace("|", "\\|")


def table(schema: Any) -> str:
    """The inputs and outputs of a node as Markdown."""
    lines = []
    if schema.inputs:
        lines += ["## Inputs", "", "| input | type | default | what it does |", "|---|---|---|---|"]
        for slot in schema.inputs:
            advanced = " (advanced)" if slot.options.get("advanced") else ""
            lines.append(
                f"| **{slot.id}**{advanced} | {slot.type} | {_default(slot)} | {_cell(slot.options['tooltip'])} |"
            )
        lines.append("")
    lines += ["## Outputs", "", "| output | type | what it is |", "|---|---|---|"]
    lines += [
        f"| **{slot.options['display_name']}** | {slot.type} | {slot.options['tooltip']} |" for slot in schema.outputs
    ]
    return "\n".join(lines)


def page(schema: Any, present: str) -> str:
    """The help page ``present`` with a fresh table between its markers."""
    head, _, rest = present.partition(BEGIN)
    if not rest:
        head, rest = (
            present.rstrip() + "\n\n" if present else f"# {schema.display_name}\n\n{schema.description}\n\n",
            END + "\n",
        )
    return f"{head}{BEGIN}\n\n{table(schema)}\n\n{END}{rest.partition(END)[2]}"


def files() -> dict[Path, str]:
    """Path -> text of everything that follows from the schemas."""
    nodes = schemas()
    contracts = {name: from_schema(schema) for name, schema in nodes.items()}
    made = {
        ROOT / "locales" / "en" / "nodeDefs.json": json.dumps(locale(nodes), indent=2, ensure_ascii=False) + "\n",
        ROOT / "tests" / "nodes" / "snapshot.json": json.dumps(contracts, indent=1) + "\n",
    }
    for name, schema in nodes.items():
        path = ROOT / "web" / "docs" / f"{name}.md"
        made[path] = page(schema, path.read_text(encoding="utf-8") if path.is_file() else "")
    return made


def main() -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file differs")
    arguments = parser.parse_args()
    stale = 0
    for path, text in files().items():
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        stale += not same
        if not same:
            print(f"{'differs' if arguments.check else 'written'}  {path.relative_to(ROOT)}")
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    return int(bool(stale and arguments.check))


if __name__ == "__main__":
    sys.exit(main())

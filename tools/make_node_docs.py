"""Bring what repeats the node schemas up to date.

That is locales/en/nodeDefs.json, the picture and the lists of inputs and outputs in web/docs/*.md, the translated
pages of the main nodes, and tests/nodes/snapshot.json: the ids, order, types and defaults that saved workflows depend
on. A widget is declared in its node alone.

The schemas are read without ComfyUI, under the stand-in for its host beside this file. The prose of the help pages is
written by hand.

    python tools/make_node_docs.py            # write
    python tools/make_node_docs.py --check    # fail when a file differs
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from semantic_editing.tools import host_stand_in
from semantic_editing.tools.gallery import GALLERY
from semantic_editing.tools.node_contract import from_schema

ROOT = Path(__file__).resolve().parents[1]
#: Small before and after pictures of the workflows (tools/make_previews.py); pages may only show what lies beside them.
PICTURES = ROOT / "web" / "docs" / "pictures"
#: Language -> headings of inputs and outputs, what ends a sentence, and the words for required and optional.
HEADINGS = {"zh": ("输入", "输出", "。", "必需", "可选"), "ja": ("入力", "出力", "。", "必須", "任意")}
#: The nodes that a person meets first; their pages exist in every language.
MAIN = (
    "SemEdit_SPDInvInversion",
    "SemEdit_SentenceEditDirection",
    "SemEdit_ApplyEditDirection",
    "SemEdit_CrossAttnGuidedSampler",
    "SemEdit_CASOEmbeddingLoader",
    "SemEdit_CASOEditSampler",
    "SemEdit_DeltaEditMapper",
    "SemEdit_InvertToStyleCode",
    "SemEdit_EditByWords",
    "SemEdit_RegionBoxGenerator",
    "SemEdit_CASOEmbeddingTrainer",
    "SemEdit_DistilledEdit",
    "SemEdit_EditReport",
)
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
        return number.replace("\n", " ")
    return "optional" if options.get("optional") else "required"


def _short(text: str) -> str:
    """The first sentence: the help panel is narrow, and the whole text is the tooltip of the widget itself."""
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0]


def table(schema: Any) -> str:
    """The inputs and outputs of a node as Markdown lists, which wrap where a table would not."""
    lines = []
    if schema.inputs:
        lines += ["## Inputs", ""]
        for slot in schema.inputs:
            advanced = "advanced, " if slot.options.get("advanced") else ""
            lines.append(
                f"- **{slot.id}** ({advanced}{slot.type}, {_default(slot)}): {_short(slot.options['tooltip'])}"
            )
        lines.append("")
    lines += ["## Outputs", ""]
    lines += [
        f"- **{slot.options['display_name']}** ({slot.type}): {_short(slot.options['tooltip'])}"
        for slot in schema.outputs
    ]
    return "\n".join(lines)


def _with_picture(head: str, rest: str) -> str:
    """``head`` of a page with the before and after of the first demo workflow that the page names, under the title."""
    title, _, prose = head.partition("\n\n")
    if prose.startswith("!["):
        prose = prose.partition("\n\n")[2]
    named = [name for title in re.findall(r"\*(\d\d .+?)\*", rest) for name, known in GALLERY.items() if known == title]
    shown = [name for name in named if (PICTURES / f"{name}.jpg").is_file()]
    picture = f"![before and after, workflow {GALLERY[shown[0]]}](pictures/{shown[0]}.jpg)\n\n" if shown else ""
    return f"{title}\n\n{picture}{prose}"


def page(schema: Any, present: str) -> str:
    """The help page ``present`` with its picture and fresh lists between its markers."""
    head, _, rest = present.partition(BEGIN)
    if not rest:
        head, rest = (
            present.rstrip() + "\n\n" if present else f"# {schema.display_name}\n\n{schema.description}\n\n",
            END + "\n",
        )
    head = _with_picture(head, rest.partition("## See it")[2])
    return f"{head}{BEGIN}\n\n{table(schema)}\n\n{END}{rest.partition(END)[2]}"


def translated_page(language: str, name: str, schema: Any, english: str) -> str:
    """The help page of a main node in another language, from what its locale says of the node."""
    path = ROOT / "locales" / language / "nodeDefs.json"
    words = json.loads(path.read_text(encoding="utf-8"))[name]
    inputs, outputs, full_stop, required, optional = HEADINGS[language]
    wired = {"required": required, "optional": optional}
    lines = [f"# {words['display_name']}", ""]
    picture = re.search(r"^!\[.*?\]\((.*?)\)", english, re.M)
    lines += [f"![]({picture.group(1)})", ""] if picture else []
    lines += [words["description"], "", f"## {inputs}", ""]
    for slot in schema.inputs:
        said = words["inputs"][slot.id]
        default = wired.get(_default(slot), _default(slot))
        lines.append(f"- **{said['name']}** ({default}): {said['tooltip'].partition(full_stop)[0]}{full_stop}")
    lines += ["", f"## {outputs}", ""]
    for said in words["outputs"].values():
        lines.append(f"- **{said['name']}**: {said['tooltip'].partition(full_stop)[0]}{full_stop}")
    return "\n".join(lines) + "\n"


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
    for language in HEADINGS:
        for name in MAIN:
            english = made[ROOT / "web" / "docs" / f"{name}.md"]
            made[ROOT / "web" / "docs" / name / f"{language}.md"] = translated_page(
                language, name, nodes[name], english
            )
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
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return int(bool(stale and arguments.check))


if __name__ == "__main__":
    sys.exit(main())

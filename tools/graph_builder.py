"""A workflow under construction: nodes placed in columns and wired, written in the UI's format and in the server's."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN_GAP, ROW_GAP, TITLE, SLOT, WIDGET = 60, 60, 30, 20, 26
TEXT_HEIGHT, PICTURE_HEIGHT = 130, 260
#: Nodes that show a picture under their widgets.
PICTURE_NODES = {
    "PreviewImage",
    "SaveImage",
    "LoadImage",
    "SemEdit_SPDInvInversion",
    "SemEdit_AutocorrDDIMInversion",
    "SemEdit_CASOEmbeddingTrainer",
    "SemEdit_RegionBoxGenerator",
    "SemEdit_RegionNetworkTrainer",
    "SemEdit_EditReport",
    "SemEdit_InvertToStyleCode",
    "SemEdit_DeltaEditMapper",
    "SemEdit_StyleDiffusionDecode",
    "SemEdit_DistilEditTrainer",
    "SemEdit_DistilledEdit",
}


class Output(NamedTuple):
    """An output slot of a node in the graph."""

    node: int
    slot: int
    type: str


@dataclass
class Node:
    """One placed node: ``inputs`` maps names to widget values or :class:`Output`."""

    id: int
    type: str
    definition: dict[str, Any]
    inputs: dict[str, Any]
    column: int
    title: str
    width: int
    height: int
    note: str | None = None
    models: list[dict[str, str]] = field(default_factory=list)

    def out(self, name: str) -> Output:
        """The output called ``name`` (or of type ``name``)."""
        names, types = self.definition["output_name"], self.definition["output"]
        slot = names.index(name) if name in names else types.index(name)
        return Output(self.id, slot, types[slot])


def specifications(definition: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> (type, options) of all inputs in the host's order."""
    groups = definition["input"]
    merged = {**groups.get("required", {}), **groups.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in merged.items()}


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Whether the UI shows an input as a widget."""
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def type_name(kind: Any) -> str:
    """An input's type as the UI stores it; old-style combos are lists of their values."""
    return "COMBO" if isinstance(kind, list) else str(kind)


def default_value(kind: Any, options: dict[str, Any]) -> Any:
    """What the UI puts into a fresh widget."""
    choices = kind if isinstance(kind, list) else options.get("options")
    empty = choices[0] if choices else ""
    return options.get("default", empty)


@dataclass
class Graph:
    """A workflow under construction. ``info`` is /object_info."""

    name: str
    info: dict[str, Any]
    nodes: list[Node] = field(default_factory=list)
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        column: int,
        /,
        *,
        title: str = "",
        width: int = 300,
        height: int = 0,
        models: list[dict[str, str]] | None = None,
        **inputs: Any,
    ) -> Node:
        """Place a node in ``column``, under those already there; unnamed widgets take the host's defaults.

        ``models`` are the files a loader needs ({name, url, directory}); the UI offers to download those that are
        missing.

        Raises:
            KeyError, ValueError: a node or input that the host does not have, or a link of the wrong type.
        """
        definition = self.info[kind]
        known = specifications(definition)
        unknown = set(inputs) - set(known)
        if unknown:
            raise ValueError(f"{self.name}: {kind} has no input {sorted(unknown)}")
        values: dict[str, Any] = {}
        for name, (wanted, options) in known.items():
            if name in inputs:
                values[name] = inputs[name]
                if isinstance(values[name], Output) and type_name(wanted) not in ("*", values[name].type):
                    raise ValueError(f"{self.name}: {kind}.{name} wants {wanted} and gets {values[name].type}")
            elif is_widget(wanted, options):
                values[name] = default_value(wanted, options)
            elif name in definition["input"].get("required", {}):
                raise ValueError(f"{self.name}: {kind}.{name} is not wired")
        natural = self._height(kind, definition)
        node = Node(
            len(self.nodes) + 1,
            kind,
            definition,
            values,
            column,
            title or definition["display_name"],
            width,
            max(height, natural),
        )
        node.models = models or []
        self.nodes.append(node)
        return node

    def note(self, text: str, column: int, *, title: str = "Note", width: int = 300, height: int = 200) -> None:
        """Place a MarkdownNote."""
        empty = {"input": {}, "output": [], "output_name": []}
        self.nodes.append(Node(len(self.nodes) + 1, "MarkdownNote", empty, {}, column, title, width, height, note=text))

    def _height(self, kind: str, definition: dict[str, Any]) -> int:
        sockets = widgets = texts = 0
        for wanted, options in specifications(definition).values():
            if not is_widget(wanted, options):
                sockets += 1
            elif options.get("multiline"):
                texts += 1
            else:
                widgets += 1 + bool(options.get("control_after_generate"))
        picture = PICTURE_HEIGHT if kind in PICTURE_NODES else 0
        return max(sockets, len(definition["output"])) * SLOT + widgets * WIDGET + texts * TEXT_HEIGHT + picture + 16

    def _positions(self) -> dict[int, tuple[int, int]]:
        columns = sorted({node.column for node in self.nodes})
        left = 0
        placed = {}
        for column in columns:
            members = [node for node in self.nodes if node.column == column]
            top = 0
            for node in members:
                placed[node.id] = (left, top)
                top += node.height + TITLE + ROW_GAP - 20
            left += max(node.width for node in members) + COLUMN_GAP
        return placed

    def api(self) -> dict[str, Any]:
        """The graph as the server takes it at /prompt."""
        prompt = {}
        for node in self.nodes:
            if node.note is None:
                inputs = {k: [str(v.node), v.slot] if isinstance(v, Output) else v for k, v in node.inputs.items()}
                prompt[str(node.id)] = {"inputs": inputs, "class_type": node.type, "_meta": {"title": node.title}}
        return prompt

    def ui(self) -> dict[str, Any]:
        """The graph as the UI saves it."""
        positions = self._positions()
        links: list[list[Any]] = []
        by_output: dict[tuple[int, int], list[int]] = {}
        stored = []
        for order, node in enumerate(self.nodes):
            inputs, values = self._ui_inputs(node, links, by_output)
            entry: dict[str, Any] = {
                "id": node.id,
                "type": node.type,
                "pos": list(positions[node.id]),
                "size": [node.width, node.height],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": inputs,
                "outputs": [],
                "properties": self._properties(node),
                "widgets_values": values if node.note is None else [node.note],
            }
            if node.title != node.definition.get("display_name"):
                entry["title"] = node.title
            if node.note is not None:
                entry |= {"color": "#432", "bgcolor": "#653"}
            stored.append(entry)
        for node, entry in zip(self.nodes, stored, strict=True):
            for slot, (name, kind) in enumerate(
                zip(node.definition["output_name"], node.definition["output"], strict=True)
            ):
                linked = by_output.get((node.id, slot))
                entry["outputs"].append(
                    {"localized_name": name, "name": name, "type": type_name(kind), "links": linked}
                )
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"semantic-editing/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": stored,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 80]}},
            "version": 0.4,
        }

    @staticmethod
    def _properties(node: Node) -> dict[str, Any]:
        if node.note is not None:
            return {}
        return {"Node name for S&R": node.type} | ({"models": node.models} if node.models else {})

    def _ui_inputs(
        self, node: Node, links: list[list[Any]], by_output: dict[tuple[int, int], list[int]]
    ) -> tuple[list[Any], list[Any]]:
        sockets, widgets, values = [], [], []
        for name, (kind, options) in specifications(node.definition).items():
            value = node.inputs.get(name)
            slot = {"localized_name": name, "name": name, "type": type_name(kind), "link": None}
            if is_widget(kind, options):
                slot["widget"] = {"name": name}
                widgets.append((slot, value))
                values.append(default_value(kind, options) if isinstance(value, Output) else value)
                if options.get("control_after_generate"):
                    values.append("fixed")
                if options.get("image_upload"):
                    values.append("image")
            else:
                if name not in node.definition["input"].get("required", {}):
                    slot["shape"] = 7
                sockets.append((slot, value))
        ordered = sockets + widgets
        for index, (slot, value) in enumerate(ordered):
            if isinstance(value, Output):
                links.append([len(links) + 1, value.node, value.slot, node.id, index, value.type])
                slot["link"] = len(links)
                by_output.setdefault((value.node, value.slot), []).append(len(links))
        return [slot for slot, _ in ordered], values

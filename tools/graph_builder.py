"""A workflow under construction: nodes placed in columns and wired, written in the UI's format and in the server's.

A graph may close all that a person need not see into one node (:meth:`Graph.enclose`, a subgraph). What is left open
then lies in three coloured groups (graph_layout.py); the server's format knows no subgraphs and stays flat.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from graph_layout import OPEN_NODES, in_columns, natural_height, three_groups
from graph_parts import Box, Node, Output, default_value, free_name, is_widget, specifications, type_name

#: The order of a closed part's sockets.
SOCKET_ORDER = ("MODEL", "CLIP", "VAE", "IMAGE", "CONDITIONING")
#: What is left out of a title on the canvas.
LONG_TITLE = " (for comparison)"
#: Node ids of a subgraph's two edges, fixed by the frontend.
INPUTS, OUTPUTS = -10, -20


@dataclass
class Graph:
    """A workflow under construction. ``info`` is /object_info."""

    name: str
    info: dict[str, Any]
    nodes: list[Node] = field(default_factory=list)
    box: Box | None = None
    grouped: bool = False
    free: list[tuple[str, str]] = field(default_factory=list)
    form: tuple[list[tuple[Node, str]], list[Node]] | None = None

    def enclose(
        self, title: str, *promoted: tuple[Node, str] | tuple[Node, str, str], also: tuple[Node, ...] = ()
    ) -> None:
        """Close every node but those of :data:`OPEN_NODES` (and ``also``, which stay open) into one called ``title``.

        ``promoted`` are the (node, widget) or (node, widget, label) that it shows, in this order.
        """
        known = [(node, name, label[0] if label else name.replace("_", " ")) for node, name, *label in promoted]
        self.grouped = True
        keep = {node.id for node in also}
        members = {node.id for node in self.nodes if node.type not in OPEN_NODES and node.id not in keep}
        outside = [node.type for node, _, _ in known if node.id not in members]
        if outside:
            raise ValueError(f"{self.name}: {outside} are not inside")
        self.box = Box(0, title, self._uuid("box"), known, members)

    def group(self) -> None:
        """Lay the graph out in three groups, with nothing closed: for graphs of few nodes."""
        self.grouped = True

    def only(self, kind: str) -> Node:
        """The one node of a type, or the one of a title.

        Raises:
            ValueError: none or several.
        """
        found = [node for node in self.nodes if kind in (node.type, node.title)]
        if len(found) != 1:
            raise ValueError(f"{self.name}: {len(found)} nodes are called {kind}")
        return found[0]

    def give(self, result: Output, name: str) -> None:
        """An output of a blueprint."""
        assert self.box is not None
        self.box.output_of(result, name)

    def app(self, inputs: list[tuple[Node, str]], outputs: list[Node]) -> None:
        """What a host that shows Apps makes of this graph: a form of these widgets, and these pictures."""
        self.form = (inputs, outputs)

    def edge(self, name: str, kind: str) -> Output:
        """An input of a blueprint: comes from whatever a person wires to it."""
        self.free.append((name, kind))
        return Output(-100 - len(self.free), 0, kind)

    def _uuid(self, what: str = "") -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"semantic-editing/{self.name}{what and '/' + what}"))

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
                taken = type_name(wanted).split(",")  # a socket may take several types
                if isinstance(values[name], Output) and not {"*", values[name].type} & set(taken):
                    raise ValueError(f"{self.name}: {kind}.{name} wants {wanted} and gets {values[name].type}")
            elif is_widget(wanted, options):
                values[name] = default_value(wanted, options)
            elif name in definition["input"].get("required", {}):
                raise ValueError(f"{self.name}: {kind}.{name} is not wired")
        natural = natural_height(kind, definition)
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

    def api(self) -> dict[str, Any]:
        """The graph as the server takes it at /prompt."""
        prompt = {}
        for node in self.nodes:
            if node.note is None:
                inputs = {k: [str(v.node), v.slot] if isinstance(v, Output) else v for k, v in node.inputs.items()}
                prompt[str(node.id)] = {"inputs": inputs, "class_type": node.type, "_meta": {"title": node.title}}
        return prompt

    def ui(self, *, app: bool = False) -> dict[str, Any]:
        """The graph as the UI saves it; ``app`` opens it as the form of :meth:`app` where the host knows such forms."""
        whole: dict[str, Any] = {
            "id": self._uuid("app" if app else ""),
            "revision": 0,
            "last_node_id": len(self.nodes) + (self.box is not None),
            "last_link_id": 0,
            "nodes": [],
            "links": [],
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        links: list[list[Any]] = []
        if self.box is not None:
            self.box.id = len(self.nodes) + 1
        if not self.grouped:
            whole["nodes"] = self._stored(self.nodes, in_columns(self.nodes), links)
            whole["extra"] = {"ds": {"scale": 0.6, "offset": [60, 80]}}
        else:
            inner: list[list[Any]] = []
            inside = self.box.members if self.box is not None else set()
            members = [node for node in self.nodes if node.id in inside]
            self._collect_sockets(members)
            # The members come first: they say which inputs the box has, and what is outside says which outputs.
            closed = self._stored(members, in_columns(members), inner)
            visible = [node for node in self.nodes if node.id not in inside]
            positions, sizes, whole["groups"] = three_groups(visible, self.box)
            stored = self._stored(visible, positions, links)
            for entry in stored:
                entry["size"] = list(sizes[entry["id"]])
                if entry["type"] == "PreviewAny":
                    entry["flags"] = {"collapsed": True}
            if self.box is not None:
                stored.append(self._box_entry(positions[self.box.id], sizes[self.box.id], links))
                whole["definitions"] = {"subgraphs": [self._definition(closed, inner)]}
                whole["last_link_id"] = len(inner)
            for entry in stored:
                for slot, output in enumerate(entry["outputs"]):
                    output["links"] = [link[0] for link in links if link[1:3] == [entry["id"], slot]] or None
            whole["nodes"] = stored
        whole["links"] = links
        whole["last_link_id"] = max(whole["last_link_id"], len(links))
        if app:
            whole["extra"] |= {"linearMode": True, "linearData": self._form()}
        return whole

    def blueprint(self, description: str, aliases: list[str]) -> dict[str, Any]:
        """The closed part alone, as a node that a person finds by its name and ``aliases``."""
        assert self.box is not None
        whole = self.ui()
        whole["extra"] = {"BlueprintDescription": description, "BlueprintSearchAliases": aliases}
        definition = whole["definitions"]["subgraphs"][0]
        definition |= {"category": "semantic editing", "description": description}
        return whole

    def _form(self) -> dict[str, Any]:
        """The App's widgets and pictures; a widget inside the closed part is that of the box."""
        inputs = []
        for node, name in self.form[0] if self.form else ():
            inside = self.box is not None and node.id in self.box.members
            inputs.append([self.box.id, self._promoted_name(node, name)] if inside and self.box else [node.id, name])
        return {"inputs": inputs, "outputs": [node.id for node in (self.form[1] if self.form else ())]}

    def _promoted_name(self, node: Node, widget: str) -> str:
        assert self.box is not None
        if (node.id, widget) not in [(n.id, w) for n, w, _ in self.box.promoted]:
            raise ValueError(f"{self.name}: {node.type}.{widget} is not shown by the box")
        return self._names()[node.id, widget]

    def _names(self) -> dict[tuple[int, str], str]:
        """(node, widget) -> what the box calls it; two widgets of one name get numbers."""
        assert self.box is not None
        names: dict[tuple[int, str], str] = {}
        for node, widget, _ in self.box.promoted:
            names[node.id, widget] = free_name(widget, list(names.values()))
        return names

    def _collect_sockets(self, members: list[Node]) -> None:
        """Inputs and outputs of the closed part, in the order that its node shows them."""
        found = [
            (node, name, value)
            for node in members
            for name, value in node.inputs.items()
            if isinstance(value, Output) and value.node not in {member.id for member in members}
        ]
        order = {kind: number for number, kind in enumerate(SOCKET_ORDER)}
        for node, name, value in sorted(found, key=lambda entry: order.get(entry[2].type, len(order))):
            self._source_slot(node, name, value)
            if self.box is not None and is_widget(*specifications(node.definition)[name]):
                self.box.texts.add(value)  # the host shows a widget on the box, too
        inside = {member.id for member in members}
        wanted = [
            (node, name, value)
            for node in self.nodes
            for name, value in node.inputs.items()
            if node.id not in inside and isinstance(value, Output) and value.node in inside
        ]
        for node, name, value in sorted(wanted, key=lambda entry: entry[2].type != "IMAGE"):
            self._source_slot(node, name, value)

    def _source_slot(self, node: Node, name: str, value: Output) -> tuple[int, int]:
        """(node, slot) that a link of ``node`` begins at, as seen where ``node`` lies."""
        box = self.box
        if box is None or (node.id in box.members) == (value.node in box.members):
            return value.node, value.slot
        if node.id in box.members:
            if value.node < 0:
                label = self.free[-value.node - 101][0]
            else:
                maker = self.nodes[value.node - 1].definition
                label = maker["output_name"][value.slot].lower()
            return INPUTS, box.slot_of(value, label)
        return box.id, box.output_of(value, self.nodes[value.node - 1].definition["output_name"][value.slot].lower())

    def _stored(
        self, nodes: list[Node], positions: dict[int, tuple[int, int]], links: list[list[Any]]
    ) -> list[dict[str, Any]]:
        """The entries of ``nodes``; appends their links."""
        stored = []
        for order, node in enumerate(nodes):
            inputs, values = self._ui_inputs(node, links)
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
                # On the canvas a long title makes a node wide.
                entry["title"] = node.title.removesuffix(LONG_TITLE) if self.grouped else node.title
            if node.note is not None:
                entry |= {"color": "#432", "bgcolor": "#653"}
            stored.append(entry)
        for node, entry in zip(nodes, stored, strict=True):
            for slot, (name, kind) in enumerate(
                zip(node.definition["output_name"], node.definition["output"], strict=True)
            ):
                linked = [link[0] for link in links if link[1:3] == [node.id, slot]] or None
                entry["outputs"].append(
                    {"localized_name": name, "name": name, "type": type_name(kind), "links": linked}
                )
        return stored

    def _box_entry(self, position: tuple[int, int], size: tuple[int, int], links: list[list[Any]]) -> dict[str, Any]:
        """The node that stands for the closed part."""
        box, names = self.box, self._names()
        assert box is not None
        inputs: list[dict[str, Any]] = []
        for source, name in box.sources.items():
            link = None
            if source.node >= 0:
                links.append([len(links) + 1, source.node, source.slot, box.id, len(inputs), source.type])
                link = len(links)
            slot = {"localized_name": name, "name": name, "type": source.type, "link": link}
            inputs.append(slot | ({"widget": {"name": name}} if source in box.texts else {}))
        values: list[Any] = ["" for source in box.sources if source in box.texts]
        for node, widget, label in box.promoted:
            kind, _ = specifications(node.definition)[widget]
            name = names[node.id, widget]
            inputs.append(
                {"label": label, "localized_name": name, "name": name, "type": type_name(kind),
                 "widget": {"name": name}, "link": None}
            )  # fmt: skip
            values.append(node.inputs[widget])
        outputs = [
            {"localized_name": name, "name": name, "type": type_name(result.type), "links": None}
            for result, name in box.results.items()
        ]
        return {
            "id": box.id,
            "type": box.kind,
            "pos": list(position),
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "title": box.title,
            "properties": {},
            "widgets_values": values,
        }

    def _definition(self, nodes: list[dict[str, Any]], inner: list[list[Any]]) -> dict[str, Any]:
        """The subgraph's own description: its nodes, its two edges and all links, the edges' among them."""
        box, names = self.box, self._names()
        assert box is not None
        stored = {entry["id"]: entry for entry in nodes}
        first = len(box.sources)
        for number, (node, widget, _) in enumerate(box.promoted):
            slots = stored[node.id]["inputs"]
            (slot,) = [index for index, candidate in enumerate(slots) if candidate["name"] == widget]
            slots[slot]["link"] = len(inner) + 1
            inner.append([len(inner) + 1, INPUTS, first + number, node.id, slot, slots[slot]["type"]])
        for number, result in enumerate(box.results):
            link = len(inner) + 1
            inner.append([link, result.node, result.slot, OUTPUTS, number, type_name(result.type)])
            output = stored[result.node]["outputs"][result.slot]
            output["links"] = [*(output["links"] or []), link]
        widest = max((entry["pos"][0] + entry["size"][0] for entry in nodes), default=0)

        def edges(rows: list[tuple[str, str, str | None]], side: int, key: int) -> list[dict[str, Any]]:
            made = []
            for number, (name, kind, label) in enumerate(rows):
                own = [link[0] for link in inner if link[key] == side and link[key + 1] == number]
                entry = {"id": self._uuid(f"{side}/{name}"), "name": name, "type": kind, "linkIds": own,
                         "localized_name": name}  # fmt: skip
                if label is not None:
                    entry["label"] = label
                made.append(entry | {"pos": [-100 if side == INPUTS else widest + 120, 20 + 20 * number]})
            return made

        into: list[tuple[str, str, str | None]] = [(name, source.type, None) for source, name in box.sources.items()]
        for node, widget, label in box.promoted:
            kind, _ = specifications(node.definition)[widget]
            into.append((names[node.id, widget], type_name(kind), label))
        out: list[tuple[str, str, str | None]] = [(name, type_name(r.type), None) for r, name in box.results.items()]
        return {
            "id": box.kind,
            "version": 1,
            "state": {"lastGroupId": 0, "lastNodeId": len(self.nodes), "lastLinkId": len(inner), "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": box.title,
            "inputNode": {"id": INPUTS, "bounding": [-220, 0, 120, 40 + 20 * len(into)]},
            "outputNode": {"id": OUTPUTS, "bounding": [widest + 100, 0, 120, 40 + 20 * len(out)]},
            "inputs": edges(into, INPUTS, 1),
            "outputs": edges(out, OUTPUTS, 3),
            "widgets": [],
            "nodes": nodes,
            "groups": [],
            "links": [
                dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
                for link in inner
            ],
            "extra": {},
        }

    @staticmethod
    def _properties(node: Node) -> dict[str, Any]:
        if node.note is not None:
            return {}
        return {"Node name for S&R": node.type} | ({"models": node.models} if node.models else {})

    def _ui_inputs(self, node: Node, links: list[list[Any]]) -> tuple[list[Any], list[Any]]:
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
                start = self._source_slot(node, slot["name"], value)
                links.append([len(links) + 1, *start, node.id, index, value.type])
                slot["link"] = len(links)
        return [slot for slot, _ in ordered], values

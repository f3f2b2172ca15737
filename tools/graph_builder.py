"""A workflow under construction: nodes placed in columns and wired, written in the UI's format and in the server's.

A graph may close all that a person need not see into one node (:meth:`Graph.enclose`, a subgraph). What is left open
then lies in three coloured groups no wider than :data:`WIDEST`; the server's format knows no subgraphs and stays flat.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Pixels of a workflow with three groups, and of its pieces. The hosts open a workflow so that it takes three quarters
#: of the window: at 1440 x 900 text is drawn (a zoom of 0.7 and more) up to this width and height.
WIDEST, TALLEST = 1300, 900
LEFT, MIDDLE, RIGHT, PAD, BETWEEN, GAP = 250, 310, 636, 14, 10, 16
PICTURES_IN_A_ROW, PICTURE_GAP, SHORT_TEXT = 3, 12, 84
GROUPS = (("1 your picture", "#3f789e"), ("2 your words", "#8a6d3b"), ("3 result", "#4f8a4f"))
#: The order of a closed part's sockets.
#: What is left out of a title on the canvas.
LONG_TITLE = " (for comparison)"
SOCKET_ORDER = ("MODEL", "CLIP", "VAE", "IMAGE", "CONDITIONING")
#: What stays outside a closed part: where pictures and models come from, and what a person looks at.
OPEN_NODES = {
    "CheckpointLoaderSimple",
    "LoadImage",
    "SemEdit_LoadDemoModel",
    "SemEdit_LoadDemoImage",
    "PreviewImage",
    "SaveImage",
    "PreviewAny",
    "SemEdit_EditReport",
    "MarkdownNote",
}
RESULTS = {"PreviewImage", "SaveImage", "PreviewAny", "SemEdit_EditReport"}
#: Node ids of a subgraph's two edges, fixed by the frontend.
INPUTS, OUTPUTS = -10, -20
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
class Box:
    """The closed part of a workflow: ``promoted`` are (node, widget, label) that a person turns from outside."""

    id: int
    title: str
    kind: str
    promoted: list[tuple[Node, str, str]]
    members: set[int]
    sources: dict[Output, str] = field(default_factory=dict)
    results: dict[Output, str] = field(default_factory=dict)
    texts: set[Output] = field(default_factory=set)

    def slot_of(self, source: Output, name: str) -> int:
        """Which input of the box carries ``source``; a new one called about ``name`` when none does yet."""
        if source not in self.sources:
            self.sources[source] = _unlike(name, [*self.sources.values(), *(w for _, w, _ in self.promoted)])
        return list(self.sources).index(source)

    def output_of(self, result: Output, name: str) -> int:
        """Which output of the box carries ``result``."""
        if result not in self.results:
            self.results[result] = _unlike(name, list(self.results.values()))
        return list(self.results).index(result)


def _unlike(name: str, taken: list[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free


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

    @staticmethod
    def _positions(nodes: list[Node]) -> dict[int, tuple[int, int]]:
        columns = sorted({node.column for node in nodes})
        left = 0
        placed = {}
        for column in columns:
            members = [node for node in nodes if node.column == column]
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
            whole["nodes"] = self._stored(self.nodes, self._positions(self.nodes), links)
            whole["extra"] = {"ds": {"scale": 0.6, "offset": [60, 80]}}
        else:
            inner: list[list[Any]] = []
            inside = self.box.members if self.box is not None else set()
            members = [node for node in self.nodes if node.id in inside]
            self._collect_sockets(members)
            # The members come first: they say which inputs the box has, and what is outside says which outputs.
            closed = self._stored(members, self._positions(members), inner)
            visible = [node for node in self.nodes if node.id not in inside]
            positions, sizes, whole["groups"] = self._three_groups(visible)
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
            names[node.id, widget] = _unlike(widget, list(names.values()))
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

    def _three_groups(
        self, nodes: list[Node]
    ) -> tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]], list[dict[str, Any]]]:
        """Positions and sizes of what is open, and the three groups round them."""
        positions: dict[int, tuple[int, int]] = {}
        sizes: dict[int, tuple[int, int]] = {}

        def place(number: int, left: int, top: int, width: int, height: int) -> int:
            positions[number], sizes[number] = (left, top + TITLE), (width, height)
            return top + TITLE + height + GAP

        def stack(members: list[tuple[int, int]], left: int, top: int, width: int) -> int:
            for number, height in members:
                top = place(number, left, top, width, height)
            return top

        words, right = LEFT + 2 * PAD + BETWEEN, LEFT + MIDDLE + 4 * PAD + 2 * BETWEEN
        results = [node for node in nodes if node.type in RESULTS]
        first = [node for node in nodes if node not in results and node.type in OPEN_NODES and node.note is None]
        notes = [node for node in nodes if node.note is not None]
        second = [node for node in nodes if node not in results + first + notes]
        bottoms = [stack([(node.id, node.height) for node in first + notes], 0, 0, LEFT)]
        members = [(node.id, self._short_height(node)) for node in second]
        if self.box is not None:
            members.append((self.box.id, self._box_height()))
        bottoms.append(stack(members, words, 0, MIDDLE))

        pictures = [node for node in results if node.type in ("SaveImage", "PreviewImage")]
        # What came out stands beside what went in, in that order.
        pictures.sort(key=lambda node: {"Original": 0, "Edited image": 1, "Rebuilt image": 1}.get(node.title, 2))
        reported = any(node.type == "SemEdit_EditReport" for node in results)
        a_row = PICTURES_IN_A_ROW if len(pictures) != 4 else 2
        tall = 290 if len(pictures) <= a_row else 200
        top = 0
        for start in range(0, len(pictures), a_row):
            row = pictures[start : start + a_row]
            width = (RIGHT - PICTURE_GAP * (min(a_row, len(pictures)) - 1)) // min(a_row, len(pictures))
            for column, node in enumerate(row):
                below = place(node.id, right + column * (width + PICTURE_GAP), top, width, tall if reported else 380)
            top = below
        for node in results:
            if node.type == "SemEdit_EditReport":
                top = place(node.id, right, top, RIGHT, 430 if len(pictures) <= a_row else 300)
        texts = [node for node in results if node.type == "PreviewAny"]
        for number, node in enumerate(texts):
            # Folded to its title: the figures are for those who ask. Opened, it has room to the right and below.
            place(node.id, right + number * (RIGHT // 3), top, max(node.width, 680), node.height)
        bottoms.append(top + (TITLE + GAP if texts else 0))
        groups = []
        for number, ((title, color), left, width) in enumerate(
            zip(GROUPS, (0, words, right), (LEFT, MIDDLE, RIGHT), strict=True)
        ):
            bounding = [left - PAD, -54, width + 2 * PAD, bottoms[number] + 54]
            groups.append(
                {"id": number + 1, "title": title, "bounding": bounding, "color": color, "font_size": 22, "flags": {}}
            )
        return positions, sizes, groups

    def _short_height(self, node: Node) -> int:
        """The height of an open node whose texts are short."""
        texts = sum(bool(options.get("multiline")) for _, options in specifications(node.definition).values())
        return node.height - texts * (TEXT_HEIGHT - SHORT_TEXT)

    def _box_height(self) -> int:
        assert self.box is not None
        height = max(len(self.box.sources), len(self.box.results)) * SLOT + 16 + SHORT_TEXT * len(self.box.texts)
        for node, widget, _ in self.box.promoted:
            _, options = specifications(node.definition)[widget]
            height += SHORT_TEXT if options.get("multiline") else WIDGET
        return height

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

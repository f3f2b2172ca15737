"""What a workflow under construction is made of: nodes, their outputs and the one closed part, as the host's
/object_info describes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


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
            self.sources[source] = free_name(name, [*self.sources.values(), *(w for _, w, _ in self.promoted)])
        return list(self.sources).index(source)

    def output_of(self, result: Output, name: str) -> int:
        """Which output of the box carries ``result``."""
        if result not in self.results:
            self.results[result] = free_name(name, list(self.results.values()))
        return list(self.results).index(result)


def free_name(name: str, taken: list[str]) -> str:
    """``name``, with a number when it is among ``taken``."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free

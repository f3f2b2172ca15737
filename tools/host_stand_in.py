"""A stand-in for ``nodes/host`` where no ComfyUI is present: enough of its V3 API to read schemas and call ``execute``."""

from __future__ import annotations

import ast
import contextlib
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PACK = "semantic_editing_under_a_fake_host"
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Slot:
    """An input or output of a schema."""

    id: str
    type: str
    options: dict[str, Any] = field(default_factory=dict)


class Kind:
    """A socket type: ``Kind("INT").Input("steps", default=1)``."""

    def __init__(self, name: str):
        self.name = name

    def Input(self, id: str, **options: Any) -> Slot:
        return Slot(id, self.name, options)

    def Output(self, id: str, **options: Any) -> Slot:
        return Slot(id, self.name, options)


class NodeOutput:
    """What ``execute`` returns."""

    def __init__(self, *args: Any, ui: Any = None):
        self.args, self.ui = args, ui


class Registered(Exception):
    """Raised when a fake function is reached that the test did not replace."""


def _not_replaced(name: str) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise Registered(f"host.{name} was called but the test did not replace it")

    return function


def _stand_in(name: str) -> ModuleType:
    """``nodes.host.<name>`` with every public name of the real module: functions that say they were not replaced, empty classes."""
    made = ModuleType(f"{PACK}.nodes.host.{name}")
    for node in ast.parse((ROOT / "nodes" / "host" / f"{name}.py").read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            setattr(made, node.name, _not_replaced(node.name))
        elif isinstance(node, ast.ClassDef):
            setattr(made, node.name, type(node.name, (), {"__init__": _not_replaced(node.name)}))
        elif isinstance(node, ast.Assign):
            with contextlib.suppress(ValueError):  # what is not a plain constant needs ComfyUI
                setattr(made, ast.unparse(node.targets[0]), ast.literal_eval(node.value))
    return made


def make_schema() -> ModuleType:
    """``nodes.host.schema``, which works: schemas are plain objects."""
    names = (
        "BBOX",
        "Boolean",
        "Clip",
        "Combo",
        "Conditioning",
        "Float",
        "Guider",
        "Image",
        "Int",
        "Latent",
        "Mask",
        "Model",
        "Noise",
    )
    types = {name: Kind(name.upper()) for name in (*names, "Sigmas", "String", "Vae")}
    made = ModuleType(f"{PACK}.nodes.host.schema")
    made.io = SimpleNamespace(**types, Custom=Kind, ComfyNode=object, NodeOutput=NodeOutput)
    made.ComfyExtension = object
    made.schema = lambda **fields: SimpleNamespace(**fields)
    made.widget = lambda kind, name, **options: kind.Input(name, **options)
    made.blocked = _not_replaced("blocked")
    made.ui = SimpleNamespace(
        PreviewText=lambda text: SimpleNamespace(as_dict=lambda: {"text": (text,)}),
        PreviewImage=lambda image, cls=None: SimpleNamespace(as_dict=lambda: {"images": []}),
    )
    return made


def make_host() -> dict[str, ModuleType]:
    """The modules of ``nodes.host`` by name."""
    made = {
        path.stem: _stand_in(path.stem) for path in (ROOT / "nodes" / "host").glob("*.py") if path.stem != "__init__"
    }
    made["schema"] = make_schema()
    made["folders"].list_files = lambda kind: []
    made["folders"].list_models = lambda kind, mark="": []
    made["folders"].register_folders = lambda: None
    return made


def load_pack() -> ModuleType:
    """The pack's ``nodes.registry`` under another name than ``semantic_editing``, with the fake host in place."""
    if PACK not in sys.modules:
        for name, folder in (
            (PACK, ROOT),
            (f"{PACK}.nodes", ROOT / "nodes"),
            (f"{PACK}.nodes.host", ROOT / "nodes" / "host"),
        ):
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
        for name, module in make_host().items():
            sys.modules[f"{PACK}.nodes.host.{name}"] = module
    return importlib.import_module(f"{PACK}.nodes.registry")


def module(name: str) -> ModuleType:
    """A module of the pack by its path from the root, e.g. ``module("core.errors")``."""
    load_pack()
    return importlib.import_module(f"{PACK}.{name}")

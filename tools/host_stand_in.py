"""A stand-in for the host where no ComfyUI is present: enough of its V3 API to read schemas and call ``execute``.

ComfyUI's own packages are empty: whatever name is asked of them is an empty class. The pack's real ``nodes/host`` loads
against them, but for ``schema``, whose nodes are plain objects here, and the listing of folders, which are empty.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PACK = "semantic_editing_under_a_stand_in"
ROOT = Path(__file__).resolve().parents[1]
COMFYUI = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview")
TYPES = (
    "Boolean", "Clip", "Combo", "Conditioning", "Float", "Guider", "Image", "Int", "Latent", "Mask", "Model",
    "Noise", "Sampler", "Sigmas", "String", "Vae",
)  # fmt: skip
_FRESH = itertools.count()


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
        """An input of this type."""
        return Slot(id, self.name, options)

    def Output(self, id: str, **options: Any) -> Slot:
        """An output of this type."""
        return Slot(id, self.name, options)


class MultiType:
    """Several socket types for one input, as the host writes them: "MODEL,CLIP"."""

    @staticmethod
    def Input(id: str, types: list[Kind], **options: Any) -> Slot:
        """An input that takes any of these types."""
        return Slot(id, ",".join(kind.name for kind in types), options)


class NodeOutput:
    """What ``execute`` returns."""

    def __init__(self, *args: Any, ui: Any = None):
        self.args, self.ui = args, ui


@dataclass
class Blocked:
    """What an output carries that was not made."""

    reason: str


class _EmptyModule(ModuleType):
    """A package that has every name: an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {})
        setattr(self, name, value)
        return value


class EmptyComfyUI(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of ComfyUI, empty but for ``members``: module -> name -> value."""

    def __init__(self, members: Mapping[str, Mapping[str, Any]] | None = None):
        self.members = members or {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """An empty package for a name of ComfyUI's."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in COMFYUI else None

    def create_module(self, spec: Any) -> ModuleType:
        """A module that has every name."""
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Put in what it is to have."""
        vars(module).update(self.members.get(module.__name__, {}))


class _Broken(importlib.abc.MetaPathFinder):
    """Importing one module raises ``error``."""

    def __init__(self, name: str, error: Exception):
        self.name, self.error = name, error

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Raise for the broken module."""
        if name == self.name:
            raise self.error
        return None


def make_schema(name: str) -> ModuleType:
    """``nodes.host.schema`` whose schemas are plain objects."""
    made: Any = ModuleType(name)
    types = {kind: Kind(kind.upper()) for kind in TYPES}
    types["ClipVision"] = Kind("CLIP_VISION")
    made.io = SimpleNamespace(**types, Custom=Kind, MultiType=MultiType, ComfyNode=object, NodeOutput=NodeOutput)
    made.ComfyExtension = object
    made.schema = lambda **fields: SimpleNamespace(**fields)
    made.widget = lambda kind, name, **options: kind.Input(name, **options)
    made.blocked = Blocked
    made.ui = SimpleNamespace(
        PreviewText=lambda text: SimpleNamespace(as_dict=lambda: {"text": (text,)}),
        PreviewImage=lambda image, cls=None: SimpleNamespace(as_dict=lambda: {"images": []}),
    )
    return made


@contextlib.contextmanager
def loading(pack: str, finders: list[Any]) -> Iterator[ModuleType]:
    """Within the ``with`` block modules of the pack called ``pack`` can be imported; its ``nodes.registry``."""
    found = {name for name in sys.modules if name.split(".")[0] in COMFYUI}
    if found:
        raise RuntimeError(f"A real ComfyUI is loaded ({min(found)}); use the stand-in in a process of its own.")
    for name, folder in ((pack, ""), (f"{pack}.nodes", "nodes"), (f"{pack}.nodes.host", "nodes/host")):
        package = ModuleType(name)
        package.__path__ = [str(ROOT / folder)]
        sys.modules.setdefault(name, package)
    sys.modules.setdefault(f"{pack}.nodes.host.schema", make_schema(f"{pack}.nodes.host.schema"))
    sys.meta_path[:0] = finders
    try:
        folders: Any = importlib.import_module(f"{pack}.nodes.host.folders")
        folders.list_files = lambda kind: []
        folders.list_models = lambda kind, mark="": []
        folders.list_picture_folders = list
        folders.register_folders = lambda: None
        yield importlib.import_module(f"{pack}.nodes.registry")
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in COMFYUI]:
            del sys.modules[name]


def load_pack() -> ModuleType:
    """The pack's ``nodes.registry`` under another name than ``semantic_editing``, all its nodes loaded."""
    if f"{PACK}.nodes.registry" not in sys.modules:
        with loading(PACK, [EmptyComfyUI()]) as registry:
            registry.load_nodes()
    return sys.modules[f"{PACK}.nodes.registry"]


def module(name: str) -> ModuleType:
    """A module of the pack by its path from the root, e.g. ``module("core.errors")``."""
    load_pack()
    return importlib.import_module(f"{PACK}.{name}")


@contextlib.contextmanager
def fresh_pack(broken: str | None = None, error: Exception | None = None) -> Iterator[ModuleType]:
    """The registry of a pack of which nothing is loaded yet.

    Args:
        broken: a module, by its path from the root, whose import raises ``error``.
    """
    pack = f"{PACK}_{next(_FRESH)}"
    finders: list[Any] = [EmptyComfyUI()]
    if broken is not None and error is not None:
        finders.append(_Broken(f"{pack}.{broken}", error))
    try:
        with loading(pack, finders) as registry:
            yield registry
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == pack]:
            del sys.modules[name]

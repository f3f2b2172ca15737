"""A part that does not import costs the nodes that need it and no others; the log names them and why.

The host's real parts load here, against a ComfyUI whose every name is an empty class.
"""

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import itertools
import json
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest

from semantic_editing.tests.nodes import fake_host

ROOT = Path(__file__).parents[2]
HOST = ROOT / "nodes" / "host"
SNAPSHOT = Path(__file__).with_name("snapshot.json")
COMFYUI = ("comfy", "comfy_execution", "folder_paths", "latent_preview")
FRESH = itertools.count()


class EmptyModule(ModuleType):
    """A package that has every name: an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {})
        setattr(self, name, value)
        return value


class FakeComfyUI(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in COMFYUI else None

    def create_module(self, spec):
        return EmptyModule(spec.name)

    def exec_module(self, module):
        pass


class Broken(importlib.abc.MetaPathFinder):
    """Importing one module raises ``error``."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise self.error
        return None


@contextlib.contextmanager
def fresh_pack(broken=None, error=None):
    """The registry of a pack of which nothing is loaded yet and whose module ``broken``, a path from the root, does not import."""
    pack = f"semantic_editing_with_broken_parts_{next(FRESH)}"
    before = {name for name in sys.modules if name.split(".")[0] in COMFYUI}
    assert not before, "this test brings a ComfyUI of its own"
    finders = [FakeComfyUI(), Broken(f"{pack}.{broken}", error)]
    schema = fake_host.make_host()
    schema.__name__ = f"{pack}.nodes.host.schema"
    for name, folder in ((pack, ROOT), (f"{pack}.nodes", ROOT / "nodes")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    sys.modules[schema.__name__] = schema
    folders = ModuleType(f"{pack}.nodes.host.folders")
    folders.__dict__.update({name: value for name, value in vars(schema).items() if not name.startswith("__")})
    sys.modules[folders.__name__] = folders
    sys.meta_path[:0] = finders
    try:
        yield importlib.import_module(f"{pack}.nodes.registry")
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in (pack, *COMFYUI)]:
            del sys.modules[name]


REGIONS_STAY = {
    "demo",
    "spdinv",
    "autocorr",
    "reference",
    "directions",
    "guidance",
    "classifiers",
    "caso_edit",
    "caso_trainer",
    "region_models",
}


@pytest.mark.parametrize(
    ("broken", "down", "stay"),
    [
        ("nodes.host.regions", "region_editors", REGIONS_STAY),
        ("nodes.host.region_pictures", "region_editors", REGIONS_STAY),
        ("core.regions.edit_tokens", "region_editors", REGIONS_STAY),
        ("nodes.host.tokens", "caso_embeddings", {"demo", "spdinv", "guidance", "classifiers", "region_models", "region_generator"}),
        ("nodes.host.vision", "region_models", {"demo", "spdinv", "guidance", "classifiers", "caso_edit", "region_generator"}),
        ("nodes.host.classifiers", "classifiers", {"demo", "spdinv", "guidance", "caso_edit", "caso_generate"}),
        ("nodes.host.demo", "demo", {"spdinv", "autocorr", "guidance", "classifiers", "caso_edit", "region_editors"}),
        ("core.caso.training", "caso_trainer", {"demo", "caso_edit", "caso_embeddings", "caso_generate", "region_trainer"}),
        ("nodes.host.vae", "caso_trainer", {"demo", "spdinv", "guidance", "classifiers", "caso_generate"}),
        ("nodes.host.sampling", "spdinv", {"demo", "directions", "direction_files", "classifiers", "caso_embeddings", "region_models"}),
    ],
)
def test_a_broken_part_takes_down_only_those_who_need_it(caplog, broken, down, stay):
    with fresh_pack(broken, ImportError("no such thing here")) as registry, caplog.at_level(logging.ERROR):
        loaded = {technique: registry.load_nodes([technique]) for technique in registry.TECHNIQUES}
        failed = {technique for technique, nodes in loaded.items() if not nodes}
        assert down in failed and not failed & stay
        assert [record.args[0] for record in caplog.records] == [technique for technique in loaded if technique in failed]
        assert all("unavailable" in line and "no such thing here" in line for line in caplog.messages)
        caplog.clear()
        assert registry.load_nodes() == [node for nodes in loaded.values() for node in nodes]
        assert len(caplog.records) == len(failed)


def test_nothing_is_missing_where_nothing_is_broken(caplog):
    with fresh_pack() as registry:
        assert len(registry.load_nodes()) == len(json.loads(SNAPSHOT.read_text("utf-8")))
    assert not caplog.records


def test_the_log_says_what_a_changed_host_lacks(caplog):
    with fresh_pack("nodes.host.regions", AttributeError("module 'comfy.samplers' has no attribute 'CFGGuider'")) as registry:
        registry.load_nodes(["region_editors"])
    assert len(caplog.records) == 1 and "nodes.host.regions" in caplog.text and "'CFGGuider'" in caplog.text


def test_an_unknown_name_is_an_ordinary_error():
    with fresh_pack() as registry:
        host = importlib.import_module(".host", registry.__package__)
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = host.no_such_name


def test_the_parts_of_the_host_are_listed_once_for_all():
    """What loads on first use, what type checkers see, and what the parts define."""
    tree = ast.parse((HOST / "__init__.py").read_text("utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {node.module: {alias.name for alias in node.names} for node in checked.body}
    at_once = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.level for alias in node.names}
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    lazy = {part: set(names) for part, names in ast.literal_eval(values["_PARTS"]).items()}
    assert lazy == seen
    assert sorted(ast.literal_eval(values["__all__"])) == sorted(at_once.union(*lazy.values()))
    for part, names in lazy.items():
        body = ast.parse((HOST / f"{part}.py").read_text("utf-8")).body
        assert names <= {node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        assert not names & {path.stem for path in HOST.glob("*.py")}, "the module would take the place of the name"

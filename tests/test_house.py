"""Who may import whom, read from the sources: a room imports what stands to its left, never sideways, never back.

Imports inside functions and under TYPE_CHECKING count like any other.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: The rooms of core from the ground up; those of one line stand side by side.
ORDER = (
    {"errors"},
    {"writing", "file_names"},
    {"reading"},
    {"files", "content_hash", "gradient_checkpointing"},
    {"prints"},
    {"denoiser", "attention", "inversion", "sampling", "token_vectors"},  # the seams, which may import each other
    {"images", "rebuilding"},
    {"models", "training"},
    {"classifiers", "metrics"},
    {"spdinv"},
    {"pix2pix_zero", "engines"},
    {"caso", "regions", "deltaedit", "distillation", "elite"},
    {"demo"},
)
SEAMS = next(rooms for rooms in ORDER if "denoiser" in rooms)
FLOOR = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
#: Which room of core belongs to a room of nodes, where it is called otherwise.
CORE_OF = {"inversion": "spdinv"}
COMFYUI = {
    "comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "latent_preview", "execution", "server",
    "nodes",
}  # fmt: skip


def sources(*folders):
    """Path from the root -> source of every Python file in ``folders``."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[path.relative_to(ROOT).as_posix()] = path.read_text("utf-8")
    assert found, f"no sources in {folders}"
    return found


def module_name(path):
    """ "core/caso/training.py" -> "core.caso.training"; a package's ``__init__`` is the package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(path, text, known):
    """``(modules of the pack, top-level names of other packages)`` that a file imports."""
    own, foreign = set(), set()
    package = module_name(path).split(".")
    if not path.endswith("/__init__.py"):
        package.pop()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            foreign |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            foreign.add(node.module.split(".")[0])
            if node.module.split(".")[0] == "semantic_editing":
                base = node.module.removeprefix("semantic_editing").lstrip(".")
                own |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names} | {base}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            named = {f"{base}.{alias.name}" for alias in node.names}
            own |= {name if name in known else base for name in named}
    return own, foreign


def graph(files):
    """Module -> modules of the pack that it imports."""
    known = {module_name(path) for path in files}
    return {module_name(path): imports(path, text, known)[0] for path, text in files.items()}


def room(module):
    return module.split(".")[1] if "." in module else ""


def wrong_in_core(module, other):
    """What is wrong with ``module`` of core importing ``other``, or None."""
    here, there = room(module), room(other)
    if here == there or not here:
        return None
    if not other.startswith("core."):
        return "core knows neither ComfyUI nor the nodes"
    if there == "diffusers":
        return None if here == "demo" else "only demo, the command line and benchmarks import the diffusers backend"
    if here == "diffusers":
        return None if FLOOR[there] <= FLOOR["denoiser"] or there == "models" else "diffusers imports seams and models"
    if here in SEAMS and there in SEAMS:
        return None
    return None if FLOOR[there] < FLOOR[here] else "a room imports what stands to its left, never sideways, never back"


def wrong_in_nodes(module, other):
    """What is wrong with ``module`` of nodes importing ``other``, or None."""
    here, there = room(module), room(other)
    if here in ("", "registry") or module == other:
        return None
    if other.startswith("nodes"):
        if here == there:
            return None
        allowed = {"host": set(), "common": {"host"}}.get(here, {"host", "common"})
        return None if there in allowed else "a node's room imports host and common, never another technique's nodes"
    if there == "diffusers":
        return "nodes work on the host's models, not on the diffusers backend"
    if here in ("host", "common"):
        return None if FLOOR[there] <= FLOOR["metrics"] else f"{here} knows no technique"
    own = CORE_OF.get(here, here)
    if there == own or FLOOR[there] < FLOOR[own]:
        return None
    return "a node's room imports its own room of core and what that may"


def violations(edges):
    """One line for each import that breaks the rules."""
    found = []
    for module, others in sorted(edges.items()):
        for other in sorted(others):
            check = wrong_in_core if module.startswith("core") else wrong_in_nodes
            reason = check(module, other)
            if reason:
                found.append(f"{module} imports {other}: {reason}")
    return found


def cycles(edges):
    """Modules that import each other in a circle, one list a circle."""
    found, done, path = [], set(), []

    def visit(module):
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        path.append(module)
        for other in sorted(edges.get(module, ())):
            if other != module:
                visit(other)
        path.pop()
        done.add(module)

    for module in sorted(edges):
        visit(module)
    return found


FILES = sources("core", "nodes")
EDGES = graph(FILES)


def test_every_room_has_its_place():
    assert {room(module) for module in EDGES if module.startswith("core.")} <= {*FLOOR, "diffusers"}
    rooms = {room(module) for module in EDGES if module.startswith("nodes.")} - {"registry", "host", "common"}
    assert rooms and {CORE_OF.get(name, name) for name in rooms} <= set(FLOOR)


def test_nobody_imports_against_the_rules():
    assert len(EDGES) > 80 and violations(EDGES) == []


def test_no_import_cycles():
    assert cycles(EDGES) == []


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("core.errors", "core.files"),
        ("core.models.clip", "core.classifiers.base"),
        ("core.metrics.noise", "core.classifiers.base"),
        ("core.caso.training", "core.regions.words"),
        ("core.pix2pix_zero.word_edit", "core.diffusers.checkpoint"),
        ("core.diffusers.token_vectors", "core.caso.embedding"),
        ("core.regions.words", "core.demo.model"),
        ("core.sampling", "nodes.host.sampling"),
        ("nodes.host.denoiser", "core.spdinv.invert"),
        ("nodes.host.denoiser", "nodes.common.inputs"),
        ("nodes.common.reports", "core.pix2pix_zero.guided_edit"),
        ("nodes.caso.edit", "nodes.pix2pix_zero.guided_edit"),
        ("nodes.caso.edit", "core.demo.data"),
        ("nodes.inversion.spdinv", "core.pix2pix_zero.guided_edit"),
        ("nodes.demo.load", "core.diffusers.denoiser"),
    ],
)
def test_a_planted_violation_is_found(module, other):
    assert len(violations({module: {other}})) == 1


def test_planted_imports_are_read_wherever_they_stand():
    text = (
        "from typing import TYPE_CHECKING\nfrom ..errors import EditingError\n"
        "if TYPE_CHECKING:\n    from ..demo import model\n"
        "def f():\n    from .b import g\n    import comfy.sd\n"
    )
    own, foreign = imports("core/caso/a.py", text, {"core.errors", "core.demo.model", "core.caso.b", "core.caso.a"})
    assert own == {"core.errors", "core.demo.model", "core.caso.b"} and foreign == {"typing", "comfy"}
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("path", FILES)
def test_only_the_host_room_knows_comfyui_and_nobody_the_package_by_name(path):
    allowed = COMFYUI if path.startswith("nodes/host/") else set()
    _, foreign = imports(path, FILES[path], set())
    assert foreign & (COMFYUI | {"semantic_editing"}) <= allowed


def imports_of_tests(path, text):
    """Modules of tests/ that a file imports: by the package's name, relatively, or by their own names."""
    own, foreign = imports(path, text, set())
    own_names = {found.stem for found in (ROOT / "tests").rglob("*.py")} - {"__init__"} | {"tests"}
    return sorted({name for name in own if name.split(".")[0] == "tests"} | foreign & own_names)


@pytest.mark.parametrize(
    "line",
    [
        "from tests.pairs import pairs",
        "import tests.pairs",
        "from semantic_editing.tests.pairs import pairs",
        "from semantic_editing.tests import pairs",
        "from conftest import demo",
    ],
)
def test_an_import_of_tests_is_found(line):
    assert imports_of_tests("tools/a.py", line) and not imports_of_tests(
        "tools/a.py", "from semantic_editing.core import a"
    )


@pytest.mark.parametrize("path", [*sources("tools", "benchmarks")])
def test_tools_and_benchmarks_never_import_tests(path):
    text = (ROOT / path).read_text("utf-8")
    assert imports_of_tests(path, text) == []


@pytest.mark.parametrize("path", sources("tools", "benchmarks"))
def test_scripts_import_what_exists(path):
    """They are not run by the tests, so a moved name would go unnoticed."""
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            module = node.module.removeprefix("semantic_editing.").replace(".", "/")
            source = FILES.get(f"{module}.py")
            if source is not None:
                assert {alias.name for alias in node.names} <= names_of(source), ast.unparse(node)
            elif module.split("/")[0] in ("core", "nodes"):
                assert all(f"{module}/{alias.name}.py" in FILES for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith("/__init__.py")])
def test_a_package_is_a_folder_and_nothing_else(path):
    statements = ast.parse((ROOT / path).read_text("utf-8")).body
    assert len(statements) == 1 and isinstance(statements[0], ast.Expr), (
        "names are imported from the file that defines them"
    )


def test_the_demo_room_registers_first():
    """It enters what ships with the pack into the lists of the loaders, whose schemas are read when their modules
    load."""
    names = re.findall(r'^    "([\w.]+)",', (ROOT / "nodes" / "registry.py").read_text("utf-8"), re.M)
    assert names[0] == "demo.load" and len(names) == len(set(names)) > 15


def test_every_room_is_tested():
    tested = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    text = " ".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in {module.replace(".", "/").rsplit("/", 1)[0] for module in EDGES if module.count(".") == 2}:
        assert name in tested or f"{name.replace('/', '.')}." in text, f"no test of {name}"


ROLE = re.compile(r":(?:class|func|meth|data|attr|mod|exc):`~?([\w.]+)`")


@cache
def names_of(text):
    """Names at the top of a source, and "Class.name" of what its classes define."""
    found = set()
    for node in ast.parse(text).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        for target in targets:
            found |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, (ast.If, ast.Try)):
            found |= names_of(ast.unparse(ast.Module(node.body, [])))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = names_of(ast.unparse(ast.Module(node.body, []))) | {
                part.attr
                for part in ast.walk(node)
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name)
            }
            found |= {f"{node.name}.{name}" for name in inner}
    return frozenset(found)


def names_of_imported(path, text, files):
    """ "Class.name" of the pack's classes that a source imports at its top."""
    package = module_name(path).split(".")
    if not path.endswith("/__init__.py"):
        package.pop()
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            module = "/".join([*package[: len(package) - node.level + 1], *node.module.split(".")])
            for name in names_of(files.get(f"{module}.py", "")):
                owner, _, rest = name.partition(".")
                found |= {
                    f"{alias.asname or alias.name}.{rest}" for alias in node.names if rest and alias.name == owner
                }
    return found


def unresolved(path, text, files):
    """Cross references in the docstrings of a file that name nothing.

    A bare name is one of the file's own; "Class.name" may also be of a class of the pack that the file imports.
    """
    package = module_name(path).split(".")
    if not path.endswith("/__init__.py"):
        package.pop()
    bare = names_of(text)
    bare |= {name.split(".", 1)[1] for name in bare if "." in name} | names_of_imported(path, text, files)
    found = []
    for name in ROLE.findall(text):
        name = name.removeprefix("semantic_editing.")
        dots = len(name) - len(name.lstrip("."))
        parts = name.lstrip(".").split(".")
        if dots:
            parts = package[: len(package) - dots + 1] + parts
        elif parts[0] not in ("core", "nodes"):
            if name not in bare:
                found.append(name)
            continue
        for cut in range(len(parts), 0, -1):
            module, rest = "/".join(parts[:cut]), ".".join(parts[cut:])
            source = files.get(f"{module}.py", files.get(f"{module}/__init__.py"))
            if source is not None:
                if rest and rest not in names_of(source):
                    found.append(name)
                break
        else:
            found.append(name)
    return found


def test_cross_references_name_something():
    wrong = {path: names for path, text in FILES.items() if (names := unresolved(path, text, FILES))}
    assert wrong == {}


def test_a_wrong_cross_reference_is_found():
    files = {"core/a.py": "class A:\n    def f(self): ...\n", "core/b/c.py": ""}
    text = '"""See :class:`~..a.A`, :meth:`~..a.A.f`, :meth:`~..a.A.g`, :func:`~.gone.f`, :func:`h`."""\ndef k(): ...\n'
    assert unresolved("core/b/c.py", text, files) == ["..a.A.g", ".gone.f", "h"]
    text = '"""See :meth:`A.f`, :meth:`A.g`, :meth:`B.f`, :meth:`f`."""\nfrom ..a import A\n'
    assert unresolved("core/b/c.py", text, files) == ["A.g", "B.f", "f"]

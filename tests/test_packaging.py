"""The promises of the package itself: what it requires, what it imports and when."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from semantic_editing.tools.comfy_server import ComfyServer

ROOT = Path(__file__).parents[1]
HEAVY_MODULES = {"diffusers", "transformers", "open_clip", "torchvision", "timm", "scipy", "matplotlib"}
NETWORK_MODULES = {"requests", "urllib", "http", "socket", "huggingface_hub"}


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found, f"no sources in {folders}"
    return found


def absolute_imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Top-level package names that a syntax tree imports absolutely, with line numbers."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name.split(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(((node.module or "").split(".")[0], node.lineno))
    return names


def module_level(tree: ast.Module) -> ast.Module:
    """The tree without function bodies and TYPE_CHECKING blocks: what runs at import."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return Strip().visit(tree)


@pytest.mark.parametrize(
    "path", [ROOT / "__init__.py", *sources("core", "nodes")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_nothing_heavy_and_no_network_at_import(path):
    names = absolute_imports(module_level(ast.parse(path.read_text("utf-8"))))
    assert [hit for hit in names if hit[0] in HEAVY_MODULES | NETWORK_MODULES] == []


@pytest.mark.parametrize(
    "path", [ROOT / "__init__.py", *sources("core", "nodes")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_code_from_strings_and_no_unsafe_pickles(path):
    tree = ast.parse(path.read_text("utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        assert name not in {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "subprocess.run"}, (
            f"line {call.lineno}: {name}"
        )
        if name == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), (
                f"line {call.lineno}"
            )


#: What ComfyUI's own requirements.txt lists, in 0.3.64 and since: never asked for again.
BROUGHT_BY_THE_HOST = {
    "torch", "torchvision", "torchaudio", "numpy", "transformers", "tokenizers", "safetensors", "pillow", "scipy",
    "pydantic", "tqdm", "einops",
}  # fmt: skip


def named(text: str) -> str:
    return re.split(r"[<>=!~ \[]", text)[0].lower().replace("_", "-")


def listed_in_project(field: str) -> set[str]:
    found = re.search(rf"^{field} = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.S | re.M)
    assert found is not None
    return set(re.findall(r'"([^"]+)"', found.group(1)))


def test_requirements_agree_with_the_project_and_repeat_nothing_that_the_host_brings():
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines())
    requirements = {line for line in lines if line}
    assert requirements == listed_in_project("dependencies") | listed_in_project("openclip")
    assert not {named(line) for line in requirements} & BROUGHT_BY_THE_HOST
    assert not any("<" in line or "==" in line or "~=" in line for line in requirements)  # none is known to break


def test_no_diffusers_that_runs_code_from_a_models_folder():
    (line,) = [line for line in listed_in_project("dependencies") if named(line) == "diffusers"]
    assert tuple(map(int, line.split(">=")[1].split("."))) >= (0, 38)


def test_the_door_opens_without_a_host_and_without_torch():
    code = (
        "import sys, semantic_editing; "
        "print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)), semantic_editing.WEB_DIRECTORY)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[] ./web"


def test_version_has_a_changelog_entry():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert version is not None and f"## {version.group(1)}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_package_is_listed():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = set(re.findall(r'"(semantic_editing[\w.]*)",', project))
    found = {"semantic_editing"} | {
        ".".join(["semantic_editing", *path.parent.relative_to(ROOT).parts])
        for folder in ("core", "nodes")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert listed == found


def files_in(*folders: str) -> list[str]:
    found = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return [path.relative_to(ROOT).as_posix() for path in found]


def test_the_registry_package_leaves_out_only_what_the_nodes_do_without(tmp_path):
    """``.comfyignore`` has the syntax of ``.gitignore``, where ``docs/`` also means ``web/docs/``."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git, which reads the patterns, is not installed")
    shipped = files_in("assets", "core", "docs", "locales", "nodes", "subgraphs", "web", "workflows")
    left_out = files_in("tests", "benchmarks", "tools", ".ci", "workflows/previews", "assets/demo/unseen")
    shipped = sorted(set(shipped) - set(left_out))
    shipped += ["__init__.py", "cli.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md"]
    assert {"docs/contact_sheet.jpg", "web/docs/SemEdit_SPDInvInversion.md"} <= set(
        shipped
    ) and "tests/nodes/snapshot.json" in left_out
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | settings
    subprocess.run([git, "init", "--quiet", str(tmp_path)], check=True, env=environment)
    shutil.copy(ROOT / ".comfyignore", tmp_path / ".git" / "info" / "exclude")
    command = [
        git,
        "-C",
        str(tmp_path),
        "-c",
        f"core.excludesFile={os.devnull}",
        "check-ignore",
        "--no-index",
        "-z",
        "--stdin",
    ]
    names = "\0".join([*shipped, *left_out])
    done = subprocess.run(command, input=names, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode in (0, 1), done.stderr  # 1: nothing is ignored
    assert set(done.stdout.split("\0")) - {""} == set(left_out)
    archive = tmp_path / "release.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in shipped:
            packed.write(ROOT / name, name)
    assert archive.stat().st_size < 60e6


def test_the_owners_address_stands_in_the_project_file_and_in_what_is_held_to_it():
    """Who publishes the pack changes pyproject.toml and is told by tests what repeats it: README's clone command, and
    the folder that it makes, by which the locales and the tests' server call the pack."""
    project, readme = ((ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "README.md"))
    owner, folder = re.search(r'^Repository = "https://github.com/(.+)/(.+)"', project, re.M).groups()
    assert re.search(r'^PublisherId = "[a-z0-9-]+"$', project, re.M)
    assert re.findall(r"git clone .*", readme) == [f"git clone --depth 1 https://github.com/{owner}/{folder}"]
    assert f"pip install -r {folder}/requirements.txt" in readme and f"Browse Templates > {folder}*" in readme
    texts = [path for path in ROOT.rglob("*") if path.suffix in {".md", ".json", ".toml", ".py", ".txt", ".yml"}]
    named = re.compile(rf"github(?:usercontent)?\.com/{owner}/")
    naming = {str(path.relative_to(ROOT)) for path in texts if named.search(path.read_text("utf-8", "ignore"))}
    assert naming == {"pyproject.toml", "README.md"}
    assert ComfyServer.pack_name == folder
    for language in ("zh", "ja"):
        words = json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))
        assert set(words["templateWorkflows"]["category"]) == {folder}


def test_the_registrys_pictures_and_addresses_are_the_projects_own():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    repository = re.search(r'^Repository = "(.*)"', project, re.M)
    owner = repository.group(1).removeprefix("https://github.com/")
    for field, name in (("Icon", "docs/icon.png"), ("Banner", "docs/banner.jpg")):
        assert f'{field} = "https://raw.githubusercontent.com/{owner}/main/{name}"' in project
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.jpg") as banner:
        assert icon.width == icon.height <= 400  # the registry's limits: a square of 400, 21 to 9
        assert abs(banner.width / banner.height - 21 / 9) < 0.01

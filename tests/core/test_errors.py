"""What a person reads of an error."""

import ast
import re
import traceback
from pathlib import Path

from semantic_editing.core.errors import EditingError

ROOT = Path(__file__).parents[2]


def test_a_person_reads_the_name_and_the_sentence():
    error = EditingError("steps is 0; use 1 or more.")
    assert traceback.format_exception_only(error) == ["EditingError: steps is 0; use 1 or more.\n"]
    assert isinstance(error, ValueError)
    assert (
        EditingError.__module__ == "builtins"
    )  # where ComfyUI's own naming (full_type_name) leaves the module path out


def told(path):
    """``(line, expression)`` of what the sentences in a source put in."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "EditingError":
            for part in ast.walk(node):
                if isinstance(part, ast.FormattedValue):
                    yield node.lineno, ast.unparse(part.value)


def test_no_sentence_says_where_a_file_lies():
    """API clients read them; names are enough. The one path that is told is an entry of a list, below its folder."""
    where = re.compile(r"(^|[._])(path|folder|home|root|directory|source|target|parent)$")
    found = {
        (path.name, expression)
        for room in ("core", "nodes")
        for path in (ROOT / room).rglob("*.py")
        for _, expression in told(path)
        if where.search(expression)
    }
    assert found <= {("pie_bench.py", "path"), ("pie_bench.py", "case.path")}, found
    assert where.search("self.folder") and where.search("home") and not where.search("path.name")

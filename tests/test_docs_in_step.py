"""What repeats the schemas (English locale, tables of the help pages) is what tools/make_node_docs.py would write."""

import pytest

from semantic_editing.tools import make_node_docs


@pytest.mark.parametrize(
    "path,text", [pytest.param(path, text, id=path.name) for path, text in make_node_docs.files().items()]
)
def test_in_step(path, text):
    assert path.read_text("utf-8") == text, "run tools/make_node_docs.py"

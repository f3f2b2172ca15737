"""What a person reads of an error."""

import traceback

from semantic_editing.core.errors import EditingError


def test_a_person_reads_the_name_and_the_sentence():
    error = EditingError("steps is 0; use 1 or more.")
    assert traceback.format_exception_only(error) == ["EditingError: steps is 0; use 1 or more.\n"]
    assert isinstance(error, ValueError)
    assert (
        EditingError.__module__ == "builtins"
    )  # where ComfyUI's own naming (full_type_name) leaves the module path out

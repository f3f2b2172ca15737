"""JSON of strangers: each form on values of it and not of it, and what no form lets through."""

import json

import pytest

from semantic_editing.core.errors import EditingError
from semantic_editing.core.reading.forms import (
    DEEPEST,
    Unfit,
    digits,
    either,
    facts,
    flag,
    listed,
    mapped,
    maybe,
    number,
    one_of,
    parse_json,
    table,
    text,
    whole,
)

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (facts, [{}, {"a": [1, None]}], [None, [], 1, "a"]),
        (flag, [True, False], [0, 1, None, "true"]),
        (whole(0, 9), [0, 9], [-1, 10, 1.0, True, "1", None]),
        (number(), [0, -1.5, 1e308], [NAN, INFINITE, -INFINITE, True, "1", None]),
        (number(0, 1), [0, 1, 0.5], [-0.1, 1.1]),
        (text(3), ["", "abc"], ["abcd", 1, None]),
        (digits(1, 64), ["1", "64", "007"], ["0", "65", "-1", "\u00b2", "1.0", "", "9" * 5000, 5]),
        (one_of(("a", 1, None)), ["a", 1, None], [True, 1.0, "b", []]),
        (listed(whole(0, 9), 1, 2), [[1], [1, 2]], [[], [1, 2, 3], [10], (1,), {"a": 1}]),
        (mapped(whole(0, 9), 1, 1), [{"a": 1}], [{}, {"a": 1, "b": 2}, {"a": "b"}, [1]]),
        (mapped(flag, 1, 9, digits(0, 9)), [{"3": True}], [{"x": True}]),
        (
            table({"a": flag}, {"b": flag}),
            [{"a": True}, {"a": True, "b": False, "c": 7}],
            [{}, {"a": True, "b": 1}, []],
        ),
        (either(flag, text()), [True, "a"], [1, None]),
        (maybe(flag), [None, True], [0]),
    ],
)
def test_a_form_knows_its_values(form, good, bad):
    for value in good:
        form(value, ".x")
    for value in bad:
        with pytest.raises(Unfit, match="x"):
            form(value, ".x")


def test_what_is_wrong_and_where():
    form = table({"classes": listed(table({"name": text()}), 1, 3)})
    with pytest.raises(EditingError) as caught:
        parse_json('{"classes": [{"name": "a"}, {"name": 5}]}', form, "f.json")
    assert str(caught.value) == (
        "f.json is damaged: its classes[1].name is no text of up to 2000 characters; save or download it again."
    )


@pytest.mark.parametrize(
    "said",
    [
        "", "{", "[1,]", "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "1" * 5000, '"\\ud800"', '{"\\udfff": 1}',
        str(2**63), json.dumps({"a": [-(2**64)]}), b"\xff\xfe",
    ],
    ids=[
        "empty", "cut", "comma", "lists without end", "objects without end", "digits without end", "half a character",
        "half a name", "65 bits", "a negative one", "no text",
    ],
)  # fmt: skip
def test_json_that_no_program_should_take(said):
    with pytest.raises(EditingError, match=r"^f\.json .*; download it\.$"):
        parse_json(said, lambda value, where: None, "f.json", "download it")


@pytest.mark.parametrize(("depth", "fits"), [(DEEPEST, True), (DEEPEST + 1, False)])
def test_depth_is_counted(depth, fits):
    said = "[" * depth + "]" * depth
    if fits:
        assert parse_json(said, lambda value, where: None, "f.json") is not None
    else:
        with pytest.raises(EditingError, match=f"nested more than {DEEPEST} deep"):
            parse_json(said, lambda value, where: None, "f.json")

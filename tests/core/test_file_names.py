"""core.file_names: one sentence for every name that some system cannot hold, or a person cannot see."""

import json

import pytest

from semantic_editing.core.errors import EditingError
from semantic_editing.core.file_names import check_characters, check_name, shown_name


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "red hair",
        "v1.5-mix (2)",
        "日本語",
        "smile_é",
        "console",
        "com10",
        "nullify",
        "سلام\u200cها",
        "👩‍🎨",
        "-x",
        "a'b",
    ],
)
def test_good_names_stay(name):
    assert check_name(f"  {name} ", added=".safetensors") == f"{name}.safetensors"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"), (" \t\n", "is empty"), (".hidden", "begins with a dot"), (".", "begins with a dot"),
        ("..", "leads to another folder"), ("../x", "leads to another folder"), ("a/b", "leads to another folder"),
        ("a\\b", "leads to another folder"), ("/etc/passwd", "leads to another folder"),
        ("C:x", "which Windows forbids"), ("what?", "which Windows forbids"), ("a|b", "which Windows forbids"),
        ("x.", "ends in a dot"), ("con", "device's name"), ("NUL.tar", "device's name"), ("Com1", "device's name"),
        ("lpt9 .x", "device's name"), ("COM¹", "device's name"), ("conin$", "device's name"),
        ("a\0b", r"a control character \(U\+0000\)"), ("a\nb", "a control character"),
        ("a\x7fb", "a control character"),
        ("a\u2028b", "a control character"), ("a\ud800b", r"half of a surrogate pair.*U\+D800"),
        ("a\udcffb", "half of a surrogate pair"), ("gpj\u202egnp", r"look like another name \(U\+202E\)"),
        ("a\u2066b", "look like another name"), ("a\u200bb", "look like another name"),
        ("\ufeffa", "look like another"),
        ("x" * 244, r"too long \(256 bytes with its ending, 255 are allowed\)"), ("é" * 122, "too long"),
        ("👩" * 61, "too long"), ("x" * 10**6, "too long"),
    ],
)  # fmt: skip
def test_bad_names_are_one_short_sentence(name, said):
    with pytest.raises(EditingError, match=said) as caught:
        check_name(name, added=".safetensors")
    sentence = str(caught.value)
    assert sentence.startswith("The file name ") and sentence.endswith(".") and len(sentence) < 250
    assert sentence.isprintable() and sentence.encode()


def test_the_longest_name_is_allowed():
    assert len(check_name("x" * 243, added=".safetensors")) == 255


def test_what_is_named_is_said():
    with pytest.raises(EditingError, match="The folder name 'a/b' leads"):
        check_name("a/b", "folder name")
    assert check_characters("/any/path: even?", "path")
    with pytest.raises(EditingError, match=r"The path '/a/\\udc80' holds half"):
        check_characters("/a/\udc80", "path")


@pytest.mark.parametrize("name", ["a\ud800", "a\u202eb\n", "x" * 1000, "'quoted'"])
def test_a_shown_name_can_be_printed_and_sent(name):
    shown = shown_name(name)
    assert shown.isprintable() and len(shown) <= 70 and json.loads(json.dumps(shown, ensure_ascii=False)) == shown
    shown.encode()

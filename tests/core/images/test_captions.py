"""Captions beside pictures: which file says what, and which pictures count as without."""

import json

import pytest
from PIL import Image

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.captions import read_captions, without_report


def picture(folder, name):
    Image.new("RGB", (4, 4)).save(folder / name)


def test_a_text_of_its_own_goes_before_the_listing(tmp_path):
    for name in ("a.png", "b.jpg", "c.png", "d.png", "e.v2.png", "f.png"):
        picture(tmp_path, name)
    (tmp_path / "a.txt").write_text("\n  a face,   smiling \nsecond caption\n", "utf-8")
    (tmp_path / "b.txt").write_text(" \n", "utf-8")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "e.v2.txt").write_bytes("\ufeffein Gesicht, lächelnd".encode())
    listing = {"a.png": "listed", "b.jpg": "  a sad\nface", "d": ["with glasses", "glasses"], "gone.png": "nobody"}
    (tmp_path / "captions.json").write_text(json.dumps(listing), "utf-8")
    found, without = read_captions(tmp_path)
    assert [(path.name, caption) for path, caption in found] == [
        ("a.png", "a face, smiling"),
        ("b.jpg", "a sad face"),
        ("d.png", "with glasses"),
        ("e.v2.png", "ein Gesicht, lächelnd"),
    ]
    assert without == ["c.png", "f.png"]
    assert without_report(without) == "left out 2 without a caption: c.png, f.png" and without_report([]) == ""
    assert without_report([f"{n}.png" for n in range(8)]).endswith("4.png and 3 more")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("{", "captions.json holds damaged JSON"),
        ('["a"]', "captions.json is damaged"),
        ('{"a.png": 3}', "captions.json is damaged"),
        ('{"a.png": []}', "captions.json is damaged"),
        ('{"b.png": "a face"}', r"None of the 1 pictures in '.*' has a caption; put a text file of the same name"),
    ],
)
def test_what_is_no_listing(tmp_path, listing, message):
    picture(tmp_path, "a.png")
    (tmp_path / "captions.json").write_text(listing, "utf-8")
    with pytest.raises(EditingError, match=message):
        read_captions(tmp_path)


def test_no_folder_and_no_pictures(tmp_path):
    with pytest.raises(EditingError, match="holds no pictures"):
        read_captions(tmp_path)
    with pytest.raises(EditingError, match="was not found"):
        read_captions(tmp_path / "absent")

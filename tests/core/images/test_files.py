"""Picture files: any mode, orientation and size in; whole files out."""

import ast
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing.core.errors import EditingError
from semantic_editing.core.images.files import (
    FORMATS,
    check_writable,
    picture_files,
    picture_folders,
    picture_mark,
    read_picture,
    save_picture,
    skipped_report,
    square_pictures,
)

ROOT = Path(__file__).parents[3]


def picture(width, height):
    """Red grows to the right, green downward."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[..., 0] = np.linspace(0, 255, width)[None]
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values)


def test_a_picture_of_fitting_size_is_read_exactly(tmp_path):
    original = picture(24, 16)
    original.save(tmp_path / "x.png")
    image, note = read_picture(tmp_path / "x.png")
    assert image.shape == (1, 3, 16, 24) and note == "24 x 16"
    torch.testing.assert_close(image[0], torch.from_numpy(np.asarray(original).copy()).permute(2, 0, 1) / 255)


def test_other_sizes_are_cropped_in_the_middle(tmp_path):
    original = picture(30, 21)
    original.save(tmp_path / "x.png")
    image, note = read_picture(tmp_path / "x.png")
    expected = np.asarray(original)[2:18, 3:27]
    assert note == "30 x 21, cropped to 24 x 16"
    torch.testing.assert_close(image[0], torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("before", "after"), [((40, 20), (32, 16)), ((20, 40), (16, 32)), ((100, 37), (40, 16)), ((8, 8), (16, 16))]
)
def test_the_shorter_side_gets_the_size_and_the_aspect_stays(tmp_path, before, after):
    picture(*before).save(tmp_path / "x.png")
    image, note = read_picture(tmp_path / "x.png", 16)
    assert tuple(image.shape[:1:-1]) == after
    assert "resized to" in note
    assert float(image[0, 0, 8, -1]) > 0.9 and float(image[0, 0, 8, 0]) < 0.1


def test_the_orientation_tag_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    picture(24, 16).save(tmp_path / "x.png", exif=exif)
    image, _ = read_picture(tmp_path / "x.png")
    assert image.shape == (1, 3, 24, 16)
    assert float(image[0, 0, -1, 0]) > 0.9 > 0.1 > float(image[0, 0, 0, 0])  # red grew to the right, now downward


def test_transparency_is_laid_on_white(tmp_path):
    layer = Image.new("RGBA", (16, 8), (0, 0, 255, 0))
    layer.paste((0, 0, 255, 255), (0, 0, 8, 8))
    layer.save(tmp_path / "x.png")
    image, _ = read_picture(tmp_path / "x.png")
    assert image[0, :, 0, 0].tolist() == [0, 0, 1]
    assert image[0, :, 0, -1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    base = Image.new("I;16", (16, 8), 65535) if mode == "I;16" else Image.new("RGB", (16, 8), "white").convert(mode)
    base.save(tmp_path / "x.tiff")
    image, _ = read_picture(tmp_path / "x.tiff")
    assert image.shape == (1, 3, 8, 16)
    assert float(image.min()) > 0.98


@pytest.mark.parametrize(
    ("prepare", "size", "said"),
    [
        (lambda path: None, None, "was not found"),
        (lambda path: path.write_text("no picture"), None, "damaged or not a picture"),
        (lambda path: picture(7, 30).save(path), None, "too small"),
        (lambda path: picture(16, 16).save(path), 20, "multiple of 8"),
        (lambda path: picture(16, 16).save(path), 0, "multiple of 8"),
        (lambda path: picture(16, 16).save(path), -8, "multiple of 8"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, prepare, size, said):
    prepare(tmp_path / "x.png")
    with pytest.raises(EditingError, match=said):
        read_picture(tmp_path / "x.png", size)


def test_half_a_picture_is_damaged(tmp_path):
    picture(64, 64).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EditingError, match="damaged"):
        read_picture(tmp_path / "x.png")


def test_saving_and_reading_again(tmp_path):
    path = save_picture(tmp_path / "new" / "x.png", picture(16, 8))
    assert (np.asarray(Image.open(path)) == np.asarray(picture(16, 8))).all()


def test_an_existing_picture_is_kept_unless_allowed(tmp_path):
    save_picture(tmp_path / "x.png", picture(16, 8))
    with pytest.raises(EditingError, match="exists already"):
        save_picture(tmp_path / "x.png", picture(8, 8))
    assert Image.open(tmp_path / "x.png").size == (16, 8)
    save_picture(tmp_path / "x.png", picture(8, 8), overwrite=True)
    assert Image.open(tmp_path / "x.png").size == (8, 8)


def test_a_mark_is_kept_and_others_have_none(tmp_path):
    save_picture(tmp_path / "x.png", picture(16, 8), mark="me")
    save_picture(tmp_path / "y.png", picture(16, 8))
    (tmp_path / "z.png").write_bytes(b"no picture")
    assert [picture_mark(tmp_path / f"{name}.png") for name in "xyz?"] == ["me", "", "", ""]
    assert (np.asarray(Image.open(tmp_path / "x.png")) == np.asarray(picture(16, 8))).all()


def test_an_ending_of_no_picture_format_is_refused(tmp_path):
    with pytest.raises(EditingError, match=r"use \.png"):
        check_writable(tmp_path / "x.doc")


def test_a_file_where_a_folder_is_needed_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EditingError, match="cannot be made"):
        check_writable(tmp_path / "file" / "x.png")


def test_the_centre_of_a_folders_pictures_is_kept_and_the_unreadable_are_named(tmp_path):
    picture = Image.new("RGB", (96, 32), "black")
    picture.paste("white", (32, 0, 64, 32))  # the middle third
    picture.save(tmp_path / "a.png")
    Image.new("RGB", (40, 80), "white").save(tmp_path / "b.jpg", quality=100)
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("passed over")
    told = []
    images, skipped = square_pictures(tmp_path, 16, lambda done, total: told.append((done, total)))
    assert images.shape == (2, 3, 16, 16) and skipped == ["c.png"] and told == [(1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(images[:, :, :, 2:-2], torch.ones(2, 3, 16, 12), rtol=0, atol=0.02)


def test_folders_that_give_no_squares_are_refused(tmp_path):
    with pytest.raises(EditingError, match="holds no pictures"):
        square_pictures(tmp_path, 16)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(EditingError, match="None of the 1 pictures"):
        square_pictures(tmp_path, 16)
    with pytest.raises(EditingError, match="multiple of 8"):
        square_pictures(tmp_path, 20)


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_is_written_and_read(tmp_path, ending):
    save_picture(tmp_path / f"x{ending}", picture(64, 32))
    image, _ = read_picture(tmp_path / f"x{ending}")
    expected = torch.from_numpy(np.asarray(picture(64, 32)).copy()).permute(2, 0, 1) / 255
    assert float((image[0] - expected).abs().mean()) < 0.03


def test_a_phone_s_picture_of_several_frames_is_read_as_jpeg(tmp_path):
    picture(64, 32).save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[picture(64, 32)])
    with Image.open(tmp_path / "x.jpg") as opened:
        assert opened.format == "MPO"
    assert read_picture(tmp_path / "x.jpg")[0].shape == (1, 3, 32, 64)


def ghostscript(monkeypatch):
    """Pictures that Pillow hands to Ghostscript."""
    from PIL import EpsImagePlugin

    started = []

    def start(*_, **__):
        started.append(1)
        return Image.new("RGB", (10, 10)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    return started


def test_an_eps_named_png_starts_nothing(tmp_path, monkeypatch):
    picture(16, 16).save(tmp_path / "x.png", format="EPS")
    started = ghostscript(monkeypatch)
    with Image.open(tmp_path / "x.png") as opened:
        opened.load()
    assert started, "Pillow left to itself would start it"
    started.clear()
    with pytest.raises(EditingError, match=r"x\.png is damaged or not a picture"):
        read_picture(tmp_path / "x.png")
    assert picture_mark(tmp_path / "x.png") == "" and not started


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "PCX", "ICO", "PDF", "SGI", "IM", "DDS"])
def test_other_formats_are_no_pictures(tmp_path, kind):
    picture(16, 16).save(tmp_path / "x.png", format=kind)
    with pytest.raises(EditingError, match="damaged or not a picture"):
        read_picture(tmp_path / "x.png")


def sources():
    """Every shipped source, and the scripts."""
    return [path for folder in ("core", "nodes", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")] + [
        ROOT / "cli.py"
    ]


def test_every_source_that_opens_pictures_names_the_formats():
    calls = 0
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                calls += 1
                assert "formats" in [word.arg for word in node.keywords], f"{path.name}:{node.lineno}"
    assert calls >= 2


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(EditingError, match=r"cannot be read \(Permission denied\)"):
        picture_files(tmp_path)


def png(width, height, rows=b""):
    """A PNG that declares a size, whatever it holds."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8192, 8193), (12_000, 12_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_too_large_is_refused_undecoded(tmp_path, monkeypatch, size):
    (tmp_path / "x.png").write_bytes(png(*size))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(EditingError, match=r"x\.png (would be|has far too many) .*at most 67 million"):
        read_picture(tmp_path / "x.png")


def test_a_thread_of_pixels_is_not_blown_up(tmp_path):
    Image.new("L", (1, 60_000)).save(tmp_path / "x.png")
    with pytest.raises(EditingError, match="would be resized 512 x 30720000 pixels; use a picture of at most 67 mill"):
        read_picture(tmp_path / "x.png", 512)


def test_a_huge_file_is_refused_unread(tmp_path):
    with (tmp_path / "x.webp").open("wb") as stream:
        stream.truncate(600 << 20)
    with pytest.raises(EditingError, match=r"x\.webp is larger than 512 MiB"):
        read_picture(tmp_path / "x.webp")


def mutations(seed, count):
    """``(ending, bytes)`` of damaged pictures of every format, the same for a seed."""
    chance = random.Random(seed)
    whole = {}
    for ending, kind in FORMATS.items():
        stream = io.BytesIO()
        picture(24, 24).save(stream, format=kind)
        whole[ending] = stream.getvalue()
    for _ in range(count):
        ending, data = chance.choice(list(whole.items()))
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(min(len(damaged), chance.choice((16, 64, 10**6))))] = chance.choice(
                (0, 255, 127, chance.randrange(256))
            )
        yield ending, bytes(damaged[: chance.choice((len(damaged), len(damaged), chance.randrange(len(damaged))))])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_whatever_is_wrong_with_one_file_the_folder_goes_on(tmp_path):
    for number, (ending, data) in enumerate(mutations(0, 300)):
        (tmp_path / f"{number:03}{ending}").write_bytes(data)
    picture(24, 24).save(tmp_path / "good.png")
    images, skipped = square_pictures(tmp_path, 16)
    assert len(images) + len(skipped) == 301 and 50 < len(skipped) < 301 and "good.png" not in skipped
    assert skipped_report(skipped).startswith(f"skipped {len(skipped)} unreadable: {skipped[0]}")


@pytest.mark.parametrize("error", [struct.error, SyntaxError, IndexError, RecursionError, MemoryError, OSError])
def test_every_error_of_a_decoder_is_one_sentence(tmp_path, monkeypatch, error):
    picture(16, 16).save(tmp_path / "x.png")

    def load(self):
        raise error("anything")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(EditingError, match=r"^x\.png is damaged or not a picture; use a PNG, JPEG or WebP file\.$"):
        read_picture(tmp_path / "x.png")


def test_names_that_cannot_be_sent_are_told_all_the_same(tmp_path):
    (tmp_path / "a\udcff.png").write_bytes(b"no picture")
    picture(16, 16).save(tmp_path / "b.png")
    _, skipped = square_pictures(tmp_path, 16)
    assert skipped_report(skipped) == r"skipped 1 unreadable: a\udcff.png"
    with pytest.raises(EditingError, match=r"a\\udcff\.png is damaged") as caught:
        read_picture(picture_files(tmp_path)[0])
    assert str(caught.value).encode()


def test_folders_of_pictures_are_listed_and_no_others(tmp_path):
    for name in ("a/1.png", "a/b/2.JPG", "notes/x.txt", ".hidden/3.png", "1/2/3/4.webp", "1/2/3/5/6.png", "0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert picture_folders(tmp_path) == ["1/2/3", "a", "a/b"]
    assert picture_folders(tmp_path, deepest=1) == ["a"] and len(picture_folders(tmp_path, most=2)) == 2
    assert picture_folders(tmp_path / "absent") == []

"""Where a face is, the cut, and the way back, against independent definitions."""

import cmath
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.deltaedit import landmarks
from semantic_editing.core.deltaedit.alignment import (
    FaceCrop,
    Place,
    centre_place,
    crop_faces,
    ffhq_place,
    paste_back,
    whole_place,
)
from semantic_editing.core.deltaedit.landmarks import Face, find_faces, parse_landmarks
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.refusals import refusal

#: A frontal face in any unit: eyes, nose, corners of the mouth.
POINTS = torch.tensor([[-1.0, 0.1], [1.0, -0.1], [0.05, 0.9], [-0.7, 1.9], [0.8, 2.0]], dtype=torch.float64)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def moved(points, scale, angle, x, y):
    """Points under a similarity transform, by complex numbers."""
    z = [complex(*point) * cmath.rect(scale, angle) + complex(x, y) for point in points.tolist()]
    return torch.tensor([[value.real, value.imag] for value in z], dtype=torch.float64)


def crop_of(photo, *places):
    return FaceCrop(places, photo.shape[-2], photo.shape[-1])


def test_the_square_is_that_of_ffhqs_script():
    """Its lines, with vectors as it has them; places are half a pixel further, for pixels' middles are counted."""
    left, right, _, mouth_left, mouth_right = moved(POINTS, 30, 0.3, 200, 150).numpy()
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    e2e, e2m = right - left, mouth - eyes
    x = e2e - np.flipud(e2m) * [-1, 1]
    x /= np.hypot(*x)
    x *= max(np.hypot(*e2e) * 2.0, np.hypot(*e2m) * 1.8)
    y = np.flipud(x) * [-1, 1]
    c = eyes + e2m * 0.1
    quad = np.stack([c - x - y, c + x - y, c + x + y, c - x + y]) + 0.5
    place = ffhq_place(moved(POINTS, 30, 0.3, 200, 150))
    np.testing.assert_allclose(np.array(place.corners()), quad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2, 3.0])
def test_a_known_transform_is_recovered(angle):
    before, after = ffhq_place(POINTS), ffhq_place(moved(POINTS, 40, angle, 300, 220))
    middle = moved(torch.tensor([[before.x - 0.5, before.y - 0.5]]), 40, angle, 300, 220)[0] + 0.5
    assert [after.x, after.y] == pytest.approx(middle.tolist())
    assert after.side == pytest.approx(40 * before.side)
    assert cmath.rect(1, after.angle) == pytest.approx(cmath.rect(1, before.angle + angle))
    for corner, before_corner in zip(after.corners(), before.corners(), strict=True):
        expected = moved(torch.tensor([before_corner]).double() - 0.5, 40, angle, 300, 220)[0] + 0.5
        assert list(corner) == pytest.approx(expected.tolist())


def test_five_and_sixty_eight_points_agree():
    many = torch.full((68, 2), 1e6, dtype=torch.float64)  # all others count for nothing
    offsets = torch.tensor([[-2, 0], [-1, -1], [1, -1], [2, 0], [1, 1], [-1, 1]], dtype=torch.float64)
    many[36:42], many[42:48] = POINTS[0] + offsets, POINTS[1] + offsets
    many[48], many[54] = POINTS[3], POINTS[4]
    assert ffhq_place(many).corners() == [pytest.approx(corner) for corner in ffhq_place(POINTS).corners()]


def test_to_photo_and_back():
    place = Place(31.5, 17.25, 12.5, 0.7)
    u, v = random(2, 50, seed=3).double() * 3 - 1.5
    there = place.to_photo(u, v)
    torch.testing.assert_close(torch.stack(place.from_photo(*there)), torch.stack([u, v]))
    turned = [complex(a, b) * cmath.rect(12.5, 0.7) + complex(31.5, 17.25) for a, b in zip(u, v, strict=True)]
    assert [complex(a, b) for a, b in zip(*there, strict=True)] == pytest.approx(turned)


def test_a_photo_that_is_the_square_comes_out_bit_equal():
    photo = random(2, 3, 24, 24)
    for place in (centre_place(24, 24), whole_place(24, 24)):
        assert torch.equal(crop_faces(photo, crop_of(photo, place, place), 24), photo)
    wide = random(1, 3, 10, 16, seed=1)
    assert torch.equal(crop_faces(wide, crop_of(wide, centre_place(10, 16)), 10), wide[..., 3:13])


def test_each_pixel_is_the_mean_of_what_it_covers():
    photo = random(1, 3, 24, 36)
    found = crop_faces(photo, crop_of(photo, Place(18, 12, 24)), 8)
    torch.testing.assert_close(found, functional.avg_pool2d(photo[..., 6:30], 3))


def test_turned_by_quarters():
    photo = random(1, 3, 12, 12)
    for quarters in (1, 2, 3):
        found = crop_faces(photo, crop_of(photo, Place(6, 6, 12, quarters * math.pi / 2)), 12)
        torch.testing.assert_close(found, torch.rot90(photo, quarters, (2, 3)))


def test_a_slope_is_sampled_where_it_is():
    """Linear interpolation is exact on it, wherever the square lies and however it is turned."""
    rows, columns = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    photo = torch.stack([columns / 50, rows / 40, (columns + 2 * rows) / 130])[None]
    place = Place(26.3, 19.6, 20.5, 0.5)
    for size in (7, 16, 33):  # shrunk and enlarged
        steps = (torch.arange(size) + 0.5) / size - 0.5
        v, u = torch.meshgrid(steps, steps, indexing="ij")
        x = 26.3 + 20.5 * (math.cos(0.5) * u - math.sin(0.5) * v)
        y = 19.6 + 20.5 * (math.sin(0.5) * u + math.cos(0.5) * v)
        expected = torch.stack([x / 50, y / 40, (x + 2 * y) / 130])[None]
        torch.testing.assert_close(crop_faces(photo, crop_of(photo, place), size), expected, rtol=0, atol=1e-6)


def test_beyond_its_border_a_photo_is_mirrored():
    photo = random(1, 3, 6, 10)
    found = crop_faces(photo, crop_of(photo, whole_place(6, 10)), 10)
    expected = np.pad(photo.numpy(), ((0, 0), (0, 0), (2, 2), (0, 0)), mode="symmetric")
    torch.testing.assert_close(found, torch.from_numpy(expected))
    far = crop_faces(photo, crop_of(photo, Place(5, 3, 36)), 36)  # 15 rows above: mirrored more than once
    expected = np.pad(photo.numpy(), ((0, 0), (0, 0), (15, 15), (13, 13)), mode="symmetric")
    torch.testing.assert_close(far, torch.from_numpy(expected))


def test_the_chunks_of_a_large_photo_make_no_difference(monkeypatch):
    photo, after = random(1, 3, 40, 44), random(1, 3, 16, 16, seed=5)
    crop = crop_of(photo, Place(20, 21, 33, 0.2))
    whole = crop_faces(photo, crop, 16), *paste_back(photo, crop, torch.zeros_like(after), after)
    monkeypatch.setattr("semantic_editing.core.deltaedit.alignment.CHUNK", 100)
    pieces = crop_faces(photo, crop, 16), *paste_back(photo, crop, torch.zeros_like(after), after)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


PLACES = [Place(20, 16, 20, 0.3), Place(3, 30, 26, -1.0), Place(20, 16, 40)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [8, 64])
def test_without_a_change_the_photo_keeps_its_bits(place, size):
    photo, face = random(1, 3, 32, 40) * 1.2 - 0.1, random(1, 3, size, size, seed=1)
    result, share = paste_back(photo, crop_of(photo, place), face, face.clone())
    assert torch.equal(result, photo) and 0 < share.max() <= 1


def test_the_whole_photo_takes_the_change_as_it_is():
    """Its borders are the photo's: nothing fades."""
    photo, before = random(1, 3, 16, 16), random(1, 3, 16, 16, seed=1)
    after = before + (random(1, 3, 16, 16, seed=2) - 0.5) / 4
    result, share = paste_back(photo, crop_of(photo, centre_place(16, 16)), before, after, 0.3)
    torch.testing.assert_close(result, (photo + after - before).clamp(0, 1))
    assert torch.equal(share, torch.ones(1, 1, 16, 16))


@pytest.mark.parametrize("size", [8, 20, 50])
def test_a_change_of_one_colour_fades_as_the_feather_says(size):
    photo = torch.full((1, 3, 32, 40), 0.5)
    place, feather = Place(21.0, 15.0, 18.0, 0.4), 0.25
    before, after = torch.zeros(1, 3, size, size), torch.full((1, 3, size, size), 0.25)
    result, share = paste_back(photo, crop_of(photo, place), before, after, feather)
    expected = np.zeros((32, 40))
    fine = max(1, math.ceil(size / place.side))  # where the face is finer than the photo, the mean over a pixel
    for row in range(32):
        for column in range(40):
            for step in range(fine * fine):
                x, y = column + (step % fine + 0.5) / fine, row + (step // fine + 0.5) / fine
                z = complex(x - place.x, y - place.y) * cmath.rect(1 / place.side, -place.angle)
                weight = 1.0
                for distance in (0.5 - z.real, 0.5 + z.real, 0.5 - z.imag, 0.5 + z.imag):
                    part = min(max(distance / feather, 0), 1)
                    weight *= part * part * (3 - 2 * part)
                expected[row, column] += weight / fine**2
    np.testing.assert_allclose(share[0, 0].numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(result[0].numpy(), 0.5 + 0.25 * np.broadcast_to(expected, (3, 32, 40)), atol=1e-6)
    assert expected[15, 21] == pytest.approx(1) and expected.min() == 0


@pytest.mark.parametrize("place", PLACES)
def test_cut_and_paste_round_trip(place):
    """A smooth change of the photo, cut out with the face, comes back to where it was."""
    rows, columns = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    photo = torch.full((1, 3, 32, 40), 0.4)
    bump = (0.3 * torch.exp(-((columns - place.x) ** 2 + (rows - place.y) ** 2) / 40)).expand(1, 3, -1, -1)
    crop = crop_of(photo, place)
    before, after = crop_faces(photo, crop, 64), crop_faces(photo + bump, crop, 64)
    result, share = paste_back(photo, crop, before, after)
    inside = share.expand_as(photo) > 0.999
    assert inside.float().mean() > 0.05
    # A linear interpolation errs by up to an eighth of both second derivatives, here .3 * 2 / 40 each; two are made.
    torch.testing.assert_close(result[inside], (photo + bump)[inside], rtol=0, atol=2 * (0.015 + 0.015) / 8)
    outside = share.expand_as(photo) == 0
    assert torch.equal(result[outside], photo[outside])


def test_batches_are_pasted_row_by_row():
    photos, places = random(3, 3, 20, 24), [Place(9, 9, 10), Place(12, 10, 16, 0.5), Place(4, 4, 12)]
    before, after = random(3, 3, 16, 16, seed=1), random(3, 3, 16, 16, seed=2)
    crop = crop_of(photos, *places)
    result, share = paste_back(photos, crop, before, after)
    for row in range(3):
        one = photos[row : row + 1]
        alone = paste_back(one, crop_of(one, places[row]), before[row : row + 1], after[row : row + 1])
        assert torch.equal(result[row : row + 1], alone[0]) and torch.equal(share[row : row + 1], alone[1])
    one = photos[:1]
    several, _ = paste_back(one, crop_of(one, places[0]), before[:1], after)  # one photo, three edits
    for row in range(3):
        alone, _ = paste_back(one, crop_of(one, places[0]), before[:1], after[row : row + 1])
        assert torch.equal(several[row : row + 1], alone)
    spread, _ = paste_back(photos, crop_of(one, places[1]), before[:1], after[:1])
    assert torch.equal(spread[2:], paste_back(photos[2:], crop_of(one, places[1]), before[:1], after[:1])[0])


def test_what_does_not_belong_together_is_refused():
    photo, face = random(1, 3, 20, 24), random(1, 3, 8, 8)
    crop = crop_of(photo, Place(9, 9, 10))
    assert "24 x 20 pixels" in refusal(paste_back, photo, FaceCrop(crop.places, 20, 20), face, face)
    assert "squares of one size" in refusal(paste_back, photo, crop, face, random(1, 3, 9, 9))
    assert "squares of one size" in refusal(paste_back, photo, crop, face[..., :6], face[..., :6])
    assert "feather is 0.7" in refusal(paste_back, photo, crop, face, face, 0.7)
    assert "2 photos" in refusal(paste_back, photo.repeat(2, 1, 1, 1), crop, face, face.repeat(3, 1, 1, 1))
    assert "not a number" in refusal(paste_back, photo, crop, face, face * math.nan)
    assert "not a number" in refusal(crop_faces, photo * math.inf, crop, 8)
    assert "1 photos and 2" in refusal(crop_faces, photo, crop_of(photo, *crop.places * 2), 8)
    assert "give 5 or 68 points" in refusal(ffhq_place, torch.zeros(6, 2))
    assert "do not show a face" in refusal(ffhq_place, torch.ones(5, 2))
    assert "not a number" in refusal(ffhq_place, POINTS * math.nan)


def faces(*found):
    """A finder that gives faces of the sides and confidences in ``found``, each at its number times 100 pixels."""
    return lambda photo: [
        Face(moved(POINTS.repeat(14, 1)[:68], 10, 0, 100 * number, 100), side, sure)
        for number, (side, sure) in enumerate(found, start=1)
    ]


def facing(*found, alignment="auto", shape=(1, 3, 300, 400)):
    return find_faces(random(*shape), alignment, 64, finder=faces(*found))


def test_the_largest_sure_face_is_taken_and_said():
    for found, number, words in (
        ([(50, 1.0)], 1, "aligned as FFHQ by dlib's 68 landmarks"),
        ([(50, 1.0), (80, 0.9), (60, 2.0)], 2, "of the largest of 3 faces"),
        ([(50, 1.0), (80, 0.1)], 1, "aligned as FFHQ"),  # a pattern, not a face
        ([(40, 0.1), (30, 0.2)], 1, "not sure to be one (confidence 0.10)"),
    ):
        crop = facing(*found)
        expected = ffhq_place(moved(POINTS.repeat(14, 1)[:68], 10, 0, 100 * number, 100))
        assert crop.places == (expected,) and words in crop.facts[0]


def test_without_a_face_or_a_library_the_centre_is_taken_and_said(monkeypatch):
    crop = facing()
    assert crop.places == (centre_place(300, 400),)
    assert crop.facts == ("the middle square of 300 pixels, not aligned: no face was found",)
    monkeypatch.setattr(landmarks, "installed", lambda: False)
    crop = find_faces(random(1, 3, 64, 64), "auto", 64)
    assert crop.places == (centre_place(64, 64),) and "pip install dlib-bin" in crop.facts[0]
    assert "No face was found" in refusal(facing, alignment="landmarks")


def test_landmarks_without_the_library_are_refused(monkeypatch):
    landmarks._dlib.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "dlib", None)
    monkeypatch.setattr("semantic_editing.core.reading.libraries._is_installed", lambda top: False)
    sentence = None
    with pytest.raises(EditingError) as caught:
        find_faces(random(1, 3, 64, 64), "landmarks", 64)
    sentence = str(caught.value)
    assert "needs dlib-bin" in sentence and "alignment centre" in sentence


def test_dlib_is_asked_as_it_wants_to_be(monkeypatch):
    """A photo larger than it is searched in; places come back in the photo's own pixels."""
    from types import SimpleNamespace

    seen = []

    class Box(tuple):
        left, top, right, bottom = (lambda self, i=i: self[i] for i in range(4))

        def width(self):
            return self[2] - self[0] + 1

    def run(pixels, doublings, threshold):
        seen.append(pixels)
        return [Box((10, 20, 109, 119))], [0.8], [0]

    def predict(pixels, box):
        assert tuple(box) == (10, 20, 109, 119)
        return SimpleNamespace(parts=lambda: [SimpleNamespace(x=3 * n, y=n) for n in range(68)])

    monkeypatch.setattr(landmarks, "_dlib", lambda: (SimpleNamespace(run=run), predict, lambda *sides: Box(sides)))
    (face,) = landmarks.dlib_faces(torch.full((3, 1024, 2048), 0.6))
    assert seen[0].shape == (512, 1024, 3) and seen[0].dtype == np.uint8 and (seen[0] == 153).all()
    assert face.side == 200 and face.sure == 0.8
    numbers = torch.arange(68.0, dtype=torch.float64)
    torch.testing.assert_close(face.points, 2 * torch.stack([3 * numbers, numbers], 1) + 0.5)  # middles on middles
    (face,) = landmarks.dlib_faces(torch.zeros(3, 100, 200))
    assert seen[1].shape == (100, 200, 3) and face.side == 100
    torch.testing.assert_close(face.points[5], torch.tensor([15.0, 5.0], dtype=torch.float64))


def test_alignments_that_look_at_no_face():
    wide = random(2, 3, 20, 50)
    crop = find_faces(wide, "centre", 64)
    assert crop.places == (centre_place(20, 50),) * 2
    assert "middle square of 20 pixels" in crop.facts[0] and "enlarged to 64" in crop.facts[0]
    crop = find_faces(wide, "none", 64)
    assert crop.places[0].side == 50 and "50 x 20" in crop.facts[0] and "mirrored" in crop.facts[0]
    assert find_faces(random(1, 3, 64, 64), "none", 64).facts == ("the whole photo",)
    tiny = random(1, 3, 1, 1)
    assert torch.equal(crop_faces(tiny, find_faces(tiny, "centre", 8), 8), tiny.expand(1, 3, 8, 8))
    assert "use one of: auto" in refusal(find_faces, wide, "left", 64)
    assert "[batch, 3, height, width]" in refusal(find_faces, wide[0], "centre", 64)


def test_landmarks_as_text():
    points = moved(POINTS, 20, 0.1, 80, 60)
    line = " ".join(f"{value:.6f}" for value in points.flatten().tolist())
    photos = random(2, 3, 160, 160)
    given = parse_landmarks(f"\n{line}\n", 2)
    crop = find_faces(photos, "auto", 64, given)
    assert crop.places[0] == crop.places[1] and crop.places[0].side == pytest.approx(ffhq_place(points).side, rel=1e-6)
    assert crop.facts[0].startswith("aligned as FFHQ by 5 given landmarks")
    nested = str(points.tolist())
    torch.testing.assert_close(parse_landmarks(f"{line}\n{nested}", 2)[1], points)
    assert parse_landmarks(" \n ", 3) is None
    assert "no number" in refusal(parse_landmarks, "1 2 x", 1)
    assert "holds 3 numbers" in refusal(parse_landmarks, "1 2 3", 1)
    assert "2 lines of landmarks for 3" in refusal(parse_landmarks, f"{line}\n{line}", 3)
    assert "characters" in refusal(parse_landmarks, "1" * 300_000, 1)
    for far in (1e5, -1e5, math.nan):
        refusal(find_faces, photos, "auto", 64, [points + far] * 2)
    assert "does not fit a photo of 160 x 160" in refusal(find_faces, photos, "landmarks", 64, [points * 40] * 2)
    assert "reaches" in find_faces(photos, "auto", 64, [points + 60] * 2).facts[0]

"""Files of mappers and relevance matrices: round trips, the authors' own kinds, and everything that can be wrong."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch

from semantic_editing.core.deltaedit import mapper_files
from semantic_editing.core.deltaedit.mapper_files import (
    load_mapper,
    load_relevance,
    published_layout,
    save_mapper,
    save_relevance,
)
from semantic_editing.core.deltaedit.relevance import BOTH, COVARIANCE, PERTURBATION, RELEASED, Relevance
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.reading.arrays import read_array
from semantic_editing.tests.core.deltaedit import tiny_mappers as tiny

GEN = tiny.generator()


@pytest.fixture
def small_publication(monkeypatch):
    """The published generators have the widths of the tiny one."""
    monkeypatch.setattr(mapper_files, "channels_of", lambda side, multiplier: tiny.CHANNELS.get(side, 3))


def refusal(function, *arguments):
    with pytest.raises(EditingError) as caught:
        function(*arguments)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and "/" not in sentence, sentence
    return sentence


def answer(mapper):
    return mapper.change(tiny.seeded(2, GEN.layout.width, seed=3), tiny.unit(2), tiny.unit(2, seed=9))


@pytest.mark.parametrize("architecture", ["flat", "released"])
def test_a_mapper_comes_back_with_all_it_knows(tmp_path, architecture):
    mapper = tiny.mapper(architecture, across_channels=False, clip="a CLIP")
    mapper.facts = {"trained on": "12 faces"}
    matrix = tiny.relevance(GEN, clip="a CLIP")
    path = save_mapper(tmp_path / "a.safetensors", mapper, matrix)
    found = load_mapper(path)
    assert torch.equal(answer(found), answer(mapper))
    for name in ("levels", "clip_width", "architecture", "across_channels", "generator", "clip", "layout", "facts"):
        assert getattr(found, name) == getattr(mapper, name), name
    assert found.preprocessing == "own" and not found.training
    assert not any(weight.requires_grad for weight in found.parameters())
    assert torch.equal(found.relevance.matrix, matrix.matrix)
    assert (found.relevance.kind, found.relevance.generator, found.relevance.clip) == (
        COVARIANCE,
        GEN.identity,
        "a CLIP",
    )
    assert torch.equal(load_relevance(path).matrix, matrix.matrix), "a mapper's file serves as a relevance matrix's"
    with pytest.raises(EditingError, match="exists already"):
        save_mapper(path, found)
    again = load_mapper(save_mapper(path, found, overwrite=True))
    assert torch.equal(again.relevance.matrix, matrix.matrix), "what a mapper brought goes along when it is saved again"


def test_half_precision_is_stored_and_not_computed_with(tmp_path):
    mapper = tiny.mapper()
    whole, half = (save_mapper(tmp_path / f"{half}.safetensors", mapper, half=half) for half in (False, True))
    found = load_mapper(half)
    stored, _ = load_tensors(half)
    assert {stored[name].dtype for name, _ in mapper.named_parameters()} == {torch.float16}
    assert half.stat().st_size < whole.stat().st_size
    assert torch.equal(found.mean, mapper.mean) and torch.equal(found.deviation, mapper.deviation)
    for name, weight in found.named_parameters():
        assert weight.dtype == torch.float32 and torch.equal(weight, mapper.state_dict()[name].half().float())
    torch.testing.assert_close(answer(found), answer(mapper), rtol=0.02, atol=0.02)
    assert found.relevance is None and "holds no relevance matrix" in refusal(load_relevance, half)


def published(tmp_path, change=lambda table: table, **options):
    """A table as the authors' program saves one."""
    mapper = tiny.mapper("released", across_channels=False, standardised=False)
    table = OrderedDict((name, weight) for name, weight in mapper.named_parameters())
    table = OrderedDict((name, weight.detach().clone()) for name, weight in table.items())
    torch.save(change(table) or table, tmp_path / "net_face.pth", **options)
    return mapper, tmp_path / "net_face.pth"


@pytest.mark.parametrize("old", [False, True])
def test_the_authors_table_loads_as_it_is(tmp_path, small_publication, old):
    mapper, path = published(tmp_path, _use_new_zipfile_serialization=not old)
    found = load_mapper(path)
    first = {"sm": 1, "cm": 1, "fm": 0}
    expected = {
        f"{kind}_{level}.mapping.{first[kind] + layer}.{part}"
        for level in ("coarse", "medium", "fine")
        for kind in first
        for layer in range(4)
        for part in ("weight", "bias")
    }
    assert {name for name, _ in found.named_parameters()} == expected, "the names of their program"
    assert torch.equal(answer(found), answer(mapper))
    assert not found.across_channels and found.preprocessing == "deltaedit" and found.clip_width == tiny.WIDTH
    assert found.generator == found.clip == "" and found.layout == GEN.layout
    converted = load_mapper(save_mapper(tmp_path / "face.safetensors", found))
    assert torch.equal(answer(converted), answer(mapper)) and converted.preprocessing == "deltaedit"
    assert converted.layout == found.layout and converted.facts == found.facts and not converted.across_channels


def test_the_published_generators_follow_from_the_fine_channels():
    ffhq = published_layout(2464, "net_face.pth")
    assert [channels for _, channels in ffhq.convs] == [512] * 10 + [256] * 2 + [128] * 2 + [64] * 2 + [32]
    assert (ffhq.width, sum(ffhq.rgb_widths), ffhq.rows, ffhq.convs[-1][0]) == (6048, 3040, 18, 1024)
    cats = published_layout(2176, "net_cat.pth")
    assert (cats.width, cats.convs[-1][0]) == (5760, 256)
    assert "2465 fine channels, which no published StyleGAN2 has" in refusal(published_layout, 2465, "x.pth")


def test_missing_weights_are_named(tmp_path, small_publication):
    def without(*names):
        return published(tmp_path, lambda table: [table.pop(name) for name in names] and None)[1]

    sentence = refusal(load_mapper, without("fm_fine.mapping.2.bias"))
    assert sentence == "net_face.pth lacks fm_fine.mapping.2.bias of a Delta Mapper; download or save it again."
    sentence = refusal(load_mapper, without(*(f"sm_{level}.mapping.1.weight" for level in ("coarse", "medium"))))
    assert "lacks sm_coarse.mapping.1.weight, sm_medium.mapping.1.weight of" in sentence
    names = [f"cm_coarse.mapping.{layer}.{part}" for layer in (2, 3) for part in ("weight", "bias")]
    assert "and 1 more of a Delta Mapper" in refusal(load_mapper, without(*names))
    path = tmp_path / "other.pth"
    torch.save(OrderedDict(weight=torch.ones(2)), path)
    assert "holds no Delta Mapper" in refusal(load_mapper, path)


def test_weights_of_another_shape_or_no_number_are_named(tmp_path, small_publication):
    def put(name, value):
        return published(tmp_path, lambda table: table.__setitem__(name, value))[1]

    sentence = refusal(load_mapper, put("cm_fine.mapping.3.bias", torch.zeros(5)))
    assert "its cm_fine.mapping.3.bias has shape [5] instead of [7]" in sentence
    weight = torch.full((4, 4), float("nan"))
    assert "not numbers (sm_coarse.mapping.2.weight)" in refusal(load_mapper, put("sm_coarse.mapping.2.weight", weight))
    assert "not numbers (sm_coarse.mapping.2.weight)" in refusal(
        load_mapper, put("sm_coarse.mapping.2.weight", torch.ones(4, 4, dtype=torch.int64))
    )


class Hostile:
    def __reduce__(self):
        return (print, ("the file ran something",))


def test_foreign_classes_are_refused_and_nothing_runs(tmp_path, capsys):
    torch.save(OrderedDict({"sm_coarse.mapping.1.weight": Hostile()}), tmp_path / "net_face.pth")
    refusal(load_mapper, tmp_path / "net_face.pth")
    torch.save(tiny.mapper("released"), tmp_path / "network.pth")  # the network itself, with our own class
    refusal(load_mapper, tmp_path / "network.pth")
    assert capsys.readouterr().out == ""


def rewritten(tmp_path, change):
    """A saved mapper's file after ``change(tensors, metadata, shape)``."""
    path = save_mapper(tmp_path / "a.safetensors", tiny.mapper(), tiny.relevance(GEN), overwrite=True)
    tensors, metadata = load_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    shape = json.loads(metadata["shape"])
    change(tensors, metadata, shape)
    if "shape" in metadata:
        metadata["shape"] = json.dumps(shape)
    return save_tensors(path, tensors, metadata, overwrite=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, m, s: s.update(hidden=65_536), "instead of [65536, "),
        (lambda t, m, s: s.update(levels=[[65_536] * 64] * 3), "a.safetensors does not fit together"),
        (lambda t, m, s: s.update(clip_width=0), "is damaged"),
        (lambda t, m, s: s.update(architecture="transformer"), "is damaged"),
        (lambda t, m, s: s.update(architecture="released"), "a.safetensors lacks sm_coarse.mapping.1.weight"),
        (lambda t, m, s: m.pop("shape"), "lacks readable shape metadata"),
        (lambda t, m, s: m.update(format="x"), "is not a semantic_editing.delta_mapper file"),
        (lambda t, m, s: t["deviation"].zero_(), "a channel's deviation is not above 0"),
        (lambda t, m, s: t["mean"].fill_(float("inf")), "not numbers (mean)"),
        (lambda t, m, s: t.update(relevance=torch.ones(3, tiny.WIDTH)), "its relevance matrix is another mapper's"),
        (lambda t, m, s: m.update(relevance_kind="guessed"), "is damaged"),
        (lambda t, m, s: m.update(layout='{"convs": [[4, 4]], "rgbs": [[4, 4]]}'), "has other channels than it"),
    ],
)  # fmt: skip
def test_a_damaged_file_ends_in_a_sentence(tmp_path, change, said):
    assert said in refusal(load_mapper, rewritten(tmp_path, change))


@pytest.mark.parametrize("kind", [COVARIANCE, PERTURBATION, BOTH])
def test_a_relevance_matrix_comes_back(tmp_path, kind):
    matrix = Relevance(tiny.seeded(5, 3), kind, "a generator", "a CLIP")
    found = load_relevance(save_relevance(tmp_path / "a.safetensors", matrix))
    assert torch.equal(found.matrix, matrix.matrix)
    assert (found.kind, found.generator, found.clip) == (kind, "a generator", "a CLIP")
    assert "is not a semantic_editing.delta_mapper file" in refusal(load_mapper, tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_users_array_loads(tmp_path, dtype, order):
    rows = np.asarray(tiny.seeded(7, 4).numpy(), dtype, order=order)
    np.save(tmp_path / "fs3.npy", rows)
    found = load_relevance(tmp_path / "fs3.npy")
    assert found.kind == RELEASED and found.generator == found.clip == "" and found.matrix.dtype == torch.float32
    assert np.array_equal(found.matrix.numpy(), rows.astype(np.float32))
    assert "a relevance matrix goes into relevance_file" in refusal(load_mapper, tmp_path / "fs3.npy")


def test_later_versions_of_the_format_load(tmp_path):
    rows = tiny.seeded(3, 2).numpy()
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array(stream, rows, version=(2, 0))
    assert np.array_equal(read_array(tmp_path / "a.npy", "relevance matrix").numpy(), rows)


def test_other_arrays_end_in_a_sentence(tmp_path):
    path = tmp_path / "fs3.npy"

    def saved(value, **options):
        np.save(path, value, **options)
        return path

    def written(data):
        path.write_bytes(data)
        return path

    whole = saved(tiny.seeded(3, 2).numpy()).read_bytes()
    assert "holds no floating-point numbers" in refusal(load_relevance, saved(np.arange(6).reshape(2, 3)))
    assert "holds no floating-point numbers" in refusal(load_relevance, saved(np.array([Hostile()]), allow_pickle=True))
    assert "has shape [2, 3, 4]" in refusal(load_relevance, saved(np.zeros((2, 3, 4))))
    assert "has shape [0, 4]" in refusal(load_relevance, saved(np.zeros((0, 4))))
    assert "not numbers" in refusal(load_relevance, saved(np.array([[np.nan, 1.0]])))
    assert "not numbers" in refusal(load_relevance, saved(np.array([[1e300, 1.0]])))
    for data in (
        whole[:-1],
        whole + b"x",
        whole[:40],
        b"",
        b"PK" + whole,
        whole.replace(b"(3, 2)", b"(9**9,"),
        whole.replace(b"(3, 2)", b"(30, 2"),
    ):
        assert "is damaged or was not saved by numpy.save" in refusal(load_relevance, written(data))
    huge = whole.replace(b"(3, 2), }       ", b"(30000000000, 2)")
    assert "is damaged" in refusal(load_relevance, written(huge))
    assert "choose a .safetensors or .npy file" in refusal(load_relevance, tmp_path / "fs3.pt")

"""The restricted reader of pickled networks against torch's own unpickler, and against files that try to run code."""

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from semantic_editing.core.errors import EditingError
from semantic_editing.core.reading.pickles import read_network_pickle


class BinaryClassifier(nn.Module):
    """Shaped as CASO's published classifiers: a network under ``model`` and a sigmoid."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 1),
        )
        self.sigmoid = nn.Sigmoid()
        self.model_type = "vgg16"


def saved(value, path, **options):
    torch.save(value, path, **options)
    return path


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return BinaryClassifier()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_it_reads_what_torch_reads(network, tmp_path, protocol):
    read = read_network_pickle(saved(network, tmp_path / "mustache.pt", pickle_protocol=protocol))
    expected = network.state_dict()
    assert read.kind == "BinaryClassifier"
    assert list(read.tensors) == list(expected)
    for key, value in expected.items():
        assert read.tensors[key].dtype == value.dtype and torch.equal(read.tensors[key], value), key


def test_the_authors_module_is_never_imported(network, tmp_path, monkeypatch):
    module = types.ModuleType("authors_private_script")
    monkeypatch.setitem(sys.modules, "authors_private_script", module)
    module.BinaryClassifier = BinaryClassifier
    monkeypatch.setattr(BinaryClassifier, "__module__", "authors_private_script")
    path = saved(network, tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "authors_private_script")
    assert read_network_pickle(path).kind == "BinaryClassifier"
    assert "authors_private_script" not in sys.modules


def test_views_shared_blocks_and_precisions(tmp_path):
    block = torch.arange(24.0).reshape(4, 6)
    table = OrderedDict(
        turned=block.t(),
        part=block[1:3, ::2],
        half=block.half(),
        tiny=block.bfloat16(),
        flag=block > 3,
        one=block.sum(),
    )
    read = read_network_pickle(saved(table, tmp_path / "table.pt"))
    assert read.kind == "state_dict"
    for key, value in table.items():
        assert torch.equal(read.tensors[key], value), key


def test_fleeting_buffers_are_left_out(tmp_path):
    layer = nn.Linear(2, 2)
    layer.register_buffer("kept", torch.ones(1))
    layer.register_buffer("fleeting", torch.ones(1), persistent=False)
    assert (
        set(read_network_pickle(saved(layer, tmp_path / "a.pt")).tensors)
        == set(layer.state_dict())
        == {"weight", "bias", "kept"}
    )


class Payload:
    """A real attack: unpickled the ordinary way, it runs ``call(*arguments)``."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def attack(kind, target):
    if kind == "open":
        return Payload(open, str(target), "w")
    if kind == "system":
        return Payload(os.system, f"touch '{target}'")
    if kind == "exec":
        return Payload(exec, f"open({str(target)!r}, 'w')")
    return Payload(getattr, Payload(__import__, "os"), "system")


@pytest.mark.parametrize("where", ["alone", "in the network"])
@pytest.mark.parametrize("kind", ["open", "system", "exec", "getattr"])
def test_hostile_files_are_refused_and_nothing_runs(network, tmp_path, kind, where):
    target = tmp_path / "created by the attack"
    if where == "alone":
        value = attack(kind, target)
    else:
        network.payload = attack(kind, target)
        value = network
    path = saved(value, tmp_path / "hostile.pt")
    with pytest.raises(
        EditingError, match=r"hostile\.pt was refused: it asks for '.*', which no classifier needs"
    ) as caught:
        read_network_pickle(path)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    if kind != "getattr":  # the payload is real: the ordinary way it fires
        torch.load(path, weights_only=False)
        assert target.exists()


def repacked(path, change):
    """The zip at ``path`` with every member passed through ``change(name, data)``."""
    with zipfile.ZipFile(path) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members:
            archive.writestr(name, change(name, data))
    path.write_bytes(stream.getvalue())
    return path


def with_pickle(path, data):
    return repacked(path, lambda name, old: data if name.endswith("data.pkl") else old)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x0ctorch._utils\x8c\x24_rebuild_tensor_v2.__globals__.values\x93.",
        b"ctorch.nn.modules.linear\nLinear\n(S'argument'\ntR.",
        b"ctorch\nFloatStorage\n(tR.",
        b"cposix\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"I1\n.",
        b"]q\x00h\x00a.",
        b"",
        b"\xff\xff",
    ],
    ids=[
        "eval", "attributes of a name", "calling a stand-in", "calling a storage", "system", "inst", "number", "circle",
        "empty", "noise",
    ],
)  # fmt: skip
def test_crafted_pickles_are_refused(tmp_path, opcodes):
    path = with_pickle(saved(OrderedDict(a=torch.ones(2)), tmp_path / "crafted.pt"), opcodes)
    with pytest.raises(EditingError, match=r"crafted\.pt"):
        read_network_pickle(path)


def claiming(path, size, stride, offset):
    """A file with one tensor made by hand that claims what it likes of the 8 stored numbers."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 8) if isinstance(value, Storage) else None

    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"weight": Claim()})
    return with_pickle(saved(OrderedDict(a=torch.arange(8.0)), path), stream.getvalue())


def test_an_honest_claim_is_read(tmp_path):
    read = read_network_pickle(claiming(tmp_path / "honest.pt", (2, 3), (4, 1), 1))
    assert read.tensors["weight"].tolist() == [[1, 2, 3], [5, 6, 7]]


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((3, 3), (3, 1), 0), ((2,), (1,), 7), ((2,), (-1,), 3), ((-1,), (1,), 0)]
)
def test_no_tensor_reaches_past_its_block(tmp_path, size, stride, offset):
    with pytest.raises(EditingError, match=r"reaching\.pt is damaged"):
        read_network_pickle(claiming(tmp_path / "reaching.pt", size, stride, offset))


def test_a_tensor_that_unfolds_without_end_is_refused(tmp_path):
    with pytest.raises(EditingError, match="unfolds to more than it holds"):
        read_network_pickle(claiming(tmp_path / "bomb.pt", (1 << 20, 1 << 20), (0, 0), 0))


def test_damaged_foreign_and_missing_files(network, tmp_path):
    path = saved(network, tmp_path / "a.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EditingError, match="damaged"):
        read_network_pickle(path)
    with pytest.raises(EditingError, match="was not found"):
        read_network_pickle(tmp_path / "absent.pt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(EditingError, match="not a network saved by torch"):
        read_network_pickle(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10**6)
    with pytest.raises(EditingError, match="compressed"):
        read_network_pickle(path)
    with pytest.raises(EditingError, match="no weights"):
        read_network_pickle(saved(nn.ReLU(), path))
    with pytest.raises(EditingError, match="table of tensors"):
        read_network_pickle(saved([1, 2], path))

"""Load Edit Direction on published word embeddings: two files make a direction, a lone one is a side to add or take
away.
"""

from pathlib import Path

import pytest
import torch

from semantic_editing.tools import host_stand_in

PUBLISHED = Path(__file__).resolve().parents[3] / "../shared/data/edit_directions_sd14"


@pytest.fixture(params=["made here", "published"])
def folder(request, tmp_path):
    """A folder with cat.pt and dog.pt."""
    if request.param == "published":
        if not PUBLISHED.is_dir():
            pytest.skip("the published embeddings are not here")
        return PUBLISHED
    embeddings = torch.randn(2, 1, 77, 768, generator=torch.Generator().manual_seed(0))
    embeddings[:, :, 0] = 9.0  # the start token's state is the same for every text
    for name, value in zip(("cat.pt", "dog.pt"), embeddings, strict=True):
        torch.save(value.clone(), tmp_path / name)
    return tmp_path


@pytest.fixture
def load(folder, monkeypatch):
    files = host_stand_in.module("nodes.pix2pix_zero.direction_files")
    monkeypatch.setattr(files, "resolve_file", lambda kind, name: folder / name)
    return lambda *names: files.LoadEditDirection.execute(*names).args


def test_two_files_make_the_difference(folder, load):
    direction, report = load("dog.pt", "cat.pt")
    cat, dog = (
        torch.load(folder / name, map_location="cpu", weights_only=True).float() for name in ("cat.pt", "dog.pt")
    )
    torch.testing.assert_close(direction.embeds, dog - cat, rtol=0, atol=0)
    assert "'cat' to 'dog'" in report and not direction.is_mean_embedding


def test_a_lone_file_is_one_side_and_says_so(load):
    """Adding the target's and taking the source's away is the direction of both, as the report promises."""
    (dog, report), (cat, _) = load("dog.pt", "none"), load("cat.pt", "none")
    assert dog.is_mean_embedding and "apply it at +1 and the source word's at -1" in report
    prompt = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1))
    chained, _ = cat.apply(dog.apply(prompt)[0], strength=-1.0)
    at_once, _ = load("dog.pt", "cat.pt")[0].apply(prompt)
    torch.testing.assert_close(chained, at_once, rtol=0, atol=1e-4)


def test_a_direction_that_the_disk_refuses_is_rescued(load, disk, tmp_path, monkeypatch):
    files, saving = (
        host_stand_in.module(f"nodes.{name}") for name in ("pix2pix_zero.direction_files", "common.saving")
    )
    disk.add("full")
    monkeypatch.setattr(files, "output_path", lambda kind, name: tmp_path / "full" / f"{name}.safetensors")
    monkeypatch.setattr(saving, "rescue_folders", lambda: [("the output folder", tmp_path / "output")])
    direction, _ = load("dog.pt", "cat.pt")
    result = files.SaveEditDirection.execute(direction, "a", False)
    assert result.args == ("",) and "kept as a.safetensors in the output folder" in str(result.ui)
    assert (tmp_path / "output" / "a.safetensors").is_file() and not list((tmp_path / "full").iterdir())

"""DeltaEdit Mapper in the host: files, sockets, pictures and what the report says, on tiny random networks."""

import re
import sys

import comfy.model_management as mm
import folder_paths
import numpy as np
import pytest
import torch
from conftest import on_settings

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8, 64: 6}
WIDTH = 6
TEXTS = ("face", "face with glasses\nface, smiling")


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_scorer(pack, identity="tiny clip", width=WIDTH):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.look = torch.nn.Parameter(seeded(48, width, seed=5), requires_grad=False)

        def images(self, pixels):
            small = torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
            return small @ self.look, pixels.flatten(2).transpose(1, 2)[:, :4]

    def texts(strings):
        return torch.stack([sum(seeded(width, seed=ord(c) + 7 * n) for n, c in enumerate(text)) for text in strings])

    def make():
        network = Network()
        return pack("core.models.clip").TowerScorer(identity, network.images, texts, 8, (0.5,) * 3, (0.5,) * 3, network)

    return pack("nodes.host.managed_models").manage_scorer(make)


@pytest.fixture(scope="module")
def parts(pack):
    """(generator, style code of three faces, CLIP, mapper), the mapper with its own relevance."""
    core, sockets = "core.deltaedit.", pack("nodes.deltaedit.sockets")

    def make():
        generator = pack(core + "stylegan2").StyleGAN2(64, CHANNELS, style_dim=8, mapping_layers=2)
        generator.identity = "tiny"
        return generator

    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(0)
        generator = sockets.Managed.make(make)
        mapper = pack(core + "mapper").DeltaMapper(generator.network.layout.levels, WIDTH, hidden=8)
    mapper = mapper.eval().requires_grad_(False)
    with torch.no_grad():
        for weight in mapper.parameters():
            weight.mul_(3)
    mapper.generator, mapper.clip = "tiny", "tiny clip"
    rows = torch.nn.functional.normalize(seeded(generator.network.layout.width, WIDTH, seed=3), dim=1)
    mapper.relevance = pack(core + "relevance").Relevance(rows, "covariance", "tiny", "tiny clip")
    network = generator.loaded()
    with torch.no_grad():
        code = network.styles(network.sample_w_plus(3, 0, 1.0)).to("cpu")
    return generator, code, make_scorer(pack), mapper


@pytest.fixture
def node(pack):
    return pack("nodes.deltaedit.mapper").DeltaEditMapper


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """ComfyUI's models/delta_mappers, empty."""
    paths = dict(folder_paths.folder_names_and_paths) | {
        "delta_mappers": ([str(tmp_path)], {".safetensors", ".pth", ".npy"})
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def run(node, parts, *changed, file="none", texts=TEXTS, strength=1.0, share=0.3, **options):
    generator, code, scorer, mapper = (new or old for new, old in zip((*changed, *[None] * 4), parts, strict=False))
    if file == "none":
        wired = options.pop("mapper", mapper)
        options["mapper"] = type(generator).make(lambda: wired)
    options = on_settings(sys.modules[node.__module__].MapperOptions, options)
    with torch.inference_mode():
        return node.execute(generator, code, scorer, file, *texts, strength, share, **options).result


def drawn(parts, code):
    with torch.no_grad():
        return (parts[0].loaded().synthesize(code.to(parts[0].device)) / 2 + 0.5).clamp(0, 1).cpu().movedim(1, -1)


def refusal(*arguments, **options):
    with pytest.raises(ValueError) as caught:
        run(*arguments, **options)
    assert type(caught.value).__name__ == "EditingError"
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence, sentence
    return sentence


def test_two_targets_of_three_faces(pack, node, parts):
    code, edited, heat, before, report = run(node, parts)
    assert len(code) == 6 and code.generator == "tiny" and not code.convs.is_inference()
    assert edited.shape == heat.shape == before.shape == (6, 64, 64, 3)
    assert all(
        pictures.device.type == "cpu" and pictures.min() >= 0 and pictures.max() <= 1
        for pictures in (edited, heat, before)
    )
    torch.testing.assert_close(before, drawn(parts, parts[1]).repeat(2, 1, 1, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(edited, drawn(parts, code), rtol=0, atol=1e-5)

    edit = pack("core.deltaedit.edit")
    wanted = edit.differences_of_texts(parts[2], *TEXTS)
    features = edit.features_of(parts[2], before[:3].movedim(-1, 1), "own")
    expected = edit.delta_edit(parts[3], parts[1], features, wanted, edit.EditSettings(), clip="tiny clip")
    torch.testing.assert_close(code.convs, expected.code.convs, rtol=1e-5, atol=1e-5)

    first, *lines = report.splitlines()
    assert re.fullmatch(r"CLIP sees \d of 6 picture\(s\) nearer to what was asked for than before\.", first)
    assert lines[0] == "style channels with a relevance that is greatest may move: 30 % of them (covariance)"
    assert [line.split(":")[0] for line in lines[1:7]] == [
        f"{target}, face {face}" for target in TEXTS[1].splitlines() for face in (1, 2, 3)
    ]
    total = parts[1].layout.width
    for row, line in enumerate(lines[1:7]):
        moved = int((code.convs[row] != parts[1].convs[row % 3]).sum())
        assert f": {moved} of {total} style channels moved" in line and moved == round(0.3 * total)
        unit = wanted.rows[row // 3] / wanted.rows[row // 3].norm()
        was, became = (
            float(parts[2].image_features(image[row : row + 1].movedim(-1, 1))[0].cpu() @ unit)
            for image in (before, edited)
        )
        assert f"({was:+.3f} before, {became:+.3f} after)" in line


def test_the_same_text_changes_nothing_to_the_bit(node, parts):
    code, edited, heat, before, report = run(node, parts, texts=("face", "face"))
    assert torch.equal(code.convs, parts[1].convs) and torch.equal(code.rgbs, parts[1].rgbs)
    assert torch.equal(edited, before)
    assert report.count("source and target are the same to CLIP, so this is the unedited picture.") == 3
    grey = heat.mean(-1, keepdim=True).expand_as(heat)
    torch.testing.assert_close(heat, grey, rtol=0, atol=1e-5)


def test_masks(node, parts):
    everything = run(node, parts, share=1.0)[0]
    assert (everything.convs != parts[1].convs.repeat(2, 1)).all(1).sum() >= 5
    _, edited, _, before, report = run(node, parts, share=0.0)
    assert torch.equal(edited, before) and report.count("no style channel is relevant enough") == 6
    threshold = {"disentangle_by": "threshold"}
    assert torch.equal(run(node, parts, share=0.0, threshold=0.0, **threshold)[0].convs, everything.convs)
    assert torch.equal(run(node, parts, share=1.0, threshold=2.0, **threshold)[1], before)
    doubled = run(node, parts, share=1.0, strength=2.0)[0].convs - parts[1].convs.repeat(2, 1)
    torch.testing.assert_close(doubled, 2 * (everything.convs - parts[1].convs.repeat(2, 1)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(run(node, parts, share=1.0, subtract_idle=False)[0].convs, everything.convs)
    assert not torch.equal(run(node, parts, share=1.0, templates="imagenet")[0].convs, everything.convs)


def test_pictures_in_place_of_texts(pack, node, parts):
    start, end = torch.rand(1, 20, 20, 3), torch.rand(2, 30, 24, 3)
    code, *_, report = run(node, parts, texts=("", ""), condition_from=start, condition_to=end)
    assert len(code) == 6 and "\nby the difference of the condition pictures; the texts are not used\n" in report
    assert "pair 2, face 3: " in report
    edit = pack("core.deltaedit.edit")
    wanted = edit.differences_of_pictures(parts[2], start.movedim(-1, 1), end.movedim(-1, 1), "own")
    features = edit.features_of(parts[2], drawn(parts, parts[1]).movedim(-1, 1), "own")
    expected = edit.delta_edit(parts[3], parts[1], features, wanted, clip="tiny clip")
    torch.testing.assert_close(code.convs, expected.code.convs, rtol=1e-5, atol=1e-5)
    same = run(node, parts, condition_from=end[:1], condition_to=end[:1].clone())[0]
    assert torch.equal(same.convs, parts[1].convs)
    assert "Wire both condition_from and condition_to" in refusal(node, parts, condition_from=start)


def test_the_photo_is_what_clip_sees(node, parts):
    one = run(node, parts, image=torch.rand(1, 70, 64, 3))[0]
    assert len(one) == 6 and not torch.equal(one.convs, run(node, parts)[0].convs)
    assert "There are 2 pictures for 3 faces" in refusal(node, parts, image=torch.rand(2, 64, 64, 3))


def combos(node):
    return {slot.id: slot.options for slot in node.define_schema().inputs if hasattr(slot, "options")}


def test_files(pack, node, parts, folder):
    files = pack("core.deltaedit.mapper_files")
    bundled = pack("nodes.common.bundled").bundled_names("delta_mappers")
    options = combos(node) | combos(pack("nodes.deltaedit.mapper_settings").DeltaEditSettings)
    assert options["mapper_file"] == [*bundled, "none"] and options["relevance_file"] == ["the mapper's own"]
    files.save_mapper(folder / "own.safetensors", parts[3])
    rows = seeded(parts[1].layout.width, WIDTH, seed=8).numpy()
    np.save(folder / "fs3.npy", rows)
    options = combos(node) | combos(pack("nodes.deltaedit.mapper_settings").DeltaEditSettings)
    assert options["mapper_file"] == [*bundled, "own.safetensors", "none"]
    assert options["relevance_file"] == ["the mapper's own", "fs3.npy", "own.safetensors"]
    wired = run(node, parts)[0]
    assert torch.equal(run(node, parts, file="own.safetensors")[0].convs, wired.convs)
    other = run(node, parts, relevance_file="fs3.npy")
    assert not torch.equal(other[0].convs, wired.convs) and "30 % of them (released)" in other[-1]
    matrix = pack("core.deltaedit.relevance").Relevance(torch.from_numpy(rows), "perturbation")
    assert torch.equal(run(node, parts, relevance_file="own.safetensors", relevance=matrix)[0].convs, other[0].convs)
    kept = pack("nodes.deltaedit.mapper")._KEPT
    (read,) = kept.values()
    run(node, parts, file="own.safetensors", strength=2.0)
    assert list(kept.values()) == [read], "an unchanged file is read once"
    with torch.no_grad():
        parts[3].mean.add_(1)
    try:
        files.save_mapper(folder / "own.safetensors", parts[3], overwrite=True)
    finally:
        with torch.no_grad():
            parts[3].mean.sub_(1)
    assert not torch.equal(run(node, parts, file="own.safetensors")[0].convs, wired.convs)
    assert list(kept.values()) != [read]
    settings = pack("nodes.deltaedit.mapper_settings").DeltaEditSettings
    before = settings.fingerprint_inputs(relevance_file="fs3.npy")
    np.save(folder / "fs3.npy", rows[:, :3])
    assert settings.fingerprint_inputs(relevance_file="fs3.npy") != before
    assert settings.fingerprint_inputs() == node.fingerprint_inputs(mapper_file="none") == ""
    assert "made with another CLIP (3 features" in refusal(node, parts, relevance_file="fs3.npy")
    assert "is not in ComfyUI's models/delta_mappers folder" in refusal(node, parts, file="../own.safetensors")
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"^There is no mapper; choose a mapper_file, or wire one"),
    ):
        node.execute(*parts[:3], "none", *TEXTS, 1.0, 0.3)


def test_what_does_not_belong_together(pack, node, parts):
    other = pack("nodes.deltaedit.sockets").Managed.make(
        lambda: pack("core.deltaedit.stylegan2").StyleGAN2(64, CHANNELS, 8, 2)
    )
    other.network.identity = "another"
    assert "The style code was made by another generator" in refusal(node, parts, other)
    with torch.no_grad():
        foreign = other.network.styles(other.network.sample_w_plus(1, 0))
    assert "other weights of this generator" in refusal(node, parts, other, foreign)
    assert "another CLIP (6 features; the wired one gives 9)" in refusal(
        node, parts, None, None, make_scorer(pack, width=9)
    )
    assert "another CLIP, of as many features" in refusal(node, parts, None, None, make_scorer(pack, "b"))
    assert "target text is empty" in refusal(node, parts, texts=("face", " \n"))


def test_without_relevance_the_report_says_so(pack, node, parts):
    copy = pack("core.deltaedit.mapper").DeltaMapper(parts[3].levels, WIDTH, hidden=8).eval()
    report = run(node, parts, mapper=copy)[-1]
    assert "\nno relevance matrix: all style channels may move;" in report
    assert "needs a relevance matrix" in refusal(node, parts, mapper=copy, disentangle_by="threshold")


def test_cancel_ends_it(pack, node, parts, monkeypatch):
    progress = pack("nodes.host.progress")
    told = []

    class Bar(progress.StoppableBar):
        def show(self, done, total, picture=None, text=""):
            told.append((done, total))
            mm.interrupt_current_processing(done > 3)
            super().show(done, total, picture, text)

    monkeypatch.setattr(pack("nodes.deltaedit.mapper"), "StoppableBar", Bar)
    with pytest.raises(mm.InterruptProcessingException):
        run(node, parts)
    assert told == [(3, 9), (9, 9)]

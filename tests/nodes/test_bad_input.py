"""What a person can do wrong at a node, with a stand-in for the host: one clear sentence each."""

import re

import pytest
import torch

from semantic_editing.tests.refusals import refusal
from semantic_editing.tools import host_stand_in

PACK = host_stand_in.load_pack()
EditingError = host_stand_in.module("core.errors").EditingError
GUIDED = {"cfg": 5.0, "guidance": 0.1, "guided_fraction": 1.0, "resolution": "all", "preset": "lockstep"}
WORDS = {"mode": "auto", "bank": "general", "count": 4, "seed": 0}


def execute(module: str, node: str, **inputs):
    return getattr(host_stand_in.module(f"nodes.{module}"), node).execute(**inputs)


@pytest.fixture
def identity():
    return host_stand_in.module("core.denoiser").ModelIdentity("sd1", 4, "eps", (1.0, 2.0))


@pytest.fixture
def inversion(identity):
    latents = torch.randn(4, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(3, 1, dtype=torch.long)
    Inversion = host_stand_in.module("core.inversion").Inversion
    return Inversion(
        latents, torch.tensor([0.03, 0.5, 2.0, 14.0]), torch.zeros(3, 1), ones, ones * 0, identity, "spdinv/auto"
    )


def direction(width=8, encoder="clip_l 8"):
    EditDirection = host_stand_in.module("core.pix2pix_zero.edit_direction").EditDirection
    return EditDirection(torch.ones(1, 3, width), None, encoder, "cat", "dog", 2)


def test_demo_number_past_the_end():
    assert re.search(
        r"from 0 to \d+", refusal(execute, "demo.load", "LoadDemoImage", pictures="portraits", number=9999)
    )


def test_demo_set_that_does_not_exist():
    assert "hat to crown" in refusal(execute, "demo.load", "LoadDemoImage", pictures="hat to crown", number=0)


def test_demo_pictures_are_images():
    image, caption, edited, edited_caption = execute("demo.load", "LoadDemoImage", pictures="portraits", number=0).args
    assert image.shape == (1, 128, 128, 3) and 0 <= image.min() < image.max() <= 1
    assert torch.equal(image, edited) and caption == edited_caption != ""


def test_several_demo_pictures_are_a_batch_and_captions_lines():
    image, caption, edited, _ = execute("demo.load", "LoadDemoImage", pictures="everyone", number=23, count=3).args
    assert image.shape == edited.shape == (3, 128, 128, 3) and not torch.equal(image, edited)
    alone, own, *_ = execute("demo.load", "LoadDemoImage", pictures="glasses: none to glasses", number=23).args
    assert torch.equal(image[:1], alone) and caption.split("\n")[0] == own and len(caption.split("\n")) == 3
    assert "from 0 to 23" in refusal(execute, "demo.load", "LoadDemoImage", pictures="portraits", number=20, count=5)


def word_ids(texts):
    return [[0, *(sum(map(ord, word)) for word in text.split()), 1] for text in texts]


@pytest.fixture
def text_encoder(monkeypatch):
    directions = host_stand_in.module("nodes.pix2pix_zero.directions")
    monkeypatch.setattr(directions, "text_encoding_name", lambda clip: clip)
    monkeypatch.setattr(directions, "counting_bar", lambda: None)
    monkeypatch.setattr(directions, "sentence_tokenizer", lambda clip: word_ids)
    monkeypatch.setattr(directions, "encode_sentences", lambda clip, texts: (torch.ones(len(texts), 3, 8), None))


@pytest.mark.parametrize("source,target", [("", "dog"), ("cat", "  \n ")])
def test_empty_sentence_list(text_encoder, source, target):
    refusal(
        execute,
        "pix2pix_zero.directions",
        "SentenceEditDirection",
        clip="clip_l 8",
        source=source,
        target=target,
        **WORDS,
    )


@pytest.mark.parametrize("wrong", [{"mode": "zzz"}, {"bank": "zzz"}, {"count": 0}, {"count": 10**6}], ids=str)
def test_choices_that_old_hosts_do_not_check(text_encoder, wrong):
    refusal(
        execute,
        "pix2pix_zero.directions",
        "SentenceEditDirection",
        clip="clip_l 8",
        source="cat",
        target="dog",
        **(WORDS | wrong),
    )


def test_words_and_lines_make_a_direction(text_encoder):
    made, report = execute(
        "pix2pix_zero.directions",
        "SentenceEditDirection",
        clip="clip_l 8",
        source="cat",
        target="A dog.\nTwo dogs.",
        **WORDS,
    ).args
    assert made.sentences == 4 + 2 and made.text_encoder == "clip_l 8" and made.field is None
    assert "cat" in report and "A dog." in report and "the lists have 4 and 2 sentences" in report


@pytest.fixture
def conditioning(monkeypatch):
    def apply(conditioning, change):
        return [[*change(embeds, None)] for embeds, _ in conditioning]

    directions = host_stand_in.module("nodes.pix2pix_zero.directions")
    monkeypatch.setattr(directions, "apply_to_conditioning", apply)
    monkeypatch.setattr(directions, "text_encoding_name", lambda clip: clip)
    return [[torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)), {}]]


def test_direction_of_another_width(conditioning):
    refusal(
        execute,
        "pix2pix_zero.directions",
        "ApplyEditDirection",
        conditioning=conditioning,
        edit_direction=direction(width=9),
        strength=1.0,
    )


def test_direction_of_another_encoder_names_both(conditioning):
    sentence = refusal(
        execute,
        "pix2pix_zero.directions",
        "ApplyEditDirection",
        conditioning=conditioning,
        edit_direction=direction(),
        strength=1.0,
        clip="clip_g 8",
    )
    assert "clip_l 8" in sentence and "clip_g 8" in sentence


def test_direction_strength(conditioning):
    def applied(strength):
        return execute(
            "pix2pix_zero.directions",
            "ApplyEditDirection",
            conditioning=conditioning,
            edit_direction=direction(),
            strength=strength,
        ).args[0]

    assert torch.equal(applied(0.0)[0][0], conditioning[0][0])
    torch.testing.assert_close(applied(-2.0)[0][0], conditioning[0][0] - 2.0)
    refusal(applied, 3.5)


def test_resolution_that_old_hosts_do_not_check(inversion):
    for node in ("CrossAttnGuidedSampler", "CrossAttnGuider"):
        assert "quarter" in refusal(
            execute,
            "pix2pix_zero.guided_edit",
            node,
            model=None,
            inversion=inversion,
            target=[],
            **(GUIDED | {"resolution": "zzz"}),
        )


def test_resolutions_of_older_workflows_still_mean_what_they_meant():
    """By name where the host asks, and by what is guided."""
    module = host_stand_in.module("nodes.pix2pix_zero.guided_edit")
    for node in (module.CrossAttnGuidedSampler, module.CrossAttnGuider):
        assert all(node.validate_inputs(choice) is True for choice in ("all", "half", "quarter", "<=32", "<=16", None))
        assert "all, half, quarter" in node.validate_inputs("<=8")
    old = [
        module.settings_of(2.0, 0.1, 1.0, name, "carried", "as preset", 0.6, 1.0).resolution
        for name in ("<=32", "<=16")
    ]
    assert old == ["half", "quarter"]


def test_the_fast_preset_is_carried_with_shorter_shares_and_takes_a_smaller_one_that_is_set():
    settings_of = host_stand_in.module("nodes.pix2pix_zero.guided_edit").settings_of
    fast = settings_of(2.0, 0.05, 1.0, "all", "fast", "as preset", 0.6, 1.0)
    assert (fast.preset, fast.guided_fraction, fast.cfg_fraction) == ("carried", 0.2, 0.45)
    assert settings_of(2.0, 0.05, 0.1, "all", "fast", "as preset", 0.6, 1.0).guided_fraction == 0.1
    steps = 50  # 4 forwards a guided step at cfg, 2 a step at cfg, 1 at cfg 1; an inversion of SPDInv's auto takes 57
    guided, at_cfg = round(fast.guided_fraction * steps), round(fast.cfg_fraction * steps)
    assert 4 * guided + 2 * (at_cfg - guided) + (steps - at_cfg) + 57 <= 150


def test_inversion_without_a_prompt_needs_a_source(inversion, monkeypatch):
    guidance = host_stand_in.module("nodes.pix2pix_zero.guided_edit")
    monkeypatch.setattr(guidance, "latent_from_model", lambda model, x: {})
    monkeypatch.setattr(guidance, "identity", lambda model: inversion.identity)
    monkeypatch.setattr(guidance, "source_latent", lambda model, inversion: {})
    for node in ("CrossAttnGuidedSampler", "CrossAttnGuider"):
        assert "source" in refusal(
            execute, "pix2pix_zero.guided_edit", node, model=None, inversion=inversion, target=[], **GUIDED
        )


class Plain:
    """A ``CrossAttentionGuidance`` that predicts zeros."""

    def __init__(self, inversion):
        self.inversion = inversion

    def denoised(self, x, level):
        return torch.zeros_like(x)


def euler_only(inversion):
    return host_stand_in.module("nodes.pix2pix_zero.guided_edit").EulerOnly(Plain(inversion))


def test_guider_follows_euler(inversion):
    step, x = euler_only(inversion), inversion.latents[-1]
    for sigma, lower in ((14.0, 2.0), (2.0, 0.5), (0.5, 0.03)):
        x = x + (x - step(x, sigma)) / sigma * (lower - sigma)


def test_guider_may_start_in_the_middle(inversion):
    assert euler_only(inversion)(inversion.latents[2], 2.0).shape == (1, 4, 8, 8)


def test_guider_refuses_another_start(inversion):
    assert "noise latent" in refusal(euler_only(inversion), inversion.latents[-1] + 1.0, 14.0)


def test_guider_refuses_a_stochastic_sampler(inversion):
    step, x = euler_only(inversion), inversion.latents[-1]
    euler = x + (x - step(x, 14.0)) / 14.0 * (2.0 - 14.0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert "euler" in refusal(step, euler + noise, 2.0)


def test_guider_refuses_another_grid(inversion):
    assert "7" in refusal(euler_only(inversion), inversion.latents[-1], 7.0)
    refusal(euler_only(inversion), inversion.latents[0], 0.03)


def test_load_inversion_of_another_model(inversion, identity, monkeypatch, tmp_path):
    files = host_stand_in.module("nodes.inversion.files")
    path = inversion.save(tmp_path / "a.safetensors")
    other = type(identity)("sdxl", 4, "eps", (1.0, 2.0))
    monkeypatch.setattr(files, "resolve_file", lambda folder, name: path)
    monkeypatch.setattr(files, "identity", lambda model: other)
    sentence = refusal(execute, "inversion.files", "LoadInversion", model=None, inversion_file="a.safetensors")
    assert "sd1" in sentence and "sdxl" in sentence


def test_damaged_files(monkeypatch, tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(b"not a tensor in sight")
    for module, node, inputs in (
        ("inversion.files", "LoadInversion", {"model": None, "inversion_file": path.name}),
        ("pix2pix_zero.direction_files", "LoadEditDirection", {"direction_file": path.name, "source_file": "none"}),
    ):
        monkeypatch.setattr(host_stand_in.module(f"nodes.{module}"), "resolve_file", lambda folder, name: path)
        assert path.name in refusal(execute, module, node, **inputs)


def test_an_inversion_that_the_disk_refuses_is_rescued(inversion, disk, monkeypatch, tmp_path):
    disk.add("full")
    files, saving = (host_stand_in.module(f"nodes.{name}") for name in ("inversion.files", "common.saving"))
    monkeypatch.setattr(files, "output_path", lambda folder, name: tmp_path / "full" / f"{name}.safetensors")
    monkeypatch.setattr(saving, "rescue_folders", lambda: [("the output folder", tmp_path / "output")])
    result = execute("inversion.files", "SaveInversion", inversion=inversion, filename="a", overwrite=False)
    assert result.args == ("",) and "kept as a.safetensors in the output folder" in str(result.ui)
    kept = type(inversion).load(tmp_path / "output" / "a.safetensors")
    assert torch.equal(kept.noise, inversion.noise) and not list((tmp_path / "full").iterdir())


def test_saving_twice_needs_overwrite(inversion, monkeypatch, tmp_path):
    for module, node, what in (
        ("inversion.files", "SaveInversion", {"inversion": inversion}),
        ("pix2pix_zero.direction_files", "SaveEditDirection", {"edit_direction": direction()}),
    ):
        path = tmp_path / f"{module}.safetensors"
        monkeypatch.setattr(
            host_stand_in.module(f"nodes.{module}"), "output_path", lambda folder, name, path=path: path
        )
        assert execute(module, node, filename="x", overwrite=False, **what).args == (path.name,)
        assert path.name in refusal(execute, module, node, filename="x", overwrite=False, **what)
        assert execute(module, node, filename="x", overwrite=True, **what).args == (path.name,)


def test_file_fingerprint_changes_with_the_file(monkeypatch, tmp_path):
    path = tmp_path / "a.pt"
    monkeypatch.setattr(host_stand_in.module("nodes.common.reports"), "resolve_file", lambda folder, name: path)
    node = host_stand_in.module("nodes.pix2pix_zero.direction_files").LoadEditDirection
    path.write_bytes(b"1")
    first = node.fingerprint_inputs("a.pt", "none")
    path.write_bytes(b"22")
    assert node.fingerprint_inputs("a.pt", "none") != first

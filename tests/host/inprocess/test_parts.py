"""Conditioning, text encoding, folders, schema: the parts of the seam that need no sampling."""

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
import pytest
import torch
from conftest import conditioning, noise

import nodes

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
SENTENCES = ["a photo of a cat", "a (very:1.2) fluffy dog on a mat", "", "two cats", "one dog sleeping in the sun"]


def tiny_clip(kind):
    classes = {
        "sd1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }
    options = {"dtype": torch.float32, "clip_l_model_config": SMALL, "clip_g_model_config": SMALL | {"hidden_size": 64}}
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(*classes[kind]), model_options=options)
    generator = torch.Generator().manual_seed(3)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return clip


@pytest.mark.parametrize(("kind", "name"), [("sd1", "clip_l 32"), ("sdxl", "clip_l 32 + clip_g 64")])
@torch.inference_mode()
def test_sentences_encode_as_the_stock_node_does(pack, kind, name):
    clip = tiny_clip(kind)
    embeds, pooled = pack("nodes.host.conditioning").encode_sentences(clip, SENTENCES, batch_size=2)
    for row, sentence in enumerate(SENTENCES):
        ((stock, options),) = nodes.CLIPTextEncode().encode(clip, sentence)[0]
        torch.testing.assert_close(embeds[row : row + 1], stock, rtol=1e-4, atol=1e-5)
        if kind == "sdxl":
            torch.testing.assert_close(pooled[row : row + 1], options["pooled_output"], rtol=1e-4, atol=1e-5)
    assert (pooled is None) == (kind == "sd1")
    assert pack("nodes.host.conditioning").text_encoder_name(clip) == name


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.inference_mode()
def test_sentences_encode_in_batches(pack, kind):
    clip = tiny_clip(kind)
    rows = []
    for tower in (module for name, module in clip.cond_stage_model.named_children() if name.startswith("clip_")):
        tower.register_forward_hook(lambda module, inputs, outputs: rows.append(len(outputs[0])))
    plain = ["one cat", "two cats", "three", "four", "five"]
    pack("nodes.host.conditioning").encode_sentences(clip, plain, batch_size=3)
    assert rows == ([3, 2] if kind == "sd1" else [3, 3, 2, 2])
    hooks = sum(len(module._forward_hooks) for module in clip.cond_stage_model.modules())
    assert hooks == len(list(clip.cond_stage_model.children())), "only the test's own hooks are left"


def test_the_bar_counts_sentences(pack, monkeypatch):
    told = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *more, **named: told.append((value, total))
    )
    node = pack("nodes.pix2pix_zero.directions").SentenceEditDirection
    lists = ("\n".join(f"cat {i}." for i in range(40)), "\n".join(f"dog {i}." for i in range(5)))
    with torch.inference_mode():
        node.execute(tiny_clip("sdxl"), *lists, mode="sentences", bank="general", count=1, seed=0)
    assert [total for _, total in told] == [45] * len(told)
    done = [value for value, _ in told]
    # A new host passes on the first and the last update, and those between only when a tenth of a second lies between
    # them.
    assert done == sorted(set(done)) and 0 < done[0] < 45 and done[-1] == 45


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_ids_of_sentences_end_at_the_end_token(pack, kind):
    ids = pack("nodes.host.conditioning").sentence_tokenizer(tiny_clip(kind))
    cat, (heavy, empty, nothing) = ids(["a very fluffy cat"])[0], ids(["a (very:1.2) fluffy cat", "", "()"])
    assert cat == heavy and (cat[0], cat[-1]) == (49406, 49407) and len(cat) == 6
    assert empty == nothing == [49406, 49407]


@torch.inference_mode()
def test_embeddings_have_ids_of_their_own(pack, tmp_path):
    clip = tiny_clip("sd1")
    for name in ("one", "two"):
        torch.save({"clip_l": noise(2, 32, seed=len(name) + ord(name[0]))}, tmp_path / f"{name}.pt")
    clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
    one, same, two = pack("nodes.host.conditioning").sentence_tokenizer(clip)(
        ["a embedding:one cat", "a embedding:one cat", "a embedding:two cat"]
    )
    assert one == same != two and len(one) == len(two) == 6 and one[:2] + one[4:] == two[:2] + two[4:]


@pytest.mark.parametrize(
    ("kind", "layer", "said"),
    [
        ("sd1", None, ""), ("sd1", -1, ""), ("sd1", -2, ", layer -2"),
        ("sdxl", None, ""), ("sdxl", -2, ""), ("sdxl", -3, ", layer -3"),
    ],
)  # fmt: skip
def test_another_layer_than_the_models_own_is_part_of_the_encoding(pack, kind, layer, said):
    clip, parts = tiny_clip(kind), pack("nodes.host.conditioning")
    if layer is not None:
        clip.clip_layer(layer)
    assert parts.text_encoding_name(clip) == parts.text_encoder_name(clip) + said


LISTS = ("a cat in the rain.\na very small cat.\nmy cat!", "a dog in the rain.\na very small dog.\nmy dog!")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.inference_mode()
def test_a_direction_reaches_the_words_of_a_prompt(pack, kind):
    """A prompt that is one of the sentences becomes its partner, but for the precision of 16 bits and the padding."""
    clip, directions = tiny_clip(kind), pack("nodes.pix2pix_zero.directions")
    options = {"mode": "sentences", "bank": "general", "count": 1, "seed": 0}
    found, report = directions.SentenceEditDirection.execute(clip, *LISTS, **options).args[:2]
    assert "word by word" in report and found.field.keys.shape[1] == (32 if kind == "sd1" else 96)
    for source, target in zip(*(text.split("\n") for text in LISTS), strict=True):
        given, wanted = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (source, target))
        moved, said = directions.ApplyEditDirection.execute(given, found, 1.0, clip).args[:2]
        words = len(pack("nodes.host.conditioning").sentence_tokenizer(clip)([source])[0])
        missed, asked = (states[0][0][:, :words] - wanted[0][0][:, :words] for states in (moved, given))
        assert float(missed.norm()) < 0.02 * float(asked.norm()) and "otherwise" not in said
        if kind == "sdxl":
            shift = moved[0][1]["pooled_output"] - given[0][1]["pooled_output"]
            torch.testing.assert_close(shift, found.pooled, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_direction_of_another_layer_is_told(pack):
    clip, skipped, directions = tiny_clip("sd1"), tiny_clip("sd1"), pack("nodes.pix2pix_zero.directions")
    skipped.clip_layer(-2)
    options = {"mode": "sentences", "bank": "general", "count": 1, "seed": 0}
    found = directions.SentenceEditDirection.execute(clip, *LISTS, **options).args[0]
    given = nodes.CLIPTextEncode().encode(skipped, "a cat")[0]
    assert "encoded otherwise" in directions.ApplyEditDirection.execute(given, found, 1.0).args[1]
    with pytest.raises(ValueError, match="clip_l 32, but the model uses clip_l 32, layer -2"):
        directions.ApplyEditDirection.execute(given, found, 1.0, skipped)


@torch.inference_mode()
def test_texts_without_words_and_lists_without_pairs_are_told(pack):
    clip, directions = tiny_clip("sd1"), pack("nodes.pix2pix_zero.directions")
    options = {"mode": "auto", "count": 4, "seed": 0}
    for source, target in (("()", "dog"), ("cat", "()")):
        with pytest.raises(ValueError, match="holds no words"):
            directions.SentenceEditDirection.execute(clip, source, target, bank="general", **options)
    with pytest.raises(ValueError, match="the same to the text encoder"):
        directions.SentenceEditDirection.execute(clip, "cat", "CAT", bank="general", **options)
    report = directions.SentenceEditDirection.execute(clip, "cat", "a dog.\nthe dog.", bank="general", **options).args[
        1
    ]
    assert "Not word by word: the lists have 4 and 2 sentences" in report
    found, report = directions.SentenceEditDirection.execute(clip, "", "winter", bank="style", **options).args[:2]
    assert found.source == "nothing" and "in winter" in report and found.field is not None


def test_sentences_that_cannot_be_encoded(pack):
    clip = tiny_clip("sd1")
    with pytest.raises(ValueError, match="sentence list is empty"):
        pack("nodes.host.conditioning").encode_sentences(clip, [])
    with pytest.raises(ValueError, match="longer than 75 tokens"):
        pack("nodes.host.conditioning").encode_sentences(clip, ["fine", "word " * 80])


def test_conditioning_round_trip(pack):
    embeds, pooled = noise(1, 7, 32), noise(1, 8, seed=1)
    tensors = pack("nodes.host.conditioning").conditioning_tensors([[embeds, {"pooled_output": pooled}]])
    ((again, options),) = pack("nodes.host.conditioning").conditioning_from_tensors(tensors)
    assert torch.equal(again, embeds) and torch.equal(options["pooled_output"], pooled)
    assert set(pack("nodes.host.conditioning").conditioning_tensors([[embeds, {"pooled_output": None}]])) == {"embeds"}
    assert pack("nodes.host.conditioning").conditioning_tensors([[embeds, {"area": (8, 8, 0, 0)}]]) is None
    assert pack("nodes.host.conditioning").conditioning_tensors([[embeds, {}], [embeds, {}]]) is None


def test_apply_keeps_everything_else_and_the_input(pack):
    embeds, pooled, mask = noise(1, 7, 32), noise(1, 8, seed=1), noise(1, 8, 8)
    given = [[embeds, {"pooled_output": pooled, "mask": mask}], [embeds, {"strength": 0.5}]]
    kept = embeds.clone()
    first, second = pack("nodes.host.conditioning").apply_to_conditioning(
        given, lambda e, p: (e + 1, None if p is None else p * 2)
    )
    torch.testing.assert_close(first[0], kept + 1)
    torch.testing.assert_close(first[1]["pooled_output"], pooled * 2)
    assert first[1]["mask"] is mask and second[1] == {"strength": 0.5}
    assert torch.equal(embeds, kept) and given[0][1]["pooled_output"] is pooled


@pytest.fixture
def models_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for kind in ("edit_directions", "inversions"):
        folder_paths.folder_names_and_paths.pop(kind, None)
    return tmp_path


def test_folders_keep_extra_model_paths(pack, models_folder, tmp_path):
    extra = tmp_path / "elsewhere"
    folder_paths.add_model_folder_path("edit_directions", str(extra))
    for folder, name in (
        (extra, "far.pt"),
        (models_folder / "edit_directions", "near.safetensors"),
        (extra, "notes.txt"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert pack("nodes.host.folders").list_files("edit_directions") == ["far.pt", "near.safetensors"]
    assert pack("nodes.host.folders").resolve_file("edit_directions", "far.pt") == extra / "far.pt"
    assert pack("nodes.host.folders").list_files("inversions") == []


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "absent.safetensors", "..\\secret.safetensors", ""]
)
def test_names_outside_the_folder_are_refused(pack, models_folder, name):
    (models_folder / "secret.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is not in ComfyUI's models/inversions folder"):
        pack("nodes.host.folders").resolve_file("inversions", name)


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "C:x", ".hidden", "", "  ", "x..y", "nul\0", "line\nbreak"])
def test_output_names_that_leave_the_folder_are_refused(pack, models_folder, name):
    with pytest.raises(ValueError, match=r"The file name .*;"):
        pack("nodes.host.folders").output_path("inversions", name)


def test_output_path_gets_its_ending(pack, models_folder):
    expected = models_folder / "inversions" / "face 1.safetensors"
    assert (
        pack("nodes.host.folders").output_path("inversions", "face 1")
        == pack("nodes.host.folders").output_path("inversions", " face 1.safetensors ")
        == expected
    )


def test_schema_and_widget_pass_on_what_the_host_knows(pack):
    made = pack("nodes.host.schema").widget(
        pack("nodes.host.schema").io.Int,
        "steps",
        advanced=True,
        default=3,
        min=1,
        max=9,
        tooltip="text",
        no_such_argument=1,
    )
    described = made.as_dict() | (made.extra_dict or {})
    assert (made.id, made.default, described["advanced"]) == ("steps", 3, True)
    schema = pack("nodes.host.schema").schema(
        node_id="x", display_name="X", search_aliases=["y"], no_such_field=2, inputs=[made], outputs=[]
    )
    assert schema.node_id == "x" and schema.inputs == [made]
    assert (
        pack("nodes.common.sockets").InversionType.io_type,
        pack("nodes.pix2pix_zero.directions").EditDirectionType.io_type,
    ) == ("INVERSION", "EDIT_DIRECTION")


def test_conditioning_of_another_text_encoder_is_refused_by_its_name(pack, models):
    run, latent = pack("nodes.host.sampling").run, {"samples": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValueError, match="'negative' is 96 wide and this model reads 768"):
        conds = {"positive": conditioning("sd1"), "negative": conditioning("sdxl")}
        run(models("sd1").model, latent, conds, lambda session: None)
    with pytest.raises(ValueError, match="'positive' lacks the pooled text that SDXL reads"):
        run(models("sdxl").model, latent, {"positive": [[conditioning("sdxl")[0][0], {}]]}, lambda session: None)


def test_conditioning_of_the_model_or_of_no_unet_passes(pack, models, flow):
    require = pack("nodes.host.conditioning").require_conditioning
    for family in ("sd1", "sd2", "sdxl"):
        require(models(family).model, {"positive": conditioning(family)})
    require(flow, {"positive": conditioning("sd1")})


def test_the_size_that_a_model_was_trained_at(pack, models, demo):
    """So that pictures of a folder come in it unasked; the tiny models here are kinds, whatever their sizes."""
    size = pack("nodes.host.latents").training_size
    assert [size(models(family).model) for family in ("sd1", "sd2", "sdxl")] == [512, 768, 1024]
    assert size(demo[0]) == 128

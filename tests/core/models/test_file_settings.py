"""A vision network or CLIP in a single file gives what its whole folder gives; what cannot be told is said."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.files import save_tensors
from semantic_editing.core.models.clip import CLIP_NORMALISATION, load_clip
from semantic_editing.core.models.file_settings import clip_settings, vision_settings
from semantic_editing.core.models.model_folder import CLIP_TOKENIZER
from semantic_editing.core.models.vision_features import load_vision_features
from semantic_editing.tests.refusals import refusal

transformers = pytest.importorskip("transformers")
VISION = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12, "patch_size": 4}
TEXT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 48}
KINDS = {
    "ViT": {"intermediate_size": 96},
    "ViT without bias": {"intermediate_size": 96, "qkv_bias": False},
    "Dinov2": {"mlp_ratio": 3},
    "Dinov2 with gates": {"use_swiglu_ffn": True},
    "Dinov2WithRegisters": {"num_register_tokens": 3, "mlp_ratio": 2},
    "CLIPVision": {"intermediate_size": 96},
}


def random_weights(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def tiny(kind):
    name = kind.split(" ")[0]
    config = getattr(transformers, f"{name}Config")(**VISION, **KINDS[kind])
    return random_weights(getattr(transformers, f"{name}Model")(config))


def tiny_clip(**changes):
    config = transformers.CLIPConfig(
        vision_config=VISION | {"intermediate_size": 96}, text_config=TEXT | changes, projection_dim=16
    )
    return random_weights(transformers.CLIPModel(config))


def single_file(model, place, name):
    """The folder that transformers saves, and its weights moved out of it, under another name."""
    model.save_pretrained(place / "folder")
    return place / "folder", Path(shutil.copy(place / "folder" / "model.safetensors", place / name))


def pictures(height=12, width=20):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_vision_file_gives_what_its_folder_gives(kind, tmp_path):
    model = tiny(kind)
    folder, file = single_file(model, tmp_path, "dino-vits8.safetensors")
    ours, whole = load_vision_features(file), load_vision_features(folder)
    assert (ours.patch, ours.native, ours.name, ours.identity) == (4, 12, "dino-vits8.safetensors", whole.identity)
    for images in (pictures(12, 12), pictures()):
        found, expected = ours(images), whole(images)
        assert torch.equal(found.features, expected.features) and torch.equal(found.attention, expected.attention)
        assert torch.equal(ours.keys(images), whole.keys(images))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(pixel_values=(pictures(12, 12) - ours.mean) / ours.std, output_attentions=True)
    found = ours(pictures(12, 12))
    torch.testing.assert_close(found.features.flatten(2).transpose(1, 2), expected.last_hidden_state[:, -9:])
    torch.testing.assert_close(found.attention.flatten(2), expected.attentions[-1][:, :, 0, -9:])


@pytest.mark.parametrize("prefix,kind", [("vit.", "ViT"), ("dinov2.", "Dinov2"), ("vision_model.", "CLIPVision")])
def test_a_classifiers_file_serves_as_its_network_alone(prefix, kind, tmp_path):
    """Published files often hold the network below a name of its own, and a head; CLIP's side always did."""
    model = tiny(kind)
    folder, file = single_file(model, tmp_path, "alone.safetensors")
    weights = {f"{prefix}{key}": value.clone() for key, value in model_weights(file).items()}
    save_tensors(tmp_path / "head.safetensors", weights | {"classifier.weight": torch.ones(2, 128)}, {})
    found = load_vision_features(tmp_path / "head.safetensors")(pictures())
    assert torch.equal(found.features, load_vision_features(folder)(pictures()).features)


def model_weights(file):
    from safetensors.torch import load_file

    return load_file(file)


def test_the_image_side_of_a_whole_clip_serves_too(tmp_path):
    folder, file = single_file(tiny_clip(), tmp_path, "clip.safetensors")
    found, expected = load_vision_features(file)(pictures()), load_vision_features(folder)(pictures())
    assert torch.equal(found.features, expected.features) and torch.equal(found.attention, expected.attention)
    assert found.vision == expected.vision


def test_a_clip_file_gives_what_its_folder_gives(tmp_path):
    model = tiny_clip()
    folder, file = single_file(model, tmp_path, "clip-vit-base-patch32.safetensors")
    transformers.CLIPTokenizer.from_pretrained(CLIP_TOKENIZER, local_files_only=True).save_pretrained(folder)
    ours, whole = load_clip(file), load_clip(folder)
    assert (ours.identity, ours.side, ours.logit_scale) == (whole.identity, 12, whole.logit_scale)
    texts = ["a face", "a face with eyeglasses and " + "very " * 90 + "long hair"]
    assert torch.equal(ours.text_features(texts), whole.text_features(texts))
    assert torch.equal(ours.embed_images(pictures()).similarity, whole.embed_images(pictures()).similarity)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(CLIP_TOKENIZER, local_files_only=True)
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in CLIP_NORMALISATION)
    with torch.no_grad():
        output = model(pixel_values=(pictures(12, 12) - mean) / std, **batch)
    torch.testing.assert_close(ours.text_features(texts), functional.normalize(output.text_embeds, dim=1))
    torch.testing.assert_close(ours.image_features(pictures(12, 12)), functional.normalize(output.image_embeds, dim=1))


def saved_shapes(kind, place, layers=2, **sides):
    """The names and shapes of the saved tiny network with other sides: ``{its side: the published one}``."""
    _, file = single_file(tiny(kind), place, "tiny.safetensors")
    shapes = {}
    for key, value in model_weights(file).items():
        shape = [sides.get(f"of_{side}", side) for side in value.shape]
        if ".1." not in key:
            shapes |= {key.replace(".0.", f".{layer}."): shape for layer in range(layers)}
    return shapes


#: facebook/dino-vits8, dino-vitb8, dino-vitb16, dinov2-small, dinov2-base, dinov2-giant; LAION's H, g and bigG.
PUBLISHED = [
    ("ViT", 384, 12, 8, 224, {"num_attention_heads": 6, "intermediate_size": 1536}),
    ("ViT", 768, 12, 8, 224, {"num_attention_heads": 12, "intermediate_size": 3072}),
    ("ViT", 768, 12, 16, 224, {"num_attention_heads": 12, "intermediate_size": 3072}),
    ("Dinov2", 384, 12, 14, 518, {"num_attention_heads": 6, "mlp_ratio": 4}),
    ("Dinov2", 768, 12, 14, 518, {"num_attention_heads": 12, "mlp_ratio": 4}),
    ("Dinov2", 1536, 40, 14, 518, {"num_attention_heads": 24, "mlp_ratio": 4, "use_swiglu_ffn": True}),
    ("CLIPVision", 768, 12, 32, 224, {"num_attention_heads": 12, "intermediate_size": 3072}),
    ("CLIPVision", 1024, 24, 14, 336, {"num_attention_heads": 16, "intermediate_size": 4096}),
    (
        "CLIPVision", 1280, 32, 14, 224,
        {"num_attention_heads": 16, "intermediate_size": 5120, "hidden_act": "gelu"},
    ),
    (
        "CLIPVision", 1664, 48, 14, 224,
        {"num_attention_heads": 16, "intermediate_size": 8192, "hidden_act": "gelu"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("family,width,layers,patch,side,extra", PUBLISHED)
def test_published_sizes_are_told_by_their_shapes(family, width, layers, patch, side, extra, tmp_path):
    kind = "Dinov2 with gates" if "use_swiglu_ffn" in extra else family
    hidden = extra.get("intermediate_size", 4 * width)
    sides = {"of_128": width, "of_96": hidden, "of_384": hidden, "of_688": 8192, "of_344": 4096, "of_4": patch}
    shapes = saved_shapes(kind, tmp_path, layers, **sides, of_10=(side // patch) ** 2 + 1)
    class_name, told = vision_settings(shapes, "x.safetensors")
    assert class_name == f"{family}Model"
    made, expected = (
        getattr(transformers, f"{family}Config")(**settings).to_dict()
        for settings in (
            told,
            {"hidden_size": width, "num_hidden_layers": layers, "patch_size": patch, "image_size": side, **extra},
        )
    )
    assert made == expected and told["num_attention_heads"] == extra["num_attention_heads"]


def changed(weights, drop=(), **new):
    return {key: value for key, value in weights.items() if not key.startswith(tuple(drop) or ("?",))} | new


def test_what_cannot_be_told_is_said(tmp_path):
    _, file = single_file(tiny("ViT"), tmp_path, "vit.safetensors")
    vit = model_weights(file)
    _, file = single_file(tiny_clip(), tmp_path / "clip", "clip.safetensors")
    clip = model_weights(file)

    def vision(weights):
        save_tensors(tmp_path / "x.safetensors", weights, {}, overwrite=True)
        return refusal(load_vision_features, tmp_path / "x.safetensors")

    def scorer(weights):
        save_tensors(tmp_path / "x.safetensors", weights, {}, overwrite=True)
        return refusal(load_clip, tmp_path / "x.safetensors")

    assert "x.safetensors lacks some of its layers" in vision(changed(vit, ["encoder.layer.0."]))
    assert "network of another kind" in vision(vit | {"embeddings.distillation_token": torch.ones(1)})
    assert "network of another kind" in vision(vit | {"encoder.layer.0.lambda_1": torch.ones(1)})
    assert "lacks weights that a network of its kind has" in vision(changed(vit, ["encoder.layer.1.output.dense.w"]))
    assert "not square" in vision(vit | {"embeddings.position_embeddings": torch.ones(1, 8, 128)})
    assert "does not show by its tensors" in vision(changed(vit, ["embeddings.patch_embeddings."]))
    assert "does not show by its tensors" in vision(vit | {"embeddings.position_embeddings": torch.ones(2)})
    narrow = vit | {"embeddings.patch_embeddings.projection.weight": torch.ones(100, 3, 4, 4)}
    assert "100 channels do not divide into heads of 64; use that model as a whole folder" in vision(narrow)
    assert "no whole CLIP (no text side)" in scorer(changed(clip, ["text_"]))
    assert "no whole CLIP (no logit_scale)" in scorer(changed(clip, ["logit_scale"]))
    assert "knows 7 words" in scorer(clip | {"text_model.embeddings.token_embedding.weight": torch.ones(7, 64)})
    assert "no vision network with a class token" in vision(changed(clip, ["vision_model.embeddings.class"]))
    assert "lacks weights" in scorer(changed(clip, ["text_model.final_layer_norm"]))
    save_tensors(tmp_path / "x.safetensors", vit, {}, overwrite=True)
    assert "do not divide into 3 heads" in refusal(load_vision_features, tmp_path / "x.safetensors", 3)
    assert load_vision_features(tmp_path / "x.safetensors", 4)(pictures()).attention.shape[1] == 4


def test_sizes_that_no_network_has_are_refused(tmp_path):
    shapes = saved_shapes("ViT", tmp_path)
    assert vision_settings(shapes, "x").config["image_size"] == 12
    key = "embeddings.patch_embeddings.projection.weight"
    assert "larger than any" in refusal(vision_settings, shapes | {key: [64 * 10**6, 3, 4, 4]}, "x")
    assert "no whole CLIP" in refusal(clip_settings, shapes, "x")
    assert "no vision network" in refusal(vision_settings, {}, "x")

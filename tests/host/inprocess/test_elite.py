"""ELITE Concept on a tiny random build of ELITE's key layout: stock image tower, stock text encoder, an SD1 model."""

import comfy.clip_vision
import folder_paths
import pytest
import test_tokens
import torch
from conftest import comfy_model, conditioning, diffusers_unet, noise
from test_tokens import stock, tiny_clip

VISION_LAYERS, WIDTH, WORD = 17, 16, 768
LAYERS = (-1, 4, 8, 12, 16)


@pytest.fixture(autouse=True)
def as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A random CLIP_VISION with as many layers as ELITE reads."""
    import json

    config = {
        "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2,
        "num_hidden_layers": VISION_LAYERS, "image_size": 28, "patch_size": 14, "projection_dim": 8,
        "num_channels": 3, "hidden_act": "quick_gelu",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("vision") / "config.json"
    path.write_text(json.dumps(config))
    made = comfy.clip_vision.ClipVisionModel(str(path))
    generator = torch.Generator().manual_seed(1)
    made.load_sd({k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in made.get_sd().items()})
    return made


@pytest.fixture
def parts(pack, tower, tmp_path, monkeypatch):
    """Model, CLIP, image, tensors of a mapper whose projections are those of every cross-attention, and its file."""
    paths = dict(folder_paths.folder_names_and_paths)
    paths["elite_mappers"] = ([str(tmp_path)], {".pt"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    model = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    named = comfy_names(model)
    inner = [(name, model.model.state_dict()[key].shape[0]) for name, key in named.items()]
    assert len(inner) == 2 * len({name.rpartition("_to_")[0] for name, _ in inner}) > 4
    tensors = {k: 0.3 * v for k, v in pack("benchmarks.elite_layout").elite_tensors(WIDTH, 12, WORD, inner).items()}
    torch.save(tensors, tmp_path / "global_mapper.pt")
    image = torch.rand(1, 40, 50, 3, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(test_tokens, "SMALL", test_tokens.SMALL | {"hidden_size": WORD})  # as wide as SD1's
    return model, tiny_clip("sd1"), image, tensors, named


def comfy_names(model):
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    wanted = ("attn2_to_k", "attn2_to_v")
    start = "lora_unet_"
    return {n.removeprefix(start): k for n, k in keys.items() if n.startswith(start) and n.endswith(wanted)}


def concept(pack, parts, tower, **given):
    model, clip, image, *_ = parts
    values = {"model": model, "clip": clip, "clip_vision": tower, "concept_image": image, "text": "a photo of a *"}
    values |= {"mapper_file": "global_mapper.pt"} | given
    return pack("nodes.elite.concept").EliteConcept.execute(**values).args


def test_the_word_is_mapped_from_the_towers_layers_and_stands_in_the_text(pack, tower, parts):
    _, clip, image, tensors, _ = parts
    _, text = concept(pack, parts, tower, text="two * cats")
    # The tower layer by layer, by hand.
    pixels = comfy.clip_vision.clip_preprocess(image, size=28, mean=tower.image_mean, std=tower.image_std).float()
    vision = tower.model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    states = []
    for layer in vision.encoder.layers:
        x = layer(x, None, comfy.ldm.modules.attention.optimized_attention)
        states.append(x)
    wanted = [states[layer - 1 if layer > 0 else -1] for layer in LAYERS]
    word = (
        pack("core.elite.mapper")
        .EliteMapper(
            {
                name: {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
                for name in {k.partition(".")[0] for k in tensors if k.startswith("mapping_")}
            },
            {},
        )
        .words(wanted)[0, 0]
    )
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings()
    (block,) = clip.tokenize("two * cats")["l"]
    place = next(i for i, (t, _) in enumerate(block) if clip.tokenizer.clip_l.inv_vocab[t] == "*</w>")
    before = table.weight[block[place][0]].clone()
    table.weight.data[block[place][0]] = word
    try:
        expected = stock(clip, "two * cats")
    finally:
        table.weight.data[block[place][0]] = before
    torch.testing.assert_close(text[0][0], expected[0][0], rtol=1e-4, atol=1e-4)
    assert float((stock(clip, "two * cats")[0][0] - text[0][0]).abs().max()) > 1e-3


def test_the_models_cross_attention_has_the_mappers_projections(pack, tower, parts):
    """As if the checkpoint itself had them: one prediction of a plain text, and the model wired in as it was."""
    model, _, _, tensors, named = parts
    changed, _ = concept(pack, parts, tower)
    x, cond = noise(1, 4, 8, 8), conditioning("sd1", 3)

    def predicted(patcher):
        work = lambda session: session.denoiser(x, 3.0, session.conds["positive"])  # noqa: E731
        return pack("nodes.host.sampling").run(patcher, {"samples": torch.zeros_like(x)}, {"positive": cond}, work)

    before, with_mapper = predicted(model), predicted(changed)
    other = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    weights = other.model.state_dict()
    for name, key in named.items():
        weights[key].copy_(tensors[f"{name}.weight"])
    torch.testing.assert_close(with_mapper, predicted(other), rtol=1e-4, atol=1e-4)
    assert float((before - with_mapper).abs().max()) > 1e-3 and torch.equal(predicted(model), before)


def test_what_does_not_fit_is_refused_in_a_sentence(pack, tower, parts):
    with pytest.raises(ValueError, match="as a word of its own"):
        concept(pack, parts, tower, text="a photo of a cat")
    with pytest.raises(ValueError, match="another kind of model"):
        concept(pack, parts, tower, model=comfy_model(pack, "sd2", diffusers_unet("sd2")))
    with pytest.raises(ValueError, match=r"SD 1\.x model"):
        concept(pack, parts, tower, clip=tiny_clip("sdxl"))
    with pytest.raises(ValueError, match="CLIP ViT-L/14"):
        concept(pack, parts, object())

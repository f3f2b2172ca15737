"""Vision features: own ViT against transformers' with the same weights, every source, positions, normalisation, bad
input."""

import json

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.demo.builders import demo_vision_features
from semantic_editing.core.demo.data import FOLDER
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import save_tensors
from semantic_editing.core.models.vision_features import FLAT, VisionFeatures, load_vision_features
from semantic_editing.core.models.vit import VisionTransformer

transformers = pytest.importorskip("transformers")
WIDTH, HEADS, PATCH, SIDE, DEPTH = 12, 3, 4, 16, 2
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def tiny(kind, seed=0):
    """A transformers model with random weights everywhere, also where they start at 0 or 1."""
    names = {
        "vit": "ViT",
        "dinov2": "Dinov2",
        "dinov2_with_registers": "Dinov2WithRegisters",
        "clip_vision_model": "CLIPVision",
    }
    extra = {"dinov2_with_registers": {"num_register_tokens": 2}, "vit": {"layer_norm_eps": 1e-6}}.get(kind, {})
    mlp = {} if kind.startswith("dinov2") else {"intermediate_size": 20}
    config = getattr(transformers, names[kind] + "Config")(**SHAPE, **mlp, **extra)
    model = getattr(transformers, names[kind] + "Model")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


def images(height=SIDE, width=SIDE, seed=0):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def dino_weights(registers=0, native=4, gated=False, scale=True, class_position=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def made(*shape):
        return torch.randn(*shape, generator=generator) * 0.4

    weights = {"cls_token": made(1, 1, WIDTH), "pos_embed": made(1, native**2 + class_position, WIDTH)}
    weights |= {"patch_embed.proj.weight": made(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": made(WIDTH)}
    if registers:
        weights["register_tokens" if class_position else "reg_token"] = made(1, registers, WIDTH)
    for index in range(DEPTH):
        shapes = {"norm1": (WIDTH,), "norm2": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        shapes |= (
            {"mlp.w12": (16, WIDTH), "mlp.w3": (WIDTH, 8)}
            if gated
            else {"mlp.fc1": (20, WIDTH), "mlp.fc2": (WIDTH, 20)}
        )
        for name, shape in shapes.items():
            weights |= {f"blocks.{index}.{name}.weight": made(*shape), f"blocks.{index}.{name}.bias": made(shape[0])}
        if scale:
            weights |= {f"blocks.{index}.{name}.gamma": made(WIDTH) for name in ("ls1", "ls2")}
    return weights | {"norm.weight": made(WIDTH), "norm.bias": made(WIDTH)}


def slow_vit(weights, pixels):
    """The network written out for one image with one matrix of weights after another: (tokens [N, D], attention [heads,
    N], keys of the last block [T, D])."""

    def linear(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[name + ".weight"]
            + weights[name + ".bias"]
        )

    kernel = weights["patch_embed.proj.weight"].flatten(1)
    patches = [
        kernel @ pixels[:, r : r + PATCH, c : c + PATCH].flatten() + weights["patch_embed.proj.bias"]
        for r in range(0, pixels.shape[1], PATCH)
        for c in range(0, pixels.shape[2], PATCH)
    ]
    extra = weights.get("register_tokens", weights.get("reg_token"))
    pos = weights["pos_embed"][0]
    own = len(pos) != len(patches)
    x = [weights["cls_token"][0, 0] + (pos[0] if own else 0), *(extra[0] if extra is not None else [])]
    x = torch.stack([*x, *(patch + pos[index + own] for index, patch in enumerate(patches))])
    for index in range(DEPTH):
        block = f"blocks.{index}."
        q, k, v = linear(norm(x, block + "norm1"), block + "attn.qkv").chunk(3, 1)
        heads, attention = [], []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            chances = (q[:, part] @ k[:, part].T / (WIDTH // HEADS) ** 0.5).softmax(1)
            heads.append(chances @ v[:, part])
            attention.append(chances[0])
        x = x + linear(torch.cat(heads, 1), block + "attn.proj") * weights.get(block + "ls1.gamma", 1.0)
        hidden = norm(x, block + "norm2")
        if block + "mlp.w3.weight" in weights:
            gate, value = linear(hidden, block + "mlp.w12").chunk(2, 1)
            hidden = linear(gate * torch.sigmoid(gate) * value, block + "mlp.w3")
        else:
            hidden = linear(functional.gelu(linear(hidden, block + "mlp.fc1")), block + "mlp.fc2")
        x = x + hidden * weights.get(block + "ls2.gamma", 1.0)
    count = len(patches)
    return norm(x, "norm")[-count:], torch.stack(attention)[:, -count:], k


VARIANTS = [
    {"scale": False},
    {},
    {"registers": 2},
    {"registers": 2, "class_position": False},
    {"gated": True},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_own_vit_is_the_network_written_out(variant):
    weights = dino_weights(**variant)
    network = VisionTransformer(weights | {"mask_token": torch.zeros(1, 12), "head.weight": torch.zeros(2, 12)}, HEADS)
    pixels = images() * 2 - 1
    with torch.no_grad():
        tokens, attention = network(pixels)
        keys = network.keys(pixels)
    assert keys.shape == (2, 17 + variant.get("registers", 0), WIDTH)
    for row in range(2):
        expected = slow_vit(weights, pixels[row])
        torch.testing.assert_close(keys[row], expected[2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tokens[row], expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(attention[row], expected[1], rtol=1e-4, atol=1e-5)
    assert network.class_position == variant.get("class_position", True) and network.native == 4


def test_prefixes_of_training_are_dropped():
    weights = dino_weights()
    plain, wrapped = (
        VisionTransformer(w, HEADS) for w in (weights, {f"module.backbone.{k}": v for k, v in weights.items()})
    )
    with torch.no_grad():
        assert torch.equal(plain(images())[0], wrapped(images())[0])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 24), (16, 4)])
def test_positions_are_the_native_ones_or_bicubic_between(height, width):
    network = VisionTransformer(dino_weights(), HEADS)
    rows, columns = height // PATCH, width // PATCH
    got = network.positions(rows, columns)
    native = network.pos_embed[:, 1:]
    assert got.shape == (1, rows * columns, WIDTH)
    if (rows, columns) == (4, 4):
        assert torch.equal(got, native)
    for channel in (0, 7):
        plane = native[0, :, channel].reshape(1, 1, 4, 4)
        expected = functional.interpolate(plane, (rows, columns), mode="bicubic").flatten()
        torch.testing.assert_close(got[0, :, channel], expected)


def test_a_wider_table_of_equal_vectors_stays_equal():
    weights = dino_weights()
    weights["pos_embed"][:] = weights["pos_embed"][:, :1]
    got = VisionTransformer(weights, HEADS).positions(7, 9)
    torch.testing.assert_close(got, weights["pos_embed"][:, :1].expand_as(got))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers", "clip_vision_model"])
def test_a_transformers_folder_gives_its_models_own_tokens_and_attention(kind, tmp_path):
    model = tiny(kind)
    model.save_pretrained(tmp_path / "model")
    vision = load_vision_features(tmp_path / "model")
    clip = kind.startswith("clip")
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073) if clip else (0.485, 0.456, 0.406)).reshape(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711) if clip else (0.229, 0.224, 0.225)).reshape(3, 1, 1)
    pictures = images()
    found = vision(pictures)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(pixel_values=(pictures - mean) / std, output_attentions=True)
    assert found.features.shape == (2, WIDTH, 4, 4) and found.attention.shape == (2, HEADS, 4, 4)
    for row in range(4):
        for column in range(4):
            token = expected.last_hidden_state[:, -16 + 4 * row + column]
            torch.testing.assert_close(found.features[:, :, row, column], token)
            torch.testing.assert_close(
                found.attention[:, :, row, column], expected.attentions[-1][:, :, 0, -16 + 4 * row + column]
            )
    wide = vision(images(18, 37))
    assert wide.features.shape[-2:] == wide.attention.shape[-2:] == (4, 8) and wide.image_size == (18, 37)
    assert vision(images(18, 37), resolution=8).features.shape[-2:] == (2, 4)
    assert not any(parameter.requires_grad for parameter in vision.parameters())


def test_a_folders_own_normalisation_is_used(tmp_path):
    tiny("vit").save_pretrained(tmp_path)
    settings = {
        "size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "do_rescale": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(settings | {"rescale_factor": 1 / 255, "do_normalize": True})
    )
    vision = load_vision_features(tmp_path)
    torch.testing.assert_close(vision.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
    torch.testing.assert_close(vision.std.flatten(), torch.tensor([0.2, 0.3, 0.4]))


def test_a_safetensors_file_is_normalised_as_imagenet(tmp_path):
    weights = dino_weights()
    save_tensors(tmp_path / "dino.safetensors", weights, {})
    vision = load_vision_features(tmp_path / "dino.safetensors", heads=HEADS)
    pictures = images()
    pixels = (pictures - torch.tensor((0.485, 0.456, 0.406)).reshape(3, 1, 1)) / torch.tensor(
        (0.229, 0.224, 0.225)
    ).reshape(3, 1, 1)
    tokens, attention, keys = slow_vit(weights, pixels[1])
    found = vision(pictures)
    torch.testing.assert_close(vision.keys(pictures)[1], keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.features[1].flatten(1).T, tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.attention[1].flatten(1), attention, rtol=1e-4, atol=1e-5)
    assert (vision.patch, vision.native) == (PATCH, SIDE)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers", "clip_vision_model"])
def test_a_folders_keys_make_its_own_attention(kind, tmp_path):
    """Softmax of the last block's queries with the keys found is the attention that transformers reports."""
    model = tiny(kind)
    model.save_pretrained(tmp_path / "model")
    vision = load_vision_features(tmp_path / "model")
    pictures = images()
    keys, network = vision.keys(pictures), vision.network.model
    queries, projections = (
        [],
        [part for name, part in network.named_modules() if name.rsplit(".", 1)[-1] in ("q_proj", "query")],
    )
    projections[-1].register_forward_hook(lambda module, inputs, output: queries.append(output))
    with torch.no_grad():
        output = network(pixel_values=(pictures - vision.mean) / vision.std, output_attentions=True)
    expected = output.attentions[-1]
    assert keys.shape == (2, expected.shape[-1], WIDTH)
    q, k = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (queries[-1], keys))
    torch.testing.assert_close((q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1), expected, rtol=1e-4, atol=1e-5)
    assert vision.keys(images(18, 37)).shape[1] == keys.shape[1] - 16 + 4 * 8


def test_keys_come_through_the_call_so_that_a_host_can_load_the_network_first():
    vision = VisionFeatures(VisionTransformer(dino_weights(), HEADS), PATCH, SIDE, (0.0,) * 3, (1.0,) * 3, "tiny")
    calls = []
    vision.register_forward_pre_hook(lambda *_: calls.append(1))
    flat = torch.full((1, 3, SIDE, SIDE), 0.5)
    assert vision.keys(flat).shape == (1, 17, WIDTH) and calls == [1]  # a flat picture has keys too
    bright = 255 * images()
    torch.testing.assert_close(vision.keys(bright), vision.network.keys(bright))  # at its size nothing is clipped


def test_the_demo_tower_looks_at_objects_from_minus_one_to_one():
    demo = load_demo_model()
    vision = demo_vision_features(demo)
    found = vision(demo.images[:2])
    assert found.vision == vision.identity
    assert found.features.shape == (2, 192, 8, 8) and found.attention.shape == (2, 4, 8, 8)
    with torch.no_grad():
        expected = demo.clip.vision_model(pixel_values=demo.images[:2] * 2 - 1).last_hidden_state[:, 1:]
    torch.testing.assert_close(found.features.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    total = found.attention.sum((2, 3))
    assert (total > 0).all() and (total <= 1.0001).all()  # the rest goes to the class token
    assert (
        vision.identity
        != VisionFeatures(VisionTransformer(dino_weights(), HEADS), 4, 16, (0,) * 3, (1,) * 3, "").identity
    )


def test_an_elongated_image_is_seen_within_the_limit():
    vision = VisionFeatures(VisionTransformer(dino_weights(), HEADS), PATCH, SIDE, (0.0,) * 3, (1.0,) * 3, "tiny")
    found = vision(torch.rand(1, 3, 8, 3000, generator=torch.Generator().manual_seed(0)))
    assert found.features.shape[-2:] == (1, 336)


def test_bad_images_are_refused():
    vision = VisionFeatures(VisionTransformer(dino_weights(), HEADS), PATCH, SIDE, (0.0,) * 3, (1.0,) * 3, "tiny")
    flat = images()
    flat[1] = torch.tensor([0.2, 0.5, 0.7]).reshape(3, 1, 1) + FLAT / 4 * torch.rand(3, 16, 16)
    for pictures, message in [
        (images()[0], "batch, 3"),
        (images() * float("nan"), "not a number"),
        (images(3, 9), "smaller than a patch"),
        (flat, "one flat colour"),
    ]:
        with pytest.raises(EditingError, match=message):
            vision(pictures)
    with pytest.raises(EditingError, match="use 16"):
        vision(images(), resolution=3)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(EditingError, match="not found"):
        load_vision_features(tmp_path / "none.safetensors")
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(EditingError, match=r"other\.safetensors cannot be used: The file holds no plain ViT"):
        load_vision_features(tmp_path / "other.safetensors")
    weights = dino_weights()
    save_tensors(tmp_path / "narrow.safetensors", weights, {})
    with pytest.raises(EditingError, match="heads of 64"):
        load_vision_features(tmp_path / "narrow.safetensors")
    del weights["blocks.1.attn.proj.weight"]
    with pytest.raises(EditingError, match="no plain ViT"):
        VisionTransformer(weights, HEADS)
    with pytest.raises(EditingError, match="no square grid"):
        VisionTransformer(dino_weights() | {"pos_embed": torch.zeros(1, 12, WIDTH)}, HEADS)
    with pytest.raises(EditingError, match=r"no readable config\.json"):
        load_vision_features(tmp_path)
    with pytest.raises(EditingError, match="another kind"):
        load_vision_features(FOLDER / "unet")
    tiny("vit").save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(EditingError, match="download it again"):
        load_vision_features(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    with pytest.raises(EditingError, match=r"no \.safetensors weights"):
        load_vision_features(tmp_path / "cut")

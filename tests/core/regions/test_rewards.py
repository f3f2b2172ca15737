"""The losses and the score against their formulas, and CLIPs from every source."""

import json
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.demo.builders import demo_scorer
from semantic_editing.core.demo.data import TOKENIZER
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import save_tensors
from semantic_editing.core.models.clip import TowerScorer, load_open_clip, load_transformers_clip
from semantic_editing.core.regions.rewards import ClipJudge, LossWeights

TEXTS = {"a cat": [1.0, 0.2, 0.0, 0.1], "a dog": [0.1, 1.0, 0.3, 0.0], "a feline": [2.0, 0.4, 0.0, 0.2]}


def tiny_scorer(side=8):
    """Tokens are the four quarters' mean colours through a fixed matrix, features a fixed mixture of them."""
    generator = torch.Generator().manual_seed(0)
    embed, mix = torch.randn(3, 5, generator=generator), torch.randn(20, 4, generator=generator)

    def tower(pixels):
        tokens = functional.avg_pool2d(pixels, side // 2).flatten(2).transpose(1, 2) @ embed
        return torch.tanh(tokens).flatten(1) @ mix, tokens

    return TowerScorer(
        "tiny", tower, lambda texts: torch.tensor([TEXTS[text] for text in texts]), side, (0.5,) * 3, (0.25,) * 3
    )


def picture(seed=0, height=8, width=8):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def embedded(image):
    """Features and similarity of one 8 x 8 image, by hand."""
    generator = torch.Generator().manual_seed(0)
    embed, mix = torch.randn(3, 5, generator=generator), torch.randn(20, 4, generator=generator)
    x = (image[0] - 0.5) / 0.25
    tokens = torch.stack([x[:, r : r + 4, c : c + 4].mean((1, 2)) @ embed for r in (0, 4) for c in (0, 4)])
    similarity = torch.tensor([[cosine(a, b) for b in tokens] for a in tokens])
    return torch.tanh(tokens).flatten() @ mix, similarity


def test_losses_and_score_are_equations_3_to_7():
    before, after = picture(1), picture(2)
    verdict = ClipJudge(tiny_scorer(), before, "a cat", "a dog")(after)
    (source, q), (edited, q_edited) = embedded(before), embedded(after)
    source, edited = source / source.norm(), edited / edited.norm()
    cat, dog = (functional.normalize(torch.tensor(TEXTS[name]), dim=0) for name in ("a cat", "a dog"))
    assert verdict.clip == pytest.approx(1 - cosine(edited, dog), abs=1e-5)
    assert verdict.direction == pytest.approx(1 - cosine(edited - source, dog - cat), abs=1e-5)
    assert verdict.structure == pytest.approx(float((q_edited - q).norm()) / 4, abs=1e-5)  # 4 tokens
    assert verdict.score == pytest.approx(2 * cosine(edited, dog) + cosine(edited, source), abs=1e-5)
    weights = LossWeights(0.5, 2.0, 3.0)
    assert verdict.loss(weights) == pytest.approx(0.5 * verdict.clip + 2 * verdict.direction + 3 * verdict.structure)
    assert verdict.loss(LossWeights()) == pytest.approx(verdict.clip + verdict.direction + verdict.structure)


def test_an_unchanged_image_has_no_structure_loss_full_similarity_and_no_direction():
    image = picture()
    verdict = ClipJudge(tiny_scorer(), image, "a cat", "a dog", crops=3)(image)
    assert verdict.structure < 1e-6 and verdict.image_similarity == pytest.approx(1.0)
    assert verdict.direction == pytest.approx(1.0)


def test_crops_are_the_same_on_both_sides_and_for_every_edit():
    """Issue 6 of the released code cropped the two sides of L_dir independently."""
    seen = []
    scorer = tiny_scorer()
    plain = scorer.embed_images

    def spy(images):
        seen.append(images)
        return plain(images)

    scorer.embed_images = spy
    ramp = (torch.arange(16.0)[None, :] * 0.05 + torch.arange(8.0)[:, None] * 0.01).expand(1, 3, 8, 16).clone()
    judge = ClipJudge(scorer, ramp, "a cat", "a dog", crops=4, seed=5)
    judge(ramp)
    judge(ramp)
    assert seen[0].shape == (5, 3, 8, 16) and torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])
    assert torch.equal(seen[0][:1], ramp) and len({tuple(view.flatten().tolist()) for view in seen[0]}) == 5
    assert all(view.min() >= 0 and view.max() <= ramp.max() + 1e-6 for view in seen[0])
    assert not torch.equal(ClipJudge(scorer, ramp, "a cat", "a dog", crops=4, seed=6)._views(ramp), seen[0])


def test_losses_are_differentiable_with_respect_to_the_edited_image():
    judge = ClipJudge(tiny_scorer(), picture(1).double().float(), "a cat", "a dog", crops=2)
    edited = picture(2).requires_grad_()
    total = sum(judge.terms(edited))
    (gradient,) = torch.autograd.grad(total, edited)
    index = int(gradient.abs().argmax())
    step = torch.zeros_like(edited).flatten()
    step[index] = 1e-2
    step = step.reshape(edited.shape)
    with torch.no_grad():
        difference = (sum(judge.terms(edited + step)) - sum(judge.terms(edited - step))) / 2e-2
    assert float(gradient.flatten()[index]) == pytest.approx(float(difference), rel=0.05)


def test_what_judges_differently_has_another_identity():
    image = picture()
    judges = [
        ClipJudge(tiny_scorer(), image, "a cat", "a dog"),
        ClipJudge(tiny_scorer(), image, "a dog", "a cat"),
        ClipJudge(tiny_scorer(), image, "a cat", "a dog", crops=1),
        ClipJudge(tiny_scorer(), image, "a cat", "a dog", crops=1, seed=1),
        ClipJudge(tiny_scorer(), picture(1), "a cat", "a dog"),
    ]
    assert len({judge.identity for judge in judges}) == 5
    assert judges[0].identity == ClipJudge(tiny_scorer(), image.clone(), "a cat", "a dog").identity


@pytest.mark.parametrize(
    ("source", "target"), [("", "a dog"), ("a cat", "  "), ("a cat", "a cat"), ("a cat", "a feline")]
)
def test_texts_that_say_nothing_are_refused(source, target):
    with pytest.raises(
        EditingError, match="text is empty" if not (source.strip() and target.strip()) else "mean the same"
    ):
        ClipJudge(tiny_scorer(), picture(), source, target)


def test_bad_images_and_weights_are_refused():
    judge = ClipJudge(tiny_scorer(), picture(), "a cat", "a dog")
    with pytest.raises(EditingError, match="edit at the image's size"):
        judge(picture(height=16))
    with pytest.raises(EditingError, match="not a number"):
        judge(picture() * float("nan"))
    with pytest.raises(EditingError, match="batch, 3"):
        tiny_scorer().embed_images(torch.zeros(1, 1, 8, 8))
    for weights in ((-1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (float("nan"), 1.0, 1.0)):
        with pytest.raises(EditingError, match="loss weights"):
            LossWeights(*weights)
    with pytest.raises(EditingError, match="crops is 99"):
        ClipJudge(tiny_scorer(), picture(), "a cat", "a dog", crops=99)


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


def test_the_demo_clip_is_the_demo_models_own(demo):
    scorer = demo_scorer(demo)
    found = scorer.embed_images(demo.images[:2])
    torch.testing.assert_close(found.features, demo.image_features(demo.images[:2]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scorer.text_features(["a smile"]), demo.text_features(["a smile"]), rtol=1e-4, atol=1e-5)
    tokens = demo.clip.vision_model(pixel_values=demo.images[:2] * 2 - 1).last_hidden_state[:, 1:]
    assert found.similarity.shape == (2, 64, 64)
    assert float(found.similarity[1, 3, 40]) == pytest.approx(cosine(tokens[1, 3], tokens[1, 40]), abs=1e-4)


def test_the_true_edit_beats_the_unedited_picture_by_the_demo_clip(demo):
    scorer = demo_scorer(demo)
    wins = []
    for pair in demo.pairs[:4]:
        judge = ClipJudge(scorer, pair.source[None], pair.source_caption, pair.target_caption)
        right, nothing = judge(pair.target[None]), judge(pair.source[None])
        wins.append(right.text_similarity > nothing.text_similarity and right.direction < nothing.direction)
    assert sum(wins) >= 3


def clip_folder(path):
    transformers = pytest.importorskip("transformers")
    shape = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 6,
    }
    text = transformers.CLIPTextConfig(**shape, vocab_size=49408, bos_token_id=49406, eos_token_id=49407)
    vision = transformers.CLIPVisionConfig(**shape, image_size=16, patch_size=8)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=6)
    )
    model.eval().save_pretrained(path)
    transformers.CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(path)
    settings = {
        "size": {"shortest_edge": 16},
        "crop_size": 16,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(settings | {"do_rescale": True, "do_normalize": True}))
    return model, transformers


def test_a_clip_folder_gives_transformers_own_features(tmp_path):
    model, transformers = clip_folder(tmp_path)
    scorer = load_transformers_clip(tmp_path)
    image = picture(0, 16, 16)
    pixels = (image - torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).reshape(3, 1, 1)
    batch = transformers.CLIPTokenizer.from_pretrained(tmp_path)(
        ["a cat", "two dogs in a park"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(pixel_values=pixels, **batch)
        torch.testing.assert_close(scorer.embed_images(image).features, expected.image_embeds, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            scorer.text_features(["a cat", "two dogs in a park"]), expected.text_embeds, rtol=1e-4, atol=1e-5
        )
    assert scorer.embed_images(picture(0, 9, 30)).similarity.shape == (1, 4, 4)
    with pytest.raises(EditingError, match=r"no config\.json"):
        load_transformers_clip(tmp_path / "none")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(EditingError, match=r"model\.safetensors is damaged"):
        load_transformers_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(EditingError, match="holds a vit model"):
        load_transformers_clip(tmp_path)


def fake_open_clip():
    """The part of open_clip's interface that the loader uses, around a tiny network."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.text_projection = torch.nn.Parameter(torch.eye(3))
            self.visual = torch.nn.Module()
            self.visual.proj = torch.nn.Parameter(torch.eye(3))
            self.visual.forward_intermediates = self.see
            self.logit_scale = torch.tensor(4.0).log()  # a plain one, because the file has none

        def see(self, pixels, indices, output_fmt):
            assert (indices, output_fmt) == (1, "NLC")
            tokens = functional.avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
            return {"image_features": tokens.mean(1) @ self.visual.proj, "image_intermediates": [tokens]}

        def encode_text(self, ids):
            return ids @ self.text_projection

    module = ModuleType("open_clip")
    configs = {
        "ViT-tiny": {"text_cfg": {}, "vision_cfg": {"layers": 2}},
        "hub": {"text_cfg": {"hf_model_name": "x"}, "vision_cfg": {"layers": 2}},
        "RN": {"text_cfg": {}, "vision_cfg": {"layers": [2, 2]}},
    }
    module.list_models = lambda: list(configs)
    module.get_model_config = configs.get
    module.create_model = lambda name, pretrained, load_weights, device="cpu": Network()
    module.get_tokenizer = lambda name: lambda texts: torch.tensor([TEXTS[text][:3] for text in texts])
    module.get_model_preprocess_cfg = lambda model: {"size": (4, 4), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return module


def test_an_open_clip_file_is_loaded_into_the_named_architecture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", fake_open_clip())
    save_tensors(
        tmp_path / "clip.safetensors", {"text_projection": torch.eye(3) * 2, "visual.proj": torch.eye(3).flip(0)}, {}
    )
    scorer = load_open_clip(tmp_path / "clip.safetensors", "ViT-tiny")
    image = picture(0, 4, 4)
    expected = functional.normalize(((image - 0.5) / 0.25).mean((2, 3)).flip(1), dim=1)
    torch.testing.assert_close(scorer.embed_images(image).features, expected, rtol=1e-4, atol=1e-5)
    assert float(scorer.text_features(["a cat"]).norm()) == pytest.approx(1.0)
    for name, message in [("hf-hub:some/model", "knows no architecture"), ("hub", "from a hub"), ("RN", "no patches")]:
        with pytest.raises(EditingError, match=message):
            load_open_clip(tmp_path / "clip.safetensors", name)
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(EditingError, match="does not fit ViT-tiny"):
        load_open_clip(tmp_path / "other.safetensors", "ViT-tiny")


def test_without_open_clip_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(EditingError, match="use a transformers CLIPModel folder, or install it"):
        load_open_clip(tmp_path / "clip.safetensors")


def test_a_real_open_clip_vit_gives_its_own_features(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    model = open_clip.create_model("ViT-S-32", pretrained=None, load_weights=False).eval()
    save_tensors(tmp_path / "clip.safetensors", model.state_dict(), {})
    scorer = load_open_clip(tmp_path / "clip.safetensors", "ViT-S-32")
    image = picture(0, 224, 224)
    settings = open_clip.get_model_preprocess_cfg(model)
    mean, std = (torch.tensor(settings[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.encode_image((image - mean) / std, normalize=True)
        found = scorer.embed_images(image)
        torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
        words = model.encode_text(open_clip.get_tokenizer("ViT-S-32")(["a cat"]), normalize=True)
        torch.testing.assert_close(scorer.text_features(["a cat"]), words, rtol=1e-4, atol=1e-5)
    assert found.similarity.shape == (1, 49, 49)

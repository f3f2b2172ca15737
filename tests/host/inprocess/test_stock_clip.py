"""The host's own CLIP and CLIP_VISION as a CLIP that scores: against transformers on the same weights, and what is
refused."""

import json
from contextlib import contextmanager

import comfy.clip_vision
import comfy.model_management as mm
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import pytest
import torch
import torch.nn.functional as functional
from conftest import PACK, noise

WIDTH = 32
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = SHAPE | {"image_size": 32, "patch_size": 16}
TEXT = SHAPE | {"hidden_act": "quick_gelu"}
PROJECTIONS = ("text_projection.weight", "visual_projection.weight")


@pytest.fixture(scope="module")
def transformers_clip(pack):
    """A tiny random CLIPModel whose image side was fitted to name the plain colours as its text side does."""
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        text = transformers.CLIPTextConfig(**TEXT, vocab_size=49408, bos_token_id=49406, eos_token_id=49407)
        vision = transformers.CLIPVisionConfig(**VISION, hidden_act="quick_gelu")
        config = transformers.CLIPConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH
        )
        model = transformers.CLIPModel(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(PACK / "assets" / "clip_tokenizer", local_files_only=True)

    def read(texts):
        batch = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        pooled = model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
        return functional.normalize(model.text_projection(pooled), dim=1)

    def pool(images):
        mean, std = pack("core.models.clip").CLIP_NORMALISATION
        pixels = (images - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
        return model.vision_model(pixel_values=pixels).pooler_output

    colours = pack("nodes.host.stock_clip").COLOURS
    plain = torch.tensor(list(colours.values())).reshape(-1, 3, 1, 1).expand(-1, -1, 32, 32)
    wanted = read([f"a plain {name} background" for name in colours])
    model.visual_projection.weight.copy_((torch.linalg.pinv(pool(plain).double()) @ wanted.double()).T.float())
    model.read, model.see = read, lambda images: functional.normalize(model.visual_projection(pool(images)), dim=1)
    return model


def text_side(weights, kind="sd1"):
    kinds = {
        "sd1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }
    options = {"dtype": torch.float32, "clip_l_model_config": TEXT, "clip_g_model_config": TEXT | {"hidden_size": 64}}
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(*kinds[kind]), model_options=options)
    for parameter in clip.cond_stage_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    clip.load_sd(dict(weights))
    return clip


def image_side(weights, folder, **changed):
    config = {
        "model_type": "clip_vision_model", "num_channels": 3, "hidden_act": "quick_gelu", "projection_dim": WIDTH,
    }  # fmt: skip
    path = folder / "vision.json"
    path.write_text(json.dumps(VISION | config | changed))
    vision = comfy.clip_vision.ClipVisionModel(str(path))
    vision.load_sd(dict(weights))
    return vision


@pytest.fixture
def sides(transformers_clip, tmp_path):
    """``sides(**changed)``: the host's CLIP and CLIP_VISION from the model's own weights, some of them changed."""

    def make(kind="sd1", text=None, vision=None):
        weights = {name: value.clone() for name, value in transformers_clip.state_dict().items()}
        return text_side(weights | (text or {}), kind), image_side(weights | (vision or {}), tmp_path)

    with torch.inference_mode(), torch.random.fork_rng():  # as loader nodes would
        torch.manual_seed(0)
        yield make
    mm.unload_all_models()


def stock(pack, *sides):
    return pack("nodes.host.stock_clip").stock_scorer(*sides)


TEXTS = ["a face", "a face (with glasses:1.3), smiling", "word " * 200]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_features_are_transformers_own(pack, sides, transformers_clip, kind):
    scorer = stock(pack, *sides(kind))
    images = noise(3, 3, 32, 32).sigmoid()
    # The fitted projection enlarges differences in rounding.
    torch.testing.assert_close(scorer.image_features(images), transformers_clip.see(images), rtol=1e-3, atol=1e-3)
    plain = [text.replace("(", "").replace(":1.3)", "") for text in TEXTS]
    found = scorer.text_features(TEXTS)
    torch.testing.assert_close(found, transformers_clip.read(plain), rtol=1e-3, atol=1e-4)
    mm.unload_all_models()
    assert torch.equal(scorer.text_features(TEXTS), found)
    embedding = scorer.embed_images(noise(1, 3, 20, 50).sigmoid())
    assert embedding.features.shape == (1, WIDTH) and embedding.similarity.shape == (1, 4, 4)
    assert scorer.identity == stock(pack, *sides(kind)).identity and scorer.device == torch.device("cpu")


def test_what_the_host_encodes_stays_the_same(pack, sides):
    clip, vision = sides()
    clip.clip_layer(-2)
    before = clip.encode_from_tokens(clip.tokenize("a face"), return_pooled="unprojected")
    scorer = stock(pack, clip, vision)
    first = scorer.text_features(["a face"])
    after = clip.encode_from_tokens(clip.tokenize("a face"), return_pooled="unprojected")
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(scorer.text_features(["a face"]), first)


def test_pixels_have_gradients(pack, sides):
    scorer = stock(pack, *sides())
    with pack("nodes.host.gradients").gradient_scope(True):
        pixels = noise(1, 3, 32, 32).double().sigmoid().float().clone().requires_grad_()
        wanted = noise(WIDTH, seed=3).clone()

        def score(image):
            return (scorer.image_features(image)[0] * wanted).sum()

        (gradient,) = torch.autograd.grad(score(pixels), pixels)
        way = gradient / gradient.norm()
        step = 0.02
        with torch.no_grad():
            slope = (score(pixels + step * way) - score(pixels - step * way)) / (2 * step)
        assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.05)


def unwritten():
    return [torch.zeros(WIDTH, WIDTH), torch.eye(WIDTH), torch.full((WIDTH, WIDTH), float("nan"))]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["zeros", "identity", "no numbers"])
@pytest.mark.parametrize("side", ["text", "vision"])
def test_a_side_without_its_projection(pack, sides, side, which):
    """What hosts leave where a file has none: SD 1.x checkpoints and most files of CLIP-L have none."""
    changed = {side: {PROJECTIONS[side == "vision"]: unwritten()[which]}}
    named = {"text": "text side", "vision": "CLIP Vision"}[side]
    with pytest.raises(ValueError, match=f"The file of this {named} lacks the projection") as caught:
        stock(pack, *sides(**changed))
    assert str(caught.value).count(". ") == 0 and "Load CLIP Vision" in str(caught.value)


def test_memory_that_looks_like_weights_and_sides_of_different_clips(pack, sides):
    """Colours tell what the numbers do not."""
    for changed in ("text", "vision"):
        stranger = {PROJECTIONS[changed == "vision"]: 0.2 * noise(WIDTH, WIDTH, seed=20)}
        with pytest.raises(ValueError, match="do not agree on plain colours"):
            stock(pack, *sides(**{changed: stranger}))


def test_chance_is_as_rare_as_said(pack):
    """Sides that have nothing to do with each other pass in about two of a hundred cases."""
    judge = pack("nodes.host.stock_clip")

    class Random:
        def __init__(self, seed):
            self.seed = seed

        def image_features(self, images):
            return noise(len(images), 16, seed=self.seed)

        def text_features(self, texts):
            return noise(len(texts), 16, seed=self.seed + 1000)

    passed = sum(not judge._likely_by_chance(Random(seed)) for seed in range(200))
    assert passed <= 12  # 4 expected; 13 or more in less than one of 3,000 sets of seeds


def test_models_of_other_kinds(pack, sides, transformers_clip, tmp_path):
    clip, vision = sides()
    narrow = image_side({PROJECTIONS[1]: noise(24, WIDTH)}, tmp_path, projection_dim=24)
    with pytest.raises(ValueError, match=r"text side \(clip_l 32\) and the CLIP Vision \(24\) are of different widths"):
        stock(pack, clip, narrow)
    siglip = image_side({}, tmp_path, model_type="siglip_vision_model")
    with pytest.raises(ValueError, match="no image side of a CLIP"):
        stock(pack, clip, siglip)
    clip.cond_stage_model = torch.nn.ModuleDict({"t5xxl": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="no text encoder of a CLIP"):
        stock(pack, clip, vision)


# As classifiers -----------------------------------------------------------------------------------------------------

ASKED = {
    "attribute": "colour",
    "text_with": "a red thing",
    "text_without": "a blue thing",
    "others": "light: day | night",
}


def node(pack, module, name):
    return getattr(pack(f"nodes.caso.{module}"), name)


def from_texts(pack, scorer, **changed):
    given = ASKED | changed
    return node(pack, "classifier_texts", "AttributeClassifierFromTexts").execute(scorer, **given).args


@contextmanager
def loaded(pack, managed):
    """The classifier with all that it computes with on the device, as a run has it."""
    gradients = pack("nodes.host.gradients")
    with gradients.gradient_scope(True):
        pack("nodes.host.managed_models").load_to_device(*managed.patchers)
        with gradients.frozen([patcher.model for patcher in managed.patchers]):
            yield managed.classifier


def check_gradient(classifier, attribute, column):
    pixels = noise(1, 3, 40, 30, seed=6).double().sigmoid().float().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.logits(pixels)[attribute][0, column], pixels)
    way = gradient / gradient.norm()
    with torch.no_grad():
        ends = [float(classifier.logits(pixels + sign * way)[attribute][0, column]) for sign in (0.02, -0.02)]
    assert (ends[0] - ends[1]) / 0.04 == pytest.approx(float(gradient.norm()), rel=0.1) and float(gradient.norm()) > 0


def test_texts_are_told_apart_as_transformers_tells_them(pack, sides, transformers_clip):
    """The logits of transformers' own CLIPModel, at the scale that the host's text encoder has; with gradients."""
    clip, vision = sides()
    scorer = stock(pack, clip, vision)
    scale = float(clip.cond_stage_model.clip_l.logit_scale.detach().exp())
    managed, report = from_texts(pack, scorer, images=noise(3, 32, 32, 3).sigmoid())
    images = noise(3, 32, 32, 3).sigmoid().movedim(-1, 1)
    seen = transformers_clip.see(images)
    assert managed.classifier.heads == {"colour": ["no", "yes"], "light": ["day", "night"]}
    texts = {"colour": ["a blue thing", "a red thing"], "light": ["day", "night"]}
    with loaded(pack, managed) as classifier:
        for attribute, (first, second) in texts.items():
            expected = scale * seen @ transformers_clip.read([first, second]).T
            torch.testing.assert_close(classifier.logits(images)[attribute], expected, rtol=1e-3, atol=2e-3)
        check_gradient(classifier, "colour", 1)
    best = (scale * seen @ transformers_clip.read(texts["colour"]).T).softmax(1)[0]
    assert f"picture 1: colour {['no', 'yes'][int(best.argmax())]} ({float(best.max()):.0%})" in report
    assert (
        managed.classifier.fingerprint != from_texts(pack, scorer, text_with="a green thing")[0].classifier.fingerprint
    )


def test_a_clip_vision_is_the_trunk_of_a_probe_that_is_saved_and_read(pack, sides, transformers_clip, tmp_path):
    _, vision = sides()
    with torch.inference_mode():
        trunk, handle = pack("nodes.host.feature_trunks").clip_trunk(vision)
        images = (noise(4, 3, 32, 32).sigmoid() * 255).round() / 255
        own = functional.normalize(
            vision.encode_image(images.movedim(1, -1), crop=False)["image_embeds"].float(), dim=1
        )
        torch.testing.assert_close(trunk(images).cpu(), own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(trunk(images).cpu(), transformers_clip.see(images), rtol=1e-3, atol=1e-3)
        pictures, training = (pack(f"core.classifiers.{name}") for name in ("pictures", "training"))
        batch = torch.cat([noise(10, 3, 32, 32, seed=1).sigmoid() * 0.3, 0.6 + noise(10, 3, 32, 32).sigmoid() * 0.4])
        made = pictures.pictures_from_batch(batch, ["dark"] * 10 + ["light"] * 10, (32, 32))
        with pack("nodes.host.managed_models").training_scope(0) as device:
            pack("nodes.host.managed_models").load_to_device(handle)
            trained = training.train_classifier(made, training.TrainingSettings("tone"), trunk, device=device)
        assert trained.accuracy == 1.0
        loaders = pack("core.classifiers.loaders")
        path = loaders.save_image_classifier(trained.classifier, tmp_path / "probe.safetensors", trained.facts())
        assert path.stat().st_size < 5000, "the CLIP itself is not in it"
        again = loaders.load_image_classifier(path, backbone=pack("nodes.host.feature_trunks").clip_trunk(vision)[0])
        assert again.fingerprint == trained.classifier.fingerprint
        with pytest.raises(ValueError, match="wire the CLIP Scorer or CLIP Vision that it was trained with"):
            loaders.load_image_classifier(path)
        other = image_side({PROJECTIONS[1]: noise(WIDTH, WIDTH, seed=3)}, tmp_path)
        with pytest.raises(ValueError, match="was trained on another CLIP"):
            loaders.load_image_classifier(path, backbone=pack("nodes.host.feature_trunks").clip_trunk(other)[0])
        managed = pack("nodes.host.managed_models").manage_classifier(lambda: again, handle)
        with loaded(pack, managed) as classifier:
            check_gradient(classifier, "tone", 0)


def test_other_image_sides_are_trunks_too(pack, tmp_path):
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        siglip = image_side({}, tmp_path, model_type="siglip_vision_model")
        for parameter in siglip.model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        trunk, _ = pack("nodes.host.feature_trunks").clip_trunk(siglip)
        images = (noise(2, 3, 32, 32).sigmoid() * 255).round() / 255
        tokens = siglip.encode_image(images.movedim(1, -1), crop=False)["image_embeds"].float()
        torch.testing.assert_close(trunk(images), functional.normalize(tokens.mean(1), dim=1), rtol=1e-4, atol=1e-4)
        siglip.model_type = "siglip2_vision_model"
        with pytest.raises(ValueError, match="does not take square pictures"):
            pack("nodes.host.feature_trunks").clip_trunk(siglip)


def test_a_classifier_gets_further_attributes(pack, sides):
    """Its own answers stay, the host loads both networks for a run, and names that both know are refused."""
    scorer = stock(pack, *sides())
    demo = node(pack, "classifier_loader", "AttributeClassifierLoader").execute("demo", "", "", 0, "auto").args[0]
    managed, _ = from_texts(pack, scorer, text_with="", attribute_classifier=demo)
    assert list(managed.classifier.heads) == [*demo.classifier.heads, "light"]
    assert demo.patcher in managed.patchers and len(managed.patchers) == 3
    images = noise(2, 3, 32, 32).sigmoid()
    with loaded(pack, managed) as classifier:
        torch.testing.assert_close(classifier.logits(images)["mouth"], demo.classifier.logits(images)["mouth"])
        check_gradient(classifier, "light", 0)
        check_gradient(classifier, "mouth", 0)
    with pytest.raises(ValueError, match="Both classifiers know glasses"):
        from_texts(pack, scorer, attribute="glasses", attribute_classifier=demo)
    twice, _ = from_texts(
        pack, scorer, text_with="", others="age: young | old", attribute_classifier=from_texts(pack, scorer)[0]
    )
    assert list(twice.classifier.heads) == ["colour", "light", "age"]
    assert type(twice.classifier).__name__ == "FeatureClassifier", "one pass of the CLIP serves all"

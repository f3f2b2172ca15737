"""Classifiers over somebody else's features: linear probes, texts in place of training, and two as one."""

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.classifiers.base import ImageClassifier
from semantic_editing.core.classifiers.frozen_features import (
    FeatureClassifier,
    FeatureTrunk,
    JoinedClassifier,
    attributes_in,
    classifier_from_texts,
    joined,
    scorer_trunk,
)
from semantic_editing.core.classifiers.loaders import load_image_classifier, save_image_classifier
from semantic_editing.core.classifiers.pictures import pictures_from_batch, split
from semantic_editing.core.classifiers.training import TrainingSettings, train_classifier
from semantic_editing.core.demo.builders import demo_scorer
from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.errors import EditingError

ASKED = {"glasses": {"no": "a face", "yes": "a face with glasses"}, "tone": {"dark": "dark", "light": "light"}}


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


@pytest.fixture(scope="module")
def scorer(demo):
    return demo_scorer(demo)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_texts_give_transformers_own_logits(demo, scorer):
    """``CLIPModel``'s logits are its scale times the cosines; the demo's scale is its own, not CLIP's usual 100."""
    net, images = classifier_from_texts(scorer, ASKED, "demo"), random(3, 3, 128, 128)
    vision = demo.clip.visual_projection(demo.clip.vision_model(pixel_values=images * 2 - 1).pooler_output)
    cosines = functional.normalize(vision, dim=1) @ scorer.text_features(["a face", "a face with glasses"]).T
    expected = demo.clip.logit_scale.exp() * cosines
    torch.testing.assert_close(net.logits(images)["glasses"], expected, rtol=1e-4, atol=1e-4)
    assert net.heads == {"glasses": ["no", "yes"], "tone": ["dark", "light"]} and 30 < scorer.logit_scale < 45
    assert net.class_index("glasses", "yes") == 1 and net.class_weights("glasses").shape == (2, 256)


def test_the_demos_clip_knows_glasses_without_training(scorer):
    """On the shipped pictures of pairs: better than chance by far, with nothing trained."""
    pairs = DemoData().pairs_of("glasses: none to glasses")[:40]
    net = classifier_from_texts(scorer, {"g": {"no": "a face", "yes": "a face with glasses"}}, "demo")
    pictures = [(pair.source, pair.source_attributes) for pair in pairs] + [
        (pair.target, pair.target_attributes) for pair in pairs
    ]
    wanted = [(image, seen["glasses"] == "glasses") for image, seen in pictures if seen["glasses"] != "sunglasses"]
    answers = net.logits(torch.stack([image for image, _ in wanted]))["g"].argmax(1)
    right = sum(bool(answer) == has for answer, (_, has) in zip(answers, wanted, strict=True)) / len(wanted)
    assert len(wanted) >= 40 and right >= 0.8, right


def test_pixels_have_gradients_through_resizing_and_normalisation(scorer):
    net, pixels = classifier_from_texts(scorer, ASKED, "demo"), random(1, 3, 90, 70).requires_grad_()
    (gradient,) = torch.autograd.grad(net.logits(pixels)["glasses"][0, 1], [pixels])
    way = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        ends = [float(net.logits(pixels + sign * way)["glasses"][0, 1]) for sign in (1, -1)]
    assert float(gradient.norm()) > 0 and (ends[0] - ends[1]) / 0.1 == pytest.approx(float(gradient.norm()), rel=0.1)


def tones(count=12, side=128):
    batch = torch.cat([random(count, 3, side, side) * 0.3, 0.6 + random(count, 3, side, side, seed=1) * 0.3])
    return pictures_from_batch(batch, ["dark"] * count + ["light"] * count, (side, side))


def test_a_probe_is_the_minimum_of_its_loss_and_survives_its_file(scorer, tmp_path):
    """Logistic regression with a penalty: at its minimum over standardised features the gradient is zero."""
    trunk, pictures = scorer_trunk(scorer), tones()
    settings = TrainingSettings("tone", epochs=60, flip=False, validation=0.25)
    trained = train_classifier(pictures, settings, trunk)
    assert isinstance(trained.classifier, FeatureClassifier) and trained.accuracy == 1.0
    assert trained.history["train loss"][-1] <= min(trained.history["train loss"]) + 1e-6
    first, images = trained.classifier.last[0], pictures.pixels.float() / 255
    generator = torch.Generator().manual_seed(0)
    rows, _ = split(pictures.labels, 0.25, generator)
    features = trunk(images[rows]).double()
    mean, spread = features.mean(0), features.std(0, unbiased=False)
    spread = torch.where(spread > 1e-6, spread, 1.0)
    weight = (first.weight.double() * spread).requires_grad_()
    bias = (first.bias.double() + first.weight.double() @ mean).requires_grad_()
    error = functional.cross_entropy(((features - mean) / spread) @ weight.T + bias, pictures.labels[rows])
    gradients = torch.autograd.grad(error + 0.05 * weight.square().sum(), [weight, bias])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 2e-3
    path = save_image_classifier(trained.classifier, tmp_path / "probe.safetensors", trained.facts())
    again = load_image_classifier(path, backbone=scorer_trunk(scorer))
    assert again.fingerprint == trained.classifier.fingerprint and again.heads == {"tone": ["dark", "light"]}
    torch.testing.assert_close(again.logits(images)["tone"], trained.classifier.logits(images)["tone"])
    renamed = load_image_classifier(path, backbone=trunk, classes=["night", "day"], attribute="hour")
    assert renamed.heads == {"hour": ["night", "day"]}
    for wrong in ({"backbone": None}, {"backbone": trunk, "size": 64}, {"backbone": trunk, "normalisation": "0..1"}):
        with pytest.raises(EditingError) as caught:
            load_image_classifier(path, **wrong)
        assert len(str(caught.value)) <= 300
    stranger = FeatureTrunk(trunk.see, "another", trunk.side, trunk.width)
    with pytest.raises(EditingError, match="another CLIP"):
        load_image_classifier(path, backbone=stranger)


def test_a_probe_goes_on_from_a_probe_and_leaves_the_network_alone(scorer):
    trunk = scorer_trunk(scorer)
    before = {key: value.clone() for key, value in scorer.network.state_dict().items()}
    trained = train_classifier(tones(4), TrainingSettings("tone", epochs=2), trunk)
    second = train_classifier(tones(4), TrainingSettings("hour", epochs=2), trained.classifier)
    assert second.classifier.trunk is trunk and second.classifier.heads == {"hour": ["dark", "light"]}
    assert all(torch.equal(value, before[key]) for key, value in scorer.network.state_dict().items())
    assert all(parameter.grad is None for parameter in scorer.network.parameters())


def test_a_file_with_its_own_network_refuses_a_backbone(scorer):
    with pytest.raises(EditingError, match="unwire the backbone"):
        load_image_classifier(FOLDER / "classifier.safetensors", backbone=scorer_trunk(scorer))


def test_ended_while_features_are_taken_it_keeps_what_it_has(scorer):
    told = []

    def stop(progress):
        told.append(progress)
        return True

    ended = train_classifier(tones(4), TrainingSettings("tone", batch_size=4), scorer_trunk(scorer), callback=stop)
    assert ended.stopped and ended.best_epoch == 1 and [step.step for step in told] == [1, 2, 3]


def own(names=("a", "b"), attribute="letter", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
        layer = torch.nn.Linear(4 * 36, len(names))
    return ImageClassifier(trunk, [layer], {attribute: list(names)}, (8, 8), (0.5,) * 3, (0.5,) * 3, "own")


def test_two_as_one_answer_as_each_and_the_first_is_what_is_learned_from(scorer):
    first, second, images = own(), classifier_from_texts(scorer, ASKED, "demo"), random(2, 3, 20, 24)
    both = joined(first, second)
    assert isinstance(both, JoinedClassifier) and list(both.heads) == ["letter", "glasses", "tone"]
    for attribute, logits in (first.logits(images) | second.logits(images)).items():
        assert torch.equal(both.logits(images)[attribute], logits)
    assert torch.equal(both.features(images), first.features(images)) and both.size == (8, 8)
    assert torch.equal(both.class_weights("tone"), second.class_weights("tone"))
    assert both.fingerprint != joined(own(seed=1), second).fingerprint
    assert "letter: a, b; glasses: no, yes" in both.describe()
    assert "sees 8 x 8 pixels, normalised to -1..1; the further attributes: sees 128 x 128" in both.describe()
    with pytest.raises(EditingError, match="Both classifiers know glasses"):
        joined(both, second)
    merged = joined(second, classifier_from_texts(scorer, {"age": {"y": "young", "o": "old"}}, "demo"))
    assert type(merged) is FeatureClassifier and list(merged.heads) == ["glasses", "tone", "age"]


def test_lines_of_attributes():
    found = attributes_in(" hair : red hair | black hair|blond \n\nage: young|old")
    assert found == {
        "hair": {name: name for name in ("red hair", "black hair", "blond")},
        "age": {"young": "young", "old": "old"},
    }
    for line in ("hair", "hair: red", ": a | b", "hair: red | ", "hair: a | b\nhair: c | d", "x" * 900):
        with pytest.raises(EditingError) as caught:
            attributes_in(line)
        assert len(str(caught.value)) <= 300


def test_texts_that_cannot_be_told_apart(scorer):
    for texts in ({"no": "a", "yes": "a"}, {"no": "", "yes": "a"}, {"yes": "a"}):
        with pytest.raises(EditingError):
            classifier_from_texts(scorer, {"x": texts}, "demo")

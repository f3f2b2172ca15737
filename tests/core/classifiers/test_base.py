"""The common shape of classifiers: preparation, logits, features, gradients, two classes of one logit, fingerprints."""

import math

import pytest
import torch
from torch import nn

from semantic_editing.core.classifiers.base import ImageClassifier, two_classes
from semantic_editing.core.errors import EditingError
from semantic_editing.core.models.transformers_files import NORMALISATIONS

MEAN, STD = NORMALISATIONS["imagenet"]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def linear(rows, columns, seed=1):
    layer = nn.Linear(columns, rows)
    layer.weight.data = random(rows, columns, seed=seed) - 0.5
    layer.bias.data = random(rows, seed=seed + 1) - 0.5
    return layer


def classifier(last=None, heads=None, size=(2, 3), mean=MEAN, std=STD, name="toy", **options):
    """Features are the 18 normalised pixel values themselves."""
    heads = {"hair": ["red", "black", "none"]} if heads is None else heads
    last = [linear(len(names), 18, seed=7 + i) for i, names in enumerate(heads.values())] if last is None else last
    return ImageClassifier(nn.Flatten(), last, heads, size, mean, std, name, **options)


def test_logits_by_hand():
    net, images = classifier(), random(4, 3, 2, 3)
    (layer,) = net.last
    for image, row in zip(images.tolist(), net.logits(images)["hair"].tolist(), strict=True):
        pixels = [(image[c][y][x] - MEAN[c]) / STD[c] for c in range(3) for y in range(2) for x in range(3)]
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        expected = [sum(w * p for w, p in zip(weights, pixels, strict=True)) + bias for weights, bias in rows]
        assert row == pytest.approx(expected, abs=1e-4)


def test_any_input_size_is_resized_to_its_own():
    net, half = classifier(), random(2, 3, 2, 3)
    doubled = half.repeat_interleave(2, 2).repeat_interleave(2, 3)  # constant 2x2 blocks: their means are known
    images = torch.full((1, 3, 7, 5), 0.25)
    torch.testing.assert_close(net.prepare(images), classifier().prepare(torch.full((1, 3, 2, 3), 0.25)))
    assert net.prepare(doubled).shape == (2, 3, 2, 3)
    area = torch.nn.functional.avg_pool2d(doubled, 2)
    torch.testing.assert_close(area, half)
    assert (net.prepare(doubled) - net.prepare(half)).abs().max() < (
        net.prepare(half).amax() - net.prepare(half).amin()
    ) / 2


def test_the_gradient_reaches_the_pixels_and_no_weight():
    net = classifier(size=(2, 3))
    images = random(1, 3, 5, 6).double().requires_grad_()
    loss = net.logits(images)["hair"][0, 1]
    (gradient,) = torch.autograd.grad(loss, [images])
    step = 1e-2  # the map is affine in the image, so a wide difference is exact
    for place in ((0, 0, 0, 0), (0, 1, 2, 3), (0, 2, 4, 5)):
        moved = images.detach().clone()
        moved[place] += step
        assert float(net.logits(moved)["hair"][0, 1] - loss.detach()) / step == pytest.approx(
            float(gradient[place]), abs=2e-4
        )
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert not net.training


def test_features_and_class_weights_make_the_logits():
    net, images = classifier(), random(3, 3, 4, 4)
    features = net.features(images)
    expected = features @ net.class_weights("hair").T + net.last[0].bias
    torch.testing.assert_close(net.logits(images)["hair"], expected)
    assert net.class_weights("hair").shape == (3, features.shape[1])


def test_one_logit_is_two_classes():
    single = linear(1, 18)
    net = classifier(last=[single], heads={"beard": ["no", "yes"]})
    images = random(5, 3, 2, 3)
    probability = net.logits(images)["beard"].softmax(1)
    for row, features in zip(probability.tolist(), net.features(images), strict=True):
        sigmoid = 1 / (1 + math.exp(-float(single(features).detach())))
        assert row == pytest.approx([1 - sigmoid, sigmoid], abs=1e-6)
    weights = net.class_weights("beard")
    torch.testing.assert_close(weights[0], -weights[1])
    torch.testing.assert_close(weights[1] - weights[0], single.weight[0])
    assert two_classes(nn.Linear(3, 1, bias=False)).bias is None


def test_the_fingerprint_knows_everything_that_matters():
    base = classifier()
    changed = linear(3, 18, seed=7)
    changed.weight.data[1, 2] += 1e-6
    others = [
        classifier(last=[changed]),
        classifier(heads={"hair": ["black", "red", "none"]}),
        classifier(heads={"wig": ["red", "black", "none"]}),
        classifier(mean=(0.5, 0.5, 0.5)),
        classifier(interpolation="bicubic"),
    ]
    prints = [net.fingerprint for net in (base, *others)]
    assert len(set(prints)) == len(prints)
    assert classifier(name="renamed").fingerprint == base.fingerprint
    assert len(base.fingerprint) == 16 and int(base.fingerprint, 16) >= 0


def test_names_that_do_not_exist_are_refused_with_those_that_do():
    net = classifier()
    with pytest.raises(EditingError, match="knows no attribute 'hat'; use one of: hair"):
        net.class_weights("hat")
    with pytest.raises(EditingError, match="no class 'blue' of hair; use one of: red, black, none"):
        net.class_index("hair", "blue")
    assert net.class_index("hair", "none") == 2
    assert "hair: red, black, none" in net.describe() and "3 x 2 pixels" in net.describe()


def test_the_normalisation_is_declared_by_name_or_in_figures():
    imagenet = classifier(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert "normalised to imagenet" in imagenet.describe()
    assert "normalised to -1..1" in classifier(mean=(0.5,) * 3, std=(0.5,) * 3).describe()
    odd = classifier(mean=(0.1, 0.25, 0.3), std=(0.5, 1.0, 2.0))
    assert "mean 0.1 0.25 0.3, std 0.5 1 2" in odd.describe()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(EditingError, match="needs \\[batch, 3, height, width\\]"):
        classifier().logits(torch.zeros(shape))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"heads": {"hair": ["red"]}, "last": [nn.Linear(18, 2)]}, "only one class"),
        ({"heads": {"hair": ["red", "red"]}, "last": [nn.Linear(18, 2)]}, "same name"),
        ({"heads": {"hair": ["red", "black"]}, "last": [nn.Linear(18, 3)]}, "has 3 classes of hair but 2 names"),
        ({"heads": {}}, "one list of classes for each"),
        ({"std": (0.0, 1.0, 1.0)}, "cannot be used"),
        ({"size": (0, 3)}, "cannot be used"),
    ],
)
def test_classifiers_that_cannot_work_are_refused(wrong, said):
    with pytest.raises(EditingError, match=said):
        classifier(**wrong)


def test_a_last_layer_that_is_not_linear_has_logits_but_no_features():
    net = classifier(last=[nn.Sequential(nn.Linear(18, 3), nn.Softplus())])
    assert net.logits(random(1, 3, 2, 3))["hair"].shape == (1, 3)
    with pytest.raises(EditingError, match="does not end in a linear layer"):
        net.features(random(1, 3, 2, 3))
    with pytest.raises(EditingError, match="does not end in a linear layer"):
        net.class_weights("hair")


IMAGENET = [
    "tench, Tinca tinca",
    "goldfish, Carassius auratus",
    "crane",
    "crane (2)",
    "hen",
    "missile, rocket",
    "missile",
]


def many(names):
    layer = torch.nn.Linear(4, len(names))
    return ImageClassifier(torch.nn.Flatten(), [layer], {"thing": names}, (1, 1), (0.5,) * 3, (0.5,) * 3, "many.pth")


def test_a_class_is_found_by_one_of_its_names_by_its_number_or_by_the_whole():
    net = many(IMAGENET)
    for label, column in {
        "tench": 0, "Tinca tinca": 0, " tinca TINCA": 0, "tench, Tinca tinca": 0, "goldfish": 1, "crane": 2,
        "crane (2)": 3, "4": 4, "HEN": 4, "rocket": 5, "missile": 6,
    }.items():  # fmt: skip
        assert net.class_index("thing", label) == column, label
    with pytest.raises(EditingError, match="no class '7' of thing"):
        net.class_index("thing", "7")
    with pytest.raises(EditingError, match=r"2 classes called 'Missile': missile, rocket, missile; write the whole"):
        net.class_index("thing", "Missile")
    with pytest.raises(EditingError, match=r"no class 'gold' of thing; use one of: goldfish, Carassius auratus\."):
        net.class_index("thing", "gold")


def test_a_list_of_classes_may_hold_names_that_have_commas():
    net = many(IMAGENET)
    assert net.classes_in("thing", "tench, Tinca tinca, hen") == ["tench, Tinca tinca", "hen"]
    assert net.classes_in("thing", "Goldfish\nhen, 0,tench") == [IMAGENET[1], "hen", IMAGENET[0]]
    assert net.classes_in("thing", " ,\n") == []
    with pytest.raises(EditingError, match="no class 'cow'"):
        net.classes_in("thing", "hen, cow")


def test_lists_in_sentences_end_after_ten_names_and_stay_short():
    short, long = many([f"c{at}" for at in range(1000)]), many([f"{at} {'long name ' * 20}" for at in range(1000)])
    with pytest.raises(EditingError) as caught:
        short.class_index("thing", "z")
    assert str(caught.value).endswith("c8, c9 ... (1000 in all).") and "c10" not in str(caught.value)
    for net, label in ((short, "z" * 500), (long, "z" * 500), (long, "long name")):
        for wrong, given in ((net.class_index, ("thing", label)), (net.index, (label,))):
            with pytest.raises(EditingError) as caught:
                wrong(*given)
            assert len(str(caught.value)) <= 300
    assert len(long.describe()) < 500

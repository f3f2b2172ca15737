"""What an edited picture is worth: the class asked for, and the other attributes as they were."""

import pytest
import torch
from torch import nn

from semantic_editing.core.caso.training import Objective
from semantic_editing.core.classifiers.base import ImageClassifier
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.caso.tiny_caso import tiny_trainer
from semantic_editing.tests.core.tiny_models import tiny_latent, tiny_unet

HEADS = {"red": ["no", "yes"], "green": ["low", "middle", "high"], "blue": ["no", "yes"]}


def colour_judge(heads=HEADS):
    """Each head is a random linear layer on the mean colour."""
    trunk = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(3, len(names)) for names in heads.values()]
    for layer in layers:
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * 3)
        layer.bias.data.zero_()
    return ImageClassifier(trunk, layers, heads, (8, 8), (0.0,) * 3, (1.0,) * 3, "colours")


def pictures(seed):
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_change_of_others_is_the_mean_kullback_leibler_divergence_of_the_other_heads():
    classifier = colour_judge()
    objective = Objective(classifier, "green", ("high",))
    before, after = pictures(1), pictures(2)
    verdict = objective(after, torch.zeros(4).long(), objective.other_attributes(before))
    expected = 0.0
    for name in ("red", "blue"):
        p, q = (classifier.logits(images)[name].softmax(1) for images in (before, after))
        expected += float((p * (p / q).log()).sum(1).mean()) / 2
    assert float(verdict.others) == pytest.approx(expected, rel=1e-4) and expected > 1e-4
    chances = classifier.logits(after)["green"].softmax(1)
    assert float(verdict.classification) == pytest.approx(float(-chances[:, 2].log().mean()), rel=1e-5)
    assert verdict.right.tolist() == (chances.argmax(1) == 2).tolist()
    assert float(objective(before, torch.zeros(4).long(), objective.other_attributes(before)).others) == pytest.approx(
        0.0, abs=1e-6
    )


def test_a_classifier_of_one_attribute_has_no_others_and_those_of_another_classifier_are_refused():
    alone = Objective(colour_judge({"green": HEADS["green"]}), "green", ("low",))
    assert float(alone(pictures(2), torch.zeros(4).long(), alone.other_attributes(pictures(1))).others) == 0.0
    with pytest.raises(EditingError, match="one classifier"):
        Objective(colour_judge(), "green", ("low",))(pictures(2), torch.zeros(4).long(), torch.zeros(4, 3))


def test_training_that_keeps_the_others_changes_them_less():
    network, latents, validation = tiny_unet(), tiny_latent(5, seed=3), tiny_latent(2, seed=4)
    changes = []
    for weight in (0.0, 30.0):
        options = {
            "steps": 12,
            "check_every": 0,
            "learning_rate": 0.3,
            "noise_level": 0.9,
            "augment": 0.0,
            "flip": False,
            "reconstruction": 0.0,
        }
        trainer = tiny_trainer(
            latents,
            validation,
            network=network,
            classifier=colour_judge(),
            attribute="red",
            attribute_preservation=weight,
            **options,
        )
        trainer.run()
        (part,) = trainer._validation_batches
        x, sigma, unconditional = part.x, part.sigma, part.unconditional
        with torch.no_grad():
            edited, plain = (
                trainer.decoder(latent).clamp(0, 1)
                for latent in (
                    trainer._guided(
                        unconditional, trainer._conditional(x, sigma, torch.zeros(2).long(), trainer.vectors)
                    ),
                    unconditional,
                )
            )
        objective = trainer.objective
        changes.append(float(objective(edited, torch.zeros(2).long(), objective.other_attributes(plain)).others))
        assert trainer.denoiser.evaluations.forward <= 2 * 2 * 12 + 2 * 2  # keeping costs no evaluation
    assert changes[1] < 0.8 * changes[0]

"""CASO's claims as figures, on cases whose answer is known."""

import pytest
import torch
from torch import nn

from semantic_editing.core.caso.analysis import (
    centred_class_means,
    class_mean_cosines,
    order_effect,
    reconstruction_errors,
)
from semantic_editing.core.caso.editing import Window, semantic_edit
from semantic_editing.core.caso.embedding import GuidanceTerm, SemanticEmbedding
from semantic_editing.core.classifiers.base import ImageClassifier
from semantic_editing.core.errors import EditingError
from semantic_editing.core.spdinv.invert import invert
from semantic_editing.core.token_vectors import empty_condition
from semantic_editing.tests.core.caso.tiny_caso import tiny_vector_encoder
from semantic_editing.tests.core.oracles import GaussianDenoiser
from semantic_editing.tests.core.tiny_models import tiny_denoiser, tiny_latent

COLOURS = {"red": (1.0, 0.2, 0.2), "green": (0.2, 1.0, 0.2), "blue": (0.2, 0.2, 1.0)}


def colour_classifier():
    """Its features are the mean colour of the picture."""
    trunk = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ImageClassifier(
        trunk, [nn.Linear(3, 3)], {"colour": list(COLOURS)}, (8, 8), (0.0,) * 3, (1.0,) * 3, "colours"
    )


def plain(colour, count=3):
    return torch.tensor(colour).view(1, 3, 1, 1).expand(count, 3, 8, 8).clone()


def test_class_means_are_centred_with_equal_weight_for_each_class():
    means = centred_class_means({"a": torch.tensor([[1.0, 0.0], [3.0, 0.0]]), "b": torch.tensor([[0.0, 4.0]])})
    assert means["a"].tolist() == [1.0, -2.0] and means["b"].tolist() == [-1.0, 2.0]


def test_cosine_is_one_for_true_edits_whatever_their_strength_and_falls_when_classes_are_confused():
    real = {label: plain(colour) for label, colour in COLOURS.items()}
    faint = {label: 0.5 + 0.1 * plain(colour, 5) for label, colour in COLOURS.items()}
    assert class_mean_cosines(colour_classifier(), real, faint, batch=2) == pytest.approx(
        dict.fromkeys(COLOURS, 1.0), abs=1e-5
    )
    swapped = {"red": real["green"], "green": real["red"], "blue": real["blue"]}
    cosines = class_mean_cosines(colour_classifier(), real, swapped)
    assert cosines == pytest.approx({"red": -0.5, "green": -0.5, "blue": 1.0}, abs=1e-5)
    same = dict.fromkeys(COLOURS, real["red"])
    assert class_mean_cosines(colour_classifier(), real, same) == pytest.approx(dict.fromkeys(COLOURS, 0.0), abs=1e-5)
    with pytest.raises(EditingError, match="same classes"):
        class_mean_cosines(colour_classifier(), real, {"red": real["red"]})


def test_reconstruction_error_is_that_of_the_closed_form_and_guidance_to_the_truth_lowers_it():
    # Plain DDIM on N(0, s^2) shrinks the amplitude; guidance towards a wider Gaussian counteracts it.
    denoiser = GaussianDenoiser(0.3)
    latents = 0.3 * tiny_latent(3)
    plain_error, guided_error, unguided = reconstruction_errors(
        denoiser, latents, torch.ones(1, 1, 1), [GuidanceTerm(torch.full((1, 1, 1), 1.1), 2.0)], 50, (0.5, 0.0)
    )
    expected = (1 - 0.9103) ** 2 * latents.square().flatten(1).mean(1)  # amplitude of a consistent 50-step DDIM
    torch.testing.assert_close(plain_error, expected, rtol=0.02, atol=1e-6)
    assert bool((guided_error < plain_error).all())
    torch.testing.assert_close(unguided, plain_error)


def test_order_effect_is_the_relative_distance_of_the_two_orders():
    denoiser, vector_encoder = tiny_denoiser(), tiny_vector_encoder()
    one, two = (
        SemanticEmbedding({"clip_l": torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))})
        for seed in (1, 2)
    )
    uncond, window = empty_condition(vector_encoder), Window(1.0)
    inversion = invert(denoiser, tiny_latent(2), uncond, 3, "ddim")
    assert order_effect(denoiser, inversion, vector_encoder, [one, one], 4.0, window).tolist() == [0.0, 0.0]
    effect = order_effect(denoiser, inversion, vector_encoder, [one, two], 4.0, window)
    edits = [
        semantic_edit(
            denoiser, inversion, uncond, [GuidanceTerm(vector_encoder({"clip_l": torch.cat(pair)[None]}), 4.0)], window
        )
        for pair in ((one.vectors["clip_l"], two.vectors["clip_l"]), (two.vectors["clip_l"], one.vectors["clip_l"]))
    ]
    base = semantic_edit(denoiser, inversion, uncond, [], window)
    for row in range(2):
        sizes = [float((edit[row] - base[row]).norm()) for edit in edits]
        assert float(effect[row]) == pytest.approx(
            float((edits[0][row] - edits[1][row]).norm()) / (sum(sizes) / 2), rel=1e-4
        )
    assert float(effect.min()) > 0
    with pytest.raises(EditingError, match="two or more"):
        order_effect(denoiser, inversion, vector_encoder, [one], 4.0, window)

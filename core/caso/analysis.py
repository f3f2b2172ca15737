"""Measures of what the paper claims: class means (Proposition 2), reconstruction (section 4.4), order (section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..classifiers.base import ImageClassifier
from ..denoiser import Denoiser
from ..errors import EditingError
from ..inversion import Inversion
from ..spdinv.invert import invert
from ..token_vectors import TokenVectorEncoder, empty_condition
from .editing import WHOLE, Window, semantic_edit
from .embedding import GuidanceTerm, SemanticEmbedding, concatenate, scaled_terms


def centred_class_means(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean feature of each class minus the mean over classes, class -> ``[F]`` (Definition 1; every class weighs the
    same).

    Args:
        features: class -> ``[N, F]``, at least one row each.

    Raises:
        EditingError: fewer than two classes, or an empty one.
    """
    if len(features) < 2 or any(not len(rows) for rows in features.values()):
        raise EditingError("Class means need at least two classes with at least one picture each; give more pictures.")
    means = {label: rows.double().mean(0) for label, rows in features.items()}
    centre = torch.stack(list(means.values())).mean(0)
    return {label: mean - centre for label, mean in means.items()}


@torch.no_grad()
def class_mean_cosines(
    classifier: ImageClassifier, real: Mapping[str, Tensor], edited: Mapping[str, Tensor], batch: int = 16
) -> dict[str, float]:
    """Cosine between the centred class means of edited and of real images in the classifier's features (Proposition 2,
    Eq. 4, 5).

    1 is what the proposition promises of converged embeddings. 0 where edits of all classes look alike to the
    classifier.

    Args:
        real, edited: class -> images ``[N, 3, H, W]`` in 0..1, the same classes; ``edited[a]`` are any pictures edited
            towards a.
        batch: images at a time.

    Raises:
        EditingError: different classes, too few, or a classifier whose features cannot be read.
    """
    if set(real) != set(edited):
        raise EditingError(
            f"Real pictures are of {sorted(real)} and edited ones of {sorted(edited)}; give the same classes."
        )

    def features(images: Tensor) -> Tensor:
        return torch.cat([classifier.features(part).cpu() for part in images.split(batch)])

    means = [
        centred_class_means({label: features(images) for label, images in groups.items()}) for groups in (real, edited)
    ]
    return {
        label: float(torch.nn.functional.cosine_similarity(means[0][label], means[1][label], dim=0)) for label in real
    }


def reconstruction_errors(
    denoiser: Denoiser,
    latents: Tensor,
    uncond: object,
    terms: Sequence[GuidanceTerm],
    steps: int,
    factors: Sequence[float] = (1.0,),
    window: Window = WHOLE,
) -> Tensor:
    """Mean square error of plain DDIM inversion and reconstruction, without and with guidance (section 4.4).

    The paper finds that guidance by the class an image already has makes its reconstruction better.

    Args:
        latents: ``[B, C, h, w]`` clean.
        terms: embeddings of the images' own class.
        factors: of the terms' strengths.
        window: the steps of the reconstruction that are guided; it starts where the window does.

    Returns:
        ``[1 + factors, B]``, the first row without guidance.
    """
    inversion = invert(denoiser, latents, uncond, steps, "ddim")
    rebuilt = [
        semantic_edit(denoiser, inversion, uncond, scaled_terms(terms, factor), window) for factor in (0.0, *factors)
    ]
    return torch.stack([(latent - latents).square().flatten(1).mean(1) for latent in rebuilt])


def order_effect(
    denoiser: Denoiser,
    inversion: Inversion,
    vector_encoder: TokenVectorEncoder,
    embeddings: Sequence[SemanticEmbedding],
    strength: float,
    window: Window,
) -> Tensor:
    """How much the order of concatenated embeddings matters, ``[B]``: distance of the edits in both orders, relative to
    their size.

    0 is not at all (what the paper says, section 4.2); 1 as much as the edit itself. The text encoder's attention is
    causal and its positions differ, so 0 is not to be expected.

    Raises:
        EditingError: fewer than two embeddings, or see :func:`~.editing.semantic_edit`.
    """
    if len(embeddings) < 2:
        raise EditingError("The order of one embedding says nothing; give two or more.")
    uncond = empty_condition(vector_encoder)
    base = semantic_edit(denoiser, inversion, uncond, [], window)
    edits = []
    for order in (list(embeddings), list(reversed(embeddings))):
        term = GuidanceTerm(concatenate(order).condition(vector_encoder), strength)
        edits.append(semantic_edit(denoiser, inversion, uncond, [term], window))
    sizes = [(edit - base).flatten(1).norm(dim=1) for edit in edits]
    return (edits[0] - edits[1]).flatten(1).norm(dim=1) / (0.5 * (sizes[0] + sizes[1])).clamp_min(1e-12)

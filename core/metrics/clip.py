"""What CLIP says of an edit: how well a picture fits a text, and whether it moved where the texts point.

Any :class:`~..models.clip.ClipScorer` serves (PIE-Bench takes ViT-L/14); figures of different CLIPs do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..models.clip import ClipScorer
from .checks import check_mask, check_pair

Texts = str | Sequence[str]
#: Length of a difference of unit features below which two texts or pictures are the same to a CLIP.
SAME = 1e-4


def text_similarity(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """CLIP similarity ``[B]``: 100 times the cosine between image and text embeddings ``[B, D]``.

    SPDInv applies it to *decoded noise* too: noise that still looks like its caption carries the source prompt along,
    which is what makes edits fail. Gaussian noise is the reference to come close to.
    """
    return 100 * functional.cosine_similarity(image_embeds.double(), text_embeds.double(), dim=-1)


@torch.no_grad()
def clip_score(scorer: ClipScorer, images: Tensor, texts: Texts, mask: Tensor | None = None) -> Tensor:
    """How well ``images [B, 3, H, W]`` in 0..1 fit ``texts``, ``[B]``: 100 times the cosine, negative ones too.

    Args:
        texts: one for all images, or one for each.
        mask: ``[B or 1, 1, H, W]`` in 0..1, the edited part: everything else is black, as PIE-Bench does it for its
            "edited" score. None: the whole images.

    Raises:
        EditingError: another number of texts, an empty text, or images or a mask that cannot be used.
    """
    if mask is not None:
        images = images * check_mask(images, mask).to(images.dtype)
    return text_similarity(_image_features(scorer, images), _text_features(scorer, texts, len(images)))


@torch.no_grad()
def directional_similarity(
    scorer: ClipScorer, before: Tensor, after: Tensor, source_texts: Texts, target_texts: Texts
) -> Tensor:
    """Cosine ``[B]`` in -1..1 between the way the pictures moved and the way from source to target text, in CLIP's
    space (Gal et al., StyleGAN-NADA, arXiv 2108.00946); 0 where the picture did not move.

    Args:
        before, after: ``[B, 3, H, W]`` in 0..1.
        source_texts, target_texts: what ``before`` shows and ``after`` should; one for all, or one for each.

    Raises:
        EditingError: as for :func:`clip_score`, pictures of different shapes, or texts that mean the same to this CLIP.
    """
    check_pair(before, after)
    moved = _image_features(scorer, after) - _image_features(scorer, before)
    wanted = _text_features(scorer, target_texts, len(after)) - _text_features(scorer, source_texts, len(before))
    if float(wanted.norm(dim=1).min()) < SAME:
        raise EditingError("Source and target text mean the same to this CLIP; say what should be different.")
    cosine = functional.cosine_similarity(moved, wanted, dim=1)
    return torch.where(moved.norm(dim=1) < SAME, 0.0, cosine)


@torch.no_grad()
def clip_accuracy(scorer: ClipScorer, after: Tensor, source_texts: Texts, target_texts: Texts) -> Tensor:
    """1 where ``after [B, 3, H, W]`` fits the target text better than the source text, else 0, ``[B]`` (pix2pix-zero's
    CLIP-Acc is the mean).

    Raises:
        EditingError: as for :func:`clip_score`.
    """
    features = _image_features(scorer, after)
    target, source = (
        functional.cosine_similarity(features, _text_features(scorer, texts, len(after)), dim=1)
        for texts in (target_texts, source_texts)
    )
    return (target > source).double()


def _image_features(scorer: ClipScorer, images: Tensor) -> Tensor:
    return scorer.image_features(images).cpu().double()


def _text_features(scorer: ClipScorer, texts: Texts, count: int) -> Tensor:
    """``[count, P]``; a single text is read once."""
    given = [texts] if isinstance(texts, str) else list(texts)
    if not isinstance(texts, str) and len(given) != count:
        raise EditingError(f"There are {len(given)} texts for {count} images; give one for all or one for each.")
    return scorer.text_features(given).cpu().double().expand(count, -1)

"""What a mapper is told by texts: the difference of CLIP features between a target text and a source text.

DeltaEdit (section 4.1, Eq. 4) trains on differences of pictures and edits with differences of texts. Its published code
does not embed a text as typed but in each of 79 templates ("a photo of a {}.", "a drawing of the {}.", ...): each
feature is made unit length, they are averaged, and the mean is made unit length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..metrics.clip import SAME
from ..models.clip import ClipScorer, check_texts, embed_texts

NONE, IMAGENET = "none", "imagenet"
#: The templates that CLIP was measured on ImageNet with, from the notebook Prompt_Engineering_for_ImageNet of OpenAI's
#: CLIP repository (MIT, Radford et al., arXiv 2103.00020), without the one in the plural ("a photo of many {}."), as in
#: StyleCLIP and DeltaEdit: 79.
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
TEMPLATES = {NONE: ("{}",), IMAGENET: IMAGENET_TEMPLATES}
#: How many targets one call may name.
MOST_TARGETS = 64


class TextDelta(NamedTuple):
    """One difference ``[P]`` between two texts' unit features, and the same made ``unit`` length; zeros stay zeros.

    The mapper is told ``unit``; how far texts lie apart (``difference``) scales DeltaEdit's disentanglement threshold.
    """

    difference: Tensor
    unit: Tensor


class TextDeltas(NamedTuple):
    """Several of them: the target ``names``, and ``difference`` and ``unit``, ``[targets, P]`` each."""

    names: list[str]
    difference: Tensor
    unit: Tensor


def text_features(scorer: ClipScorer, text: str, templates: str = NONE) -> Tensor:
    """Unit features ``[P]`` of a text: the mean over its templates, on the CPU.

    Raises:
        EditingError: an empty text, or templates that are none of :data:`TEMPLATES`.
    """
    check_texts([text])
    if templates not in TEMPLATES:
        raise EditingError(f"The templates are {templates[:40]!r}; use {' or '.join(TEMPLATES)}.")
    plain = text.strip()  # str.format would read braces that a person typed
    frames = [frame.replace("{}", plain) for frame in TEMPLATES[templates]]
    features = functional.normalize(embed_texts(scorer, frames).double(), dim=1)
    return functional.normalize(features.mean(0), dim=0).float()


def text_delta(scorer: ClipScorer, source: str, target: str, templates: str = NONE) -> TextDelta:
    """From ``source`` to ``target``. The same text twice, or two that are the same to this CLIP, give exactly zero.

    Raises:
        EditingError: see :func:`text_features`.
    """
    names, difference, unit = text_deltas(scorer, source, target, templates)
    if len(names) != 1:
        raise EditingError(f"There are {len(names)} target texts where one is needed; write one line.")
    return TextDelta(difference[0], unit[0])


def text_deltas(scorer: ClipScorer, source: str, targets: str, templates: str = NONE) -> TextDeltas:
    """From ``source`` to each line of ``targets``; ``source`` is one line for all, or one for each target.

    Raises:
        EditingError: no target, too many, another number of sources, or see :func:`text_features`.
    """
    names, sources = _lines(targets), _lines(source)
    if not names or not sources:
        what = "target" if not names else "source"
        raise EditingError(f"The {what} text is empty; write what the picture shows and what it should show instead.")
    if len(names) > MOST_TARGETS:
        raise EditingError(f"There are {len(names)} target texts; write {MOST_TARGETS} lines at most.")
    if len(sources) not in (1, len(names)):
        raise EditingError(
            f"There are {len(sources)} source texts for {len(names)} target texts; write one line for all, or one for "
            "each."
        )
    if len(sources) == 1:
        sources = sources * len(names)
    features = {text: text_features(scorer, text, templates) for text in dict.fromkeys((*sources, *names))}
    rows = [difference_of(features[a], features[b]) for a, b in zip(sources, names, strict=True)]
    difference = torch.stack(rows)
    return TextDeltas(names, difference, functional.normalize(difference, dim=1))


def difference_of(source: Tensor, target: Tensor) -> Tensor:
    """``target - source`` of unit features ``[P]``, exactly zero where they are the same to the CLIP: made unit length,
    what is left of rounding would be an edit of full strength to nowhere."""
    difference = target - source
    return difference if float(difference.norm()) >= SAME else torch.zeros_like(difference)


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]

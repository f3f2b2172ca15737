"""Edit one picture from a source word to a target word with any Stable Diffusion checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import CutTextWarning, EditingError
from ..spdinv.invert import spdinv
from ..spdinv.solvers import SPDInvSettings
from .edit_direction import TOKENS, EditDirection, sentence_direction
from .guided_edit import CrossAttentionGuidance, CrossAttentionSettings
from .sentences import expand_words, noun_phrase

NO_CAPTION = (
    "Nothing says what the picture shows; give the word that changes (--source), a --caption, or a --captioner."
)


class TextToImageModel(Protocol):
    """A whole text-to-image model, as ``core.diffusers.checkpoint.Checkpoint`` is one.

    Attributes:
        encoder_name: of its text encoder, as edit directions carry it.
    """

    encoder_name: str

    def denoiser(self) -> Denoiser:
        """A fresh denoiser, its evaluations counted from 0."""
        ...

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Texts -> ``(embeds [B, L, D], pooled [B, P] or None)``."""
        ...

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text from its start to its end token, without padding."""
        ...

    def cond(self, embeds: Tensor, pooled: Tensor | None) -> Any:
        """The denoiser's conditioning from what :meth:`encode_text` returns."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in 0..1 -> scaled latent ``[B, C, h, w]``."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent ``[B, C, h, w]`` -> images ``[B, 3, H, W]`` in 0..1."""
        ...


@dataclass(frozen=True)
class WordEdit:
    """What to change and how.

    Attributes:
        source: a word or phrase, see :func:`~.sentences.expand_words`; None takes nothing away: the target is added to
            the caption.
        target: a word or phrase.
        caption: of the picture; None is "a photo of" the source.
        steps: of the inversion and of the edit.
        inversion, guidance: how the picture is inverted, and how the edit is sampled.
        strength: of the direction, -3..3.
        sentences, seed: of the built-in sentences.
        direction_files: a saved direction, or two mean embeddings (source, target), instead of the words' own
            direction.
    """

    source: str | None
    target: str
    caption: str | None = None
    steps: int = 50
    inversion: SPDInvSettings = field(default_factory=SPDInvSettings)
    guidance: CrossAttentionSettings = field(default_factory=CrossAttentionSettings)
    strength: float = 1.0
    sentences: int = 256
    seed: int = 0
    direction_files: tuple[Path, ...] = ()


def edit_by_words(
    model: TextToImageModel, image: Tensor, request: WordEdit, report: Callable[[str], None] = lambda _: None
) -> tuple[Tensor, str]:
    """Edit ``image [1, 3, H, W]`` in 0..1: ``(edited image of the same shape, a line on cost and exactness)``.

    Args:
        report: told in a line what comes next.

    Raises:
        EditingError: bad words, files or settings, nothing that says what the picture shows, out of memory, or a model
            that returns NaN.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CutTextWarning)  # the report tells of a caption that is cut
            return _edit(model, image, request, report)
    except torch.OutOfMemoryError as error:
        raise EditingError(
            "The device ran out of memory; use a smaller --size, --dtype float16 or --device cpu."
        ) from error


def _edit(
    model: TextToImageModel, image: Tensor, request: WordEdit, report: Callable[[str], None]
) -> tuple[Tensor, str]:
    caption = _caption(request)
    _tell_if_cut(model, caption, report)
    direction = _direction(model, request, caption, report)
    embeds, pooled = model.encode_text([caption])
    source_cond = model.cond(embeds, pooled)
    target_cond = model.cond(*direction.apply(embeds, pooled, request.strength))
    denoiser = model.denoiser()
    report(f'inverting with the caption "{caption}", {request.steps} steps')
    latent = model.encode_image(image)
    inversion = spdinv(denoiser, latent, source_cond, request.steps, request.inversion)
    report(f"editing along {direction.describe()}")
    edit = CrossAttentionGuidance(denoiser, inversion, source_cond, target_cond, settings=request.guidance)
    edited = edit.run(inversion.steps)
    spent = denoiser.evaluations
    worst = float(inversion.residuals.max())
    residual = "" if worst != worst else f"; worst inversion residual {worst:.1e}"
    cost = f"{spent.forward} network evaluations and {spent.backward} backward passes{residual}"
    return model.decode(edited).cpu(), cost


def _caption(request: WordEdit) -> str:
    """What the picture is inverted with."""
    if request.caption:
        return request.caption
    if request.source is None:
        raise EditingError(NO_CAPTION)
    return f"a photo of {noun_phrase(' '.join(request.source.split()) or 'something')}"


def _tell_if_cut(model: TextToImageModel, text: str, report: Callable[[str], None], name: str = "the caption") -> None:
    if len(model.token_ids([text])[0]) >= TOKENS:
        report(f"{name} fills all {TOKENS} tokens that the text encoder reads; what is beyond is left out")


def _direction(
    model: TextToImageModel, request: WordEdit, caption: str, report: Callable[[str], None]
) -> EditDirection:
    """The direction of the files, or of the words."""
    files = request.direction_files
    if len(files) > 2:
        raise EditingError(
            f"There are {len(files)} direction files; give one direction, or two mean embeddings: source target."
        )
    if files:
        direction = EditDirection.load(files[-1], files[0] if len(files) == 2 else None)
        if direction.is_mean_embedding:
            raise EditingError(
                f"{files[-1].name} is the mean embedding of one word, not a direction; give two files, first the "
                "source word's."
            )
        direction.require_encoder(model.encoder_name)
        return direction
    target = " ".join(request.target.split()).strip(" ,.")
    if request.source is None:
        if not target:
            raise EditingError("The target is empty; write what the picture shall show.")
        report(f"adding {target!r} to the caption")
        added = f"{caption.rstrip(' ,.')}, {target}"
        _tell_if_cut(model, added, report, "the caption with the target")
        return sentence_direction(
            model.encode_text, [caption], [added], encoder_name=model.encoder_name, source=caption, target=added
        )
    report(f"finding the direction from {request.source!r} to {request.target!r}, {request.sentences} sentences a side")
    sources, targets = expand_words([request.source, request.target], request.sentences, request.seed)
    return sentence_direction(
        model.encode_text,
        sources,
        targets,
        tokenize=model.token_ids,
        encoder_name=model.encoder_name,
        source=request.source,
        target=request.target,
    )


def choose_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device and dtype by their names; "auto" is CUDA in fp16 where there is one, else the CPU in fp32.

    Raises:
        EditingError: an unknown or unavailable device.
    """
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        raise EditingError(f"The device {device!r} cannot be used here; use cpu.") from error
    if dtype == "auto":
        return chosen, torch.float16 if chosen.type == "cuda" else torch.float32
    precision: torch.dtype = getattr(torch, dtype)
    return chosen, precision

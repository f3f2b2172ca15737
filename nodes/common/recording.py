"""What an INVERSION was made from, as it is recorded where one is made and compared where one is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import ModelIdentity
from ...core.errors import EditingError
from ...core.inversion import Inversion, MadeFrom, Words
from ..host.conditioning import (
    conditioning_from_tensors,
    conditioning_print,
    conditioning_tensors,
    per_level_conditioning,
)
from ..host.inpainting import reads_mask
from ..host.latents import batch_index, fitted_latent, noise_mask_of
from ..host.words import encoded_text, prompt_words


def recorded(
    inversion: Inversion,
    model: Any,
    latent: dict[str, Any],
    positive: Any,
    negative: Any = None,
    cfg: float = 1.0,
    words: Words | None = None,
) -> Inversion:
    """``inversion`` with what it was made from besides its model, levels and latent.

    Args:
        latent: the LATENT it was made of.
        negative: CONDITIONING, kept where ``cfg`` is not 1.
        words: of ``positive``, see :func:`words_of`.
    """
    used = None if cfg == 1.0 else negative
    made_from = replace(
        inversion.made_from or MadeFrom(),
        cfg=cfg,
        prompt=conditioning_print(positive),
        negative="" if used is None else conditioning_print(used),
        batch_index=batch_index(latent),
    )
    mask = noise_mask_of(fitted_latent(model, latent)) if reads_noise_mask(model) else None
    return replace(
        inversion,
        cond=conditioning_tensors(positive),
        uncond=None if used is None else conditioning_tensors(used),
        made_from=made_from,
        noise_mask=mask,
        words=words,
    )


def words_of(positive: Any, clip: Any, prompt: str) -> tuple[Words | None, list[str]]:
    """The words of a CONDITIONING as a person tells them, and a remark where they are not what it says.

    Args:
        clip, prompt: a CLIP and the text of ``positive``; an empty text: nothing is told.

    Raises:
        EditingError: a text without a CLIP, or one that takes another number of tokens than ``positive``.
    """
    if not prompt.strip():
        return None, []
    if clip is None:
        raise EditingError("prompt is written and clip is not wired: wire the CLIP that encoded it, or empty prompt.")
    words = prompt_words(clip, prompt)
    told = [embeds for embeds, _ in encoded_text(clip, prompt)]
    lengths = sorted({embeds.shape[1] for embeds, _ in positive})
    if words.length not in lengths:
        raise EditingError(
            f"prompt takes {words.length} tokens and the conditioning {' or '.join(map(str, lengths))}: write the "
            "text of that conditioning into prompt, or leave prompt empty."
        )
    if any(_says_the_same(mine, theirs) for mine in told for theirs, _ in positive):
        return words, []
    return words, [
        "prompt, as this CLIP encodes it, is not what the conditioning says: engines that read the inversion's words "
        "look at the wrong ones unless it is the same text"
    ]


def _says_the_same(mine: Tensor, theirs: Tensor) -> bool:
    if mine.shape[1:] != theirs.shape[1:]:
        return False
    return torch.allclose(mine.float().cpu().expand(theirs.shape), theirs.float().cpu(), atol=1e-3)


def reads_noise_mask(model: Any) -> bool:
    """Whether the MODEL reads the noise mask of a LATENT, as inpainting models do."""
    try:
        return reads_mask(model)
    except EditingError:  # it reads another picture besides
        return False


def noise_mask_note(model: Any, latent: dict[str, Any]) -> str:
    """A line for a report where the ``noise_mask`` of a LATENT has no use for an inversion, "" otherwise."""
    if latent.get("noise_mask") is None or reads_noise_mask(model):
        return ""
    return "\nthe latent's noise mask is not used: the whole image is inverted; wire the mask into the node that edits"


def unused_latent(model: Any, latent: dict[str, Any]) -> str:
    """A line for the report of a node that takes only sizes and rows of a LATENT, where it holds more; "" otherwise."""
    parts = ["picture"] if bool(latent["samples"].count_nonzero()) else []
    parts += ["noise mask"] if latent.get("noise_mask") is not None and not reads_noise_mask(model) else []
    return f"\nthe latent's {' and '.join(parts)}: not used, images are made from noise alone" if parts else ""


def own_negative(inversion: Inversion, model: Any) -> Any:
    """The negative CONDITIONING of an INVERSION made at another cfg than 1, one for each level where it has null-text
    negatives; None for cfg 1.

    Args:
        model: the MODEL whose schedule says where each begins and ends.

    Raises:
        EditingError: it had one that it could not keep (areas, ControlNet, masks).
    """
    if inversion.cfg == 1.0:
        return None
    if inversion.uncond is None:
        raise EditingError(
            f"This inversion was made at cfg {inversion.cfg:g} and does not carry its negative prompt; wire the "
            "negative it was made with."
        )
    if inversion.null_text is not None:
        pooled = inversion.uncond.get("pooled")
        return per_level_conditioning(model, inversion.null_text, inversion.sigmas[1:], pooled)
    return conditioning_from_tensors(dict(inversion.uncond))


def changed_remarks(
    inversion: Inversion,
    identity: ModelIdentity,
    source: Any = None,
    negative: Any = None,
    cfg: float | None = None,
) -> list[str]:
    """One line for each thing that is not as it was when ``inversion`` was made.

    Args:
        source, negative: CONDITIONING wired in place of the inversion's own, None where nothing is wired.
        cfg: of the edit, where it says how well the source is rebuilt; None: not asked.
    """
    known = (None, "") if source is None else (conditioning_tensors(source), conditioning_print(source))
    lines = inversion.remarks(identity, *known)
    if inversion.cfg != 1.0 and cfg is not None and cfg != inversion.cfg:
        lines.append(f"the inversion was made at cfg {inversion.cfg:g}: at cfg {cfg:g} its image is not rebuilt")
    elif inversion.cfg != 1.0 and negative is not None and inversion.made_from is not None:
        own = inversion.made_from.negative
        if own and own != conditioning_print(negative):
            lines.append("the negative prompt is not the one the inversion was made with: its image is not rebuilt")
    return lines


def as_lines(remarks: list[str]) -> str:
    """Remarks at the end of a report."""
    return "".join(f"\n{line}" for line in remarks)

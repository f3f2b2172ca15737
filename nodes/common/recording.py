"""What an INVERSION was made from, as it is recorded where one is made and compared where one is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...core.denoiser import ModelIdentity
from ...core.errors import EditingError
from ...core.inversion import Inversion, MadeFrom
from ..host.conditioning import (
    conditioning_from_tensors,
    conditioning_print,
    conditioning_tensors,
    per_level_conditioning,
)
from ..host.inpainting import reads_mask
from ..host.latents import batch_index, fitted_latent, noise_mask_of


def recorded(
    inversion: Inversion, model: Any, latent: dict[str, Any], positive: Any, negative: Any = None, cfg: float = 1.0
) -> Inversion:
    """``inversion`` with what it was made from besides its model, levels and latent.

    Args:
        latent: the LATENT it was made of.
        negative: CONDITIONING, kept where ``cfg`` is not 1.
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
    )


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

"""An inversion: an image's trajectory to noise with its levels, cost, model and what else it was made from, in memory
and as a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser, ModelIdentity, check_finite, unit_scale
from .errors import EditingError
from .files import load_tensors, metadata_json, save_tensors
from .prints.weights import WeightPrint
from .reading.forms import HALF_CHARACTER
from .reading.kinds import LONGEST_PROMPT

FILE_FORMAT = "semantic_editing.inversion"
FILE_VERSION = "1"
#: Mean square by which two latents differ, over the variance of one: those of two pictures differ by about 2.
OTHER_PICTURE = 0.3


@dataclass(frozen=True)
class MadeFrom:
    """What an inversion was made from besides its model, latent, levels and prompt.

    Attributes:
        cfg: guidance scale of the predictions, 1 for inversions of real images as a rule.
        sampler: the deterministic sampler whose steps the trajectory is made of.
        prompt, negative: content prints of the whole conditionings (texts, areas, ControlNets, inpainting pictures), ""
            where not known.
        batch_index: rows of the latent's batch among a larger one, by which a host draws noise; () for none.
    """

    cfg: float = 1.0
    sampler: str = "euler"
    prompt: str = ""
    negative: str = ""
    batch_index: tuple[int, ...] = ()


@dataclass(frozen=True)
class Words:
    """The prompt of an inversion as its text encoder read it, which a conditioning no longer tells.

    Attributes:
        text: as written.
        tokens: name of each encoder, e.g. "l" -> its blocks of token ids, each with a start token, the end token and
            padding; a vector (textual inversion) has a negative number of its own.

    Raises:
        EditingError: a text that no file could keep.
    """

    text: str
    tokens: Mapping[str, tuple[tuple[int, ...], ...]]

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST_PROMPT or HALF_CHARACTER.search(self.text):
            raise EditingError(
                f"The prompt is longer than {LONGEST_PROMPT} characters or holds half of one; type a shorter one."
            )

    @property
    def length(self) -> int:
        """Positions of the conditioning that they take."""
        return max(sum(map(len, blocks)) for blocks in self.tokens.values())


@dataclass(frozen=True, eq=False)
class Inversion:
    """A latent's trajectory from clean to noise under one model and one conditioning.

    What changes its meaning, and where it is kept and checked:

    - the weights: ``identity.weights``, a slice of every tensor; others are refused (:meth:`require_model`);
    - LoRAs, guidance and attention patches, other options of the host: ``identity.patches``; others are a remark
      (:meth:`remarks`);
    - what the network predicts, the channels and the scaling of its latents: ``identity``; refused;
    - the levels: ``sigmas``; a sampler off them is refused (:meth:`level_of`);
    - the sampler's rule: ``made_from.sampler``; an edit that takes other steps is refused (:meth:`require_sampler`);
    - the picture: ``latents[0]``; an editor that is given a picture refuses another one (:meth:`require_picture`);
    - the prompt: ``cond``, or its print in ``made_from`` where it is more than text; it is the default source of edits,
      and another one is a remark (:meth:`remarks`);
    - cfg and the negative prompt: ``made_from``, ``uncond``; at another cfg than 1 they are the default of edits, and
      others are a remark;
    - the negatives of null-text inversion: ``null_text``; edits at that cfg use each at its level;
    - the words of the prompt, where a node was told them: ``words``; engines that need the source's text take it from
      here, and a CLIP that reads it as other tokens is refused;
    - the noise mask, which inpainting models read: ``noise_mask``; edits hand it to the model again;
    - the rows of a larger batch: ``made_from.batch_index``; noise is drawn by them, and they are in the report.

    Not kept, because it is no part of a trajectory: the VAE (a picture decoded by another VAE is another picture from
    the start), the seed (the noise itself is here), the precision of the computation (the weights' print survives it).

    Attributes:
        latents: ``[T+1, B, C, H, W]`` in sigma space, ascending noise; ``latents[0]`` is the clean latent as given.
        sigmas: ``[T+1]`` ascending, fp32.
        residuals: ``[T, B]`` mean-square fixed-point residual of each step in unit-variance latent units, i.e. how far
            the backward Euler step misses the level it started from (SPDInv Eq. 4); NaN where it was not measured.
        forward_evaluations: ``[T, B]`` network evaluations (u) spent on each step of each image.
        backward_evaluations: ``[T, B]`` likewise, backward passes.
        identity: the model the trajectory belongs to.
        method: which inversion made it, e.g. "spdinv/auto".
        cond: the conditioning used, as plain tensors (``embeds [B or 1, L, D]``, optionally ``pooled``), or None when
            the host's conditioning has parts that are not tensors.
        info: figures of the method for people, e.g. autocorrelation before and after; JSON-able.
        made_from: the rest of what it was made from; None in files of older versions, which did not keep it.
        uncond: the negative conditioning, kept like ``cond`` where ``made_from.cfg`` is not 1.
        noise_mask: ``[B or 1, h, w]``, 1 where an inpainting model was to paint, or None.
        null_text: ``[T, B or 1, L, D]`` negative text of the step from each level but the clean one, in place of
            ``uncond``'s, or None.
        words: of the prompt, the same for all images of a batch, or None.
    """

    latents: Tensor
    sigmas: Tensor
    residuals: Tensor
    forward_evaluations: Tensor
    backward_evaluations: Tensor
    identity: ModelIdentity
    method: str
    cond: Mapping[str, Tensor] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    made_from: MadeFrom | None = field(default_factory=MadeFrom)
    uncond: Mapping[str, Tensor] | None = None
    noise_mask: Tensor | None = None
    null_text: Tensor | None = None
    words: Words | None = None

    @property
    def cfg(self) -> float:
        """Guidance scale it was made at."""
        return float(self.info.get("cfg", 1.0)) if self.made_from is None else self.made_from.cfg

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.sigmas) - 1

    @property
    def noise(self) -> Tensor:
        """The latent at the last level in unit-variance units, ``[B, C, H, W]`` (the papers' ``z_T``)."""
        return self.latents[-1] * unit_scale(self.identity, float(self.sigmas[-1]))

    @property
    def evaluations(self) -> float:
        """Forward network evaluations (u) per image."""
        return float(self.forward_evaluations.float().sum(0).mean())

    @property
    def backward_passes(self) -> float:
        """Backward network evaluations per image."""
        return float(self.backward_evaluations.float().sum(0).mean())

    def require_model(self, identity: ModelIdentity) -> None:
        """Raise :class:`EditingError` unless this inversion was made by the model of ``identity``."""
        difference = self.identity.mismatch(identity)
        if difference is not None:
            raise EditingError(
                f"This inversion was made by another model ({difference}); invert the image again with this model."
            )

    def require_sampler(self, sampler: str = "euler") -> None:
        """Raise :class:`EditingError` unless its trajectory consists of the steps of ``sampler``."""
        own = "euler" if self.made_from is None else self.made_from.sampler
        if own != sampler:
            raise EditingError(
                f"This inversion was made for the sampler {own}, and this edit takes steps of {sampler}; invert the "
                f"image again for {sampler}."
            )

    def require_picture(self, latent: Tensor) -> None:
        """Raise :class:`EditingError` unless ``latent [B, C, h, w]`` is of the picture that was inverted.

        A picture encoded twice, even with a VAE that draws its latent at random, is far below the bound, and another
        picture is far above it.
        """
        own = self.latents[0].float().cpu()
        given = latent.detach().float().cpu()
        if own.shape != given.shape:
            raise EditingError(
                f"The inversion's latent is {list(own.shape[-2:])} and the picture's {list(given.shape[-2:])}; invert "
                "the picture that is to be edited, at its own size."
            )
        apart = (own - given).square().mean() / own.var().clamp_min(1e-12)
        if not float(apart) < OTHER_PICTURE:
            raise EditingError(
                "The inversion is of another picture than the one to edit (or was encoded by another VAE); invert the "
                "picture that is to be edited."
            )

    def remarks(
        self,
        identity: ModelIdentity,
        cond: Mapping[str, Tensor] | None = None,
        prompt: str = "",
        *,
        other_prompt: str = "the source prompt is not the one the inversion was made with; the image is rebuilt less "
        "exactly",
    ) -> list[str]:
        """One line for each thing that is not as it was when the inversion was made, or that cannot be verified.

        Args:
            identity: of the model that is to edit.
            cond, prompt: the source conditioning as tensors where it is plain text, and its print; None and "": the
                inversion's own.
            other_prompt: what to say of a prompt that is not the inversion's.
        """
        lines = []
        if self.identity.weights is None:
            lines.append(
                "the inversion was saved by an older version: only a few weights could be compared, and LoRAs and "
                "patches not at all"
            )
        elif self.identity.patches != identity.patches:
            lines.append(
                f"the inversion was made with {_named(self.identity.patch_names)} and the model now has "
                f"{_named(identity.patch_names)}: the image is rebuilt less exactly"
            )
        if self.made_from is None:
            lines.append("older versions kept no negative prompt, mask or sampler: those could not be compared")
        if _other_prompt(self.cond, "" if self.made_from is None else self.made_from.prompt, cond, prompt):
            lines.append(other_prompt)
        return lines

    def level_of(self, sigma: float) -> int:
        """Index of the level at ``sigma``.

        Raises:
            EditingError: the grid has no such level (another scheduler or step count, or a stochastic sampler).
        """
        distance = (self.sigmas - sigma).abs()
        level = int(distance.argmin())
        if float(distance[level]) > 1e-3 * max(sigma, float(self.sigmas[1])):
            raise EditingError(
                f"The sampler asked for sigma {sigma:.4g}, which this inversion's grid does not have; "
                "wire the inversion's own SIGMAS and a deterministic first-order sampler such as euler."
            )
        return level

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a safetensors file (latents in fp32, metadata: format, version, method, base model).

        Raises:
            EditingError: the file exists and ``overwrite`` is False, or the folder cannot be written.
        """
        tensors = {
            "latents": self.latents.float(),
            "sigmas": self.sigmas,
            "residuals": self.residuals,
            "forward_evaluations": self.forward_evaluations,
            "backward_evaluations": self.backward_evaluations,
        }
        tensors |= {f"cond.{key}": value for key, value in (self.cond or {}).items()}
        tensors |= {f"uncond.{key}": value for key, value in (self.uncond or {}).items()}
        if self.noise_mask is not None:
            tensors["noise_mask"] = self.noise_mask.float()
        if self.null_text is not None:
            tensors["null_text"] = self.null_text.float()
        if self.identity.weights is not None:
            tensors |= {"weights.sizes": self.identity.weights.sizes, "weights.values": self.identity.weights.values}
        metadata = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "method": self.method,
            "base_model": self.identity.family,
            "identity": json.dumps(_fields(self.identity)),
            "info": json.dumps(dict(self.info)),
        }
        if self.made_from is not None:
            metadata["made_from"] = json.dumps(_fields(self.made_from))
        if self.words is not None:
            metadata["words"] = json.dumps(_fields(self.words))
        return save_tensors(path, tensors, metadata, overwrite=overwrite)

    @staticmethod
    def load(path: str | Path) -> Inversion:
        """Read a file written by :meth:`save`.

        Raises:
            EditingError: missing, damaged or foreign file, or parts that do not fit together.
        """
        tensors, metadata = load_tensors(path, FILE_FORMAT, kind="inversion")
        name = Path(path).name
        fields = metadata_json(metadata, "identity", name, "inversion")
        info = metadata_json(metadata, "info", name, "inversion")
        weights = _weights(name, tensors)
        identity = ModelIdentity(
            fields["family"],
            fields["latent_channels"],
            fields["prediction"],
            tuple(map(float, fields["signature"])),
            weights,
            fields.get("patches", ""),
            tuple(fields.get("patch_names", ())),
            fields.get("latent_format", ""),
            fields.get("file", ""),
        )
        parts = ("latents", "sigmas", "residuals", "forward_evaluations", "backward_evaluations")
        if not set(parts) <= set(tensors):
            raise EditingError(f"{name} is incomplete; invert the image again.")
        latents, sigmas, residuals, *counts = (tensors[key] for key in parts)
        cond, uncond = (
            {key.removeprefix(kind): value for key, value in tensors.items() if key.startswith(kind)}
            for kind in ("cond.", "uncond.")
        )
        _check_parts(name, latents, sigmas, residuals, counts, cond | uncond, identity)
        mask = tensors.get("noise_mask")
        if mask is not None:
            _check_mask(name, mask, latents)
        null_text = tensors.get("null_text")
        if null_text is not None:
            _check_null_text(name, null_text, latents, uncond)
        made_from = None
        if "made_from" in metadata:
            kept = metadata_json(metadata, "made_from", name, "inversion")
            made_from = MadeFrom(
                float(kept["cfg"]), kept["sampler"], kept["prompt"], kept["negative"], tuple(kept["batch_index"])
            )
        words = _words(name, metadata, cond) if "words" in metadata else None
        forward, backward = counts
        return Inversion(
            latents,
            sigmas,
            residuals,
            forward,
            backward,
            identity,
            metadata.get("method", ""),
            cond or None,
            info,
            made_from,
            uncond or None,
            mask,
            null_text,
            words,
        )


def _fields(part: Any) -> dict[str, Any]:
    """Its fields that are no tensors."""
    values = {each.name: getattr(part, each.name) for each in fields(part)}
    return {key: value for key, value in values.items() if key != "weights"}


def _weights(name: str, tensors: Mapping[str, Tensor]) -> WeightPrint | None:
    """The print of the model's weights in a file; None in one of an older version."""
    sizes, values = tensors.get("weights.sizes"), tensors.get("weights.values")
    if sizes is None or values is None:
        return None
    if sizes.ndim != 1 or values.ndim != 2 or len(sizes) != len(values) or sizes.is_floating_point():
        raise EditingError(f"{name} has a print of its model that does not fit together; invert the image again.")
    check_finite(values, f"{name}'s print of its model")
    return WeightPrint(sizes.long(), values.float())


def _words(name: str, metadata: Mapping[str, str], cond: Mapping[str, Tensor]) -> Words:
    """The words of the prompt in a file."""
    kept = metadata_json(metadata, "words", name, "inversion")
    words = Words(kept["text"], {encoder: tuple(map(tuple, blocks)) for encoder, blocks in kept["tokens"].items()})
    embeds = cond.get("embeds")
    if embeds is not None and (embeds.ndim != 3 or embeds.shape[1] != words.length):
        raise EditingError(f"{name} has words that do not fit its prompt; invert the image again.")
    return words


def _check_mask(name: str, mask: Tensor, latents: Tensor) -> None:
    if mask.ndim != 3 or len(mask) not in (1, latents.shape[1]) or mask.shape[-2:] != latents.shape[-2:]:
        raise EditingError(f"{name} has a noise mask of another shape than its latents; invert the image again.")
    check_finite(mask, f"{name}'s noise mask")


def _check_null_text(name: str, null_text: Tensor, latents: Tensor, uncond: Mapping[str, Tensor]) -> None:
    embeds = uncond.get("embeds")
    steps, batch = len(latents) - 1, latents.shape[1]
    fits = null_text.ndim == 4 and len(null_text) == steps and null_text.shape[1] in (1, batch)
    if not fits or embeds is None or embeds.shape[1:] != null_text.shape[2:]:
        raise EditingError(f"{name} has negatives of its steps that do not fit its parts; invert the image again.")
    check_finite(null_text, f"{name}'s negatives of its steps")


def _named(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no LoRA or patch"


def _other_prompt(
    own: Mapping[str, Tensor] | None, own_print: str, cond: Mapping[str, Tensor] | None, given_print: str
) -> bool:
    """Whether a prompt is known to be another one; texts are compared by their numbers, all else by content prints."""
    if own is not None and cond is not None:
        mine, theirs = own["embeds"], cond["embeds"].to(own["embeds"])
        rows = len(mine) == len(theirs) or 1 in (len(mine), len(theirs))
        if mine.shape[1:] != theirs.shape[1:] or not rows:
            return True
        mine, theirs = torch.broadcast_tensors(mine, theirs)
        return not torch.allclose(mine, theirs, atol=1e-3)
    return bool(own_print and given_print and own_print != given_print)


def _check_parts(
    name: str,
    latents: Tensor,
    sigmas: Tensor,
    residuals: Tensor,
    counts: Sequence[Tensor],
    cond: Mapping[str, Tensor],
    identity: ModelIdentity,
) -> None:
    """Raise :class:`EditingError` unless the parts of a file fit together and can be edited from; ``name`` is its."""
    steps, batch = sigmas.numel() - 1, latents.shape[1] if latents.ndim == 5 else -1
    per_step = all(tuple(part.shape) == (steps, batch) for part in (residuals, *counts))
    if (
        latents.ndim != 5
        or sigmas.ndim != 1
        or len(latents) != steps + 1
        or not per_step
        or latents.shape[2] != identity.latent_channels
        or not latents.numel()
        or not all(part.is_floating_point() for part in (latents, sigmas, residuals))
    ):
        raise EditingError(f"{name} has parts that do not fit together; invert the image again.")
    rising = bool((sigmas[1:] > sigmas[:-1]).all()) and bool(sigmas.isfinite().all())
    if steps < 1 or not rising or float(sigmas[0]) < 0:
        raise EditingError(
            f"{name} has noise levels that are missing, not numbers, negative or out of order; invert the image again."
        )
    check_finite(latents, f"{name}'s latents")
    for key, part in cond.items():
        check_finite(part, f"{name}'s conditioning ({key})")
    if any((part < 0).any() or not part.isfinite().all() for part in counts):
        raise EditingError(f"{name} counts its evaluations in a damaged way; invert the image again.")


def check_latent(latent: Tensor, identity: ModelIdentity) -> Tensor:
    """``latent [B, C, H, W]`` as a detached tensor of at least fp32, or an :class:`EditingError` that says what is
    wrong with it.
    """
    if latent.ndim != 4 or latent.shape[1] != identity.latent_channels:
        raise EditingError(
            f"The latent has shape {list(latent.shape)}, this model wants [batch, {identity.latent_channels}, height, "
            "width]; encode the image with this model's own VAE."
        )
    check_finite(latent, "The latent")
    return latent.detach().to(torch.promote_types(latent.dtype, torch.float32))


def inversion_grid(denoiser: Denoiser, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """The ascending levels of an inversion, ``[T+1]`` fp32 on the CPU.

    Args:
        steps: number of steps of the model's own grid, at least 1; not used when ``sigmas`` is given.
        sigmas: another grid, ascending or descending (a sampler's SIGMAS); its lowest level may be 0.

    Raises:
        EditingError: fewer than two levels, NaN, negative or repeated levels, or levels out of order.
    """
    if sigmas is None:
        if steps < 1:
            raise EditingError(f"steps is {steps}; use 1 or more.")
        return denoiser.sigma_grid(steps)
    grid = sigmas.detach().flatten().float().cpu()
    if len(grid) < 2:
        raise EditingError(f"The sigmas have {len(grid)} level(s); an inversion needs at least 2.")
    if not torch.isfinite(grid).all() or (grid < 0).any():
        raise EditingError(
            "The sigmas have a negative or non-finite level; wire them from a scheduler node of this model."
        )
    if grid[0] > grid[-1]:
        grid = grid.flip(0)
    if (grid.diff() <= 0).any():
        raise EditingError("The sigmas repeat a level or are out of order; use levels that only rise or only fall.")
    return grid

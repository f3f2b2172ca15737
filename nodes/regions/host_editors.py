"""Editors of the region search on MODEL and VAE: the core's box editors, each render inside the host's own sampling.

A render is what a graph of VAE Encode, a sampler and VAE Decode would do, so loading, LoRA, ControlNet and lack of memory are the
host's business; models stay loaded between renders as they do between nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.denoiser import Callback, Denoiser, Progress
from ...core.errors import EditingError
from ...core.inversion import Inversion
from ...core.regions.edit_inpaint import InpaintEditor
from ...core.regions.edit_invert import InversionEditor
from ...core.regions.edit_tokens import TokenEditor, load_token_model
from ...core.regions.editors import Editor, Quality
from ...core.regions.paste import Framing
from ..host.attention import site_table
from ..host.conditioning import require_conditioning
from ..host.gradients import normal_tensors
from ..host.latents import latent_from_model
from ..host.managed_models import load_to_device, managed_patcher, preferred_dtype
from ..host.progress import stop_if_cancelled
from ..host.sampling import run
from ..host.session import Session
from .pictures import Pictures, reads_mask

#: Makes an editor for an image; see ``nodes.region_types.RegionEditor.open``.
Opener = Callable[[Tensor, Callback], AbstractContextManager[Editor]]
ADVICE = "lower working_size"


def prompted(make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` returns inside inference mode, where hosts run prompts, as a normal tensor."""
    with torch.inference_mode():
        made = make()
    with torch.inference_mode(False):
        return made.clone()


class _Prompted:
    """An editor whose renders are :func:`prompted`."""

    def render(
        self, image: Tensor, mask: Tensor, box: Sequence[int], *, seed: int, quality: Quality = "full"
    ) -> Tensor:
        """See ``core.regions.editors.Editor``."""
        plain: Any = super()
        return prompted(lambda: plain.render(image, mask, box, seed=seed, quality=quality))


@dataclass(eq=False)
class _HostInpaintEditor(_Prompted, InpaintEditor):
    """:class:`InpaintEditor` whose conditionings are CONDITIONING; ``told`` says that the model reads mask and masked picture."""

    pictures: Pictures = field(kw_only=True)
    told: bool = field(kw_only=True)

    def preview(self, image: Tensor, *, seed: int = 0) -> Tensor:
        return prompted(lambda: InpaintEditor.preview(self, image, seed=seed))

    def paint(self, source: Tensor, cells: Tensor, known: Tensor, noise: Tensor, steps: int) -> Tensor:
        return self._sampled(
            source, cells, known, lambda bound, x: InpaintEditor.paint(bound, x, cells, known, noise, steps)
        )

    def glimpse(self, source: Tensor, known: Tensor, seed: int) -> Tensor:
        everywhere = torch.ones_like(source[:, :1])
        return self._sampled(source, everywhere, known, lambda bound, x: InpaintEditor.glimpse(bound, x, known, seed))

    def _sampled(
        self, source: Tensor, cells: Tensor, known: Tensor, sample: Callable[[InpaintEditor, Tensor], Tensor]
    ) -> Tensor:
        conds = {"positive": self.cond} if self.uncond is None else {"positive": self.cond, "negative": self.uncond}
        if self.told:
            side = self.framing.multiple  # hosts expect the mask in pixels
            told = {
                "concat_latent_image": self.pictures.raw(known)["samples"],
                "concat_mask": cells.repeat_interleave(side, 2).repeat_interleave(side, 3),
            }
            conds = {name: [[embeds, {**options, **told}] for embeds, options in cond] for name, cond in conds.items()}

        def work(session: Session) -> Tensor:
            bound = copy(self)
            bound.denoiser = counted(session, self.denoiser)
            bound.cond, bound.uncond = session.conds["positive"], session.conds.get("negative")
            return sample(bound, source.to(session.latent.device))

        return run(self.pictures.model, latent_from_model(self.pictures.model, source), conds, work, advice=ADVICE)


@dataclass(eq=False)
class _HostInversionEditor(_Prompted, InversionEditor):
    """:class:`InversionEditor` whose conditionings are CONDITIONING."""

    pictures: Pictures = field(kw_only=True)

    def change(self, image: Tensor) -> Tensor:
        return prompted(lambda: InversionEditor.change(self, image))

    def along_inversion(self, latent: Tensor, picture: str, cells: Tensor, quality: Quality) -> Tensor:
        return self._in_session(
            latent, lambda bound, x: InversionEditor.along_inversion(bound, x, picture, normal_tensors(cells), quality)
        )

    def pulls(self, latent: Tensor, picture: str) -> list[Tensor]:
        return list(self._in_session(latent, lambda bound, x: torch.stack(InversionEditor.pulls(bound, x, picture))))

    def _in_session(self, latent: Tensor, sample: Callable[[InversionEditor, Tensor], Tensor]) -> Tensor:
        conds = {"source": self.source_cond, "positive": self.target_cond}
        if self.uncond is not None:
            conds["negative"] = self.uncond

        def work(session: Session) -> Tensor:
            bound = copy(self)
            bound.denoiser = counted(session, self.denoiser)
            bound.source_cond, bound.target_cond = session.conds["source"], session.conds["positive"]
            bound.uncond = session.conds.get("negative")
            if self.given is not None:
                bound.given = replace(self.given, latents=self.given.latents.to(session.latent.device))
            made = sample(bound, session.latent)
            self._kept, self.shared_evaluations, self.located = bound._kept, bound.shared_evaluations, bound.located
            return made

        # Always with gradients: the guidance takes them, and inversions where iterations alone do not converge.
        return run(
            self.pictures.model,
            latent_from_model(self.pictures.model, latent),
            conds,
            work,
            gradients=True,
            advice=ADVICE,
        )


@dataclass(eq=False)
class _HostTokenEditor(_Prompted, TokenEditor):
    """:class:`TokenEditor` on the host's device."""

    patcher: Any = field(kw_only=True)

    def render(
        self, image: Tensor, mask: Tensor, box: Sequence[int], *, seed: int, quality: Quality = "full"
    ) -> Tensor:
        load_to_device(self.patcher)
        return super().render(image, mask, box, seed=seed, quality=quality)


def inpaint_opener(
    model: Any,
    vae: Any,
    positive: Any,
    negative: Any,
    *,
    context: float,
    working_size: int,
    feather: int,
    **settings: Any,
) -> Opener:
    """Opener of :class:`InpaintEditor` with its ``settings``.

    Args:
        working_size: 0 keeps the image's pixels.

    Raises:
        EditingError: see :class:`InpaintEditor`, :func:`reads_mask`; a VAE that is not the model's.
    """
    pictures = Pictures(model, vae)
    told = reads_mask(model)
    require_conditioning(model, {"positive": positive, "negative": negative})
    framing = Framing(context, pictures.multiple, working_size or None, feather)

    def make(callback: Callback | None = None) -> Editor:
        return _HostInpaintEditor(
            pictures.denoiser, pictures.encode, pictures.decode, positive, negative, **settings,
            framing=framing, label=pictures.label, callback=callback, pictures=pictures, told=told,
        )  # fmt: skip

    return _opener(make)


def inversion_opener(
    model: Any,
    vae: Any,
    source: Any,
    target: Any,
    negative: Any,
    inversion: Inversion | None,
    *,
    working_size: int,
    **settings: Any,
) -> Opener:
    """Opener of :class:`InversionEditor` with its ``settings``.

    Args:
        working_size: 0 keeps the image's pixels.

    Raises:
        EditingError: see :class:`InversionEditor`; a VAE that is not the model's, an inpainting model, one without cross-attention.
    """
    pictures = Pictures(model, vae)
    if reads_mask(model):
        raise EditingError(
            "This is an inpainting model, which rebuilds no picture; wire a plain one, or use Region Inpaint Editor."
        )
    require_conditioning(model, {"source": source, "target": target, "negative": negative or []})
    if settings["guidance"] > 0:
        site_table(model.model.diffusion_model)
    with torch.inference_mode(False):
        given = (
            None
            if inversion is None
            else replace(inversion, latents=inversion.latents.clone(), sigmas=inversion.sigmas.clone())
        )

    def make(callback: Callback | None = None) -> Editor:
        return _HostInversionEditor(
            pictures.denoiser, pictures.encode, pictures.decode, source, target, negative, **settings, given=given,
            multiple=pictures.multiple, working_size=working_size or None, label=pictures.label, callback=callback, pictures=pictures,
        )  # fmt: skip

    return _opener(make)


def token_opener(folder: Path, text: str, *, context: float, feather: int, **settings: Any) -> Opener:
    """Opener of :class:`TokenEditor` with its ``settings``; the model is read now and the host may evict it.

    Raises:
        EditingError: see :class:`TokenEditor` and :func:`load_token_model`.
    """
    with torch.inference_mode(False):
        model = load_token_model(folder, dtype=preferred_dtype())
        patcher = managed_patcher(nn.ModuleList([model.vqvae, model.transformer, model.text_encoder]))
    framing = Framing(context, model.multiple, model.native_size, feather)

    def make(callback: Callback | None = None) -> Editor:
        return _HostTokenEditor(model, text, **settings, framing=framing, callback=callback, patcher=patcher)

    return _opener(make)


def counted(session: Session, known: Denoiser) -> Denoiser:
    """The session's denoiser, counting evaluations where ``known`` does."""
    session.denoiser.evaluations = known.evaluations
    return session.denoiser


def _opener(make: Callable[[Callback | None], Editor]) -> Opener:
    make(None)  # refuses bad settings now, at the editor's own node

    @contextmanager
    def opened(image: Tensor, progress: Callback) -> Iterator[Editor]:
        def watched(told: Progress) -> None:
            stop_if_cancelled()
            progress(told)

        yield make(watched)

    return opened

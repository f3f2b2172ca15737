"""A box editor along the picture's own inversion: cross-attention guidance with a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..content_hash import fingerprint
from ..denoiser import Callback, Denoiser, Progress
from ..errors import EditingError
from ..images.difference import difference_map
from ..inversion import Inversion
from ..pix2pix_zero.guided_edit import CrossAttentionGuidance, CrossAttentionSettings
from ..spdinv.invert import invert
from ..spdinv.solvers import Solver
from .editors import Conds, ImageMap, Sampling, Work, sampling_with
from .paste import Framing, paste, repainted_cells, resized
from .proposals import Box

#: :meth:`InversionEditor.change` looks at every second point of the inversion.
LOCATE_EVERY = 2


@dataclass(frozen=True)
class InversionEditSettings:
    """How boxes are edited along the picture's inversion.

    Attributes:
        cfg, guidance: see :class:`~..pix2pix_zero.guided_edit.CrossAttentionSettings`; its preset is "carried".
        steps: of the inversion and of a render.
        solver: of the inversion, see :func:`~..spdinv.invert.invert`.
        working_size, feather: see :class:`~.paste.Framing`.

    Raises:
        EditingError: steps below 1.
    """

    cfg: float = 5.0
    guidance: float = 0.1
    steps: int = 20
    solver: Solver = "auto"
    working_size: int | None = None
    feather: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise EditingError(f"steps is {self.steps}; use 1 or more.")


@dataclass(eq=False)
class InversionEditor:
    """Edits a box by the pack's own sampler, :class:`~..pix2pix_zero.guided_edit.CrossAttentionGuidance`.

    The picture is inverted once, whole, and its inversion kept for all boxes, until another picture comes. A latent
    pixel is edited when the mask touches it; all others follow the source's trajectory. The edit draws no random
    numbers.

    Attributes:
        denoiser: the network. With a host's ``sampling`` only its ``identity`` and ``evaluations`` are asked.
        encode, decode: the VAE, ``[1, 3, h, w]`` in 0..1 to a scaled latent and back.
        source_cond, target_cond, uncond: see :class:`~..pix2pix_zero.guided_edit.CrossAttentionGuidance`.
        settings: see :class:`InversionEditSettings`.
        given: a ready inversion of the picture, used for full renders instead of making one; ``settings.steps`` is then
            its own.
        multiple: see :class:`~.paste.Framing`.
        label, callback, sampling: see :class:`~.edit_inpaint.InpaintEditor`.
        shared_evaluations: forward and backward evaluations spent so far on inversions and
            :meth:`change`, which :meth:`cost` leaves out.
        located: those of the last :meth:`change` among them, without the inversion.

    Raises:
        EditingError: an inversion of another model or of several pictures.
    """

    denoiser: Denoiser
    encode: ImageMap
    decode: ImageMap
    source_cond: Any
    target_cond: Any
    uncond: Any | None = None
    settings: InversionEditSettings = field(default_factory=InversionEditSettings)
    given: Inversion | None = None
    multiple: int = 8
    label: str = ""
    callback: Callback | None = None
    sampling: Sampling | None = None
    shared_evaluations: int = field(default=0, init=False)
    located: int = field(default=0, init=False)
    _kept: dict[tuple[str, int], Inversion] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.framing = Framing(float("inf"), self.multiple, self.settings.working_size, self.settings.feather)
        if self.given is not None:
            self.given.require_model(self.denoiser.identity)
            if self.given.latents.shape[1] != 1:
                raise EditingError(
                    f"The inversion holds {self.given.latents.shape[1]} pictures; invert the picture to edit alone."
                )
            self.settings = replace(self.settings, steps=self.given.steps)

    @cached_property
    def identity(self) -> str:
        """Key of everything but the image, mask and box that decides the picture."""
        conds = (self.source_cond, self.target_cond, self.uncond)
        given = None if self.given is None else (self.given.latents, self.given.sigmas)
        return f"inversion/{fingerprint(self.denoiser.identity, conds, self.settings, given, self.framing, self.label)}"

    def cost(self) -> int:
        """Network evaluations (u) of one render, forward and backward passes together, without what all boxes share."""
        branches = self._branches
        # A guided step: maps of the source, maps of the edit and their gradient, then the prediction.
        return self.settings.steps * (3 + branches if self.settings.guidance > 0 else branches)

    @property
    def _branches(self) -> int:
        return 1 if self.settings.cfg == 1.0 else 2

    @torch.inference_mode(False)
    @torch.no_grad()
    def render(self, image: Tensor, mask: Tensor, box: Sequence[int], *, seed: int = 0) -> Tensor:
        """The image ``[1, 3, H, W]`` with the box edited, bit-equal outside it; a normal tensor without gradients.

        Args:
            image, mask, box: see :meth:`~.paste.Framing.cut`.
            seed: not used, the edit draws no random numbers.

        Raises:
            EditingError: see :meth:`~.paste.Framing.cut`, :func:`~.paste.paste`, :meth:`inversion` and
                :class:`~..pix2pix_zero.guided_edit.CrossAttentionGuidance`.
        """
        cut = self.framing.cut(image, mask, box)
        picture = fingerprint(cut.pixels)
        latent = self._latent(cut.pixels, picture)
        cells = repainted_cells(cut.mask, (latent.shape[-2], latent.shape[-1]))[0]
        return paste(image, self.decode(self._edited(latent, picture, cells)), cut)

    @torch.inference_mode(False)
    @torch.no_grad()
    def change(self, image: Tensor) -> Tensor:
        """How strongly the text pulls at each place of the image, see :class:`~.editors.Locating`.

        DiffEdit's mask (Couairon et al. 2023, section 3.2): what the two texts predict at noised copies of the image is
        compared. Here the copies are points of its own inversion, and the difference is seen through the decoder, which
        is
        finer than the latent. The finished edit tells less: what its steps drag along, and what the inversion misses,
            adds
        up in it.

        Returns:
            ``[h, w]``: mean absolute difference over the channels and the points, at the size worked at.
        """
        height, width = image.shape[-2:]
        pixels = resized(image, self.framing.crop(height, width, Box(0, 0, width, height)).size)
        picture = fingerprint(pixels)
        latent = self._latent(pixels, picture)
        pulls = self._pulls(latent, picture).to(latent.device)  # a host's VAE and model may compute on two devices
        plain = self.decode(latent)
        seen = [difference_map(self.decode(latent + pull), plain)[0] for pull in pulls]
        return torch.stack(seen).mean(0)

    def inversion(self, denoiser: Denoiser, latent: Tensor, source_cond: Any, picture: str) -> Inversion:
        """The picture's inversion made once; to be called inside the sampling.

        Args:
            latent: the picture's scaled latent ``[1, C, h, w]``.
            source_cond: as ``denoiser`` reads it.
            picture: fingerprint of the picture, under which its inversion is kept.

        Raises:
            EditingError: a given inversion of another picture or size; see :func:`~..spdinv.invert.invert`.
        """
        steps = self.settings.steps
        key = (picture, steps)
        if key in self._kept:
            return self._kept[key]
        if self.given is not None and steps == self.given.steps:
            self.given.require_picture(latent)
            return replace(self.given, latents=self.given.latents.to(latent.device))
        inversion = invert(denoiser, latent, source_cond, steps, self.settings.solver, callback=self.callback)
        self.shared_evaluations += int(inversion.forward_evaluations.sum() + inversion.backward_evaluations.sum())
        # Only inversions of the picture at hand are kept: a trajectory is many latents.
        self._kept = {other: kept for other, kept in self._kept.items() if other[0] == picture} | {key: inversion}
        return inversion

    def _edited(self, latent: Tensor, picture: str, cells: Tensor) -> Tensor:
        """The edited latent ``[1, C, h, w]``.

        Args:
            latent, picture: see :meth:`inversion`.
            cells: ``[1, h, w]``, 1 where to edit.
        """

        def work(denoiser: Denoiser, latent: Tensor, conds: Conds) -> Tensor:
            inversion = self.inversion(denoiser, latent, conds["source"], picture)
            edit = CrossAttentionGuidance(
                denoiser,
                inversion,
                conds["source"],
                conds["positive"],
                conds.get("negative"),
                CrossAttentionSettings(self.settings.cfg, self.settings.guidance, preset="carried", local_fraction=0.0),
                cells,
            )
            return edit.run(inversion.steps, self.callback)

        return self._sampled(latent, work)

    def _pulls(self, latent: Tensor, picture: str) -> Tensor:
        """Prediction for the target text minus that for the source text at points of the inversion, ``[n, 1, C, h,
        w]``.

        Args:
            latent, picture: see :meth:`inversion`.
        """

        def work(denoiser: Denoiser, latent: Tensor, conds: Conds) -> Tensor:
            inversion = self.inversion(denoiser, latent, conds["source"], picture)
            compared = [conds["source"], conds["positive"]]
            levels = range(inversion.steps, 0, -LOCATE_EVERY)
            pulls = []
            for number, level in enumerate(levels):
                with torch.no_grad():
                    x, sigma = inversion.latents[level], float(inversion.sigmas[level])
                    source, target = denoiser.batch(x, sigma, compared)
                pulls.append(target - source)
                if self.callback is not None:
                    self.callback(Progress(number, len(levels), 0, 1, target))
            self.located = len(compared) * len(levels)
            self.shared_evaluations += self.located
            return torch.stack(pulls)

        return self._sampled(latent, work)

    def _latent(self, pixels: Tensor, picture: str) -> Tensor:
        """The picture's scaled latent, encoded unless an inversion of it is kept."""
        kept = [inversion.latents[0] for (other, _), inversion in self._kept.items() if other == picture]
        return kept[0] if kept else self.encode(pixels)

    def _sampled(self, latent: Tensor, work: Work) -> Tensor:
        conds: Conds = {"source": self.source_cond, "positive": self.target_cond}
        if self.uncond is not None:
            conds = {**conds, "negative": self.uncond}
        return (self.sampling or sampling_with(self.denoiser))(latent, conds, work)

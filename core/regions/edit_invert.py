"""Editing a box along the picture's own inversion: cross-attention guidance with a mask, an editor of the region search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..content_hash import fingerprint
from ..denoiser import Callback, Denoiser, Progress
from ..errors import EditingError
from ..inversion import Inversion
from ..pix2pix_zero.guided_edit import CrossAttentionGuidance, CrossAttentionSettings, Preset
from ..spdinv.invert import invert
from ..spdinv.solvers import Solver
from .edit_inpaint import ImageMap
from .editors import Quality
from .paste import Framing, check_quality, repainted_cells, resized
from .proposals import Box

LOCATE_EVERY = 2  # steps of the inversion


@dataclass(eq=False)
class InversionEditor:
    """Box editor by the pack's own sampler (:class:`~..guidance.CrossAttentionGuidance`): deterministic, layout kept, no seed needed.

    The picture is inverted once, whole, and its inversion kept for all boxes, until another picture comes. A latent pixel is edited
    when the mask touches it; all others follow the source's trajectory. ``screen`` renders are not guided. The edit draws no random
    numbers, so one edit of the whole picture tells much of what any box will show: by default screening pastes it into the boxes.

    Attributes:
        encode, decode: the VAE, ``[1, 3, h, w]`` in 0..1 to a scaled latent and back.
        source_cond, target_cond, uncond, cfg, guidance, guided_fraction, preset: see :class:`~..guidance.CrossAttentionGuidance`.
        steps: of the inversion and of a full render.
        screen_steps: of a screening render, along an inversion of its own; equal to ``steps`` it needs none. 0: it is cut out of one
            edit of the whole picture, made once with ``steps``, and costs no evaluations of its own.
        solver: of the inversion, see :func:`~..inversion.invert`.
        given: a ready inversion of the picture, used for full renders instead of making one; ``steps`` is then its own.
        working_size, feather: see :class:`~.paste.Framing`.
        multiple: sides of the picture are brought to multiples of it, the pixels of a latent pixel.
        label, callback: see :class:`~.edit_inpaint.InpaintEditor`.
        shared_evaluations: forward and backward evaluations spent so far on inversions, edits of the whole picture and
            :meth:`change`, which :meth:`cost` leaves out.
        located: those of the last :meth:`change` among them, without the inversion.

    Raises:
        EditingError: steps below 1, an inversion of another model or of several pictures.
    """

    denoiser: Denoiser
    encode: ImageMap
    decode: ImageMap
    source_cond: Any
    target_cond: Any
    uncond: Any | None = None
    cfg: float = 5.0
    guidance: float = 0.1
    guided_fraction: float = 1.0
    preset: Preset = "carried"
    steps: int = 20
    screen_steps: int = 0
    solver: Solver = "auto"
    given: Inversion | None = None
    multiple: int = 8
    working_size: int | None = None
    feather: int = 4
    label: str = ""
    callback: Callback | None = None
    shared_evaluations: int = field(default=0, init=False)
    located: int = field(default=0, init=False)
    _kept: dict[tuple[str, int], Inversion] = field(default_factory=dict, init=False, repr=False)
    _whole: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.framing = Framing(float("inf"), self.multiple, self.working_size, self.feather)
        if self.given is not None:
            self.given.require_model(self.denoiser.identity)
            if self.given.latents.shape[1] != 1:
                raise EditingError(
                    f"The inversion holds {self.given.latents.shape[1]} pictures; invert the picture to edit alone."
                )
            self.steps = self.given.steps
        if self.steps < 1 or self.screen_steps < 0:
            raise EditingError(f"steps is {self.steps} and screen_steps {self.screen_steps}; use 1 or more, 0 or more.")

    @cached_property
    def identity(self) -> str:
        """Key of everything but the image, mask, box and quality that decides the picture."""
        conds = (self.source_cond, self.target_cond, self.uncond)
        guidance = (
            self.cfg,
            self.guidance,
            self.guided_fraction,
            self.preset,
            self.steps,
            self.screen_steps,
            self.solver,
        )
        given = None if self.given is None else (self.given.latents, self.given.sigmas)
        return f"inversion/{fingerprint(self.denoiser.identity, conds, guidance, given, self.framing, self.label)}"

    def cost(self, quality: Quality) -> int:
        """Network evaluations (u) of one render, forward and backward passes together, without what all boxes share."""
        check_quality(quality)
        branches = self._branches
        if quality == "screen":
            return self.screen_steps * branches
        guided = round(self.guided_fraction * self.steps) if self.guidance > 0 else 0
        # Maps of the source, maps of the edit and their gradient, then the prediction; "released" does it for each branch.
        guided_step = 4 * branches if self.preset == "released" else 3 + branches
        return guided * guided_step + (self.steps - guided) * branches

    @property
    def screening_cost(self) -> int:
        """u that screening a picture costs once, whatever the number of boxes: its inversion, more where a solver iterates, the edit of
        the whole picture if there is one, and what :meth:`change` has cost."""
        return self.located + (self.screen_steps or self.steps * (1 + self._branches))

    @property
    def _branches(self) -> int:
        return 1 if self.cfg == 1.0 else 2

    def render(
        self, image: Tensor, mask: Tensor, box: Sequence[int], *, seed: int = 0, quality: Quality = "full"
    ) -> Tensor:
        """The image ``[1, 3, H, W]`` with the box edited, bit-equal outside it; see :meth:`~.paste.Framing.render`.

        Args:
            seed: not used, the edit draws no random numbers.

        Raises:
            EditingError: see :class:`~..guidance.CrossAttentionGuidance` and :func:`~..inversion.invert`; an inversion of another size.
        """
        check_quality(quality)

        def edit(crop: Tensor, masked: Tensor) -> Tensor:
            picture = fingerprint(crop)
            with torch.no_grad():
                latent = self._latent(crop, picture)
            if quality == "screen" and self.screen_steps == 0:
                return self._edited_whole(latent, picture)
            cells = repainted_cells(masked, (latent.shape[-2], latent.shape[-1]))[0]
            edited = self.along_inversion(latent, picture, cells, quality)
            with torch.no_grad():
                return self.decode(edited)

        return self.framing.render(image, mask, box, edit)

    @torch.no_grad()
    def change(self, image: Tensor) -> Tensor:
        """How strongly the text pulls at each place of the image, see :class:`~.editors.Locating`.

        DiffEdit's mask (Couairon et al. 2023, section 3.2): what the two texts predict at noised copies of the image is compared. Here
        the copies are points of its own inversion, and the difference is seen through the decoder, which is finer than the latent.
        The finished edit tells less: what its steps drag along, and what the inversion misses, adds up in it.

        Returns:
            ``[h, w]``: mean absolute difference over the channels and the points, at the size worked at.
        """
        height, width = image.shape[-2:]
        crop = resized(image, self.framing.crop(height, width, Box(0, 0, width, height)).size)
        picture = fingerprint(crop)
        latent = self._latent(crop, picture)
        plain = self.decode(latent)
        seen = [(self.decode(latent + pull) - plain).abs().mean(1)[0] for pull in self.pulls(latent, picture)]
        return torch.stack(seen).mean(0)

    def pulls(self, latent: Tensor, picture: str) -> list[Tensor]:
        """Prediction for the target text minus that for the source text, each ``[1, C, h, w]``, at every second point of the inversion.

        Args:
            latent, picture: see :meth:`along_inversion`, whose sampling a host may wrap around this as well.
        """
        inversion = self.inversion(latent, picture, "screen")
        conds = [self.source_cond, self.target_cond]
        levels = range(inversion.steps, 0, -LOCATE_EVERY)
        pulls = []
        for number, level in enumerate(levels):
            with torch.no_grad():
                source, target = self.denoiser.batch(inversion.latents[level], float(inversion.sigmas[level]), conds)
            pulls.append(target - source)
            if self.callback is not None:
                self.callback(Progress(number, len(levels), 0, 1, target))
        self.shared_evaluations += len(conds) * len(levels)
        self.located = len(conds) * len(levels)
        return pulls

    def along_inversion(self, latent: Tensor, picture: str, cells: Tensor, quality: Quality) -> Tensor:
        """The edited latent of one picture; a host may wrap it in its own sampling.

        Args:
            latent: the picture's scaled latent ``[1, C, h, w]``.
            picture: fingerprint of the picture, under which its inversion is kept.
            cells: ``[1, h, w]``, 1 where to edit.
        """
        inversion = self.inversion(latent, picture, quality)
        step = CrossAttentionGuidance(
            self.denoiser, inversion, self.source_cond, self.target_cond, self.uncond,
            CrossAttentionSettings(
                self.cfg, self.guidance if quality == "full" else 0.0, self.guided_fraction, preset=self.preset
            ),
            cells,
        )  # fmt: skip
        return step.run(inversion.steps, self.callback)

    def _edited_whole(self, latent: Tensor, picture: str) -> Tensor:
        if picture not in self._whole:
            edited = self.along_inversion(latent, picture, torch.ones(1, *latent.shape[-2:]), "screen")
            self.shared_evaluations += (self.screen_steps or self.steps) * self._branches
            with torch.no_grad():
                self._whole = {picture: self.decode(edited)}
        return self._whole[picture]

    def _latent(self, crop: Tensor, picture: str) -> Tensor:
        kept = [inversion.latents[0] for (other, _), inversion in self._kept.items() if other == picture]
        return kept[0] if kept else self.encode(crop)

    def inversion(self, latent: Tensor, picture: str, quality: Quality) -> Inversion:
        """The picture's inversion for renders of a quality, made once; see :meth:`along_inversion` for the arguments.

        Raises:
            EditingError: a given inversion of another size.
        """
        steps = self.steps if quality == "full" else self.screen_steps or self.steps
        key = (picture, steps)
        if key in self._kept:
            return self._kept[key]
        if self.given is not None and steps == self.given.steps:
            if self.given.latents.shape[1:] != latent.shape:
                raise EditingError(
                    f"The inversion's latent is {list(self.given.latents.shape[-2:])} and the picture's {list(latent.shape[-2:])}; "
                    "invert the picture that is to be edited, at its own size."
                )
            return self.given
        inversion = invert(self.denoiser, latent, self.source_cond, steps, self.solver, callback=self.callback)
        self.shared_evaluations += int(inversion.forward_evaluations.sum() + inversion.backward_evaluations.sum())
        # Only inversions of the picture at hand are kept: a trajectory is many latents.
        self._kept = {other: kept for other, kept in self._kept.items() if other[0] == key[0]} | {key: inversion}
        return inversion

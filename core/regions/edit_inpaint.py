"""A box editor by inpainting with a latent diffusion model, plain or trained for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..content_hash import content_hash, fingerprint
from ..denoiser import Callback, Denoiser, Progress, unit_scale
from ..errors import EditingError
from ..images.difference import difference_map
from ..inversion import check_latent
from ..sampling import guided, require_negative, sample
from .cache import RenderCache
from .editors import Conds, ImageMap, Sampled, Sampling, sampling_with
from .paste import Framing, paste, repainted_cells, resized
from .proposals import Box

#: What an inpainting model was trained to see where it is to paint.
GREY = 0.5

#: Noise levels of :meth:`LocatingInpaintEditor.change`, as shares of the model's steps, and draws at each; they are
#: set, not searched.
LOCATING_LEVELS, LOCATING_DRAWS, LOCATING_GRID = (0.4, 0.6, 0.8), 2, 20

#: From how far noised a copy of the picture a plain model paints best, as a share of the steps: from pure noise it
#: cannot know the skin or the clothes beside the box. An inpainting model sees them, and was trained on noise.
PLAIN_STRENGTH = 0.8

#: Boxes painted in one network call at most; more take memory and save no time.
BATCH = 4

#: A host's own sampler in place of :func:`inpaint`: ``(source, cells, noise, conds, seed, callback) -> latent``, all
#: ``[B, C, h, w]`` in model units, ``cells [B, 1, h, w]``.
Paint = Callable[[Tensor, Tensor, Tensor, Conds, int, "Callback | None"], Tensor]

#: Adds what an inpainting model reads besides the latent to its conditionings: ``(conds, cells, known) -> conds`` with
#: ``cells [1, 1, h, w]``, 1 where to paint, and ``known``, the crop ``[1, 3, H, W]`` in 0..1, grey where it is to be
#: painted.
ShowKnown = Callable[[Conds, Tensor, Tensor], Conds]


def inpaint(
    denoiser: Denoiser,
    source: Tensor,
    mask: Tensor,
    noise: Tensor,
    cond: Any,
    uncond: Any | None = None,
    *,
    cfg: float = 5.0,
    steps: int = 20,
    strength: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Sample the masked part of a latent, the rest held to the source at every level (Lugmayr et al. 2022, arXiv
    2201.09865, Eq. 8 without resampling; ComfyUI's noise mask): the clean latent ``[B, C, h, w]``, outside the mask
    exactly ``source``.

    At each level the known part is the source with the *same* noise, so under Euler (= DDIM) steps it moves on a
    straight line.

    Args:
        source: ``[B, C, h, w]``, scaled latent.
        mask: zeros and ones ``[B or 1, 1, h, w]``, 1 where to paint.
        noise: ``[B, C, h, w]``, unit variance.
        steps: number of steps of the model's grid.
        strength: share of the steps taken, from the clean end; below 1 the painting starts from the source.
        callback: told after each step; an exception it raises ends the run.

    Raises:
        EditingError: wrong latent shape, cfg without ``uncond``, values out of range, a prediction that is not a
            number.
    """
    count = steps_taken(steps, strength)
    require_negative(cfg, uncond)
    source, noise = check_latent(source, denoiser.identity), noise.to(source)
    painted = mask.to(source.device) > 0.5
    levels = denoiser.sigma_grid(steps)[: count + 1].flip(0).tolist()

    def put_back_source(x: Tensor, sigma: float) -> Tensor:
        return torch.where(painted, x, _noised(denoiser, source, noise, sigma))

    if count == steps:
        x = noise / unit_scale(denoiser.identity, levels[0])
    else:
        x = _noised(denoiser, source, noise, levels[0])
    x = sample(
        lambda x, sigma, step: guided(denoiser, x, sigma, cond, uncond, cfg),
        put_back_source(x, levels[0]),
        levels,
        callback,
        lambda x, step: put_back_source(x, levels[step + 1]),
    )
    return torch.where(painted, x, source)


def steps_taken(steps: int, strength: float) -> int:
    """How many of ``steps`` a strength of 0..1 takes, at least one.

    Raises:
        EditingError: no steps, or a strength out of range.
    """
    if steps < 1:
        raise EditingError(f"steps is {steps}; use 1 or more.")
    if not 0 < strength <= 1:
        raise EditingError(f"strength is {strength:g}; use a share of the steps above 0 and at most 1.")
    return max(1, round(strength * steps))


@dataclass(frozen=True)
class InpaintSettings:
    """How boxes are painted.

    Attributes:
        cfg: guidance scale; 1 needs no negative conditioning and costs half.
        steps: of a render.
        strength: see :func:`inpaint`.
        framing: how a box is cut out; its ``multiple`` is the VAE's.

    Raises:
        EditingError: values out of range.
    """

    cfg: float = 5.0
    steps: int = 20
    strength: float = 1.0
    framing: Framing = field(default_factory=Framing)

    def __post_init__(self) -> None:
        steps_taken(self.steps, self.strength)


@dataclass(eq=False)
class InpaintEditor:
    """Fills a box by latent inpainting: cut out with some context, painted, pasted back (:class:`~.paste.Framing`).

    An inpainting model also sees the mask and the masked picture (``show_known``); any other model paints by the noise
    mask alone. A latent pixel is painted when the mask touches it.

    Attributes:
        denoiser: the network. With a host's ``sampling`` only its ``identity`` and ``evaluations`` are asked.
        encode, decode: the VAE, ``[1, 3, h, w]`` in 0..1 to a scaled latent and back.
        cond, uncond: conditioning of the target text, and the negative one (needed unless cfg is 1).
        settings: see :class:`InpaintSettings`.
        label: whatever else changes the picture and cannot be seen from here, as the name of the VAE or of a LoRA.
        callback: told after each step; an exception it raises ends the run.
        sampling: see :class:`~.editors.Sampling`; without one ``denoiser`` is called directly.
        show_known: for an inpainting model, see :data:`ShowKnown`.
        paint: a host's own sampler, see :data:`Paint`; the settings' steps are then its own, and strength is not used.

    Raises:
        EditingError: cfg without ``uncond``.
    """

    denoiser: Denoiser
    encode: ImageMap
    decode: ImageMap
    cond: Any
    uncond: Any | None = None
    settings: InpaintSettings = field(default_factory=InpaintSettings)
    label: str = ""
    callback: Callback | None = None
    sampling: Sampling | None = None
    show_known: ShowKnown | None = None
    paint: Paint | None = None

    def __post_init__(self) -> None:
        require_negative(self.settings.cfg, self.uncond)

    @cached_property
    def identity(self) -> str:
        """Key of everything but the image, mask, box and seed that decides the picture."""
        return f"inpaint/{fingerprint(self.denoiser.identity, self._conds(), self.settings, self.label)}"

    def _conds(self) -> tuple[Any, ...]:
        return self.cond, self.uncond

    def cost(self) -> int:
        """Network evaluations (u) of one render."""
        return steps_taken(self.settings.steps, self.settings.strength) * (1 if self.settings.cfg == 1.0 else 2)

    @torch.inference_mode(False)
    @torch.no_grad()
    def render(self, image: Tensor, mask: Tensor, box: Sequence[int], *, seed: int) -> Tensor:
        """The image ``[1, 3, H, W]`` with the box repainted, bit-equal outside it; a normal tensor without gradients.

        Args:
            image, mask, box: see :meth:`~.paste.Framing.cut`.
            seed: of the noise; the same seed gives the same picture.

        Raises:
            EditingError: see :meth:`~.paste.Framing.cut`, :func:`~.paste.paste` and :func:`inpaint`.
        """
        (sampled,) = self.sample_all(image, [mask], [box], seed=seed)
        return self.finish(image, sampled)

    @torch.inference_mode(False)
    @torch.no_grad()
    def sample_all(
        self,
        image: Tensor,
        masks: Sequence[Tensor],
        boxes: Sequence[Sequence[int]],
        *,
        seed: int,
        kept: RenderCache | None = None,
    ) -> list[Sampled]:
        """Paint every box as a latent, :data:`BATCH` in a network call: first all are encoded, then all sampled, so
        that a host swaps its models once. :meth:`finish` makes the pictures.

        Args:
            image, masks, boxes, seed: see :meth:`render`; all boxes get the same noise.
            kept: latents of earlier calls, by content; what is sampled here joins it box by box, so that a stopped run
                goes on where it was.

        Raises:
            EditingError: see :meth:`render`.
        """
        cuts = [self.settings.framing.cut(image, mask, box) for mask, box in zip(masks, boxes, strict=True)]
        keys = [
            content_hash(cut.pixels, cut.mask, f"{self.identity} {seed}") if kept is not None else "" for cut in cuts
        ]
        made: dict[int, Tensor] = {}
        if kept is not None:
            made = {number: latent for number, key in enumerate(keys) if (latent := kept.tensor(key)) is not None}
        sources = {number: self.encode(cut.pixels) for number, cut in enumerate(cuts) if number not in made}
        known = set(made)
        jobs = []
        for group in _alike(sources):
            source = torch.cat([sources[number] for number in group])
            cells = torch.cat([repainted_cells(cuts[number].mask, _plane(source)) for number in group])
            seen = torch.cat([torch.where(cuts[n].mask[:, None] > 0, GREY, cuts[n].pixels) for n in group])
            jobs.append((group, source, cells, self._shown(cells, seen)))
        for group, source, cells, conds in jobs:
            latents = self._painted(source, cells, conds, seed)
            for number, latent in zip(group, latents.split(1), strict=True):
                made[number] = latent
                if kept is not None:
                    kept.keep(keys[number], latent)
        return [Sampled(cut, made[number], number not in known) for number, cut in enumerate(cuts)]

    @torch.inference_mode(False)
    @torch.no_grad()
    def finish(self, image: Tensor, sampled: Sampled) -> Tensor:
        """The picture ``[1, 3, H, W]`` of one painted box, see :meth:`render`."""
        return paste(image, self.decode(sampled.latent), sampled.cut)

    def _painted(self, source: Tensor, cells: Tensor, conds: Conds, seed: int) -> Tensor:
        """Painted latents ``[B, C, h, w]``; all get the same noise."""
        noise = torch.randn((1, *source.shape[1:]), generator=torch.Generator().manual_seed(seed))
        noise = noise.expand_as(source)
        if self.paint is not None:
            painted = self.paint(source, cells, noise, conds, seed, self.callback)
            return torch.where(cells.to(painted.device) > 0.5, painted, source.to(painted))

        def work(denoiser: Denoiser, source: Tensor, cond: Any, uncond: Any) -> Tensor:
            return inpaint(
                denoiser,
                source,
                cells,
                noise,
                cond,
                uncond,
                cfg=self.settings.cfg,
                steps=self.settings.steps,
                strength=self.settings.strength,
                callback=self.callback,
            )

        return self._sampled(source, conds, work)

    def _shown(self, cells: Tensor, known: Tensor, against: Any | None = None) -> Conds:
        """The conditionings, with what an inpainting model reads besides.

        Args:
            cells, known: see :data:`ShowKnown`.
            against: a conditioning in place of ``uncond``.
        """
        conds: Conds = {"positive": self.cond}
        against = self.uncond if against is None else against
        if against is not None:
            conds = {**conds, "negative": against}
        return conds if self.show_known is None else self.show_known(conds, cells, known)

    def _sampled(self, source: Tensor, conds: Conds, sample: Callable[[Denoiser, Tensor, Any, Any], Tensor]) -> Tensor:
        """What ``sample(denoiser, source, cond, uncond)`` makes of the latent ``source [B, C, h, w]`` inside the
        sampling."""

        def work(denoiser: Denoiser, latent: Tensor, conds: Conds) -> Tensor:
            # A host's own scaling rounds, and what is not painted must keep its bits: the source itself, not
            # ``latent``.
            return sample(denoiser, source.to(latent.device), conds["positive"], conds.get("negative"))

        return (self.sampling or sampling_with(self.denoiser))(source, conds, work)


@dataclass(eq=False)
class LocatingInpaintEditor(InpaintEditor):
    """An :class:`InpaintEditor` that also knows what the picture shows, and so where its text would change it (see
    :class:`~.editors.Locating`).

    Attributes:
        source_cond: conditioning of what the picture shows.
        shared_evaluations: u spent on :meth:`change` so far.
    """

    source_cond: Any = None
    shared_evaluations: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_cond is None:
            raise EditingError("There is no conditioning of what the picture shows; give source_cond.")

    @classmethod
    def of(cls, editor: InpaintEditor, source_cond: Any) -> LocatingInpaintEditor:
        """``editor`` with what the picture shows."""
        return cls(**{part.name: getattr(editor, part.name) for part in fields(editor)}, source_cond=source_cond)

    def _conds(self) -> tuple[Any, ...]:
        return *super()._conds(), self.source_cond

    @property
    def locating_cost(self) -> int:
        """Network evaluations (u) of one :meth:`change`."""
        return 2 * len(LOCATING_LEVELS) * LOCATING_DRAWS

    @torch.inference_mode(False)
    @torch.no_grad()
    def change(self, image: Tensor) -> Tensor:
        """How strongly the text pulls at each place of ``image [1, 3, H, W]``, ``[h, w]``.

        DiffEdit's mask (Couairon et al. 2023, arXiv 2210.11427, section 3.2) on noised copies of the picture, changed
        in two points: the difference of the two texts' predictions is averaged over the draws before its size is taken,
        which cancels noise, and it is seen through the decoder, level by level, which is finer than the latent. An
        inpainting model reads it with everything to be painted.
        """
        height, width = image.shape[-2:]
        everything = replace(self.settings.framing, context=float("inf")).crop(height, width, Box(0, 0, width, height))
        pixels = resized(image, everything.size)
        latent = self.encode(pixels)

        def pulls(denoiser: Denoiser, latent: Tensor, cond: Any, source: Any) -> Tensor:
            return noised_pulls(denoiser, latent, source, cond, self.callback)

        conds = self._shown(torch.ones_like(latent[:, :1]), torch.full_like(pixels, GREY), self.source_cond)
        found = self._sampled(latent, conds, pulls)
        self.shared_evaluations += self.locating_cost
        plain, found = self.decode(latent), found.to(latent.device)
        return torch.stack([difference_map(self.decode(latent + pull), plain)[0] for pull in found]).mean(0)


def noised_pulls(
    denoiser: Denoiser, latent: Tensor, source: Any, target: Any, callback: Callback | None = None
) -> Tensor:
    """Prediction under ``target`` minus that under ``source`` at noised copies of ``latent [1, C, h, w]``, the mean of
    :data:`LOCATING_DRAWS` draws at each of :data:`LOCATING_LEVELS`: ``[levels, 1, C, h, w]``.

    The draws are the same for every picture: a map must not change with the seed of the edit.
    """
    grid = denoiser.sigma_grid(LOCATING_GRID)
    found, runs = [], len(LOCATING_LEVELS) * LOCATING_DRAWS
    for number, share in enumerate(LOCATING_LEVELS):
        sigma = float(grid[round(share * LOCATING_GRID)])
        total = torch.zeros_like(latent)
        for draw in range(LOCATING_DRAWS):
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(draw)).to(latent)
            before, after = denoiser.batch(_noised(denoiser, latent, noise, sigma), sigma, [source, target])
            total = total + (after - before)
            if callback is not None:
                callback(Progress(number * LOCATING_DRAWS + draw, runs, 0, 1, after))
        found.append(total / LOCATING_DRAWS)
    return torch.stack(found)


def _noised(denoiser: Denoiser, source: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The source at a level: ``x0 + sigma * noise``, for flow models ``(1 - sigma) * x0 + sigma * noise``."""
    clean = source * (1 - sigma) if denoiser.identity.prediction == "flow" else source
    return clean + sigma * noise


def _alike(sources: Mapping[int, Tensor]) -> list[list[int]]:
    """Numbers of latents that one network call can take: of one shape, at most :data:`BATCH`."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, source in sources.items():
        by_shape.setdefault(source.shape, []).append(number)
    return [same[start : start + BATCH] for same in by_shape.values() for start in range(0, len(same), BATCH)]


def _plane(latent: Tensor) -> tuple[int, int]:
    return latent.shape[-2], latent.shape[-1]

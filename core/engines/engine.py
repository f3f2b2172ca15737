"""What the engines share: an edit that is sampled beside its source in one network call, step by step.

The source is read off the inversion's stored trajectory, so nothing is sampled twice and it is exact whatever the edit
does. Each step evaluates the target (with the negative, where cfg is not 1) at the edit's latent and the source at its
own; a control lets the target's attention or features take from the source's while both are computed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.site import AttentionControl, Kind
from ..attention.store import SourceMissing
from ..denoiser import Combining, Denoiser, check_finite
from ..errors import EditingError
from ..inversion import Inversion
from ..sampling import GENERATED, TrajectoryEdit, edited_places, guided, plain_negative

SELF: tuple[Kind, ...] = ("self",)
CROSS: tuple[Kind, ...] = ("cross",)
#: ``(branch of the source, number of branches, what was kept of the source or None)`` -> a control of one evaluation.
MakeControl = Callable[[int, int, Any], AttentionControl]


@dataclass(frozen=True)
class EngineSettings:
    """Settings of every engine.

    Attributes:
        cfg: classifier-free guidance scale of the edit.
        stored_shift: add back at each step what the inversion left over of it, as far as the source's own prediction
            shows it (direct inversion, Ju et al., arXiv 2310.01506). Costs one forward at steps without a control.
        proximal: proximal guidance (ProxEdit, Han et al., arXiv 2306.05414): of the difference of the target's and the
            negative's predictions, this share of the values, the smallest, becomes 0 and the others lose as much; 0 is
            off, and at cfg 1 it has no use.
        background_keep: share of the steps, at the clean end, in which the places that the edit leaves nearly alone go
            back to the source; 0 is off.
        by_guidance: those places are where the thresholded difference of ``proximal`` stays below its threshold, apart
            for each channel and with their neighbours, as in SPDInv's released code; otherwise
            :func:`~..sampling.edited_places`, which needs no guidance.

    Raises:
        EditingError: a value out of range.
    """

    cfg: float = 2.0
    stored_shift: bool = True
    proximal: float = field(default=0.0, kw_only=True)
    background_keep: float = field(default=0.0, kw_only=True)
    by_guidance: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_share("proximal", self.proximal)
        check_share("background_keep", self.background_keep)
        if not 0 <= self.cfg < float("inf"):
            raise EditingError(f"cfg is {self.cfg:g}; use 0 or more, usually 1.5 to 7.5.")


def check_share(name: str, value: float) -> None:
    """Raise :class:`EditingError` unless ``value`` is a share from 0 to 1."""
    if not 0 <= value <= 1:
        raise EditingError(f"{name} is {value:g}; use a share from 0 to 1.")


def chosen(own: bool, cross: bool) -> list[Kind]:
    """The kinds of attention that are wanted."""
    return [*(SELF if own else ()), *(CROSS if cross else ())]


def latent_size(inversion: Inversion) -> tuple[int, int]:
    """Height and width of the latent."""
    height, width = inversion.latents.shape[-2:]
    return height, width


@dataclass
class Engine(TrajectoryEdit):
    """An edit beside its source; a subclass says in :meth:`controls` what it takes from the source at a level.

    Where no step takes anything it is plain classifier-free guidance, bit for bit.

    Attributes:
        inversion: the source's trajectory; it gives the grid, the source's latents and what lies outside the mask.
        source_cond: conditioning of the source, the one the image was inverted with.
        target_cond: conditioning of the edit.
        uncond: negative conditioning; None means the one that the inversion was made with at another cfg than 1, where
            it is a plain text, else ``source_cond``.
        mask: ``[B or 1, H, W]`` of any size, 1 where to edit; outside it the source's trajectory is kept exactly.

    Raises:
        EditingError: an inversion of another model, a mask of another rank or batch; while stepping a prediction that
            is not a number, conditionings whose parts do not correspond, a network without cross-attention.
    """

    denoiser: Denoiser
    inversion: Inversion
    source_cond: Any
    target_cond: Any
    uncond: Any | None = None
    settings: EngineSettings = field(default_factory=EngineSettings)
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._left: Tensor | None = None  # [B, 1 or C, h, w] where the last prediction may leave the source
        self._difference: tuple[Tensor, Tensor] | None = None  # what proximal guidance left, and its threshold
        self._apart = False  # the backend showed the source after the target: evaluate it first, by itself
        if self.uncond is None:
            own = plain_negative(self.inversion, self.source_cond)
            self.uncond = self.source_cond if own is None else own

    @abstractmethod
    def controls(self, level: int) -> MakeControl | None:
        """What makes the control of the step from ``level``; None where the step takes nothing from the source."""

    def storing(self, level: int) -> Any:
        """A control that keeps of the source what :meth:`controls` of ``level`` takes, in its ``kept``."""
        make = self.controls(level)
        assert make is not None
        control: Any = make(0, 1, None)
        return control.storing()

    def within(self, fraction: float, level: int) -> bool:
        """Whether the step from ``level`` is among the first ``fraction`` of the steps, from the noisy end."""
        return self.inversion.steps - level < round(fraction * self.inversion.steps)

    def mask_at(self, level: int) -> Tensor | None:
        """The mask, and what :attr:`EngineSettings.background_keep` found; a subclass may narrow it further."""
        if self._left is None or self.mask is None:
            return self.mask if self._left is None else self._left
        return self._left * self.mask.to(self._left)

    @property
    def takes(self) -> bool:
        """Whether any step takes from the source."""
        return any(self.controls(level) is not None for level in range(self.inversion.steps, 0, -1))

    @property
    def shifts(self) -> bool:
        """Whether what the inversion left over is added back; one made under guidance holds that in its steps."""
        made_up = self.inversion.method == GENERATED or self.inversion.cfg != 1.0
        return self.settings.stored_shift and not made_up and self.takes

    def _edited(self, x: Tensor, level: int) -> Tensor:
        with torch.no_grad():
            sigma, cfg = self._levels(level)[0], self.settings.cfg
            make = self.controls(level)
            if make is None and not self.shifts and not self.settings.proximal:
                denoised = guided(self.denoiser, x, sigma, self.target_cond, self.uncond, cfg)
            else:
                conds = [self.target_cond, self.source_cond] if cfg == 1.0 else self._all_conds()
                latents = [x] * (len(conds) - 1) + [self._source(x, level)]
                *edited, source = self._predictions(latents, sigma, conds, make, level)
                denoised = self._combined(x, sigma, edited, conds)
                if self.shifts:
                    alone = self._combined(latents[-1], sigma, [source], [self.source_cond])
                    denoised = denoised + self._stored_shift(alone, level)
        check_finite(denoised, f"The prediction at step {self.inversion.steps - level + 1}")
        self._find_background(denoised, level)
        return denoised

    def _find_background(self, denoised: Tensor, level: int) -> None:
        """Where the step from ``level`` may leave the source, for :meth:`mask_at`."""
        settings = self.settings
        if level > round(settings.background_keep * self.inversion.steps):
            self._left = None
        elif not settings.by_guidance:
            here, below = self._source(denoised, level), self._source(denoised, level - 1)
            self._left = edited_places(denoised, self._landing(here, below, level))
        elif self._difference is not None:
            kept, threshold = self._difference
            self._left = functional.max_pool2d((kept.abs() > threshold).float(), 3, 1, 1)

    def _all_conds(self) -> list[Any]:
        return [self.target_cond, self.uncond, self.source_cond]

    def _predictions(
        self, latents: Sequence[Tensor], sigma: float, conds: Sequence[Any], make: MakeControl | None, level: int
    ) -> list[Tensor]:
        """Predictions under ``conds``, the source's last, with the step's control."""
        last = len(conds) - 1
        if make is None:
            return self.denoiser.batch(latents, sigma, conds)
        if not self._apart:
            try:
                return self.denoiser.batch(latents, sigma, conds, control=make(last, len(conds), None))
            except SourceMissing:
                self._apart = True
        store = self.storing(level)
        source = self.denoiser(latents[last], sigma, conds[last], control=store)
        kept = {(*key[:2], last, key[3]): part for key, part in store.kept.items()}  # a lone conditioning is branch 0
        control = make(last, len(conds), kept)
        return [*self.denoiser.batch(latents[:last], sigma, conds[:last], control=control), source]

    def _combined(self, x: Tensor, sigma: float, predictions: list[Tensor], conds: Sequence[Any]) -> Tensor:
        """Guided prediction of [target, negative], or of one alone, as the denoiser combines them."""
        if len(predictions) == 2 and self.settings.proximal:
            toward, away = predictions
            self._difference = thresholded(toward - away, self.settings.proximal)
            predictions = [away + self._difference[0], away]
        if isinstance(self.denoiser, Combining) and self.denoiser.patched:
            cfg = 1.0 if len(predictions) == 1 else self.settings.cfg
            pair = [predictions[0], predictions[-1]]
            return self.denoiser.combine(x, sigma, pair, [conds[0], conds[len(predictions) - 1]], cfg)
        if len(predictions) == 1:
            return predictions[0]
        conditional, unconditional = predictions
        return unconditional + (conditional - unconditional) * self.settings.cfg


def thresholded(difference: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Soft thresholding, the proximal map of the L1 norm: ``difference [B, C, h, w]`` with every value moved towards 0
    by the quantile ``share`` of an image's absolute values, and those quantiles ``[B, 1, 1, 1]``.
    """
    threshold = difference.abs().flatten(1).float().quantile(share, dim=1).view(-1, 1, 1, 1).to(difference)
    return functional.relu(difference.abs() - threshold) * difference.sign(), threshold

"""DeltaEdit-D (Lyu et al., section 4.2): a picture as a style code and the noise from which a diffusion model draws it.

The style code holds what a face means, the noise x_T what no code says. Both come from the picture: the code from an
encoder of the generator, the noise by running the deterministic sampler backwards under that code (Eq. 15). With
another code the same noise draws the edited picture.

Encoding and decoding are the pack's own inversion and its one sampling loop: :class:`StyleDenoiser` shows them the
network in sigma space, where a DDIM step (Eq. 13 without its random term) is an Euler step. So the fixed-point
inversion of SPDInv works here too, and nothing is written twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.site import AttentionControl
from ..denoiser import Callback, Evaluations, ModelIdentity, check_finite, unit_scale, weight_signature
from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..images.sizes import resized
from ..prints.weights import weight_print
from ..reading.forms import only
from ..sampling import sample
from ..spdinv.invert import spdinv
from ..spdinv.solvers import SPDInvSettings
from .style_code import StyleCode, StyleLayout
from .style_unet import StyleUNet, UNetShape

FILE_FORMAT = "semantic_editing.style_diffusion"
FILE_VERSION = "1"
FAMILY = "style diffusion"
#: The noise schedule of DDPM, which the paper and DiffAE keep: variances that rise linearly over the training's steps.
TIMES, FIRST_VARIANCE, LAST_VARIANCE = 1000, 1e-4, 0.02
#: A style channel whose standard deviation is smaller is a constant.
LEAST_DEVIATION = 1e-4
#: Residual at which ``exact`` takes a step as solved, and the most evaluations that it spends on one.
TOLERANCE, MOST_EVALUATIONS = 1e-9, 12


def noise_schedule() -> Tensor:
    """Noise level sigma of each training step, ``[TIMES]`` ascending; Eq. 9's alpha is ``1 / (1 + sigma^2)``."""
    kept = torch.cumprod(1 - torch.linspace(FIRST_VARIANCE, LAST_VARIANCE, TIMES, dtype=torch.float64), 0)
    return ((1 - kept) / kept).sqrt().float()


class StyleDiffusion(nn.Module):
    """A diffusion model of pictures that a style code steers: the noise predictor of Eq. 14.

    Args:
        shape: of its U-Net.
        layout, generator: of the style codes that it understands; the generator by its identity.
        mean, deviation: of every convolution style over the training pictures ``[layout.width]``, by which codes are
            standardised; None: 0 and 1.
    """

    mean: Tensor
    deviation: Tensor
    sigmas: Tensor

    def __init__(
        self,
        shape: UNetShape,
        layout: StyleLayout,
        generator: str,
        mean: Tensor | None = None,
        deviation: Tensor | None = None,
    ):
        super().__init__()
        self.shape, self.layout, self.generator = shape, layout, generator
        self.facts: dict[str, Any] = {}
        self.unet = StyleUNet(shape, layout.level_widths)
        width = layout.width
        self.register_buffer("mean", torch.zeros(width) if mean is None else mean.clone().float())
        self.register_buffer("deviation", torch.ones(width) if deviation is None else deviation.clone().float())
        self.register_buffer("sigmas", noise_schedule(), persistent=False)

    @property
    def identity(self) -> ModelIdentity:
        """By which noise is known as this network's own."""
        signature = weight_signature(self.unet.first.weight, self.unet.last.weight)
        return ModelIdentity(FAMILY, 3, "eps", signature, weight_print(self.unet.parameters()))

    def check(self, code: StyleCode) -> None:
        """Raise :class:`EditingError` when a style code belongs to another generator than this network learned from."""
        if code.layout != self.layout or code.generator != self.generator:
            own, theirs = self.layout.width, code.layout.width
            widths = "" if own == theirs else f" ({theirs} channels, not {own})"
            raise EditingError(
                f"The style code was made by another generator than the style diffusion learned from{widths}; load the "
                "two that belong together."
            )

    def standardised(self, convs: Tensor) -> Tensor:
        """Convolution styles ``[B, layout.width]`` as the U-Net reads them, about 0 and 1."""
        return (convs.to(self.mean) - self.mean) / self.deviation.clamp_min(LEAST_DEVIATION)

    def times(self, sigma: Tensor) -> Tensor:
        """The training step ``[B]`` at noise levels ``[B]``, between two steps by the logarithm of the level."""
        table, level = self.sigmas.log(), sigma.to(self.sigmas).clamp(self.sigmas[0], self.sigmas[-1]).log()
        above = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return (above - 1) + (level - low) / (high - low)

    def forward(self, x: Tensor, sigma: Tensor, convs: Tensor) -> Tensor:
        """The noise in ``x`` (Eq. 14's epsilon).

        Args:
            x: noisy pictures ``[B, 3, size, size]`` of unit variance: ``(picture + sigma * noise) / sqrt(1+sigma^2)``.
            sigma: their noise levels ``[B]``.
            convs: convolution styles ``[B, layout.width]`` as generators make them.
        """
        found: Tensor = self.unet(x, self.times(sigma), self.standardised(convs))
        if self.shape.prediction == "eps":
            return found
        level = sigma.to(x)[:, None, None, None]
        return (found + level * x) * (1 + level**2).rsqrt()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the weights at half precision with shape and generator; styles' mean and deviation stay as they are.

        Raises:
            EditingError: see :func:`~..files.save_tensors`.
        """
        tensors = {f"unet.{name}": value.half() for name, value in self.unet.state_dict().items()}
        shape = asdict(self.shape)
        del shape["sides"]
        metadata = {
            FORMAT_KEY: FILE_FORMAT,
            "version": FILE_VERSION,
            "method": "DeltaEdit-D",
            "generator": self.generator,
            "shape": json.dumps(shape),
            "layout": json.dumps(asdict(self.layout)),
            "facts": json.dumps(self.facts),
        }
        return save_tensors(
            path, tensors | {"mean": self.mean, "deviation": self.deviation}, metadata, overwrite=overwrite
        )


def load_style_diffusion(path: str | Path) -> StyleDiffusion:
    """Read what :meth:`StyleDiffusion.save` wrote.

    Raises:
        EditingError: missing, damaged, or another kind of file.
    """
    name = Path(path).name
    tensors, metadata = load_tensors(path, FILE_FORMAT, kind="style diffusion")
    said = metadata_json(metadata, "shape", name, "style diffusion")
    parts = metadata_json(metadata, "layout", name, "style diffusion")
    facts = metadata_json(metadata, "facts", name, "style diffusion")
    layout = StyleLayout(*(tuple((side, width) for side, width in parts[key]) for key in ("convs", "rgbs")))
    known: dict[str, Any] = only(said, (part.name for part in fields(UNetShape) if part.init))
    known |= {key: tuple(known[key]) for key in ("multipliers", "attention")}
    shape = UNetShape(**known)
    with torch.device("meta"):  # the shapes are the file's claims until its tensors fit them
        network = StyleDiffusion(shape, layout, metadata.get("generator", ""))
    if {key: value.shape for key, value in network.state_dict().items()} != {
        key: value.shape for key, value in tensors.items()
    }:
        raise EditingError(f"{name} is damaged: its weights do not fit its description; train and save it again.")
    for value in tensors.values():
        if not value.is_floating_point() or not value.isfinite().all():
            raise EditingError(f"{name} is damaged: some weights are not numbers; train and save it again.")
    network.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    network.register_buffer("sigmas", noise_schedule(), persistent=False)
    network.facts = facts
    return network.eval().requires_grad_(False)


@dataclass(eq=False)
class StyleDenoiser:
    """A :class:`StyleDiffusion` as a :class:`~..denoiser.Denoiser`; a conditioning is convolution styles ``[B, S]``.

    Attributes:
        clip: predicted pictures are cut to -1..1, as DDPM and DiffAE do; what lies outside is no picture.
    """

    network: StyleDiffusion
    clip: bool = True
    evaluations: Evaluations = field(default_factory=Evaluations)
    identity: ModelIdentity = field(init=False)

    def __post_init__(self) -> None:
        self.identity = self.network.identity

    def __call__(
        self, x: Tensor, sigma: float | Tensor, cond: Tensor, *, control: AttentionControl | None = None
    ) -> Tensor:
        """The picture ``[B, 3, size, size]`` that ``x`` holds, from the predicted noise (Eq. 13).

        Raises:
            EditingError: ``control`` is given; the network has no attention to a text.
        """
        if control is not None:
            raise EditingError("A style diffusion has no attention to a text that could be steered; edit its code.")
        levels = torch.as_tensor(sigma, device=x.device, dtype=x.dtype).reshape(-1).expand(len(x))
        column = levels[:, None, None, None]
        noise = self.network(x * (1 + column**2).rsqrt(), levels, cond.to(x.device).expand(len(x), -1))
        denoised = self.evaluations.track(x - column * noise, x)
        return denoised.clamp(-1, 1) if self.clip else denoised

    def batch(
        self,
        x: Tensor | Sequence[Tensor],
        sigma: float | Tensor,
        conds: Sequence[Tensor],
        *,
        control: AttentionControl | None = None,
    ) -> list[Tensor]:
        """One prediction for each of several codes ``[B or 1, S]``."""
        latents = [x] * len(conds) if isinstance(x, Tensor) else x
        return [self(latent, sigma, cond, control=control) for latent, cond in zip(latents, conds, strict=True)]

    def select(self, cond: Tensor, rows: Tensor) -> Tensor:
        """The styles of some rows."""
        return cond if len(cond) == 1 else cond[rows.to(cond.device)]

    def sigma_grid(self, steps: int) -> Tensor:
        """Ascending levels ``[steps + 1]``: 0, then ``steps`` of the schedule's, evenly spread up to its last.

        Raises:
            EditingError: ``steps`` outside 1..TIMES-1.
        """
        if not 1 <= steps < TIMES:
            raise EditingError(f"steps is {steps}; use a number from 1 to {TIMES - 1}.")
        index = torch.linspace(0, TIMES - 1, steps + 1, dtype=torch.float64).round().long()[1:]
        return torch.cat([torch.zeros(1), self.network.sigmas.cpu()[index]])


@dataclass(frozen=True, eq=False)
class StyleNoise:
    """What a style code does not say of pictures: the noise x_T from which they are drawn.

    Attributes:
        noise: ``[B, 3, size, size]`` of unit variance, on the CPU.
        steps: in which it was encoded; decoding in as many comes back most exactly.
        identity: of the network that it belongs to.
        evaluations: of the network, for each picture (u).
        residual: largest mean square by which a step of the inversion misses where it started; NaN if not measured.
    """

    noise: Tensor
    steps: int
    identity: ModelIdentity
    evaluations: float = 0.0
    residual: float = math.nan

    def __len__(self) -> int:
        return len(self.noise)

    def require_model(self, network: StyleDiffusion) -> None:
        """Raise :class:`EditingError` unless this is noise of ``network``."""
        difference = self.identity.mismatch(network.identity)
        side = self.noise.shape[-1]
        if difference is not None or side != network.shape.size:
            raise EditingError(
                f"This noise was encoded by another style diffusion ({difference or f'of {side} pixels'}); encode the "
                "picture again with this one."
            )


def fitted(pictures: Tensor, side: int) -> Tensor:
    """Square ``pictures [B, 3, H, H]`` in 0..1 as a style diffusion takes them: ``[B, 3, side, side]`` in -1..1.

    Means where whole pixels fall together, bicubic otherwise.

    Raises:
        EditingError: they are not square; cutting them anyhow would draw a face at another place than the code says.
    """
    height, width = pictures.shape[-2:]
    if height != width:
        raise EditingError(
            f"The picture is {width} x {height} and a style diffusion takes squares; wire the face that the style code "
            "was made of."
        )
    return resized(pictures, side) * 2 - 1


def random_noise(network: StyleDiffusion, count: int, steps: int, seed: int) -> StyleNoise:
    """Noise of no picture: what is drawn from it shows what a style code alone says."""
    side, seeded = network.shape.size, torch.Generator().manual_seed(seed)
    return StyleNoise(torch.randn(count, 3, side, side, generator=seeded), steps, network.identity)


def encode(
    network: StyleDiffusion,
    pictures: Tensor,
    code: StyleCode,
    steps: int = 100,
    *,
    exact: bool = False,
    clip: bool = True,
    callback: Callback | None = None,
) -> StyleNoise:
    """The noise x_T of pictures, by deterministic DDIM inversion under their style code (Eq. 15 run backwards).

    Args:
        pictures: ``[B, 3, size, size]`` in -1..1.
        code: of these pictures, one for all or one each.
        steps: T; the paper takes 100.
        exact: every step is solved for the point from which sampling comes back (SPDInv), for about four times the
            evaluations; False: plain DDIM inversion, one evaluation a step, as in the paper.
        clip: see :class:`StyleDenoiser`.
        callback: told after every evaluation; an exception it raises ends the run.

    Raises:
        EditingError: another size or generator, numbers of pictures and codes that do not fit, bad steps, NaN.
    """
    network.check(code)
    side = network.shape.size
    if tuple(pictures.shape[1:]) != (3, side, side):
        raise EditingError(
            f"The pictures have shape {list(pictures.shape)}; this style diffusion takes [batch, 3, {side}, {side}]."
        )
    if len(code) not in (1, len(pictures)):
        raise EditingError(
            f"There are {len(pictures)} pictures and style codes of {len(code)}; use the code of these pictures."
        )
    denoiser = StyleDenoiser(network, clip)
    device = network.mean.device
    settings = SPDInvSettings("anderson" if exact else "ddim", TOLERANCE, MOST_EVALUATIONS)
    inversion = spdinv(
        denoiser, pictures.to(device), code.convs.to(device), steps, settings, cond_tensors={}, callback=callback
    )
    residual = float(inversion.residuals.max()) if exact else math.nan
    return StyleNoise(inversion.noise.cpu(), steps, network.identity, inversion.evaluations, residual)


def decode(
    network: StyleDiffusion,
    noise: StyleNoise,
    code: StyleCode,
    steps: int | None = None,
    *,
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Pictures ``[B, 3, size, size]`` in about -1..1, drawn from noise under a style code by DDIM (Eq. 15).

    Args:
        noise, code: equally many, or one of either for all.
        steps: None: as many as the noise was encoded in.
        clip: see :class:`StyleDenoiser`.
        callback: told after each step; an exception it raises ends the run.

    Raises:
        EditingError: noise or code of another model, numbers that do not fit, bad steps, NaN.
    """
    network.check(code)
    noise.require_model(network)
    check_finite(code.convs, "The style code")
    if len(code) != len(noise) and 1 not in (len(code), len(noise)):
        raise EditingError(
            f"There are {len(noise)} pictures of noise and style codes of {len(code)}; use equally many, or one."
        )
    count = max(len(code), len(noise))
    denoiser = StyleDenoiser(network, clip)
    device = network.mean.device
    levels = denoiser.sigma_grid(noise.steps if steps is None else steps).flip(0).tolist()
    start = noise.noise.to(device).expand(count, -1, -1, -1) / unit_scale(network.identity, levels[0])
    convs = code.convs.to(device).expand(count, -1)
    return sample(lambda x, sigma, step: denoiser(x, sigma, convs), start, levels, callback).cpu()


def spherical(first: Tensor, second: Tensor, amount: float) -> Tensor:
    """Spherical interpolation of noise, row by row (Eq. 16); ``amount`` 0 is ``first``, 1 is ``second``.

    Rows that point the same way are interpolated linearly, where Eq. 16 divides 0 by 0.
    """
    flat = [part.flatten(1).double() for part in torch.broadcast_tensors(first, second)]
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=1).clamp(-1, 1)
    angle = cosine.arccos()[:, None]
    sine = angle.sin()
    weights = [torch.sin(part * angle) / sine for part in (1 - amount, amount)]
    straight = sine < 1e-6
    weights = [torch.where(straight, part, weight) for part, weight in zip((1 - amount, amount), weights, strict=True)]
    mixed = weights[0] * flat[0] + weights[1] * flat[1]
    return mixed.reshape(torch.broadcast_shapes(first.shape, second.shape)).to(first.dtype)


def interpolate_noise(first: StyleNoise, second: StyleNoise, amounts: Sequence[float]) -> StyleNoise:
    """Noise on the way from one picture to another, a row for each amount from 0 to 1 (Eq. 16).

    Raises:
        EditingError: noise of two models, or of several pictures.
    """
    if first.identity.mismatch(second.identity) is not None or first.noise.shape[1:] != second.noise.shape[1:]:
        raise EditingError("The two noises were encoded by different style diffusions; encode both with one.")
    if len(first) != 1 or len(second) != 1:
        raise EditingError(
            f"Interpolation goes from one picture to another, and there are {len(first)} and {len(second)}; choose one "
            "of each."
        )
    rows = [spherical(first.noise, second.noise, amount) for amount in amounts]
    return replace(first, noise=torch.cat(rows))

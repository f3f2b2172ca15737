"""From a picture to a style code: an encoder's guess, checked against the picture, and refined where that is asked for.

Two ways to come nearer, both judged by the rebuilt picture's error alone, so that neither makes a code worse:

- further passes: what the encoder sees differently in its own rebuilt picture is added to the code, ``w + E(x) -
  E(G(w))``, which is the correction of ReStyle (Alaluf et al., ICCV 2021) for an encoder that sees one picture;
- refinement: descent on W+ (Abdal et al., ICCV 2019) by the squared error, held back by a prior: the code may leave the
  encoder's, and its rows their common course, only where the picture gains by it. Far from where the encoder's codes
  lie a generator rebuilds well and edits badly (e4e, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError
from ..images.sizes import resized
from .encoder import StyleEncoder
from .style_code import StyleCode
from .stylegan2 import StyleGAN2

#: Told ``(done, total)`` evaluations of the generator; may raise to stop.
Report = Callable[[int, int], object]
#: What a squared spread of W costs against a squared error of 1. On 12 of the demo world's pairs, after 30 steps, the
#: true edit's direction drew the truth's changed part at 21.6 dB with these, at 20.8 with none, at 21.5 without
#: refinement.
PRIOR, ROW_PRIOR = 0.01, 0.04
#: Codes of random pictures by which the spread of W is measured.
SPREAD_SAMPLES = 1000
#: Pixels of the pictures that are worked on at a time.
CHUNK = 2**18


def invert(
    generator: StyleGAN2,
    encoder: StyleEncoder,
    pictures: Tensor,
    *,
    passes: int = 1,
    steps: int = 0,
    rate: float = 0.1,
    prior: float = PRIOR,
    row_prior: float = ROW_PRIOR,
    report: Report | None = None,
) -> StyleCode:
    """Style codes of pictures.

    Args:
        pictures: faces ``[B, 3, size, size]`` in 0..1, of the generator's size and cut as its training pictures.
        passes: of the encoder; the first is its guess. Kept is each picture's best.
        steps: of Adam on W+ afterwards.
        rate: its step, in spreads of W.
        prior, row_prior: how much a squared spread of W costs against a squared error of 1 in pixels of -1..1: the mean
            change of a code's rows from the encoder's, and each row's change beyond that.
        report: see :data:`Report`. What it raises ends the inversion.

    Returns:
        The code, on the CPU, with the generator's identity, its W+, and for each picture how well it rebuilds it.

    Raises:
        EditingError: pictures of another size, an encoder that makes no numbers or of another shape, or settings out of
            range.
    """
    _check(generator, pictures, passes, steps, rate, prior, row_prior)
    device = generator.w_mean.device
    many = max(1, CHUNK // generator.size**2)
    chunks = pictures.split(many)
    total, done = len(chunks) * (passes + steps), 0

    def tell() -> None:
        nonlocal done
        done += 1
        if report is not None:
            report(done, total)

    found, errors = [], []
    for chunk in chunks:
        target = chunk.to(device).float() * 2 - 1
        w_plus, history = _encoded(generator, encoder, target, passes, tell)
        if steps:
            w_plus, last = _refined(generator, w_plus, target, history[-1], steps, rate, prior, row_prior, tell)
            history.append(last)
        found.append(w_plus.cpu())
        errors.append(torch.stack(history, 1).cpu())
    w_plus, table = torch.cat(found).to(device), torch.cat(errors)
    with torch.no_grad():
        code = generator.styles(w_plus).to("cpu")
    return replace(code, facts=tuple(_facts(row, passes, steps) for row in table.tolist()))


@torch.no_grad()
def _encoded(
    generator: StyleGAN2, encoder: StyleEncoder, target: Tensor, passes: int, tell: Callable[[], None]
) -> tuple[Tensor, list[Tensor]]:
    """The best W+ of some passes, and its error after the first and after all (one entry where there is one pass)."""
    seen = encoder(resized(target, encoder.side, -1))
    if seen.ndim != 3 or not seen.isfinite().all():
        raise EditingError("The style encoder made codes that are no numbers; check its file, or run it in 32 bits.")
    best = current = seen
    rebuilt = generator(current)
    error = first = _errors(rebuilt, target)
    if not error.isfinite().all():
        raise EditingError("The generator made pictures that are no numbers; check its file, or run it in 32 bits.")
    tell()
    for _ in range(passes - 1):
        current = current + seen - encoder(resized(rebuilt, encoder.side, -1))
        rebuilt = generator(current)
        new = _errors(rebuilt, target)
        better = new < error  # never true of a NaN
        best = torch.where(better[:, None, None], current, best)
        error = torch.where(better, new, error)
        tell()
    return best, [first, error] if passes > 1 else [first]


def _refined(
    generator: StyleGAN2,
    start: Tensor,
    target: Tensor,
    error: Tensor,
    steps: int,
    rate: float,
    prior: float,
    row_prior: float,
    tell: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """W+ of the least error on the way, and that error; ``start`` where nothing was better."""
    spread = _spread(generator)
    best = start
    with torch.enable_grad():
        change = torch.zeros_like(start, requires_grad=True)  # in spreads
        optimiser = torch.optim.Adam([change], lr=rate)
        for step in range(steps + 1):
            current = start + spread * change
            errors = _errors(generator(current), target)
            better = errors.detach() < error
            best = torch.where(better[:, None, None], current.detach(), best)
            error = torch.where(better, errors.detach(), error)
            if step == steps:
                break
            common = change.mean(1, keepdim=True)
            cost = prior * common.square().mean((1, 2)) + row_prior * (change - common).square().mean((1, 2))
            loss = (errors + cost).sum()  # each picture's own: their gradients do not meet
            if not loss.isfinite():
                break
            optimiser.param_groups[0]["lr"] = rate * _schedule(step / steps)
            (change.grad,) = torch.autograd.grad(loss, [change])
            optimiser.step()
            tell()
    return best, error


def _schedule(part: float) -> float:
    """Of the step length: full at first, down to nothing along half a cosine over the second half."""
    return 1.0 if part < 0.5 else 0.5 + 0.5 * math.cos(math.pi * (2 * part - 1))


@torch.no_grad()
def _spread(generator: StyleGAN2) -> float:
    """Root mean square distance of a number of W from its mean."""
    z = torch.randn(SPREAD_SAMPLES, generator.style_dim, generator=torch.Generator().manual_seed(0))
    spread = float(generator.map(z.to(generator.w_mean)).std(0).square().mean().sqrt())
    return spread if math.isfinite(spread) and spread > 0 else 1.0


def _errors(rebuilt: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture, of -1..1."""
    return (rebuilt - target).square().mean((1, 2, 3))


def _facts(errors: list[float], passes: int, steps: int) -> str:
    """How well a picture is rebuilt, stage by stage."""
    stages = ["by the encoder"]
    stages += [f"by the best of {passes} passes"] if passes > 1 else []
    stages += [f"after {steps} steps of refinement"] if steps else []
    return "rebuilt at " + ", ".join(
        f"{decibels(error):.1f} dB {stage}" for error, stage in zip(errors, stages, strict=True)
    )


def decibels(error: float) -> float:
    """PSNR of a mean squared error of pixels of -1..1, whose range is 2."""
    return -10 * math.log10(error / 4) if error > 0 else math.inf


def _check(
    generator: StyleGAN2, pictures: Tensor, passes: int, steps: int, rate: float, prior: float, row_prior: float
) -> None:
    size = generator.size
    if pictures.ndim != 4 or len(pictures) == 0 or tuple(pictures.shape[1:]) != (3, size, size):
        raise EditingError(
            f"The pictures have shape {list(pictures.shape)}; this generator needs [batch, 3, {size}, {size}], faces "
            "cut to its size."
        )
    check_finite(pictures, "The picture")
    if passes < 1 or steps < 0:
        raise EditingError(f"passes is {passes} and steps {steps}; use at least 1 and 0.")
    if not (0 < rate < math.inf and 0 <= prior < math.inf and 0 <= row_prior < math.inf):
        raise EditingError(
            f"The rate is {rate:g} and the priors {prior:g} and {row_prior:g}; use a positive rate, and priors of 0 "
            "or more."
        )

"""What the nodes tell people: reports in words, and the outputs that every inversion node shares."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from textwrap import shorten
from typing import Any

import torch

from ...core.denoiser import Evaluations
from ...core.images.plots import inversion_plot
from ...core.inversion import Inversion
from ...core.rebuilding import estimated_decibels, plain_sentence
from ..host.folders import resolve_file, resolve_model
from ..host.latents import latent_from_model, noise_object, sigmas_out
from ..host.progress import progress_text
from ..host.schema import io, ui
from .sockets import InversionType


def inversion_outputs() -> list[Any]:
    """Outputs shared by all nodes that make or load an INVERSION."""
    return [
        InversionType.Output(
            "inversion",
            display_name="inversion",
            tooltip="The trajectory from image to noise; wire it into Cross-Attn Guided Sampler.",
        ),
        io.Latent.Output(
            "noise_latent",
            display_name="noise latent",
            tooltip="The inverted noise in the sampler's own scale (values up to about 70 are normal). "
            "Wire it as latent_image of SamplerCustomAdvanced.",
        ),
        io.Sigmas.Output(
            "grid",
            display_name="sigmas",
            tooltip="The noise levels visited, from high to low. Sampling on the same levels rebuilds the image.",
        ),
        io.Noise.Output(
            "start_noise",
            display_name="noise",
            tooltip="Wire it as noise of SamplerCustomAdvanced: nothing to add for SD models (like DisableNoise), "
            "the inverted noise itself for flow models.",
        ),
    ]


def inversion_values(model: Any, inversion: Inversion) -> tuple[Any, ...]:
    """Values of :func:`inversion_outputs`: INVERSION, LATENT, SIGMAS, NOISE.

    An eps or v model starts from the LATENT and adds no noise; a flow model starts from the NOISE over an empty LATENT.
    """
    inversion = replace(inversion, latents=inversion.latents.cpu())
    start, sigma = inversion.latents[-1], float(inversion.sigmas[-1])
    nothing = torch.zeros_like(start)
    flow = inversion.identity.prediction == "flow"
    latent = latent_from_model(model, start)
    if flow:
        latent = {"samples": torch.zeros_like(latent["samples"])}
    noise = noise_object(start, sigma, model) if flow else noise_object(nothing)
    return inversion, latent, sigmas_out(inversion.sigmas), noise


def inversion_report(inversion: Inversion, first: str | None = None) -> str:
    """A few lines on how exact the inversion is and what it cost.

    Args:
        first: the first sentence; None takes the inversion's own estimate.
    """
    if first is None and inversion.method == "generated":
        first = "A generated picture with the way it came about, which every edit can follow."
    elif first is None:
        decibels = estimated_decibels(inversion)
        unknown = "The way from the picture to noise is known; how exactly it leads back is not."
        first = unknown if decibels is None else plain_sentence(decibels, about=True)
    lines = [
        first,
        f"{inversion.method}: {inversion.steps} steps, {inversion.latents.shape[1]} image(s)",
        f"network evaluations per image: {inversion.evaluations:.0f} forward, {inversion.backward_passes:.0f} backward",
        f"noise: mean {float(inversion.noise.mean()):+.3f}, standard deviation {float(inversion.noise.std()):.3f} (1 "
        "is ideal)",
    ]
    if inversion.residuals.isfinite().all():
        worst = inversion.residuals.amax(1)
        step = int(worst.argmax())
        mean = float(inversion.residuals.mean())
        lines.append(f"fixed-point residual: worst {float(worst[step]):.2e} (step {step + 1}), mean {mean:.2e}")
    if inversion.words is not None:
        lines.append(f"words kept: {shorten(inversion.words.text, 200)}")
    guidance = inversion.cfg
    lines.append(f"way back: sampler euler on these sigmas at cfg {guidance:g}; dpmpp_2m, heun rebuild less")
    for figure in ("correlation", "variance"):
        before, after = (inversion.info.get(f"{figure}_{when}") for when in ("before", "after"))
        if before and after:
            lines.append(
                f"{figure} of the predicted noise, mean over steps: {fmean(before):+.3f} before, {fmean(after):+.3f} "
                "after"
            )
    return "\n".join(lines)


def step_report(inversion: Inversion) -> str:
    """A line for each step, from the image to the noise: level reached, worst residual of the images, u per image.

    Without residuals (plain DDIM, regularised DDIM) there is nothing to tell of single steps: an empty text.
    """
    if not inversion.residuals.isfinite().all():
        return ""
    rows = zip(
        inversion.sigmas[1:].tolist(), inversion.residuals.amax(1).tolist(), inversion.forward_evaluations, strict=True
    )
    lines = (
        f"step {number}: sigma {sigma:.3g}, residual {residual:.1e}, {float(u.float().mean()):.3g} u"
        for number, (sigma, residual, u) in enumerate(rows, start=1)
    )
    return "\n" + "\n".join(lines)


def cost_report(evaluations: Evaluations, inversion: Inversion) -> str:
    """What an edit along ``inversion`` cost."""
    images, steps = inversion.latents.shape[1], inversion.steps
    forward, backward = evaluations.forward / images, evaluations.backward / images
    return (
        f"{images} image(s), {steps} steps\nnetwork evaluations per image: {forward:.0f} forward, {backward:.0f} "
        f"backward ({forward / steps:.1f} + {backward / steps:.1f} per step)"
    )


def report_output() -> Any:
    """The report as STRING."""
    return io.String.Output(
        "report", display_name="report", tooltip="What was done, what it cost and how exact it is; for Preview Any."
    )


def plot_output() -> Any:
    """The plot as IMAGE."""
    return io.Image.Output(
        "plot", display_name="plot", tooltip="Figures of every step as a picture; for Preview Image."
    )


def file_fingerprint(folder: str, name: str) -> str:
    """Size and modification time of file ``name`` in the pack's ``folder``."""
    status = resolve_file(folder, name).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def model_fingerprint(folder: str, name: str, mark: str = "config.json") -> str:
    """Sizes and modification times of a model's files, so that a model put in anew is read anew."""
    path = resolve_model(folder, name, mark)
    files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    return " ".join(f"{part.stat().st_size} {part.stat().st_mtime_ns}" for part in files)


def plot_image(inversion: Inversion, tolerance: float | None = None) -> Any:
    """The plot of an inversion as IMAGE ``[1, H, W, 3]``, with ``tolerance`` as a line."""
    return inversion_plot(inversion, tolerance)[None]


#: What a guider says that has remarks; without any it says nothing.
READY = "It is ready to sample; what it does not find as it expects stands below."


def report_text(sentence: str, *details: str) -> str:
    """A report: one plain sentence for people, then a line or several of each of ``details`` that says more."""
    return "\n".join([sentence, *(part for part in details if part not in ("", sentence))])


def is_sentence(line: str) -> bool:
    """Whether a line is meant for people: several words and a full stop."""
    return line.endswith(".") and " " in line.strip()


def shown(report: str, image: Any = None, cls: Any = None) -> dict[str, Any]:
    """A node's UI: ``report`` as text, and ``image [B, H, W, 3]`` as a preview when given.

    The report's first line, where it is a sentence, is also written on the node itself.
    """
    first = report.strip().partition("\n")[0]
    if is_sentence(first):
        progress_text(first)
    fields: dict[str, Any] = ui.PreviewText(report).as_dict()
    if image is not None:
        fields |= ui.PreviewImage(image, cls=cls).as_dict()
    return fields

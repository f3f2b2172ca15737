"""What the nodes that invert an image share: their sockets, and the run from LATENT to INVERSION, plot and report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ...core.denoiser import Callback, Denoiser
from ...core.images.difference import difference_map, difference_picture, full_heat
from ...core.images.plots import WIDTH
from ...core.inversion import Inversion
from ...core.metrics.image import psnr
from ...core.rebuilding import UNSEEN, RebuildCheck, check_rebuild, plain_sentence, short_of_noise
from ..host.conditioning import conditioning_tensors
from ..host.latents import latent_from_model
from ..host.sampling import run
from ..host.schema import io, widget
from ..host.session import Session
from .recording import noise_mask_note, recorded, words_of
from .reports import (
    inversion_outputs,
    inversion_report,
    inversion_values,
    plot_image,
    plot_output,
    report_output,
    report_text,
    shown,
    step_report,
)


def image_inputs() -> list[Any]:
    """MODEL, CONDITIONING and LATENT of a node that inverts an image."""
    return [
        widget(io.Model, "model", tooltip="The diffusion model to invert under; edit with the same one."),
        widget(
            io.Conditioning,
            "positive",
            tooltip="A prompt that describes the image. Rebuild and edit from the same prompt.",
        ),
        widget(io.Latent, "latent", tooltip="The image, encoded by VAE Encode. A batch is inverted image by image."),
    ]


def sigmas_input() -> Any:
    """Optional SIGMAS in place of a number of steps."""
    return widget(
        io.Sigmas,
        "sigmas",
        optional=True,
        tooltip="Noise levels to use instead of steps, e.g. from Basic Scheduler. Unwired: the model's own DDIM "
        "levels.",
    )


def inverting_outputs() -> list[Any]:
    """The inversion's outputs, the plot and the report."""
    return [*inversion_outputs(), plot_output(), report_output()]


class InversionMethod(Protocol):
    """An inversion as ``core.spdinv.invert.spdinv`` is one: settings in one object, the grid by steps or by sigmas."""

    def __call__(
        self,
        denoiser: Denoiser,
        latent: Tensor,
        cond: Any,
        steps: int,
        settings: Any,
        *,
        sigmas: Tensor | None = None,
        cond_tensors: Mapping[str, Tensor] | None = None,
        callback: Callback | None = None,
        **guidance: Any,
    ) -> Inversion:
        """See ``core.spdinv.invert.spdinv``."""
        ...


def invert_image(
    cls: Any,
    method: InversionMethod,
    settings: Any,
    model: Any,
    positive: Any,
    latent: dict[str, Any],
    steps: int,
    sigmas: Tensor | None,
    *,
    gradients: bool = False,
    plot_line: float | None = None,
    check: bool = False,
    vae: Any = None,
    cfg: float = 1.0,
    negative: Any = None,
    clip: Any = None,
    prompt: str = "",
) -> Any:
    """Invert a LATENT: the values of :func:`inverting_outputs`, plot and report shown on the node ``cls``.

    Args:
        settings: of ``method``.
        sigmas: descending levels to use instead of ``steps`` steps, or None.
        gradients: whether the method may take gradients through the network.
        plot_line: a tolerance to draw into the plot.
        check: rebuild the image from its noise as well, and tell and draw what was lost.
        vae: decodes for the check, so that it is told in pixels too.
        cfg, negative: guidance under which the noise must rebuild the image; only for a ``method`` that takes ``cfg``
            and ``uncond``.
        clip, prompt: what tells the words of ``positive``.

    Raises:
        EditingError: see ``method``.
    """
    checked: list[RebuildCheck] = []
    words, remarks = words_of(positive, clip, prompt)
    noted = noise_mask_note(model, latent)

    def work(session: Session) -> Inversion:
        cond, uncond = session.conds["positive"], session.conds.get("negative")
        guidance = {} if cfg == 1.0 else {"cfg": cfg, "uncond": uncond}
        inversion = method(
            session.denoiser,
            session.latent,
            cond,
            steps,
            settings,
            sigmas=None if sigmas is None else sigmas.flip(0),
            cond_tensors=conditioning_tensors(positive),
            callback=session.callback(),
            **guidance,
        )
        if session.denoiser.precision not in (torch.float32, torch.float64):
            kind = str(session.denoiser.precision).removeprefix("torch.")
            remarks.append(f"the model computes in {kind}: steps are solved as far as its precision tells them apart")
        if check:
            checked.append(check_rebuild(session.denoiser, inversion, cond, cfg, uncond, session.callback()))
        return inversion

    conds = {"positive": positive} | ({} if cfg == 1.0 or negative is None else {"negative": negative})
    inversion = run(model, latent, conds, work, gradients=gradients, sigmas=sigmas, advice="lower the image size")
    inversion = recorded(inversion, model, latent, positive, negative, cfg, words)
    plot = plot_image(inversion, plot_line)
    first = None
    if checked:
        first, lines, drawing = _told(model, inversion, checked[0], vae)
        remarks = [*lines, *remarks]
        plot = torch.cat([plot, drawing], 1)
    highest = float(model.get_model_object("model_sampling").sigma_max)
    remarks = [line for line in (*remarks, short_of_noise(inversion, highest)) if line]
    report = report_text(inversion_report(inversion, first), *remarks) + noted + step_report(inversion)
    return io.NodeOutput(*inversion_values(model, inversion), plot, report, ui=shown(report, plot, cls))


def _told(model: Any, inversion: Inversion, check: RebuildCheck, vae: Any) -> tuple[str, list[str], Tensor]:
    """A check in words: the first sentence of the report, further lines, and a drawing ``[1, H, W, 3]`` as wide as the
    plot of where the image that fared worst was lost."""
    decibels, kind = check.latent_decibels, "latent"
    before, after = inversion.latents[0].float().cpu(), check.rebuilt.float().cpu()
    if vae is not None:
        from ..host.vae import decode_images  # inverting needs no autoencoder, so one that breaks takes it not down

        pair = [decode_images(vae, latent_from_model(model, x)).float().cpu()[..., :3] for x in (before, after)]
        before, after = (x.movedim(-1, 1) for x in pair)
        decibels, kind = psnr(after.clamp(0, 1), before.clamp(0, 1)), "pixels"
    lines = [
        f"checked for {check.evaluations:.0f} more evaluations per image: the latent rebuilds at "
        f"{float(check.latent_decibels.mean()):.0f} dB on average, lowest {float(check.latent_decibels.min()):.0f}"
        + ("" if vae is None else f"; decoded, {float(decibels.mean()):.0f} dB, lowest {float(decibels.min()):.0f}")
    ]
    if float(decibels.min()) < UNSEEN:
        lines.append(
            f"Below {UNSEEN:.0f} dB ({kind}): take solver auto, more steps or a smaller tolerance; Rebuild Guider "
            "lands on the image whatever the solver left over."
        )
    worst = int(decibels.argmin())
    difference = difference_map(after, before)[worst]
    shown_under = before[worst : worst + 1] if vae is not None else torch.full((1, 3, *before.shape[-2:]), 0.5)
    drawn = difference_picture(shown_under, difference, full_heat(difference[None]))
    size = (round(drawn.shape[-2] * WIDTH / drawn.shape[-1]), WIDTH)
    return (
        plain_sentence(decibels, about=False),
        [*lines, f"below the curves: where image {worst + 1} differs"],
        torch.nn.functional.interpolate(drawn, size=size, mode="nearest").movedim(1, -1),
    )

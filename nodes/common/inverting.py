"""What the nodes that invert an image share: their sockets, and the run from LATENT to INVERSION, plot and report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.inversion import Inversion
from ..host.conditioning import conditioning_tensors
from ..host.sampling import run
from ..host.schema import io, widget
from ..host.session import Session
from .reports import (
    inversion_outputs,
    inversion_report,
    inversion_values,
    plot_image,
    plot_output,
    report_output,
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
        tooltip="Noise levels to use instead of steps, e.g. from Basic Scheduler. Unwired: the model's own DDIM levels.",
    )


def inverting_outputs() -> list[Any]:
    """The inversion's outputs, the plot and the report."""
    return [*inversion_outputs(), plot_output(), report_output()]


def invert_image(
    cls: Any, method: Callable[..., Inversion], given: dict[str, Any], *, gradients: bool = False, plot_line: float | None = None
) -> Any:  # fmt: skip
    """Run ``method`` on what is wired: the values of :func:`inverting_outputs`, plot and report shown on the node ``cls``.

    Args:
        method: ``core.inversion.invert`` or one of its like.
        given: values of :func:`image_inputs` and :func:`sigmas_input` by their names; all others are handed to ``method``.
        gradients: whether the method may take gradients through the network.
        plot_line: a tolerance to draw into the plot.

    Raises:
        EditingError: see ``method``; unusable input passes through as it is.
    """
    settings = dict(given)
    model, positive, latent, sigmas = (settings.pop(name, None) for name in ("model", "positive", "latent", "sigmas"))

    def work(session: Session) -> Inversion:
        return method(
            session.denoiser,
            session.latent,
            session.conds["positive"],
            sigmas=None if sigmas is None else sigmas.flip(0),
            cond_tensors=conditioning_tensors(positive),
            callback=session.callback(),
            **settings,
        )

    inversion = run(
        model, latent, {"positive": positive}, work, gradients=gradients, sigmas=sigmas, advice="lower the image size"
    )  # fmt: skip
    report, plot = inversion_report(inversion) + step_report(inversion), plot_image(inversion, plot_line)
    return io.NodeOutput(*inversion_values(model, inversion), plot, report, ui=shown(report, plot, cls))

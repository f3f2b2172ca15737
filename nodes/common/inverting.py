"""What the nodes that invert an image share: their sockets, and the run from LATENT to INVERSION, plot and report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from ...core.denoiser import Callback, Denoiser
from ...core.inversion import Inversion
from ..host.conditioning import conditioning_tensors
from ..host.sampling import run
from ..host.schema import io, widget
from ..host.session import Session
from .recording import noise_mask_note, recorded
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
) -> Any:
    """Invert a LATENT: the values of :func:`inverting_outputs`, plot and report shown on the node ``cls``.

    Args:
        settings: of ``method``.
        sigmas: descending levels to use instead of ``steps`` steps, or None.
        gradients: whether the method may take gradients through the network.
        plot_line: a tolerance to draw into the plot.

    Raises:
        EditingError: see ``method``.
    """

    noted = noise_mask_note(model, latent)

    def work(session: Session) -> Inversion:
        return method(
            session.denoiser,
            session.latent,
            session.conds["positive"],
            steps,
            settings,
            sigmas=None if sigmas is None else sigmas.flip(0),
            cond_tensors=conditioning_tensors(positive),
            callback=session.callback(),
        )

    conds = {"positive": positive}
    inversion = run(model, latent, conds, work, gradients=gradients, sigmas=sigmas, advice="lower the image size")
    inversion = recorded(inversion, model, latent, positive)
    report, plot = inversion_report(inversion) + noted + step_report(inversion), plot_image(inversion, plot_line)
    return io.NodeOutput(*inversion_values(model, inversion), plot, report, ui=shown(report, plot, cls))

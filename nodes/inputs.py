"""Inputs that several nodes share, so that the same socket says the same everywhere."""

from __future__ import annotations

from typing import Any

from .host import io, list_files, widget


def image_inputs() -> list[Any]:
    """MODEL, CONDITIONING and LATENT of a node that inverts an image."""
    return [
        widget(io.Model, "model", tooltip="The diffusion model to invert under; edit with the same one."),
        widget(io.Conditioning, "positive", tooltip="A prompt that describes the image. Rebuild and edit from the same prompt."),
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


def cfg_input(tooltip: str) -> Any:
    """Scale of classifier-free guidance."""
    return widget(io.Float, "cfg", default=5.0, min=0.0, max=100.0, step=0.1, tooltip=tooltip)


def seed_input(tooltip: str, *, advanced: bool = False) -> Any:
    """A seed of 64 bits with the host's own control after each run."""
    return widget(
        io.Int, "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, advanced=advanced, tooltip=tooltip
    )  # fmt: skip


def mask_input() -> Any:
    """Optional MASK of an edit."""
    return widget(
        io.Mask, "mask", optional=True, tooltip="Where to edit (white). Outside it the source stays exactly. Unwired: everywhere."
    )


def saved_name_inputs(default: str) -> list[Any]:
    """Name of the safetensors file to write, and whether it may replace one."""
    return [
        widget(io.String, "filename", default=default, tooltip="A plain name without folders; .safetensors is added."),
        widget(io.Boolean, "overwrite", default=False, tooltip="Replace a file of that name. Off (the default): refuse when there is one."),
    ]


def file_input(name: str, folder: str) -> Any:
    """A file of the pack's ``folder`` under the host's models."""
    return widget(
        io.Combo, name, options=list_files(folder), tooltip=f"A file of ComfyUI's models/{folder} folder; press R after adding one."
    )  # fmt: skip

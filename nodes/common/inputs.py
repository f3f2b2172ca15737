"""Inputs that several nodes share, so that the same socket says the same everywhere."""

from __future__ import annotations

from typing import Any

from ..host.folders import list_files
from ..host.schema import io, widget


def steps_input(tooltip: str) -> Any:
    """Number of steps of a trajectory."""
    return widget(io.Int, "steps", default=50, min=1, max=999, tooltip=tooltip)


def cfg_input(tooltip: str, default: float = 5.0) -> Any:
    """Scale of classifier-free guidance."""
    return widget(io.Float, "cfg", default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip)


def seed_input(tooltip: str, *, advanced: bool = False) -> Any:
    """A seed of 64 bits with the host's own control after each run."""
    return widget(
        io.Int,
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        advanced=advanced,
        tooltip=tooltip,
    )


def mask_input() -> Any:
    """Optional MASK of an edit."""
    return widget(
        io.Mask,
        "mask",
        optional=True,
        tooltip="Where to edit (white). Outside it the source stays exactly. Unwired: everywhere.",
    )


def words_inputs(text_of: str = "positive") -> list[Any]:
    """Optional CLIP and text of a node that makes an INVERSION, at the end of its inputs.

    Args:
        text_of: the socket whose text it is.
    """
    return [
        widget(io.Clip, "clip", optional=True, tooltip="For prompt: the CLIP that encoded it."),
        widget(
            io.String,
            "prompt",
            default="",
            optional=True,
            tooltip=f"The text of {text_of} once more, with clip wired: the inversion then keeps its words, and "
            "editing engines need no source text. Empty: not kept.",
        ),
    ]


def saved_name_inputs(default: str) -> list[Any]:
    """Name of the safetensors file to write, and whether it may replace one."""
    return [
        widget(io.String, "filename", default=default, tooltip="A plain name without folders; .safetensors is added."),
        widget(
            io.Boolean,
            "overwrite",
            default=False,
            tooltip="Replace a file of that name; a workflow that comes with this on does so without asking. Off (the "
            "default): refuse when there is one.",
        ),
    ]


def file_input(name: str, folder: str) -> Any:
    """A file of the pack's ``folder`` under the host's models."""
    return widget(
        io.Combo,
        name,
        options=list_files(folder),
        tooltip=f"A file of ComfyUI's models/{folder} folder; press R after adding one.",
    )

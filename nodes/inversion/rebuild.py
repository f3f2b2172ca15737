"""Rebuild Guider: the way back to the inverted image with stock samplers, exact whatever the solver left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...core.inversion import Inversion
from ...core.rebuilding import SourcePath
from ..common.sockets import InversionType
from ..common.trajectory_edit import EulerOnly, on_device, source_prompt
from ..host.sampling import DenoiserGuider
from ..host.schema import io, schema, widget
from ..host.session import Session


class RebuildGuider(io.ComfyNode):
    """The source's own path as a GUIDER, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RebuildGuider",
            display_name="Rebuild Guider",
            category="semantic editing/inversion",
            description="A guider for SamplerCustomAdvanced that leads the inverted noise back to the image: each step "
            "lands where the inversion came from, so the image is rebuilt whatever the solver left over.",
            search_aliases=["direct inversion", "pnp inversion", "exact reconstruction", "reconstruct inversion"],
            inputs=[
                widget(io.Model, "model", tooltip="The model the inversion was made with."),
                widget(
                    InversionType,
                    "inversion",
                    tooltip="From any inversion node, Reference From Noise or Load Inversion.",
                ),
                widget(
                    io.Conditioning,
                    "source",
                    optional=True,
                    tooltip="The prompt the image was inverted with; only needed when the inversion carries none.",
                ),
            ],
            outputs=[
                io.Guider.Output(
                    "guider", display_name="guider", tooltip="Wire it into SamplerCustomAdvanced, with sampler euler."
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Inversion, source: Any = None) -> Any:
        """A guider that keeps no state between sampling runs."""

        def prepare(session: Session) -> Callable[[Tensor, float], Tensor]:
            return EulerOnly(SourcePath(session.denoiser, on_device(inversion, session)))

        return io.NodeOutput(DenoiserGuider(model, {"positive": source_prompt(inversion, source)}, prepare))


NODES = [RebuildGuider]

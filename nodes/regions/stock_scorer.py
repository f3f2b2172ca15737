"""CLIP Scorer from CLIP and CLIP Vision: what ComfyUI has loaded as a CLIP that judges."""

from __future__ import annotations

from typing import Any

from ..common.reports import report_output, report_text, shown
from ..common.sockets import ClipScorerType
from ..host.schema import io, schema, widget
from ..host.stock_clip import stock_scorer
from .models import CATEGORY


class CLIPScorerFromCLIP(io.ComfyNode):
    """The host's CLIP and CLIP_VISION as CLIP_SCORER."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CLIPScorerFromCLIP",
            display_name="CLIP Scorer from CLIP and CLIP Vision",
            category=CATEGORY,
            description="Makes a CLIP that judges edits of a text encoder and a vision model that ComfyUI has loaded, "
            "where both are sides of one CLIP. Checks that: most text encoder files lack the part that judging needs.",
            search_aliases=["clip score", "clip vision", "stock clip", "clip similarity", "text projection"],
            inputs=[
                widget(
                    io.Clip,
                    "clip",
                    tooltip="From Load CLIP, with a file that has CLIP's text projection: model.safetensors of "
                    "openai/clip-vit-large-patch14, or the text encoder of SD 2.x or SDXL (its clip_g).",
                ),
                widget(
                    io.ClipVision,
                    "clip_vision",
                    tooltip="From Load CLIP Vision, the image side of the same CLIP: ViT-L/14 (768 wide), ViT-H "
                    "(1024, for SD 2.x) or ViT-bigG (1280, for SDXL).",
                ),
            ],
            outputs=[
                ClipScorerType.Output(
                    "clip_scorer",
                    display_name="clip scorer",
                    tooltip="The judge; wire it wherever Load CLIP Scorer's fits.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, clip_vision: Any) -> Any:
        """Join them; EditingError where they are no two sides of one CLIP."""
        scorer = stock_scorer(clip, clip_vision)
        sides = f"{scorer.name} and CLIP Vision, {scorer.side} pixels; both sides agree on plain colours"
        report = report_text("It is ready and judges edits by their texts.", sides)
        return io.NodeOutput(scorer, report, ui=shown(report))


NODES = [CLIPScorerFromCLIP]

"""Edit Report: what an edit changed and what it left alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ...core.images.edit_strip import edit_strip
from ...core.images.sizes import cut, is_cut
from ...core.metrics.edit_report import edit_report
from ...core.models.clip import ClipScorer
from ...core.models.vision_features import VisionFeatures
from ..common.image_inputs import channels_first
from ..common.reports import report_text, shown
from ..common.sockets import ClipScorerType, VisionFeaturesType
from ..host.schema import io, schema, widget


class EditReport(io.ComfyNode):
    """What changed, what stayed, and whether it came nearer to what was wanted."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_EditReport",
            display_name="Edit Report",
            category="semantic editing/report",
            description="Says in plain words what an edit changed and what it left alone, shows both pictures beside "
            "a heat map of the difference, and gives the usual figures: PSNR, SSIM, structure distance, CLIP scores.",
            search_aliases=[
                "before and after",
                "what changed",
                "compare photos",
                "compare images",
                "psnr",
                "ssim",
                "difference map",
                "clip score",
                "edit quality",
                "metrics",
            ],
            inputs=[
                widget(io.Image, "before", tooltip="The picture before the edit; one, or one for each picture after."),
                widget(io.Image, "after", tooltip="The edited or rebuilt picture, of the same size; one or a batch."),
                widget(
                    io.Image,
                    "true_edit",
                    optional=True,
                    tooltip="What the edit should have made, where that is known (the demo's pairs). Says whether the "
                    "edit is nearer to it than doing nothing.",
                ),
                widget(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where the edit was to happen (white); scaled to the picture. The figures then tell inside "
                    "from outside. Unwired: the part that changed is found from the pictures.",
                ),
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    optional=True,
                    tooltip="From Load CLIP Scorer. With target_text it tells whether the picture looks more like the "
                    "text than before.",
                ),
                widget(
                    VisionFeaturesType,
                    "vision_features",
                    optional=True,
                    tooltip="From Load Vision Features (DINO is usual). Measures how far the layout moved: the "
                    "structure distance.",
                ),
                widget(
                    io.String,
                    "source_text",
                    default="",
                    optional=True,
                    tooltip="What the picture showed before. Only CLIP reads it. A batch may have a line for each "
                    "picture.",
                ),
                widget(
                    io.String,
                    "target_text",
                    default="",
                    optional=True,
                    tooltip="What the picture was to show. Only CLIP reads it. A batch may have a line for each "
                    "picture.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="The sentence over before, after, the true edit and the difference as heat, a row for each "
                    "picture of a batch (8 at most).",
                ),
                io.Mask.Output(
                    "difference",
                    display_name="difference",
                    tooltip="How much every pixel changed: the mean difference of its colours, 0 to 1.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="The sentence, then the table of figures, then what could not be measured; for Preview "
                    "Any.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        before: Tensor,
        after: Tensor,
        true_edit: Tensor | None = None,
        mask: Tensor | None = None,
        clip_scorer: ClipScorer | None = None,
        vision_features: VisionFeatures | None = None,
        source_text: str = "",
        target_text: str = "",
    ) -> Any:
        """Compare; EditingError for pictures that cannot be compared."""
        edited = channels_first(after)
        size = (edited.shape[-2], edited.shape[-1])
        source, truth = channels_first(before), None if true_edit is None else channels_first(true_edit)
        where = None if mask is None else fitted(mask, (source.shape[-2], source.shape[-1]), size)
        remarks = []
        if is_cut(source, size):
            remarks.append(f"compared is the middle {size[1]} x {size[0]} of the picture before, as VAE Encode cuts it")
            source = cut(source, size)
        if truth is not None and is_cut(truth, size):
            truth = cut(truth, size)
        count = max(len(source), len(edited))
        with torch.inference_mode(False), torch.no_grad():
            found = edit_report(
                source,
                edited,
                truth=truth,
                mask=where,
                source_text=lines_of(source_text, count),
                target_text=lines_of(target_text, count),
                scorer=clip_scorer,
                vision=vision_features,
            )
            titles = found.sentences
            if count > 1:
                titles = tuple(f"Picture {number}: {line}" for number, line in enumerate(titles, start=1))
            picture = edit_strip(found.before, found.after, found.difference, titles, found.truth, found.mask)
        report = report_text(found.text(), *remarks)
        return io.NodeOutput(picture, found.difference, report, ui=shown(report, picture, cls))


def fitted(mask: Tensor, source: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """MASK ``[B, H, W]`` as ``[B, 1, h, w]`` of the pictures compared.

    Args:
        source: size of the picture before. A mask of that size is cut like it.
        size: of the picture after. Any other mask is scaled to it.
    """
    masks = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if masks.shape[-2:] == size:
        return masks
    if masks.shape[-2:] == source and is_cut(masks, size):
        return cut(masks, size)
    return functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)


def lines_of(text: str, count: int) -> str | list[str]:
    """A line for each picture where there are as many, else the text for all."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return lines if count > 1 and len(lines) == count else text


NODES = [EditReport]

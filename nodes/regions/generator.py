"""Region Box Generator: the edit finds its own place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.models.clip import ClipScorer
from ...core.models.vision_features import VisionFeatures
from ...core.regions.changes import DEFAULT_CHANGES
from ...core.regions.picture import boxes_json, region_picture, score_table, search_report
from ...core.regions.search import Example, RegionSearch
from ...core.regions.settings import STRATEGIES, Strategy
from ..common.inputs import seed_input
from ..common.reports import report_output, shown
from ..host.schema import io, schema, widget
from .boxes import ONLY_A_SOCKET, BoundingBoxType, SegsType, bounding_boxes
from .boxes import given_boxes as boxes_given
from .boxes import segs as found_segs
from .editors import RegionEditor
from .search_inputs import (
    CATEGORY,
    MOST_SEED,
    Stops,
    box_inputs,
    masks_of,
    model_inputs,
    pictures_of,
    require_editor,
    searched,
    wanted_mask,
)
from .search_settings import SearchChoices, SearchSettingsType

STOPS = Stops()
BEST = 3  # drawn strongly


class RegionBoxGenerator(io.ComfyNode):
    """Learnable Regions (Lin et al., arXiv 2311.16432) for one image."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RegionBoxGenerator",
            display_name="Region Box Generator",
            category=CATEGORY,
            description="Finds where an edit belongs, without a drawn mask: tries boxes around what the image shows, "
            "and ranks the edits "
            "by CLIP. Gives the best box as MASK for any inpainting nodes, and the edited image.",
            search_aliases=[
                "learnable regions",
                "auto mask",
                "text driven mask",
                "region proposal",
                "bounding box",
                "where to edit",
            ],
            inputs=[
                widget(io.Image, "image", tooltip="The image to edit, one. Any size and shape."),
                *model_inputs(),
                widget(
                    io.String,
                    "source_text",
                    default="",
                    tooltip="What the image shows where it is to change, e.g. a dog.",
                ),
                widget(
                    io.String, "target_text", default="", tooltip="What it should show instead, e.g. a white rabbit."
                ),
                *box_inputs(),
                widget(
                    io.Combo,
                    "strategy",
                    options=list(STRATEGIES),
                    default="halving",
                    tooltip="exact: renders every box. halving: quick renders of every box and full ones of the best, "
                    "a quarter of the cost.",
                ),
                seed_input("Of the noise in all renders. Fix it to go on with a search: another seed renders anew."),
                widget(
                    io.Int,
                    "most_candidates",
                    default=9,
                    min=0,
                    max=4096,
                    tooltip="Images in the candidates batch, the best ones. 0: all that were rendered, which large "
                    "images make heavy.",
                ),
                widget(
                    io.Int,
                    "change_anchors",
                    default=DEFAULT_CHANGES,
                    min=0,
                    max=64,
                    tooltip="Places to try besides: where the target text pulls at the image most, with boxes that "
                    "frame them. Only editors that know what the image shows can tell; others pay nothing.",
                ),
                widget(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where edits may be (white); Region Search Settings can turn it round. Of any size and "
                    "softness.",
                ),
                widget(
                    BoundingBoxType,
                    "given_boxes",
                    optional=True,
                    extra_dict=ONLY_A_SOCKET,
                    tooltip="Boxes to try in place of those around what the vision model looks at: a detector's "
                    "(RT-DETR, SAM, GroundingDINO, YOLO).",
                ),
                widget(
                    SegsType,
                    "segs",
                    optional=True,
                    tooltip="The same as SEGS of Impact Pack; their boxes count, and the mask as usual.",
                ),
                widget(
                    SearchSettingsType,
                    "settings",
                    optional=True,
                    tooltip="All else, from Region Search Settings.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "best_mask",
                    display_name="mask",
                    tooltip="The best box (white), for any inpainting nodes; black where no box helped.",
                ),
                BoundingBoxType.Output(
                    "boxes",
                    display_name="boxes",
                    tooltip="Every rendered box, the best first; for Draw BBoxes, SAM and others that read them.",
                ),
                io.String.Output(
                    "boxes_json",
                    display_name="boxes as JSON",
                    tooltip="The same with rank, scores and the image's size.",
                ),
                io.Image.Output(
                    "edited",
                    display_name="edited",
                    tooltip="The image with the best edit, outside the box unchanged; where no box helped, the image "
                    "as it is.",
                ),
                io.Image.Output(
                    "candidates",
                    display_name="candidates",
                    tooltip="The edits of all rendered boxes as a batch, the best first.",
                ),
                io.String.Output(
                    "scores",
                    display_name="scores",
                    tooltip="A table: rank, box, score S = 2 S_t2i + S_i2i with its parts, loss with its parts. A "
                    "star marks the best box "
                    "of a place.",
                ),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="What the vision model looks at (red), the places, all boxes, and the best ones.",
                ),
                report_output(),
                BoundingBoxType.Output(
                    "best_box", display_name="best box", tooltip="The best one alone; for Crop Image."
                ),
                SegsType.Output(
                    "segs_found", display_name="SEGS", tooltip="Every rendered box as SEGS, for nodes of Impact Pack."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        """Another number after a stopped search, which is to go on when it is asked for again."""
        return STOPS.count

    @classmethod
    def execute(
        cls,
        image: Tensor,
        vision_features: VisionFeatures,
        clip_scorer: ClipScorer,
        region_editor: RegionEditor,
        source_text: str,
        target_text: str,
        anchors: int,
        sizes: str,
        strategy: Strategy,
        seed: int,
        most_candidates: int,
        change_anchors: int,
        mask: Tensor | None = None,
        given_boxes: Any = None,
        segs: Any = None,
        settings: SearchChoices | None = None,
    ) -> Any:
        """Search; EditingError for unusable input passes through as it is."""
        require_editor(region_editor)
        choices = settings or SearchChoices()
        wanted = choices.settings(anchors, sizes, strategy, change_anchors, seed % MOST_SEED)
        pictures, remark = pictures_of(image)
        masks = masks_of(wanted_mask(mask, choices.mask_use))
        if len(pictures) != 1 or len(masks) != 1:
            raise EditingError(
                f"There are {len(pictures)} images and {len(masks)} masks; wire one image and at most one mask."
            )
        with torch.inference_mode(False), torch.no_grad():
            given = boxes_given(given_boxes, segs, (pictures.shape[-2], pictures.shape[-1]))
            example = Example(pictures, source_text, target_text, masks[0], given)
            search, stopped = searched(
                STOPS, choices.on_cancel, example, vision_features, clip_scorer, region_editor, wanted
            )
            remarks = ["stopped: these are the best so far" if stopped else "", region_editor.title, remark]
            return cls.outputs(search, most_candidates, remarks)

    @classmethod
    def outputs(cls, search: RegionSearch, most: int, remarks: list[str]) -> Any:
        """The node's outputs and what it shows."""
        found, table = search.candidates(), search.table
        best, before = found[0], table.unedited_score
        helped = best.score > before
        first = (
            f"best box: {best.box.width} x {best.box.height} pixels at ({best.box.x}, {best.box.y}), score "
            f"{best.score:.3f}; the unedited image has {before:.3f}"
        )
        if not helped:
            first = f"nothing helped: the image comes back as it is, its score is as good as the best box's; {first}"
        report = "\n".join(filter(None, [first, search_report(search), *remarks]))
        edits = torch.cat([search.edited(candidate) for candidate in (found[:most] if most else found)]).movedim(1, -1)
        picture = region_picture(table.image, search.view.attention[0], table.proposals, found, BEST)[None]
        boxes = bounding_boxes(found)
        masks = [search.mask(candidate) for candidate in found]
        return io.NodeOutput(
            search.mask(best) if helped else torch.zeros_like(search.mask(best)),
            boxes,
            boxes_json(found, table.proposals.image_size),
            edits[:1] if helped else table.image.movedim(1, -1),
            edits,
            score_table(found, table.unedited),
            picture,
            report,
            boxes[0],
            found_segs(found, masks, table.proposals.image_size),
            ui=shown(report, picture, cls),
        )


NODES = [RegionBoxGenerator]

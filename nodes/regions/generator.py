"""Region Box Generator: the edit finds its own place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.models.clip import ClipScorer
from ...core.models.vision_features import VisionFeatures
from ...core.regions.changes import DEFAULT_CHANGES
from ...core.regions.network import RegionNetwork
from ...core.regions.picture import boxes_json, policy_report, region_picture, score_table, search_report
from ...core.regions.search import Example, RegionSearch
from ...core.regions.settings import STRATEGIES, LearningSettings, Strategy
from ..common.inputs import seed_input
from ..common.reports import report_output, shown
from ..host.schema import io, schema, widget
from .boxes import ONLY_A_SOCKET, BoundingBoxType, SegsType, bounding_boxes
from .boxes import given_boxes as boxes_given
from .boxes import segs as found_segs
from .editors import RegionEditor
from .models import RegionNetworkType
from .search_inputs import (
    CATEGORY,
    DEFAULTS,
    MOST_SEED,
    TIGHTEST,
    WINNERS,
    Stops,
    advanced_box_inputs,
    box_inputs,
    budget_input,
    cancel_input,
    judging_inputs,
    masks_of,
    model_inputs,
    pictures_of,
    require_editor,
    search_settings,
    searched,
    strategy_input,
    wanted_mask,
)

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
                strategy_input("halving", STRATEGIES),
                budget_input(),
                seed_input(
                    "Of the noise in all renders and of the search. Fix it to go on with a search: another seed "
                    "renders anew."
                ),
                *advanced_box_inputs(),
                widget(
                    io.Int,
                    "epochs",
                    default=DEFAULTS.epochs,
                    min=0,
                    max=10000,
                    advanced=True,
                    tooltip="Learning steps of the region network; they cost next to nothing. The paper uses 5.",
                ),
                widget(
                    io.Combo,
                    "winner",
                    options=list(WINNERS),
                    default=TIGHTEST,
                    advanced=True,
                    tooltip="Who may be first. Best of each anchor: the box of lowest loss of each place, as in the "
                    "paper. All: every "
                    "rendered box, by score alone. Tightest of the best: where it is known where the text acts "
                    "(Region Inversion Editor), a box's share of the best gain in score, how well it frames that "
                    "place and how much of "
                    "what it changed lies there decide; else the smallest of those that score about as well as the "
                    "best.",
                ),
                *judging_inputs(),
                widget(
                    io.Combo,
                    "mask_use",
                    options=["restrict", "exclude"],
                    default="restrict",
                    advanced=True,
                    tooltip="What a wired mask means. Restrict: edits stay inside it (white). Exclude: they stay out "
                    "of it.",
                ),
                widget(
                    io.Int,
                    "most_candidates",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Images in the candidates batch, the best ones. 0: all that were rendered.",
                ),
                cancel_input(),
                widget(
                    io.Int,
                    "change_anchors",
                    default=DEFAULT_CHANGES,
                    min=0,
                    max=64,
                    tooltip="Places to try besides: where the target text pulls at the image most, with boxes that "
                    "frame them. "
                    "Only Region Inversion Editor can tell; others pay nothing. Off with strategy policy.",
                ),
                widget(
                    io.Boolean,
                    "refine",
                    default=True,
                    advanced=True,
                    tooltip="In the end move the sides of the best box while that makes it better, for one more "
                    "render. Only with "
                    "Region Inversion Editor (screening_steps 0), change_anchors and the winner tightest of the "
                    "best; others pay nothing.",
                ),
                widget(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where edits may be (white), or may not: see mask_use. Of any size and softness.",
                ),
                widget(
                    RegionNetworkType,
                    "region_network",
                    optional=True,
                    tooltip="A trained network to start from, and to choose by with strategy policy. It is not "
                    "changed.",
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
                    tooltip="The same as SEGS of Impact Pack; their boxes count, mask_use and mask as usual.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "best_mask", display_name="mask", tooltip="The best box (white); for any inpainting nodes."
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
                    tooltip="The image with the best edit. Outside the box it is unchanged.",
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
                RegionNetworkType.Output(
                    "network",
                    display_name="region network",
                    tooltip="What was learned; for Save Region Network, or another image with strategy policy.",
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
        budget: int,
        seed: int,
        aspect_ratios: str,
        spread: int,
        epochs: int,
        winner: str,
        clip_weight: float,
        direction_weight: float,
        structure_weight: float,
        crops: int,
        mask_use: str,
        most_candidates: int,
        on_cancel: str,
        change_anchors: int,
        refine: bool,
        mask: Tensor | None = None,
        region_network: RegionNetwork | None = None,
        given_boxes: Any = None,
        segs: Any = None,
    ) -> Any:
        """Search; EditingError for unusable input passes through as it is."""
        require_editor(region_editor)
        if winner not in WINNERS:
            raise EditingError(f"There is no winner {winner!r}; use one of: {', '.join(WINNERS)}.")
        learning = LearningSettings(
            strategy=strategy,
            epochs=epochs,
            budget=budget,
            choice=WINNERS[winner],
            refine=refine,
            seed=seed % MOST_SEED,
        )
        settings = search_settings(
            learning,
            anchors=anchors,
            sizes=sizes,
            aspect_ratios=aspect_ratios,
            spread=spread,
            clip_weight=clip_weight,
            direction_weight=direction_weight,
            structure_weight=structure_weight,
            crops=crops,
            mask_use=mask_use,
            change_anchors=change_anchors,
        )
        pictures, remark = pictures_of(image)
        masks = masks_of(wanted_mask(mask, mask_use))
        if len(pictures) != 1 or len(masks) != 1:
            raise EditingError(
                f"There are {len(pictures)} images and {len(masks)} masks; wire one image and at most one mask "
                "(Region Network Trainer takes many)."
            )
        with torch.inference_mode(False), torch.no_grad():
            given = boxes_given(given_boxes, segs, (pictures.shape[-2], pictures.shape[-1]))
            examples = [Example(pictures, source_text, target_text, masks[0], given)]
            search, stopped = searched(
                STOPS, on_cancel, examples, vision_features, clip_scorer, region_editor, settings, region_network
            )
            remarks = ["stopped: these are the best so far" if stopped else "", region_editor.title, remark]
            return cls.outputs(search, most_candidates, remarks)

    @classmethod
    def outputs(cls, search: RegionSearch, most: int, remarks: list[str]) -> Any:
        """The node's outputs and what it shows."""
        found, table = search.candidates(), search.tables[0]
        best = found[0]
        first = (
            f"best box: {best.box.width} x {best.box.height} pixels at ({best.box.x}, {best.box.y}), score "
            f"{best.score:.3f}"
        )
        report = "\n".join(filter(None, [first, search_report(search), policy_report(search), *remarks]))
        edits = torch.cat([search.edited(candidate) for candidate in (found[:most] if most else found)]).movedim(1, -1)
        picture = region_picture(table.image, search.views[0].attention[0], table.proposals, found, BEST)[None]
        boxes = bounding_boxes(found)
        masks = [search.mask(candidate) for candidate in found]
        return io.NodeOutput(
            search.mask(best),
            boxes,
            boxes_json(found, table.proposals.image_size),
            edits[:1],
            edits,
            score_table(found),
            picture,
            search.network,
            report,
            boxes[0],
            found_segs(found, masks, table.proposals.image_size),
            ui=shown(report, picture, cls),
        )


NODES = [RegionBoxGenerator]

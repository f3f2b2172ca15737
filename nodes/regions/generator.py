"""Region Box Generator: the edit finds its own place, with whatever editor is wired."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.models.clip import ClipScorer
from ...core.models.vision_features import VisionFeatures
from ...core.regions.picture import boxes_json, region_picture, score_table, words_report
from ...core.regions.proposals import allowed_pixels
from ...core.regions.words import STRATEGIES, Strategy, edit_by_words
from ..common.inputs import seed_input
from ..common.reports import report_output, report_text, shown
from ..common.sockets import ClipScorerType, VisionFeaturesType
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .boxes import ONLY_A_SOCKET, BoundingBoxType, SegsType, bounding_boxes, boxes_inside
from .boxes import given_boxes as boxes_given
from .boxes import segs as found_segs
from .editors import RegionEditor, RegionEditorType
from .search_inputs import (
    CACHE,
    CATEGORY,
    MOST_SEED,
    box_inputs,
    masks_of,
    numbers_in,
    pictures_of,
    require_editor,
    show_box,
    wanted_mask,
    with_alpha,
)

BEST = 3  # drawn strongly


class RegionBoxGenerator(io.ComfyNode):
    """Where an edit belongs, found with a wired editor."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RegionBoxGenerator",
            display_name="Region Box Generator",
            category=CATEGORY,
            description="Finds where an edit belongs, without a drawn mask, with the editor that is wired. Gives the "
            "best box as MASK for any inpainting nodes, and the edited image. For a sentence and a checkpoint alone "
            "take Edit by Words, Place Found.",
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
                widget(
                    RegionEditorType,
                    "region_editor",
                    tooltip="Paints inside a box, from Region Inpaint Editor (wire its source), Region Inversion "
                    "Editor or Region Token Editor. Its prompt should say what target_text says.",
                ),
                widget(
                    io.String,
                    "source_text",
                    default="",
                    tooltip="What the image shows where it is to change, e.g. a dog. Only the clip scorer reads it.",
                ),
                widget(
                    io.String,
                    "target_text",
                    default="",
                    tooltip="What it should show instead, e.g. a white rabbit. Only the clip scorer reads it.",
                ),
                widget(
                    io.Combo,
                    "strategy",
                    options=list(STRATEGIES),
                    default="map",
                    tooltip="map: the tightest frame of where the two texts differ; three compete with clip_scorer. "
                    "exact: every box of every place and size is painted, and clip_scorer chooses.",
                ),
                *box_inputs(),
                seed_input("Of the noise in all renders. Another seed paints anew."),
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
                    default=8,
                    min=1,
                    max=4096,
                    advanced=True,
                    tooltip="Images in the candidates batch, the best ones.",
                ),
                widget(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where edits may be (white), or may not: see mask_use. Of any size and softness.",
                ),
                widget(
                    BoundingBoxType,
                    "given_boxes",
                    optional=True,
                    extra_dict=ONLY_A_SOCKET,
                    tooltip="Boxes to try in place of the found ones: a detector's (RT-DETR, SAM, "
                    "GroundingDINO, YOLO).",
                ),
                widget(
                    SegsType,
                    "segs",
                    optional=True,
                    tooltip="The same as SEGS of Impact Pack; their boxes count, mask_use and mask as usual.",
                ),
                widget(
                    VisionFeaturesType,
                    "vision_features",
                    optional=True,
                    tooltip="For exact: boxes around what a vision model looks at (DINO is good).",
                ),
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    optional=True,
                    tooltip="Compares the boxes against the texts, and says when none helped.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "best_mask",
                    display_name="mask",
                    tooltip="The best box (white), also where it did not help; for any inpainting nodes.",
                ),
                BoundingBoxType.Output(
                    "boxes",
                    display_name="boxes",
                    tooltip="Every painted box, the best first; for Draw BBoxes, SAM and others that read them.",
                ),
                io.String.Output(
                    "boxes_json",
                    display_name="boxes as JSON",
                    tooltip="The same with rank, scores and the image's size.",
                ),
                io.Image.Output(
                    "edited",
                    display_name="edited",
                    tooltip="The image with the best edit; as it is where no box helped.",
                ),
                io.Image.Output(
                    "candidates",
                    display_name="candidates",
                    tooltip="The edits of the best boxes as a batch, the best first.",
                ),
                io.String.Output(
                    "scores",
                    display_name="scores",
                    tooltip="A table: rank, box, score S = 2 S_t2i + S_i2i of the image and of a crop around the "
                    "box, each beside the unedited one.",
                ),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="What the vision model looks at (red), all boxes, and the best ones.",
                ),
                report_output(),
                BoundingBoxType.Output(
                    "best_box", display_name="best box", tooltip="The best one alone; for Crop Image."
                ),
                SegsType.Output(
                    "segs_found", display_name="SEGS", tooltip="Every painted box as SEGS, for nodes of Impact Pack."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        region_editor: RegionEditor,
        source_text: str,
        target_text: str,
        strategy: Strategy,
        anchors: int,
        sizes: str,
        seed: int,
        mask_use: Literal["restrict", "exclude"],
        most_candidates: int,
        mask: Tensor | None = None,
        given_boxes: Any = None,
        segs: Any = None,
        vision_features: VisionFeatures | None = None,
        clip_scorer: ClipScorer | None = None,
    ) -> Any:
        """Search; EditingError for unusable input passes through as it is. A press of Cancel stops everything; what is
        painted by then is kept for the next run."""
        require_editor(region_editor)
        if strategy not in STRATEGIES:
            raise EditingError(f"There is no strategy {strategy!r} (any more); choose {' or '.join(STRATEGIES)}.")
        if mask_use not in ("restrict", "exclude"):
            raise EditingError(f"There is no mask_use {mask_use!r}; use restrict or exclude.")
        pictures, masks = pictures_of(image), masks_of(wanted_mask(mask, mask_use))
        if len(pictures) != 1 or len(masks) != 1:
            raise EditingError(
                f"There are {len(pictures)} images and {len(masks)} masks, and boxes are those of one image; put "
                "Rebatch Images with batch_size 1 before this node, or take Edit by Words, Place Found."
            )
        size, bar = (pictures.shape[-2], pictures.shape[-1]), StoppableBar()
        with torch.inference_mode(False), torch.no_grad():
            given = boxes_inside(boxes_given(given_boxes, segs, size), size)
            wanted = vision_features is not None and strategy == "exact" and not given
            attention = vision_features(pictures).attention[0] if wanted and vision_features is not None else None

            def watch(done: int, total: int, edited: Tensor) -> None:
                show_box(bar, done, total, edited)

            opened = region_editor.open  # an editor, not a file
            with opened(pictures, lambda progress: None) as editor:
                edit = edit_by_words(
                    editor,
                    pictures,
                    strategy=strategy,
                    allowed=allowed_pixels(masks[0], mask_use, size),
                    boxes=given,
                    attention=attention,
                    anchors=anchors,
                    sizes=numbers_in(sizes, "sizes"),
                    scorer=clip_scorer,
                    texts=(source_text, target_text),
                    seed=seed % MOST_SEED,
                    kept=CACHE,
                    watch=watch,
                )
            if not edit.painted:
                raise EditingError(
                    "The two texts mean the same to the editor here, so no place was found; word them differently, or "
                    "wire boxes."
                )
            report = report_text(words_report(edit), region_editor.title)
            edits = torch.cat([one.edited for one in edit.painted[:most_candidates]]).movedim(1, -1)
            picture = region_picture(pictures, attention, [one.box for one in edit.painted], BEST)[None]
            shapes = [torch.zeros(1, *size) for _ in edit.painted]
            for shape, one in zip(shapes, edit.painted, strict=True):
                x, y, width, height = one.box
                inside = (slice(None), slice(y, y + height), slice(x, x + width))
                shape[inside] = allowed_pixels(masks[0], mask_use, size)[None][inside].float()
            boxes = bounding_boxes(edit.painted)
            return io.NodeOutput(
                shapes[0],
                boxes,
                boxes_json(edit),
                with_alpha(edit.result.movedim(1, -1), image),
                with_alpha(edits, image),
                score_table(edit),
                picture,
                report,
                boxes[0],
                found_segs(edit.painted, shapes, size),
                ui=shown(report, picture, cls),
            )


NODES = [RegionBoxGenerator]

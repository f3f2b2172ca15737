"""Region Network Trainer: what suits an edit, learned from many images, to be used on new ones without a search."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.images.curves import curves_plot
from ...core.images.files import skipped_report
from ...core.models.clip import ClipScorer
from ...core.models.vision_features import VisionFeatures
from ...core.regions.network import RegionNetwork
from ...core.regions.picture import policy_report, search_report
from ...core.regions.search import Example
from ...core.regions.settings import STRATEGIES, LearningSettings, Strategy
from ..common.image_inputs import gathered
from ..common.inputs import seed_input
from ..common.reports import plot_output, report_output, shown
from ..host.schema import io, schema, widget
from .editors import RegionEditor
from .models import RegionNetworkType
from .search_inputs import (
    CATEGORY,
    DEFAULTS,
    MOST_SEED,
    Stops,
    advanced_box_inputs,
    box_inputs,
    budget_input,
    cancel_input,
    judging_inputs,
    model_inputs,
    pictures_of,
    require_editor,
    search_settings,
    searched,
    strategy_input,
)

STOPS = Stops()
OFFICIAL = LearningSettings.official()
SCHEDULES = ("as set below", f"paper: {OFFICIAL.epochs} epochs, Adam {OFFICIAL.learning_rate:g}")


class RegionNetworkTrainer(io.ComfyNode):
    """Learnable Regions (Lin et al., arXiv 2311.16432), amortised over images."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RegionNetworkTrainer",
            display_name="Region Network Trainer",
            category=CATEGORY,
            description="Trains a region network on many images for one kind of edit. Region Box Generator then "
            "chooses the box of a new "
            "image by strategy policy, with one render a place instead of a search. Cancel keeps what was learned.",
            search_aliases=[
                "learnable regions",
                "train region proposal",
                "region generation network",
                "auto mask training",
            ],
            inputs=[
                *model_inputs(),
                widget(
                    io.String,
                    "source_text",
                    default="",
                    multiline=True,
                    tooltip="What the images show where they are to change: one line for all, or one line for each "
                    "image.",
                ),
                widget(
                    io.String,
                    "target_text",
                    default="",
                    multiline=True,
                    tooltip="What they should show instead: one line for all, or one for each image. The editor's "
                    "prompt is the same "
                    "for all.",
                ),
                widget(
                    io.String,
                    "folder",
                    default="",
                    tooltip="A folder of pictures inside ComfyUI's input folder. Leave empty when images are wired.",
                ),
                widget(
                    io.Int,
                    "image_size",
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip="Pixels to which the pictures of the folder are brought, their middle cut out as a "
                    "square. Wired images stay.",
                ),
                widget(
                    io.Combo,
                    "schedule",
                    options=list(SCHEDULES),
                    default=SCHEDULES[0],
                    tooltip="How long and how fast to learn: by the widgets epochs and learning_rate, or as the "
                    "paper does.",
                ),
                widget(
                    io.Int,
                    "epochs",
                    default=DEFAULTS.epochs,
                    min=1,
                    max=10000,
                    tooltip="Passes over the images; they cost little.",
                ),
                strategy_input("exact", tuple(name for name in STRATEGIES if name != "policy")),
                *box_inputs(),
                budget_input(),
                seed_input(
                    "Of the noise in all renders, of the first weights and of the search. Fix it to go on with a "
                    "training."
                ),
                *advanced_box_inputs(),
                widget(
                    io.Float,
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=0.000001,
                    max=1.0,
                    step=0.0001,
                    round=0.000001,
                    advanced=True,
                    tooltip="Of Adam; 0.003 is the paper's. Lower it when the loss jumps.",
                ),
                *judging_inputs(),
                cancel_input(),
                widget(
                    io.Image,
                    "images",
                    optional=True,
                    tooltip="Images to learn from, a batch of one size, in place of a folder.",
                ),
                widget(
                    RegionNetworkType,
                    "region_network",
                    optional=True,
                    tooltip="A network to go on with. It is not changed.",
                ),
            ],
            outputs=[
                RegionNetworkType.Output(
                    "network",
                    display_name="region network",
                    tooltip="The trained network; wire it into Region Box Generator or Save Region Network.",
                ),
                plot_output(),
                report_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        """Another number after a stopped training, which is to go on when it is asked for again."""
        return STOPS.count

    @classmethod
    def execute(
        cls,
        vision_features: VisionFeatures,
        clip_scorer: ClipScorer,
        region_editor: RegionEditor,
        source_text: str,
        target_text: str,
        folder: str,
        image_size: int,
        schedule: str,
        epochs: int,
        anchors: int,
        sizes: str,
        strategy: Strategy,
        budget: int,
        seed: int,
        aspect_ratios: str,
        spread: int,
        learning_rate: float,
        clip_weight: float,
        direction_weight: float,
        structure_weight: float,
        crops: int,
        on_cancel: str,
        images: Tensor | None = None,
        region_network: RegionNetwork | None = None,
    ) -> Any:
        """Train; EditingError for unusable input passes through as it is."""
        require_editor(region_editor)
        if schedule not in SCHEDULES:
            raise EditingError(f"There is no schedule {schedule!r}; use one of: {'; '.join(SCHEDULES)}.")
        official = schedule == SCHEDULES[1]
        learning = LearningSettings(
            strategy=strategy,
            epochs=OFFICIAL.epochs if official else epochs,
            learning_rate=OFFICIAL.learning_rate if official else learning_rate,
            budget=budget,
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
        )
        if settings.learning.strategy == "policy":
            raise EditingError("The strategy policy learns nothing; use exact, halving, sampled or soft mask to train.")
        pictures, skipped = gathered(folder, images, image_size)
        with torch.inference_mode(False), torch.no_grad():
            examples = examples_of(pictures_of(pictures)[0], source_text, target_text)
            search, stopped = searched(
                STOPS, on_cancel, examples, vision_features, clip_scorer, region_editor, settings, region_network
            )
            assert search.learner is not None
            plot = curves_plot({"expected loss": {"training": search.learner.history}})[None]
            remark = "stopped: this is what was learned so far" if stopped else ""
            told = [
                search_report(search),
                policy_report(search),
                region_editor.title,
                skipped_report(skipped),
                remark,
            ]
        report = "\n".join(filter(None, told))
        return io.NodeOutput(search.network, plot, report, ui=shown(report, plot, cls))


def examples_of(pictures: Tensor, source_text: str, target_text: str) -> list[Example]:
    """Each of ``pictures [B, 3, H, W]`` with its texts.

    Raises:
        EditingError: neither one line nor one for each picture.
    """
    columns = []
    for name, text in (("source_text", source_text), ("target_text", target_text)):
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
        if len(lines) not in (1, len(pictures)):
            raise EditingError(
                f"{name} has {len(lines)} lines for {len(pictures)} images; write one line for all or one for each "
                "image."
            )
        columns.append(lines if len(lines) == len(pictures) else lines * len(pictures))
    return [Example(picture[None], source, target) for picture, source, target in zip(pictures, *columns, strict=True)]


NODES = [RegionNetworkTrainer]

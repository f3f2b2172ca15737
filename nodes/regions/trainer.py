"""Region Network Trainer: Learnable Regions' own network, for research."""

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
from ...core.regions.paper import SIGNALS, Example, PaperSettings, Signal, best, comparison, new_network, study, train
from ...core.regions.rewards import LossWeights
from ..common.image_inputs import gathered
from ..common.inputs import seed_input
from ..common.reports import plot_output, report_output, report_text, shown
from ..common.sockets import ClipScorerType, VisionFeaturesType
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .boxes import BoundingBoxType, bounding_boxes_of
from .editors import RegionEditor, RegionEditorType
from .models import RegionNetworkType
from .search_inputs import CACHE, CATEGORY, MOST_SEED, box_inputs, numbers_in, pictures_of, require_editor, show_box

DEFAULTS = PaperSettings()
FINDING = (
    "Experimental: measured on 32 unseen images of 8 edits it takes the largest box at 6 places in 10, and its edits "
    "are farther from the truth than those of boxes by chance, so no other node asks it."
)


class RegionNetworkTrainer(io.ComfyNode):
    """Learnable Regions (Lin et al., arXiv 2311.16432) as the paper has it."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RegionNetworkTrainer",
            display_name="Region Network Trainer (experimental)",
            category=CATEGORY,
            description="The network of Learnable Regions: squares around attended places are all painted and judged, "
            "and a network learns from their losses which to choose. " + FINDING,
            search_aliases=[
                "learnable regions",
                "train region proposal",
                "region generation network",
                "auto mask training",
            ],
            inputs=[
                widget(VisionFeaturesType, "vision_features", tooltip="Finds the places (the paper has DINO)."),
                widget(ClipScorerType, "clip_scorer", tooltip="Judges every edit against the texts."),
                widget(RegionEditorType, "region_editor", tooltip="Paints inside a box, one prompt for all."),
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
                    tooltip="What they should show instead: one line for all, or one for each image.",
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
                    io.Int,
                    "epochs",
                    default=DEFAULTS.epochs,
                    min=1,
                    max=10000,
                    tooltip="Passes over the images; they cost little. The paper uses 5.",
                ),
                *box_inputs(only_exact=False),
                seed_input("Of the noise in all renders, of the first weights and of the choices."),
                widget(
                    io.Combo,
                    "signal",
                    options=list(SIGNALS),
                    default=SIGNALS[0],
                    advanced=True,
                    tooltip="What is learned from. Expected loss: of all boxes, by their chances. Gumbel: of the box "
                    "drawn (straight-through), as in the paper.",
                ),
                widget(
                    io.Float,
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=0.000001,
                    max=1.0,
                    step=0.0001,
                    round=0.000001,
                    advanced=True,
                    tooltip="Of Adam; 0.003 is the paper's.",
                ),
                *(
                    widget(
                        io.Float,
                        name,
                        default=1.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        advanced=True,
                        tooltip=f"How much it counts that {what}. 1 is the paper's, 0 is off.",
                    )
                    for name, what in (
                        ("clip_weight", "the edit looks like the target text"),
                        ("direction_weight", "the image changes the way the texts do"),
                        ("structure_weight", "the image keeps its structure"),
                    )
                ),
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
                    tooltip="The trained network; for Save Region Network, or to go on with.",
                ),
                plot_output(),
                report_output(),
                BoundingBoxType.Output(
                    "chosen_boxes",
                    display_name="boxes",
                    tooltip="Of each image the box that the network chose, the best of all places by score.",
                ),
            ],
            is_output_node=True,
            is_experimental=True,
        )

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
        epochs: int,
        anchors: int,
        sizes: str,
        seed: int,
        signal: Signal,
        learning_rate: float,
        clip_weight: float,
        direction_weight: float,
        structure_weight: float,
        images: Tensor | None = None,
        region_network: RegionNetwork | None = None,
    ) -> Any:
        """Train; EditingError for unusable input passes through as it is. Cancel keeps what was painted for the next
        run."""
        require_editor(region_editor)
        settings = PaperSettings(
            anchors=anchors,
            sizes=numbers_in(sizes, "sizes"),
            weights=LossWeights(clip_weight, direction_weight, structure_weight),
            epochs=epochs,
            learning_rate=learning_rate,
            signal=signal,
            seed=seed % MOST_SEED,
        )
        pictures, skipped = gathered(folder, images, image_size)
        bar, studied = StoppableBar(), []
        with torch.inference_mode(False), torch.no_grad():
            if region_network is not None:
                region_network.check_vision(vision_features.identity)
            examples = examples_of(pictures_of(pictures), source_text, target_text)
            for number, example in enumerate(examples):

                def watch(done: int, total: int, edited: Tensor, number: int = number) -> None:
                    show_box(bar, number * total + done, len(examples) * total, edited)

                opened = region_editor.open  # an editor, not a file
                with opened(example.image, lambda progress: None) as editor:
                    studied.append(study(example, vision_features, clip_scorer, editor, settings, CACHE, watch))
            network = (
                new_network(studied[0], vision_features, settings.seed)
                if region_network is None
                else region_network.copy()
            )
            history = train(network, studied, settings)
            plot = curves_plot({"expected loss": {"training": history}})[None]
            chosen = [[best(network, one)] for one in studied]
            units = sum(one.units for one in studied)
            told = [
                f"Learned from {len(studied)} image(s) which box to choose; the largest box is often as good.",
                f"{sum(len(one.verdicts) for one in studied)} boxes of {len(studied)} images; {units:g} u",
                f"learned in {len(history)} epochs: mean loss {history[0]:.3f} to {history[-1]:.3f}",
                comparison(network, studied),
                FINDING,
                region_editor.title,
                skipped_report(skipped),
            ]
        report = report_text(*told)
        return io.NodeOutput(
            network, plot, report, [bounding_boxes_of(boxes) for boxes in chosen], ui=shown(report, plot, cls)
        )


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

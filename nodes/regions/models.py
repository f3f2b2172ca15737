"""Load Vision Features, Load CLIP Scorer, Save and Load Region Network, and the socket types of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...core.errors import EditingError
from ...core.models.clip import TowerScorer, load_clip
from ...core.models.vision_features import VisionFeatures, load_vision_features
from ...core.regions.network import RegionNetwork
from ...core.writing import check_target
from ..common.bundled import bundled, bundled_names
from ..common.inputs import file_input, saved_name_inputs
from ..common.reports import file_fingerprint, model_fingerprint, report_output, report_text, shown
from ..common.saving import save_or_rescue
from ..common.sockets import ClipScorerType, VisionFeaturesType
from ..host.folders import list_models, output_path, resolve_file, resolve_model
from ..host.managed_models import manage_scorer, manage_vision
from ..host.schema import io, schema, widget

#: Socket carrying a ``core.regions.network.RegionNetwork``.
RegionNetworkType = io.Custom("REGION_NETWORK")

CATEGORY = "semantic editing/regions"
#: Folders in ComfyUI's models folder.
VISION, CLIPS, NETWORKS = "vision_features", "clip_scorer", "region_networks"


def model_input(name: str, folder: str, what: str) -> Any:
    """The demo's model, or a model folder or file of ``models/<folder>``."""
    options = [*bundled_names(folder), *list_models(folder)]
    return widget(
        io.Combo,
        name,
        options=options,
        default=options[0] if options else None,
        tooltip=f"{what} in ComfyUI's models/{folder} folder, a single file in models/clip_vision, or the demo's. "
        "Press R after adding one.",
    )


def found_or_told(folder: str, name: str | None) -> bool | str:
    """What ``validate_inputs`` says of :func:`model_input`: a sentence that says where the file goes; the host's own
    only repeats the list."""
    if name is None or bundled(folder, name):
        return True
    try:
        resolve_model(folder, name)
    except EditingError as error:
        return str(error)
    return True


class LoadVisionFeatures(io.ComfyNode):
    """A vision transformer as VISION_FEATURES."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_LoadVisionFeatures",
            display_name="Load Vision Features",
            category=CATEGORY,
            description="Loads a vision transformer whose attention shows where the objects of an image are: DINO, "
            "DINOv2 (with or without "
            "registers), any plain ViT, the image side of a CLIP, or the demo model's.",
            search_aliases=["dino", "dinov2", "vit loader", "attention map", "learnable regions"],
            inputs=[
                model_input(
                    "vision_model",
                    VISION,
                    "A transformers folder, or a safetensors file of DINO, DINOv2, CLIP or timm,",
                ),
                widget(
                    io.Int,
                    "heads",
                    default=0,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip="Attention heads of a safetensors file, which does not say. 0: one for every 64 "
                    "channels, right for all "
                    "published DINO models. Folders know their own.",
                ),
            ],
            outputs=[
                VisionFeaturesType.Output(
                    "vision_features",
                    display_name="vision features",
                    tooltip="The model; wire it into Region Box Generator.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, vision_model: str | None = None) -> bool | str:
        """Whether the model is there."""
        return found_or_told(VISION, vision_model)

    @classmethod
    def fingerprint_inputs(cls, vision_model: str, heads: int = 0) -> str:
        """Sizes and times of the files, so that a model put in anew is read anew."""
        return vision_model if bundled(VISION, vision_model) else model_fingerprint(VISION, vision_model)

    @classmethod
    def execute(cls, vision_model: str, heads: int) -> Any:
        """Read; EditingError for a damaged or foreign model."""

        def make() -> VisionFeatures:
            demo = bundled(VISION, vision_model)
            return demo() if demo else load_vision_features(resolve_model(VISION, vision_model), heads or None)

        made = manage_vision(make)
        report = report_text("It is ready and says what an image has where.", vision_report(vision_model, made))
        return io.NodeOutput(made, report, ui=shown(report))


def vision_report(name: str, vision: VisionFeatures) -> str:
    """What was loaded, in a line."""
    return f"{name}: patches of {vision.patch} pixels, images of about {vision.native}"


class LoadCLIPScorer(io.ComfyNode):
    """A CLIP as CLIP_SCORER."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_LoadCLIPScorer",
            display_name="Load CLIP Scorer",
            category=CATEGORY,
            description="Loads a whole CLIP, image and text side, that judges how well an edited image fits the "
            "target text and keeps the "
            "source: a transformers CLIPModel folder or file, an OpenCLIP file, or the demo model's.",
            search_aliases=["clip score", "openclip", "clip similarity", "reward model", "learnable regions"],
            inputs=[
                model_input(
                    "clip_model",
                    CLIPS,
                    "A transformers CLIPModel, as a folder or its model.safetensors alone (B and L count as OpenAI's; "
                    "give LAION's as a folder), or an OpenCLIP safetensors file,",
                ),
                widget(
                    io.String,
                    "architecture",
                    default="ViT-B-16",
                    advanced=True,
                    tooltip="Of an OpenCLIP file: its architecture by OpenCLIP's name, e.g. ViT-B-16 or ViT-L-14; "
                    "OpenAI's own weights "
                    "need the name that ends in -quickgelu. Folders and transformers files know their own.",
                ),
            ],
            outputs=[
                ClipScorerType.Output(
                    "clip_scorer", display_name="clip scorer", tooltip="The judge; wire it into Region Box Generator."
                ),
                report_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, clip_model: str | None = None) -> bool | str:
        """Whether the model is there."""
        return found_or_told(CLIPS, clip_model)

    @classmethod
    def fingerprint_inputs(cls, clip_model: str, architecture: str = "") -> str:
        """Sizes and times of the files, so that a model put in anew is read anew."""
        return clip_model if bundled(CLIPS, clip_model) else model_fingerprint(CLIPS, clip_model)

    @classmethod
    def execute(cls, clip_model: str, architecture: str) -> Any:
        """Read; EditingError for a damaged or foreign model."""

        def make() -> TowerScorer:
            demo = bundled(CLIPS, clip_model)
            return demo() if demo else load_clip(resolve_model(CLIPS, clip_model), architecture.strip())

        report = report_text("It is ready and judges edits by their texts.", clip_model)
        return io.NodeOutput(manage_scorer(make), report, ui=shown(report))


class SaveRegionNetwork(io.ComfyNode):
    """Write a REGION_NETWORK to ``models/region_networks``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_SaveRegionNetwork",
            display_name="Save Region Network",
            category=CATEGORY,
            description="Saves a trained region network as a safetensors file in ComfyUI's models/region_networks "
            "folder, to go on training it later.",
            search_aliases=["store region network", "export region network", "learnable regions"],
            inputs=[
                widget(
                    RegionNetworkType, "region_network", tooltip="The network to save, from Region Network Trainer."
                ),
                *saved_name_inputs("region network"),
            ],
            outputs=[
                io.String.Output(
                    "saved_file", display_name="file", tooltip="Name of the file, as Load Region Network lists it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, region_network: RegionNetwork, filename: str, overwrite: bool) -> Any:
        """Write whole or not at all."""
        path = check_target(output_path(NETWORKS, filename), overwrite=overwrite)

        def save(target: Path, replacing: bool) -> None:
            region_network.save(target, overwrite=replacing)

        saved = save_or_rescue(save, path, overwrite, is_output=False)
        report = report_text(saved.line, network_report(region_network))
        return io.NodeOutput(saved.file, ui=shown(report))


class LoadRegionNetwork(io.ComfyNode):
    """Read a REGION_NETWORK from ``models/region_networks``."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_LoadRegionNetwork",
            display_name="Load Region Network",
            category=CATEGORY,
            description="Loads a region network saved by Save Region Network. It fits the vision model and the "
            "number of box sizes that it "
            "was trained with.",
            search_aliases=["open region network", "import region network", "learnable regions"],
            inputs=[file_input("network_file", NETWORKS)],
            outputs=[
                RegionNetworkType.Output(
                    "region_network", display_name="region network", tooltip="Wire it into Region Network Trainer."
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, network_file: str) -> str:
        """Size and time of the file, so that a file saved anew is read anew."""
        return file_fingerprint(NETWORKS, network_file)

    @classmethod
    def execute(cls, network_file: str) -> Any:
        """Read; EditingError for a damaged or foreign file."""
        path = resolve_file(NETWORKS, network_file)
        with torch.inference_mode(False):  # it may be trained on
            network = RegionNetwork.load(path)
        report = report_text("It is ready.", f"{network_file}: {network_report(network)}")
        return io.NodeOutput(network, report, ui=shown(report))


def network_report(network: RegionNetwork) -> str:
    """What the network takes, in a line."""
    return f"a region network for {network.slots} boxes at each anchor and {network.channels} vision features"


NODES = [LoadVisionFeatures, LoadCLIPScorer, LoadRegionNetwork, SaveRegionNetwork]

"""Image Caption: the source prompt of a photo, from BLIP or BLIP-2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.models.captioner import LONGEST, MOST_BEAMS, load_captioner
from ..common.image_inputs import channels_first
from ..common.reports import model_fingerprint, report_output, report_text, shown
from ..host.folders import IMAGE_CAPTIONERS
from ..host.managed_models import load_to_device, preferred_dtype
from ..host.memory import memory_advice
from ..host.progress import stop_if_cancelled
from ..host.schema import io, schema, widget
from .local_models import CATEGORY, model_folder_input, network_of_folder


class ImageCaption(io.ComfyNode):
    """What a picture shows, in words."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_ImageCaption",
            display_name="Image Caption",
            category=CATEGORY,
            description="Describes an image in words with BLIP or BLIP-2, as pix2pix-zero does: the prompt to invert a "
            "photo with, so that a picture and two words are enough.",
            search_aliases=[
                "describe photo",
                "prompt from photo",
                "blip",
                "caption",
                "image to text",
                "describe image",
                "interrogate",
                "pix2pix-zero",
            ],
            inputs=[
                widget(io.Image, "image", tooltip="The image to describe; a batch gives a line for each."),
                model_folder_input(
                    "caption_model",
                    IMAGE_CAPTIONERS,
                    "A transformers folder of BLIP, or of BLIP-2 with OPT or T5, in ComfyUI's models/image_captioners "
                    "folder. Press R after adding one.",
                ),
                widget(
                    io.Int,
                    "longest",
                    default=30,
                    min=1,
                    max=LONGEST,
                    tooltip="Most tokens of the caption, about as many as words. 30 is usual; the text encoder takes "
                    "75.",
                ),
                widget(
                    io.Int,
                    "beams",
                    default=3,
                    min=1,
                    max=MOST_BEAMS,
                    advanced=True,
                    tooltip="How many captions are followed side by side. 1 takes the likeliest word each time; 3 is "
                    "usual; more is slower.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "caption",
                    display_name="caption",
                    tooltip="The caption; wire it into the text of CLIP Text Encode, the source prompt.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, caption_model: str, **_: Any) -> str:
        """Sizes and times of the files, so that a model put in anew is read anew."""
        return model_fingerprint(IMAGE_CAPTIONERS, caption_model)

    @classmethod
    def execute(cls, image: Tensor, caption_model: str, longest: int, beams: int) -> Any:
        """Describe; EditingError for a damaged or foreign model."""
        captioner, patcher = network_of_folder(
            IMAGE_CAPTIONERS, caption_model, lambda folder: load_captioner(folder).to(preferred_dtype())
        )
        with memory_advice("use a smaller caption model or lower beams"):
            load_to_device(patcher)
            captions = captioner.caption(channels_first(image), longest, beams, stop_if_cancelled)
        several = f" (the first of {len(captions)})" if len(captions) > 1 else ""
        first = f"It reads{several}: {captions[0].rstrip('.')}."
        report = report_text(first, f"{caption_model}, {beams} beams:", *captions)
        return io.NodeOutput("\n".join(captions), report, ui=shown(report))


NODES = [ImageCaption]

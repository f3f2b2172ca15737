"""Load Demo Model, Load Demo Image: the bundled cartoon-portrait world, so that every demo workflow runs with nothing downloaded."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.demo_data import DemoData
from ..core.errors import EditingError
from .host import io, load_demo_model, schema, widget

CATEGORY = "semantic editing/demo"
PORTRAITS = "portraits"


def demo_pictures(pictures: str, number: int) -> tuple[Any, str, Any, str]:
    """``(image [1, H, W, 3], caption, edited image, edited caption)``; of ``PORTRAITS`` both are the same.

    Raises:
        EditingError: no such set, or ``number`` past its end.
    """
    data = DemoData()
    pairs = [] if pictures == PORTRAITS else data.pairs_of(pictures)
    size = len(pairs) or len(data.captions)
    if not 0 <= number < size:
        raise EditingError(f"There is no picture {number} of {pictures!r}; use a number from 0 to {size - 1}.")
    if pairs:
        pair = pairs[number]
        return as_image(pair.source), pair.source_caption, as_image(pair.target), pair.target_caption
    image, caption = as_image(data.images[number]), data.captions[number]
    return image, caption, image, caption


def as_image(picture: Tensor) -> Tensor:
    """``[3, H, W]`` -> IMAGE ``[1, H, W, 3]``."""
    return picture.movedim(0, -1)[None].contiguous()


class LoadDemoModel(io.ComfyNode):
    """The demo model as stock MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_LoadDemoModel",
            display_name="Load Demo Model",
            category=CATEGORY,
            description="Loads the small cartoon-portrait model that ships with this pack (128 x 128 pixels, nothing to download). "
            "Its outputs work in every stock node.",
            search_aliases=["demo checkpoint", "tiny model", "example model", "semantic editing demo"],
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The demo U-Net, an SD-like eps model with 16 x 16 latents."),
                io.Clip.Output("clip", display_name="clip", tooltip="The demo text encoder; wire it into CLIP Text Encode."),
                io.Vae.Output("vae", display_name="vae", tooltip="The demo VAE; wire it into VAE Encode and VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls) -> Any:
        """Load the three parts from ``assets/demo``."""
        return io.NodeOutput(*load_demo_model())


class LoadDemoImage(io.ComfyNode):
    """One demo picture, or a counterfactual pair."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_LoadDemoImage",
            display_name="Load Demo Image",
            category=CATEGORY,
            description="A picture of the demo world with its caption. Choose an edit instead of 'portraits' to get a pair: the picture "
            "and the same face truly edited, to compare an edit with.",
            search_aliases=["demo picture", "test image", "counterfactual pair", "example image"],
            inputs=[
                widget(
                    io.Combo,
                    "pictures",
                    options=[PORTRAITS, *DemoData().edits],
                    default=PORTRAITS,
                    tooltip="'portraits': plain demo pictures. An edit, e.g. 'mouth: sad to smile': pairs before and after exactly "
                    "that edit.",
                ),
                widget(
                    io.Int,
                    "number",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="Which picture of the chosen set, from 0. A number past the end is refused with the size of the set.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The picture, 128 x 128."),
                io.String.Output("caption", display_name="caption", tooltip="What the picture shows; use it as the source prompt."),
                io.Image.Output(
                    "edited_image", display_name="edited image", tooltip="The true edited picture; the same picture for 'portraits'."
                ),
                io.String.Output(
                    "edited_caption",
                    display_name="edited caption",
                    tooltip="The caption of the edited picture; the same caption for 'portraits'.",
                ),
            ],
        )

    @classmethod
    def execute(cls, pictures: str, number: int) -> Any:
        """Look the picture up; raises EditingError for an unknown set or a number past its end."""
        return io.NodeOutput(*demo_pictures(pictures, number))


NODES = [LoadDemoModel, LoadDemoImage]

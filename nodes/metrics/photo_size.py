"""Restore Photo Size: an edit back at the size of the photo it was made from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.images.sizes import at_photo_size
from ..common.image_inputs import channels_first
from ..host.schema import io, schema, widget


class RestorePhotoSize(io.ComfyNode):
    """Undoes what VAE Encode cut off, and a scaling before it."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RestorePhotoSize",
            display_name="Restore Photo Size",
            category="semantic editing/report",
            description="Gives an edited picture back at the size of the photo: VAE Encode cuts a photo to multiples "
            "of 8 pixels, and a photo that was scaled for the model comes back small. Wire it after VAE Decode.",
            search_aliases=[
                "back to photo size",
                "original size",
                "uncrop",
                "resize to image",
                "match size",
                "restore resolution",
            ],
            inputs=[
                widget(io.Image, "photo", tooltip="The photo as it was loaded; one, or one for each edited picture."),
                widget(io.Image, "edited", tooltip="The edited picture or batch, from VAE Decode."),
            ],
            outputs=[
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="The edit at the photo's width and height; a margin that was cut off is the photo's own, "
                    "coloured as the edit beside it.",
                )
            ],
        )

    @classmethod
    def execute(cls, photo: Tensor, edited: Tensor) -> Any:
        """Place or scale back; EditingError for a picture of another shape."""
        return io.NodeOutput(at_photo_size(channels_first(photo), channels_first(edited)).movedim(1, -1))


NODES = [RestorePhotoSize]

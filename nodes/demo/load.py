"""Load Demo Model, Load Demo Image: the bundled cartoon portraits, so that demo workflows need no download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.demo.data import SORTED, DemoData
from ...core.errors import EditingError
from ..host.schema import io, schema, widget
from .comfy_model import load_demo_model, offer_to_loaders

offer_to_loaders()

CATEGORY = "semantic editing/demo"
PORTRAITS = "portraits"
EVERYONE = "everyone"  # the pictures of all pairs, to learn from
#: Two folders as a person would sort them: option -> what they are sorted by, and which of the two.
FOLDERS = {f"{word} {what}": (what, side) for what in SORTED for side, word in enumerate(("with", "without"))}


def demo_pictures(pictures: str, number: int, count: int = 1) -> tuple[Any, str, Any, str]:
    """``(images [count, H, W, 3], captions, edited images, edited captions)``; of ``PORTRAITS`` both are the same.

    Captions of several pictures are lines.

    Raises:
        EditingError: no such set, or pictures past its end.
    """
    data = DemoData()
    if pictures in FOLDERS:
        return sorted_pictures(data, pictures, number, count)
    pairs = [] if pictures == PORTRAITS else data.pairs if pictures == EVERYONE else data.pairs_of(pictures)
    size = len(pairs) or len(data.captions)
    if count < 1 or not 0 <= number <= size - count:
        raise EditingError(
            f"There are no {count} picture(s) from {number} on of {pictures!r}; it has pictures from 0 to {size - 1}."
        )
    rows = slice(number, number + count)
    if pairs:
        chosen = pairs[rows]
        sources, targets = (as_images([getattr(pair, side) for pair in chosen]) for side in ("source", "target"))
        before, after = (
            "\n".join(getattr(pair, f"{side}_caption") for pair in chosen) for side in ("source", "target")
        )
        return sources, before, targets, after
    images, captions = as_images(list(data.images[rows])), "\n".join(data.captions[rows])
    return images, captions, images, captions


def sorted_pictures(data: DemoData, pictures: str, number: int, count: int) -> tuple[Any, str, Any, str]:
    """``count`` pictures of one of :data:`FOLDERS` from ``number`` on, and after its last from its first.

    Raises:
        EditingError: it has fewer.
    """
    what, side = FOLDERS[pictures]
    group = data.sorted_by(what)[side]
    if not 1 <= count <= len(group):
        raise EditingError(f"There are no {count} pictures {pictures}; choose a count from 1 to {len(group)}.")
    chosen = [group[(number + place) % len(group)] for place in range(count)]
    images, captions = as_images([picture for picture, _ in chosen]), "\n".join(caption for _, caption in chosen)
    return images, captions, images, captions


def as_images(pictures: list[Tensor]) -> Tensor:
    """Pictures ``[3, H, W]`` -> IMAGE ``[N, H, W, 3]``."""
    return torch.stack(pictures).movedim(1, -1).contiguous()


class LoadDemoModel(io.ComfyNode):
    """The demo model as stock MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_LoadDemoModel",
            display_name="Load Demo Model",
            category=CATEGORY,
            description="Loads the small cartoon-portrait model that ships with this pack (128 x 128 pixels, nothing "
            "to download). Its outputs work in every stock node.",
            search_aliases=[
                "try without a model",
                "demo checkpoint",
                "tiny model",
                "example model",
                "semantic editing demo",
            ],
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="The demo U-Net, an SD-like eps model with 16 x 16 latents."
                ),
                io.Clip.Output(
                    "clip", display_name="clip", tooltip="The demo text encoder; wire it into CLIP Text Encode."
                ),
                io.Vae.Output(
                    "vae", display_name="vae", tooltip="The demo VAE; wire it into VAE Encode and VAE Decode."
                ),
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
            description="A picture of the demo world with its caption, or several. Choose an edit instead of "
            "'portraits' to get pairs: the picture and the same face truly edited, to compare an edit with.",
            search_aliases=[
                "try without a photo",
                "demo picture",
                "test image",
                "counterfactual pair",
                "example image",
            ],
            inputs=[
                widget(
                    io.Combo,
                    "pictures",
                    options=[PORTRAITS, *DemoData().edits, EVERYONE, *FOLDERS],
                    default=PORTRAITS,
                    tooltip="'portraits': plain demo pictures. An edit, e.g. 'mouth: sad to smile': pairs before and "
                    "after exactly that edit. 'everyone': the pairs of all edits, to train with. 'with' and 'without' "
                    "something: a folder each to learn it from, which begins anew after its last picture.",
                ),
                widget(
                    io.Int,
                    "number",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="Which picture of the chosen set, from 0. A number past the end is refused with the size "
                    "of the set.",
                ),
                widget(
                    io.Int,
                    "count",
                    default=1,
                    min=1,
                    max=9999,
                    optional=True,
                    advanced=True,
                    tooltip="How many pictures from that number on, as a batch; captions then come one a line.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The picture, 128 x 128."),
                io.String.Output(
                    "caption", display_name="caption", tooltip="What the picture shows; use it as the source prompt."
                ),
                io.Image.Output(
                    "edited_image",
                    display_name="edited image",
                    tooltip="The true edited picture; the same picture for 'portraits'.",
                ),
                io.String.Output(
                    "edited_caption",
                    display_name="edited caption",
                    tooltip="The caption of the edited picture; the same caption for 'portraits'.",
                ),
            ],
        )

    @classmethod
    def execute(cls, pictures: str, number: int, count: int = 1) -> Any:
        """Look the pictures up; raises EditingError for an unknown set or a number past its end."""
        return io.NodeOutput(*demo_pictures(pictures, number, count))


NODES = [LoadDemoModel, LoadDemoImage]

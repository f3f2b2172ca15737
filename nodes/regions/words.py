"""Edit by Words, Place Found: two texts and a picture, nothing drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.models.clip import ClipScorer
from ...core.regions.edit_inpaint import PLAIN_STRENGTH, InpaintSettings
from ...core.regions.paste import Framing
from ...core.regions.picture import words_report
from ...core.regions.proposals import allowed_pixels
from ...core.regions.words import WordsEdit, edit_by_words
from ..common.inputs import cfg_input, seed_input
from ..common.reports import report_output, report_text, shown
from ..common.sockets import ClipScorerType
from ..host.inpainting import reads_mask
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from ..host.words import encoded_text
from .boxes import ONLY_A_SOCKET, BoundingBoxType, SegsType, bounding_boxes, boxes_inside, given_boxes
from .editors import sampler_inputs
from .host_editors import inpaint_opener
from .search_inputs import CACHE, CATEGORY, MOST_SEED, masks_of, pictures_of, show_box, wanted_mask, with_alpha

FEATHER = 4


class EditByWords(io.ComfyNode):
    """A map of where two texts differ (DiffEdit, arXiv 2210.11427), and inpainting inside the box that frames it."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_EditByWords",
            display_name="Edit by Words, Place Found",
            category=CATEGORY,
            description="Changes one thing into another without a drawn mask: compares what the model predicts for the "
            "two texts at noised copies of the image, frames the place where they differ most, and inpaints there. "
            "Plain and inpainting models work. With a CLIP scorer several boxes compete, and where none helps the "
            "image comes back as it is.",
            search_aliases=[
                "edit photo",
                "edit image",
                "replace object",
                "change cat to dog",
                "remove glasses",
                "smile",
                "change hair colour",
                "auto mask",
                "diffedit",
                "text driven mask",
                "inpaint by words",
                "learnable regions",
            ],
            inputs=[
                widget(io.Model, "model", tooltip="What paints: an inpainting model (best) or a plain one."),
                widget(io.Clip, "clip", tooltip="The model's own text encoder; both prompts are made here."),
                widget(io.Vae, "vae", tooltip="The model's own VAE."),
                widget(io.Image, "image", tooltip="The image to edit; of a batch, each by itself."),
                widget(io.String, "change", default="", tooltip="What is there now, e.g. a dog."),
                widget(io.String, "into", default="", tooltip="What should be there instead, e.g. a white rabbit."),
                widget(
                    io.Int,
                    "steps",
                    default=18,
                    min=1,
                    max=999,
                    tooltip="Steps of a render; finding the place costs six more of them. More is finer and slower.",
                ),
                cfg_input(
                    "How strongly the new words pull away from the old ones. 1 is no extra pull; 3 to 8 is usual."
                ),
                seed_input("Of the noise that is painted from. It does not move the place."),
                widget(
                    io.String,
                    "sentence",
                    default="a photo of {}",
                    advanced=True,
                    tooltip="What both texts are put into, at {}. Just {} takes them as they are.",
                ),
                widget(
                    io.Float,
                    "context",
                    default=0.5,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    advanced=True,
                    tooltip="What the model sees around a box, as a share of its longer side. 100: the whole image.",
                ),
                widget(
                    io.Int,
                    "working_size",
                    default=512,
                    min=0,
                    max=4096,
                    step=8,
                    advanced=True,
                    tooltip="Pixels to which the side of what is cut out is resized for the model: 512 for SD 1.x, "
                    "1024 for SDXL, 128 for the demo. 0: as it is in the image.",
                ),
                widget(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where the edit may be (white). Of any size and softness.",
                ),
                widget(
                    BoundingBoxType,
                    "boxes",
                    optional=True,
                    extra_dict=ONLY_A_SOCKET,
                    tooltip="Places to try in place of the found ones: a detector's boxes.",
                ),
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    optional=True,
                    tooltip="Compares three boxes, and says when none helped. Without it the tightest is taken, which "
                    "was as good and cheaper where it was measured.",
                ),
                widget(
                    SegsType,
                    "segs",
                    optional=True,
                    tooltip="The same as SEGS of Impact Pack; their boxes count.",
                ),
                *sampler_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    "result",
                    display_name="result",
                    tooltip="The edited image, outside the box as it was; where nothing helped, the image itself.",
                ),
                io.Mask.Output(
                    "edited_mask", display_name="mask", tooltip="Where it was edited; black where nothing helped."
                ),
                BoundingBoxType.Output(
                    "painted_boxes",
                    display_name="boxes",
                    tooltip="Every box painted, of each image, the best first; for Draw BBoxes, SAM and others.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        image: Tensor,
        change: str,
        into: str,
        steps: int,
        cfg: float,
        seed: int,
        sentence: str,
        context: float,
        working_size: int,
        mask: Tensor | None = None,
        boxes: Any = None,
        clip_scorer: ClipScorer | None = None,
        segs: Any = None,
        sampler: Any = None,
        sigmas: Tensor | None = None,
    ) -> Any:
        """Edit; EditingError for unusable input passes through as it is."""
        texts = filled(sentence, change, into)
        pictures = pictures_of(image)
        masks = masks_of(wanted_mask(mask, "restrict"))
        if len(masks) not in (1, len(pictures)):
            raise EditingError(f"There are {len(pictures)} images and {len(masks)} masks; wire one mask or as many.")
        masks = masks if len(masks) == len(pictures) else masks * len(pictures)
        size = (pictures.shape[-2], pictures.shape[-1])
        given = boxes_inside(given_boxes(boxes, segs, size), size)
        source, target = (encoded_text(clip, text) for text in texts)
        framing = Framing(context, working_size=working_size or None, feather=FEATHER)
        settings = InpaintSettings(cfg, steps, 1.0 if reads_mask(model) else PLAIN_STRENGTH, framing)
        opener = inpaint_opener(model, vae, target, source, settings, source, sampler, sigmas)
        found: list[WordsEdit] = []
        bar = StoppableBar()
        with torch.inference_mode(False), torch.no_grad():
            for picture, allowed in zip(pictures, masks, strict=True):
                one = picture[None]

                def watch(done: int, total: int, edited: Tensor) -> None:
                    show_box(bar, done, total, edited)

                with opener(one, lambda progress: None) as editor:
                    found.append(
                        edit_by_words(
                            editor,
                            one,
                            allowed=None if allowed is None else allowed_pixels(allowed, "restrict", size),
                            boxes=given,
                            scorer=clip_scorer,
                            texts=texts,
                            seed=seed % MOST_SEED,
                            kept=CACHE,
                            watch=watch,
                        )
                    )
        result = with_alpha(torch.cat([edit.result for edit in found]).movedim(1, -1), image)
        shapes = torch.cat([mask_of(edit) for edit in found])
        helped = sum(edit.helped for edit in found)
        several = [f"Edited {helped} of {len(found)} images."] if len(found) > 1 else []
        report = report_text(*several, *map(words_report, found))
        painted = [bounding_boxes(edit.painted) for edit in found]
        return io.NodeOutput(result, shapes, painted, report, ui=shown(report, result[:1, ..., :3], cls))


def filled(sentence: str, change: str, into: str) -> tuple[str, str]:
    """Both prompts.

    Raises:
        EditingError: a text is missing, both are the same, or the sentence has no place for them.
    """
    if not change.strip() or not into.strip():
        raise EditingError("A text is missing; write what is there into change and what should be there into into.")
    if change.strip() == into.strip():
        raise EditingError("change and into say the same; say what should be different.")
    if "{}" not in sentence:
        raise EditingError(f"sentence is {sentence!r}; write {{}} where the texts go, for example: a photo of {{}}.")
    return sentence.replace("{}", change.strip()), sentence.replace("{}", into.strip())


def mask_of(edit: WordsEdit) -> Tensor:
    """Where the result was edited, ``[1, H, W]``."""
    mask = torch.zeros(1, *edit.image.shape[-2:])
    if edit.helped:
        x, y, width, height = edit.painted[0].box
        mask[0, y : y + height, x : x + width] = 1
    return mask


NODES = [EditByWords]
